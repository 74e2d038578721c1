"""Plain data have the shape that a type states, or the line says where they have not."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest

from perdure.errors import PerdureError
from perdure.shapes import Rule, check_shape


pytestmark = pytest.mark.own
Age = Annotated[int, Rule("an age", lambda age: 0 <= age < 150)]


class Friend(TypedDict):
    name: str


class Person(TypedDict):
    name: str
    age: NotRequired[Age | None]
    likes: NotRequired[list[str]]
    friends: NotRequired[dict[str, Friend]]
    kind: NotRequired[Literal["adult", "child"]]
    height: NotRequired[float]
    more: NotRequired[Any]


@pytest.mark.parametrize(
    "value",
    [
        {"name": "Ada"},
        {"name": "Ada", "age": 36, "likes": ["sums"], "kind": "adult", "height": 2},
        {"name": "Ada", "age": None, "friends": {"Mary": {"name": "Mary"}}, "more": [{}, 1]},
    ],
)
def test_a_value_of_the_shape_is_accepted(value):
    check_shape(value, Person, "people.json", closed=True)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ([], "people.json: must be a mapping, got a list of 0"),
        ({}, "people.json: has no key 'name'"),
        ({"name": 5}, "people.json: name must be a text, got 5"),
        ({"name": "A", "age": "5"}, "people.json: age must be an age or null, got '5'"),
        ({"name": "A", "age": 150}, "people.json: age must be an age or null, got 150"),
        ({"name": "A", "age": True}, "people.json: age must be an age or null, got True"),
        ({"name": "A", "likes": ["a", 1]}, "people.json: likes.1 must be a text, got 1"),
        (
            {"name": "A", "friends": {"B": {"name": {}}}},
            "people.json: friends.B.name must be a text, got a mapping of 0",
        ),
        (
            {"name": "A", "kind": "dog"},
            "people.json: kind must be 'adult' or 'child', got dog",
        ),
        ({"name": "A", "height": float("nan")}, "height must be a finite number, got nan"),
        ({"name": "A", "height": 10**400}, "got a number of more than 63 bits"),
        ({"name": "A", "nmae": 1}, "people.json: has a key nmae, which this version does not know"),
        ({"name": "A", "kind": "x" * 100}, f"got {'x' * 57}..."),
    ],
)
def test_another_value_is_refused_with_its_place(value, line):
    with pytest.raises(PerdureError) as caught:
        check_shape(value, Person, "people.json", closed=True)
    assert line in str(caught.value)


def test_a_shape_that_is_open_may_have_other_keys():
    check_shape({"name": "A", "new": 1}, Person, "people.json")


def test_keys_are_checked_too():
    with pytest.raises(PerdureError, match=r"a: b is a key, and must be an id, got b"):
        check_shape({"b": 1}, dict[Annotated[str, Rule("an id", str.isdecimal)], int], "a")
