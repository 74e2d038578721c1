"""Checks of a task's rows for probable mistakes, before anything is learned.

`check_task` raises an error for a task that cannot be right. The other functions return warnings.
Each warning is one line that says how many rows it is about, where the first of them is, and what
to do. Each function reads the rows once.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import chain

from perdure.data.columns import is_chat
from perdure.data.rows import Row, answer, references
from perdure.data.task import Split, Task, answers_are_closed
from perdure.errors import PerdureError, nearest


LONGEST_NAME = 150  # bytes, as a stage's folder is named after its task
COMPARED = ("role", "content", "tool_calls", "name")  # the keys by which messages are compared


def check_task(task: Task) -> None:
    """Check a task's name, its options, and that every answer is one of the options.

    Raises:
        PerdureError: the name cannot be used, an option is empty or declared twice, or a row's
            answer is not an option.
    """
    check_name(task.name)
    if task.options is None:
        return
    options = task.options
    for option, times in Counter(options).items():
        if not option:
            raise PerdureError(f"task {task.name!r}: an option is empty; write its text")
        if times > 1:
            raise PerdureError(f"task {task.name!r}: option {option!r} is declared twice")
    for split in filter(None, (task.train, task.dev, task.test)):
        outside = [i for i, row in enumerate(split.rows) if _outside(row, options)]
        if outside:
            text = answer(split.rows[outside[0]]).strip()
            raise PerdureError(
                f"{split.place(outside[0])}: the answer {text!r} is not an option of "
                f"task {task.name!r} ({len(outside)} of {len(split.rows)} rows have such an "
                f"answer); {nearest(text, options)}"
            )


def check_name(name: str) -> None:
    """Check that a task's name can be printed and used as the name of a folder.

    Raises:
        PerdureError: it is empty, too long, or has characters that cannot be part of a name.
    """
    if not name.strip():
        raise PerdureError("a task's name is empty; give it one, such as reviews")
    if name != name.strip() or not name.isprintable():
        raise PerdureError(
            f"task {name!r}: a name must not have white space around it or characters that cannot "
            f"be printed; write {''.join(filter(str.isprintable, name)).strip()!r}"
        )
    if len(name.encode()) > LONGEST_NAME:
        raise PerdureError(f"task {name[:30]!r}...: the name is too long; give a shorter one")


def warnings(tasks: Sequence[Task]) -> list[str]:
    """Return all warnings about the rows of a stream's tasks."""
    lines = []
    for task in tasks:
        for name in ("train", "dev", "test"):
            lines += duplicates(task, name)
        lines += contradictions(task)
        lines += unlearned(task)
        lines += mixed(task)
    return lines + [line for task in tasks for line in tuned_on(task)] + leaked(tasks)


def duplicates(task: Task, name: str) -> list[str]:
    """Return a warning if rows repeat earlier rows of the split `name`."""
    split: Split | None = getattr(task, name)
    if split is None:
        return []
    first_index: dict[bytes, int] = {}
    repeats = []
    for i, row in enumerate(split.rows):
        earlier = first_index.setdefault(_key(question_text(row), answer(row).strip()), i)
        if earlier != i:
            repeats.append((i, earlier))
    if not repeats:
        return []
    index, earlier = repeats[0]
    return [
        f"{task.name}: {len(repeats)} of {len(split.rows)} {name} rows repeat an earlier one "
        f"(first: {split.place(index)}, as row {split.number(earlier)}); drop them, unless they "
        "should count more than once"
    ]


def contradictions(task: Task) -> list[str]:
    """Return a warning if train rows with the same prompt have no correct answer in common."""
    first: dict[bytes, tuple[int, set[str]]] = {}  # by prompt: its first row and correct answers
    contradicting: dict[bytes, tuple[int, int]] = {}  # by prompt: a row and the first one
    for i, row in enumerate(task.train.rows):
        if "text" in row:
            continue
        key, correct = _key(question_text(row)), {text.strip() for text in references(row)}
        earlier, earlier_correct = first.setdefault(key, (i, correct))
        if not earlier_correct & correct:
            contradicting.setdefault(key, (i, earlier))
    if not contradicting:
        return []
    index, earlier = next(iter(contradicting.values()))
    have = "prompt of train has" if len(contradicting) == 1 else "prompts of train have"
    return [
        f"{task.name}: {len(contradicting)} {have} different answers (first: "
        f"{task.train.place(index)}, and row {task.train.number(earlier)}); fix them, or give "
        "further correct answers as references"
    ]


def unlearned(task: Task) -> list[str]:
    """Return warnings if dev or test rows of a closed task have answers that no train row has."""
    if not answers_are_closed(task.train.rows, task.options):
        return []
    taught = {answer(row).strip() for row in task.train.rows}
    lines = []
    for name in ("dev", "test"):
        split: Split | None = getattr(task, name)
        missing: dict[str, list[int]] = {}
        for i, row in enumerate(split.rows if split else ()):
            if "text" not in row and not taught & {text.strip() for text in references(row)}:
                missing.setdefault(answer(row).strip(), []).append(i)
        if split and missing:
            label = next(iter(missing))
            hint = nearest(label, taught)
            suggestion = f" ({hint.rstrip('?')})" if hint.startswith("did you mean") else ""
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            count = sum(map(len, missing.values()))
            lines.append(
                f"{task.name}: {count} of {len(split.rows)} {name} rows have an answer that no "
                f"train row has, so it cannot be learned: {label!r}{suggestion}{others} (first: "
                f"{split.place(missing[label][0])}); fix it or add train rows"
            )
    return lines


