"""Cells are run, kept and compared; what breaks or stops one stops no other."""

import json
from pathlib import Path

import pytest

import perdure as package
from command import perdure, tree
from comparison.grids import Ended, grid_yaml, run_here
from perdure.comparison import processes
from perdure.comparison.grid import read_grid
from perdure.measure.statistics import deviation, mean, paired
from perdure.verbs import compare as verb
from perdure.verbs import compare_dry_run, verify


pytestmark = pytest.mark.own


FREE = (".json", ".log", "lock")


@pytest.fixture
def cells_run(monkeypatch):
    """Cells run in this process; the list of those that did."""
    cells = []

    def begin(cell, folder):
        cells.append(cell)
        return run_here(cell, folder)

    monkeypatch.setattr(processes, "start", begin)
    return cells


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison in processes, two at a time, and its place."""
    place = tmp_path_factory.mktemp("compared")
    path = grid_yaml(
        place, grid={"method": ["sequential", "replay"], "seed": [3]}, baseline="replay"
    )
    result = perdure("compare", path, "--jobs", 2)
    assert result.status == 0, result.err
    return place, result


def kept_of(folder: Path) -> dict[str, str]:
    """All but what may differ: seconds, memory, and the YAMLs, which name the folder."""
    yamls = [f"cells/{path.name}" for path in (folder / "cells").glob("*.yaml")]
    hashes = {n: h for n, h in tree(folder).items() if not n.endswith(FREE) or "/stages/" in n}
    hashes = {name: sha for name, sha in hashes.items() if name not in yamls}
    assert any(name.endswith("lineage.yaml") for name in hashes)
    return hashes | {"compare.json": (folder / "compare.json").read_text()}


@pytest.mark.slow
def test_neither_jobs_nor_where_cells_run_changes_a_byte(compared, cells_run):
    place, _ = compared
    again = perdure("compare", place / "grid.yaml", f"lineage={place}/new")
    assert again.status == 0, again.err
    assert len(cells_run) == 2
    files = kept_of(place / "new")
    assert files == kept_of(place / "out")
    assert sum(name.endswith("adapter_model.safetensors") for name in files) == 4


def test_a_cell_is_a_lineage_with_the_settings_that_make_it_beside_it(compared):
    place, _ = compared
    (folder,) = place.glob("out/cells/replay-*-3-*/")
    assert verify.verify(folder) == []
    settings = folder.with_name(f"{folder.name}.yaml")
    assert (
        perdure("run", settings, "--json").json["overall"]
        == (json.loads((place / "out" / "compare.json").read_text())["cells"][1]["overall"])
    )


def test_what_is_finished_is_not_run_again(compared, cells_run):
    place, _ = compared
    before = tree(place)
    again = perdure("compare", place / "grid.yaml", "--json")
    assert cells_run == []
    assert "2 of 2 are already finished" in again.err
    assert tree(place) == before
    comparison = again.json
    assert comparison["folder"] == str(place / "out")
    assert package.compare(place / "grid.yaml") == comparison
    assert {**comparison["costs"]} == json.loads((place / "out" / "costs.json").read_text())


def test_a_damaged_record_is_made_again(compared, cells_run):
    place, _ = compared
    before = tree(place)
    record = next((place / "out" / "cells").glob("replay*.json"))
    whole = record.read_text()
    record.write_text(whole[:40])
    assert "1 of 2 are already finished" in perdure("compare", place / "grid.yaml", "--json").err
    assert record.read_text() == whole
    assert [cell.name for cell in cells_run] == [record.stem]
    assert tree(place) == before


def test_what_is_printed(compared):
    _, result = compared
    for words in ("sequential", "replay", "1 of 1", "OP - replay", "rows forward", "compare.json"):
        assert words in result.out
    assert "2/2" in result.err


def test_the_numbers_are_those_of_the_cells(cells_run, tmp_path):
    axes = {"method": ["sequential", "replay"], "seed": [0, 1, 2]}
    training = {"learning_rate": 2e-2, "num_train_epochs": 4}
    path = grid_yaml(tmp_path, grid=axes, baseline="sequential", training=training, adapter=None)
    comparison = package.compare(path)
    assert len(cells_run) == 6
    plain, replay = ([c for c in comparison["cells"] if c["line"] == n] for n in axes["method"])
    first, second = comparison["lines"]
    ops = [cell["overall"] for cell in replay]
    assert second["overall"] == {
        "mean": mean(ops),
        "deviation": deviation(ops),
        "cells": 3,
        "orders": 1,
        "low": None,  # of one order
        "high": None,
    }
    assert len({*ops, *(cell["overall"] for cell in plain)}) > 2  # else the numbers prove nothing
    pairs = [{(c["order"], c["seed"]): c["overall"] for c in cells} for cells in (replay, plain)]
    expected = paired(*pairs)
    difference = second["to_baseline"]["overall"]
    assert (difference["mean"], difference["pairs"]) == (expected.mean, 3)
    assert difference["orders"] == 1
    assert (expected.interval, difference["within_noise"], difference["differs"]) == (None,) * 3
    assert first["to_baseline"] is None
    assert first["baseline"] == second["baseline"] == "sequential"
    assert [line["rows"] for line in comparison["lines"]] == [
        {"forward": 128, "backward": 128},
        {"forward": 152, "backward": 152},  # a step takes each remembered row once
    ]
    assert [line["stored_rows"] for line in comparison["lines"]] == [0, 6]  # one of each answer
    files = (tmp_path / "out" / "cells").glob("replay-*-0-*/stages/*/memory.jsonl")
    assert replay[0]["stored_bytes"] == sum(file.stat().st_size for file in files) > 0
    assert first["trainable"] == second["trainable"] > 0
    costs = comparison["costs"]["lines"]["replay"]
    assert costs["seconds"] > 0
    assert costs["peak_memory_bytes"] > 2**20
    assert "seconds" not in json.dumps({k: v for k, v in comparison.items() if k != "costs"})


def test_a_constant_answer_and_the_union_are_the_floor_and_the_ceiling(cells_run, tmp_path):
    path = grid_yaml(tmp_path, grid={"method": ["constant", "union"]}, choose=choosing())
    tried = perdure("compare", path, "--dry-run", "--json").json["lines"]
    assert [(line["trials"], line["to_run"]) for line in tried] == [(0, 0), (2, 3)]
    comparison = package.compare(path)
    assert [cell.line.partition(",")[0] for cell in cells_run] == ["union"] * 3
    assert list(comparison["choose"]) == ["union"]
    floor, top = comparison["cells"]
    for place, task in enumerate(("colour", "animal")):
        rows = {s: (tmp_path / f"{task}-{s}.jsonl").read_text() for s in ("train", "test")}
        answers = {
            s: [json.loads(row)["completion"] for row in t.split("\n") if row]
            for s, t in rows.items()
        }
        common = max(answers["train"], key=answers["train"].count)
        share = answers["test"].count(common) / len(answers["test"])
        assert floor["matrix"]["rows"][1][place] == pytest.approx(share)
    assert (floor["mode"], floor["learning_accuracy"]) == (["constant"], None)
    assert floor["overall"] == mean(floor["matrix"]["rows"][1])
    assert top["matrix"]["learned_at"] == [1, 1]
    assert (top["stored_rows"], top["stored_bytes"]) == (32, None)
    costs = comparison["costs"]["lines"]
    assert costs["constant"]["cpu_seconds"] == 0
    assert costs["union"]["cpu_seconds"] > 0
    assert "CPU time" in perdure("compare", path).out


def test_plain_text_has_no_constant_answer(tmp_path):
    rows = [{"text": f"a line of text, number {n}"} for n in range(8)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [{"name": "plain", "train": str(tmp_path / "text.jsonl")}]
    grid = {"method": ["constant", "sequential"]}
    result = perdure("compare", grid_yaml(tmp_path, tasks=tasks, grid=grid))
    assert result.status == 2
    assert "task 'plain': its rows are plain text, for which there is no constant" in result.err


def test_what_is_published_stands_beside(cells_run, tmp_path):
    published = {"replay": {"overall": 0.784, "backward_transfer": -0.028}}
    path = grid_yaml(tmp_path, grid={"method": ["sequential", "replay"]}, published=published)
    result = perdure("compare", path)
    assert result.status == 0, result.err
    for words in ("published OP", "published BWT", "0.784", "-0.028"):
        assert words in result.out
    lines = json.loads((tmp_path / "out" / "compare.json").read_text())["lines"]
    assert [line["published"] for line in lines] == [None, published["replay"]]


def test_a_dry_run_counts_what_is_left_and_writes_nothing(cells_run, tmp_path, monkeypatch):
    path = grid_yaml(tmp_path, choose=choosing())
    before = tree(tmp_path)
    result = perdure("compare", path, "--dry-run", "--jobs", 2, "--json")
    assert result.status == 0, result.err
    assert tree(tmp_path) == before
    plan = result.json
    counts = ("name", "cells", "trials", "to_run", "steps")
    assert [[line[key] for key in counts] for line in plan["lines"]] == [
        ["sequential", 2, 2, 4, 4],
        ["replay", 2, 2, 4, 4],
    ]
    assert plan["to_run"] == 8
    assert plan["seconds"] == sum(4 * line["seconds"] for line in plan["lines"]) / 2
    assert plan["peak_memory_bytes"] > 2**20
    package.compare(path)
    monkeypatch.setattr(compare_dry_run, "dry_run_of", lambda *args, **more: pytest.fail("tried"))
    repeated = perdure("compare", path, "--dry-run")
    assert "every cell is finished" in repeated.out
    assert perdure("compare", path, "--dry-run", "--json").json["seconds"] == 0
    assert len(cells_run) == 8


def test_a_cell_that_breaks_stops_no_other_and_is_told(cells_run, tmp_path):
    path = grid_yaml(tmp_path, baseline="sequential")
    grid = read_grid(path)
    bad = grid.cells(grid.lines[0], {})[1].lineage(tmp_path / "out")
    bad.mkdir(parents=True)
    (bad / "something").write_text("else")
    result = perdure("compare", path, "--json")
    assert result.status == 1
    assert len(cells_run) == 4
    message = "1 of 4 cells failed: sequential, colour+animal, seed 1: "
    assert f"perdure: {message}{bad}: exists and is not empty" in result.err.splitlines()[-1]
    cells = {(c["line"], c["seed"]): c["error"] for c in result.json["cells"]}
    assert [key for key, error in cells.items() if error] == [("sequential", 1)]
    first, second = result.json["lines"]
    assert (first["cells"], first["of"], second["cells"]) == (1, 2, 2)
    assert second["to_baseline"]["overall"]["pairs"] == 1
    assert second["to_baseline"]["overall"]["within_noise"] is None
    repeated = perdure("compare", path)
    assert len(cells_run) == 5  # it alone is tried again
    assert "1 of 2" in repeated.out
    (bad / "something").unlink()
    assert perdure("compare", path).status == 0


def test_a_cell_that_the_gate_refused_is_counted_as_refused(cells_run, tmp_path):
    path = grid_yaml(tmp_path, gate={"kl": 1e-6}, grid={"method": ["sequential"], "seed": [0, 1]})
    result = perdure("compare", path, "--json")
    assert result.status == 3
    assert result.err.splitlines()[-1] == "perdure: the gate refused 2 of 2 cells"
    assert result.json["lines"][0]["refused"] == 2
    for cell in result.json["cells"]:
        assert cell["refused"]
        assert cell["error"].startswith("refused: colour was refused: KL from the base")
    assert "0 of 2, 2 refused" in perdure("compare", path).out


def choosing(**more):
    return {"key": "training.learning_rate", "values": [1e-5, 1e-2], "held_out": 0.25, **more}


def test_trials_open_no_test_rows_and_the_best_is_taken(cells_run, tmp_path, monkeypatch):
    path = grid_yaml(tmp_path, choose=choosing(seed=7))
    tests = {file: file.read_text() for file in tmp_path.glob("*-test.jsonl")}
    for file in tests:
        file.unlink()
    begin, ops = processes.start, iter([0.25, 0.5, 0.75, 0.75])

    def trial(cell, folder):
        process = begin(cell, folder)
        if len(cells_run) == 4:
            for file, text in tests.items():
                file.write_text(text)
        return process

    write = verb.Cell.write_record

    def scored(cell, folder):
        record = write(cell, folder)
        return {**record, "overall": next(ops)} if cell.kind == "trials" else record

    monkeypatch.setattr(processes, "start", trial)
    monkeypatch.setattr(verb.Cell, "write_record", scored)
    comparison = package.compare(path)
    assert [cell.kind for cell in cells_run] == ["trials"] * 4 + ["cells"] * 4
    chosen = comparison["choose"]
    assert [c["overall"] for c in chosen.values()] == [[0.25, 0.5], [0.75, 0.75]]
    assert [c["chosen"] for c in chosen.values()] == [1e-2, 1e-5]  # of equal ones the first
    rates = [cell.config.training["learning_rate"] for cell in cells_run]
    assert rates == [1e-5, 1e-2, 1e-5, 1e-2, 1e-2, 1e-2, 1e-5, 1e-5]
    assert {cell.seed for cell in cells_run[:4]} == {7}
    for task in ("colour", "animal"):
        rows = (tmp_path / f"{task}-train.jsonl").read_text().splitlines()
        (train,) = tmp_path.glob(f"out/trials/rows-*/*-{task}-train.jsonl")
        (out,) = tmp_path.glob(f"out/trials/rows-*/*-{task}-test.jsonl")
        split = [file.read_text().splitlines() for file in (train, out)]
        assert [len(part) for part in split] == [12, 4]
        assert sorted(map(json.loads, [*split[0], *split[1]]), key=str) == sorted(
            map(json.loads, rows), key=str
        )
    assert all(cell.config.scoring.old == "last" for cell in cells_run[:4])
    again = package.compare(path)  # with the real scores of the trials, which are all equal
    assert len({c["chosen"] for c in again["choose"].values()}) == 1


def test_a_line_whose_trial_breaks_is_not_compared(cells_run, tmp_path):
    choices = {"replay": {"key": "memory.ratio", "values": [0.5, 0.25]}}
    path = grid_yaml(tmp_path, choose=choosing(methods=choices))
    grid = read_grid(path)
    trial = verb.Trials(grid, grid.choose).cells["replay"][1].lineage(tmp_path / "out")
    trial.mkdir(parents=True)
    (trial / "something").write_text("else")
    comparison = package.compare(path)
    assert [c["error"] is None for c in comparison["cells"]] == [True, True, False, False]
    assert comparison["cells"][2]["error"].startswith(f"trial 2: {trial}: exists and is not empty")
    assert comparison["choose"]["replay"]["key"] == "memory.ratio"
    assert comparison["choose"]["replay"]["chosen"] is None
    assert comparison["lines"][1]["overall"]["mean"] is None


class Endless(Ended):
    def __init__(self):
        self.calls = []

    def poll(self):
        return None

    def terminate(self):
        self.calls.append("terminate")

    def kill(self):
        self.calls.append("kill")

    def wait(self):
        self.calls.append("wait")
        return -15


def test_the_keyboard_stops_every_cell_and_the_same_command_goes_on(
    tmp_path, monkeypatch, cells_run
):
    path, endless = grid_yaml(tmp_path), Endless()
    monkeypatch.setattr(processes, "ENDING", 0)
    begin = processes.start

    def start(cell, folder):
        return endless if len(cells_run) else begin(cell, folder)

    def stopped(cell, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "start", start)
    monkeypatch.setattr(verb.Cell, "write_record", stopped)
    result = perdure("compare", path, "--jobs", 2)
    assert (result.status, result.out) == (130, "")
    assert result.err.splitlines()[-1] == "perdure: stopped; repeat the same command to continue"
    assert endless.calls == ["terminate", "kill", "wait"]
    monkeypatch.undo()
    monkeypatch.setattr(processes, "start", begin)
    assert perdure("compare", path).status == 0


def test_no_more_cells_run_at_a_time_than_jobs():
    most, finished, waiting = [], [], {}

    class Slow(Ended):
        def poll(self):
            self.status += 1
            return self.status if self.status >= 3 else None

    def begin(cell):
        waiting[cell] = Slow(0)
        most.append(len(waiting) - len(finished))
        return waiting[cell]

    processes.POLL, before = 0.0, processes.POLL
    try:
        for cell, status in processes.run_all(list("abcde"), 2, begin):  # type: ignore[arg-type]
            finished.append(cell)
            assert status == 3
    finally:
        processes.POLL = before
    assert finished == list("abcde")
    assert max(most) == 2


def test_what_broke_is_told_in_a_line(tmp_path):
    grid = read_grid(grid_yaml(tmp_path))
    cell = grid.cells(grid.lines[0], {})[0]
    log = cell.file(tmp_path, ".log")
    log.parent.mkdir()
    assert processes.what_broke(cell, tmp_path, -9) == "ended by signal 9"
    assert processes.what_broke(cell, tmp_path, 1) == "ended with status 1"
    log.write_text("1/2 a: 3 steps\n\nTraceback:\n  x\nRuntimeError: no\n")
    assert processes.what_broke(cell, tmp_path, 1) == "RuntimeError: no"
    log.write_text("perdure: error: a: b\nend\n")
    assert processes.what_broke(cell, tmp_path, 2) == "a: b"
