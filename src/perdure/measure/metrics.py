"""Metrics of one answer: each maps (prediction, reference) to a score in [0, 1]."""

import functools
import json
import re
import string
from collections import Counter
from collections.abc import Iterable
from typing import Any

from perdure.errors import PerdureError, nearest
from perdure.measure.custom_metric import Metric, custom_metric, is_custom


def exact_match(prediction: str, reference: str) -> float:
    """Return 1 if the texts are equal, ignoring case and differences in white space, else 0."""
    return float(_plain(prediction) == _plain(reference))


def rouge_l(prediction: str, reference: str) -> float:
    """Return ROUGE-L, the F-measure of the longest common subsequence of words.

    Lin 2004, https://aclanthology.org/W04-1013, computed by the package `rouge_score` with Porter
    stemming, as in SuperNI's own evaluation. Its words are runs of a-z and 0-9, so a text in
    another script has no words and scores 0.
    """
    return float(_rouge_scorer().score(reference, prediction)["rougeL"].fmeasure)


def token_f1(prediction: str, reference: str) -> float:
    """Return SQuAD's F1 of the two bags of words, ignoring case, punctuation and articles.

    F1 = 2 * shared / (words in prediction + words in reference). If one of the texts has no words,
    the score is 1 if the other has none either, else 0. Rajpurkar et al. 2016,
    https://huggingface.co/papers/1606.05250
    """
    predicted, expected = _squad_words(prediction), _squad_words(reference)
    if not predicted or not expected:
        return float(predicted == expected)
    shared = (Counter(predicted) & Counter(expected)).total()
    return 2 * shared / (len(predicted) + len(expected))


def json_valid(prediction: str, reference: str) -> float:
    """Return 1 if the answer is one JSON value (RFC 8259) and nothing else, else 0.

    The reference does not matter.
    """
    return float(_json(prediction) is not _NO_JSON)


def json_fields(prediction: str, reference: str) -> float:
    """Return the share of fields on which two JSON documents agree; 0 if one of them is not JSON.

    A field is a value that is not an object or a list, with the keys and positions that lead to it;
    an empty object or list is a field as well. Its path and its value must be equal, and numbers
    are equal by value (1 and 1.0). The share is over all fields of either document, so a missing
    and an additional field both count as wrong.
    """
    predicted, expected = (_json(text) for text in (prediction, reference))
    if predicted is _NO_JSON or expected is _NO_JSON:
        return 0.0
    ours, right = dict(_fields(predicted)), dict(_fields(expected))
    agreeing = sum(path in ours and ours[path] == value for path, value in right.items())
    return agreeing / len({*ours, *right})  # never 0: a document has at least one field


# A choice among options is either right or wrong, so accuracy is another name for exact match.
METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "accuracy": exact_match,
    "rouge_l": rouge_l,
    "token_f1": token_f1,
    "json_valid": json_valid,
    "json_fields": json_fields,
}

# With these metrics, an answer that is not the beginning of a reference scores 0 whatever follows.
EXACT = frozenset({"exact_match", "accuracy"})


def best(metric: Metric, prediction: str, references: Iterable[str]) -> float:
    """Return the best score over all references, as in SQuAD and Super-NaturalInstructions."""
    return max(metric(prediction, reference) for reference in references)


def find_metric(name: str) -> Metric:
    """Return the metric with this name, or the function `MODULE:FUNCTION`.

    Raises:
        PerdureError: there is none; the line suggests the nearest name.
    """
    if is_custom(name):
        return custom_metric(name)
    if name not in METRICS:
        raise PerdureError(
            f"unknown metric {name!r}; {nearest(name, [*METRICS, 'MODULE:FUNCTION'])}"
        )
    return METRICS[name]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


_NO_JSON = object()


def _json(text: str) -> Any:
    """Parse JSON, or return _NO_JSON if the text is none. NaN and Infinity are not JSON."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return _NO_JSON


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _fields(value: Any, path: tuple[str | int, ...] = ()) -> Iterable[tuple[Any, Any]]:
    """Return each field as (path, value); a boolean is not equal to a number."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [field for key, inner in items for field in _fields(inner, (*path, key))]
    return [(path, (isinstance(value, bool), value))]


def _squad_words(text: str) -> list[str]:
    bare = "".join(char for char in text.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


@functools.cache
def _rouge_scorer():
    # Imported on first use, because loading its dependency nltk takes longer than most scoring.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
