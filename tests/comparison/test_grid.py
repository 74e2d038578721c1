"""What a grid's YAML describes, and the line that each mistake in it gets."""

import re

import pytest

from comparison.grids import grid_yaml, read, simple
from perdure.comparison.grid import read_grid
from perdure.comparison.matched import matched
from perdure.errors import PerdureError
from perdure.methods import make
from perdure.methods.replay import Replay


pytestmark = pytest.mark.own


TASKS = [{"name": "a", "train": "a.jsonl"}, {"name": "b", "train": "b.jsonl"}]


def test_every_method_runs_on_every_order_and_seed():
    streams = ["standard_cl_1", "standard_cl_2"]
    grid = read(grid={"method": ["sequential", {"replay": {"ratio": 1}}], "tasks": streams})
    assert [line.name for line in grid.lines] == ["sequential", "replay"]
    cells = [cell for line in grid.lines for cell in grid.cells(line, {})]
    assert [(c.line, c.order, c.seed) for c in cells] == [
        (name, order, 0) for name in ("sequential", "replay") for order in streams
    ]
    assert cells[-1].config.method == {"replay": {"ratio": 1}}
    assert cells[-1].config.tasks == "standard_cl_2"
    assert cells[-1].config.threads == 1


def test_other_keys_make_lines_of_their_own_and_a_single_value_does_not_name_them():
    axes = {"method": ["sequential", "replay"], "training.learning_rate": [0.1, 0.2], "base": ["x"]}
    grid = read(grid=axes, baseline="sequential")
    rates = [line.settings["training"]["learning_rate"] for line in grid.lines]
    assert rates == [0.1, 0.2, 0.1, 0.2]
    assert [line.name for line in grid.lines][2:] == [
        "replay, training.learning_rate=0.1",
        "replay, training.learning_rate=0.2",
    ]
    assert {line.settings["base"] for line in grid.lines} == {"x"}
    against = [grid.baseline_of(line) for line in grid.lines]
    assert against == [*grid.lines[:2], *grid.lines[:2]]  # of the same rate
    fixed = read(grid=axes, baseline="sequential, training.learning_rate=0.2")
    assert [fixed.baseline_of(line) for line in fixed.lines] == [fixed.lines[1]] * 4
    assert read().baseline_of(read().lines[0]) is None


def test_methods_of_one_name_are_told_apart_by_their_keywords():
    methods = ["replay", {"replay": {"ratio": 1.0, "decay": 0.5}}, {"replay": {"ratio": 2.0}}, "l2"]
    names = [line.name for line in read(grid={"method": methods}).lines]
    assert names == ["replay", "replay(ratio=1.0, decay=0.5)", "replay(ratio=2.0)", "l2"]


def test_methods_may_have_names_of_the_grids_own():
    methods = {"plain": "sequential", "mine": {"replay": {"ratio": 1.0}}, "all": "joint"}
    choose = {"key": "training.learning_rate", "values": [1.0], "methods": {"mine": {}}}
    choose["methods"]["mine"] = {"key": "method.replay.ratio", "values": [2.0]}
    grid = read(grid={"method": methods}, baseline="plain", choose=choose)
    assert [line.name for line in grid.lines] == ["plain", "mine", "all"]
    assert grid.lines[1].settings["method"] == {"replay": {"ratio": 1.0}}
    assert grid.lines[2].settings["mode"] == "joint"
    assert grid.baseline_of(grid.lines[1]) == grid.lines[0]
    assert grid.choose
    assert grid.choose.trials("mine") == ("method.replay.ratio", [2.0])


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"reply": {"overall": 0.5}}, "'reply' is not a method of the grid; did you mean 'replay'"),
        ({"replay": {"overal": 0.5}}, "published: replay: unknown key 'overal'"),
        ({"replay": {"overall": 78.4}}, "overall is a score from -1 to 1, got 78.4"),
        ({"replay": 0.5}, "takes overall and backward_transfer, got 0.5"),
    ],
)
def test_what_is_published_is_checked(published, message):
    with pytest.raises(PerdureError, match=re.escape(message)):
        read(published=published)


def test_a_mode_may_stand_among_the_methods():
    grid = read(grid={"method": ["sequential", "joint", "per_task"]})
    assert [line.name for line in grid.lines] == ["sequential", "joint", "per_task"]
    configs = [grid.cells(line, {})[0].config for line in grid.lines]
    assert [c.mode for c in configs] == ["sequential", "joint", "per_task"]
    assert {c.method for c in configs} == {"sequential"}


def test_constant_stands_among_the_methods_and_has_no_trials():
    methods = {"floor": "constant", "top": "union", "replay": "replay"}
    grid = read(grid={"method": methods}, choose=CHOOSE)
    assert [line.constant for line in grid.lines] == [True, False, False]
    cells = [grid.cells(line, {})[0] for line in grid.lines]
    assert [cell.constant for cell in cells] == [True, False, False]
    assert [cell.config.mode for cell in cells] == ["sequential", "union", "sequential"]
    both = read(grid={"method": ["constant", "sequential"]})
    assert len({both.cells(line, {})[0].digest for line in both.lines}) == 2


