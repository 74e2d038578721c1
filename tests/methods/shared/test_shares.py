"""A share of n things is counted from its decimal digits."""

from fractions import Fraction

import pytest

from perdure.methods.shared.shares import floor_share


@pytest.mark.parametrize(
    ("share", "n", "expected"),
    [
        (0.58, 50, 29),
        (0.29, 100, 29),
        (0.5, 7, 3),
        (0.0, 9, 0),
        (1.0, 9, 9),
        (Fraction(1, 3), 6, 2),
    ],
)
def test_the_floor_of_a_share(share, n, expected):
    assert floor_share(share, n) == expected
