"""Progress of a stage: a live line on a terminal, a few plain lines elsewhere."""

import gc
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from perdure.cli import output
from perdure.measure.matrix import overall
from perdure.train.tracking import StageCallback


LEAST, MOST, RECENT = 16, 48, 60.0  # steps, steps, seconds: see Pace
# Plain lines are at least so many seconds and this share of a task apart.
QUIET, TENTH = 60.0, 0.1


class Pace:
    """The seconds per step: the mean over the last MOST steps or RECENT seconds, if these are more.

    Steps may take different times (after every eighth step of Recurrent-KIF come four on memory,
    and some steps write a checkpoint), so the mean is unknown before LEAST steps. The first step is
    not counted, because it includes compilation and warm-up: time runs from its end.
    """

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.ends: deque[float] = deque()
        self.mean: float | None = None

    def step(self) -> None:
        """Record the end of a step."""
        now = self.clock()
        self.ends.append(now)
        while len(self.ends) > MOST + 1 and self.ends[1] <= now - RECENT:
            self.ends.popleft()
        steps = len(self.ends) - 1
        if steps >= LEAST:
            self.mean = (now - self.ends[0]) / steps

    def left(self, steps: int) -> float | None:
        """The seconds until `steps` more steps have ended; decreases also between two steps."""
        if self.mean is None:
            return None
        return max(0.0, steps * self.mean - (self.clock() - self.ends[-1]))


class Shown(StageCallback):
    """Shows progress: a context that is also a callback of every task's Trainer.

    Verbs that learn call `begin` and `stage_done`. In other trainings, a stage is named after the
    Trainer's folder, and ends when its training ends.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic):
        # With FORCE_COLOR, a console takes a file for a terminal; a file should have no bar.
        is_terminal = console.is_terminal if console else sys.stderr.isatty()
        self.console = console = console or output.stderr()
        self.live = is_terminal and not console.is_dumb_terminal
        self.clock, self.pace = clock, Pace(clock)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(24),
            _Status(self.status),
        )
        self.bar = Progress(*columns, console=console, transient=True, disable=not self.live)
        self.row = self.bar.add_task("preparing", total=None)
        self.has_begun = False  # whether a verb has called `begin` for this stage
        self.name, self.training_line = "", ""
        self.loss: float | None = None
        self.first = self.steps = self.total = 0

    def __enter__(self) -> "Shown":
        # The Trainer collects garbage after each task, half a second over all that was imported.
        # What is there before any model is loaded is left out of it.
        gc.freeze()
        self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live:  # before rich 14.3, a disabled bar would also print an empty line
            self.bar.stop()

    def say(self, line: str) -> None:
        """Print a note above the bar."""
        self.console.print(line, soft_wrap=True)

    def status(self) -> str:
        """The text next to the bar: `120/250 steps, loss 0.412, 0:00:31 left`."""
        parts = [f"{self.steps}/{self.total} steps"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        seconds = self.pace.left(self.total - self.steps)
        if seconds is not None:
            parts.append(f"{timedelta(seconds=round(seconds))} left")
        return ", ".join(parts)

    def begin(self, task, number, total, steps):
        self.has_begun, self.name = True, f"{number}/{total} {task}" if total else task
        self._replace(f"{self.name}: preparing")

    def on_train_begin(self, args, state, control, **kwargs):
        if not self.has_begun:
            # The work folder's name is that of the stage and a hash of what it depends on.
            self.name = Path(str(args.output_dir)).name.rpartition("-")[0]
        self.pace, self.loss = Pace(self.clock), None
        self.first = self.steps = self.printed_step = state.global_step
        self.total, self.began = state.max_steps, self.clock()
        self.printed_at = self.began
        self._replace(self.name, self.total, self.first)
        if not self.live:
            resumed = f", {self.first} of them done" if self.first else ""
            self.say(f"{self.name}: {self.total} steps{resumed}")

    def on_step_end(self, args, state, control, **kwargs):
        self.steps = state.global_step
        self.pace.step()
        self.bar.update(self.row, completed=self.steps)
        if args.logging_strategy == "no" and self.steps % state.logging_steps == 0:
            control.should_log = True  # no tracker asks for the loss
        if self.live or self.steps == self.total:
            return
        seconds, steps = self.clock() - self.printed_at, self.steps - self.printed_step
        if seconds >= QUIET and steps >= TENTH * self.total:
            self.say(f"{self.name}: {self.status()}")
            self.printed_step, self.printed_at = self.steps, self.clock()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.loss = (logs or {}).get("loss", self.loss)

    def on_train_end(self, args, state, control, **kwargs):
        seconds = self.clock() - self.began
        steps = state.global_step - self.first
        self.training_line = f"{self.name}: {steps} steps in {seconds:.1f} s"
        self._replace(f"{self.name}: scoring")
        if not self.has_begun:
            self.say(self.training_line)

    def stage_done(self, task, scores, matrix):
        labelled = [("score", scores.get(task))]
        if len(scores) > 1:
            labelled.append((f"mean of {len(scores)} tasks", overall(matrix)))
        texts = [f", {label} {output.score(x)}" for label, x in labelled if x is not None]
        if self.training_line:  # empty for a verb that does not train
            self.say(self.training_line + "".join(texts))
        self.has_begun, self.training_line = False, ""
        self._replace("preparing")

    def _replace(self, description: str, total: int | None = None, completed: int = 0) -> None:
        """Start a new row, because rich cannot change the total of a row to an unknown one."""
        self.bar.remove_task(self.row)
        self.row = self.bar.add_task(description, total=total, completed=completed)


class _Status(ProgressColumn):
    """A text that is computed each time the line is drawn, if the total is known."""

    def __init__(self, text: Callable[[], str]):
        super().__init__()
        self.text = text

    def render(self, task: Task) -> Text:
        return Text(self.text() if task.total else "", no_wrap=True)
