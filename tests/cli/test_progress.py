"""One line a task, on a terminal and elsewhere, and a time left that is plain arithmetic."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from perdure.cli.progress import Pace, Shown
from perdure.measure.matrix import ScoreMatrix


pytestmark = pytest.mark.own


class Clock:
    """Stands until it is told to go on."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Stage:
    """A Trainer as a callback sees it, whose steps take what the test says."""

    def __init__(self, shown: Shown, clock: Clock, steps: int, first: int = 0, **args):
        self.shown, self.clock = shown, clock
        self.args = SimpleNamespace(
            output_dir="runs/x/.work/0002-reviews-0123456789abcdef",
            **{"logging_strategy": "no", **args},
        )
        self.state = SimpleNamespace(global_step=first, max_steps=steps, logging_steps=10)
        self.control = SimpleNamespace(should_log=False)
        self.shown.on_train_begin(self.args, self.state, self.control)

    def steps(self, *seconds: float) -> None:
        for took in seconds:
            self.clock.now += took
            self.state.global_step += 1
            self.shown.on_step_end(self.args, self.state, self.control)

    def log(self, **logs: float) -> None:
        self.shown.on_log(self.args, self.state, self.control, logs=logs)

    def end(self) -> None:
        self.shown.on_train_end(self.args, self.state, self.control)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def made(clock: Clock, terminal: bool, width: int = 100) -> tuple[Shown, io.StringIO]:
    file = io.StringIO()
    console = Console(
        file=file,
        force_terminal=terminal,
        width=width,
        highlight=False,
        markup=False,
        color_system=None,
        _environ={"TERM": "xterm"},
    )
    return Shown(console, clock), file


def matrix(*last: float) -> ScoreMatrix:
    names = tuple(f"t{i}" for i in range(len(last)))
    learned_at = tuple(range(1, len(last) + 1))
    return ScoreMatrix(names, learned_at, ((None,) * len(last),) * len(last) + (last,))


# --- the arithmetic


def paced(clock: Clock, *seconds: float) -> Pace:
    pace = Pace(clock)
    for took in seconds:
        clock.now += took
        pace.step()
    return pace


def test_no_time_left_before_16_steps_after_the_first(clock):
    assert paced(clock, *[2.0] * 16).left(10) is None
    assert paced(clock, *[2.0] * 17).left(10) == pytest.approx(20.0)


def test_the_first_step_does_not_count(clock):
    assert paced(clock, 300.0, *[2.0] * 16).left(5) == pytest.approx(10.0)


def test_time_left_counts_down_between_steps_and_not_below_zero(clock):
    pace = paced(clock, *[2.0] * 20)
    clock.now += 1.5
    assert pace.left(5) == pytest.approx(8.5)
    clock.now += 60.0
    assert pace.left(5) == 0.0


def test_steps_that_cost_more_every_eighth_time_do_not_make_it_jump(clock):
    pace, means = Pace(clock), []
    for step in range(1, 400):
        clock.now += 5.0 if step % 8 == 0 else 1.0
        pace.step()
        means.append(pace.mean)
    known = [mean for mean in means if mean is not None]
    assert min(known) >= 1.5 * 0.9
    assert max(known) <= 1.5 * 1.1
    assert known[100:] == pytest.approx([1.5] * len(known[100:]), rel=0.03)


def test_the_window_moves(clock):
    slow_then_fast = [10.0] * 60 + [1.0] * 61
    assert paced(clock, *slow_then_fast).left(100) == pytest.approx(100.0)
    # of very short steps it holds the last minute, so a checkpoint is a part of the mean
    pace = paced(clock, *[0.1] * 1000)
    assert len(pace.ends) == pytest.approx(600, abs=2)


# --- elsewhere than on a terminal


def test_plain_lines_of_a_stream(clock):
    shown, file = made(clock, terminal=False)
    with shown:
        shown.begin("reviews", 2, 4, 0)
        stage = Stage(shown, clock, 250)
        stage.steps(*[1.0] * 60)
        stage.log(loss=0.41234, learning_rate=1e-4)
        stage.steps(*[1.0] * 61)
        stage.steps(*[1.0] * 129)
        stage.log(train_loss=0.3)
        stage.end()
        clock.now += 7.0  # scoring is not training
        shown.stage_done("reviews", {"t0": 0.5, "reviews": 0.8}, matrix(0.5, 0.8))
    assert file.getvalue().splitlines() == [
        "2/4 reviews: 250 steps",
        "2/4 reviews: 60/250 steps, 0:03:10 left",
        "2/4 reviews: 120/250 steps, loss 0.412, 0:02:10 left",
        "2/4 reviews: 180/250 steps, loss 0.412, 0:01:10 left",
        "2/4 reviews: 240/250 steps, loss 0.412, 0:00:10 left",
        "2/4 reviews: 250 steps in 250.0 s, score 0.800, mean of 2 tasks 0.650",
    ]


