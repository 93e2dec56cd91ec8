"""The ledger and the outbox in Redis. One script, one decision."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from trading_bot.adapters.redis.connection import Client
from trading_bot.domain import money
from trading_bot.domain.admission import Admission, Code, Refusal
from trading_bot.domain.order import Order, fingerprint
from trading_bot.errors import LedgerError, TradingError, Unavailable
from trading_bot.ports import Event


def _script(name: str) -> tuple[str, str]:
    text = (resources.files(__package__) / f"{name}.lua").read_text(encoding="utf-8")
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


ADMIT, _ADMIT = _script("admit")
CLAIM, _CLAIM = _script("claim")
RELEASE, _RELEASE = _script("release")
SCRIPTS = (ADMIT, CLAIM, RELEASE)

CONTROL = "trading:control"
MARKS = "trading:marks"
OUTBOX = "trading:outbox"
AUDIT = "trading:audit"
DISPATCH = "trading:dispatch"
OUTBOX_LEASE = "trading:lease:outbox"


def order_key(account: str, client_order_id: str) -> str:
    return f"trading:order:{account}:{client_order_id}"


def account_key(account: str) -> str:
    return f"trading:account:{account}"


def orders_key(account: str) -> str:
    return f"trading:orders:{account}"


# Refusals whose limit and value are amounts, stored scaled.
_AMOUNT_RULES = frozenset({b"max_position_size", b"reduce_only", b"degraded"})


class RedisLedger:
    """``ports.Ledger``."""

    def __init__(self, client: Client, *, version: str, slot: str, max_position_size: int) -> None:
        self._client = client
        self._version = version
        self._slot = slot
        self._limits = (str(max_position_size),)

    async def admit(self, order: Order, request_id: str) -> Admission:
        account, client_order_id = order.account, order.client_order_id
        reply = await self._client.call(
            "EVALSHA",
            _ADMIT,
            8,
            f"trading:order:{account}:{client_order_id}",
            f"trading:account:{account}",
            f"trading:orders:{account}",
            CONTROL,
            MARKS,
            OUTBOX,
            AUDIT,
            DISPATCH,
            account,
            client_order_id,
            fingerprint(order),
            order.symbol,
            order.side,
            order.type,
            order.quantity,
            "" if order.price is None else order.price,
            "" if order.stop_price is None else order.stop_price,
            1 if order.reduce_only else 0,
            self._version,
            self._slot,
            request_id,
            *self._limits,
        )
        return admission_from(reply)


def admission_from(reply: list[Any]) -> Admission:
    """The decision that ``admit.lua`` returned. Raises LedgerError for a reply that is none."""
    code, again, at, version, slot, rule, limit, value = reply
    try:
        return Admission(
            Code(code),
            again == 1,
            int(at),
            version.decode(),
            slot.decode(),
            Refusal(rule.decode(), _amount(rule, limit), _amount(rule, value)) if rule else None,
        )
    except ValueError as error:
        raise LedgerError(f"unknown answer to an order: {error}") from error


def _amount(rule: bytes, text: bytes) -> str:
    if rule in _AMOUNT_RULES and text.lstrip(b"-").isdigit():
        return money.show(int(text))
    return text.decode()


class RedisOutbox:
    """``ports.Outbox``. ``feed`` is a connection of its own, since it blocks."""

    def __init__(self, client: Client, feed: Client, *, holder: str, lease_ms: int = 3000) -> None:
        self._client = client
        self._feed = feed
        self._holder = holder
        self._lease_ms = lease_ms

    async def claim(self, count: int) -> Sequence[Event] | None:
        reply = await self._client.call(
            "EVALSHA", _CLAIM, 2, OUTBOX_LEASE, OUTBOX, self._holder, self._lease_ms, count
        )
        if reply is None:
            return None
        return [Event(id.decode(), _fields(fields)) for id, fields in reply]

    async def settle(self, ids: Sequence[str]) -> None:
        if ids:
            await self._client.call("XDEL", OUTBOX, *ids)

    async def release(self) -> None:
        await self._client.call("EVALSHA", _RELEASE, 1, OUTBOX_LEASE, self._holder)

    async def wait(self, seconds: float) -> None:
        """Blocks in Redis until an event arrives; one that is already there ends the wait at once."""
        try:
            await self._feed.call("XREAD", "COUNT", 1, "BLOCK", int(seconds * 1000), "STREAMS", OUTBOX, "0-0")
        except Unavailable:
            await asyncio.sleep(seconds)

    async def pending(self) -> int:
        return int(await self._client.call("XLEN", OUTBOX))


def _fields(flat: list[bytes]) -> dict[str, str]:
    words = [word.decode() for word in flat]
    return dict(zip(words[::2], words[1::2], strict=True))


class RedisControls:
    """``ports.Controls``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def mode(self) -> str:
        try:
            halted, degraded = await self._client.call("HMGET", CONTROL, "halted", "degraded")
        except Unavailable:
            return "unknown"
        return "halted" if halted == b"1" else "reduce_only" if degraded == b"1" else "normal"

    async def features(self) -> dict[str, bool]:
        return {}


class RedisProbe:
    """``ports.Probe``: writes a heartbeat, since a server that cannot write cannot admit."""

    def __init__(self, client: Client, key: str, value: str) -> None:
        self._client = client
        self._key = key
        self._value = value
        self._reason: str | None = "not connected yet"

    def reason(self) -> str | None:
        return self._client.reason() or self._reason

    async def run(self) -> None:
        while True:
            try:
                await self._client.call("SET", self._key, self._value, "PX", 5000)
                self._reason = None
            except TradingError as error:
                self._reason = error.reason if isinstance(error, Unavailable) else str(error)
            await asyncio.sleep(0.25 if self._reason else 1.0)