def test_a_method_may_have_settings_of_its_own():
    lines = {"replay": {"memory.choose": "surprise", "method.replay.ratio": 1.0}}
    grid = read(lines=lines, grid={"method": ["l2", "replay"], "memory.ratio": [0.1, 0.2]})
    configs = [grid.cells(line, {})[0].config for line in grid.lines]
    assert [c.memory.choose for c in configs] == ["balanced", "balanced", "surprise", "surprise"]
    assert [c.memory.ratio for c in configs] == [0.1, 0.2, 0.1, 0.2]
    assert configs[2].method == {"replay": {"ratio": 1.0}}


def test_orders_are_named_by_their_tasks_and_numbered_where_that_is_the_same():
    others = [{"name": "a", "train": "other.jsonl"}, *TASKS[1:]]
    grid = read(grid={"tasks": [TASKS, TASKS[::-1], others]})
    assert list(grid.orders) == ["a+b.1", "b+a", "a+b.3"]


def test_a_cells_name_is_readable_and_changes_with_what_decides_it_alone():
    def name(**more):
        grid = read(**more)
        return grid.cells(grid.lines[1], {})[1].name

    assert re.fullmatch(r"replay-generated-1-[0-9a-f]{8}", name())
    free = [{"lineage": "else"}, {"data": "folder"}, {"training": {"report_to": "none"}}]
    assert {name(**change) for change in [*free, {"threads": 1}]} == {name()}
    other = [
        {"base": "x"},
        {"threads": 2},
        {"training": {"learning_rate": 1.0}},
        {"rows": {"test": 1}},
    ]
    assert len({name(**change) for change in other} | {name()}) == 5


def test_a_yaml_names_the_folder_if_no_lineage_is_given(tmp_path):
    path = grid_yaml(tmp_path)
    assert read_grid(path).folder == tmp_path / "out"
    assert str(read_grid(path, {"lineage": None}).folder) == "grid"
    assert read_grid(path, ["grid.seed=[7]"]).seeds == [7]
    assert "lineage" not in read_grid(path).written
    with pytest.raises(PerdureError, match="lineage: missing"):
        read_grid(simple(lineage=None))


CHOOSE = {"key": "training.learning_rate", "values": [0.1, 0.2]}
MISTAKES = [
    ({"metod": "replay"}, "unknown key 'metod'; did you mean 'method'"),
    ({"basline": "replay"}, "unknown key 'basline'; did you mean 'baseline'"),
    ({"grid": {}}, "grid: missing; list values"),
    ({"grid": {"sed": [0]}}, "grid: 'sed' is not a key of a run; did you mean 'seed'"),
    ({"grid": {"trainin.x": [0]}}, "'trainin.x' is not a key of a run; did you mean 'training'"),
    ({"grid": {"lineage": ["a"]}}, "grid: lineage cannot vary"),
    ({"grid": {"seed": []}}, r"grid: seed takes a list of values, got \[\]"),
    ({"grid": {"seed": 3}}, "grid: seed takes a list of values, got 3"),
    ({"grid": {"seed": ["x"]}}, "seed takes a whole number, got 'x'"),
    ({"grid": {"tasks": TASKS}}, "tasks: a comparison needs streams, .*'a.jsonl'"),
    ({"tasks": None}, "tasks: a comparison needs streams"),
    ({"grid": {"seed": [0, 0]}}, "grid: sequential, generated, seed 0 is listed twice"),
    ({"grid": {"method": ["l2", "l2"]}}, "grid: l2, generated, seed 0 is listed twice"),
    ({"baseline": "reply"}, "'reply' is not a method of the grid; did you mean 'replay'"),
    ({"compute_matched": 1}, "compute_matched takes true or false, got 1"),
    (
        {"grid": {"method": ["constant"]}},
        "grid: nothing is learned; list a method besides constant",
    ),
    ({"lines": {"reply": {"seed": 1}}}, "lines: reply: seed cannot be set for one line"),
    ({"lines": {"reply": {"max_length": 1}}}, "'reply' is not a method of the grid; did you mean"),
    ({"lines": {"replay": {"memory.rato": 1}}}, "unknown key 'rato'"),
    ({"lines": {"replay": {"memry.ratio": 1}}}, "lines: replay: 'memry.ratio' is not a key"),
    ({"lines": {"replay": 1}}, "lines: replay: takes keys of a run, .* got 1"),
    (
        {"lines": {"replay": {"threads": 1}}, "grid": {"method": ["replay"], "threads": [1, 2]}},
        "lines: replay: threads is also in the grid",
    ),
    ({"grid": {"method.replay.ratio": [1]}}, "method.replay.ratio: the method is sequential"),
    ({"choose": {"values": [1]}}, "choose: key is missing"),
    ({"choose": {**CHOOSE, "sed": 1}}, "choose: unknown key 'sed'; did you mean 'seed'"),
    ({"choose": {**CHOOSE, "held_out": 1.0}}, "held_out is a share .* got 1.0"),
    ({"choose": {**CHOOSE, "values": []}}, r"choose: values takes a list of values, got \[\]"),
    ({"choose": {**CHOOSE, "key": "trainin.x"}}, "'trainin.x' is not a key to choose"),
    ({"choose": {**CHOOSE, "key": "seed"}}, "'seed' is not a key to choose"),
    ({"choose": {**CHOOSE, "methods": {"ewc": CHOOSE}}}, "'ewc' is not a method of the grid"),
    (
        {"choose": {**CHOOSE, "methods": {"replay": {**CHOOSE, "values": [1]}}}},
        "choose: methods: replay: has 1 values, and the others have 2; every method gets the same",
    ),
    ({"choose": {**CHOOSE, "methods": {"replay": {"key": "x"}}}}, "takes key and values"),
    (
        {"choose": CHOOSE, "grid": {"training.learning_rate": [1, 2]}},
        "training.learning_rate is also in the grid",
    ),
]


