"""Metrics of one answer: each maps (prediction, reference) to a score in [0, 1]."""

import functools
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable

from perdure.errors import PerdureError, nearest


Metric = Callable[[str, str], float]


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


# A choice among options is either right or wrong, so accuracy is another name for exact match.
METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "accuracy": exact_match,
    "rouge_l": rouge_l,
    "token_f1": token_f1,
}

# With these metrics, an answer that is not the beginning of a reference scores 0 whatever follows.
EXACT = frozenset({"exact_match", "accuracy"})


def best(metric: Metric, prediction: str, references: Iterable[str]) -> float:
    """Return the best score over all references, as in SQuAD and Super-NaturalInstructions."""
    return max(metric(prediction, reference) for reference in references)


def find_metric(name: str) -> Metric:
    """Return the metric with this name.

    Raises:
        PerdureError: there is none; the line suggests the nearest name.
    """
    if name not in METRICS:
        raise PerdureError(f"unknown metric {name!r}; {nearest(name, METRICS)}")
    return METRICS[name]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _squad_words(text: str) -> list[str]:
    bare = "".join(char for char in text.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


@functools.cache
def _rouge_scorer():
    # Imported on first use, because loading its dependency nltk takes longer than most scoring.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
