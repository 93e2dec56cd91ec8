"""Orders that were sent and about which the venue has said nothing yet."""

from __future__ import annotations

import asyncio

from trading_bot.adapters.redis.connection import Pool
from trading_bot.adapters.redis.ledger import DISPATCH, ms_of, order_key
from trading_bot.domain.lifecycle import State

MOST = 500
"""Orders that are looked through: the ones that have been due for longest."""
CHUNK = 50
_UNANSWERED = (State.DISPATCHED.encode(), State.UNKNOWN.encode())


class RedisUnanswered:
    """``ports.Unanswered``."""

    def __init__(self, reads: Pool) -> None:
        self._reads = reads

    async def unanswered(self, within: float) -> list[float]:
        now = ms_of(await self._reads.call("TIME"))
        due = ("-inf", now + round(within * 1000), "LIMIT", 0, MOST)
        members = await self._reads.call("ZRANGEBYSCORE", DISPATCH, *due)
        ages = []
        for first in range(0, len(members), CHUNK):
            keys = [order_key(*member.decode().split(" ")) for member in members[first : first + CHUNK]]
            found = await asyncio.gather(*(self._reads.call("HMGET", key, "st", "sent") for key in keys))
            ages += [(now - int(sent)) / 1000 for state, sent in found if state in _UNANSWERED and sent]
        return ages
