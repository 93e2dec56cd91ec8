"""From the outbox to the bus: at least once, in order, and once for whoever reads within the window."""

from __future__ import annotations

import asyncio

from trading_bot.errors import TradingError
from trading_bot.ports import Log, Outbox, Publisher

BATCH = 64
IDLE_SECONDS = 1.0


class Relay:
    """Publishes while it holds the outbox's lease; otherwise waits for the holder to stop."""

    def __init__(self, outbox: Outbox, publisher: Publisher, log: Log) -> None:
        self._outbox = outbox
        self._publisher = publisher
        self._log = log
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
                await asyncio.sleep(IDLE_SECONDS / 2)
                continue
            if published is None:
                await asyncio.sleep(IDLE_SECONDS)
            elif published < BATCH:
                await self._outbox.wait(IDLE_SECONDS)

    async def step(self) -> int | None:
        """Publish one batch; how many events, or None while another instance does it."""
        events = await self._outbox.claim(BATCH)
        if events is None:
            return None
        if events:
            stored = await self._publisher.publish(events)
            self.published += len(stored)
            await self._outbox.settle(stored)
        return len(events)

    async def flush(self) -> bool:
        """Publish until nothing waits, then let go. False if another instance holds the lease."""
        while (published := await self.step()) is not None:
            if published == 0:
                await self._outbox.release()
                return True
        return False
