"""Self-replay: rows that the model wrote itself, in every batch."""

import warnings
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from perdure.config import Config
from perdure.data.chat import first_user_turn, frame
from perdure.data.conversations import waiting
from perdure.data.special import ids_of
from perdure.data.tokens import IGNORED, Features, prompts
from perdure.errors import PerdureError
from perdure.measure.answers import special_ids, stop_tokens
from perdure.measure.batches import evaluating
from perdure.measure.decoding import end_ids
from perdure.measure.predict import LONG, generate_ids, room_for_prompt, until_end
from perdure.methods.shared.rehearsal_ratio import RehearsalRatio
from perdure.methods.shared.teacher import Source, check_base
from perdure.models.adapter_disabled import adapter_disabled
from perdure.models.base import Base
from perdure.models.kinds import Kind
from perdure.seeds import derive, forked
from perdure.train.memory import Memory
from perdure.train.method import Family, Keeps, Method, TaskContext
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
        end_text = str(tokenizer.decode(sorted(stops))) if stops else after.strip() or after
        messages = []
        for ids, ended in self._continue([start] * count, ends, self._special_but(ends)):
            if end_text:
                message, end, _ = str(tokenizer.decode(ids)).partition(end_text)
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
        return str(self.base.tokenizer.decode(ids, skip_special_tokens=True)).strip()


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


class SelfReplay(Method):
    """Adds rows to every batch that the model itself wrote before the task.

        loss = (sum over new and written tokens of cross-entropy) / (number of both)

    This is for models whose old data is gone. Before the first step of a task, the model writes
    `rows` rows: a base with a chat template writes a message where the template has the user's, as
    in Magpie (Xu et al. 2024, 2406.08464), and then the answer to it, which is learned; another
    base writes a text from its beginning-of-text token. Left out are rows that are empty, whose
    text or message another row has, or that repeat themselves, and messages that are cut after
    `max_new_tokens` tokens. An answer or a text that is cut there is rehearsed without an end. If
    nothing is left, there is a warning, and the task is learned as with `sequential`. The rows are
    rehearsed as `replay` rehearses remembered ones. At temperature 1, and but for what is left out,
    the expected gradient on a row is that of KL(model that wrote it || model) over the whole text.

    With `source` `previous` the rows are written with the weights with which the task begins, so
    they also have something of earlier tasks, and of their damage. With `base` they are written by
    the base with its adapter disabled, which protects what was learned in pre-training alone. Both
    are the same at the first task, where the method already has an effect.

    The idea is from 2605.26097, of which we could read only the abstract and the authors' code.
    There new rows are sampled during the whole training, by the model before it, at temperature 1.
    Their loss has a weight of its own, of 1 to 10 for a chat model, and is mostly the KL of the two
    models' predictions; `[self_replay, kl_base]` adds the KL to the base here. A fixed number of
    rows with their tokens as labels, the chat form and the filter are ours. So are the defaults,
    which were not chosen on held-out rows.

    State: the written rows while a task is learned; none after it. Old rows: none. Cost: the rows
    are written token by token once a task, counted as one forward pass of each text, message and
    answer; the written rows in every batch. `--dry-run` does not estimate the writing.

    Args:
        rows: how many rows the model writes before a task, >= 0.
        ratio: the number of written rows for each new row, >= 0, as for `replay`.
        source: `previous` or `base`: the model that writes.
        temperature: divides the logits from which tokens are drawn, above 0.
        max_new_tokens: the most tokens of a text, a message or an answer, >= 1.
    """

    family: ClassVar[Family] = "rehearsal"
    paper: ClassVar[str] = "https://huggingface.co/papers/2605.26097"
    kinds: ClassVar[tuple[Kind, ...]] = ("causal",)  # others write nothing without a prompt
    neutral: ClassVar[dict[str, Any]] = {"ratio": 0.0}
    # What that stream's model writes hardly resembles its questions: a chat model was trained to.
    keeps: ClassVar[Keeps] = Keeps(
        share=0.15, second_loss=0.5, keywords={"rows": 256, "ratio": 2.0}
    )

    def __init__(
        self,
        rows: int = 32,
        ratio: float = 0.5,
        source: Source = "previous",
        temperature: float = 1.0,
        max_new_tokens: int = 64,
    ):
        if rows < 0 or ratio < 0:
            raise PerdureError(
                f"self_replay: rows and ratio must be >= 0, got {rows} and {ratio}; "
                "with 0 of either nothing is rehearsed"
            )
        if temperature <= 0 or max_new_tokens < 1:
            raise PerdureError(
                "self_replay: needs temperature > 0 and max_new_tokens >= 1, got "
                f"{temperature} and {max_new_tokens}"
            )
        self.rows, self.source, self.temperature = rows, source, temperature
        self.max_new_tokens, self.schedule = max_new_tokens, RehearsalRatio(ratio)

    def check(self, config: Config, kind: Kind) -> None:
        super().check(config, kind)
        if self.source == "base":
            check_base(self.name, config, keyword="source")

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.written: list[Features] = []
        self.memory = Memory({}, seed=0)
        return super().begin_task(model, context)

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.schedule.begin(args, train_dataloader)
        # A resumed run gets the rows of its checkpoint: its model is no longer the one that wrote.
        if self.rows and state.global_step == 0:
            self._remember(self._write())

    def _write(self) -> list[Features]:
        base = self.engine.base
        writer = Writer(base, self.engine.passes, self.max_new_tokens, self.temperature)
        with ExitStack() as stack:
            stack.enter_context(forked(derive(self.context.seed, "write")))
            if self.source == "base":
                stack.enter_context(adapter_disabled(base.model))
            written = writer.write(self.rows)
        if not written:
            warnings.warn(
                f"self_replay: none of the {self.rows} rows that the model wrote can be rehearsed "
                "(they are empty, cut or repetitive), so the task is learned without them; raise "
                "rows or max_new_tokens",
                stacklevel=2,
            )
        return written

    def _remember(self, written: list[Features]) -> None:
        self.written = written
        self.memory = Memory({"(written)": written}, derive(self.context.seed, "draws"))

    def rehearse(self, batch: int, size: int) -> list[dict[str, Any]]:
        return self.schedule.draw(self.memory, self.engine.args, batch=batch, size=size)

    def on_train_end(self, args, state, control, **kwargs):
        self._remember([])

    def state_dict(self) -> dict[str, Tensor]:
        return stacked(self.written)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._remember(unstacked(state))
