"""The example of the chat model: what sequential learning loses, and what the default keeps."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from command import perdure


pytestmark = [pytest.mark.slow, pytest.mark.smollm2, pytest.mark.own]

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The folder in which `make chat-demo` runs its commands."""
    place = tmp_path_factory.mktemp("demo")
    runpy.run_path(str(EXAMPLES / "chat_rows.py"))["main"](place / "chat-demo" / "rows")
    settings = yaml.safe_load((EXAMPLES / "chat.yaml").read_text())
    for task in settings["tasks"]:
        for split in ("train", "test"):
            task[split] = str(place / task[split])
    (place / "chat.yaml").write_text(yaml.safe_dump({**settings, "threads": 1}))
    return place


def verdict(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "verdict.json").read_text())


def learned(verdicts: list[dict[str, Any]]) -> float:
    """The mean score of the tasks right after each was learned."""
    return sum(judged["learned"]["after"] for judged in verdicts) / len(verdicts)


@pytest.fixture(scope="module")
def unprotected(place) -> Path:
    """The lineage of `method=sequential`, whose third stage is refused."""
    lineage = place / "sequential"
    result = perdure("run", place / "chat.yaml", "method=sequential", f"lineage={lineage}")
    assert result.status == 3, result.err
    assert "refused" in result.err
    assert "gate.general is 0.45" in result.err
    return lineage


def test_without_protection_a_task_and_general_ability_are_lost(unprotected):
    (folder,) = (unprotected / "refused").iterdir()
    judged = verdict(folder)
    assert "department" in judged["lost"]
    assert judged["general"]["lost"]
    assert perdure("check", folder, "--limit", 28, "--tokens", 32).status == 3
    history = perdure("log", unprotected, "--json").json
    assert (history[-1]["verb"], history[-1]["stage"]) == ("refused", 2)


def test_the_default_keeps_the_tasks_and_general_ability(place, unprotected):
    lineage = place / "protected"
    result = perdure("run", place / "chat.yaml", f"lineage={lineage}")
    assert result.status == 0, result.err
    stages = sorted((lineage / "stages").iterdir())
    verdicts = [verdict(folder) for folder in stages]
    others = [verdict(folder) for folder in sorted((unprotected / "stages").iterdir())]
    others += [verdict(folder) for folder in (unprotected / "refused").iterdir()]
    assert len(verdicts) == len(others) == 3
    assert [judged["lost"] for judged in verdicts] == [[], [], []]
    assert not any(judged["general"]["lost"] for judged in verdicts)
    assert verdicts[-1]["general"]["kl"] < 0.5 * others[-1]["general"]["kl"]
    assert learned(verdicts) >= learned(others) - 0.1  # 48 test rows in all
