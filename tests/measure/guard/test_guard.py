"""What counts as lost, from answers that are written here, and the guard on tiny models."""

import json

import pytest
from asked import ROWS, TEMPLATE, said, subject

from perdure.errors import PerdureError
from perdure.measure.guard.guard import ask, compare, form, guard, words
from perdure.measure.guard.rows import read_guard_rows


pytestmark = pytest.mark.own


def rows(n: int):
    """Rows that pass with `yes`: two thirds of facts, one third of chat."""
    return read_guard_rows(
        [
            {
                "id": str(i),
                "skill": "facts" if i % 3 else "chat",
                "prompt": f"Is {i} a number?",
                "check": {"says": ["yes"]},
            }
            for i in range(n)
        ]
    )


def judged(before: str, now: str) -> dict:
    """The comparison of answers, `+` for right and `-` for wrong."""
    words = {"+": "yes", "-": "no"}
    answers = (said(*(words[c] for c in text)) for text in (before, now))
    return compare(rows(len(before)), *answers)


def test_flips_are_counted_by_skill_and_listed():
    result = judged("+++--++++", "-+++-++-+")
    assert (result["rows"], result["passed_by_reference"], result["passed"]) == (9, 7, 6)
    assert (result["fell"], result["rose"]) == (2, 1)
    counts = {"rows": 3, "passed_by_reference": 2, "passed": 2, "fell": 1, "rose": 1}
    assert result["skills"]["chat"] == counts
    assert result["skills"]["facts"]["fell"] == 1
    assert [(flip["id"], flip["passes"]) for flip in result["flips"]] == [
        ("0", False),
        ("3", True),
        ("7", False),
    ]
    assert result["flips"][0] == {
        "id": "0",
        "skill": "chat",
        "language": "-",
        "prompt": "Is 0 a number?",
        "before": "yes",
        "now": "no",
        "passes": False,
    }


@pytest.mark.parametrize(("fell", "rose"), [(5, 0), (4, 0), (9, 2), (8, 2), (30, 25), (3, 9)])
def test_p_is_the_exact_one_sided_one_of_the_pairs_that_differ(fell, rose):
    result = judged("+" * fell + "-" * rose + "+-" * 10, "-" * fell + "+" * rose + "+-" * 10)
    binomtest = pytest.importorskip("scipy.stats").binomtest
    expected = binomtest(fell, fell + rose, alternative="greater").pvalue
    assert result["p"] == pytest.approx(expected)
    assert result["net"] == (fell - rose) / (fell + rose + 20)
    assert result["lost"] == (expected < 0.05)


def test_without_a_flip_nothing_is_lost():
    result = judged("++-", "++-")
    assert (result["p"], result["net"], result["lost"], result["flips"]) == (1, 0, False, [])


def test_few_flips_of_many_checks_are_not_lost_however_certain():
    assert judged("+" * 166, "-" * 5 + "+" * 161)["lost"]  # 3.01 of 100
    few = judged("+" * 167, "-" * 5 + "+" * 162)  # 2.99 of 100
    assert few["p"] < 0.05
    assert not few["lost"]


def test_where_the_reference_cannot_do_the_checks_nothing_is_judged():
    unable = judged("+" * 9 + "-" * 91, "-" * 100)
    assert unable["p"] < 0.05
    assert unable["net"] == 0.09
    assert (unable["judged"], unable["lost"]) == (False, False)
    assert judged("+" * 10 + "-" * 90, "-" * 100)["lost"]


def test_the_form_of_answers():
    answers = [*said("a", "a", " a ", "b"), *said("", tokens=0), *said("", "c", tokens=8)]
    measured = form(answers)
    assert measured == {
        "tokens": pytest.approx((4 * 3 + 2 * 8) / 7),
        "empty": pytest.approx(2 / 7),
        "equal": pytest.approx(5 / 7),
    }


def first_line(**changes) -> str:
    """The first line of the verdict on a result with these changes."""
    result = {
        **judged("+" * 12, "-" * 6 + "+" * 6),
        **{"reference": "the base", "kl": 0.25, "same_vocabulary": True},
    }
    return words({**result, **changes})[0]


