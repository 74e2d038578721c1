"""One answer against one reference: worked examples, and laws for any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import PerdureError
from perdure.measure.metrics import (
    METRICS,
    best,
    exact_match,
    find_metric,
    json_fields,
    json_valid,
    rouge_l,
    token_f1,
)


pytestmark = pytest.mark.own


WORDS = st.lists(st.sampled_from(["cats", "dog", "running", "the", "red", "42"]), min_size=1)
OF_WORDS = [name for name in METRICS if not name.startswith("json")]
SENTENCES = WORDS.map(" ".join)


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("yes", "yes", 1.0),
        ("  Very\n Negative\t", "very negative", 1.0),
        ("verynegative", "very negative", 0.0),
        ("yes.", "yes", 0.0),
        ("", "  ", 1.0),
        ("", "yes", 0.0),
    ],
)
def test_exact_match_ignores_case_and_whitespace_and_nothing_else(prediction, reference, score):
    assert exact_match(prediction, reference) == score


def test_the_best_of_several_right_answers_counts():
    assert best(exact_match, "b", ["a", "b"]) == 1.0
    assert best(exact_match, "c", ["a", "b"]) == 0.0
    assert best(rouge_l, "the red dog", ["cats", "the dog"]) == rouge_l("the red dog", "the dog")


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    # The longest common subsequence is "the cat the mat": 4 of 5 and 4 of 6 words.
    precision, recall = 4 / 5, 4 / 6
    expected = 2 * precision * recall / (precision + recall)
    assert rouge_l("the cat near the mat", "the cat sat on the mat") == pytest.approx(expected)


def test_rouge_l_compares_stems():
    assert rouge_l("he is walking", "he is walked") == 1.0


def test_token_f1_counts_shared_words_without_articles_and_punctuation():
    # Of "cat sat down" and "cat sat sat", two words are shared: F1 = 2 * 2 / (3 + 3).
    assert token_f1("The cat sat down.", "a cat sat, sat") == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("prediction", "reference", "rouge", "f1"),
    [  # as torchmetrics' ROUGEScore (with stemming) and SQuAD give them
        # the longest common subsequence is "the dog saw" of 4 and 5 words; 3 of 3 and 4 are shared
        ("the dog saw it", "yesterday the big dog saw", 2 * 3 / (4 + 5), 2 * 2 / (3 + 4)),
        # "b a" or "a b" of 4 and 4 words; "a" is an article, so 2 of 2 and 2 words are shared
        ("b a b a", "a b a b", 3 / 4, 1.0),
        ("It costs $5.00!", "it costs 500", 2 * 2 / (4 + 3), 1.0),
        ("An apple", "no fruit", 0.0, 0.0),
    ],
)
def test_rouge_l_and_token_f1_worked_by_hand(prediction, reference, rouge, f1):
    assert rouge_l(prediction, reference) == pytest.approx(rouge)
    assert token_f1(prediction, reference) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"a": [1, null, "x"]}', 1.0),
        (" [] \n", 1.0),
        ("true", 1.0),
        ("yes", 0.0),
        ("", 0.0),
        ("{'a': 1}", 0.0),
        ('{"a": NaN}', 0.0),
        ('```json\n{"a": 1}\n```', 0.0),
        ('{"a": 1} and more', 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_json_valid(text, valid):
    assert json_valid(text, "whatever") == valid


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ('{"b": 2.0, "a": 1}', '{"a": 1, "b": 2}', 1.0),
        ('{"a": 1}', '{"a": 1, "b": 2}', 1 / 2),  # b is missing
        ('{"a": 1, "b": 2, "c": 3}', '{"a": 1, "b": 2}', 2 / 3),  # c is too much
        ('{"a": true}', '{"a": 1}', 0.0),
        ('{"a": {"x": "p", "y": ["q", "r"]}}', '{"a": {"x": "p", "y": ["q", "s"]}}', 2 / 3),
        ('{"a": []}', '{"a": {}}', 0.0),
        ("[]", "[]", 1.0),
        ('{"1": 0}', "[0, 0]", 0.0),  # a key is not a position
        ('"x"', '"x"', 1.0),
        ("nothing", '{"a": 1}', 0.0),
        ('{"a": 1}', "nothing", 0.0),
    ],
)
def test_json_fields(prediction, reference, score):
    assert json_fields(prediction, reference) == pytest.approx(score)


@pytest.mark.parametrize(("prediction", "score"), [("", 0.0), ("the", 0.0), ("Paris!", 1.0)])
def test_token_f1_of_an_answer_without_words(prediction, score):
    assert token_f1(prediction, "paris") == score
    assert token_f1("the", "a!") == 1.0


@pytest.mark.parametrize("name", METRICS)
@given(prediction=st.text(), reference=st.text())
def test_every_metric_gives_a_float_from_0_to_1_for_any_text(name, prediction, reference):
    score = METRICS[name](prediction, reference)
    assert isinstance(score, float)
    assert 0 <= score <= 1


@pytest.mark.parametrize("name", OF_WORDS)
@given(prediction=SENTENCES, reference=SENTENCES)
def test_every_metric_is_symmetric_and_1_for_the_reference_itself(name, prediction, reference):
    metric = METRICS[name]
    assert metric(prediction, reference) == pytest.approx(metric(reference, prediction))
    assert metric(reference, reference) == 1.0
    assert metric(f" {reference.upper()}\n", reference) == 1.0


@given(SENTENCES, SENTENCES)
def test_an_exact_match_is_a_full_match_by_every_metric(prediction, reference):
    for name in OF_WORDS:
        metric = METRICS[name]
        assert metric(prediction, reference) >= exact_match(prediction, reference)


@given(WORDS, st.randoms())
def test_word_order_counts_for_rouge_l_and_not_for_token_f1(words, random):
    shuffled = random.sample(words, len(words))
    assert token_f1(" ".join(shuffled), " ".join(words)) == 1.0
    assert rouge_l(" ".join(shuffled), " ".join(words)) <= 1.0


def test_an_unknown_metric_is_an_error_that_names_the_nearest():
    with pytest.raises(PerdureError, match="unknown metric 'rougeL'; did you mean 'rouge_l'"):
        find_metric("rougeL")
    assert find_metric("accuracy")("Yes", "yes") == 1.0
