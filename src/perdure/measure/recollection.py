"""A model's memory of probes: the likelihoods of answers and foils, and the recalled answers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from perdure.data.probes import Probe
from perdure.data.rows import Row, answer, answered, references
from perdure.data.tokens import IGNORED, Collator, Features, features
from perdure.errors import PerdureError
from perdure.measure.batches import evaluating, feature_batches
from perdure.measure.likelihood import log_likelihoods
from perdure.measure.metrics import best, exact_match
from perdure.measure.predict import LONG, correct_answers, predict
from perdure.models.base import Base


class Likelihood(NamedTuple):
    """The log-probability of an answer, in nats, and the number of tokens that it sums over."""

    log_p: float
    tokens: int

    @property
    def mean(self) -> float:
        """The log-probability per token."""
        return self.log_p / self.tokens


@dataclass
class Recollection:
    """A model's answers to probes, row by row.

    Args:
        rows: the likelihood of each row's answer.
        foils: the likelihood of each row's foil, None without a foil.
        recalled: 1 if the model itself gives the row's answer, else 0; None if it cannot be asked.
        truncated: how many rows were too long and were cut.
    """

    rows: list[Likelihood]
    foils: list[Likelihood | None]
    recalled: list[float | None]
    truncated: int


def recollect(
    base: Base,
    probes: Sequence[Probe],
    max_length: int,
    max_completion_length: int,
    batch_size: int,
    where: str,
) -> Recollection:
    """Run all probes on a model. Either all of them are rows of text, or none.

    The likelihood of a completion is over the tokens that training would learn, with the end token.
    That of a text is over all its tokens except the first, and the text is recalled if the model
    continues its first half with the second. A text is cut after `max_length` tokens. For an
    encoder, a label counts as one token, its log-probability is the log-softmax over all labels of
    the head, and it is recalled if it is the most probable.

    Args:
        base: the model. The head of an encoder must have every answer and foil.
        probes: the rows and their foils.
        max_length: the most tokens of a row.
        max_completion_length: the most tokens of a completion.
        batch_size: rows per batch. Texts are run one by one, to save memory.
        where: the beginning of each error line.

    Raises:
        PerdureError: the model cannot take a row, or its head does not have an answer.
    """
    rows, foils = [probe.row for probe in probes], [probe.foil or probe.row for probe in probes]
    where_foils = f"{where} with foils"
    questions: Sequence[Row | None] = rows
    if "text" in rows[0]:
        row_features, too_long = _text_features(base, rows, max_length=max_length, where=where)
        foil_features, _ = _text_features(base, foils, max_length=max_length, where=where_foils)
        questions = [
            None if is_cut else halves(row["text"])
            for row, is_cut in zip(rows, too_long, strict=True)
        ]
        truncated, batch_size = sum(too_long), 1
    else:
        lengths = {"max_length": max_length, "max_completion_length": max_completion_length}
        row_features, truncated = _completion_features(base, rows, where=where, **lengths)
        foil_features, _ = _completion_features(base, foils, where=where_foils, **lengths)
    all_features = row_features + foil_features
    with evaluating(base.model):
        if base.kind == "encoder":
            likelihoods, recalled = _classified(base, rows, all_features, batch_size=batch_size)
        else:
            likelihoods = _likelihoods(base, all_features, batch_size)
            recalled = _recalled(
                base, questions, max_length=max_length, batch_size=batch_size, where=where
            )
    foil_likelihoods = zip(probes, likelihoods[len(rows) :], strict=True)
    return Recollection(
        rows=likelihoods[: len(rows)],
        foils=[likelihood if probe.foil else None for probe, likelihood in foil_likelihoods],
        recalled=recalled,
        truncated=truncated,
    )


def knows_answers(base: Base, probes: Sequence[Probe]) -> bool:
    """Return whether the model can give every answer and foil.

    Only an encoder may not be able to: its head must have them as labels.
    """
    answers = {answer(row).strip() for probe in probes for row in (probe.row, probe.foil) if row}
    return base.kind != "encoder" or answers <= set(base.labels or ())


def halves(text: str) -> Row | None:
    """Split a text into prompt and completion, at the gap between words nearest to its middle.

    Returns None if the text is a single word.
    """
    gaps = [match.start() for match in re.finditer(r"(?<=\S)\s+(?=\S)", text)]
    if not gaps:
        return None
    middle = min(gaps, key=lambda gap: abs(2 * gap - len(text)))
    return {"prompt": text[:middle], "completion": text[middle:]}


def _completion_features(
    base: Base, rows: list[Row], max_length: int, max_completion_length: int, where: str
) -> tuple[list[Features], int]:
    """Tokenize rows with a completion as for training; also return how many were truncated."""
    return features(
        rows,
        base.tokenizer,
        kind=base.kind,
        max_length=max_length,
        max_completion_length=max_completion_length,
        labels=base.labels,
        where=where,
        mask_history=True,
    )


def _text_features(
    base: Base, rows: list[Row], max_length: int, where: str
) -> tuple[list[Features], list[bool]]:
    """Tokenize plain text as the tokenizer does by default; also return which rows were cut."""
    if base.kind != "causal":
        raise PerdureError(
            f"{where}, row 1: only decoder-only models take rows of text; give prompt and "
            "completion"
        )
    row_ids: Any = base.tokenizer([row["text"] for row in rows], verbose=False)["input_ids"]
    for number, ids in enumerate(row_ids, 1):
        if len(ids) < 2:
            raise PerdureError(
                f"{where}, row {number}: the text is a single token, so nothing is predicted; give "
                "a longer text"
            )
    row_features = [{"input_ids": ids[:max_length], "labels": ids[:max_length]} for ids in row_ids]
    return row_features, [len(ids) > max_length for ids in row_ids]


def _likelihoods(base: Base, row_features: list[Features], batch_size: int) -> list[Likelihood]:
    """Return the likelihood of each row of features.

    Equal rows are computed once, so that their values are equal to the bit and they tie.
    """
    keys = [(tuple(row["input_ids"]), tuple(row["labels"])) for row in row_features]
    distinct = dict(zip(keys, row_features, strict=True))
    values = log_likelihoods(base, list(distinct.values()), batch_size)
    log_p = dict(zip(distinct, values, strict=True))
    first = int(base.kind == "causal")  # a causal model does not predict the first token
    counts = [sum(label != IGNORED for label in row["labels"][first:]) for row in row_features]
    return [
        Likelihood(log_p=log_p[key], tokens=count) for key, count in zip(keys, counts, strict=True)
    ]


def _recalled(
    base: Base, questions: Sequence[Row | None], max_length: int, batch_size: int, where: str
) -> list[float | None]:
    """Return 1 for each question whose answer the model generates, 0 for others, None for None."""
    rows = [row for row in questions if row]
    if not rows:
        return [None] * len(questions)
    with_references = rows + [
        answered(row, text) for row in rows for text in row.get("references", ())
    ]
    row_features, _ = features(
        with_references,
        base.tokenizer,
        kind=base.kind,
        max_length=LONG,
        max_completion_length=LONG,
        labels=None,
        where=where,
        mask_history=True,
    )
    # Room for the longest answer with all that the template writes around it, and one more token.
    longest = max(sum(label != IGNORED for label in row["labels"]) for row in row_features)
    predictions, _ = predict(
        base,
        rows,
        mode="generate",
        max_length=max_length,
        max_completion_length=longest + 1,
        batch_size=batch_size,
        where=where,
        exact=True,
    )
    scores = iter(
        [
            best(exact_match, prediction, texts)
            for prediction, texts in zip(
                predictions, correct_answers(base, rows, where), strict=True
            )
        ]
    )
    return [next(scores) if row else None for row in questions]


def _classified(
    base: Base, rows: Sequence[Row], row_features: list[Features], batch_size: int
) -> tuple[list[Likelihood], list[float | None]]:
    """Return the likelihood of each label, and whether an encoder chooses a correct answer.

    `row_features` are those of `rows` and then those of their foils. Only the rows are checked for
    a correct answer.
    """
    log_probs = _log_softmax(base, row_features, batch_size)
    likelihoods = [
        Likelihood(log_p=label_log_probs[row["labels"]], tokens=1)
        for row, label_log_probs in zip(row_features, log_probs, strict=True)
    ]
    labels = base.labels or []
    recalled: list[float | None] = []
    for row, label_log_probs in zip(rows, log_probs, strict=False):  # the foils come after the rows
        correct = [text.strip() for text in references(row) if text.strip() in labels]
        correct_log_probs = [label_log_probs[labels.index(text)] for text in correct]
        recalled.append(float(max(label_log_probs) in correct_log_probs))
    return likelihoods, recalled


def _log_softmax(base: Base, row_features: list[Features], batch_size: int) -> list[list[float]]:
    """Return [rows, labels], the log-probability of each label of the head."""
    device, collate = next(base.model.parameters()).device, Collator(base.tokenizer, base.kind)
    log_probs: list[list[float]] = [[] for _ in row_features]
    for indices in feature_batches(base, row_features, batch_size):
        batch = collate([row_features[i] for i in indices])
        inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        logits: torch.Tensor = base.model(**inputs).logits
        batch_log_probs = logits.float().log_softmax(-1).tolist()
        for i, label_log_probs in zip(indices, batch_log_probs, strict=True):
            log_probs[i] = label_log_probs
    return log_probs
