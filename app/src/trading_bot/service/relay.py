"""From the outbox to the bus: at least once, in order, and once for whoever reads within the window."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from trading_bot.domain.audit import place
from trading_bot.errors import TradingError
from trading_bot.ports import Event, Log, Outbox, Publisher

BATCH = 64
IDLE_SECONDS = 1.0
LINGER_SECONDS = 0.01
"""From one batch that was not full to the next, so that what comes in between shares the round trips."""


class Relay:
    """Publishes while it holds the outbox's lease; otherwise waits for the holder to stop.

    An instance that is no member of the fleet lets go of the lease and does not take it.
    """

    def __init__(
        self,
        outbox: Outbox,
        publisher: Publisher,
        log: Log,
        member: Callable[[], bool] = lambda: True,
        heard: Callable[[Sequence[Event]], None] = lambda events: None,
    ) -> None:
        """``heard`` is given each event once, whether the bus can be reached or not."""
        self._outbox = outbox
        self._publisher = publisher
        self._log = log
        self._member = member
        self._heard = heard
        self._last = ""
        self._holds = False
        self._failing = False
        self.published = 0

    async def run(self) -> None:
        while True:
            try:
                published = await self.step()
                self._failing = False
            except TradingError as error:
                if not self._failing:
                    self._failing = True
                    self._log("relay", outcome="waiting", reason=str(error))
                with contextlib.suppress(TradingError):
                    while self._holds and self._hear(await self._outbox.after(self._last, BATCH)):
                        pass
                await asyncio.sleep(IDLE_SECONDS / 2)
                continue
            if published is None:
                await asyncio.sleep(IDLE_SECONDS)
            elif published < BATCH:
                await asyncio.sleep(LINGER_SECONDS)
                await self._outbox.wait(IDLE_SECONDS)

    async def step(self) -> int | None:
        """Publish one batch; how many events, or None while another instance does it."""
        if not self._member():
            if self._holds:
                self._holds = False
                await self._outbox.release()
            return None
        events = await self._outbox.claim(BATCH)
        self._holds = events is not None
        if events is None:
            return None
        if events:
            self._hear(events)
            stored = await self._publisher.publish(events)
            self.published += len(stored)
            await self._outbox.settle(stored)
        return len(events)

    def _hear(self, events: Sequence[Event]) -> bool:
        fresh = [event for event in events if place(event.id) > place(self._last)]
        if fresh:
            self._last = fresh[-1].id
            self._heard(fresh)
        return bool(fresh)

    async def flush(self) -> bool:
        """Publish until nothing waits, then let go. False if another instance holds the lease."""
        while (published := await self.step()) is not None:
            if published == 0:
                await self._outbox.release()
                return True
        return False
