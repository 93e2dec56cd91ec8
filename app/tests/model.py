"""The ledger once more, written from its rules in Decimal, to hold the Lua scripts against.

Nothing is shared with the code under test but the table of transitions, which is a rule itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_DOWN, Context, Decimal

from trading_bot.domain.lifecycle import FINAL, TRANSITIONS, State

CONTEXT = Context(prec=60)
UNIT = Decimal("0.00000001")


def down(value: Decimal) -> Decimal:
    """Cut to 8 decimals towards zero."""
    return value.quantize(UNIT, ROUND_DOWN, CONTEXT)


def up(value: Decimal) -> Decimal:
    return value.quantize(UNIT, ROUND_CEILING, CONTEXT)


def mul(*factors: Decimal) -> Decimal:
    product = Decimal(1)
    for factor in factors:
        product = CONTEXT.multiply(product, factor)
    return product


@dataclass
class ModelOrder:
    symbol: str
    side: str
    quantity: Decimal
    reference: Decimal
    body: tuple[object, ...]
    state: State = State.ACCEPTED
    filled: Decimal = Decimal(0)
    left: Decimal = Decimal(0)
    cancel: bool = False
    total: Decimal = Decimal(0)
    before: Decimal = Decimal(0)
    awaits: str = ""


@dataclass
class Holding:
    quantity: Decimal = Decimal(0)
    cost: Decimal = Decimal(0)
    realised: Decimal = Decimal(0)
    fees: Decimal = Decimal(0)


@dataclass
class Rules:
    position: Decimal
    notional: Decimal
    orders: int
    collar: Decimal
    leverage: Decimal
    margin_level: Decimal
    margin_rate: Decimal
    drawdown: Decimal
    equity: Decimal


@dataclass
class Model:
    """One account."""

    rules: Rules
    marks: dict[str, Decimal] = field(default_factory=dict)
    orders: dict[str, ModelOrder] = field(default_factory=dict)
    refused: dict[str, tuple[tuple[object, ...], str]] = field(default_factory=dict)
    without: set[str] = field(default_factory=set)
    """Orders that a check leaves out, while one of them is replaced."""
    holdings: dict[str, Holding] = field(default_factory=dict)
    trades: set[str] = field(default_factory=set)
    cash: Decimal | None = None
    peak: Decimal | None = None
    latched: bool = False
    degraded: bool = False

    def reserved(self, symbol: str, side: str) -> tuple[Decimal, Decimal]:
        quantity = notional = Decimal(0)
        for id, order in self.orders.items():
            alive = order.state not in FINAL and id not in self.without
            if alive and (order.symbol, order.side) == (symbol, side):
                quantity += order.left
                notional += down(mul(order.left, order.reference))
        return quantity, notional

    def held(self, symbol: str) -> Holding:
        return self.holdings.get(symbol, Holding())

    def value(self, symbol: str) -> Decimal:
        quantity = self.held(symbol).quantity
        return down(mul(quantity, self.marks[symbol])) if quantity else Decimal(0)

    def admit(
        self, id: str, symbol: str, side: str, quantity: Decimal, price: Decimal | None, reduce_only: bool
    ) -> tuple[str, str]:
        """accepted, again, conflict or refused; and the rule."""
        body = (symbol, side, quantity, price, reduce_only)
        if id in self.orders:
            return ("again" if self.orders[id].body == body else "conflict"), ""
        if id in self.refused:
            known, rule = self.refused[id]
            return ("refused", rule) if known == body else ("conflict", "")
        rule = self.check(symbol, side, quantity, price, reduce_only)
        if rule:
            self.refused[id] = (body, rule)
            return "refused", rule
        if self.cash is None:
            self.cash = self.rules.equity
        reference = price if price is not None else self.marks[symbol]
        self.orders[id] = ModelOrder(symbol, side, quantity, reference, body, left=quantity, total=quantity)
        return "accepted", ""

    def replace(self, id: str, old_id: str, total: Decimal, price: Decimal | None) -> tuple[str, str]:
        """As ``admit``; or none, done, pending, for what the order ``old_id`` is."""
        body = (old_id, total, price)
        if id in self.orders:
            return ("again" if self.orders[id].body == body else "conflict"), ""
        if id in self.refused:
            known, rule = self.refused[id]
            return ("refused", rule) if known == body else ("conflict", "")
        old = self.orders[old_id]
        if old.state in FINAL:
            return "done", ""
        if old.cancel:
            return "pending", ""
        sent = bool(old.awaits) or old.state is not State.ACCEPTED
        live_id = old.awaits or old_id
        live = self.orders[live_id]
        before = live.before + live.filled
        quantity = total - before
        if quantity <= 0:
            return "refused", "already_filled"
        reference = price if price is not None else live.reference
        worse = Decimal(0)
        if sent and live.state not in FINAL:
            shared = min(live.left, quantity)
            worse = max(worse, down(mul(shared, live.reference)) - down(mul(shared, reference)))
        self.without = {old_id, live_id}
        rule = self.check(old.symbol, old.side, quantity, price, self.reduce_only(old_id), worse)
        self.without = set()
        if rule:
            self.refused[id] = (body, rule)
            return "refused", rule
        new = self.orders[id] = ModelOrder(
            old.symbol, old.side, quantity, price if price is not None else self.marks[old.symbol], body,
            left=quantity, total=total, before=before, awaits=live_id if sent else "",
        )  # fmt: skip
        if old.awaits or not sent:
            old.state = State.CANCELLED
        else:
            old.cancel = True
        assert new.quantity > 0
        return "accepted", ""

    def reduce_only(self, id: str) -> bool:
        """That of the first of the orders that were replaced one by another."""
        body = self.orders[id].body
        return bool(body[-1]) if len(body) == 5 else self.reduce_only(str(body[0]))

    def proceed(self, id: str) -> None:
        """Let an order go whose predecessor is done, for what that one left."""
        order = self.orders[id]
        if order.state in FINAL or not order.awaits or self.orders[order.awaits].state not in FINAL:
            return
        awaited = self.orders[order.awaits]
        order.awaits = ""
        order.before = awaited.before + awaited.filled
        order.quantity = order.left = max(Decimal(0), order.total - order.before)
        if not order.quantity:
            order.state = State.CANCELLED

    def check(
        self,
        symbol: str,
        side: str,
        quantity: Decimal,
        price: Decimal | None,
        reduce_only: bool,
        worse: Decimal = Decimal(0),
    ) -> str:
        """``worse`` is by how much what it replaces may cost more, should that be filled meanwhile."""
        rules = self.rules
        sign = 1 if side == "buy" else -1
        in_flight, _ = self.reserved(symbol, side)
        closable = max(Decimal(0), -sign * self.held(symbol).quantity - in_flight)
        reducing = quantity <= closable
        if not reducing:
            if self.degraded:
                return "degraded"
            if self.latched:
                return "drawdown_latched"
            if reduce_only:
                return "reduce_only"
        mark = self.marks.get(symbol)
        if mark is None and (price is None or rules.collar):
            return "mark_missing"
        collared = rules.collar and price is not None and mark is not None
        if collared and abs(price - mark) > down(mul(mark, rules.collar)):
            return "price_collar"
        reference = price if price is not None else mark
        assert reference is not None
        notional = down(mul(quantity, reference))
        if notional > rules.notional:
            return "max_order_notional"
        if (
            sum(o.state not in FINAL for id, o in self.orders.items() if id not in self.without)
            >= rules.orders
        ):
            return "max_open_orders"
        if reducing:
            return ""
        equity = self.cash if self.cash is not None else rules.equity
        gross = size = Decimal(0)
        for name in {symbol, *self.holdings, *(order.symbol for order in self.orders.values())}:
            if self.held(name).quantity and name not in self.marks:
                return "mark_missing"
            value = self.value(name)
            if self.held(name).quantity:
                equity += value - self.held(name).cost
            rise = value + self.reserved(name, "buy")[1]
            fall = value - self.reserved(name, "sell")[1]
            if name == symbol:
                rise += notional + worse if side == "buy" else 0
                fall -= notional + worse if side == "sell" else 0
                size = rise if side == "buy" else -fall
            gross += max(abs(rise), abs(fall))
        if size > rules.position:
            return "max_position_size"
        if equity <= 0 or gross > mul(equity, rules.leverage):
            return "max_leverage"
        if equity < up(mul(up(mul(gross, rules.margin_rate)), rules.margin_level)):
            return "min_margin_level"
        peak = equity if self.peak is None else max(self.peak, equity)
        if equity < mul(peak, 1 - rules.drawdown):
            self.latched = True
            return "max_drawdown"
        self.peak = peak
        return ""

    def fill(self, id: str, trade: str, quantity: Decimal, price: Decimal, fee: Decimal) -> None:
        if trade in self.trades:
            return
        self.trades.add(trade)
        order = self.orders[id]
        holding = self.holdings.setdefault(order.symbol, Holding())
        sign = 1 if order.side == "buy" else -1
        value = down(mul(quantity, price))
        order.filled += quantity
        holding.fees += fee
        assert self.cash is not None
        self.cash -= fee
        if holding.quantity * sign >= 0:
            holding.quantity += sign * quantity
            holding.cost += sign * value
        else:
            held, paid = abs(holding.quantity), abs(holding.cost)
            closed = min(held, quantity)
            share = down(CONTEXT.divide(mul(paid, closed), held)) if closed < held else paid
            got = down(mul(closed, price)) if closed < quantity else value
            gain = got - share if sign < 0 else share - got
            holding.realised += gain
            self.cash += gain
            if quantity > held:
                holding.quantity = sign * (quantity - held)
                holding.cost = sign * (value - got)
            else:
                holding.quantity += sign * closed
                holding.cost += sign * share
        if order.state not in FINAL:
            order.left = max(Decimal(0), order.quantity - order.filled)

    def conclude(self, id: str, wanted: State | None, filled: Decimal | None) -> str:
        """The state that a report leads to; ``behind`` if the report knows of more fills."""
        order = self.orders[id]
        code = "applied"
        if order.state in FINAL:
            return code
        if order.left == 0:
            wanted = State.FILLED
        elif wanted is State.FILLED or (wanted in FINAL and filled not in (None, order.filled)):
            code, wanted = "behind", None
        if order.filled and wanted in (None, State.OPEN, State.UNKNOWN):
            wanted = State.PARTIALLY_FILLED
        if wanted is not None and wanted in TRANSITIONS[order.state]:
            order.state = wanted
        return code
