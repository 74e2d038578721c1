"""What rows of a task are probably not meant so, told before anything is learned, a line each.

`check_task` refuses what cannot be right; the others return the lines of their warnings. A line
says how many rows it is about, where the first of them stands, and what to do. Each row is looked
at once.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import chain

from engram.data.rows import Row, answer, references
from engram.data.task import Split, Task, answers_are_closed
from engram.errors import EngramError, nearest


LONGEST_NAME = 150  # bytes; a stage's folder is named after its task
MEANT = ("role", "content", "tool_calls", "name")  # the keys of a message that say something


def check_task(task: Task) -> None:
    """Raise EngramError for an empty name, an empty or double option, an answer that is none."""
    check_name(task.name)
    if task.options is None:
        return
    options = [option.strip() for option in task.options]
    for option, times in Counter(options).items():
        if not option:
            raise EngramError(f"task {task.name!r}: an option is empty; write its text")
        if times > 1:
            raise EngramError(f"task {task.name!r}: option {option!r} is declared twice")
    for split in filter(None, (task.train, task.dev, task.test)):
        outside = [i for i, row in enumerate(split.rows) if _outside(row, options)]
        if outside:
            said = answer(split.rows[outside[0]]).strip()
            raise EngramError(
                f"{split.place(outside[0])}: the answer {said!r} is none of task {task.name!r}'s "
                f"options ({len(outside)} of {len(split.rows)} rows have such an answer); "
                f"{nearest(said, options)}"
            )


def check_name(name: str) -> None:
    """Raise EngramError for a name under which nobody would find the task again."""
    if not name.strip():
        raise EngramError("a task's name is empty; give it one, such as reviews")
    if name != name.strip() or not name.isprintable():
        raise EngramError(
            f"task {name!r}: white space around a name, and characters that cannot be printed, are "
            f"no part of it; write {''.join(filter(str.isprintable, name)).strip()!r}"
        )
    if len(name.encode()) > LONGEST_NAME:
        raise EngramError(f"task {name[:30]!r}...: the name is too long; give a shorter one")


def warnings(tasks: Sequence[Task]) -> list[str]:
    """All that is probably a mistake in the rows of a stream's tasks."""
    lines = []
    for task in tasks:
        for name in ("train", "dev", "test"):
            lines += duplicates(task, name)
        lines += contradictions(task)
        lines += unlearned(task)
        lines += mixed(task)
    return lines + leaked(tasks)


def duplicates(task: Task, name: str) -> list[str]:
    """Rows that stand more than once in the split of that name."""
    split: Split | None = getattr(task, name)
    if split is None:
        return []
    first: dict[bytes, int] = {}
    again = []
    for i, row in enumerate(split.rows):
        before = first.setdefault(_key(asked(row), answer(row).strip()), i)
        if before != i:
            again.append((i, before))
    if not again:
        return []
    at, before = again[0]
    return [
        f"{task.name}: {len(again)} of {len(split.rows)} {name} rows repeat an earlier one (first: "
        f"{split.place(at)}, as row {split.number(before)}); drop them, unless they are to count "
        "more than once"
    ]


def contradictions(task: Task) -> list[str]:
    """Prompts of train with different answers, none of which is named as a reference of the row."""
    first: dict[bytes, tuple[int, set[str]]] = {}
    against: dict[bytes, tuple[int, int]] = {}
    for i, row in enumerate(task.train.rows):
        if "text" in row:
            continue
        key, right = _key(asked(row)), {text.strip() for text in references(row)}
        before, answers = first.setdefault(key, (i, right))
        if not answers & right:
            against.setdefault(key, (i, before))
    if not against:
        return []
    at, before = next(iter(against.values()))
    have = "prompt of train has" if len(against) == 1 else "prompts of train have"
    return [
        f"{task.name}: {len(against)} {have} different answers (first: {task.train.place(at)}, and "
        f"row {task.train.number(before)}); mend them, or give an answer that is right as well as "
        "a reference"
    ]


