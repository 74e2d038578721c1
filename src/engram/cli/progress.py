"""How far a stage is: a bar on a terminal, else a line when a task's training ends."""

import sys
import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from engram.cli.output import stderr


class Shown(TrainerCallback):
    """A context that is also a callback of every task's Trainer and takes the verbs' notes."""

    def __init__(self):
        self.console = stderr()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self.bar = Progress(
            *columns,
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self.row = self.bar.add_task("preparing", total=None)

    def __enter__(self) -> "Shown":
        self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.stop()

    def say(self, line: str) -> None:
        """A note that stays."""
        self.console.print(line, soft_wrap=True)

    def on_train_begin(self, args, state, control, **kwargs):
        # The work folder is named after the stage, with the hash of what the stage depends on.
        self.stage = Path(str(args.output_dir)).name.rpartition("-")[0]
        self.began, self.first = time.perf_counter(), state.global_step
        self.bar.reset(
            self.row, description=self.stage, total=state.max_steps, completed=self.first
        )

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(self.row, completed=state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        steps, seconds = state.global_step - self.first, time.perf_counter() - self.began
        self.say(f"{self.stage}: {steps} steps in {seconds:.1f} s")
        self.bar.reset(self.row, description=f"{self.stage}: scoring", total=None)
