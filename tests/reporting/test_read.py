"""What is read of lineages, and which of them may stand in one table."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lineages import BETTER, ROWS, UNKNOWN, entry, kif_state, lineage, timing
from rich.console import Console

from perdure.api import log
from perdure.cli.run import summary as shown
from perdure.config import DEFAULT_TRAINING, filled_adapter
from perdure.data.task import Split
from perdure.errors import PerdureError
from perdure.lineage.lineage import Lineage
from perdure.measure.matrix import summary
from perdure.reporting.groups import sets
from perdure.reporting.importance import places
from perdure.reporting.read import read
from perdure.reporting.results import merge, record


pytestmark = pytest.mark.own


def test_a_lineage_is_read_as_it_stands(tmp_path):
    stored = lineage(tmp_path / "one", ROWS, method="replay", seed=3)
    (run,) = read([tmp_path / "one"])
    assert (run.label, run.method, run.seed, run.base) == ("one", "replay", 3, "a base")
    assert run.matrix == stored.matrix()
    assert run.numbers == summary(stored.matrix())
    assert run.scoring == dict.fromkeys(("red", "blue", "green"), ("generate", "exact_match"))
    assert run.seconds == 61.5
    assert run.remembered == 2 + 3 + 4
    assert run.passed == (600, 240)
    assert run.peak_mib == 6
    assert [line.verb for line in run.ledger] == ["init", "learn", "learn", "learn"]
    assert run.ledger[2].sha256 == f"{2:064x}"
    assert run.ledger[2].parent == 1


def test_lineages_are_found_at_any_depth_and_each_once(tmp_path):
    for place in ("a", "cells/b", "cells/deep/c", ".hidden/d"):
        lineage(tmp_path / place, ROWS)
    shutil.copytree(tmp_path / "cells/b", tmp_path / "a/stages/inside")
    runs = read([tmp_path, tmp_path / "cells", tmp_path / "a"])
    assert [run.label for run in runs] == ["a", "cells/b", "cells/deep/c"]


def test_the_trials_of_a_comparison_are_left_out(tmp_path):
    for place in ("compared/cells/a", "compared/trials/a", "mine/trials/b"):
        lineage(tmp_path / place, ROWS)
    assert [run.label for run in read([tmp_path])] == ["compared/cells/a", "mine/trials/b"]


def test_a_lineage_of_a_release_that_counted_no_rows_has_none(tmp_path):
    stored = lineage(tmp_path / "one", ROWS)
    times = stored.timings()
    del times["2"]["rows"]
    (stored.path / "timings.json").write_text(json.dumps(times))
    (run,) = read([stored.path])
    assert run.passed is None
    times["2"]["rows"] = {}
    (stored.path / "timings.json").write_text(json.dumps(times))
    (run,) = read([stored.path])
    assert run.passed is None
    (stored.path / "timings.json").unlink()
    (run,) = read([stored.path])
    assert (run.seconds, run.peak_mib, run.passed) == (None, None, None)


def test_a_reverted_stage_is_in_the_ledger_and_counts_for_nothing(tmp_path):
    stored = lineage(tmp_path / "one", ROWS)
    stored.append({"stage": 2, "verb": "revert", "parent": 3})
    (run,) = read([tmp_path / "one"])
    assert [line.active for line in run.ledger] == [True, True, True, False, True]
    assert [line.task for line in run.stages] == ["red", "blue"]
    assert run.remembered == 2 + 3
    assert run.seconds == 31.0


def test_a_folder_without_a_lineage_is_refused(tmp_path):
    (tmp_path / "results").mkdir()
    with pytest.raises(PerdureError, match="results: no lineage in it"):
        read([tmp_path / "results"])
    with pytest.raises(PerdureError, match="result: no such folder; did you mean 'results'"):
        read([tmp_path / "result"])


@pytest.mark.parametrize("content", ["{", "[]", '{"x": {}}', '{"1": {"seconds": {"train": "1"}}}'])
def test_a_lineage_whose_timings_are_damaged_has_none(tmp_path, content):
    stored = lineage(tmp_path / "one", ROWS)
    (stored.path / "timings.json").write_text(content)
    (run,) = read([stored.path])
    assert (run.seconds, run.peak_mib, run.passed) == (None, None, None)


def test_a_lineage_that_is_not_whole_is_refused_by_its_file(tmp_path):
    stored = lineage(tmp_path / "one", ROWS)
    (stored.path / "stages/0002-task/scores.json").write_text("{")
    with pytest.raises(PerdureError, match=r"one.*perdure verify"):
        read([stored.path])
    (stored.path / "stages/0002-task/scores.json").unlink()
    with pytest.raises(PerdureError, match=r"one.*perdure verify"):
        read([stored.path])


def test_seeds_and_orders_of_one_method_are_taken_together(tmp_path):
    for seed in (0, 1):
        lineage(tmp_path / f"r{seed}", ROWS, method="replay", seed=seed)
    lineage(tmp_path / "s", BETTER)
    (one,) = sets(read([tmp_path]))
    assert [(m.label, len(m.runs)) for m in one.methods] == [("sequential", 1), ("replay", 2)]
    assert (one.seeds, len(one.orders), one.mode) == ([0, 1], 1, "generate")


def test_other_keywords_are_another_method_and_its_label_says_so(tmp_path):
    lineage(tmp_path / "a", ROWS, method="replay", memory={"ratio": 0.1})
    lineage(tmp_path / "b", ROWS, method="replay", memory={"ratio": 0.2})
    lineage(tmp_path / "c", BETTER, method={"replay": {"ratio": 0.3}})
    (one,) = sets(read([tmp_path]))
    assert {m.label for m in one.methods} == {
        "replay (memory.ratio 0.02, ratio 0.3)",
        "replay (memory.ratio 0.1)",
        "replay (memory.ratio 0.2)",
    }
    ((key, values),) = one.differing
    assert key == "memory.ratio"
    assert sorted(value for _, value in values) == [0.02, 0.1, 0.2]


def test_a_default_that_is_written_out_is_no_other_setting(tmp_path):
    defaults = {"adapter": filled_adapter({}), "training": DEFAULT_TRAINING}
    lineage(tmp_path / "a", ROWS, seed=0, adapter={}, training={})
    lineage(tmp_path / "b", ROWS, seed=1, **defaults)
    lineage(tmp_path / "c", ROWS, seed=0, **defaults | {"adapter": {"r": 4}})
    (one,) = sets(read([tmp_path]))
    labels = {method.label: len(method.runs) for method in one.methods}
    assert labels == {"sequential (adapter.r 8)": 2, "sequential (adapter.r 4)": 1}


def test_modes_tasks_and_bases_are_never_mixed(tmp_path):
    lineage(tmp_path / "a", ROWS)
    lineage(tmp_path / "b", ROWS, mode="options")
    lineage(tmp_path / "c", ROWS, tasks=("red", "blue", "white"))
    lineage(tmp_path / "d", ROWS[:1])
    run_sets = sets(read([tmp_path]))
    assert [[run.label for run in one.runs] for one in run_sets] == [["a"], ["b"], ["c"]]
    assert [one.mode for one in run_sets] == ["generate", "options", "generate"]


def test_lineages_whose_tasks_only_share_their_names_are_not_averaged(tmp_path):
    source = {"path": "../../reviews.jsonl", "limit": None, "seed": 0}
    for name, row in (("a", "one"), ("b", "other")):
        test = Split(({"prompt": row, "completion": "x"},), {**source, "path": f"{name}.jsonl"})
        lineage(tmp_path / name, ROWS, test=test)
    assert [[run.label for run in one.runs] for one in sets(read([tmp_path]))] == [["a"], ["b"]]


@pytest.mark.parametrize("held_out", [True, False])
def test_rows_that_the_seed_has_drawn_from_the_same_file_are_averaged(tmp_path, held_out):
    for seed in (0, 1):
        source = {"path": str(tmp_path / "rows.jsonl"), "limit": None if held_out else 5}
        if held_out:
            source["held_out"] = {"share": 0.1, "seed": 7 + seed, "part": "test"}
        rows = ({"prompt": f"row {seed}", "completion": "x"},)
        lineage(tmp_path / f"r{seed}", ROWS, seed=seed, test=Split(rows, {**source, "seed": seed}))
    (one,) = sets(read([tmp_path]))
    assert [len(method.runs) for method in one.methods] == [2]


def test_a_moved_file_with_the_same_rows_is_the_same(tmp_path):
    for place in ("here", "there"):
        source = {"path": str(tmp_path / place / "rows.jsonl"), "limit": 5, "seed": 0}
        test = Split(({"prompt": "row", "completion": "x"},), source)
        lineage(tmp_path / "runs" / place, ROWS, test=test)
    (one,) = sets(read([tmp_path / "runs"]))
    assert len(one.runs) == 2


def test_an_unknown_cell_makes_its_numbers_unknown_and_those_of_its_method(tmp_path):
    lineage(tmp_path / "a", UNKNOWN, seed=0)
    lineage(tmp_path / "b", ROWS, seed=1)
    (one,) = sets(read([tmp_path]))
    (method,) = one.methods
    assert method.op.mean is None
    assert method.op.count == 2
    assert method.numbers["learning_accuracy"].mean is not None
    assert method.trend("red") == [0.1, 0.9, None, None]


def test_what_recurrent_kif_keeps_is_told_by_layer_and_module(tmp_path):
    lineage(tmp_path / "a", ROWS, method="recurrent_kif", state=kif_state())
    (run,) = read([tmp_path])
    assert [one.task for one in run.identified] == ["blue", "green"]
    identified = run.identified[0]
    assert identified.rounds[0] == pytest.approx((0.1, 0.2, 0.3, 0.4))
    assert identified.cases == pytest.approx((0.2, 0.1, 0.2, 0.5))
    assert (identified.layers, identified.modules) == (["0", "1"], ["q_proj", "v_proj"])
    assert identified.places["0", "q_proj"] == (0.25, 0.0)
    assert identified.places["1", "v_proj"] == (0.5, 0.5)


def test_layers_are_in_the_order_of_their_numbers():
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(11, -1, -1)]
    assert [layer for layer, _ in places(names).values()] == [str(i) for i in range(12)]


def test_places_of_other_models():
    t5 = {
        "base_model.model.decoder.block.1.layer.1.EncDecAttention.q.lora_A.default.weight",
        "base_model.model.decoder.block.1.layer.0.SelfAttention.q.lora_A.default.weight",
        "base_model.model.encoder.block.0.layer.1.DenseReluDense.wi.lora_A.default.weight",
    }
    assert set(places(t5).values()) == {
        ("decoder 1", "EncDecAttention.q"),
        ("decoder 1", "SelfAttention.q"),
        ("encoder 0", "wi"),
    }
    whole = places(["lm_head.weight", *(f"model.layers.{i}.mlp.up_proj.weight" for i in range(28))])
    assert whole["lm_head.weight"] == ("-", "lm_head")
    assert whole["model.layers.5.mlp.up_proj.weight"] == ("3-5", "up_proj")
    assert whole["model.layers.27.mlp.up_proj.weight"] == ("27", "up_proj")


def test_a_report_needs_no_torch(tmp_path):
    stored = lineage(tmp_path / "a", ROWS, method="recurrent_kif", state=kif_state())
    code = (
        f"import sys, perdure; perdure.report({str(stored.path)!r}, {str(tmp_path / 'r.html')!r})"
    )
    code += "; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert (tmp_path / "r.html").stat().st_size > 1000
    assert Lineage(stored.path).matrix() == stored.matrix()


def test_a_result_file_keeps_the_runs_of_one_method_with_other_settings(tmp_path):
    records = []
    for name, rate in (("a", 1e-3), ("b", 2e-3), ("b", 2e-3)):
        path = tmp_path / name
        shutil.rmtree(path, ignore_errors=True)
        run = lineage(path, ROWS, training={"learning_rate": rate})
        records = merge(records, record(run, f"perdure run {name}.yaml"))
    assert [Path(one["lineage"]).name for one in records] == ["a", "b"]
    console = Console(width=200)
    for both, column in ((records, True), (records[:1], False)):
        with console.capture() as captured:
            console.print(shown(both))
        assert ("lineage" in captured.get()) == column


def test_log_has_the_scores_of_all_tasks_that_one_stage_has_learned(tmp_path):
    writer = lineage(tmp_path / "one", ROWS[:1], mode="union")
    line = entry(writer.config, writer.head, 1, "blue")
    line |= {"with": [{**line["task"], "id": "red", "name": "red"}]}
    line |= {"scores": {"blue": 0.5, "red": 0.25}}
    built = writer.path / ".work" / "stage"
    built.mkdir(parents=True)
    scores = {"after": {}, "before": {}, "base": {}}
    (built / "scores.json").write_text(json.dumps(scores))
    (built / "memory.jsonl").write_text("")
    writer.commit(built, line, timing(1))
    assert log(writer.path)[-1]["scores"] == {"red": 0.25, "blue": 0.5}
