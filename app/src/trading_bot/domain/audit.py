"""The ledger recomputed from its audit, and each acceptance checked once more.

The audit tells in one order all that happened to an account: what was accepted, what was filled, what ended.
From it an account is computed here a second time, by other code than the scripts that keep it; the two have
to agree in every digit. The same second account says whether an order should have been accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec

from trading_bot.domain.lifecycle import FINAL, State
from trading_bot.domain.limits import Limits
from trading_bot.domain.money import SCALE
from trading_bot.domain.order import Order, Side, order_from_fingerprint
from trading_bot.domain.position import (
    Account,
    Flight,
    Position,
    account_from,
    apply_fill,
    signed_value,
    times,
)

_FLIGHT = (
    ("bq", "buy_quantity"),
    ("bn", "buy_notional"),
    ("sq", "sell_quantity"),
    ("sn", "sell_notional"),
)

NOTHING = "0-0"
"""Before the first line."""

Expect = Callable[[str, object, object], bool]

_ENDS = frozenset(f"order.{state.value}" for state in FINAL)


class Finding(msgspec.Struct, frozen=True):
    """``field`` of an account or of one of its orders: what the ledger holds and what was computed."""

    field: str
    ledger: str
    computed: str


class Passed(msgspec.Struct, frozen=True):
    """An acceptance that a limit in force should have prevented; scaled amounts, ``version`` accepted it."""

    order: str
    rule: str
    limit: str
    value: str
    version: str
    slot: str


class Working(msgspec.Struct, gc=False):
    """An order that is not done. ``reference`` is None where an older version did not tell the price.

    There may be very many; without gc a collection, for which all orders wait, does not look at each.
    """

    symbol: str
    side: Side
    quantity: int
    reference: int | None
    filled: int = 0

    @property
    def left(self) -> int:
        return max(0, self.quantity - self.filled)

    @property
    def reserved(self) -> int:
        return times(self.left, self.reference or 0)


class OrderFields(msgspec.Struct, frozen=True):
    """An order as the ledger holds it."""

    state: str
    left: int
    reserved: int
    reference: int
    filled: int
    in_dispatch: bool


class Told(msgspec.Struct):
    """An account as the audit tells it up to the line ``at``.

    ``orders`` are not done, ``ended`` are done and not compared yet, ``touched`` names the orders to compare.
    """

    at: str = NOTHING
    accepted: int = 0
    positions: dict[str, Position] = {}
    flights: dict[str, Flight] = {}
    orders: dict[str, Working] = {}
    ended: dict[str, Working] = {}
    touched: set[str] = set()
    unpriced: int = 0
    paid: int | None = None

    def read(self, line: Mapping[str, str], limits: Mapping[str, Limits], trusted: bool) -> list[Passed]:
        """Take the next line; the limits that an acceptance passes. ``trusted``: the account as it is told
        did not differ from the ledger's when last compared, so an exposure can be computed from it."""
        event, id = line["e"], line.get("order", "")
        if event == "order.accepted":
            return self._accept(line, limits.get(line.get("limits", "")), trusted)
        if event == "order.fill":
            self._fill(line)
        elif event == "order.released":
            working = self._working(id)
            if working is not None:
                fresh = order_from_fingerprint("", id, line["fp"]).quantity
                self._change(working, quantity=fresh)
        elif event in _ENDS:
            working = self.orders.pop(id, None)
            if working is not None:
                self._fly(working, -1)
                self.put(id, working, done=True)
        return []

    def _accept(self, line: Mapping[str, str], limits: Limits | None, trusted: bool) -> list[Passed]:
        order = order_from_fingerprint(line["account"], line["order"], line["fp"])
        marks = {
            symbol: int(price)
            for symbol, _, price in (word.partition("=") for word in line.get("marks", "").split(",") if word)
        }
        reference = order.price or order.stop_price or marks.get(order.symbol)
        found: list[Passed] = []
        if limits is not None and reference is not None:
            replaces = "|replaces=" in line["fp"]
            for rule, limit, value in self._passes(
                order, reference, limits, marks, int(line["cash"]), replaces, trusted
            ):
                found.append(
                    Passed(order.client_order_id, rule, str(limit), str(value), line["version"], line["slot"])
                )
        self.accepted += 1
        self.put(order.client_order_id, Working(order.symbol, order.side, order.quantity, reference))
        return found

    def put(self, id: str, working: Working, *, done: bool = False) -> None:
        """Take an order, to be compared next."""
        self.touched.add(id)
        if done:
            self.ended[id] = working
        else:
            self.orders[id] = working
            self._fly(working, 1)

    def _passes(
        self,
        order: Order,
        reference: int,
        limits: Limits,
        marks: Mapping[str, int],
        cash: int,
        replaces: bool,
        trusted: bool,
    ) -> Iterator[tuple[str, int, int]]:
        """Rule, limit and value of each limit that accepting ``order`` passes.

        Prices are those that the decision was made with, limits those that were in force. An order in the
        place of another is decided as if that had ended, which only the ledger knows in that moment: it is
        held to what concerns it alone.
        """
        symbol, quantity = order.symbol, order.quantity
        notional = times(quantity, reference)
        if notional > limits.max_order_notional:
            yield "max_order_notional", limits.max_order_notional, notional
        mark = marks.get(symbol)
        if limits.price_collar and order.price and mark:
            away = abs(order.price - mark)
            if away > times(mark, limits.price_collar):
                yield "price_collar", times(mark, limits.price_collar), away
        if replaces or not trusted:
            return
        if len(self.orders) + 1 > limits.max_open_orders:
            yield "max_open_orders", limits.max_open_orders, len(self.orders) + 1
        flight = self.flights.get(symbol, Flight())
        held = self.positions.get(symbol, Position()).quantity
        closable = held - flight.sell_quantity if order.side is Side.SELL else -held - flight.buy_quantity
        if quantity <= closable:
            return
        if order.reduce_only:
            yield "reduce_only", max(0, closable), quantity
        if self.unpriced:
            return
        yield from self._exposes(order, notional, limits, marks, cash)

    def _exposes(
        self, order: Order, notional: int, limits: Limits, marks: Mapping[str, int], cash: int
    ) -> Iterator[tuple[str, int, int]]:
        if any(p.quantity and symbol not in marks for symbol, p in self.positions.items()):
            # Without the price nothing can be said of the rest; and it was not to be accepted without one.
            yield "mark_missing", 0, 0
            return
        flight = self.flights.get(order.symbol, Flight())
        buying = order.side is Side.BUY
        with_it = Flight(
            flight.buy_quantity,
            flight.buy_notional + (notional if buying else 0),
            flight.sell_quantity,
            flight.sell_notional + (0 if buying else notional),
        )
        quantity = self.positions.get(order.symbol, Position()).quantity
        value = signed_value(quantity, marks[order.symbol]) if quantity else 0
        size = value + with_it.buy_notional if buying else with_it.sell_notional - value
        if size > limits.max_position_size:
            yield "max_position_size", limits.max_position_size, size
        account = Account(cash, self.positions, {**self.flights, order.symbol: with_it}, 0, 0, False)
        equity, gross = account.equity(marks), account.exposure(marks)
        assert equity is not None
        assert gross is not None
        if gross > times(max(equity, 0), limits.max_leverage):
            yield "max_leverage", limits.max_leverage, gross
        needed = _up(_up(gross, limits.margin_rate), limits.min_margin_level)
        if equity < needed:
            yield "min_margin_level", needed, equity

    def _fill(self, line: Mapping[str, str]) -> None:
        symbol, side, quantity = line["symbol"], Side(line["side"]), int(line["quantity"])
        self.positions[symbol] = apply_fill(
            self.positions.get(symbol, Position()), side, quantity, int(line["price"]), int(line["fee"])
        )
        id = line["order"]
        working = self._working(id)
        if working is not None:
            self._change(working, filled=working.filled + quantity)
        elif id in self.ended:
            self.ended[id].filled += quantity

    def _working(self, id: str) -> Working | None:
        working = self.orders.get(id)
        if working is not None:
            self.touched.add(id)
        return working

    def _change(self, working: Working, *, quantity: int | None = None, filled: int | None = None) -> None:
        self._fly(working, -1)
        working.quantity = working.quantity if quantity is None else quantity
        working.filled = working.filled if filled is None else filled
        self._fly(working, 1)

    def _fly(self, working: Working, sign: int) -> None:
        """Put an order's rest in flight, or take it out."""
        self.unpriced += sign if working.reference is None else 0
        was = self.flights.get(working.symbol, Flight())
        quantity, notional = sign * working.left, sign * working.reserved
        if working.side is Side.BUY:
            now = Flight(
                was.buy_quantity + quantity, was.buy_notional + notional, was.sell_quantity, was.sell_notional
            )
        else:
            now = Flight(
                was.buy_quantity, was.buy_notional, was.sell_quantity + quantity, was.sell_notional + notional
            )
        self.flights[working.symbol] = now

    def compare(self, fields: Mapping[str, str], orders: Mapping[str, OrderFields]) -> list[Finding]:
        """Where the account that the ledger holds, and these of its orders, differ from what the audit tells.

        Orders that are equal need no further look; one that differs stays touched.
        """
        found: list[Finding] = []

        def expect(field: str, ledger: object, computed: object) -> bool:
            if ledger != computed:
                found.append(Finding(field, str(ledger), str(computed)))
            return ledger == computed

        for id, order in orders.items():
            if self._compare_order(id, order, expect):
                self.touched.discard(id)
                self.ended.pop(id, None)
        held = account_from(fields)
        for symbol in sorted(held.positions.keys() | self.positions.keys()):
            ledger, computed = held.positions.get(symbol, Position()), self.positions.get(symbol, Position())
            for letter, name in (("q", "quantity"), ("c", "cost"), ("r", "realised"), ("f", "fees")):
                expect(f"{letter}:{symbol}", getattr(ledger, name), getattr(computed, name))
        for symbol in sorted(held.flights.keys() | self.flights.keys()):
            flying, told = held.flights.get(symbol, Flight()), self.flights.get(symbol, Flight())
            for letters, name in _FLIGHT:
                if not (self.unpriced and letters[1] == "n"):
                    expect(f"{letters}:{symbol}", getattr(flying, name), getattr(told, name))
        expect("accepted", int(fields.get("accepted", 0)), self.accepted)
        expect("open", held.open_orders, len(self.orders))
        if "cash" in fields:
            earned = sum(p.realised - p.fees for p in self.positions.values())
            if self.paid is None:
                self.paid = held.cash - earned
            expect("cash", held.cash, self.paid + earned)
        return found

    def _compare_order(self, id: str, order: OrderFields, expect: Expect) -> bool:
        working = self.orders.get(id)
        if working is not None:
            if working.reference is None:
                self._fly(working, -1)
                working.reference = order.reference
                self._fly(working, 1)
            return all(
                [
                    expect(f"{id} done", order.state in FINAL, False),
                    expect(f"{id} filled", order.filled, working.filled),
                    expect(f"{id} left", order.left, working.left),
                    expect(f"{id} reserved", order.reserved, working.reserved),
                    expect(f"{id} in dispatch", order.in_dispatch, True),
                ]
            )
        ended = self.ended[id]
        return all(
            [
                expect(f"{id} done", order.state in FINAL, True),
                expect(f"{id} filled", order.filled, ended.filled),
                order.state != State.FILLED
                or order.filled >= ended.quantity
                or expect(f"{id} filled whole", order.filled, ended.quantity),
                expect(f"{id} left", order.left, 0),
                expect(f"{id} reserved", order.reserved, 0),
                expect(f"{id} in dispatch", order.in_dispatch, False),
            ]
        )


def place(id: str) -> tuple[int, int]:
    """The id of a stream's entry as it is ordered."""
    ms, _, within = id.partition("-")
    return int(ms or 0), int(within or 0)


def _up(a: int, b: int) -> int:
    """``a * b`` for scaled non-negative integers, rounded up."""
    return -(-a * b // SCALE)


def limits_from(text: str) -> Limits | None:
    """As ``admit.lua`` writes them; None where a later version wrote others."""
    words = text.split("|")
    if len(words) != len(Limits.__struct_fields__):
        return None
    return Limits(*(int(word) for word in words))
