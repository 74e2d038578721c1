"""Stopping generation early for answers that can no longer be correct.

Under exact match, an answer is wrong as soon as it is not the beginning of a reference, whatever
would follow. So a row stops one token after the length of its longest reference if its text can no
longer become correct. The score is the same as without this rule, and a wrong answer is shown only
up to where it stopped.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from perdure.data.chat import Frame
from perdure.data.special import ids_of
from perdure.measure.answers import answer_text, dense, special_in


class Undecided:
    """Decides which answers of a list of rows can still become correct.

    Args:
        references: the correct answers of each row.
        frames: the chat template's text around each row's answer, None for plain text.
        tokenizer: the base's tokenizer.
        stops: the tokens that end an answer (`perdure.measure.answers.stop_tokens`).
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        frames: Sequence[Frame | None],
        tokenizer: PreTrainedTokenizerBase,
        stops: set[int],
    ):
        self.references, self.frames = references, frames
        self.tokenizer, self.stops = tokenizer, stops
        self.lengths = [
            self._length(texts, frame) for texts, frame in zip(references, frames, strict=True)
        ]
        self.kept = [special_in(texts, tokenizer) for texts in references]

    def _length(self, texts: Sequence[str], frame: Frame | None) -> int:
        """Return how many tokens the longest reference has, with the template's text before it."""
        before = frame.before if frame else ""
        return max(len(ids) for ids in ids_of([before + text for text in texts], self.tokenizer))

    def __call__(self, row: int, ids: Sequence[int]) -> bool:
        """Return whether `row` must go on after it has generated the tokens `ids`."""
        frame = self.frames[row]
        if len(ids) <= self.lengths[row]:
            return True
        if frame is not None:
            if frame.close is not None:  # reasoning of any length may come first
                return True
            generated = dense_text(dense(self.tokenizer, ids)).rstrip("\ufffd")
            if dense_text(frame.before).startswith(generated):  # still in the template's own text
                return True
        answer = answer_text(
            ids, frame, tokenizer=self.tokenizer, stops=self.stops, kept=self.kept[row]
        )
        # A character may be incomplete until its next token, and decodes to U+FFFD until then.
        answer = dense_text(answer).rstrip("\ufffd")
        after = frame.after if frame else ""
        return any(dense_text(text + after).startswith(answer) for text in self.references[row])


class StopWhenDecided(StoppingCriteria):
    """A stopping criterion for `generate` that ends each row of a batch when it is decided.

    Args:
        undecided: decides for all rows.
        rows: the indices of the batch's rows, in order.
        start: the position in `generate`'s ids at which the answer begins: after the prompt, or
            after the decoder's start token.
    """

    def __init__(self, undecided: Undecided, rows: Sequence[int], start: int):
        self.undecided, self.rows, self.start = undecided, rows, start
        self.stopped: dict[int, int] = {}  # by row: how many tokens it had generated

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        for row, ids in zip(self.rows, input_ids[:, self.start :].tolist(), strict=True):
            if row not in self.stopped and not self.undecided(row, ids):
                self.stopped[row] = len(ids)
        return torch.tensor([row in self.stopped for row in self.rows], device=input_ids.device)


def dense_text(text: str) -> str:
    """Return a text without white space and in one case.

    This ignores at least the differences that exact match ignores.
    """
    return "".join(text.casefold().split())
