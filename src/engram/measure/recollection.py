"""What a model makes of probes: how likely it finds answers and foils, and which it recalls."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from engram.data.probes import Probe
from engram.data.rows import Row, answer, answered, references
from engram.data.tokens import IGNORED, Collator, features
from engram.errors import EngramError
from engram.measure.metrics import best, exact_match
from engram.measure.predict import (
    LONG,
    evaluating,
    feature_batches,
    log_likelihoods,
    predict,
)
from engram.models.base import Base


Features = list[dict[str, Any]]


class Likelihood(NamedTuple):
    """The log-probability of an answer, in nats, and how many tokens it is the sum of."""

    log_p: float
    tokens: int

    @property
    def mean(self) -> float:
        return self.log_p / self.tokens


@dataclass
class Recollection:
    """Row by row; None for a row without a foil, and for one that cannot be asked.

    `truncated` counts the rows that were too long and have been cut.
    """

    rows: list[Likelihood]
    foils: list[Likelihood | None]
    recalled: list[float | None]
    truncated: int


def recollect(
    base: Base, probes: Sequence[Probe], lengths: tuple[int, int], batch_size: int, where: str
) -> Recollection:
    """Ask a model all probes, which are all rows of text or none of them.

    Of a prompt's completion the tokens count that are learned, the end token too. Of a text all
    tokens count that something stands before, and it is recalled if its second half follows on the
    first; it is cut behind the last place that the model takes. For an encoder a label counts as
    one token, its log-probability is that among all labels of the head, and it is recalled if it
    is the most probable.

    Args:
        base: the model; of an encoder, the head must know every answer and foil.
        probes: the rows and their foils.
        lengths: the most tokens of a row, and of a completion.
        batch_size: rows asked at once; texts go one by one, for the sake of memory.
        where: begins each error line.

    Raises:
        EngramError: a row that this model cannot take, or an answer that its head does not know.
    """
    rows, foils = [p.row for p in probes], [p.foil or p.row for p in probes]
    named = f"{where} with foils"
    if "text" in rows[0]:
        made, long = _text_features(base, rows, lengths[0], where)
        others, _ = _text_features(base, foils, lengths[0], named)
        asked = [None if cut else halves(row["text"]) for row, cut in _paired(rows, long)]
        truncated, batch_size = sum(long), 1
    else:
        made, truncated = features(
            rows, base.tokenizer, base.kind, *lengths, base.labels, where, True
        )
        others, _ = features(foils, base.tokenizer, base.kind, *lengths, base.labels, named, True)
        asked = rows
    with evaluating(base.model):
        if base.kind == "encoder":
            found, recalled = _classified(base, rows, made, others, batch_size)
        else:
            found = _likelihoods(base, made + others, batch_size)
            recalled = _recalled(base, asked, lengths[0], batch_size, where)
    pairs = _paired(probes, found[len(rows) :])
    beside = [one if probe.foil else None for probe, one in pairs]
    return Recollection(found[: len(rows)], beside, recalled, truncated)


def knows_answers(base: Base, probes: Sequence[Probe]) -> bool:
    """Whether the model can give every answer and foil: an encoder's head has to have its label."""
    said = {answer(row).strip() for p in probes for row in (p.row, p.foil) if row}
    return base.kind != "encoder" or said <= set(base.labels or ())


def halves(text: str) -> Row | None:
    """A text as a prompt and its continuation, cut between two words as near to its middle as can.

    None for a single word.
    """
    gaps = [found.start() for found in re.finditer(r"(?<=\S)\s+(?=\S)", text)]
    if not gaps:
        return None
    at = min(gaps, key=lambda gap: abs(2 * gap - len(text)))
    return {"prompt": text[:at], "completion": text[at:]}


def _text_features(
    base: Base, rows: list[Row], most: int, where: str
) -> tuple[Features, list[bool]]:
    """Features as the tokenizer makes them of plain text, and which rows were cut."""
    if base.kind != "causal":
        raise EngramError(
            f"{where}, row 1: only decoder-only models take rows of text; give prompt and "
            "completion"
        )
    ids: Any = base.tokenizer([row["text"] for row in rows], verbose=False)["input_ids"]
    for number, one in enumerate(ids, 1):
        if len(one) < 2:
            raise EngramError(
                f"{where}, row {number}: of a single token nothing is predicted; give a longer text"
            )
    made = [{"input_ids": one[:most], "labels": one[:most]} for one in ids]
    return made, [len(one) > most for one in ids]


def _likelihoods(base: Base, made: Features, batch_size: int) -> list[Likelihood]:
    """Of each row of features; equal ones have the same value to the bit, so that they tie."""
    keys = [(tuple(row["input_ids"]), tuple(row["labels"])) for row in made]
    distinct = dict(_paired(keys, made))
    values = log_likelihoods(base, list(distinct.values()), batch_size)
    found = dict(_paired(list(distinct), values))
    first = int(base.kind == "causal")  # before whose first token nothing stands
    counts = [sum(label != IGNORED for label in row["labels"][first:]) for row in made]
    return [Likelihood(found[key], count) for key, count in _paired(keys, counts)]


def _recalled(
    base: Base, asked: Sequence[Row | None], max_length: int, batch_size: int, where: str
) -> list[float | None]:
    """1 where the model itself goes on with the answer, else 0."""
    rows = [row for row in asked if row]
    if not rows:
        return [None] * len(asked)
    answers = [references(row) for row in rows]
    right = rows + [answered(row, text) for row in rows for text in row.get("references", ())]
    made, _ = features(right, base.tokenizer, base.kind, LONG, LONG, None, where, True)
    # All that the template writes of an answer, and one token more.
    room = max(sum(label != IGNORED for label in row["labels"]) for row in made) + 1
    said, _ = predict(base, rows, "generate", None, max_length, room, batch_size, where, exact=True)
    scores = iter([best(exact_match, *pair) for pair in _paired(said, answers)])
    return [next(scores) if row else None for row in asked]


def _classified(
    base: Base, rows: Sequence[Row], made: Features, others: Features, batch_size: int
) -> tuple[list[Likelihood], list[float | None]]:
    """An encoder's labels of both, and whether its own choice is a right answer of `rows`."""
    log_p = _log_softmax(base, made + others, batch_size)
    found = [of[row["labels"]] for row, of in _paired(made + others, log_p)]
    labels, right = base.labels or [], []
    for row, of in zip(rows, log_p, strict=False):
        told = [
            of[labels.index(text.strip())] for text in references(row) if text.strip() in labels
        ]
        right.append(float(max(of) in told))
    return [Likelihood(one, 1) for one in found], right


def _log_softmax(base: Base, made: Features, batch_size: int) -> list[list[float]]:
    """The log-probability of each label of the head, row by row."""
    device, collate = next(base.model.parameters()).device, Collator(base.tokenizer, base.kind)
    found: list[list[float]] = [[] for _ in made]
    for chosen in feature_batches(base, made, batch_size):
        batch = collate([made[i] for i in chosen])
        seen = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        logits: torch.Tensor = base.model(**seen).logits
        for i, of in _paired(chosen, logits.float().log_softmax(-1).tolist()):
            found[i] = of
    return found


def _paired(one: Sequence[Any], other: Sequence[Any]) -> "zip[tuple[Any, Any]]":
    return zip(one, other, strict=True)
