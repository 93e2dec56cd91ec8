"""Amounts as scaled integers: a price, a quantity or an amount of money is ``int(value * 10**8)``.

Redis's Lua computes in doubles, which hold integers exactly up to 2**53. Amounts above ``MAX`` are
therefore refused at the edge, before any arithmetic.
"""

from __future__ import annotations

import re
from decimal import Decimal

DECIMALS = 8
SCALE: int = 10**DECIMALS
MAX = 9 * 10**15
"""The largest amount that is accepted: 90,000,000 units, safely below 2**53."""

_NUMBER = re.compile(r"([0-9]{1,10})(?:\.([0-9]{1,8}))?")


def parse(text: str) -> int | None:
    """The scaled integer that ``text`` writes, or None if it is not a plain decimal in range.

    No sign, no exponent, no more than 8 decimals: what cannot be held exactly is refused.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    whole, fraction = match.groups()
    value = int(whole) * SCALE + (int(fraction.ljust(DECIMALS, "0")) if fraction else 0)
    return value if value <= MAX else None


def show(value: int) -> str:
    """The shortest plain decimal for a scaled integer: ``show(150000000) == "1.5"``."""
    sign = "-" if value < 0 else ""
    whole, fraction = divmod(abs(value), SCALE)
    if fraction == 0:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{fraction:08d}".rstrip("0")


def scale(value: Decimal) -> int:
    """``value`` as a scaled integer, rounded towards zero (limits may only get tighter by rounding)."""
    return int(value * SCALE)
