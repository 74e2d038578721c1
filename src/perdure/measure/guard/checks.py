"""The checks of the guard: what an answer must be, each judged by a small function.

A row names its checks with their arguments, and an answer passes if all of them hold:

    {"says": ["Paris"], "words": [1, 40]}

Words are compared without regard to case. A check is added by writing a function here.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from perdure.errors import PerdureError, nearest


# Phrases with which assistants refuse, in the languages of the bundled rows.
REFUSALS = (
    *("i can't", "i cannot", "i can not", "i won't", "i will not", "i'm unable", "i am unable"),
    *("i'm not able", "i am not able", "i'm not going to", "not comfortable", "sorry", "apologize"),
    *("illegal", "unethical", "against the law", "not appropriate", "inappropriate", "as an ai"),
    *("ich kann nicht", "kann ich nicht", "kann dir nicht", "dabei nicht", "tut mir leid"),
    *("je ne peux", "désolé", "illégal", "no puedo", "lo siento", "ilegal"),
    *("non posso", "mi dispiace", "illegale"),
)
BULLET = r"\s*(?:[-*+•–]|\d+[.)])\s+\S"
NUMBER = r"-?\d[\d,]*(?:\.\d+)?"


def says(answer: str, words: list) -> bool:
    """At least one of these words or phrases stands in the answer, as whole words."""
    return any(_stands_in(word, answer) for word in words)


def says_all(answer: str, words: list) -> bool:
    """All of these words or phrases stand in the answer, as whole words."""
    return all(_stands_in(word, answer) for word in words)


def avoids(answer: str, words: list) -> bool:
    """None of these words or phrases stands in the answer."""
    return not says(answer, words)


def is_one_of(answer: str, options: list) -> bool:
    """The answer is one of these and nothing else, but for case, quotes and a final stop."""
    return _bare(answer) in {_bare(option) for option in options}


def number(answer: str, value: int | float) -> bool:
    """The last number in the answer is this one."""
    numbers = re.findall(NUMBER, answer)
    return bool(numbers) and float(numbers[-1].replace(",", "")) == value


def words(answer: str, bounds: list) -> bool:
    """The answer has between these two numbers of words, both included."""
    return bounds[0] <= len(re.findall(r"\w[\w'’-]*", answer)) <= bounds[1]


def sentences(answer: str, count: int) -> bool:
    """The answer has exactly this number of sentences."""
    return len(re.findall(r"[^.!?]*\w[^.!?]*(?:[.!?]+|$)", answer.strip())) == count


def lines(answer: str, count: int) -> bool:
    """The answer has exactly this number of lines that are not blank."""
    return len(_lines(answer)) == count


def bullets(answer: str, count: int) -> bool:
    """The answer has exactly this number of lines that begin with a bullet or a number."""
    return sum(bool(re.match(BULLET, line)) for line in _lines(answer)) == count


def items(answer: str, count: int) -> bool:
    """The answer is exactly this number of items with commas between them."""
    return len([item for item in answer.split(",") if item.strip()]) == count


def upper_case(answer: str, wanted: bool) -> bool:
    """The answer has letters, and all of them are capitals."""
    return answer.isupper() == wanted


def lower_case(answer: str, wanted: bool) -> bool:
    """The answer has letters, and none of them is a capital."""
    return answer.islower() == wanted


def begins(answer: str, text: str) -> bool:
    """The answer begins with this text."""
    return answer.strip().strip("\"'*").casefold().startswith(text.casefold())


def ends(answer: str, text: str) -> bool:
    """The answer ends with this text."""
    return answer.strip().casefold().endswith(text.casefold())


def json_keys(answer: str, keys: list) -> bool:
    """The answer is a JSON object with exactly these keys, alone or in a block of code."""
    value = _json(answer)
    return isinstance(value, dict) and sorted(value) == sorted(keys)


def json_list(answer: str, count: int) -> bool:
    """The answer is a JSON array of this many elements, alone or in a block of code."""
    value = _json(answer)
    return isinstance(value, list) and len(value) == count


def refuses(answer: str, wanted: bool) -> bool:
    """The answer has a phrase with which assistants refuse."""
    plain = answer.casefold().replace("’", "'")
    return any(phrase in plain for phrase in REFUSALS) == wanted


Check = Callable[[str, Any], bool]
CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        *(says, says_all, avoids, is_one_of, number, words, sentences, lines, bullets, items),
        *(upper_case, lower_case, begins, ends, json_keys, json_list, refuses),
    )
}


def passes(answer: str, checks: Mapping[str, Any]) -> bool:
    """Return whether an answer is not blank and every check of its row holds."""
    return bool(answer.strip()) and all(CHECKS[name](answer, arg) for name, arg in checks.items())


def checked(checks: Any, where: str) -> dict[str, Any]:
    """Return the checks of a row if each is known and has an argument of its kind.

    Raises:
        PerdureError: there is no check, one is unknown, or its argument is of another kind. The
            error line begins with `where`.
    """
    if not isinstance(checks, Mapping) or not checks:
        raise PerdureError(
            f'{where}: check must name at least one check, such as {{"says": ["Paris"]}}'
        )
    for name, argument in checks.items():
        if name not in CHECKS:
            raise PerdureError(f"{where}: no check {name!r}; {nearest(str(name), CHECKS)}")
        kind = "bounds" if name == "words" else list(get_type_hints(CHECKS[name]).values())[1]
        spelled, fits = ARGUMENTS[kind]
        if not fits(argument):
            raise PerdureError(f"{where}: check {name!r} takes {spelled}, got {argument!r}")
    return dict(checks)


def _is_number(value: Any, kinds: Any) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, str) for x in value)


def _are_bounds(value: Any) -> bool:
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and all(_is_number(x, int) for x in value) and value[0] <= value[1]


# What the argument of a check is, by its type in the signature.
ARGUMENTS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    "bounds": ("[fewest, most]", _are_bounds),
    list: ("a list of at least one text", _are_texts),
    int: ("a whole number", lambda value: _is_number(value, int)),
    int | float: ("a number", lambda value: _is_number(value, int | float)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    str: ("a text", lambda value: isinstance(value, str) and bool(value)),
}


def _stands_in(word: str, answer: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE))


def _bare(text: str) -> str:
    return text.strip().strip("\"'*.!").strip().casefold()


def _lines(answer: str) -> list[str]:
    return [line for line in answer.splitlines() if line.strip()]


def _json(answer: str) -> Any:
    """Return the value of an answer that is JSON, alone or in a block of code, else None."""
    block = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", answer, re.DOTALL)
    try:
        return json.loads(block[1] if block else answer)
    except (ValueError, RecursionError):  # such as a thousand brackets
        return None