@pytest.mark.parametrize(("more", "message"), MISTAKES)
def test_a_mistake_gets_a_line(more, message):
    with pytest.raises(PerdureError, match=message) as caught:
        read(**more)
    assert "\n" not in str(caught.value)


KIF = {"recurrent_kif": {"inner_steps": 4, "outer_steps": 3, "outer_batch_size": 2}}


def test_replay_is_matched_with_the_rows_of_the_outer_steps():
    training = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    methods = ["sequential", {"replay": {"decay": 1.0}}, KIF, ["ewc", "replay"]]
    grid = read(grid={"method": methods}, training=training, compute_matched=True)
    matched_methods = [line.settings["method"] for line in matched(grid).lines]
    ratio = 3 * 2 / (4 * 4)
    assert matched_methods[0] == "sequential"
    assert matched_methods[1] == {"replay": {"decay": 1.0, "ratio": ratio}}
    assert matched_methods[2] == KIF
    assert [m.name for m in make(matched_methods[3])] == ["ewc", "replay"]
    replay = make(matched_methods[3])[1]
    assert isinstance(replay, Replay)
    assert replay.schedule.ratio == ratio
    assert [line.name for line in matched(grid).lines] == [line.name for line in grid.lines]
    default = matched(read(grid={"method": ["replay", "recurrent_kif"]}, compute_matched=True))
    assert default.lines[0].settings["method"] == {"replay": {"ratio": 0.5}}
    free = read(grid={"method": ["replay", "recurrent_kif"]})
    assert matched(free) == free


@pytest.mark.parametrize(
    ("key", "values", "refused"),
    [
        ("method.recurrent_kif.inner_steps", [4, 8], True),
        ("training.per_device_train_batch_size", [2, 4], True),
        ("training.learning_rate", [1e-3, 1e-2], False),
    ],
)
def test_what_decides_the_ratio_is_not_chosen_after_replay_was_matched(key, values, refused):
    choose = {"key": "training.learning_rate", "values": [1e-3, 1e-2]}
    choose["methods"] = {"recurrent_kif": {"key": key, "values": values}}
    grid = read(grid={"method": ["replay", KIF]}, compute_matched=True, choose=choose)
    if not refused:
        assert matched(grid).lines[0].settings["method"]["replay"]["ratio"] > 0
        return
    with pytest.raises(PerdureError, match=f"compute_matched: {key} decides how many remembered"):
        matched(grid)


def test_replay_is_matched_under_the_same_other_values():
    axes = {"method": ["replay", KIF], "training.per_device_train_batch_size": [2, 4]}
    lines = matched(read(grid=axes, compute_matched=True)).lines
    ratios = [line.settings["method"]["replay"]["ratio"] for line in lines[:2]]
    assert ratios == [3 * 2 / (4 * 2), 3 * 2 / (4 * 4)]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["sequential", "recurrent_kif"], "replay, which is not in the grid"),
        (["sequential", "replay"], "there is no recurrent_kif to match replay with"),
        (
            ["replay", "recurrent_kif", KIF],
            r"remembered rows \(recurrent_kif: 0.5, recurrent_kif\(.*0.1875",
        ),
        ([{"replay": {"ratio": 1.0}}, "recurrent_kif"], "leave out either that ratio"),
    ],
)
def test_what_cannot_be_matched_is_refused(methods, message):
    with pytest.raises(PerdureError, match=message):
        matched(read(grid={"method": methods}, compute_matched=True))
