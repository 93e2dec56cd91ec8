"""Keeps Redis from filling up: what has to wait is bounded, what has to be kept is kept for its time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from trading_bot.errors import TradingError
from trading_bot.ports import Audit, Log, Outbox

LOOK_SECONDS = 0.25
TRIM_SECONDS = 5.0


class Backlog:
    """``ports.Probe``: why no new order is taken while ``most`` events or more wait to be published.

    Events of what was decided before are never refused, so the outbox may grow past ``most`` by what is
    admitted between two looks, and by the executions and cancels of orders that are not done.
    """

    def __init__(self, outbox: Outbox, most: int) -> None:
        self._outbox = outbox
        self._most = most
        self.pending = 0
        self.oldest_seconds = 0.0

    async def look(self) -> None:
        """Raises TradingError where the ledger is away."""
        self.pending, self.oldest_seconds = await self._outbox.pending()

    def reason(self) -> str | None:
        if self.pending < self._most:
            return None
        return f"{self.pending} events wait for NATS, redis.max_outbox_events is {self._most}"

    async def run(self) -> None:
        while True:
            # Where the ledger is away, that refuses orders by itself.
            with contextlib.suppress(TradingError):
                await self.look()
            await asyncio.sleep(LOOK_SECONDS)


class Retention:
    """Cuts the audit at its age, for ever; with an age of 0 it never does. Whoever does it, the result is the
    same."""

    def __init__(self, audit: Audit, keep_seconds: float, log: Log, member: Callable[[], bool]) -> None:
        self._audit = audit
        self._keep_seconds = keep_seconds
        self._log = log
        self._member = member

    async def run(self) -> None:
        while True:
            if self._keep_seconds and self._member():
                await self._trim()
            await asyncio.sleep(TRIM_SECONDS)

    async def _trim(self) -> None:
        try:
            cut = await self._audit.trim(self._keep_seconds)
        except TradingError as error:
            self._log("audit", outcome="not trimmed", reason=str(error))
            return
        if cut:
            self._log("audit", outcome="trimmed", lines=cut, keep_seconds=self._keep_seconds)
