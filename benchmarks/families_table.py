"""Tests every architecture of `architectures.py` as a base: learning, scoring and exporting.

    python benchmarks/families_table.py                   # all, one line each
    python benchmarks/families_table.py llama fnet        # some
    python benchmarks/families_table.py --write           # all, and write docs/families.md

Each is a tiny model with random weights, which learns sixteen rows by heart. Then its answers and
the losses of the right answers are compared between single rows and one batch, and its logits are
compared with those of the exported model.
"""

import argparse
import os
import platform
import tempfile
import traceback
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from math import log
from pathlib import Path
from textwrap import wrap
from typing import Any


os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from architectures import ARCHITECTURES, AUTO, make
from transformers.utils import logging

from perdure import PerdureError
from perdure.api import export
from perdure.config import load_config
from perdure.data.task import Split, Task
from perdure.data.tokens import features
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import base_at
from perdure.measure.batches import evaluating
from perdure.measure.predict import predict
from perdure.models.base import Base
from perdure.say import silent
from perdure.train.surprise import surprise
from perdure.verbs.init import init
from perdure.verbs.learn import learn


DOCS = Path(__file__).parents[1] / "docs" / "families.md"
VERSIONS = ("torch", "transformers", "peft", "accelerate")
COLOURS = {"alpha": "red", "beta": "green", "gamma": "blue", "delta": "red"}
# The rows have different lengths, so that a batch is padded.
ROWS = tuple(
    {"prompt": f"{'one two ' * (i % 4)}the {a} {b} is", "completion": f" {COLOURS[a]}"}
    for i, (a, b) in enumerate((a, b) for a in COLOURS for b in COLOURS)
)
# The most tokens of a row and of its answer; enough for tokenizers whose tokens are letters.
MAX_LENGTH, MAX_COMPLETION_LENGTH = 56, 8
SETTINGS: dict[str, Any] = {
    "threads": 1,
    "max_length": MAX_LENGTH,
    "max_completion_length": MAX_COMPLETION_LENGTH,
    "training": {"learning_rate": 2e-2, "max_steps": 40, "per_device_train_batch_size": 16},
    "adapter": {"r": 8},
    "memory": {"ratio": 0.0},
    "scoring": {"forward": False},
    "checkpoint_every": 0,
}
MORE_STEPS = {"xlm-roberta-xl": 160}  # learns more slowly from random weights


@dataclass
class Family:
    """The results of one architecture. Losses are means over the tokens of answers, in nats."""

    name: str
    kind: str
    loss_before: float = 0.0
    loss_after: float = 0.0
    score: float = 0.0
    batches: str = ""
    same_answers: bool = False
    batch_difference: float = 0.0  # the largest difference of the losses of rows
    export_difference: float = 0.0  # the largest of logits, relative to the largest logit
    refused: str = ""  # the error of a base that is refused before training

    @property
    def learns(self) -> bool:
        # In families with scaled-down logits, answers improve before losses do.
        return self.loss_after < 0.9 * self.loss_before or self.score == 1

    @property
    def right(self) -> bool:
        """Whether the base is refused, or passes all checks."""
        is_consistent = self.same_answers and self.batch_difference < 1e-3
        is_exported = self.export_difference < 1e-4
        return bool(self.refused) or (self.learns and is_consistent and is_exported)


def evaluate_family(name: str, folder: Path) -> Family:
    """Learn with, score and export one architecture in `folder`."""
    result = Family(name, ARCHITECTURES[name][0])
    task = Task("colours", Split(ROWS), test=Split(ROWS))
    steps = MORE_STEPS.get(name, SETTINGS["training"]["max_steps"])
    settings = {**SETTINGS, "training": {**SETTINGS["training"], "max_steps": steps}}
    try:
        base = make(name, folder / "base", std=0.1)
        init(folder / "lineage", load_config({**settings, "base": str(base)}), adapter=None)
    except PerdureError as error:
        result.refused = " ".join(str(error).replace(f"{folder}/", "").split())
        return result
    entry = learn(folder / "lineage", task, data=None, callbacks=(), say=silent)
    lineage = Lineage(folder / "lineage")
    learned = base_at(lineage, entry)
    result.score = entry["scores"][entry["task"]["id"]]
    result.loss_before = log(len(set(COLOURS.values())))  # for an encoder with a new head
    if result.kind != "encoder":
        losses = surprise(base_at(lineage, None), _features(learned), size=16)
        result.loss_before = sum(losses) / len(losses)
    _compare_batches(learned, result)
    exported = export(folder / "lineage", folder / "exported")
    model = AUTO[result.kind].from_pretrained(exported)
    result.export_difference = _difference(
        _logits(learned.network, learned), _logits(model, learned)
    )
    return result


