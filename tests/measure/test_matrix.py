"""R and its numbers: closed forms by hand, and laws that hold for every matrix."""

import io
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from perdure.errors import PerdureError
from perdure.measure.matrix import (
    ScoreMatrix,
    backward_transfer,
    forgetting,
    forward_transfer,
    from_dict,
    learning_accuracy,
    overall,
    summary,
    to_dict,
)
from perdure.measure.show import table


pytestmark = pytest.mark.own


# Task a goes up and then falls, b falls, c is the last. Stage 3 of 4 is a merge: it learns nothing.
BY_HAND = ScoreMatrix(
    tasks=("a", "b", "c"),
    learned_at=(1, 2, 4),
    rows=(
        (0.0, 0.25, 0.125),
        (0.75, 0.5, 0.25),
        (1.0, 0.75, 0.25),
        (0.875, 0.5, 0.375),
        (0.5, 0.625, 1.0),
    ),
)
# Multiples of 1/16 add and subtract exactly, so the laws can be checked with ==.
SIXTEENTHS = st.integers(0, 16).map(lambda k: k / 16)


@st.composite
def matrices(draw, cells=SIXTEENTHS):
    num_stages, num_tasks = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    row = st.tuples(*[cells] * num_tasks)
    return ScoreMatrix(
        tasks=tuple(f"task{j}" for j in range(num_tasks)),
        learned_at=draw(st.tuples(*[st.integers(1, num_stages)] * num_tasks)),
        rows=tuple(draw(row) for _ in range(num_stages + 1)),
    )


def with_cell(matrix, stage, column, score):
    rows = [list(row) for row in matrix.rows]
    rows[stage][column] = score
    return ScoreMatrix(matrix.tasks, matrix.learned_at, tuple(tuple(row) for row in rows))


def printed(matrix):
    text = io.StringIO()
    Console(width=60, file=text).print(table(matrix, mode="generate", metric="exact_match"))
    return text.getvalue()


def test_numbers_of_a_matrix_worked_out_by_hand():
    assert overall(BY_HAND) == pytest.approx((0.5 + 0.625 + 1.0) / 3)
    assert backward_transfer(BY_HAND) == ((0.5 - 0.75) + (0.625 - 0.75)) / 2
    assert forward_transfer(BY_HAND) == ((0.5 - 0.25) + (0.375 - 0.125)) / 2
    assert forgetting(BY_HAND) == ((1.0 - 0.5) + (0.75 - 0.625)) / 2
    assert learning_accuracy(BY_HAND) == pytest.approx((0.75 + 0.75 + 1.0) / 3)


def test_a_single_task_has_no_transfer_and_no_forgetting():
    alone = ScoreMatrix(("a",), (1,), ((0.1,), (0.9,)))
    assert summary(alone) == {
        "overall": 0.9,
        "backward_transfer": None,
        "forward_transfer": None,
        "forgetting": None,
        "learning_accuracy": 0.9,
    }


def test_the_base_alone_has_no_numbers():
    assert set(summary(ScoreMatrix((), (), ((),))).values()) == {None}


@given(matrices(), st.randoms())
def test_the_order_of_the_tasks_does_not_matter(matrix, random):
    order = list(range(len(matrix.tasks)))
    random.shuffle(order)
    shuffled = ScoreMatrix(
        tuple(matrix.tasks[j] for j in order),
        tuple(matrix.learned_at[j] for j in order),
        tuple(tuple(row[j] for j in order) for row in matrix.rows),
    )
    assert summary(shuffled) == summary(matrix)


@given(matrices(), SIXTEENTHS)
def test_nothing_is_gained_or_lost_in_a_constant_matrix(matrix, score):
    rows = tuple((score,) * len(matrix.tasks) for _ in matrix.rows)
    flat = summary(ScoreMatrix(matrix.tasks, matrix.learned_at, rows))
    assert flat["overall"] == flat["learning_accuracy"] == score
    for name in ("backward_transfer", "forward_transfer", "forgetting"):
        assert flat[name] in (0.0, None)


@given(matrices(st.floats(0, 1)))
@example(ScoreMatrix(("a", "b", "c"), (1, 1, 1), ((0.0,) * 3, (0.8126493835627888,) * 3)))
def test_means_of_scores_stay_within_the_scores(matrix):
    score = overall(matrix)
    assert score is not None
    assert min(matrix.rows[-1]) <= score <= max(matrix.rows[-1])


