"""Whether Redis can be used, and where metrics are published on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from trading_bot.adapters.redis.connection import Client
from trading_bot.adapters.redis.ledger import WRITE_SHA
from trading_bot.errors import TradingError, Unavailable


class RedisProbe:
    """``ports.Probe``: writes a heartbeat, since a server that cannot write cannot admit.

    One whose memory is used up can write what orders end by: it refuses new ones by itself.
    """

    def __init__(self, client: Client, key: str, value: str, prepare: Callable[[], Awaitable[None]]) -> None:
        """``prepare`` is called each time before Redis counts as usable again: it may be a fresh one."""
        self._client = client
        self._prepare = prepare
        self._key = key
        self._value = value
        self._reason: str | None = "not connected yet"
        self.usable_once = asyncio.Event()

    def reason(self) -> str | None:
        return self._client.reason() or self._reason

    async def run(self) -> None:
        connections = 0
        while True:
            try:
                await self._client.call("EVALSHA", WRITE_SHA, 1, self._key, "SET", self._value, "PX", 5000)
                if self._reason is not None or self._client.connections != connections:
                    connections = self._client.connections
                    await self._prepare()
                self._reason = None
                self.usable_once.set()
            except TradingError as error:
                self._reason = error.reason if isinstance(error, Unavailable) else str(error)
            await asyncio.sleep(0.25 if self._reason else 1.0)


class RedisFeed:
    """``ports.Feed``: a channel for who listens now, a stream of the channel's name and ``:history`` for who
    looks later."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def publish(self, channel: str, line: Mapping[str, Any], keep_seconds: float) -> None:
        data = msgspec.json.encode(line)
        oldest = int(time.time() * 1000 - keep_seconds * 1000)
        history = f"{channel}:history"
        await self._client.call("PUBLISH", channel, data)
        kept = ("XADD", "MINID", "~", oldest, "*", "json", data)
        await self._client.call("EVALSHA", WRITE_SHA, 1, history, *kept)
