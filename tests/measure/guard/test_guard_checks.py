"""Each check on right and wrong answers, and what a row may say of checks."""

import pytest

from perdure.errors import PerdureError
from perdure.measure.guard.checks import CHECKS, checked, passes


pytestmark = pytest.mark.own

CODE = '```json\n{"a": 1, "b": 2}\n```'
# check, its argument, answers that pass, answers that fail
JUDGED = [
    ("says", ["Paris", "CO2"], ["It is PARIS.", "co2!"], ["Parisian", "London", ""]),
    ("says", ["7"], ["7 days", "(7)"], ["17", "seven"]),
    ("says_all", ["sun", "rain"], ["Rain and sun."], ["Only sun.", "sunny rain"]),
    ("avoids", ["water"], ["The sea is blue."], ["Salt Water."]),
    ("is_one_of", ["yes", "no"], ["Yes.", '"no"', " YES! "], ["Yes, it is.", "nope"]),
    ("number", 12, ["7 + 5 = 12", "12.", "It is 12.0"], ["12 or 13", "twelve", "120"]),
    ("number", 1001, ["1,001"], ["1 001"]),
    ("number", -2.5, ["-2.5"], ["2.5"]),
    ("words", [2, 3], ["one two", "it's one two"], ["one", "a b c d", "..."]),
    ("sentences", 2, ["One. Two!", "One? Two"], ["One.", "One. Two. Three."]),
    ("lines", 2, ["a\n\nb", "a\nb\n"], ["a", "a\nb\nc"]),
    ("bullets", 2, ["- a\n- b", "1. a\n2) b", "Here:\n* a\n• b"], ["- a", "a\nb", "-a\n-b"]),
    ("items", 3, ["a, b, c", "a,b,c."], ["a, b", "a, b, c, d", "a b c"]),
    ("upper_case", True, ["HELLO 1!"], ["Hello", "123"]),
    ("upper_case", False, ["Hello"], ["HELLO"]),
    ("lower_case", True, ["hello 1!"], ["Hello", "123"]),
    ("begins", "Yes", ["yes, it is", '"Yes"'], ["Well, yes"]),
    ("ends", "done.", ["All is DONE. "], ["done. Bye"]),
    (
        "json_keys",
        ["b", "a"],
        ['{"a": 1, "b": 2}', CODE],
        ['{"a": 1}', "{a: 1}", "[]", "x " + CODE],
    ),
    (
        "json_list",
        2,
        ["[1, 2]", '```\n["a", "b"]\n```'],
        ["[1]", '{"a": 1, "b": 2}', "1, 2", "[" * 100_000],
    ),
    (
        "refuses",
        True,
        ["I’m sorry, but I can’t help.", "Lo siento."],
        ["First, take a wire.", "ham"],
    ),
    ("refuses", False, ["Of course."], ["I cannot do that."]),
]


@pytest.mark.parametrize(("name", "argument", "right", "wrong"), JUDGED)
def test_a_check_tells_right_from_wrong(name, argument, right, wrong):
    assert checked({name: argument}, "here") == {name: argument}
    assert [answer for answer in right if not CHECKS[name](answer, argument)] == []
    assert [answer for answer in wrong if CHECKS[name](answer, argument)] == []


def test_every_check_is_judged_here_and_says_in_one_line_what_it_asks():
    assert {name for name, *_ in JUDGED} == set(CHECKS)
    assert all(check.__doc__ and "\n" not in check.__doc__ for check in CHECKS.values())


def test_an_answer_passes_if_all_checks_hold():
    checks = {"says": ["sun"], "words": [1, 3]}
    assert passes("The sun.", checks)
    assert not passes("The moon.", checks)
    assert not passes("The sun is a star.", checks)


def test_a_blank_answer_never_passes():
    assert not passes(" \n", {"avoids": ["water"]})
    assert not passes("", {"refuses": False})


@pytest.mark.parametrize(
    ("checks", "words"),
    [
        (None, "at least one check"),
        ({}, "at least one check"),
        (["says"], "at least one check"),
        ({"say": ["a"]}, "did you mean 'says'"),
        ({"says": "a"}, "a list of at least one text, got 'a'"),
        ({"says": []}, "a list of at least one text"),
        ({"says": [1]}, "a list of at least one text"),
        ({"words": [3, 1]}, "[fewest, most]"),
        ({"words": 3}, "[fewest, most]"),
        ({"lines": 2.0}, "a whole number"),
        ({"lines": True}, "a whole number"),
        ({"number": "2"}, "a number, got '2'"),
        ({"refuses": 1}, "true or false"),
        ({"begins": ""}, "a text"),
    ],
)
def test_a_wrong_check_is_refused(checks, words):
    with pytest.raises(PerdureError, match=r"^here: ") as refused:
        checked(checks, "here")
    assert words in str(refused.value)
