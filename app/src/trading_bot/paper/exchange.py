"""Matching by price and time, with a market maker around a mark that walks. Pure: time and seed come in.

Everything that happens is a line of the journal; the exchange is the fold of its journal, so that one that
was killed comes back as it was. What one step did (an order taken, a tick) is written at once, before anybody
is told of it: a step is in the journal whole or not at all.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trading_bot.domain.instrument import Instrument
from trading_bot.domain.money import SCALE

Line = dict[str, Any]
FINAL = frozenset({"filled", "cancelled", "rejected", "expired"})
DAY_MS = 86_400_000


@dataclass
class VenueOrder:
    id: str
    symbol: str
    side: str
    type: str
    quantity: int
    price: int | None
    stop_price: int | None
    time_in_force: str
    at: int
    state: str = "open"
    filled: int = 0
    triggered: bool = False
    rests_as: int = 0
    reason: str = ""
    fills: list[Line] = field(default_factory=list)

    @property
    def left(self) -> int:
        return self.quantity - self.filled

    @property
    def waits(self) -> bool:
        """A stop whose price was not yet seen."""
        return self.stop_price is not None and not self.triggered

    def body(self) -> list[Any]:
        """What was sent, as the journal keeps it."""
        return [
            self.symbol,
            self.side,
            self.type,
            self.quantity,
            self.price,
            self.stop_price,
            self.time_in_force,
        ]

    def same(self, other: VenueOrder) -> bool:
        return self.body() == other.body()


@dataclass
class Market:
    """One instrument: what rests, best first, and the market maker's quotes, refilled by each tick."""

    instrument: Instrument
    mark: int
    bids: list[tuple[int, int, str]] = field(default_factory=list)
    asks: list[tuple[int, int, str]] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    bid_size: int = 0
    ask_size: int = 0


