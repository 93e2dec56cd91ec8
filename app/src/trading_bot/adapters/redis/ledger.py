"""The ledger and the outbox in Redis. One script, one decision."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib import resources
from typing import Any

import msgspec

from trading_bot.adapters.redis.connection import Client, Pool
from trading_bot.domain.admission import Admission, Code, Facts, Refusal, refusal_from
from trading_bot.domain.audit import OrderFields
from trading_bot.domain.instrument import Instrument
from trading_bot.domain.lifecycle import State
from trading_bot.domain.limits import Limits
from trading_bot.domain.order import Order, fingerprint, order_from_fingerprint
from trading_bot.domain.position import Account, account_from
from trading_bot.errors import LedgerError, Unavailable
from trading_bot.ports import CancelCode, Event, Fill, OrderView, SettleCode, Task, View


def _script(name: str) -> tuple[str, str]:
    text = (resources.files(__package__) / f"{name}.lua").read_text(encoding="utf-8")
    text = text.replace("-- include admit.lua\n", ADMIT) if name == "replace" else text
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


ADMIT, _ADMIT = _script("admit")
REPLACE, _REPLACE = _script("replace")
PROCEED, _PROCEED = _script("proceed")
CANCEL, _CANCEL = _script("cancel")
SETTLE, _SETTLE = _script("settle")
TAKE, _TAKE = _script("take")
RESEND, _RESEND = _script("resend")
MARK, _MARK = _script("mark")
LEAD, _LEAD = _script("lead")
CONTROL_SCRIPT, _CONTROL = _script("control")
CLAIM, _CLAIM = _script("claim")
RELEASE, _RELEASE = _script("release")
INSPECT, _INSPECT = _script("inspect")
KEEP, _KEEP = _script("keep")
ALERT, ALERT_SHA = _script("alert")
WRITE, WRITE_SHA = _script("write")
SCRIPTS = (
    ALERT,
    ADMIT,
    REPLACE,
    PROCEED,
    CANCEL,
    SETTLE,
    TAKE,
    RESEND,
    MARK,
    LEAD,
    CONTROL_SCRIPT,
    CLAIM,
    RELEASE,
    INSPECT,
    KEEP,
    WRITE,
)

CONTROL = "trading:control"
MARKS = "trading:marks"
INSTRUMENTS = "trading:instruments"
OUTBOX = "trading:outbox"
AUDIT = "trading:audit"
DISPATCH = "trading:dispatch"
REPLACING = "trading:replacing"
FILLS = "trading:fills"
LIMITS = "trading:limits"
VERIFIED = "trading:verified"
VERIFIED_PROGRESS = "trading:verified:progress"
OUTBOX_LEASE = "trading:lease:outbox"


def ms_of(time: Sequence[bytes]) -> int:
    """What TIME answers, in milliseconds."""
    return int(time[0]) * 1000 + int(time[1]) // 1000


def order_key(account: str, client_order_id: str) -> str:
    return f"trading:order:{account}:{client_order_id}"


def account_key(account: str) -> str:
    return f"trading:account:{account}"


def orders_key(account: str) -> str:
    return f"trading:orders:{account}"


class RedisLedger:
    """``ports.Ledger``. ``limits`` may be changed at any time; the next order is held to them. ``reads`` are
    connections for what decides nothing; without them there is one for all."""

    def __init__(
        self, client: Client, *, version: str, slot: str, limits: Limits, reads: Pool | None = None
    ) -> None:
        self._client = client
        self._reads: Pool | Client = reads or client
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
        text = "|".join(self._arguments)
        self._limits_name = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:12]

    async def admit(
        self, order: Order, request_id: str, /, *, dry: bool = False, tell: bool = False
    ) -> Admission:
        purpose = "1" if dry else f"{2 if tell else 0}{self._limits_name}"
        reply = await self._client.call(
            "EVALSHA",
            _ADMIT,
            10,
            *self._admission_keys(order),
            *self._admission_arguments(order, fingerprint(order), request_id, self._arguments, purpose),
        )
        return admission_from(reply)

    async def judge(self, order: Order, facts: Facts, limits: Limits) -> Admission | None:
        told = {
            "at": facts.at,
            "order": [_or_false(word) for word in facts.order],
            "account": facts.account,
            "control": [_or_false(word) for word in facts.control],
            "marks": {symbol: _or_false(text) for symbol, text in facts.marks.items()},
            "instrument": _or_false(facts.instrument),
            "intent": _or_false(facts.intent),
        }
        purpose = msgspec.json.encode(told).decode()
        # Redis itself refuses whatever such a call would write.
        reply = await self._client.call(
            "EVALSHA_RO",
            _ADMIT,
            10,
            *self._admission_keys(order),
            *self._admission_arguments(order, fingerprint(order), "", limits.arguments(), purpose),
        )
        return None if len(reply) > 8 else admission_from(reply)

    @staticmethod
    def _admission_keys(order: Order) -> tuple[str, ...]:
        account = order.account
        return (
            f"trading:order:{account}:{order.client_order_id}",
            f"trading:account:{account}",
            f"trading:orders:{account}",
            CONTROL,
            MARKS,
            OUTBOX,
            AUDIT,
            DISPATCH,
            INSTRUMENTS,
            f"trading:intent:{account}:{order.symbol}|{order.side.value}|{order.quantity}|{order.price}",
        )

    def _admission_arguments(
        self, order: Order, identity: str, request_id: str, limits: Sequence[str | int], purpose: str
    ) -> tuple[str | int, ...]:
        price, stop_price = order.price, order.stop_price
        return (
            order.account,
            order.client_order_id,
            identity,
            order.symbol,
            order.side.value,
            order.type.value,
            order.quantity,
            "" if price is None else price,
            "" if stop_price is None else stop_price,
            1 if order.reduce_only else 0,
            self._version,
            self._slot,
            request_id,
            *limits,
            purpose,
        )

    async def replace(
        self, replaced: OrderView, order: Order, request_id: str, *, dry: bool = False
    ) -> tuple[Admission, str]:
        account, old = order.account, replaced.order.client_order_id
        live = replaced.awaits or old
        asked = f"{old}|{order.quantity}|{order.price}|{order.stop_price}"
        reply = await self._client.call(
            "EVALSHA",
            _REPLACE,
            13,
            *self._admission_keys(order),
            order_key(account, old),
            order_key(account, live),
            REPLACING,
            *self._admission_arguments(
                order,
                f"{fingerprint(order)}|replaces={old}",
                request_id,
                self._arguments,
                "1" if dry else f"0{self._limits_name}",
            ),
            old,
            live,
            asked,
        )
        return admission_from(reply[:8]), reply[8].decode()

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
        reply = await self._reads.call("HMGET", order_key(account, client_order_id), *_VIEW)
        return _view(account, client_order_id, reply) if reply[0] else None

    async def orders(self, account: str, count: int) -> list[OrderView]:
        ids = await self._reads.call("ZREVRANGE", orders_key(account), 0, count - 1)
        names = [name.decode() for name in ids]
        found = await asyncio.gather(*(self.order(account, name) for name in names))
        return [view for view in found if view is not None]

    async def account(self, account: str) -> Account:
        return account_from(fields_of(await self._reads.call("HGETALL", account_key(account))))

    async def marks(self) -> dict[str, int]:
        fields = fields_of(await self._reads.call("HGETALL", MARKS))
        return {symbol: int(text.partition("|")[0]) for symbol, text in fields.items()}


_VIEW = (
    "fp", "st", "at", "version", "slot", "filled", "reason", "rule", "limit", "value", "cancel", "total",
    "before", "awaits", "replaces", "next",
)  # fmt: skip


def _view(account: str, client_order_id: str, reply: list[bytes | None]) -> OrderView:
    words = dict(zip(_VIEW, ((word or b"").decode() for word in reply), strict=True))
    rule = words["rule"]
    refusal = refusal_from(rule, words["limit"], words["value"]) if rule else Refusal("", "", "")
    order = order_from_fingerprint(account, client_order_id, words["fp"])
    return OrderView(
        order,
        State(words["st"]),
        int(words["at"]),
        words["version"],
        words["slot"],
        int(words["filled"] or 0),
        words["reason"],
        refusal.rule,
        refusal.limit,
        refusal.value,
        words["cancel"] == "1",
        int(words["total"] or order.quantity),
        int(words["before"] or 0),
        words["awaits"],
        words["replaces"],
        words["next"],
    )


def admission_from(reply: list[Any]) -> Admission:
    """The decision that ``admit.lua`` returned. Raises LedgerError for a reply that is none."""
    code, again, at, version, slot, rule, limit, value, *told = reply
    try:
        return Admission(
            Code(code),
            again == 1,
            int(at),
            version.decode(),
            slot.decode(),
            refusal_from(rule.decode(), limit.decode(), value.decode()) if rule else None,
            partial(_facts_from, *told[0]) if told else None,
        )
    except ValueError as error:
        raise LedgerError(f"unknown answer to an order: {error}") from error


def _facts_from(
    at: bytes,
    order: list[bytes | None],
    account: list[bytes] | None = None,
    control: list[bytes | None] | None = None,
    symbols: Sequence[bytes] = (),
    marks: Sequence[bytes | None] = (),
    instrument: bytes | None = None,
    intent: bytes | None = None,
) -> Facts:
    return Facts(
        at.decode(),
        [_word(word) for word in order],
        [word.decode() for word in account or ()],
        [_word(word) for word in control or ()],
        {symbol.decode(): _word(mark) for symbol, mark in zip(symbols, marks, strict=True)},
        _word(instrument),
        _word(intent),
    )


def _word(reply: bytes | None) -> str | None:
    return None if reply is None else reply.decode()


def _or_false(word: str | None) -> str | bool:
    """As Lua has what is not there."""
    return False if word is None else word


class RedisBook:
    """``ports.Book``."""

    def __init__(self, client: Client, *, version: str, slot: str, holder: str, venue: str) -> None:
        self._client = client
        self._version = version
        self._slot = slot
        self._holder = holder
        self._venue = venue

    async def due(self, count: int) -> list[tuple[str, str]]:
        ms = ms_of(await self._client.call("TIME"))
        members, replacing = await asyncio.gather(
            self._client.call("ZRANGEBYSCORE", DISPATCH, "-inf", ms, "LIMIT", 0, count),
            self._client.call("ZRANGEBYSCORE", REPLACING, "-inf", ms, "LIMIT", 0, count),
        )
        # An order goes on with the end of the one it replaces; here, if an older version saw that end.
        for entry in replacing:
            await self._proceed(*entry.decode().split(" "))
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
    ) -> tuple[SettleCode, int, int]:
        arguments: list[str | int] = []
        for fill in fills:
            arguments += [fill.trade, fill.quantity, fill.price, fill.fee, fill.at]
        code, _, fresh, following, doubled = await self._client.call(
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
        if following:
            await self._proceed(account, following.decode(), client_order_id)
        return SettleCode(code), fresh, doubled

    async def _proceed(self, account: str, client_order_id: str, awaited: str) -> None:
        await self._client.call(
            "EVALSHA",
            _PROCEED,
            7,
            order_key(account, client_order_id),
            order_key(account, awaited),
            account_key(account),
            OUTBOX,
            AUDIT,
            DISPATCH,
            REPLACING,
            account,
            client_order_id,
            awaited,
            self._version,
            self._slot,
        )

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
        key = f"trading:venue:{self._venue}"
        await self._client.call("EVALSHA", WRITE_SHA, 1, key, "HSET", "seen", number)

    async def note_marks(self, marks: Mapping[str, tuple[int, int]]) -> None:
        flat: list[str | int] = []
        for symbol, (price, at) in marks.items():
            flat += [symbol, price, at]
        if flat:
            await self._client.call("EVALSHA", _MARK, 1, MARKS, *flat)

    async def note_instruments(self, instruments: Iterable[Instrument], *, replace: bool) -> None:
        for instrument in instruments:
            command = "HSET" if replace else "HSETNX"
            await self._client.call(
                "EVALSHA", WRITE_SHA, 1, INSTRUMENTS, command, instrument.symbol, instrument.text()
            )


class RedisArchive:
    """``ports.Archive``. ``client`` is not that of the orders: what is read and kept here is long."""

    def __init__(self, client: Client | Pool, *, holder: str) -> None:
        self._client = client
        self._holder = holder

    async def lead(self, what: str, lease: float) -> bool:
        key = f"trading:lease:{what}"
        return bool(await self._client.call("EVALSHA", _LEAD, 1, key, self._holder, round(lease * 1000)) == 1)

    async def leave(self, what: str) -> None:
        await self._client.call("EVALSHA", _RELEASE, 1, f"trading:lease:{what}", self._holder)

    async def lines(self, after: str, count: int) -> list[tuple[str, dict[str, str]]]:
        return _lines(await self._client.call("XRANGE", AUDIT, f"({after}", "+", "COUNT", count))

    async def inspect(self, account: str, orders: Sequence[str], after: str, count: int) -> View:
        lines, fields, fills, found = await self._client.call(
            "EVALSHA_RO",
            _INSPECT,
            4 + len(orders),
            AUDIT,
            account_key(account),
            DISPATCH,
            FILLS,
            *(order_key(account, id) for id in orders),
            after,
            count,
            account,
            *orders,
        )
        return View(
            _lines(lines),
            len(lines) < count,
            fields_of(fields),
            fills,
            {id: _order_fields(*words) for id, words in zip(orders, found, strict=len(lines) < count)},
        )

    async def begins(self) -> bool:
        if not await self.lines("0-0", 1):
            return True
        flat = await self._client.call("XINFO", "STREAM", AUDIT)
        about = dict(zip(flat[::2], flat[1::2], strict=True))
        return bool(about[b"entries-added"] == about[b"length"])

    async def limits(self) -> dict[str, str]:
        return fields_of(await self._client.call("HGETALL", LIMITS))

    async def progress(self) -> bytes | None:
        reply: bytes | None = await self._client.call("GET", VERIFIED_PROGRESS)
        return reply

    async def told(self, accounts: Sequence[str]) -> list[bytes | None]:
        reply: list[bytes | None] = await self._client.call("HMGET", VERIFIED, *accounts)
        return reply

    async def keep(
        self,
        what: str,
        accounts: Mapping[str, bytes],
        findings: Sequence[Mapping[str, str]],
        progress: bytes = b"",
    ) -> bool:
        flat: list[str | int | bytes] = [len(accounts)]
        for account, text in accounts.items():
            flat += [account, text]
        for finding in findings:
            flat.append(len(finding) * 2)
            flat += [word for pair in finding.items() for word in pair]
        kept = await self._client.call(
            "EVALSHA",
            _KEEP,
            4,
            f"trading:lease:{what}",
            VERIFIED,
            VERIFIED_PROGRESS,
            AUDIT,
            self._holder,
            progress,
            *flat,
        )
        return bool(kept == 1)


def _lines(reply: list[Any]) -> list[tuple[str, dict[str, str]]]:
    return [(id.decode(), fields_of(flat)) for id, flat in reply]


def _order_fields(
    st: bytes | None,
    left: bytes | None,
    reserved: bytes | None,
    reference: bytes | None,
    filled: bytes | None,
    in_dispatch: bytes,
) -> OrderFields:
    return OrderFields(
        (st or b"").decode(),
        int(left or 0),
        int(reserved or 0),
        int(reference or 0),
        int(filled or 0),
        in_dispatch == b"1",
    )


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
        return [Event(id.decode(), fields_of(fields)) for id, fields in reply]

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

    async def after(self, id: str, count: int) -> Sequence[Event]:
        reply = await self._client.call("XRANGE", OUTBOX, f"({id}" if id else "-", "+", "COUNT", count)
        return [Event(id.decode(), fields_of(fields)) for id, fields in reply]

    async def pending(self) -> tuple[int, float]:
        count, oldest, now = await asyncio.gather(
            self._client.call("XLEN", OUTBOX),
            self._client.call("XRANGE", OUTBOX, "-", "+", "COUNT", 1),
            self._client.call("TIME"),
        )
        # An event's id begins with the server's own milliseconds.
        since = ms_of(now) - int(oldest[0][0].partition(b"-")[0]) if oldest else 0
        return int(count), since / 1000


class _Verified(msgspec.Struct):
    at: str


class RedisAudit:
    """``ports.Audit``. Cuts nothing that the ledger was not verified against yet."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def trim(self, keep_seconds: float) -> int:
        # Ids are Redis's own time. Whole nodes go, and only some at a time, so that nobody waits for it.
        seconds, _ = await self._client.call("TIME")
        oldest = int((int(seconds) - keep_seconds) * 1000)
        progress = await self._client.call("GET", VERIFIED_PROGRESS)
        if progress is None:
            return 0
        oldest = min(oldest, int(msgspec.json.decode(progress, type=_Verified).at.partition("-")[0]))
        cut = 0
        while some := int(await self._client.call("XTRIM", AUDIT, "MINID", "~", oldest)):
            cut += some
        return cut


def fields_of(flat: list[bytes]) -> dict[str, str]:
    words = [word.decode() for word in flat]
    return dict(zip(words[::2], words[1::2], strict=True))


class RedisPanel:
    """``ports.Panel``."""

    def __init__(self, client: Client, *, version: str, slot: str) -> None:
        self._client = client
        self._version = version
        self._slot = slot

    async def read(self) -> dict[str, str]:
        return fields_of(await self._client.call("HGETALL", CONTROL))

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