@given(matrices(), SIXTEENTHS)
def test_adding_a_constant_to_every_cell_moves_only_the_levels(matrix, constant):
    rows = tuple(tuple(cell + constant for cell in row) for row in matrix.rows)
    before = summary(matrix)
    after = summary(ScoreMatrix(matrix.tasks, matrix.learned_at, rows))
    for name in ("backward_transfer", "forward_transfer", "forgetting"):
        assert after[name] == before[name]
    for name in ("overall", "learning_accuracy"):
        assert after[name] == pytest.approx(before[name] + constant)


@given(matrices(st.floats(0, 1)))
def test_forgetting_is_at_least_minus_backward_transfer(matrix):
    lost, transfer = forgetting(matrix), backward_transfer(matrix)
    assert (lost is None) == (transfer is None)
    if lost is not None and transfer is not None:
        assert lost >= -transfer


@given(matrices(), st.data())
def test_an_unknown_cell_never_becomes_a_number(matrix, data):
    stage = data.draw(st.integers(0, matrix.last))
    column = data.draw(st.integers(0, len(matrix.tasks) - 1))
    holed = summary(with_cell(matrix, stage, column, None))
    moved = summary(with_cell(matrix, stage, column, matrix.rows[stage][column] + 8.0))
    for name, before in summary(matrix).items():
        if before != moved[name]:  # the cell is needed: without it there is no number
            assert holed[name] is None
        else:
            assert holed[name] in (before, None)


@pytest.mark.parametrize(
    ("stage", "column", "lost"),
    [
        (4, 0, {"overall", "backward_transfer", "forgetting"}),
        (1, 0, {"backward_transfer", "forgetting", "learning_accuracy"}),
        (2, 0, {"forgetting"}),
        (0, 0, set()),
        (0, 1, {"forward_transfer"}),
        (3, 2, {"forward_transfer"}),
        (1, 2, set()),
        (4, 2, {"overall", "learning_accuracy"}),
    ],
)
def test_only_the_numbers_that_need_an_unknown_cell_are_lost(stage, column, lost):
    holed = summary(with_cell(BY_HAND, stage, column, None))
    assert {name for name, value in holed.items() if value is None} == lost


@given(matrices(st.none() | SIXTEENTHS))
def test_a_matrix_survives_the_way_to_json_and_back(matrix):
    assert from_dict(to_dict(matrix)) == matrix


@pytest.mark.parametrize(
    ("tasks", "learned_at", "rows", "message"),
    [
        (("a",), (1,), (), "no rows"),
        (("a",), (1,), ((0.0,), (0.5, 0.5)), "row 1 .* 2 cells for 1 tasks"),
        (("a",), (1, 2), ((0.0,), (0.5,)), "2 entries for 1 tasks"),
        (("a",), (2,), ((0.0,), (0.5,)), "'a' .* stage 2, .* stages 1 to 1"),
        (("a",), (0,), ((0.0,), (0.5,)), "'a' .* stage 0"),
    ],
)
def test_a_matrix_that_does_not_fit_together_is_refused(tasks, learned_at, rows, message):
    with pytest.raises(PerdureError, match=message):
        ScoreMatrix(tasks, learned_at, rows)


def test_the_table_shows_stages_scores_unknown_cells_and_how_they_were_taken():
    lines = [line.split() for line in printed(with_cell(BY_HAND, 0, 2, None)).splitlines()]
    cells = [[word for word in line if word not in "│┃|"] for line in lines]
    assert ["after", "stage", "a", "b", "c"] in cells
    assert ["base", "0.000", "0.250", "-"] in cells
    assert ["2", "b", "1.000", "0.750", "0.250"] in cells
    assert ["3", "0.875", "0.500", "0.375"] in cells
    assert lines[-2:] == [["mode:", "generate"], ["metric:", "exact_match"]]


def test_markup_in_a_task_name_is_shown_as_it_is():
    assert "1 [red]a" in printed(ScoreMatrix(("[red]a",), (1,), ((0.0,), (0.5,))))


def test_the_ruler_does_not_import_torch():
    code = "import perdure.measure.show, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
