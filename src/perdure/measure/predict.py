"""Predicting a model's answers: generated text (`generate`), or a choice of options (`options`).

Rows are batched by similar length, and the predictions are the same as with a batch size of 1.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from perdure.config import ScoringMode
from perdure.data.chat import Frame, frame
from perdure.data.columns import is_chat
from perdure.data.messages import learned
from perdure.data.rows import Row, answer, answered, in_place_of, references
from perdure.data.tokens import check_known, features, prompts
from perdure.errors import PerdureError, nearest
from perdure.measure.answers import answer_text, special_in, stop_tokens, without_reasoning
from perdure.measure.batches import batches, evaluating
from perdure.measure.decided import StopWhenDecided, Undecided
from perdure.measure.decoding import decoding, end_ids, forced_first
from perdure.measure.finite import FiniteLogits, check_logits
from perdure.measure.leaving import can_leave, generate_leaving
from perdure.measure.options import option_likelihoods
from perdure.measure.streaming import TextStream
from perdure.models.base import Base
from perdure.models.batch import Side, pad_id, padded
from perdure.models.kinds import Kind
from perdure.models.limits import Limits


MAX_LENGTH = 512
MAX_COMPLETION_LENGTH = 64
LONG = 2**31  # tokens, a maximum length with which nothing is cut


def predict(
    base: Base,
    rows: Sequence[Row],
    mode: ScoringMode,
    options: Sequence[str] | None = None,
    max_length: int = MAX_LENGTH,
    max_completion_length: int = MAX_COMPLETION_LENGTH,
    batch_size: int = 32,
    where: str = "the rows",
    exact: bool = False,
) -> tuple[list[str], int]:
    """Predict the model's answer to each row.

    Args:
        base: the model.
        rows: the rows to answer. In mode options, their own answers have no effect.
        mode: `generate` or `options`.
        options: the answers to choose from. Ties go to the option that sorts first.
        max_length: the most tokens of a prompt, or for causal models of prompt and completion.
        max_completion_length: the most tokens of an answer.
        batch_size: rows per batch.
        where: the name of the rows, with which an error line begins.
        exact: whether an answer that can no longer equal one of the row's references may stop
            early, one token after the length of the longest of them.

    Returns:
        The answers in the order of the rows, and how many prompts were truncated. There are no
        answers if the head of an encoder has none of the options.

    Raises:
        PerdureError: mode options has no options, mode generate has an encoder, a row is a text or
            its answer cannot be scored, or an option is longer than `max_completion_length`.
    """
    check_mode(base.kind, rows, mode=mode, options=options, where=where)
    if mode == "generate":
        generated, truncated = generate_answers(
            base,
            rows,
            max_length=max_length,
            max_completion_length=max_completion_length,
            batch_size=batch_size,
            where=where,
            exact=exact,
        )
        return [answer.text for answer in generated], truncated
    choices = sorted(set(options or ()))
    with evaluating(base.model):
        if base.kind == "encoder":
            prompt_ids, truncated = _prompt_ids(base, rows, max_length=max_length, where=where)
            answers = _classify(
                base, prompt_ids, options=choices, batch_size=batch_size, where=where
            )
            return answers, truncated
        pairs, truncated = _pairs(
            base,
            rows,
            choices,
            max_length=max_length,
            max_completion_length=max_completion_length,
            where=where,
        )
        answers = _choose(base, pairs, options=choices, batch_size=batch_size, where=where)
        return answers, truncated


@dataclass(frozen=True)
class Generated:
    """A generated answer.

    Args:
        prompt: the token ids of the prompt.
        ids: the generated token ids, up to and with the first end token.
        ended: whether the last of `ids` is an end token.
        text: the answer as text, without special tokens and what the chat template adds.
    """

    prompt: list[int]
    ids: list[int]
    ended: bool
    text: str


def generate_answers(
    base: Base,
    rows: Sequence[Row],
    max_length: int = MAX_LENGTH,
    max_completion_length: int = MAX_COMPLETION_LENGTH,
    batch_size: int = 32,
    where: str = "the rows",
    exact: bool = False,
    temperature: float = 0.0,
    on_text: Callable[[str], None] | None = None,
) -> tuple[list[Generated], int]:
    """Generate the answer to each row; the other arguments are those of `predict`.

    The answers are decoded greedily, or sampled at a `temperature` (see `decoding`). For a single
    row, `on_text` is called with each new part of the answer while it is generated.

    Returns:
        The answers in the order of the rows, and how many prompts were truncated.

    Raises:
        PerdureError: the base is an encoder, a row is a text or its answer cannot be scored.
    """
    check_mode(base.kind, rows, mode="generate", options=None, where=where)
    with evaluating(base.model):
        room = room_for_prompt(
            base.kind,
            base.limits,
            max_length=max_length,
            max_completion_length=max_completion_length,
        )
        prompt_ids, truncated = _prompt_ids(base, rows, max_length=room, where=where)
        answers = _write_answers(
            base,
            rows,
            prompt_ids,
            max_completion_length=max_completion_length,
            batch_size=batch_size,
            where=where,
            exact=exact,
            temperature=temperature,
            on_text=on_text,
        )
        return answers, truncated


@dataclass(frozen=True)
class Questions:
    """The rows of one of several tasks that are answered together.

    Args:
        rows: the rows.
        where: the name of the rows, with which an error line begins.
        exact: as for `predict`.
    """

    rows: Sequence[Row]
    where: str
    exact: bool


def predict_together(
    base: Base,
    tasks: Sequence[Questions],
    max_length: int,
    max_completion_length: int,
    batch_size: int,
) -> list[tuple[list[str], int]]:
    """Return for each task what `predict` returns in mode `generate`.

    Rows of several tasks share a batch, so that a few rows of many tasks take no longer than as
    many rows of one task. Tasks whose answers end with other tokens do not share any.
    """
    for task in tasks:
        check_mode(base.kind, task.rows, mode="generate", options=None, where=task.where)
    with evaluating(base.model):
        room = room_for_prompt(
            base.kind,
            base.limits,
            max_length=max_length,
            max_completion_length=max_completion_length,
        )
        prompt_ids = [
            _prompt_ids(base, task.rows, max_length=room, where=task.where) for task in tasks
        ]
        groups: dict[Any, list[int]] = {}
        for index, task in enumerate(tasks):
            frames = [frame for frame in _frames(base, task.rows, task.where) if frame]
            stops = frozenset(stop_tokens(frames, base.tokenizer))
            first_token = forced_first(base, _first_tokens(base, task.rows, task.where))
            groups.setdefault((task.exact, stops, first_token), []).append(index)
        answers: dict[int, list[str]] = {}
        for (exact, _, _), members in groups.items():
            generated = iter(
                _write_answers(
                    base,
                    [row for index in members for row in tasks[index].rows],
                    [ids for index in members for ids in prompt_ids[index][0]],
                    max_completion_length=max_completion_length,
                    batch_size=batch_size,
                    where=tasks[members[0]].where,
                    exact=exact,
                    temperature=0.0,
                    on_text=None,
                )
            )
            for index in members:
                answers[index] = [next(generated).text for _ in tasks[index].rows]
    return [(answers[index], prompt_ids[index][1]) for index in range(len(tasks))]


def check_mode(
    kind: Kind, rows: Sequence[Row], mode: ScoringMode, options: Sequence[str] | None, where: str
) -> None:
    """Check, before any model is run, that rows can be answered in a mode by a kind of model.

    Raises:
        PerdureError: they cannot, or the answer of a row cannot be scored.
    """
    if mode not in get_args(ScoringMode):
        raise PerdureError(f"unknown scoring mode {mode!r}; {nearest(mode, get_args(ScoringMode))}")
    if mode == "generate" and kind == "encoder":
        raise PerdureError(f"{where}: an encoder cannot generate; score with mode options")
    if mode == "options" and not options:
        raise PerdureError(
            f"{where}: there is no short list of answers to choose from; "
            "declare `options:` or score with mode generate"
        )
    if any("text" in row for row in rows):
        raise PerdureError(
            f"{where}: a row of text has no prompt to answer; give prompt and completion"
        )
    calls = next((i for i, row in enumerate(rows, 1) if _calls_a_tool(row)), None)
    if calls:
        raise PerdureError(
            f"{where}, row {calls}: its answer calls a tool, which can be learned but not scored; "
            "remove the row, or let it end with a message of the assistant"
        )
    left_out = next((i for i, row in enumerate(rows, 1) if not _has_weight(row)), None)
    if left_out:
        raise PerdureError(
            f"{where}, row {left_out}: its answer is left out by weight: 0 or train: false, so it "
            "is no reference for scoring; remove the row, or let it end with a correct answer"
        )


def _last_message(row: Row) -> dict[str, Any]:
    """Return the assistant's last message, or an empty one if the answer is plain text."""
    completion = row["messages"] if "messages" in row else row["completion"]
    return {} if isinstance(completion, str) else completion[-1]


