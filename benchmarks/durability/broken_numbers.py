"""Breaks a number at each place of a training in turn, and prints which runs stopped at their step.

    python benchmarks/durability/broken_numbers.py [--method NAME] [--kind KIND]

In a lineage that has learned one task, the second one is learned with each method. At one step, a
loss, a gradient or a weight becomes infinite or not a number: in the Trainer's own step, and in the
gradients and steps that the method takes on other rows. The run must stop at that step with the
task's name and the step, make no stage, and leave the lineage as it was. The table says what the
line named; `SILENT` is a stage in spite of it, `LATE` a line with another step, and `CHANGED` a
lineage that is not as it was. At the end, the time that the checks take of a step is printed. The
status is 1 if anything was wrong.
"""

import argparse
import contextlib
import math
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch


os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from small_lineage import TASKS, learn, settings, workplace

from perdure import PerdureError, api, methods
from perdure.lineage.files import hash_folder
from perdure.train.finite import FiniteCheck
from perdure.train.trainer import ContinualTrainer


STEP = 2
VALUES = {"nan": math.nan, "inf": math.inf}
FREE = ("timings.json", "lock")
Break = Callable[[ContinualTrainer], Any]


@dataclass
class Outcome:
    """What happened to a run in which a number was broken.

    Args:
        method: the name of the method.
        place: the number that was broken.
        verdict: what the error line named, `not reached`, or a fault in capitals.
        line: the error line.
    """

    method: str
    place: str
    verdict: str
    line: str = ""

    @property
    def is_wrong(self) -> bool:
        return self.verdict.isupper()


def method_names(kind: str = "causal") -> list[str]:
    """Return the methods that work on a kind of model."""
    return [name for name in methods.names() if kind in methods.find(name).kinds]


def lineage_settings(method: str) -> dict[str, Any]:
    """Return the settings of a lineage that learns with a method, with two steps on old rows."""
    whole = methods.find(method).needs == "whole"
    keywords = {"recurrent_kif": {"inner_steps": STEP, "outer_steps": 1}}.get(method, {})
    training = {"learning_rate": 1e-3 if whole else 1e-2, "max_steps": 4}
    return {
        **settings(whole),
        "method": {method: keywords},
        "memory": {"ratio": 0.25},
        "training": training,
        "checkpoint_every": 0,
        "guard": None,
    }


def contents(lineage: Path) -> dict[str, str]:
    return {name: sha for name, sha in hash_folder(lineage).items() if name not in FREE}


@torch.no_grad()
def put(engine: ContinualTrainer, attribute: str, value: float) -> None:
    """Put a value into the first trained weight that has the attribute (`data` or `grad`)."""
    tensors = (getattr(p, attribute) for p in engine.parameters)
    next(t for t in tensors if t is not None).view(-1)[0] = value


@contextlib.contextmanager
def broken(place: str, value: float, step: int = STEP) -> Iterator[list[int]]:
    """Break a number in the next training; the list has the step at which that was done."""
    done: list[int] = []

    def is_now(engine: ContinualTrainer) -> bool:
        now = engine.state.global_step + 1 >= step and not done
        if now:
            done.append(engine.state.global_step + 1)
        return now

    original_loss, original_norm = ContinualTrainer.task_loss, ContinualTrainer._get_grad_norm
    original_step, original_batch = FiniteCheck.on_step_end, ContinualTrainer._backward_batch

    def task_loss(engine, model, inputs, num_items=None):
        loss, outputs = original_loss(engine, model, inputs, num_items)
        is_training = engine.base.model.training and torch.is_grad_enabled()
        return (loss * value if is_training and is_now(engine) else loss), outputs

    def get_grad_norm(engine, model, grad_norm=None):
        if is_now(engine):
            put(engine, "grad", value)
            grad_norm = None
        return original_norm(engine, model, grad_norm)

    def on_step_end(check, args, state, control, **keywords):
        engine = engines[-1]
        if state.global_step >= step and not done:
            done.append(state.global_step)
            put(engine, "data", value)
        original_step(check, args, state, control, **keywords)

    def backward_batch(engine, batch, items, other_loss, extra):
        if engine.state.global_step >= step - 1 and not done:
            done.append(max(step, engine.state.global_step))
            own_loss = other_loss
            if own_loss:  # the method's own, in which the number of items has no part
                other_loss = lambda *batch: own_loss(*batch) * value  # noqa: E731
            items = items * 0 if math.isinf(value) else items * math.nan
        original_batch(engine, batch, items, other_loss=other_loss, extra=extra)

    engines: list[ContinualTrainer] = []
    original_init = ContinualTrainer.__init__

    def init(engine, *arguments, **keywords):
        engines.append(engine)
        original_init(engine, *arguments, **keywords)

    patched = {
        "loss": ("task_loss", task_loss),
        "gradient": ("_get_grad_norm", get_grad_norm),
        "step on old rows": ("_backward_batch", backward_batch),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(ContinualTrainer, "__init__", init))
        if place == "weight":
            stack.enter_context(patch.object(FiniteCheck, "on_step_end", on_step_end))
        else:
            stack.enter_context(patch.object(ContinualTrainer, *patched[place]))
        yield done


