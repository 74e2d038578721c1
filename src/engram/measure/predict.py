"""What a model answers: it writes (`generate`), or it chooses among given answers (`options`).

Rows go in batches of similar length, and the predictions are those of the rows one by one.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import StoppingCriteriaList

from engram.data.chat import Frame, frame, is_chat
from engram.data.messages import learned
from engram.data.rows import Row, answer, answered, in_place_of, references
from engram.data.tokens import IGNORED, Collator, check_known, features, prompts
from engram.errors import EngramError, nearest
from engram.measure.answers import special_in, spoken, stop_tokens
from engram.measure.decided import StopWhenDecided, Undecided
from engram.measure.decoding import forced_first, greedy
from engram.models.base import Base, Kind
from engram.models.padding import Batches


Mode = Literal["generate", "options"]
MAX_LENGTH = 512
MAX_COMPLETION_LENGTH = 64
LONG = 2**31  # tokens: nothing is cut


def predict(
    base: Base,
    rows: Sequence[Row],
    mode: Mode,
    options: Sequence[str] | None = None,
    max_length: int = MAX_LENGTH,
    max_completion_length: int = MAX_COMPLETION_LENGTH,
    batch_size: int = 32,
    where: str = "the rows",
    exact: bool = False,
) -> tuple[list[str], int]:
    """The model's answer to each row, and how many prompts were truncated.

    There are no answers when the head of an encoder knows none of the options. Ties go to the
    option that sorts first. `where` begins the line of an error in a row. With `exact` an answer
    that can no longer be one of the row's references ends one token behind the longest of these.

    Raises:
        EngramError: no options in mode options, an encoder in mode generate, a row of text, or an
            option longer than `max_completion_length`.
    """
    check_mode(base.kind, rows, mode, options, where)
    choices, lengths = sorted(set(options or ())), (max_length, max_completion_length)
    with evaluating(base.model):
        if mode == "options" and base.kind != "encoder":
            pairs, truncated = _pairs(base, rows, choices, lengths, where)
            return _choose(base, pairs, choices, batch_size), truncated
        if mode == "generate" and base.kind == "causal":
            max_length = room_for_prompt(base, max_length, max_completion_length)
        asked, truncated = prompts(rows, base.tokenizer, base.kind, max_length, where)
        for number, ids in enumerate(asked, 1):
            check_known(ids, base.limits.tokens, base.tokenizer, f"{where}, row {number}")
        if mode == "options":
            return _classify(base, asked, choices, batch_size), truncated
        first = forced_first(base, _first_tokens(base, rows, where))
        frames = _frames(base, rows, where)
        stops = stop_tokens([one for one in frames if one], base.tokenizer)
        undecided = None
        if exact:
            undecided = Undecided([references(row) for row in rows], frames, base.tokenizer, stops)
        written = _generate(base, asked, max_completion_length, batch_size, first, stops, undecided)
        return [
            spoken(ids, frame, base.tokenizer, stops, special_in(references(row), base.tokenizer))
            for ids, frame, row in zip(written, frames, rows, strict=True)
        ], truncated


def check_mode(
    kind: Kind, rows: Sequence[Row], mode: Mode, options: Sequence[str] | None, where: str
) -> None:
    """Raise EngramError, before any model is run, if rows of this kind cannot be answered so."""
    if mode not in get_args(Mode):
        raise EngramError(f"unknown scoring mode {mode!r}; {nearest(mode, get_args(Mode))}")
    if mode == "generate" and kind == "encoder":
        raise EngramError(f"{where}: an encoder cannot generate; score with mode options")
    if mode == "options" and not options:
        raise EngramError(
            f"{where}: there is no short list of answers to choose from; "
            "declare `options:` or score with mode generate"
        )
    if any("text" in row for row in rows):
        raise EngramError(
            f"{where}: a row of text has no prompt to answer; give prompt and completion"
        )
    calls = next((i for i, row in enumerate(rows, 1) if _calls_a_tool(row)), None)
    if calls:
        raise EngramError(
            f"{where}, row {calls}: its answer calls a tool, which can be learned but not scored; "
            "take the row out, or let it end with the assistant's words"
        )

    left_out = next((i for i, row in enumerate(rows, 1) if not _has_weight(row)), None)
    if left_out:
        raise EngramError(
            f"{where}, row {left_out}: its answer is left out by weight: 0 or train: false, so it "
            "is no reference to score against; take the row out, or let it end with a right answer"
        )


def _last_message(row: Row) -> dict[str, Any]:
    """The assistant's last message; empty where the answer is text."""
    said = row["messages"] if "messages" in row else row["completion"]
    return {} if isinstance(said, str) else said[-1]