def _compare_batches(base: Base, result: Family) -> None:
    """Compare losses and answers between one batch of all rows and single rows."""
    rows = _features(base)
    batched, single = surprise(base, rows, size=len(rows)), surprise(base, rows, size=1)
    result.loss_after = sum(single) / len(single)
    result.batch_difference = max(abs(a - b) for a, b in zip(batched, single, strict=True))
    result.same_answers = _answers(base, len(ROWS)) == _answers(base, 1)
    batches = base.padding.left if base.kind == "causal" else base.padding.right
    result.batches = {"any": "any", "equal": "equal lengths", "single": "one by one"}[batches]


def _answers(base: Base, batch_size: int) -> list[str]:
    answers, _ = predict(
        base,
        ROWS,
        mode="options" if base.kind == "encoder" else "generate",
        options=base.labels if base.kind == "encoder" else None,
        max_length=MAX_LENGTH,
        max_completion_length=MAX_COMPLETION_LENGTH,
        batch_size=batch_size,
    )
    return answers


def _features(base: Base) -> list[dict[str, Any]]:
    rows, _ = features(
        ROWS,
        base.tokenizer,
        kind=base.kind,
        max_length=MAX_LENGTH,
        max_completion_length=MAX_COMPLETION_LENGTH,
        labels=base.labels,
        where="the rows",
    )
    return rows


def _logits(model: Any, base: Base) -> torch.Tensor:
    """A network's outputs for one row: logits, or an encoder's hidden states."""
    row = _features(base)[-1]
    inputs = {"input_ids": torch.tensor([row["input_ids"]])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if base.kind == "seq2seq":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with evaluating(model):
        outputs = model(**inputs)
    return outputs.last_hidden_state if base.kind == "encoder" else outputs.logits


def _difference(logits: torch.Tensor, others: torch.Tensor) -> float:
    return ((logits - others).abs().max() / logits.abs().max()).item()


def table(families: list[Family]) -> str:
    """The text of docs/families.md."""
    accepted = [family for family in families if not family.refused]
    refused = [family for family in families if family.refused]
    libraries = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    lines = [
        "# Model families",
        "",
        *wrap(
            f"{len(families)} of the architectures in `benchmarks/architectures.py`, as tiny "
            "models with random weights, made by `python benchmarks/families_table.py "
            "--write NAME ...`. Those that are not refused were trained on sixteen rows with "
            "LoRA. *Loss* is the mean loss of an answer's tokens before and after training, and "
            "*right* is the share of these rows that are then answered right. *Batches* shows in "
            "which batches rows are scored; Perdure tests this when it loads a base, because some "
            "architectures give other results for padded rows. *Alone* is the largest difference "
            "between the losses of a row alone and in a batch; the answers were the same. "
            "*Export* is the largest difference of the exported model's logits, relative to "
            "the largest logit.",
            width=96,
        ),
        "",
        f"With {libraries} on Python {platform.python_version()}.",
        "",
        "| architecture | kind | loss | right | batches | alone | export |",
        "| --- | --- | --- | ---: | --- | ---: | ---: |",
    ]
    for family in sorted(accepted, key=lambda family: (family.kind, family.name)):
        answers = "" if family.same_answers else ", other answers"
        lines.append(
            f"| {family.name} | {family.kind} "
            f"| {family.loss_before:.2f} to {family.loss_after:.2f} | {family.score:.2f} "
            f"| {family.batches} | {family.batch_difference:.0e}{answers} "
            f"| {family.export_difference:.0e} |"
        )
    lines += ["", "Refused by `init`, with its reason:", ""]
    lines += ["| architecture | kind | reason |", "| --- | --- | --- |"]
    for family in refused:
        lines.append(f"| {family.name} | {family.kind} | {family.refused.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", choices=[*ARCHITECTURES, []], metavar="NAME")
    parser.add_argument("--write", action="store_true", help="write docs/families.md")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    families = []
    for name in arguments.names or ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                families.append(evaluate_family(name, Path(folder)))
            except Exception as error:  # the others are still tested
                traceback.print_exc()
                families.append(Family(name, ARCHITECTURES[name][0], batches=f"failed: {error}"))
        print(("right " if families[-1].right else "WRONG ") + str(families[-1]), flush=True)
    if arguments.write:
        DOCS.write_text(table(families), encoding="utf-8")


if __name__ == "__main__":
    main()
