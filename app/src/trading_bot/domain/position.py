"""Positions as the fold of fills, and what an account is worth. Scaled integers throughout.

``settle.lua`` and ``admit.lua`` compute the same inside Redis; property tests hold them together.
Divisions round towards zero on magnitudes, so a short mirrors a long.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from trading_bot.domain.money import SCALE
from trading_bot.domain.order import Side


class Position(msgspec.Struct, frozen=True):
    """``quantity`` and ``cost`` are signed alike: what is held, and what was paid for it."""

    quantity: int = 0
    cost: int = 0
    realised: int = 0
    fees: int = 0

    @property
    def average_price(self) -> int:
        return abs(self.cost) * SCALE // abs(self.quantity) if self.quantity else 0


def times(a: int, b: int) -> int:
    """``a * b`` for scaled non-negative integers, rounded down."""
    return a * b // SCALE


def signed_value(quantity: int, price: int) -> int:
    """The value of a signed quantity, rounded towards zero."""
    value = times(abs(quantity), price)
    return value if quantity >= 0 else -value


def apply_fill(position: Position, side: Side, quantity: int, price: int, fee: int) -> Position:
    """The position after a fill. Closing takes out cost in proportion, the rest opens anew."""
    sign = 1 if side is Side.BUY else -1
    held, cost = abs(position.quantity), abs(position.cost)
    value = times(quantity, price)
    fees = position.fees + fee
    if position.quantity * sign >= 0:
        return Position(
            position.quantity + sign * quantity, position.cost + sign * value, position.realised, fees
        )
    closed = min(quantity, held)
    cost_out = cost if closed == held else cost * closed // held
    value_out = value if closed == quantity else times(closed, price)
    realised = position.realised - sign * (value_out - cost_out)
    if quantity > held:
        return Position(sign * (quantity - held), sign * (value - value_out), realised, fees)
    return Position(-sign * (held - closed), -sign * (cost - cost_out), realised, fees)


class Flight(msgspec.Struct, frozen=True):
    """What is in flight in one instrument: reserved quantity and notional of each side."""

    buy_quantity: int = 0
    buy_notional: int = 0
    sell_quantity: int = 0
    sell_notional: int = 0


class Account(msgspec.Struct, frozen=True):
    """An account as the ledger holds it. ``cash`` is what was paid in plus realised less fees."""

    cash: int
    positions: Mapping[str, Position]
    flights: Mapping[str, Flight]
    open_orders: int
    peak: int
    latched: bool
    day: int = 0
    """Days since 1970, of which ``peak`` is the peak."""
    funded: bool = True

    def unrealised(self, marks: Mapping[str, int]) -> int | None:
        """None if a held instrument has no mark."""
        total = 0
        for symbol, position in self.positions.items():
            if position.quantity:
                if symbol not in marks:
                    return None
                total += signed_value(position.quantity, marks[symbol]) - position.cost
        return total

    def equity(self, marks: Mapping[str, int]) -> int | None:
        unrealised = self.unrealised(marks)
        return None if unrealised is None else self.cash + unrealised

    def exposure(self, marks: Mapping[str, int]) -> int | None:
        """Gross exposure if whatever is in flight fills on the worse side of each instrument."""
        total = 0
        for symbol in self.positions.keys() | self.flights.keys():
            quantity = self.positions.get(symbol, Position()).quantity
            flight = self.flights.get(symbol, Flight())
            if quantity and symbol not in marks:
                return None
            value = signed_value(quantity, marks[symbol]) if quantity else 0
            total += max(abs(value + flight.buy_notional), abs(value - flight.sell_notional))
        return total


def account_from(fields: Mapping[str, str]) -> Account:
    """An account from the fields of its hash (see ``admit.lua``); fields of later versions are ignored."""
    symbols = {name.partition(":")[2] for name in fields if ":" in name}

    def number(name: str) -> int:
        return int(fields.get(name, 0))

    positions = {
        s: Position(number(f"q:{s}"), number(f"c:{s}"), number(f"r:{s}"), number(f"f:{s}")) for s in symbols
    }
    flights = {
        s: Flight(number(f"bq:{s}"), number(f"bn:{s}"), number(f"sq:{s}"), number(f"sn:{s}")) for s in symbols
    }
    return Account(
        number("cash"),
        {s: p for s, p in positions.items() if p != Position()},
        {s: f for s, f in flights.items() if f != Flight()},
        number("open"),
        number("peak"),
        fields.get("latched") == "1",
        number("day"),
        "cash" in fields,
    )