def test_the_verdict_in_words():
    six = "6 of 12 checks that the base passes now fail (facts 4, chat 2)"
    assert first_line() == f"general ability: {six}, p = 0.016: lost"
    assert first_line(rose=2, lost=False, p=0.144).endswith(
        f"{six}, 2 others now pass, p = 0.14: within noise, but more rows may tell"
    )
    assert first_line(lost=False).endswith("too little to count")
    assert first_line(fell=0).endswith(
        "the base passes 12 of 12 checks, and all of these still pass: nothing lost"
    )
    few = {"lost": False, "passed_by_reference": 4}
    assert first_line(fell=0, **few).endswith(
        "but they are too few to tell a loss from chance; ask more rows"
    )
    assert first_line(fell=4, p=0.0625, **few).endswith(
        ": too few to tell a loss from chance; ask more rows"
    )
    assert first_line(judged=False, passed_by_reference=1).endswith(
        "not judged, because the base itself passes only 1 of 12 checks"
    )


def test_the_verdict_on_kl_and_form():
    result = {
        **judged("++", "++"),
        **{"reference": "the base", "kl": 0.25, "same_vocabulary": True},
    }
    _, kl, form_line = words(result)
    assert kl == "KL from the base: 0.250 nats per token of its answers"
    assert form_line == (
        "answers: 3.0 -> 3.0 tokens on average, 0% -> 0% empty, "
        "100% -> 100% equal to another answer"
    )
    assert words({**result, "kl": None})[1].endswith("not of the same size")
    other_vocabulary = {**result, "kl": None, "same_vocabulary": False}
    assert words(other_vocabulary)[1].endswith("not measured, because the vocabularies differ")


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_a_model_has_lost_nothing_of_itself(kind):
    result = guard(subject(kind, 0, "the base"), subject(kind, 0, "a copy"), ROWS, max_new_tokens=4)
    assert (result["lost"], result["kl"], result["flips"]) == (False, 0, [])
    assert (result["reference"], result["model"]) == ("the base", "a copy")
    assert result["before"] == result["now"]
    assert result["chat_template"] is False
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_other_weights_give_other_answers_and_a_divergence():
    result = guard(subject("causal", 0), subject("causal", 1), ROWS, max_new_tokens=4)
    assert result["kl"] > 0.05
    assert result["rows"] == len(ROWS)


def test_answers_of_the_reference_can_be_given():
    reference, model = subject("causal", 0), subject("causal", 1)
    answers = ask(reference, ROWS, in_template=False, max_new_tokens=4)
    again = guard(reference, model, ROWS, max_new_tokens=4, reference_answers=answers)
    assert again == guard(reference, model, ROWS, max_new_tokens=4)


def test_both_are_asked_in_the_template_if_the_reference_has_one():
    with_template = [subject("causal", seed, template=TEMPLATE) for seed in (0, 1)]
    result = guard(*with_template, ROWS, system="good", max_new_tokens=4)
    assert result["chat_template"] is True
    assert result["system"] == "good"
    tokenizer = with_template[0].base.tokenizer
    answer = ask(with_template[0], ROWS[:1], in_template=True, system="good")[0]
    prompt = tokenizer.decode(answer.prompt)
    assert prompt.startswith("<unk> : good </s>")
    assert prompt.endswith("question the alpha is </s> answer :")
    without = [subject("causal", seed) for seed in (0, 1)]
    plain = ask(without[0], ROWS[:1], in_template=False)[0]
    assert "</s>" not in tokenizer.decode(plain.prompt)


def test_an_answer_ends_at_its_end_token_or_after_the_most_tokens():
    answers = ask(subject("causal", 0), ROWS, in_template=False, max_new_tokens=6)
    for answer in answers:
        assert answer.ended == (answer.ids[-1] == 2)
        assert 2 not in answer.ids[:-1]
        assert answer.ended or len(answer.ids) == 6


def test_an_encoder_is_refused():
    with pytest.raises(PerdureError, match="tiny is an encoder, which cannot generate"):
        guard(subject("causal", 0), subject("encoder", 0), ROWS)
