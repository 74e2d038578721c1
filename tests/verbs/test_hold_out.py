"""`--hold-out` takes some of the train rows as test rows."""

import json
from pathlib import Path

import pytest

from command import perdure
from perdure.api import evaluate, learn, show, verify
from perdure.data.opening import file_split, hold_out, open_split
from perdure.data.task import Split
from perdure.errors import PerdureError
from perdure.lineage.lineage import Lineage
from place import learned, setting_for


pytestmark = pytest.mark.own


def rows(count: int) -> Split:
    return Split(tuple({"prompt": f"p{i}", "completion": "c"} for i in range(count)))


@pytest.mark.parametrize(("count", "share", "expected"), [(40, 0.1, 4), (9, 0.5, 4), (3, 0.01, 1)])
def test_the_parts_have_every_row_once(count, share, expected):
    train, test = hold_out(rows(count), share, seed=1)
    assert len(test.rows) == expected
    both = [*train.rows, *test.rows]
    assert sorted(map(str, both)) == sorted(map(str, rows(count).rows))
    assert [row["prompt"] for row in test.rows] == [f"p{n - 1}" for n in test.numbers]
    assert hold_out(rows(count), share, seed=1)[1] == test
    assert count < 40 or hold_out(rows(count), share, seed=2)[1] != test


@pytest.mark.parametrize(
    ("count", "share", "message"),
    [(10, 0.0, "between 0 and 1, got 0"), (10, 1, "between 0 and 1"), (1, 0.5, "there are 1 rows")],
)
def test_shares_that_are_wrong(count, share, message):
    with pytest.raises(PerdureError, match=message):
        hold_out(rows(count), share, seed=0)


def test_a_part_can_be_opened_again(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(20).rows))
    for part in hold_out(file_split(file, 15, 3), 0.2, seed=4):
        assert part.source
        assert open_split(part.source).rows == part.rows


def test_learn_and_a_yaml_hold_out_the_same_rows(tmp_path):
    setting = setting_for("causal", tmp_path, n=20)
    train = setting["tasks"][0]["train"]
    task = {"name": "colour", "train": train, "hold_out": 0.25}
    first = learned({**setting, "tasks": [task]}, tmp_path / "first").stages[0]
    assert (first["task"]["train"]["rows"], first["task"]["test"]["rows"]) == (15, 5)
    settings = {key: value for key, value in setting.items() if key != "tasks"}
    (tmp_path / "settings.yaml").write_text(json.dumps({**settings, "method": "sequential"}))
    other = tmp_path / "other"
    assert perdure("init", other, "--config", tmp_path / "settings.yaml").status == 0
    assert perdure("learn", other, "colour", train, "--hold-out", 0.25).status == 0
    second = Lineage(other).stages[0]
    for split in ("train", "test"):
        assert first["task"][split]["sha256"] == second["task"][split]["sha256"]
    assert show(other, 1)["verdict"]["learned"]["rows"] == 5
    # The rows that were held out are scored again after the next stage.
    learn(other, "animal", setting["tasks"][1]["train"])
    assert show(other, 2)["verdict"]["old"]["colour"]["rows"] == 5
    assert verify(other) == []
    assert "--hold-out 0.25" in _report(other)


def _report(lineage: Path) -> str:
    from perdure.reporting.rerun import rerun

    return "\n".join(rerun(Lineage(lineage)).commands)


def test_a_task_with_test_rows_holds_nothing_out(tmp_path):
    setting = setting_for("causal", tmp_path, n=20)
    task = {**setting["tasks"][0], "hold_out": 0.25}
    with pytest.raises(PerdureError, match="has test rows of its own; leave out hold_out"):
        learned({**setting, "tasks": [task]}, tmp_path / "first")
    with pytest.raises(PerdureError, match=r"hold_out takes a share such as 0\.1, got 'x'"):
        learned({**setting, "tasks": [{**task, "hold_out": "x"}]}, tmp_path / "first")


def test_a_run_with_a_limit_of_the_rows_held_out_can_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setting = setting_for("causal", tmp_path, n=24)
    (first, _) = setting["tasks"]
    tasks = [{"name": "colour", "train": first["train"], "hold_out": 0.5}]
    lineage = learned({**setting, "tasks": tasks, "rows": {"test": 3}}, "lineage")
    assert lineage.stages[0]["task"]["test"]["rows"] == 3
    assert perdure("show", "lineage").status == 0
    assert evaluate("lineage")["colour"]["rows"] == 3
    assert verify("lineage") == []
