"""Who follows which account's events, how many may, and when they are asked to leave."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator

from trading_bot.errors import TooMany
from trading_bot.ports import Batch, Tail

PER_ACCOUNT = 10


class Streams:
    """Open streams of one instance. ``closing`` is set once it drains."""

    def __init__(self, tail: Tail, most: int) -> None:
        self._tail = tail
        self._most = most
        self._open: Counter[str] = Counter()
        self.closing = asyncio.Event()

    @property
    def count(self) -> int:
        return self._open.total()

    @contextlib.contextmanager
    def place(self, account: str) -> Iterator[Callable[[int | None, float], AsyncGenerator[Batch, None]]]:
        """A place among the open streams; what it gives follows the account's events. Raises TooMany."""
        if self.count >= self._most:
            raise TooMany("event streams of the instance", self._most)
        if self._open[account] >= PER_ACCOUNT:
            raise TooMany("event streams of the account", PER_ACCOUNT)
        self._open[account] += 1
        try:
            yield lambda after, idle: self._tail.follow(account, after, idle)
        finally:
            self._open[account] -= 1
            if not self._open[account]:
                del self._open[account]
