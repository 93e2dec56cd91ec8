"""What the ledger can answer to an order."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from enum import IntEnum

import msgspec

from trading_bot.domain import money


class Code(IntEnum):
    """The first element of what ``admit.lua`` and ``replace.lua`` return. Never renumber: versions run side
    by side. The last four are answers to a replacement alone."""

    ACCEPTED = 1
    REFUSED = 2
    CONFLICT = 3
    THROTTLED = 4
    HALTED = 5
    NONE = 6
    DONE = 7
    MOVED = 8
    PENDING = 9


class Facts(msgspec.Struct, frozen=True):
    """What an order was decided from: the ledger as it was just before. Another version decides the same
    order from the same facts, so what it says can be compared, whatever has happened since.

    Travels between versions: never rename a field, and give a new one a default. ``order`` holds the fields
    by which an order under the same id is known (see ``admit.lua``), ``account`` the account's fields in
    pairs, ``control`` whether trading is halted and degraded, ``marks`` and ``instrument`` are as the ledger
    writes them, ``intent`` is the order of the same intent within the window.
    """

    at: str
    order: list[str | None]
    account: list[str] = []
    control: list[str | None] = []
    marks: dict[str, str | None] = {}
    instrument: str | None = None
    intent: str | None = None


class Refusal(msgspec.Struct, frozen=True):
    """The check that refused, its limit and the value found, as the answer shows them."""

    rule: str
    limit: str
    value: str


class Admission(msgspec.Struct, frozen=True):
    """The decision on an order.

    ``again`` is true where it had been made before: then everything else is as it was the first time,
    ``version`` and ``slot`` of the instance that made it included. ``at`` is in milliseconds since 1970 by
    the ledger's clock. ``facts`` are there if they were asked for and something was decided from them; they
    are read when called, since that may wait until the order was answered.
    """

    code: Code
    again: bool
    at: int
    version: str
    slot: str
    refusal: Refusal | None = None
    facts: Callable[[], Facts] | None = None


# How the value and the limit of each check are shown: amounts are stored scaled, ratios as a fraction.
_AMOUNT_RULES = frozenset(
    {
        "max_position_size", "max_order_notional", "reduce_only", "degraded", "drawdown_latched", "tick_size",
        "lot_size", "min_quantity", "max_quantity", "price_collar", "already_filled",
    }
)  # fmt: skip
_RATIO_RULES = frozenset({"max_leverage", "min_margin_level", "max_drawdown"})


def _amount(text: str) -> str:
    return "..".join(money.show(int(x)) if x.lstrip("-").isdigit() else x for x in text.split(".."))


def _ratio(text: str) -> str:
    numerator, _, denominator = text.partition("/")
    if not denominator:
        return money.show(int(text))
    if int(denominator) <= 0:
        return "undefined"
    return f"{Decimal(numerator) / Decimal(denominator):.6f}"


def refusal_from(rule: str, limit: str, value: str) -> Refusal:
    """A refusal as answers show it, from what the ledger stores."""
    if rule in _AMOUNT_RULES:
        return Refusal(rule, _amount(limit), _amount(value))
    if rule in _RATIO_RULES:
        return Refusal(rule, _ratio(limit), _ratio(value))
    return Refusal(rule, limit, value)
