"""The ledger and the outbox in Redis. One script, one decision."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from importlib import resources
from typing import Any

import msgspec

from trading_bot.adapters.redis.connection import Client
from trading_bot.domain import money
from trading_bot.domain.admission import Admission, Code, Refusal
from trading_bot.domain.instrument import Instrument
from trading_bot.domain.lifecycle import State
from trading_bot.domain.limits import Limits
from trading_bot.domain.order import Order, fingerprint, order_from_fingerprint
from trading_bot.domain.position import Account, account_from
from trading_bot.errors import LedgerError, TradingError, Unavailable
from trading_bot.ports import CancelCode, Event, Fill, OrderView, SettleCode, Task


def _script(name: str) -> tuple[str, str]:
    text = (resources.files(__package__) / f"{name}.lua").read_text(encoding="utf-8")
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


ADMIT, _ADMIT = _script("admit")
CANCEL, _CANCEL = _script("cancel")
SETTLE, _SETTLE = _script("settle")
TAKE, _TAKE = _script("take")
RESEND, _RESEND = _script("resend")
MARK, _MARK = _script("mark")
LEAD, _LEAD = _script("lead")
CONTROL_SCRIPT, _CONTROL = _script("control")
CLAIM, _CLAIM = _script("claim")
RELEASE, _RELEASE = _script("release")
SCRIPTS = (ADMIT, CANCEL, SETTLE, TAKE, RESEND, MARK, LEAD, CONTROL_SCRIPT, CLAIM, RELEASE)

CONTROL = "trading:control"
MARKS = "trading:marks"
INSTRUMENTS = "trading:instruments"
OUTBOX = "trading:outbox"
AUDIT = "trading:audit"
DISPATCH = "trading:dispatch"
FILLS = "trading:fills"
OUTBOX_LEASE = "trading:lease:outbox"


def order_key(account: str, client_order_id: str) -> str:
    return f"trading:order:{account}:{client_order_id}"


def account_key(account: str) -> str:
    return f"trading:account:{account}"


def orders_key(account: str) -> str:
    return f"trading:orders:{account}"


# How the value and the limit of each check are shown: amounts are stored scaled, ratios as a fraction.
_AMOUNT_RULES = frozenset(
    {
        "max_position_size", "max_order_notional", "reduce_only", "degraded", "drawdown_latched", "tick_size",
        "lot_size", "min_quantity", "max_quantity", "price_collar",
    }
)  # fmt: skip
_RATIO_RULES = frozenset({"max_leverage", "min_margin_level", "max_drawdown"})


def _amount(text: str) -> str:
    return "..".join(money.show(int(x)) if x.lstrip("-").isdigit() else x for x in text.split(".."))


def _ratio(text: str) -> str:
    numerator, _, denominator = text.partition("/")
    if not denominator:
        return money.show(int(text))
    if int(denominator) <= 0:
        return "undefined"
    return f"{Decimal(numerator) / Decimal(denominator):.6f}"


def refusal_from(rule: str, limit: str, value: str) -> Refusal:
    """A refusal as answers show it, from what the ledger stores."""
    if rule in _AMOUNT_RULES:
        return Refusal(rule, _amount(limit), _amount(value))
    if rule in _RATIO_RULES:
        return Refusal(rule, _ratio(limit), _ratio(value))
    return Refusal(rule, limit, value)


class RedisLedger:
    """``ports.Ledger``. ``limits`` may be changed at any time; the next order is held to them."""

    def __init__(self, client: Client, *, version: str, slot: str, limits: Limits) -> None:
        self._client = client
        self._version = version
        self._slot = slot
        self.limits = limits

    @property
    def limits(self) -> Limits:
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self._arguments = tuple(str(argument) for argument in limits.arguments())

    async def admit(self, order: Order, request_id: str, /, *, dry: bool = False) -> Admission:
        account, client_order_id, price = order.account, order.client_order_id, order.price
        reply = await self._client.call(
            "EVALSHA",
            _ADMIT,
            10,
            f"trading:order:{account}:{client_order_id}",
            f"trading:account:{account}",
            f"trading:orders:{account}",
            CONTROL,
            MARKS,
            OUTBOX,
            AUDIT,
            DISPATCH,
            INSTRUMENTS,
            f"trading:intent:{account}:{order.symbol}|{order.side.value}|{order.quantity}|{price}",
            account,
            client_order_id,
            fingerprint(order),
            order.symbol,
            order.side.value,
            order.type.value,
            order.quantity,
            "" if price is None else price,
            "" if order.stop_price is None else order.stop_price,
            1 if order.reduce_only else 0,
            self._version,
            self._slot,
            request_id,
            *self._arguments,
            1 if dry else 0,
        )
        return admission_from(reply)

    async def cancel(self, account: str, client_order_id: str, request_id: str) -> tuple[CancelCode, str]:
        code, state = await self._client.call(
            "EVALSHA",
            _CANCEL,
            5,
            order_key(account, client_order_id),
            account_key(account),
            OUTBOX,
            AUDIT,
            DISPATCH,
            account,
            client_order_id,
            self._version,
            self._slot,
            request_id,
            self.limits.max_orders_per_second,
        )
        return CancelCode(code), state.decode()

    async def order(self, account: str, client_order_id: str) -> OrderView | None:
        reply = await self._client.call("HMGET", order_key(account, client_order_id), *_VIEW)
        return _view(account, client_order_id, reply) if reply[0] else None

    async def orders(self, account: str, count: int) -> list[OrderView]:
        ids = await self._client.call("ZREVRANGE", orders_key(account), 0, count - 1)
        names = [name.decode() for name in ids]
        found = await asyncio.gather(*(self.order(account, name) for name in names))
        return [view for view in found if view is not None]

    async def account(self, account: str) -> Account:
        return account_from(_fields(await self._client.call("HGETALL", account_key(account))))

    async def marks(self) -> dict[str, int]:
        fields = _fields(await self._client.call("HGETALL", MARKS))
        return {symbol: int(text.partition("|")[0]) for symbol, text in fields.items()}


_VIEW = (
    "fp", "st", "at", "version", "slot", "filled", "reason", "rule", "limit", "value", "cancel",
)  # fmt: skip


def _view(account: str, client_order_id: str, reply: list[bytes | None]) -> OrderView:
    fp, st, at, version, slot, filled, reason, rule, limit, value, cancel = (
        (word or b"").decode() for word in reply
    )
    refusal = refusal_from(rule, limit, value) if rule else Refusal("", "", "")
    return OrderView(
        order_from_fingerprint(account, client_order_id, fp),
        State(st),
        int(at),
        version,
        slot,
        int(filled or 0),
        reason,
        refusal.rule,
        refusal.limit,
        refusal.value,
        cancel == "1",
    )


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
            refusal_from(rule.decode(), limit.decode(), value.decode()) if rule else None,
        )
    except ValueError as error:
        raise LedgerError(f"unknown answer to an order: {error}") from error


class RedisBook:
    """``ports.Book``."""

    def __init__(self, client: Client, *, version: str, slot: str, holder: str, venue: str) -> None:
        self._client = client
        self._version = version
        self._slot = slot
        self._holder = holder
        self._venue = venue

    async def due(self, count: int) -> list[tuple[str, str]]:
        now = await self._client.call("TIME")
        ms = int(now[0]) * 1000 + int(now[1]) // 1000
        members = await self._client.call("ZRANGEBYSCORE", DISPATCH, "-inf", ms, "LIMIT", 0, count)
        return [(a, o) for a, _, o in (member.decode().partition(" ") for member in members)]

    async def take(self, account: str, client_order_id: str, lease: float) -> Task | None:
        reply = await self._client.call(
            "EVALSHA",
            _TAKE,
            5,
            order_key(account, client_order_id),
            DISPATCH,
            CONTROL,
            AUDIT,
            OUTBOX,
            account,
            client_order_id,
            round(lease * 1000),
            self._holder,
            self._version,
            self._slot,
        )
        if reply is None:
            return None
        what, fence, fp, cancel, sent, filled = reply
        order = order_from_fingerprint(account, client_order_id, fp.decode())
        return Task(order, fence, what == b"ask", cancel == b"1", int(sent), int(filled))

    async def resend(self, task: Task) -> bool:
        key = order_key(task.order.account, task.order.client_order_id)
        return bool(await self._client.call("EVALSHA", _RESEND, 1, key, task.fence) == 1)

    async def settle(
        self,
        account: str,
        client_order_id: str,
        state: State | None,
        fills: Sequence[Fill],
        *,
        filled: int | None = None,
        fence: int | None = None,
        again_in: float | None = None,
        reason: str = "",
    ) -> tuple[SettleCode, int]:
        arguments: list[str | int] = []
        for fill in fills:
            arguments += [fill.trade, fill.quantity, fill.price, fill.fee, fill.at]
        code, _, fresh = await self._client.call(
            "EVALSHA",
            _SETTLE,
            7,
            order_key(account, client_order_id),
            account_key(account),
            OUTBOX,
            AUDIT,
            DISPATCH,
            FILLS,
            f"trading:trades:{self._venue}",
            account,
            client_order_id,
            "" if fence is None else fence,
            "" if state is None else state.value,
            "" if filled is None else filled,
            "" if again_in is None else round(again_in * 1000),
            self._venue,
            reason,
            self._version,
            self._slot,
            len(fills),
            *arguments,
        )
        return SettleCode(code), fresh

    async def lead(self, what: str, lease: float) -> bool:
        key = f"trading:lease:{what}"
        return bool(await self._client.call("EVALSHA", _LEAD, 1, key, self._holder, round(lease * 1000)) == 1)

    async def leave(self, what: str) -> None:
        """Give a lease back, so that another instance goes on at once."""
        await self._client.call("EVALSHA", _RELEASE, 1, f"trading:lease:{what}", self._holder)

    async def seen(self) -> int | None:
        number = await self._client.call("HGET", f"trading:venue:{self._venue}", "seen")
        return None if number is None else int(number)

    async def note_seen(self, number: int) -> None:
        await self._client.call("HSET", f"trading:venue:{self._venue}", "seen", number)

    async def note_marks(self, marks: Mapping[str, tuple[int, int]]) -> None:
        flat: list[str | int] = []
        for symbol, (price, at) in marks.items():
            flat += [symbol, price, at]
        if flat:
            await self._client.call("EVALSHA", _MARK, 1, MARKS, *flat)

    async def note_instruments(self, instruments: Iterable[Instrument], *, replace: bool) -> None:
        for instrument in instruments:
            command = "HSET" if replace else "HSETNX"
            await self._client.call(command, INSTRUMENTS, instrument.symbol, instrument.text())


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


class RedisPanel:
    """``ports.Panel``."""

    def __init__(self, client: Client, *, version: str, slot: str) -> None:
        self._client = client
        self._version = version
        self._slot = slot

    async def read(self) -> dict[str, str]:
        return _fields(await self._client.call("HGETALL", CONTROL))

    async def change(
        self, event: str, who: str, why: str, request_id: str, fields: Mapping[str, str], account: str = ""
    ) -> None:
        flat = [word for pair in fields.items() for word in pair]
        await self._client.call(
            "EVALSHA",
            _CONTROL,
            4,
            CONTROL,
            AUDIT,
            OUTBOX,
            account_key(account) if account else CONTROL,
            event,
            who,
            why,
            self._version,
            self._slot,
            request_id,
            account,
            *flat,
        )


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
        await self._client.call("XADD", history, "MINID", "~", oldest, "*", "json", data)


class RedisProbe:
    """``ports.Probe``: writes a heartbeat, since a server that cannot write cannot admit."""

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
                await self._client.call("SET", self._key, self._value, "PX", 5000)
                if self._reason is not None or self._client.connections != connections:
                    connections = self._client.connections
                    await self._prepare()
                self._reason = None
                self.usable_once.set()
            except TradingError as error:
                self._reason = error.reason if isinstance(error, Unavailable) else str(error)
            await asyncio.sleep(0.25 if self._reason else 1.0)
