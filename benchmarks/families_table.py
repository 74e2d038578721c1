"""Every architecture of `architectures.py` as a base: does it learn, score and export?

    python benchmarks/families_table.py                   # all of them, a line each
    python benchmarks/families_table.py llama fnet        # some
    python benchmarks/families_table.py --write           # all, as the table of docs/families.md

Each is a tiny model with random weights. It learns sixteen rows by heart; then its answers, and the
likelihoods of the right ones, are compared one row at a time and in one batch, and its logits with
those of the exported model.
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
from perdure.measure.predict import evaluating, predict
from perdure.models.base import Base
from perdure.say import silent
from perdure.train.surprise import surprise
from perdure.verbs.init import init
from perdure.verbs.learn import learn


DOCS = Path(__file__).parents[1] / "docs" / "families.md"
VERSIONS = ("torch", "transformers", "peft", "accelerate")
COLOURS = {"alpha": "red", "beta": "green", "gamma": "blue", "delta": "red"}
# Of several lengths, so that a batch is padded.
ROWS = tuple(
    {"prompt": f"{'one two ' * (i % 4)}the {a} {b} is", "completion": f" {COLOURS[a]}"}
    for i, (a, b) in enumerate((a, b) for a in COLOURS for b in COLOURS)
)
LENGTHS = 56, 8  # of a row and of its answer, in tokens: room for letters, where a token is one
SETTINGS: dict[str, Any] = {
    "threads": 1,
    "max_length": LENGTHS[0],
    "max_completion_length": LENGTHS[1],
    "training": {"learning_rate": 2e-2, "max_steps": 40, "per_device_train_batch_size": 16},
    "adapter": {"r": 8},
    "memory": {"ratio": 0.0},
    "scoring": {"forward": False},
    "checkpoint_every": 0,
}
MORE_STEPS = {"xlm-roberta-xl": 160}  # what learns more slowly from random weights


@dataclass
class Family:
    """What came of one architecture. `loss` is the mean of an answer's tokens, in nats."""

    name: str
    kind: str
    loss_before: float = 0.0
    loss_after: float = 0.0
    score: float = 0.0
    batches: str = ""
    same_answers: bool = False
    batch_difference: float = 0.0  # the largest, of the losses of the rows
    export_difference: float = 0.0  # the largest, of the logits relative to the largest logit
    refused: str = ""  # in one line, before anything was trained

    @property
    def learns(self) -> bool:
        # The logits of some families are scaled down: their answers come before their losses.
        return self.loss_after < 0.9 * self.loss_before or self.score == 1

    @property
    def right(self) -> bool:
        """Whether it is refused, or does all that it should."""
        same = self.same_answers and self.batch_difference < 1e-3
        return bool(self.refused) or (self.learns and same and self.export_difference < 1e-4)


def family(name: str, folder: Path) -> Family:
    """Learn, score and export one architecture in `folder`."""
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
    before = log(len(set(COLOURS.values())))  # an encoder without its head
    if result.kind != "encoder":
        losses = surprise(base_at(lineage, None), _features(learned), 16)
        before = sum(losses) / len(losses)
    result.loss_before = before
    _compare_batches(learned, result)
    exported = export(folder / "lineage", folder / "exported")
    model = AUTO[result.kind].from_pretrained(exported)
    result.export_difference = _difference(
        _logits(learned.network, learned), _logits(model, learned)
    )
    return result


def _compare_batches(base: Base, result: Family) -> None:
    """Losses and answers, all rows in one batch and one at a time."""
    rows = _features(base)
    together, alone = surprise(base, rows, len(rows)), surprise(base, rows, 1)
    result.loss_after = sum(alone) / len(alone)
    result.batch_difference = max(abs(a - b) for a, b in zip(together, alone, strict=True))
    mode, options = ("options", base.labels) if base.kind == "encoder" else ("generate", None)
    several, single = (
        predict(base, ROWS, mode, options, LENGTHS[0], LENGTHS[1], batch_size=size)[0]  # type: ignore[arg-type]
        for size in (len(ROWS), 1)
    )
    result.same_answers = several == single
    widest = base.padding.left if base.kind == "causal" else base.padding.right
    result.batches = {"any": "any", "equal": "equal lengths", "single": "one by one"}[widest]


def _features(base: Base) -> list[dict[str, Any]]:
    return features(ROWS, base.tokenizer, base.kind, *LENGTHS, base.labels, "the rows")[0]


def _logits(model: Any, base: Base) -> torch.Tensor:
    """What a network makes of one row: logits, or an encoder's hidden states."""
    row = _features(base)[-1]
    seen = {"input_ids": torch.tensor([row["input_ids"]])}
    seen["attention_mask"] = torch.ones_like(seen["input_ids"])
    if base.kind == "seq2seq":
        seen["decoder_input_ids"] = seen["input_ids"]
    with evaluating(model):
        outputs = model(**seen)
    return outputs.last_hidden_state if base.kind == "encoder" else outputs.logits


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).abs().max() / one.abs().max()).item()


def table(families: list[Family]) -> str:
    """The page of the documentation."""
    done = [one for one in families if not one.refused]
    refused = [one for one in families if one.refused]
    libraries = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    lines = [
        "# Model families",
        "",
        *wrap(
            f"{len(families)} of the architectures in `benchmarks/architectures.py`, as tiny "
            "models with random weights, made by `python benchmarks/families_table.py "
            "--write NAME ...`. Each was trained on sixteen rows with LoRA. *Loss* is the "
            "mean loss of an answer's tokens before and after training, and *right* is the "
            "share of these rows that are then answered right. *Batches* says in which "
            "batches rows are scored; this is found by trying, because some architectures "
            "give other results for a row that is padded. *Alone* is the largest difference "
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
    for one in sorted(done, key=lambda one: (one.kind, one.name)):
        other = "" if one.same_answers else ", other answers"
        lines.append(
            f"| {one.name} | {one.kind} | {one.loss_before:.2f} to {one.loss_after:.2f} "
            f"| {one.score:.2f} | {one.batches} | {one.batch_difference:.0e}{other} "
            f"| {one.export_difference:.0e} |"
        )
    lines += ["", "Refused by `init`, with the reason it gives:", ""]
    lines += ["| architecture | kind | reason |", "| --- | --- | --- |"]
    lines += [f"| {one.name} | {one.kind} | {one.refused.replace('|', '/')} |" for one in refused]
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
                families.append(family(name, Path(folder)))
            except Exception as error:  # one broken architecture does not hide the others
                traceback.print_exc()
                families.append(Family(name, ARCHITECTURES[name][0], batches=f"broke: {error}"))
        print(("right " if families[-1].right else "WRONG ") + str(families[-1]), flush=True)
    if arguments.write:
        DOCS.write_text(table(families), encoding="utf-8")


if __name__ == "__main__":
    main()