def _calls_a_tool(row: Row) -> bool:
    return "tool_calls" in _last_message(row)


def _has_weight(row: Row) -> bool:
    message = _last_message(row)
    return not message or learned(message)


def _prompt_ids(
    base: Base, rows: Sequence[Row], max_length: int, where: str
) -> tuple[list[list[int]], int]:
    """Return the token ids of each row's prompt, and how many prompts were truncated."""
    prompt_ids, truncated = prompts(
        rows,
        base.tokenizer,
        kind=base.kind,
        max_length=max_length,
        where=where,
        cache=base.cache,
    )
    for number, ids in enumerate(prompt_ids, 1):
        check_known(
            ids, base.limits.tokens, tokenizer=base.tokenizer, where=f"{where}, row {number}"
        )
    return prompt_ids, len(truncated)


def _write_answers(
    base: Base,
    rows: Sequence[Row],
    prompt_ids: list[list[int]],
    max_completion_length: int,
    batch_size: int,
    where: str,
    exact: bool,
    temperature: float,
    on_text: Callable[[str], None] | None,
) -> list[Generated]:
    """Generate the answer to each prompt."""
    tokenizer, frames = base.tokenizer, _frames(base, rows, where)
    stops = stop_tokens([frame for frame in frames if frame], tokenizer)
    row_references = [references(row) for row in rows]
    undecided = None
    if exact:
        undecided = Undecided(row_references, frames, tokenizer=tokenizer, stops=stops)
    kept = [special_in(texts, tokenizer) for texts in row_references]

    def read(row: int, ids: list[int]) -> str:
        return answer_text(ids, frames[row], tokenizer=tokenizer, stops=stops, kept=kept[row])

    streamer = TextStream(lambda ids: read(0, ids), on_text) if on_text else None
    generated_ids = generate_ids(
        base,
        prompt_ids,
        where=where,
        max_completion_length=max_completion_length,
        batch_size=batch_size,
        first_token=forced_first(base, _first_tokens(base, rows, where)),
        stops=stops,
        undecided=undecided,
        temperature=temperature,
        streamer=streamer,
    )
    answers, ends = [], {*end_ids(base), *stops}
    for row, (prompt, ids) in enumerate(zip(prompt_ids, generated_ids, strict=True)):
        answer_ids, ended = until_end(ids, ends)
        answers.append(Generated(prompt=prompt, ids=answer_ids, ended=ended, text=read(row, ids)))
    return answers