class Exchange:
    def __init__(
        self,
        instruments: dict[Instrument, int],
        write: Callable[[list[Line]], None],
        *,
        seed: int,
        spread: int = 2,
        depth: int = SCALE // 20,
        maker_fee: int = SCALE // 5000,
        taker_fee: int = SCALE // 2500,
    ) -> None:
        """``instruments`` to the price at which each begins. ``spread`` in ticks to each side of the mark,
        ``depth`` the market maker's quantity per side and tick, fees per unit of value, scaled."""
        self.markets = {i.symbol: Market(i, price) for i, price in instruments.items()}
        self.orders: dict[str, VenueOrder] = {}
        self.lines: list[Line] = []
        self._day_orders: dict[str, None] = {}
        self._unwritten: list[Line] = []
        self._write = write
        self._dice = random.Random(seed)  # noqa: S311  # a repeatable market, not a secret
        self._spread = spread
        self._depth = depth
        self._fees = {True: maker_fee, False: taker_fee}
        for market in self.markets.values():
            market.bid_size = market.ask_size = depth

    # The journal

    def _note(self, kind: str, id: str, now: int, **more: Any) -> Line:
        line = {"seq": len(self.lines) + 1, "kind": kind, "id": id, "at": now, **more}
        self._apply(line)
        self._unwritten.append(line)
        return line

    def _commit(self) -> None:
        if self._unwritten:
            lines, self._unwritten = self._unwritten, []
            self._write(lines)

    def replay(self, line: Line) -> None:
        """Apply a line that was written before. The market goes on from its last trade."""
        if line["seq"] != len(self.lines) + 1:
            raise ValueError(f"line {line['seq']} of the journal comes after line {len(self.lines)}")
        self._apply(line)
        if line["kind"] == "fill":
            self.markets[self.orders[line["id"]].symbol].mark = line["price"]

    def _apply(self, line: Line) -> None:
        self.lines.append(line)
        kind = line["kind"]
        if kind == "new":
            symbol, side, type_, quantity, price, stop_price, time_in_force = line["order"]
            order = VenueOrder(
                line["id"], symbol, side, type_, quantity, price, stop_price, time_in_force, line["at"]
            )
            self.orders[order.id] = order
            if time_in_force == "DAY":
                self._day_orders[order.id] = None
            return
        order = self.orders[line["id"]]
        if kind == "fill":
            order.filled += line["quantity"]
            order.fills.append(line)
            order.state = "filled" if order.left == 0 else "partially_filled"
        elif kind == "rest":
            self._rest(order, line["seq"])
        elif kind == "trigger":
            order.triggered = True
            market = self.markets[order.symbol]
            if order.id in market.stops:
                market.stops.remove(order.id)
        elif kind == "done":
            order.state = line["state"]
            order.reason = line["reason"]
        if order.state in FINAL:
            self._remove(order)

    def _rest(self, order: VenueOrder, seq: int) -> None:
        market = self.markets[order.symbol]
        if order.waits:
            market.stops.append(order.id)
            return
        order.rests_as = seq
        if order.side == "buy":
            assert order.price is not None
            insort(market.bids, (-order.price, seq, order.id))
        else:
            assert order.price is not None
            insort(market.asks, (order.price, seq, order.id))

    def _remove(self, order: VenueOrder) -> None:
        market = self.markets[order.symbol]
        self._day_orders.pop(order.id, None)
        if order.rests_as:
            assert order.price is not None
            queue, key = (market.bids, -order.price) if order.side == "buy" else (market.asks, order.price)
            del queue[bisect_left(queue, (key, order.rests_as, order.id))]
            order.rests_as = 0
        elif order.waits and order.id in market.stops:
            market.stops.remove(order.id)

    # What clients and the clock do

    def submit(self, order: VenueOrder, now: int) -> VenueOrder | None:
        """The order as it now stands; the same id again changes nothing. None if the id names another.

        The instrument has to be one of ``markets``."""
        known = self.orders.get(order.id)
        if known is not None:
            return known if known.same(order) else None
        self._note("new", order.id, now, order=order.body())
        order = self.orders[order.id]
        if order.stop_price is not None and not self._crossed(order, self.markets[order.symbol].mark):
            self._note("rest", order.id, now)
        else:
            if order.stop_price is not None:
                self._note("trigger", order.id, now)
            self._take(order, now)
        self._commit()
        return order

    def reject(self, order: VenueOrder, now: int, reason: str) -> VenueOrder:
        self._note("new", order.id, now, order=order.body())
        self._note("done", order.id, now, state="rejected", reason=reason)
        self._commit()
        return self.orders[order.id]

    def cancel(self, id: str, now: int) -> VenueOrder | None:
        order = self.orders.get(id)
        if order is not None and order.state not in FINAL:
            self._note("done", id, now, state="cancelled", reason="by request")
            self._commit()
        return order

    def walk(self, symbol: str, now: int) -> int:
        """One step of a random walk; the new mark."""
        market = self.markets[symbol]
        step = max(1, market.mark // market.instrument.tick // 10_000)
        mark = market.mark + self._dice.randint(-step, step) * market.instrument.tick
        mark = max(mark, market.instrument.tick * (self._spread + 1))
        self.tick(symbol, mark, now)
        return mark

    def tick(self, symbol: str, mark: int, now: int) -> None:
        """A new mark: quotes are refilled, stops triggered, what now crosses is matched."""
        market = self.markets[symbol]
        market.mark = mark
        market.bid_size = market.ask_size = self._depth
        for id in [id for id in market.stops if self._crossed(self.orders[id], market.mark)]:
            self._note("trigger", id, now)
            self._take(self.orders[id], now)
        self._quote(market, now)
        self._commit()

    def expire(self, now: int) -> None:
        """End what was good for a day that is over."""
        for id in list(self._day_orders):
            if self.orders[id].at // DAY_MS != now // DAY_MS:
                self._note("done", id, now, state="expired", reason="end of the day")
        self._commit()

    # Matching

    @staticmethod
    def _crossed(order: VenueOrder, mark: int) -> bool:
        assert order.stop_price is not None
        return mark >= order.stop_price if order.side == "buy" else mark <= order.stop_price

    def _maker_price(self, market: Market, side: str) -> int:
        """What the market maker asks of a buyer, or bids to a seller."""
        offset = self._spread * market.instrument.tick
        return market.mark + offset if side == "buy" else max(market.mark - offset, market.instrument.tick)

    def _best(self, order: VenueOrder, market: Market) -> tuple[int, int, str] | None:
        """Price, quantity and order id ('' for the market maker) of the best counterpart in reach."""
        buying = order.side == "buy"
        queue = market.asks if buying else market.bids
        size = market.ask_size if buying else market.bid_size
        best = None
        if queue:
            resting = self.orders[queue[0][2]]
            assert resting.price is not None
            best = (resting.price, resting.left, resting.id)
        quote = self._maker_price(market, order.side)
        if size and (best is None or (quote < best[0] if buying else quote > best[0])):
            best = (quote, size, "")
        if best is None or (
            order.price is not None and (best[0] > order.price if buying else best[0] < order.price)
        ):
            return None
        return best

    def _fillable(self, order: VenueOrder, market: Market) -> bool:
        buying = order.side == "buy"
        quote = self._maker_price(market, order.side)

        def reached(price: int) -> bool:
            return order.price is None or (price <= order.price if buying else price >= order.price)

        total = (market.ask_size if buying else market.bid_size) if reached(quote) else 0
        for price, _, id in market.asks if buying else market.bids:
            if not reached(abs(price)):
                break
            total += self.orders[id].left
        return total >= order.quantity

    def _take(self, order: VenueOrder, now: int) -> None:
        market = self.markets[order.symbol]
        if order.time_in_force == "FOK" and not self._fillable(order, market):
            self._note("done", order.id, now, state="expired", reason="not fillable as a whole")
            return
        while order.left and (best := self._best(order, market)) is not None:
            price, size, counterpart = best
            self._trade(order, market, price, min(order.left, size), counterpart, now)
        if not order.left:
            return
        if order.price is None or order.time_in_force in ("IOC", "FOK"):
            self._note("done", order.id, now, state="expired", reason="nothing more to be had")
        else:
            self._note("rest", order.id, now)

    def _trade(
        self, order: VenueOrder, market: Market, price: int, quantity: int, counterpart: str, now: int
    ) -> None:
        if counterpart:
            self._fill(self.orders[counterpart], price, quantity, now, maker=True)
        elif order.side == "buy":
            market.ask_size -= quantity
        else:
            market.bid_size -= quantity
        self._fill(order, price, quantity, now, maker=False)

    def _fill(self, order: VenueOrder, price: int, quantity: int, now: int, *, maker: bool) -> None:
        fee = quantity * price // SCALE * self._fees[maker] // SCALE
        trade = f"t{len(self.lines) + 1}"
        self._note("fill", order.id, now, trade=trade, quantity=quantity, price=price, fee=fee)

    def _quote(self, market: Market, now: int) -> None:
        """The market maker's new quotes meet what rests."""
        for queue, side in ((market.bids, "buy"), (market.asks, "sell")):
            while queue:
                order = self.orders[queue[0][2]]
                quote = self._maker_price(market, side)
                size = market.ask_size if side == "buy" else market.bid_size
                assert order.price is not None
                if not size or (quote > order.price if side == "buy" else quote < order.price):
                    break
                quantity = min(order.left, size)
                if side == "buy":
                    market.ask_size -= quantity
                else:
                    market.bid_size -= quantity
                self._fill(order, order.price, quantity, now, maker=True)
