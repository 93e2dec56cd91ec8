"""Accounts as the risk watch reads them, and the board for alerts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import msgspec

from trading_bot.adapters.redis import ledger
from trading_bot.adapters.redis.connection import Client, Pool
from trading_bot.adapters.redis.ledger import WRITE_SHA, RedisBook, RedisLedger, account_key, fields_of
from trading_bot.domain.position import Account, account_from

RISK = "trading:risk"
NAMES = "trading:accounts"
WHOLE = "trading:accounts:whole"


class RedisAccounts:
    """``ports.Accounts``."""

    def __init__(self, reads: Pool, client: Client, holder: RedisBook, prices: RedisLedger) -> None:
        self._reads = reads
        self._client = client
        self._holder = holder
        self._prices = prices
        self._known: set[str] = set()

    async def scan(self, count: int) -> AsyncGenerator[list[str], None]:
        # Keys of orders are there for ever and without number, so the names of accounts are kept apart.
        # Once a day, and at first, all keys are gone through, in case one was not noted.
        whole = await self._reads.call("GET", WHOLE)
        walk = ("SSCAN", NAMES) if whole else ("SCAN",)
        prefix = b"" if whole else account_key("").encode()
        pattern = () if whole else ("MATCH", prefix + b"*")
        cursor = b"0"
        while True:
            cursor, found = await self._reads.call(*walk, cursor, *pattern, "COUNT", 500)
            names = [name.removeprefix(prefix).decode() for name in found]
            if not whole:
                await self.remember(names)
            for first in range(0, max(len(names), 1), count):
                yield names[first : first + count]
            if cursor == b"0":
                break
        if not whole:
            await self._client.call("EVALSHA", WRITE_SHA, 1, WHOLE, "SET", "1", "EX", 86400)

    async def remember(self, names: Sequence[str]) -> None:
        fresh = [name for name in names if name not in self._known]
        if fresh:
            await self._client.call("EVALSHA", WRITE_SHA, 1, NAMES, "SADD", *fresh)
            self._known.update(fresh)

    async def read(self, names: Sequence[str]) -> list[tuple[str, Account]]:
        found = await asyncio.gather(*(self._reads.call("HGETALL", account_key(name)) for name in names))
        return [(name, account_from(fields_of(flat))) for name, flat in zip(names, found, strict=True)]

    async def marks(self) -> dict[str, int]:
        return await self._prices.marks()

    async def lead(self, seconds: float) -> bool:
        return await self._holder.lead("risk", seconds)

    async def note(self, summary: Mapping[str, Any], seconds: float) -> None:
        data = msgspec.json.encode(summary)
        await self._client.call("EVALSHA", WRITE_SHA, 1, RISK, "SET", data, "PX", round(seconds * 1000))

    async def noted(self) -> dict[str, Any]:
        data = await self._reads.call("GET", RISK)
        return {} if data is None else msgspec.json.decode(data, type=dict[str, Any])


class RedisAlerts:
    """``ports.AlertBoard``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def tell(self, channel: str, key: str, line: Mapping[str, Any], quiet: float, keep: int) -> bool:
        reply = await self._client.call(
            "EVALSHA",
            ledger.ALERT_SHA,
            2,
            f"trading:alert:{key}",
            f"{channel}:history",
            channel,
            msgspec.json.encode(line),
            max(1, round(quiet * 1000)),
            keep,
        )
        return bool(reply == 1)