def until_end(ids: list[int], ends: Collection[int]) -> tuple[list[int], bool]:
    """Return generated ids up to and with the first end token, and whether there is one.

    After it there is only the padding of the batch.
    """
    end = next((place for place, token in enumerate(ids) if token in ends), None)
    return (ids, False) if end is None else (ids[: end + 1], True)


def generate_ids(
    base: Base,
    prompts: list[list[int]],
    max_completion_length: int,
    batch_size: int,
    first_token: int | None = None,
    stops: Collection[int] = (),
    undecided: Undecided | None = None,
    temperature: float = 0.0,
    streamer: TextStream | None = None,
    suppressed: Collection[int] = (),
    where: str = "the rows",
) -> list[list[int]]:
    """Generate an answer to each prompt, given as token ids.

    An answer ends with an end token or one of `stops`, after `max_completion_length` tokens, at the
    model's last position, or when it is decided. After the end there may be padding, which
    `until_end` removes. The other arguments are those of `decoding`.

    Raises:
        NotFiniteError: the model's outputs are not finite.
    """
    # A causal model continues from the last position, so its prompts are padded on the left.
    side: Side = "left" if base.kind == "causal" else "right"
    answers: list[list[int]] = [[]] * len(prompts)
    rooms = [_room_for_answer(base, len(prompt), max_completion_length) for prompt in prompts]
    together = base.padding.left if base.kind == "causal" else base.padding.right
    leave = not temperature and can_leave(base)
    processors = LogitsProcessorList([FiniteLogits(where)])
    with decoding(
        base,
        max_new_tokens=max_completion_length,
        pad_id=pad_id(base.tokenizer),
        forced_first=first_token,
        stops=stops,
        temperature=temperature,
        suppressed=suppressed,
    ) as settings:
        for batch in batches(prompts, batch_size, together=together, apart=rooms):
            ids, mask = _padded(base, [prompts[i] for i in batch], side)
            settings.max_new_tokens = rooms[batch[0]]
            start = ids.shape[1] if base.kind == "causal" else 1  # the decoder's start token

            def criterion(rows: Sequence[int], start: int = start) -> StopWhenDecided | None:
                return StopWhenDecided(undecided, rows, start) if undecided else None

            if leave and len(batch) > 1:
                generated = generate_leaving(
                    base, ids, mask, settings, batch, criterion, processors
                )
                for i in batch:
                    answers[i] = generated[i]
                continue
            decided = criterion(batch)
            outputs = base.model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=mask,
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([decided] if decided else []),
                logits_processor=processors,
                streamer=streamer,
            )
            for i, answer_ids in zip(batch, outputs[:, start:].tolist(), strict=True):
                answers[i] = answer_ids[: decided.stopped.get(i)] if decided else answer_ids
    return answers


