"""What the ledger can answer to an order."""

from __future__ import annotations

from enum import IntEnum

import msgspec


class Code(IntEnum):
    """The first element of what ``admit.lua`` returns. Never renumber: versions run side by side."""

    ACCEPTED = 1
    REFUSED = 2
    CONFLICT = 3
    THROTTLED = 4
    HALTED = 5


class Refusal(msgspec.Struct, frozen=True):
    """The check that refused, its limit and the value found, as the answer shows them."""

    rule: str
    limit: str
    value: str


class Admission(msgspec.Struct, frozen=True):
    """The decision on an order.

    ``again`` is true where it had been made before: then everything else is as it was the first time,
    ``version`` and ``slot`` of the instance that made it included. ``at`` is in milliseconds since 1970 by
    the ledger's clock.
    """

    code: Code
    again: bool
    at: int
    version: str
    slot: str
    refusal: Refusal | None = None
