"""Rows that a model writes itself, to rehearse what it can do where there are no rows of it."""

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from perdure.data.chat import first_user_turn, frame
from perdure.data.conversations import waiting
from perdure.data.special import ids_of, text_of
from perdure.data.tokens import IGNORED, Features, prompts
from perdure.measure.answers import special_ids, stop_tokens
from perdure.measure.batches import evaluating
from perdure.measure.decoding import end_ids
from perdure.measure.predict import LONG, generate_ids, room_for_prompt, until_end
from perdure.methods.shared.teacher import Source
from perdure.models.adapter_disabled import adapter_disabled
from perdure.models.base import Base
from perdure.seeds import forked
from perdure.train.parameters import Named
from perdure.train.passes import Passes


AT_ONCE = 32  # texts in a batch; with the training's batch size they would depend on it
DISTINCT = 0.5  # the smallest share of distinct triples of tokens in a text that is rehearsed


@dataclass
class Writer:
    """Writes rows with a model, and leaves out those that are not worth rehearsing.

    Args:
        base: a decoder-only model.
        passes: counts what the writing costs.
        max_new_tokens: the most tokens of a text, a user's message or an answer.
        temperature: divides the logits from which tokens are drawn.
    """

    base: Base
    passes: Passes
    max_new_tokens: int
    temperature: float

    def write(self, count: int) -> list[Features]:
        """Write `count` rows; return those that can be rehearsed, as features.

        A base with a chat template writes conversations, another one texts.
        """
        with evaluating(self.base.model):
            chat = bool(self.base.tokenizer.chat_template)
            return self._conversations(count) if chat else self._texts(count)

    def _texts(self, count: int) -> list[Features]:
        """Texts from the beginning-of-text token, or the end-of-text token if there is no other."""
        tokenizer = self.base.tokenizer
        start: Any = tokenizer.bos_token_id
        start = tokenizer.eos_token_id if start is None else start
        ends = end_ids(self.base)
        texts = self._continue([[start]] * count, ends, suppressed=self._special_but(ends))
        seen: set[str] = set()
        return [
            _features([start], ids)
            for ids, _ in texts
            if is_varied(ids) and is_new(self._plain(ids), seen)
        ]

    def _conversations(self, count: int) -> list[Features]:
        """Conversations of one message of the user and the answer to it, which is learned."""
        base, tokenizer, where = self.base, self.base.tokenizer, "self_replay"
        seen: set[str] = set()
        rows = [
            waiting({"messages": [{"role": "user", "content": message}]}, where)
            for message in self._user_messages(count)
            if is_new(message, seen)
        ]
        if not rows:
            return []
        prompt_ids, _ = prompts(rows, tokenizer, base.kind, max_length=LONG, where=where)
        room = room_for_prompt(
            base.kind, base.limits, max_length=LONG, max_completion_length=self.max_new_tokens
        )
        prompt_ids = [ids for ids in prompt_ids if len(ids) <= room]
        stops = stop_tokens([frame(rows[0], tokenizer, where)], tokenizer)
        answers = self._continue(prompt_ids, {*end_ids(base), *stops})
        return [
            _features(prompt, ids)
            for prompt, (ids, _) in zip(prompt_ids, answers, strict=True)
            if is_varied(ids) and self._plain(ids)
        ]

    def _user_messages(self, count: int) -> list[str]:
        """The messages that the model writes where the chat template has the user's.

        A message that does not end as the template ends it was cut, and is left out.
        """
        tokenizer = self.base.tokenizer
        before, after = first_user_turn(tokenizer, "self_replay")
        start, close = ids_of([before, after], tokenizer)
        stops = set(close[:1]) & special_ids(tokenizer)
        ends = {*end_ids(self.base), *stops}
        # The template's text after the message, as far as the model writes it before it stops.
        end_text = text_of(sorted(stops), tokenizer) if stops else after.strip() or after
        messages = []
        for ids, ended in self._continue([start] * count, ends, self._special_but(ends)):
            if end_text:
                message, end, _ = text_of(ids, tokenizer).partition(end_text)
            else:  # the template writes nothing after a message
                message, end = self._plain(ids), ended
            if end and is_varied(ids):
                messages.append(message.strip())
        return messages

    def _continue(
        self,
        prompt_ids: Sequence[list[int]],
        ends: Collection[int],
        suppressed: Collection[int] = (),
    ) -> list[tuple[list[int], bool]]:
        """What the model writes after each prompt, and whether it ended it."""
        if not prompt_ids:
            return []
        with self.passes.counting_as(len(prompt_ids)):
            generated = generate_ids(
                self.base,
                list(prompt_ids),
                max_completion_length=self.max_new_tokens,
                batch_size=AT_ONCE,
                stops=ends,
                temperature=self.temperature,
                suppressed=suppressed,
            )
        return [until_end(ids, ends) for ids in generated]

    def _special_but(self, ends: Collection[int]) -> set[int]:
        return special_ids(self.base.tokenizer) - set(ends)

    def _plain(self, ids: list[int]) -> str:
        return text_of(ids, self.base.tokenizer, special=False).strip()


def is_varied(ids: Sequence[int]) -> bool:
    """Whether at least `DISTINCT` of the triples of successive tokens are distinct."""
    triples = list(zip(ids, ids[1:], ids[2:], strict=False))
    return len(set(triples)) >= DISTINCT * len(triples)


def is_new(text: str, seen: set[str]) -> bool:
    """Whether a text is not blank and not in `seen`, to which it is added.

    Case and white space are ignored.
    """
    key = " ".join(text.casefold().split())
    new = bool(key) and key not in seen
    seen.add(key)
    return new


def _features(prompt: list[int], ids: list[int]) -> Features:
    """A row whose loss is on what the model wrote after the prompt."""
    return {"input_ids": prompt + ids, "labels": [IGNORED] * len(prompt) + ids}


def stacked(rows: Sequence[Features]) -> Named:
    """Rows as tensors to save."""
    if not rows:
        return {}
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    flat = {key: [x for row in rows for x in row[key]] for key in ("input_ids", "labels")}
    return {"lengths": lengths} | {key: torch.tensor(numbers) for key, numbers in flat.items()}


def unstacked(state: Named) -> list[Features]:
    """The inverse of `stacked`."""
    if not state:
        return []
    lengths = state["lengths"].tolist()
    parts = (state[key].split(lengths) for key in ("input_ids", "labels"))
    return [
        {"input_ids": ids.tolist(), "labels": labels.tolist()}
        for ids, labels in zip(*parts, strict=True)
    ]


def write_rows(
    base: Base,
    passes: Passes,
    *,
    rows: int,
    source: Source,
    seed: int,
    max_new_tokens: int,
    temperature: float = 1.0,
) -> list[Features]:
    """Let the model, or the base with its adapter disabled, write rows before a task.

    Args:
        base: a decoder-only model.
        passes: counts what the writing costs.
        rows: how many rows it writes; those that cannot be rehearsed are left out.
        source: `previous` for the model as it is, or `base`.
        seed: the seed of the draws.
        max_new_tokens: the most tokens of a text, a message or an answer.
        temperature: divides the logits.
    """
    writer = Writer(base, passes, max_new_tokens, temperature)
    with ExitStack() as stack:
        stack.enter_context(forked(seed))
        if source == "base":
            stack.enter_context(adapter_disabled(base.model))
        return writer.write(rows)
