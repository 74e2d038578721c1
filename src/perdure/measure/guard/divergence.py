"""How far a model's predictions have moved from another's, token by token."""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from perdure.data.tokens import IGNORED, Features
from perdure.measure.batches import evaluating, feature_batches
from perdure.measure.finite import check_logits
from perdure.measure.guard.subject import Subject
from perdure.measure.likelihood import answer_ids, answer_logits
from perdure.measure.predict import Generated
from perdure.models.kinds import Kind


def mean_divergence(
    reference: Subject, subject: Subject, answers: Sequence[Generated], batch_size: int
) -> float | None:
    """Return the mean KL(reference || subject) per token of the reference's own answers, in nats.

        KL = 1/T sum_t sum_v p(v | prompt, y_<t) log( p(v | prompt, y_<t) / q(v | prompt, y_<t) )

    p is the reference and q the subject, v runs over the whole vocabulary, and t over all T tokens
    of the answers, with the tokens that end them. The prompts are in the form in which the
    reference was asked.

    Returns:
        The mean, or None if the vocabularies differ or there is no token. It is infinite if the
        subject rules out a token that the reference does not.

    Raises:
        NotFiniteError: the outputs of a model are not finite.
    """
    if not same_vocabulary(reference, subject):
        return None
    row_features = [_features(reference.base.kind, answer) for answer in answers if answer.ids]
    total, count = 0.0, 0
    for indices in feature_batches(reference.base, row_features, batch_size):
        batch = [row_features[i] for i in indices]
        p_logits, q_logits = _logits(reference, batch), _logits(subject, batch)
        if p_logits.shape != q_logits.shape:
            return None
        check_logits(p_logits, reference.name)
        check_logits(q_logits, subject.name)
        lengths = [len(answer_ids(reference.base.kind, row)) for row in batch]
        for p_row, q_row in zip(p_logits.split(lengths), q_logits.split(lengths), strict=True):
            total += _divergence(p_row, q_row)
            count += len(p_row)
    return total / count if count else None


def same_vocabulary(reference: Subject, subject: Subject) -> bool:
    """Return whether two models read and write the same tokens."""
    one, other = reference.base, subject.base
    return one.kind == other.kind and (
        one.tokenizer is other.tokenizer or one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    )


def _features(kind: Kind, answer: Generated) -> Features:
    if kind == "seq2seq":
        return {"input_ids": answer.prompt, "labels": answer.ids}
    return {
        "input_ids": answer.prompt + answer.ids,
        "labels": [IGNORED] * len(answer.prompt) + answer.ids,
    }


def _logits(subject: Subject, batch: Sequence[Features]) -> Tensor:
    with ExitStack() as stack:
        stack.enter_context(subject.context())
        stack.enter_context(evaluating(subject.base.model))
        return answer_logits(subject.base, batch)


def _divergence(p_logits: Tensor, q_logits: Tensor) -> float:
    """Return the KL summed over tokens, of logits [tokens, vocabulary]."""
    log_p = p_logits.float().log_softmax(-1)
    log_q = q_logits.float().log_softmax(-1).to(log_p.device)
    p = log_p.exp()
    # A token that p rules out adds nothing, whatever q says of it.
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum().item()
