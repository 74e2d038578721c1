"""When an answer is decided, so that a model which rambles need not be listened to until the end.

Under exact match an answer is wrong as soon as it is no beginning of a reference, whatever would
follow. So a row stops one token behind its longest reference if what it has written by then cannot
become right any more. The score is the same as without this rule; a wrong answer is shown so far.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from engram.data.chat import Frame
from engram.data.special import ids_of
from engram.measure.answers import dense, special_in, spoken


class Undecided:
    """Which answers of a list of rows may still become right.

    Args:
        references: the right answers to each row.
        frames: what the chat template writes around each row's answer, None for text.
        tokenizer: the base's own.
        stops: the template's tokens that end an answer (`measure/answers.py`).
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
            self._length(right, frame) for right, frame in zip(references, frames, strict=True)
        ]

        self.kept = [special_in(right, tokenizer) for right in references]

    def _length(self, right: Sequence[str], frame: Frame | None) -> int:
        """The tokens of the longest reference, with what the template writes before it."""
        before = frame.before if frame else ""
        return max(len(ids) for ids in ids_of([before + text for text in right], self.tokenizer))

    def __call__(self, row: int, ids: Sequence[int]) -> bool:
        """Whether `row` has to go on behind the tokens `ids` that it has written."""
        frame = self.frames[row]
        if len(ids) <= self.lengths[row]:
            return True
        if frame is not None:
            if frame.close is not None:  # thoughts may come first, of any length
                return True
            written = dense_text(dense(self.tokenizer, ids)).rstrip("\ufffd")
            if dense_text(frame.before).startswith(written):  # the template's own is not over
                return True
        answer = spoken(ids, frame, self.tokenizer, self.stops, self.kept[row])
        answer = dense_text(answer).rstrip("\ufffd")
        after = frame.after if frame else ""
        return any(dense_text(text + after).startswith(answer) for text in self.references[row])


class StopWhenDecided(StoppingCriteria):
    """Ends the rows of a batch that are decided, each by itself; for `generate`.

    Args:
        undecided: of all rows.
        rows: those of the batch, in its order.
        start: where the answer begins in `generate`'s ids: behind the prompt, or behind the
            decoder's start token.
    """

    def __init__(self, undecided: Undecided, rows: Sequence[int], start: int):
        self.undecided, self.rows, self.start = undecided, rows, start
        self.stopped: dict[int, int] = {}  # row: how many tokens it had written

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        for row, ids in zip(self.rows, input_ids[:, self.start :].tolist(), strict=True):
            if row not in self.stopped and not self.undecided(row, ids):
                self.stopped[row] = len(ids)
        return torch.tensor([row in self.stopped for row in self.rows], device=input_ids.device)


def dense_text(text: str) -> str:
    """A text without white space and case, of which exact match knows less."""
    return "".join(text.casefold().split())
