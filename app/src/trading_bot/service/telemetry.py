"""What an instance measured, published every collect_interval and kept for retention_period."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from trading_bot.errors import TradingError
from trading_bot.ports import Feed

SCHEMA = 1
"""Rises when a field of a line changes its meaning or goes; new fields may come at any time."""


class Telemetry:
    """``snapshot()`` gives totals since the start; a line holds what changed since the line before."""

    def __init__(
        self,
        feed: Feed,
        snapshot: Callable[[], dict[str, float]],
        who: dict[str, str],
        monitoring: Callable[[], tuple[float, float, str]],
        on: Callable[[], bool],
        risk: Callable[[], dict[str, Any]],
    ) -> None:
        """``monitoring`` gives interval and retention in seconds, and the channel; ``risk`` the
        latest sweep."""
        self._feed = feed
        self._snapshot = snapshot
        self._who = who
        self._monitoring = monitoring
        self._on = on
        self._risk = risk

    async def run(self) -> None:
        before, at = self._snapshot(), time.monotonic()
        while True:
            interval, retention, channel = self._monitoring()
            await asyncio.sleep(interval)
            now, now_at = self._snapshot(), time.monotonic()
            if self._on():
                line = {
                    "schema": SCHEMA, **self._who, "at": int(time.time() * 1000),
                    **rates(before, now, now_at - at), "risk": self._risk() or None,
                }  # fmt: skip
                try:
                    await self._feed.publish(channel, line, retention)
                except TradingError:
                    # The next line tells of this span as well.
                    continue
            before, at = now, now_at


def rates(before: dict[str, float], now: dict[str, float], seconds: float) -> dict[str, Any]:
    """Order rate, shares of successes, errors and refusals, mean response time, and the state of the process.

    Shares and the mean are null where no order came.
    """
    change = {name: now[name] - before[name] for name in now}
    orders = change["orders"]

    def share(name: str) -> float | None:
        return round(change[name] / orders, 6) if orders else None

    return {
        "order_rate": round(orders / seconds, 3),
        "success_rate": share("accepted"),
        "error_rate": share("errors"),
        "reject_rate": share("refused"),
        "mean_response_ms": round(change["seconds"] / orders * 1000, 3) if orders else None,
        "cpu": round(change["cpu"] / seconds, 4),
        "memory_bytes": int(now["memory"]),
    }