def test_a_plain_line_waits_for_a_minute_and_for_a_tenth_of_the_steps(clock):
    shown, file = made(clock, terminal=False)
    Stage(shown, clock, 1000).steps(*[1.0] * 999)
    assert len(file.getvalue().splitlines()) == 1 + 9
    shown, file = made(clock, terminal=False)
    Stage(shown, clock, 1000).steps(*[0.1] * 999)
    assert len(file.getvalue().splitlines()) == 1 + 1


def test_a_stage_of_which_no_verb_has_told(clock):
    shown, file = made(clock, terminal=False)
    stage = Stage(shown, clock, 20, first=8)
    stage.steps(*[0.5] * 12)
    stage.end()
    assert file.getvalue().splitlines() == [
        "0002-reviews: 20 steps, 8 of them done",
        "0002-reviews: 12 steps in 6.0 s",
    ]


def test_plain_lines_have_no_control_characters_whatever_the_environment(
    clock, monkeypatch, capsys
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Shown(clock=clock) as shown:
        shown.begin("[red]reviews", 1, None, 0)
        stage = Stage(shown, clock, 120)
        stage.steps(*[1.0] * 120)
        stage.end()
        shown.stage_done("[red]reviews", {"[red]reviews": None}, matrix())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "[red]reviews: 120 steps",
        "[red]reviews: 60/120 steps, 0:01:00 left",
        "[red]reviews: 120 steps in 120.0 s",
    ]


# --- on a terminal


def drawn(shown: Shown, file: io.StringIO) -> str:
    """What the live line says now."""
    file.seek(0)
    file.truncate()
    shown.bar.refresh()
    shown.console.file.flush()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).replace("\r", "")


def test_one_live_line_a_task(clock, monkeypatch):
    shown, file = made(clock, terminal=True)
    monkeypatch.setattr(shown.bar.live, "auto_refresh", False)
    with shown:
        shown.begin("reviews", 2, 4, 0)
        assert drawn(shown, file).split()[:3] == ["2/4", "reviews:", "preparing"]
        stage = Stage(shown, clock, 250)
        stage.steps(*[0.25] * 10)
        assert drawn(shown, file).split()[:2] == ["2/4", "reviews"]
        assert drawn(shown, file).endswith("10/250 steps")
        stage.steps(*[0.25] * 110)
        stage.log(loss=0.4)
        line = drawn(shown, file)
        assert re.fullmatch(r"2/4 reviews \S+ +120/250 steps, loss 0.400, 0:00:32 left", line)
        clock.now += 10.0  # a step that takes long: the time goes on
        assert drawn(shown, file).endswith("0:00:22 left")
        stage.steps(*[0.25] * 130)
        stage.end()
        assert drawn(shown, file).split()[:3] == ["2/4", "reviews:", "scoring"]
        shown.stage_done("reviews", {"reviews": 0.75}, matrix(0.75))
        assert "2/4 reviews: 250 steps in 72.5 s, score 0.750\n" in file.getvalue()
    assert file.getvalue().count("steps in") == 1


def test_the_live_line_stays_one_line_on_a_narrow_terminal(clock, monkeypatch):
    shown, file = made(clock, terminal=True, width=40)
    monkeypatch.setattr(shown.bar.live, "auto_refresh", False)
    with shown:
        shown.begin("a-task-with-quite-a-long-name", 2, 4, 0)
        Stage(shown, clock, 250).steps(*[1.0] * 100)
        assert "\n" not in drawn(shown, file)


def test_the_loss_is_asked_for_only_where_nobody_else_does(clock):
    shown, _ = made(clock, terminal=False)
    for strategy, should_log in (("no", True), ("steps", False)):
        stage = Stage(shown, clock, 50, logging_strategy=strategy)
        stage.steps(*[1.0] * 9)
        assert not stage.control.should_log
        stage.steps(1.0)
        assert stage.control.should_log is should_log
