"""Orders whose state only the venue knows, as a figure to watch."""

from __future__ import annotations

import asyncio
import contextlib

from trading_bot.errors import TradingError
from trading_bot.ports import Unanswered

LOOK_SECONDS = 5.0


class UnansweredWatch:
    """How many orders were sent without an answer yet, and the seconds since the first of them was sent.
    ``lease`` is the longest for which an instance holds an order that it asks about."""

    def __init__(self, orders: Unanswered, lease: float) -> None:
        self._orders = orders
        self._lease = lease
        self.count = 0
        self.oldest_seconds = 0.0

    async def run(self) -> None:
        while True:
            # While the ledger is away, what was last known stands.
            with contextlib.suppress(TradingError):
                ages = await self._orders.unanswered(self._lease)
                self.count, self.oldest_seconds = len(ages), max(ages, default=0.0)
            await asyncio.sleep(LOOK_SECONDS)
