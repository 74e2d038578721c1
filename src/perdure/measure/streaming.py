"""Passing on the text of an answer while it is generated."""

from collections.abc import Callable
from typing import Any

from transformers.generation.streamers import BaseStreamer


class TextStream(BaseStreamer):
    """Passes on each new part of an answer as soon as it is certain.

    Unlike transformers' `TextStreamer`, it shows the answer that is returned in the end, without
    what the chat template adds. If the text so far turns out not to be the beginning of the answer,
    such as reasoning that has just ended, nothing more is passed on.

    Args:
        read: returns the answer in the tokens that were generated so far.
        on_text: called with each new part of it.
    """

    def __init__(self, read: Callable[[list[int]], str], on_text: Callable[[str], None]):
        self.read, self.on_text = read, on_text
        self.ids: list[int] = []
        self.passed_on = ""
        self.has_begun = False

    def put(self, value: Any) -> None:
        """Take the next tokens. `generate` passes the prompt first."""
        if not self.has_begun:
            self.has_begun = True
            return
        self.ids += value.flatten().tolist()
        text = self.read(self.ids)
        # A token may end in the middle of a character, which is decoded as a replacement character.
        if text.startswith(self.passed_on) and not text.endswith("\ufffd"):
            new, self.passed_on = text[len(self.passed_on) :], text
            if new:
                self.on_text(new)

    def end(self) -> None:
        """Do nothing: the answer is complete."""