def unlearned(task: Task) -> list[str]:
    """Answers of a closed task that only dev or test has, so that nothing teaches them."""
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
            meant = f" ({hint.rstrip('?')})" if hint.startswith("did you mean") else ""
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            count = sum(map(len, missing.values()))
            lines.append(
                f"{task.name}: {count} of {len(split.rows)} {name} rows have an answer that no "
                f"train row has, so it cannot be learned: {label!r}{meant}{others} (first: "
                f"{split.place(missing[label][0])}); mend it or add train rows"
            )
    return lines


def mixed(task: Task) -> list[str]:
    """Rows of messages beside rows of plain text, of which only the first have the chat's form."""
    splits = [split for split in (task.train, task.dev, task.test) if split is not None]
    forms = [(_is_chat(row), split, i) for split in splits for i, row in enumerate(split.rows)]
    other = next((one for one in forms if one[0] != forms[0][0]), None)
    if other is None:
        return []
    is_chat, split, i = other
    these, those = ("messages", "plain text") if is_chat else ("plain text", "messages")
    return [
        f"{task.name}: some rows are {those} and others {these} (first: {split.place(i)}), and "
        "only messages go through the chat template; write them all in one form"
    ]


def leaked(tasks: Sequence[Task]) -> list[str]:
    """Test and dev rows that ask what a train row asks, of the same task or of another one."""
    taught: dict[bytes, list[tuple[int, int]]] = {}  # what is asked: the first row of each task
    for number, task in enumerate(tasks):
        for i, row in enumerate(task.train.rows):
            places = taught.setdefault(_key(asked(row)), [])
            if not places or places[-1][0] != number:
                places.append((number, i))
    lines = []
    for number, task in enumerate(tasks):
        for name in ("dev", "test"):
            split = getattr(task, name)
            if split is None:
                continue
            found: dict[int, list[tuple[int, int]]] = {}
            for i, row in enumerate(split.rows):
                for other, at in taught.get(_key(asked(row)), ()):
                    found.setdefault(other, []).append((i, at))
            for other in sorted(found, key=lambda other: (other != number, other)):
                lines.append(_leak(tasks[other], task, name, found[other], other == number))
    return lines


def _leak(train: Task, task: Task, name: str, pairs: list[tuple[int, int]], own: bool) -> str:
    split: Split = getattr(task, name)
    first, at = pairs[0]
    of = "" if own else f" of task {train.name}"
    return (
        f"{task.name}: {len(pairs)} of {len(split.rows)} {name} rows have the same prompt as a "
        f"train row{of} (first: {split.place(first)}, as {train.train.place(at)}), so their score "
        "measures memorisation; remove them from one of the two"
    )


def truncated(split: Split, where: str, rows: Iterable[int], max_length: int) -> list[str]:
    """Rows, by index, whose prompt loses its middle to `max_length`."""
    cut = list(rows)
    if not cut:
        return []
    return [
        f"{where}: {len(cut)} of {len(split.rows)} rows are longer than max_length: {max_length} "
        f"(first: {split.place(cut[0])}), so the middle of their prompt is cut out; raise "
        "max_length, or shorten them"
    ]


def asked(row: Row) -> str:
    """What stands before the answer, without regard to white space; a text is asked whole."""
    if "text" in row:
        return _plain(row["text"])
    if isinstance(row.get("prompt"), str):
        return _plain(row["prompt"])
    said = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
    before = said[:-1]
    if len(before) == 1 and set(before[0]) <= {"role", "content"} and "tools" not in row:
        return _plain(before[0]["content"])
    meant = [{key: message[key] for key in MEANT if key in message} for message in before]
    return _plain(json.dumps([meant, row.get("tools")], sort_keys=True, ensure_ascii=False))


def _outside(row: Row, options: Sequence[str]) -> bool:
    return "text" not in row and answer(row).strip() not in options


def _is_chat(row: Row) -> bool:
    return "messages" in row or isinstance(row.get("prompt"), list)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _key(*texts: str) -> bytes:
    """A short stand-in for texts, so that the rows need not be held twice."""
    joined = chain.from_iterable((text.encode(), b"\0") for text in texts)
    return blake2b(b"".join(joined), digest_size=16).digest()
