"""Last prices, from the bus to the ledger: the latest of each instrument, a few times a second."""

from __future__ import annotations

import asyncio

from trading_bot.errors import TradingError
from trading_bot.ports import Book

INTERVAL = 0.2


class Marks:
    def __init__(self, book: Book) -> None:
        self._book = book
        self._latest: dict[str, tuple[int, int]] = {}

    def tick(self, symbol: str, price: int, at: int) -> None:
        self._latest[symbol] = (price, at)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            if self._latest:
                latest, self._latest = self._latest, {}
                try:
                    await self._book.note_marks(latest)
                except TradingError:
                    # The next tick says it anew.
                    continue