def mixed(task: Task) -> list[str]:
    """Return a warning if some rows are messages and others are plain text."""
    splits = [split for split in (task.train, task.dev, task.test) if split is not None]
    forms = [(is_chat(row), split, i) for split in splits for i, row in enumerate(split.rows)]
    different = next((form for form in forms if form[0] != forms[0][0]), None)
    if different is None:
        return []
    has_messages, split, i = different
    these, those = ("messages", "plain text") if has_messages else ("plain text", "messages")
    return [
        f"{task.name}: some rows are {those} and others {these} (first: {split.place(i)}), but "
        "only messages go through the chat template; write them all in one form"
    ]


def leaked(tasks: Sequence[Task]) -> list[str]:
    """Return warnings about dev and test rows with the prompt of a train row of any task."""
    # By question: (task, row) of the first train row of each task that asks it.
    taught: dict[bytes, list[tuple[int, int]]] = {}
    for number, task in enumerate(tasks):
        for i, row in enumerate(task.train.rows):
            places = taught.setdefault(_key(question_text(row)), [])
            if not places or places[-1][0] != number:
                places.append((number, i))
    lines = []
    for number, task in enumerate(tasks):
        for name in ("dev", "test"):
            split = getattr(task, name)
            if split is None:
                continue
            leaks: dict[int, list[tuple[int, int]]] = {}  # by task: (row, train row)
            for i, row in enumerate(split.rows):
                for other, train_row in taught.get(_key(question_text(row)), ()):
                    leaks.setdefault(other, []).append((i, train_row))
            for other in sorted(leaks, key=lambda other: (other != number, other)):
                lines.append(_leak(task, name, train_task=tasks[other], pairs=leaks[other]))
    return lines


def _leak(task: Task, name: str, train_task: Task, pairs: list[tuple[int, int]]) -> str:
    split: Split = getattr(task, name)
    row, train_row = pairs[0]
    of_task = "" if train_task is task else f" of task {train_task.name}"
    return (
        f"{task.name}: {len(pairs)} of {len(split.rows)} {name} rows have the same prompt as a "
        f"train row{of_task} (first: {split.place(row)}, as {train_task.train.place(train_row)}), "
        "so their score measures memorisation; remove them from one of the two"
    )


def tuned_on(task: Task) -> list[str]:
    """Return a warning about test rows with the prompt of a dev row, which choose the weights."""
    if task.dev is None or task.test is None:
        return []
    dev_rows = {_key(question_text(row)): i for i, row in reversed([*enumerate(task.dev.rows)])}
    keys = [_key(question_text(row)) for row in task.test.rows]
    shared = [i for i, key in enumerate(keys) if key in dev_rows]
    if not shared:
        return []
    row, dev_row = shared[0], dev_rows[keys[shared[0]]]
    return [
        f"{task.name}: {len(shared)} of {len(keys)} test rows have the same prompt as a dev row "
        f"(first: {task.test.place(row)}, as {task.dev.place(dev_row)}), so their score is too "
        "good: dev rows decide when training stops and which weights are kept; use other rows for "
        "one of the two"
    ]


def truncated(
    split: Split, where: str, rows: Iterable[int], max_length: int, room: int | None = None
) -> list[str]:
    """Return a warning about `rows`, the indices of rows whose prompt `max_length` cuts.

    It may also be cut to `room`, the positions of the base that the answer leaves to the prompt.
    """
    cut = list(rows)
    if not cut:
        return []
    limit, remedy = f"max_length: {max_length}", "raise max_length"
    if room is not None and room < max_length:
        limit = f"the {room} positions that the answer leaves to them"
        remedy = "lower max_completion_length"
    return [
        f"{where}: {len(cut)} of {len(split.rows)} rows are longer than {limit} "
        f"(first: {split.place(cut[0])}), so the middle of their prompt is cut out; {remedy}, or "
        "shorten them"
    ]


def asked_text(row: Row) -> str:
    """Return what a row asks, for reading: its text or prompt, or the last message to be answered.

    All white space is normalised.
    """
    if "messages" not in row and not isinstance(row.get("prompt"), list):
        return question_text(row)
    messages = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
    asked = [m["content"] for m in messages[:-1] if m["role"] == "user" and m.get("content")]
    return _plain(str(asked[-1])) if asked else question_text(row)


def question_text(row: Row) -> str:
    """Return the text before the answer, for comparing rows; for a row of text, the whole text.

    All white space is normalised.
    """
    if "text" in row:
        return _plain(row["text"])
    if isinstance(row.get("prompt"), str):
        return _plain(row["prompt"])
    messages = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
    before = messages[:-1]
    if len(before) == 1 and set(before[0]) <= {"role", "content"} and "tools" not in row:
        return _plain(before[0]["content"])
    compared = [{key: message[key] for key in COMPARED if key in message} for message in before]
    return _plain(json.dumps([compared, row.get("tools")], sort_keys=True, ensure_ascii=False))


def _outside(row: Row, options: Sequence[str]) -> bool:
    return "text" not in row and answer(row).strip() not in options


def _plain(text: str) -> str:
    return " ".join(text.split())


def _key(*texts: str) -> bytes:
    """Return a short hash of the texts, so that the rows need not be held in memory twice."""
    joined = chain.from_iterable((text.encode(), b"\0") for text in texts)
    return blake2b(b"".join(joined), digest_size=16).digest()