def _calls_a_tool(row: Row) -> bool:
    return "tool_calls" in _last_message(row)


def _has_weight(row: Row) -> bool:
    message = _last_message(row)
    return not message or learned(message)


def _generate(
    base: Base,
    prompts: list[list[int]],
    max_completion_length: int,
    batch_size: int,
    first_token: int | None = None,
    stops: Collection[int] = (),
    undecided: Undecided | None = None,
) -> list[list[int]]:
    """Greedy decoding, until an end token, one of `stops`, `max_completion_length` tokens, the
    last position, or until the answer is decided.
    """
    # A causal model writes on from the last position, so its prompts must end there.
    side = "left" if base.kind == "causal" else "right"
    answers: list[list[int]] = [[]] * len(prompts)
    rooms = [_room_for_answer(base, len(prompt), max_completion_length) for prompt in prompts]
    together = base.padding.left if base.kind == "causal" else base.padding.right
    with greedy(base, max_completion_length, _pad_id(base), first_token, stops) as settings:
        for batch in batches(prompts, batch_size, together, rooms):
            ids, mask = _pad(base, [prompts[i] for i in batch], side)
            settings.max_new_tokens = rooms[batch[0]]
            start = ids.shape[1] if base.kind == "causal" else 1  # the decoder's start token
            decided = StopWhenDecided(undecided, batch, start) if undecided else None
            written = base.model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=mask,
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([decided] if decided else []),
            )
            for i, ids in zip(batch, written[:, start:].tolist(), strict=True):
                answers[i] = ids[: decided.stopped.get(i)] if decided else ids
    return answers


def _choose(
    base: Base, pairs: list[dict[str, Any]], options: list[str], batch_size: int
) -> list[str]:
    """The option o with the largest sum_t log p(o_t | prompt, o_<t), end token included.

    The sum is that of the whole option and is not divided by its length: it is the log-probability
    that the model answers just this, so of a long and a short option the short one often wins.
    """
    scores = log_likelihoods(base, pairs, batch_size)
    num_options = len(options)
    starts = range(0, len(scores), num_options)
    return [options[_first_best(scores[start : start + num_options])] for start in starts]


def log_likelihoods(base: Base, made: Sequence[dict[str, Any]], batch_size: int) -> list[float]:
    """Log p(completion | prompt) of each row of features, the sum over its tokens, in nats."""
    found = [0.0] * len(made)
    for batch in feature_batches(base, made, batch_size):
        for i, value in zip(batch, _log_likelihoods(base, [made[i] for i in batch]), strict=True):
            found[i] = value
    return found


def _log_likelihoods(base: Base, made: list[dict[str, Any]]) -> list[float]:
    """Those of a batch, from one forward."""
    inputs = {k: v.to(_device(base)) for k, v in Collator(base.tokenizer, base.kind)(made).items()}
    labels = inputs["labels"]
    if base.kind == "causal":
        # Position t predicts token t + 1, and nothing the first. Logits are made only where some
        # completion is predicted: with a large vocabulary they would take most of the memory.
        first = min(_first_learned(row["labels"]) for row in made)
        labels = labels[:, max(1, first) :]
        del inputs["labels"]
        logits = base.model(**inputs, logits_to_keep=labels.shape[1] + 1).logits[:, :-1]
    else:
        logits = base.model(**inputs).logits
    losses = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
    return (-losses.view(labels.shape).sum(1)).tolist()


def _classify(
    base: Base, prompts: list[list[int]], options: list[str], batch_size: int
) -> list[str]:
    """The option with the largest logit, of those that the head has a row for."""
    labels = base.labels or []
    known = [option for option in options if option in labels]
    if not known:
        return []
    columns = [labels.index(option) for option in known]
    predictions = [""] * len(prompts)
    for batch in batches(prompts, batch_size, base.padding.right):
        ids, mask = _pad(base, [prompts[i] for i in batch], "right")
        logits = base.model(input_ids=ids, attention_mask=mask).logits[:, columns]
        for i, scores in zip(batch, logits.tolist(), strict=True):
            predictions[i] = known[_first_best(scores)]
    return predictions


