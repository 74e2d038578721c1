"""The worked example of CONTRIBUTING.md is the method that is shipped."""

import re
from pathlib import Path

import pytest

import perdure.methods.si
from train.engine import learned, same, stopped_and_resumed


pytestmark = pytest.mark.own
PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


def test_the_example_learns_and_resumes_as_si_does(tmp_path, monkeypatch):
    shipped, shipped_trainer = learned("causal", "si", tmp_path / "shipped")
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    namespace = {"__name__": "perdure.methods.si"}  # where a method stands says its name
    exec(compile(block, PAGE.name, "exec"), namespace)
    monkeypatch.setattr(perdure.methods.si, "SI", namespace["SI"])
    example, example_trainer = stopped_and_resumed("causal", "si", tmp_path / "example", 4, 3)
    assert type(example_trainer.methods[0]) is namespace["SI"]
    assert same(example, shipped)
    for trainer in (shipped_trainer, example_trainer):
        trainer.methods[0].end_task(trainer.base.model)
    assert same(example_trainer.methods[0].state_dict(), shipped_trainer.methods[0].state_dict())
