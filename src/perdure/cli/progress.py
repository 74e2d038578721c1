"""How far a stage is: one live line a task on a terminal, a few plain lines anywhere else."""

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
QUIET, TENTH = 60.0, 0.1  # at most one plain line in so many seconds, and in this part of a task


class Pace:
    """Seconds a step: the mean over the last MOST steps or RECENT seconds, whichever are more.

    Steps may cost different amounts in turn (every eighth of Recurrent-KIF has four more behind
    it, some write a checkpoint), so less than LEAST steps say nothing. The first step, with its
    compiling and warming up, is not in it: time runs from its end.
    """

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.ends: deque[float] = deque()
        self.mean: float | None = None

    def step(self) -> None:
        """A step has ended."""
        now = self.clock()
        self.ends.append(now)
        while len(self.ends) > MOST + 1 and self.ends[1] <= now - RECENT:
            self.ends.popleft()
        steps = len(self.ends) - 1
        if steps >= LEAST:
            self.mean = (now - self.ends[0]) / steps

    def left(self, steps: int) -> float | None:
        """Seconds until `steps` more have ended; counts down between two steps."""
        if self.mean is None:
            return None
        return max(0.0, steps * self.mean - (self.clock() - self.ends[-1]))


class Shown(StageCallback):
    """A context that is also a callback of every task's Trainer and takes the verbs' notes.

    Untold of stages, it knows one by its Trainer's folder and takes its training's end for its end.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic):
        # FORCE_COLOR makes a console call a file a terminal; a bar in a file is of no use.
        terminal = console.is_terminal if console else sys.stderr.isatty()
        self.console = console = console or output.stderr()
        self.live = terminal and not console.is_dumb_terminal
        self.clock, self.pace = clock, Pace(clock)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(24), _Rest(self.rest))
        self.bar = Progress(*columns, console=console, transient=True, disable=not self.live)
        self.row = self.bar.add_task("preparing", total=None)
        self.told, self.name, self.ended, self.loss = False, "", "", None
        self.first = self.steps = self.total = 0

    def __enter__(self) -> "Shown":
        self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live:  # before rich 14.3 a disabled bar, too, ends in an empty line
            self.bar.stop()

    def say(self, line: str) -> None:
        """A note that stays."""
        self.console.print(line, soft_wrap=True)

    def rest(self) -> str:
        """What stands behind the bar: `120/250 steps, loss 0.412, 0:00:31 left`."""
        loss = [] if self.loss is None else [f"loss {self.loss:.3f}"]
        seconds = self.pace.left(self.total - self.steps)
        left = [] if seconds is None else [f"{timedelta(seconds=round(seconds))} left"]
        return ", ".join([f"{self.steps}/{self.total} steps", *loss, *left])

    def begin(self, task, number, total, steps):
        self.told, self.name = True, f"{number}/{total} {task}" if total else task
        self._replace(f"{self.name}: preparing")

    def on_train_begin(self, args, state, control, **kwargs):
        if not self.told:
            # The work folder is named after the stage, with the hash of what it depends on.
            self.name = Path(str(args.output_dir)).name.rpartition("-")[0]
        self.pace, self.loss = Pace(self.clock), None
        self.first = self.steps = self.said = state.global_step
        self.total, self.began = state.max_steps, self.clock()
        self.spoke = self.began
        self._replace(self.name, self.total, self.first)
        if not self.live:
            done = f", {self.first} of them done" if self.first else ""
            self.say(f"{self.name}: {self.total} steps{done}")

    def on_step_end(self, args, state, control, **kwargs):
        self.steps = state.global_step
        self.pace.step()
        self.bar.update(self.row, completed=self.steps)
        if args.logging_strategy == "no" and self.steps % state.logging_steps == 0:
            control.should_log = True  # nobody else asks for the loss
        if self.live or self.steps == self.total:
            return
        if self.clock() - self.spoke >= QUIET and self.steps - self.said >= TENTH * self.total:
            self.say(f"{self.name}: {self.rest()}")
            self.said, self.spoke = self.steps, self.clock()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.loss = (logs or {}).get("loss", self.loss)

    def on_train_end(self, args, state, control, **kwargs):
        took = self.clock() - self.began
        self.ended = f"{self.name}: {state.global_step - self.first} steps in {took:.1f} s"
        self._replace(f"{self.name}: scoring")
        if not self.told:
            self.say(self.ended)

    def stage_done(self, task, scores, matrix):
        known = [("score", scores.get(task))]
        if len(scores) > 1:
            known.append((f"mean of {len(scores)} tasks", overall(matrix)))
        said = [f", {what} {output.score(value)}" for what, value in known if value is not None]
        if self.ended:  # else a verb that trains nothing
            self.say(self.ended + "".join(said))
        self.told, self.ended = False, ""
        self._replace("preparing")

    def _replace(self, description: str, total: int | None = None, completed: int = 0) -> None:
        """A new row, because rich takes `total=None` (nobody knows) of an old one as no change."""
        self.bar.remove_task(self.row)
        self.row = self.bar.add_task(description, total=total, completed=completed)


class _Rest(ProgressColumn):
    """Text that is made anew each time the line is drawn, while there is something to count."""

    def __init__(self, text: Callable[[], str]):
        super().__init__()
        self.text = text

    def render(self, task: Task) -> Text:
        return Text(self.text() if task.total else "", no_wrap=True)
