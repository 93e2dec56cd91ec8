"""What an order may not exceed, as the ledger takes it."""

from __future__ import annotations

from decimal import Decimal
from typing import Protocol

import msgspec

from trading_bot.domain import money


class RiskSettings(Protocol):
    """The ``risk`` section of the config."""

    @property
    def max_position_size(self) -> Decimal: ...
    @property
    def max_order_notional(self) -> Decimal: ...
    @property
    def max_open_orders(self) -> int: ...
    @property
    def max_orders_per_second(self) -> int: ...
    @property
    def price_collar(self) -> Decimal: ...
    @property
    def max_leverage(self) -> Decimal: ...
    @property
    def min_margin_level(self) -> Decimal: ...
    @property
    def margin_rate(self) -> Decimal: ...
    @property
    def max_drawdown(self) -> Decimal: ...
    @property
    def duplicate_window(self) -> float: ...
    @property
    def initial_equity(self) -> Decimal: ...
    @property
    def max_mark_age(self) -> float: ...


class Limits(msgspec.Struct, frozen=True):
    """Limits in the ledger's units: amounts and ratios scaled by 10**8, durations in ms. 0 switches a
    collar, a throttle, a window or an age off."""

    max_position_size: int
    max_order_notional: int
    max_open_orders: int
    max_orders_per_second: int
    price_collar: int
    max_leverage: int
    min_margin_level: int
    margin_rate: int
    max_drawdown: int
    duplicate_window_ms: int
    initial_equity: int
    max_mark_age_ms: int

    @classmethod
    def of(cls, risk: RiskSettings, fraction: Decimal = Decimal(1)) -> Limits:
        """The limits of ``risk``; each that bounds exposure is held to ``fraction`` of itself."""
        return cls(
            money.scale(risk.max_position_size * fraction),
            money.scale(risk.max_order_notional * fraction),
            max(1, int(risk.max_open_orders * fraction)),
            risk.max_orders_per_second,
            money.scale(risk.price_collar),
            money.scale(risk.max_leverage * fraction),
            money.scale(risk.min_margin_level),
            money.scale(risk.margin_rate),
            money.scale(risk.max_drawdown * fraction),
            round(risk.duplicate_window * 1000),
            money.scale(risk.initial_equity),
            round(risk.max_mark_age * 1000),
        )

    def arguments(self) -> tuple[int, ...]:
        """In the order in which ``admit.lua`` takes them."""
        return msgspec.structs.astuple(self)
