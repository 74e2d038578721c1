"""The worked example of CONTRIBUTING.md is the method that is shipped."""

import re
from pathlib import Path

import pytest

import perdure.methods.si
from train.engine import learned, same, stopped_and_resumed


pytestmark = pytest.mark.own
PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


def test_the_example_learns_and_resumes_as_si_does(tmp_path, monkeypatch):
    shipped, engine = learned("causal", "si", tmp_path / "shipped")
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    namespace = {"__name__": "perdure.methods.si"}  # where a method stands says its name
    exec(compile(block, PAGE.name, "exec"), namespace)
    monkeypatch.setattr(perdure.methods.si, "SI", namespace["SI"])
    example, made = stopped_and_resumed("causal", "si", tmp_path / "example", 4, 3)
    assert type(made.methods[0]) is namespace["SI"]
    assert same(example, shipped)
    for one in (engine, made):
        one.methods[0].end_task(one.base.model)
    assert same(made.methods[0].state_dict(), engine.methods[0].state_dict())
