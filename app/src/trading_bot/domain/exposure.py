"""How much an account has at stake, and how near that is to each of its limits. For showing and warning:
orders are decided by the ledger, in integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from trading_bot.domain.limits import Limits
from trading_bot.domain.money import SCALE
from trading_bot.domain.position import Account, Flight, Position, signed_value


class Standing(NamedTuple):
    """An account at the last prices. Money in quote currency, the rest ratios. ``leverage`` and
    ``margin_level`` are None where they would be a ratio to nothing."""

    position_size: float
    exposure: float
    equity: float
    leverage: float | None
    margin_level: float | None
    unrealised_pnl: float
    drawdown: float
    open_orders: int


class Use(NamedTuple):
    """How much of a limit is used: 1 is all of it, above it is passed."""

    rule: str
    limit: float
    value: float
    fraction: float


def standing(account: Account, marks: Mapping[str, int], margin_rate: int, today: int) -> Standing | None:
    """None where a held instrument has no mark, or the account was never funded. ``today`` counts days since
    1970; the peak of another day is no peak. What is in flight counts as in ``admit.lua``."""
    equity, exposure, unrealised = account.equity(marks), account.exposure(marks), account.unrealised(marks)
    if equity is None or exposure is None or unrealised is None or not account.funded:
        return None
    size = 0
    for symbol in account.positions.keys() | account.flights.keys():
        quantity = account.positions.get(symbol, Position()).quantity
        value = signed_value(quantity, marks[symbol]) if quantity else 0
        flight = account.flights.get(symbol, Flight())
        size = max(size, value + flight.buy_notional, flight.sell_notional - value)
    peak = max(account.peak, equity) if account.day == today else equity
    used = exposure * margin_rate / SCALE
    return Standing(
        size / SCALE,
        exposure / SCALE,
        equity / SCALE,
        exposure / equity if equity > 0 else None,
        equity / used if used > 0 else None,
        unrealised / SCALE,
        (peak - equity) / peak if peak > 0 else 0.0,
        account.open_orders,
    )


def uses(now: Standing, limits: Limits) -> list[Use]:
    """Each limit that the account uses something of, the most used first."""
    found = []

    def note(rule: str, limit: float, value: float, fraction: float) -> None:
        if fraction > 0:
            found.append(Use(rule, limit, value, fraction))

    size, leverage = limits.max_position_size / SCALE, limits.max_leverage / SCALE
    level, drawdown = limits.min_margin_level / SCALE, limits.max_drawdown / SCALE
    note("max_position_size", size, now.position_size, now.position_size / size)
    note("max_open_orders", limits.max_open_orders, now.open_orders, now.open_orders / limits.max_open_orders)
    note("max_drawdown", drawdown, now.drawdown, now.drawdown / drawdown)
    if now.exposure > 0:
        if now.leverage is None:
            note("max_leverage", leverage, float("inf"), float("inf"))
        else:
            note("max_leverage", leverage, now.leverage, now.leverage / leverage)
        if now.margin_level is not None:
            used = level / now.margin_level if now.margin_level > 0 else float("inf")
            note("min_margin_level", level, now.margin_level, used)
    return sorted(found, key=lambda use: -use.fraction)
