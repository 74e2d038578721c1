"""A method as a guest: a callback of a Trainer that is not Engram's."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import TrainingArguments

from engram.errors import EngramError
from engram.learn.given import features_by_task
from engram.learn.host import Host
from engram.learn.host_checks import check_host, excess, kind_of_batch, warn_if_mis_scaled
from engram.learn.memory import Memory
from engram.learn.methods.base import Method, TaskContext
from engram.learn.trainer import STATE, load_state, save_state
from engram.seeds import derive, forked


class Guest(Method):
    """A method that also works as `callbacks=[...]` of any Trainer, with the memory it is given.

    In Engram's engine the context and the engine are there before training begins, and nothing here
    does anything. Elsewhere it does for the method what that engine would. A subclass calls
    `arrive` first in its `on_train_begin`, and `go_on` last.
    """

    given: Any = None  # the memory, as the user gave it

    @property
    def host(self) -> Host | None:
        engine = getattr(self, "engine", None)
        return engine if isinstance(engine, Host) else None

    def arrive(
        self,
        args: TrainingArguments,
        state: Any,
        model: Any = None,
        train_dataloader: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Make what Engram's engine would have made before training.

        Raises:
            EngramError: the memory, the model or the Trainer's arguments are not for it.
        """
        if hasattr(self, "engine") and not self.host:
            return
        self.leave()  # an earlier training that did not end
        trained, collate = train_dataloader.dataset, train_dataloader.collate_fn
        tasks = features_by_task(self.given, args, trained, processing_class, self.name)
        memory = Memory(tasks, derive(args.seed, "memory"))
        self.begin_task(model, TaskContext("", 0, derive(args.seed, self.name), memory, {}))
        rows = memory.draw(0, 1) if memory else []
        if not memory and excess(args) > 1 and not isinstance(trained, IterableDataset):
            rows = [trained[0]] if hasattr(trained, "__getitem__") else []
        with forked(0):  # a collator may draw
            batch = dict(collate(rows)) if rows else {}
        warn_if_mis_scaled(args, model, batch, self.name)
        if memory:
            check_host(args, state, model, self.name)
            kind = kind_of_batch(model, batch, self.name)
            self.engine = Host(args, model, collate, kind)  # type: ignore[assignment]  # its Steps

    def go_on(self, args: TrainingArguments, state: Any) -> None:
        """Take up the state of the checkpoint that the Trainer resumes from.

        Raises:
            EngramError: it is not there, or belongs to other weights.
        """
        if not self.host or not state.global_step:
            return
        folder = checkpoint(args, state)
        if not (folder / STATE).exists():
            raise EngramError(
                f"{self.name}: cannot resume at step {state.global_step}: {folder / STATE} is "
                "missing; resume from a checkpoint saved with this callback, under its output_dir"
            )
        if not torch.equal(
            load_state(self.host, folder)["weights"], self.host.state_dict()["weights"]
        ):
            raise EngramError(
                f"{self.name}: cannot resume at step {state.global_step}: {folder / STATE} belongs "
                "to other weights; set output_dir to that of the run that saved the checkpoint"
            )
        self.load_state_dict(load_state(self, folder))

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.host:
            with self.host.complete_gradients():
                self.edit_gradients(model)  # type: ignore[arg-type]

    def on_save(self, args, state, control, **kwargs):
        if self.host and args.should_save:
            save_state([self, self.host], checkpoint(args, state))

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if self.host:
            self.end_task(model)  # type: ignore[arg-type]
            self.leave()

    def leave(self) -> None:
        if self.host:
            self.host.close()
            del self.engine


def checkpoint(args: TrainingArguments, state: Any) -> Path:
    """The folder that a Trainer saves in, and resumes from, at this step."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
