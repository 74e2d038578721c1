"""How many of n things are a share of them."""

from fractions import Fraction


def floor_share(share: float | Fraction, n: int) -> int:
    """floor(share n), from the decimal digits of the share: 0.58 of 50 is 29.

    The product of floats is 28.999999999999996.
    """
    return int(Fraction(str(share)) * n)