def _choose(
    base: Base, pairs: list[dict[str, Any]], options: list[str], batch_size: int, where: str
) -> list[str]:
    """Choose for each row the option o with the largest sum_t log p(o_t | prompt, o_<t).

    The end token is included. The sum is not divided by the option's length: it is the
    log-probability that the model gives exactly this answer, so short options are favoured.
    """
    num_options = len(options)
    scores = option_likelihoods(base, pairs, num_options, batch_size, where)
    starts = range(0, len(scores), num_options)
    return [options[_first_best(scores[start : start + num_options])] for start in starts]


def _classify(
    base: Base, prompts: list[list[int]], options: list[str], batch_size: int, where: str
) -> list[str]:
    """Choose for each prompt the option with the largest logit, among those that the head has."""
    labels = base.labels or []
    head_options = [option for option in options if option in labels]
    if not head_options:
        return []
    columns = [labels.index(option) for option in head_options]
    predictions = [""] * len(prompts)
    for batch in batches(prompts, batch_size, base.padding.right):
        ids, mask = _padded(base, [prompts[i] for i in batch], "right")
        logits = base.model(input_ids=ids, attention_mask=mask).logits[:, columns]
        check_logits(logits, where)
        for i, scores in zip(batch, logits.tolist(), strict=True):
            predictions[i] = head_options[_first_best(scores)]
    return predictions


def _frames(base: Base, rows: Sequence[Row], where: str) -> list[Frame | None]:
    """Return the chat template's text around each answer, None for prompts of plain text."""
    lines = [f"{where}, row {number}" for number in range(1, len(rows) + 1)]
    return [
        frame(row, base.tokenizer, where=line) if is_chat(row) else None
        for row, line in zip(rows, lines, strict=True)
    ]


def correct_answers(base: Base, rows: Sequence[Row], where: str) -> list[list[str]]:
    """Return all correct answers of each row, as text that `predict` can return for them.

    It differs from `references` where a content holds reasoning before the answer itself.
    """
    return [
        [without_reasoning(text, frame) for text in references(row)]
        for row, frame in zip(rows, _frames(base, rows, where), strict=True)
    ]


def _first_tokens(base: Base, rows: Sequence[Row], where: str) -> set[int]:
    """Return the tokens with which targets begin.

    A placeholder replaces each answer, so that the answers cannot have an effect.
    """
    if base.kind != "seq2seq":
        return set()
    row_features, _ = features(
        [answered(row, ".") for row in rows],
        base.tokenizer,
        kind=base.kind,
        max_length=LONG,
        max_completion_length=LONG,
        labels=None,
        where=where,
        cache=base.cache,
    )
    return {row["labels"][0] for row in row_features}


def _pairs(
    base: Base,
    rows: Sequence[Row],
    options: list[str],
    max_length: int,
    max_completion_length: int,
    where: str,
) -> tuple[list[dict[str, Any]], int]:
    """Return the features of each row with each option as its answer, and how many are truncated.

    They are the features of training, with all options of a row one after another.
    """
    by_option, num_truncated = [], []
    for option in options:
        option_features, truncated = features(
            [answered(row, in_place_of(answer(row), option)) for row in rows],
            base.tokenizer,
            kind=base.kind,
            max_length=max_length,
            max_completion_length=max_completion_length,
            labels=None,
            where=f"{where} with option {option!r}",
            mask_history=True,
            cache=base.cache,
        )
        by_option.append(option_features)
        num_truncated.append(truncated)
    return [pair for row in zip(*by_option, strict=True) for pair in row], max(num_truncated)


def room_for_prompt(kind: Kind, limits: Limits, max_length: int, max_completion_length: int) -> int:
    """Return how many tokens a prompt may have so that a causal model's answer fits after it.

    If the base has few positions, at most half of them are reserved for the answer. The answer of
    an encoder-decoder has positions of its own.
    """
    if limits.positions is None:
        return max_length
    if kind != "causal":
        return min(max_length, limits.positions)
    reserved = min(max_completion_length, limits.positions // 2)
    return min(max_length, limits.positions - reserved)


def _room_for_answer(base: Base, prompt_length: int, max_completion_length: int) -> int:
    """Return how many tokens may be generated before the base runs out of positions."""
    if base.kind == "seq2seq":
        return min(max_completion_length, base.limits.answer_positions or max_completion_length)
    if base.limits.positions is None:
        return max_completion_length
    return min(max_completion_length, base.limits.positions - prompt_length)


def _padded(base: Base, prompts: list[list[int]], side: Side) -> tuple[Tensor, Tensor]:
    """Return ids [batch, longest], padded on one side, and their mask, on the base's device."""
    ids, mask = padded(prompts, base.tokenizer, side)
    return ids.to(_device(base)), mask.to(_device(base))


def _device(base: Base) -> torch.device:
    return next(base.model.parameters()).device


def _first_best(scores: list[float]) -> int:
    """Return the index of the largest score, the first one in a tie."""
    return max(range(len(scores)), key=lambda i: scores[i])
