"""One answer against one reference: each metric maps (prediction, reference) to [0, 1]."""

import functools
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable

from engram.errors import EngramError, nearest


Metric = Callable[[str, str], float]


def exact_match(prediction: str, reference: str) -> float:
    """1 when both are the same text, ignoring case and any difference in whitespace, else 0."""
    return float(_plain(prediction) == _plain(reference))


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L: the F-measure of the longest common subsequence of words.

    Lin 2004, https://aclanthology.org/W04-1013, as computed by the package `rouge_score` with
    Porter stemming, the setting of SuperNI's own evaluation. Its words are runs of a-z and 0-9:
    text in other scripts has none and scores 0.
    """
    return float(_rouge_scorer().score(reference, prediction)["rougeL"].fmeasure)


def token_f1(prediction: str, reference: str) -> float:
    """SQuAD's F1 of the two bags of words, without case, punctuation and the articles.

    F1 = 2 * shared / (words in prediction + words in reference). When either side has no words,
    1 if neither has, else 0. Rajpurkar et al. 2016, https://huggingface.co/papers/1606.05250
    """
    predicted, expected = _squad_words(prediction), _squad_words(reference)
    if not predicted or not expected:
        return float(predicted == expected)
    shared = (Counter(predicted) & Counter(expected)).total()
    return 2 * shared / (len(predicted) + len(expected))


# Choosing among declared options is right or wrong, so accuracy is exact match by its other name.
METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "accuracy": exact_match,
    "rouge_l": rouge_l,
    "token_f1": token_f1,
}

# Metrics under which an answer that is no beginning of a reference scores 0, whatever follows it.
EXACT = frozenset({"exact_match", "accuracy"})


def best(metric: Metric, prediction: str, references: Iterable[str]) -> float:
    """The best score over all right answers, as SQuAD and Super-NaturalInstructions take it."""
    return max(metric(prediction, reference) for reference in references)


def find_metric(name: str) -> Metric:
    """The metric of that name. Raises EngramError with the nearest name when there is none."""
    if name not in METRICS:
        raise EngramError(f"unknown metric {name!r}; {nearest(name, METRICS)}")
    return METRICS[name]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _squad_words(text: str) -> list[str]:
    bare = "".join(char for char in text.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


@functools.cache
def _rouge_scorer():
    # Imported on first use: it brings nltk, which takes longer to load than most runs' scoring.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
