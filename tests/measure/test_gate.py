"""The limits of the gate, in exact arithmetic."""

from fractions import Fraction

import pytest

from perdure.config import Gate
from perdure.measure.gate import beyond


pytestmark = pytest.mark.own


def judged(before: float, after: float, passed=100, fell=0, rose=0) -> dict:
    general = {"judged": True, "kl": 0.1, "passed_by_reference": passed, "fell": fell, "rose": rose}
    return {"old": {"colour": {"before": before, "after": after}}, "general": general}


@pytest.mark.parametrize("rows", [10, 16, 30, 48, 100])
@pytest.mark.parametrize("limit", ["0.1", "0.2", "0.05", "0.3"])
def test_a_fall_of_exactly_the_limit_is_not_beyond_it_and_one_row_more_is(rows, limit):
    fall = Fraction(limit) * rows
    gate = Gate(forgetting=float(limit))
    for before in range(rows + 1):
        for after in range(before + 1):
            is_refused = bool(beyond(gate, judged(before / rows, after / rows)))
            assert is_refused == (before - after > fall), (before, after)


@pytest.mark.parametrize("passed", [14, 50, 100])
def test_a_share_of_exactly_the_limit_is_not_beyond_it(passed):
    for percent in range(1, 100):
        gate = Gate(general=percent / 100)
        for fell in range(passed + 1):
            is_refused = bool(beyond(gate, judged(1.0, 1.0, passed=passed, fell=fell)))
            assert is_refused == (Fraction(fell, passed) > Fraction(percent, 100)), (percent, fell)