PLACES = ("loss", "gradient", "weight", "step on old rows")


def outcome(lineage: Path, method: str, place: str, value: float) -> Outcome:
    """Learn the second task with a broken number; the lineage must stay as it was."""
    before = contents(lineage)
    line = ""
    with broken(place, value) as done:
        try:
            learn(str(lineage), TASKS[1])
        except PerdureError as error:
            line = str(error)
    if not done:
        return Outcome(method, place, "not reached")
    if not line:
        return Outcome(method, place, "SILENT")
    if contents(lineage) != before or list(lineage.glob(".work/*")):
        return Outcome(method, place, "CHANGED", line)
    named = next((name for name in ("loss", "gradient", "weights") if f"{name} is not" in line), "")
    # A method's own steps come after a step of the Trainer, and may be those of the one before.
    on_old_rows = place == "step on old rows" or "in steps on old rows" in line
    at_step = any(
        f"at step {done[0] + late}" in line for late in ((-1, 0, 1) if on_old_rows else (0,))
    )
    if not named or not (at_step or "at the end of the task" in line) or TASKS[1] not in line:
        return Outcome(method, place, "LATE", line)
    return Outcome(method, place, named, line)


def outcomes(method: str, values: dict[str, float], folder: Path) -> Iterator[Outcome]:
    """Yield what happened at each place with each value; `folder` is that of `workplace`."""
    with contextlib.chdir(folder):
        lineage = Path(f"lineage-{method}")
        api.init(lineage, config=lineage_settings(method))
        learn(str(lineage), TASKS[0])
        for place in PLACES:
            for name, value in values.items():
                copy = Path(f"copy-{method}")
                shutil.copytree(lineage, copy)
                result = outcome(copy, method, place, value)
                result.place = f"{place} {name}"
                yield result
                shutil.rmtree(copy, ignore_errors=True)


def share_of_a_step(millions: float, repeats: int = 9) -> tuple[float, float]:
    """Return the seconds of a check, and of an AdamW step, on so many millions of fp32 weights."""
    weights = [torch.nn.Parameter(torch.randn(1000, 1000)) for _ in range(max(1, int(millions)))]
    check = FiniteCheck("task", lambda: weights, lambda tensor: tensor)
    optimizer = torch.optim.AdamW(weights, lr=1e-9)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()

    def fastest(action: Callable[[], Any]) -> float:
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            action()
            times.append(time.perf_counter() - began)
        return min(times)

    def checked() -> None:
        check.add_loss(torch.ones(()))
        check.add_norm(torch.ones(()))
        check.check("now")

    return fastest(checked), fastest(optimizer.step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--method", choices=method_names(), action="append", help="all by default")
    parser.add_argument("--millions", type=float, default=20, help="weights of the timed step")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    results: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        place = workplace(Path(folder) / "place")
        for method in arguments.method or method_names():
            of_method = list(outcomes(method, VALUES, place))
            results += of_method
            print(
                f"{method}: " + ", ".join(f"{o.place}: {o.verdict}" for o in of_method), flush=True
            )
            for result in of_method:
                if result.is_wrong:
                    print(f"FAULT {method}, {result.place}: {result.verdict} {result.line}")
    reached = [result for result in results if result.verdict != "not reached"]
    wrong = sum(result.is_wrong for result in results)
    print(f"{len(reached)} numbers broken in {len(results)} runs; {wrong} not found at their step")
    check, step = share_of_a_step(arguments.millions)
    print(
        f"on {arguments.millions:g} million weights a check takes {1000 * check:.1f} ms, AdamW "
        f"{1000 * step:.1f} ms ({check / step:.0%})"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
