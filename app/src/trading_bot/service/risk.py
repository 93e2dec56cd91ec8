"""What the accounts have at stake, looked over by one instance and shown by all."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trading_bot.domain.exposure import Standing, Use, standing, uses
from trading_bot.domain.limits import Limits
from trading_bot.domain.position import Account
from trading_bot.errors import TradingError
from trading_bot.ports import Accounts, Event
from trading_bot.service.alerts import Alerts

SCHEMA = 1
CHUNK = 25
"""Accounts that are read and computed in one go, well below a millisecond's worth each."""
PAUSE_SECONDS = 0.01
DIRTY_SECONDS = 0.2
MOST_DIRTY = 100


@dataclass(frozen=True)
class RiskSettings:
    interval: float
    warn_at: float
    series: int


class RiskWatch:
    """One sweep over all accounts each interval, and a look at once at an account that traded."""

    def __init__(
        self,
        accounts: Accounts,
        limits: Callable[[], Limits],
        alerts: Alerts,
        settings: Callable[[], RiskSettings],
        version: str,
    ) -> None:
        self._accounts = accounts
        self._limits = limits
        self._alerts = alerts
        self._settings = settings
        self._version = version
        self._dirty: dict[str, None] = {}
        self.summary: dict[str, Any] = {}
        """Of the latest sweep, whichever instance made it; empty before there was one."""

    def heard(self, events: Sequence[Event]) -> None:
        """Accounts that traded are looked at soon."""
        for event in events:
            if event.fields["e"] in ("order.accepted", "order.fill"):
                self._dirty[event.fields["account"]] = None

    async def follow(self) -> None:
        """Look at accounts that traded, the first that did first."""
        while True:
            await asyncio.sleep(DIRTY_SECONDS)
            names = list(self._dirty)[:MOST_DIRTY]
            try:
                await self._accounts.remember(names)
                marks = await self._accounts.marks() if names else {}
                for first in range(0, len(names), CHUNK):
                    for name, account in await self._accounts.read(names[first : first + CHUNK]):
                        self._dirty.pop(name, None)
                        self._look(name, account, marks)
            except TradingError:
                # They stay on the list.
                continue

    async def sweep(self) -> None:
        while True:
            interval = self._settings().interval
            try:
                if await self._accounts.lead(2 * interval + 30):
                    await self._accounts.note(await self._look_over(), 3 * interval + 60)
                self.summary = await self._accounts.noted()
            except TradingError:
                # Better no numbers than old ones.
                self.summary = {}
            await asyncio.sleep(interval)

    async def _look_over(self) -> dict[str, Any]:
        began = time.monotonic()
        found = Totals(self._settings().series)
        marks = await self._accounts.marks()
        seen: set[str] = set()
        async for names in self._accounts.scan(CHUNK):
            fresh = [name for name in dict.fromkeys(names) if name not in seen]
            seen.update(fresh)
            for name, account in await self._accounts.read(fresh):
                now, used = self._look(name, account, marks)
                found.add(name, account, now, used)
            await asyncio.sleep(PAUSE_SECONDS)
        took = round(time.monotonic() - began, 3)
        head = {"schema": SCHEMA, "version": self._version, "at": int(time.time() * 1000), "took": took}
        return {**head, **found.shown()}

    def _look(
        self, name: str, account: Account, marks: dict[str, int]
    ) -> tuple[Standing | None, Sequence[Use]]:
        limits = self._limits()
        now = standing(account, marks, limits.margin_rate, int(time.time() // 86400))
        if now is None:
            return None, ()
        used = uses(now, limits)
        warn_at = self._settings().warn_at
        for use in used:
            if use.fraction < warn_at:
                break
            passed = use.fraction > 1
            self._alerts.tell(
                "limit_passed" if passed else "limit_approached",
                "critical" if passed else "warning",
                name,
                "Past a limit" if passed else "Close to a limit",
                once=use.rule,
                limit_name=use.rule,
                limit=f"{use.limit:.8g}",
                value=f"{use.value:.8g}",
                fraction=f"{use.fraction:.4f}",
            )
        return now, used


class Totals:
    """Sums and worst values over accounts, and the ``most`` accounts nearest to a limit."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._accounts = self._latched = self._unpriced = 0
        self._exposure = self._unrealised = 0.0
        self._worst: dict[str, float] = {}
        self._nearest: list[tuple[float, str, dict[str, Any]]] = []

    def add(self, name: str, account: Account, now: Standing | None, used: Sequence[Use]) -> None:
        if not account.funded:
            return
        self._accounts += 1
        self._latched += account.latched
        if now is None:
            self._unpriced += 1
            return
        self._exposure += now.exposure
        self._unrealised += now.unrealised_pnl
        for field, worse in (
            ("position_size", max), ("leverage", max), ("margin_level", min), ("unrealised_pnl", min),
            ("drawdown", max),
        ):  # fmt: skip
            value = getattr(now, field)
            if value is not None:
                self._worst[field] = worse(self._worst.get(field, value), value)
        if used and self._most:
            shown = {k: v for k, v in now._asdict().items() if v is not None}
            nearness = min(used[0].fraction, 1e9)
            entry = (nearness, name, {**shown, "nearest_limit": used[0].rule, "used": round(nearness, 6)})
            if len(self._nearest) < self._most:
                heapq.heappush(self._nearest, entry)
            else:
                heapq.heappushpop(self._nearest, entry)

    def shown(self) -> dict[str, Any]:
        return {
            "accounts": self._accounts,
            "latched": self._latched,
            "unpriced": self._unpriced,
            "exposure": self._exposure,
            "unrealised_pnl": self._unrealised,
            "worst": self._worst,
            "nearest": {name: shown for _, name, shown in sorted(self._nearest, reverse=True)},
        }


def gauges(
    read: Callable[[], dict[str, Any]],
) -> dict[str, tuple[str, Callable[[], dict[str, float]]]]:
    """Of the latest sweep: name, help, and values by labels. An account that is no longer near a limit has no
    series any more."""

    def one(name: str) -> Callable[[], dict[str, float]]:
        return lambda: {"": read()[name]} if name in read() else {}

    def worst(name: str) -> Callable[[], dict[str, float]]:
        return lambda: {"": read()["worst"][name]} if name in read().get("worst", {}) else {}

    def nearest(name: str) -> Callable[[], dict[str, float]]:
        return lambda: {
            f'account="{account}"': shown[name]
            for account, shown in read().get("nearest", {}).items()
            if name in shown
        }

    found: dict[str, tuple[str, Callable[[], dict[str, float]]]] = {
        "trading_risk_accounts": ("Accounts that were funded.", one("accounts")),
        "trading_risk_latched_accounts": ("Accounts that are reduce-only after a drawdown.", one("latched")),
        "trading_risk_unpriced_accounts": ("Accounts that hold what has no price.", one("unpriced")),
        "trading_risk_exposure": ("Gross exposure of all accounts.", one("exposure")),
        "trading_risk_unrealised_pnl": ("Unrealised PnL of all accounts.", one("unrealised_pnl")),
        "trading_risk_swept_timestamp_seconds": (
            "When the accounts were last looked over.",
            lambda: {"": read()["at"] / 1000} if "at" in read() else {},
        ),
    }
    words = {
        "position_size": "position in one instrument, with what is in flight",
        "leverage": "gross exposure by equity",
        "margin_level": "equity by used margin",
        "unrealised_pnl": "unrealised PnL",
        "drawdown": "loss from the day's peak, as a fraction of it",
    }
    for field, text in words.items():
        found[f"trading_risk_worst_{field}"] = (f"The worst account's {text}.", worst(field))
    for field, text in {**words, "exposure": "gross exposure", "used": "use of its nearest limit"}.items():
        found[f"trading_account_{field}"] = (
            f"An account's {text}; the nearest to a limit only.",
            nearest(field),
        )
    return found
