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
    holdings: dict[str, Holding] = field(default_factory=dict)
    trades: set[str] = field(default_factory=set)
    cash: Decimal | None = None
    peak: Decimal | None = None
    latched: bool = False
    degraded: bool = False

    def reserved(self, symbol: str, side: str) -> tuple[Decimal, Decimal]:
        quantity = notional = Decimal(0)
        for order in self.orders.values():
            if order.state not in FINAL and (order.symbol, order.side) == (symbol, side):
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
        self.orders[id] = ModelOrder(symbol, side, quantity, reference, body, left=quantity)
        return "accepted", ""

    def check(
        self, symbol: str, side: str, quantity: Decimal, price: Decimal | None, reduce_only: bool
    ) -> str:
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
        if sum(order.state not in FINAL for order in self.orders.values()) >= rules.orders:
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
                rise += notional if side == "buy" else 0
                fall -= notional if side == "sell" else 0
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