def _frames(base: Base, rows: Sequence[Row], where: str) -> list[Frame | None]:
    """What the chat template writes around each answer; None for prompts of text."""
    lines = [f"{where}, row {number}" for number in range(1, len(rows) + 1)]
    return [
        frame(row, base.tokenizer, line) if is_chat(row) else None
        for row, line in zip(rows, lines, strict=True)
    ]


def _first_tokens(base: Base, rows: Sequence[Row], where: str) -> set[int]:
    """The tokens that targets begin with; a stand-in replaces each answer, which plays no part."""
    if base.kind != "seq2seq":
        return set()
    asked = [answered(row, ".") for row in rows]
    made, _ = features(asked, base.tokenizer, base.kind, LONG, LONG, None, where)
    return {row["labels"][0] for row in made}


def _pairs(
    base: Base, rows: Sequence[Row], options: list[str], lengths: tuple[int, int], where: str
) -> tuple[list[dict[str, Any]], int]:
    """Features as in training for every row with every option in its answer's place, row by row."""
    by_option, num_truncated = [], []
    for option in options:
        asked = [answered(row, in_place_of(answer(row), option)) for row in rows]
        place = f"{where} with option {option!r}"
        made, truncated = features(asked, base.tokenizer, base.kind, *lengths, None, place, True)
        by_option.append(made)
        num_truncated.append(truncated)
    return [pair for row in zip(*by_option, strict=True) for pair in row], max(num_truncated)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout and no gradients; after it every module trains, or not, as it did before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Not inference_mode: a buffer that the model makes here must be of use in training later.
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def batches(
    sequences: Sequence[Sequence[int]],
    batch_size: int,
    together: Batches = "any",
    apart: Sequence[int] | None = None,
) -> Iterator[list[int]]:
    """Indices in batches of like lengths, the longest first: if memory runs out, then at once.

    `together` says which rows may share a batch without changing what is made of each; rows that
    differ in `apart` never do.
    """
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    groups: dict[tuple[int, int], list[int]] = {}
    for i in order:
        length = len(sequences[i]) if together == "equal" else 0
        groups.setdefault((length, apart[i] if apart else 0), []).append(i)
    size = 1 if together == "single" else batch_size
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def feature_batches(
    base: Base, made: Sequence[dict[str, Any]], batch_size: int
) -> Iterator[list[int]]:
    """Indices of rows of features in batches that are padded on the right, inputs and labels."""
    together, targets = base.padding.right, None
    if together == "equal" and base.kind == "seq2seq":
        targets = [len(row["labels"]) for row in made]
    return batches([row["input_ids"] for row in made], batch_size, together, targets)


def room_for_prompt(base: Base, max_length: int, max_completion_length: int) -> int:
    """How long a causal model's prompt may be, so that its answer fits behind it.

    Of a base with few positions the answer gets at most half of them.
    """
    if base.limits.positions is None:
        return max_length
    reserved = min(max_completion_length, base.limits.positions // 2)
    return min(max_length, base.limits.positions - reserved)


def _room_for_answer(base: Base, prompt_length: int, max_completion_length: int) -> int:
    """How many tokens may be written before the base's positions end."""
    if base.kind == "seq2seq":
        return min(max_completion_length, base.limits.answer_positions or max_completion_length)
    if base.limits.positions is None:
        return max_completion_length
    return min(max_completion_length, base.limits.positions - prompt_length)


def _pad(
    base: Base, prompts: list[list[int]], side: Literal["left", "right"]
) -> tuple[Tensor, Tensor]:
    """Ids [batch, longest], filled up on one side, and their attention mask."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), _pad_id(base))
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        real = slice(longest - len(prompt), None) if side == "left" else slice(len(prompt))
        ids[i, real], mask[i, real] = torch.tensor(prompt), 1
    return ids.to(_device(base)), mask.to(_device(base))


def _device(base: Base) -> torch.device:
    return next(base.model.parameters()).device


def _first_learned(labels: Sequence[int]) -> int:
    return next(i for i, label in enumerate(labels) if label != IGNORED)


def _first_best(scores: list[float]) -> int:
    """The index of the largest score, the first of them when there is a tie."""
    return max(range(len(scores)), key=lambda i: scores[i])


def _pad_id(base: Base) -> int:
    """Some families (GPT-2) have no padding token; the mask hides whatever stands there."""
    ids = (base.tokenizer.pad_token_id, base.tokenizer.eos_token_id, 0)
    return next(i for i in ids if i is not None)  # type: ignore[return-value]
