"""NATS: one connection for requests, events and the release bucket, kept up for ever."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import ConnectionClosedError
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError, BucketNotFoundError, KeyNotFoundError, NotFoundError
from nats.protocol import parser

from trading_bot.domain import money
from trading_bot.domain.order import valid_symbol
from trading_bot.domain.traffic import Traffic
from trading_bot.errors import TradingError, Unavailable
from trading_bot.ports import Event

STREAM = "TRADING_EVENTS"
SUBMIT = "trading.orders.submit."
SHADOW = "trading.shadow."
CONTROL = "trading.control.changed"
TICKS = "market.ticks."
BUCKET = "release"
TRAFFIC_KEY = "traffic"
DUPLICATE_WINDOW = 120.0
BACKLOG = 256 * 1024
"""Bytes that may wait for the server before copies of orders are dropped."""
_TRAFFIC_SUBJECT = f"$KV.{BUCKET}.{TRAFFIC_KEY}"

OnTraffic = Callable[[Traffic], None]
OnTick = Callable[[str, int, int], None]
OnRequest = Callable[[Msg], Awaitable[None]]


@dataclass(frozen=True)
class Settings:
    urls: list[str]
    name: str
    slot: str
    release: str
    user: str
    password: Callable[[], str]
    reconnect_wait: float
    max_reconnects: int
    replicas: int
    retention: float
    """Seconds; 0 is for ever."""


class _Ack(msgspec.Struct):
    """What a stream answers to a publication."""

    seq: int = 0
    duplicate: bool = False
    error: dict[str, Any] | None = None


# The library takes a form feed for the end of a subject, NATS does not; and then it knows not where it is.
for _name in ("MSG_RE", "HMSG_RE"):
    _pattern = getattr(parser, _name).pattern.replace(rb"[^\s]", rb"[^ \t\r\n]")
    setattr(parser, _name, re.compile(_pattern))


class _Connection(NatsClient):
    """A connection that no message can end: the library stops reading at one that it cannot decode."""

    async def publish(self, *arguments: Any, **named: Any) -> None:
        try:
            await super().publish(*arguments, **named)
        except RuntimeError as error:
            # uvloop's word for a transport that is closed.
            raise ConnectionClosedError from error

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except (UnicodeDecodeError, IndexError):
            return None

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        # A subject that is not UTF-8 names nobody, as one with U+FFFD does; to such a reply nothing is sent.
        named = subject.decode(errors="replace").encode()
        answered = reply if reply.decode(errors="ignore").encode() == reply else b""
        await super()._process_msg(sid, named, answered, data, headers)


class Bus:
    """``ports.Publisher`` and ``ports.Probe``.

    ``run`` connects, prepares the stream and the bucket, reads the traffic map and only then subscribes
    to orders, and not before ``open_requests`` nor while ``takes()`` is false; afterwards it watches. A
    lost connection is made anew from the start, secrets included, so that a rotated password and a server
    that lost its state are nothing special.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        takes: Callable[[], bool],
        on_begin: Callable[[Traffic | None], None],
        on_traffic: OnTraffic,
        on_request: OnRequest,
        on_tick: OnTick,
        on_control: Callable[[], None],
        on_copy: Callable[[bytes], None],
        on_change: Callable[[str | None], None],
    ) -> None:
        self._settings = settings
        self._takes = takes
        self._on_begin = on_begin
        self._on_traffic = on_traffic
        self._on_request = on_request
        self._on_tick = on_tick
        self._on_control = on_control
        self._on_copy = on_copy
        self._on_change = on_change
        self._nc: NatsClient | None = None
        self._js: JetStreamContext | None = None
        self._reason: str | None = "not connected yet"
        self._task: asyncio.Task[None] | None = None
        self._last_error = ""
        self._begun = False
        self._open = False
        self._requests: Subscription | None = None
        self._settled = False
        self._subscribing = asyncio.Lock()
        self._settling: asyncio.Task[None] | None = None
        self._ack_prefix = ""
        self._acked = 0
        self._acks: dict[str, asyncio.Future[_Ack]] = {}

    def reason(self) -> str | None:
        if self._reason is None and not self._settled:
            return "orders are not subscribed to before the ledger is usable"
        return self._reason

    def connection(self) -> tuple[NatsClient, JetStreamContext]:
        """What is connected now. Raises Unavailable."""
        if self._nc is None or self._js is None or self._reason is not None:
            raise Unavailable("nats", self._reason or "not connected")
        return self._nc, self._js

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def open_requests(self) -> None:
        """Take requests from now on: the queue group must not choose an instance that cannot serve yet."""
        self._open = True
        self.settle_requests()

    def settle_requests(self) -> None:
        """Join the slot's queue group, or leave it, as ``takes`` says now."""
        self._settling = asyncio.get_running_loop().create_task(self._settle_requests())

    async def _settle_requests(self) -> None:
        async with self._subscribing:
            nc = self._nc
            if not self._open or not self._begun or nc is None or not nc.is_connected:
                return
            if not self._takes():
                # It would be silent, and must not be chosen.
                if self._requests is not None:
                    await self._requests.drain()  # type: ignore[no-untyped-call]  # untyped there
                self._requests = None
            elif self._requests is None:
                slot = self._settings.slot
                self._requests = await nc.subscribe(SUBMIT + "*", queue=slot, cb=self._on_request)
                await nc.flush(timeout=2)
            self._settled = True

    async def stop_requests(self) -> None:
        """Take no more requests; those that have arrived are still answered."""
        self._open = False
        nc = self._nc
        if nc is not None and nc.is_connected:
            with contextlib.suppress(NatsError, TimeoutError, OSError):
                for subscription in list(nc._subs.values()):
                    if subscription.subject.startswith(SUBMIT):
                        await subscription.drain()  # type: ignore[no-untyped-call]  # untyped there

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._close()

    async def publish(self, events: Sequence[Event]) -> list[str]:
        """Publish in order without waiting in between; an event counts once its stream has stored it."""
        if len(events) > 2 and await self._publish_chain(events):
            return [event.id for event in events]
        acks = await self._send(events, [True] * len(events), chained=False)
        stored = []
        for event, ack in zip(events, acks, strict=True):
            if ack is None or ack.error:
                break
            stored.append(event.id)
        if not stored and events:
            why = acks[0].error if acks[0] else "no acknowledgement within 2 s"
            raise Unavailable("nats", f"an event was not stored: {why}")
        return stored

    async def _publish_chain(self, events: Sequence[Event]) -> bool:
        """Whether all were stored, from the answers to the first and the last alone.

        Each event expects the one before it to be the stream's latest, else it is refused. So once the
        first was stored anew, the last can only have been if all between were. Anything else (a repeated
        event, an error, silence) proves nothing, and the events are sent again one by one: the stream
        drops what it has.
        """
        wanted = [False] * len(events)
        wanted[0] = wanted[-1] = True
        acks = await self._send(events, wanted, chained=True)
        first, last = acks[0], acks[-1]
        if first is None or last is None:
            return False
        fresh = not (first.error or last.error or first.duplicate or last.duplicate)
        return fresh and last.seq - first.seq == len(events) - 1

    async def _send(
        self, events: Sequence[Event], wanted: Sequence[bool], *, chained: bool
    ) -> list[_Ack | None]:
        """The stream's answers where they are wanted; None for one that did not come. Raises Unavailable."""
        nc = self._nc
        if nc is None or self._reason is not None:
            raise Unavailable("nats", self._reason or "not connected")
        replies: list[str] = []
        futures: list[asyncio.Future[_Ack] | None] = []
        before = ""
        try:
            for event, want in zip(events, wanted, strict=True):
                headers = {"Nats-Msg-Id": event.id}
                if chained and before:
                    headers["Nats-Expected-Last-Msg-Id"] = before
                before = event.id
                reply, future = "", None
                if want:
                    self._acked += 1
                    reply = f"{self._ack_prefix}{self._acked}"
                    future = self._acks[reply] = asyncio.get_running_loop().create_future()
                    replies.append(reply)
                futures.append(future)
                subject, payload = encode(event)
                await nc.publish(subject, payload, reply=reply, headers=headers)
            await asyncio.wait([future for future in futures if future is not None], timeout=2)
        except (NatsError, OSError) as error:
            raise Unavailable("nats", _said(error)) from None
        finally:
            for reply in replies:
                self._acks.pop(reply, None)
        return [future.result() if future is not None and future.done() else None for future in futures]

    async def _acknowledged(self, message: Msg) -> None:
        """A stream's answer to a publication."""
        future = self._acks.pop(message.subject, None)
        if future is not None and not future.done():
            if message.headers and message.headers.get("Status") == "503":
                future.set_result(_Ack(error={"description": "no stream takes it"}))
            else:
                future.set_result(msgspec.json.decode(message.data, type=_Ack))

    def _set(self, reason: str | None) -> None:
        if reason != self._reason:
            self._reason = reason
            self._on_change(reason)

    async def _run(self) -> None:
        settings = self._settings
        failures = 0
        while True:
            closed = asyncio.Event()
            try:
                await self._connect(closed)
                await self._prepare()
                self._set(None)
                failures = 0
                await self._watch(closed)
                reason = self._last_error or "connection lost"
            except (TradingError, NatsError, OSError, TimeoutError, ValueError) as error:
                # The server's own word for it ("Authorization Violation") says more than "closed".
                reason = self._last_error or _said(error)
            failures += 1
            if 0 <= settings.max_reconnects < failures:
                self._set(f"gave up after {settings.max_reconnects} attempts to reconnect: {reason}")
                await self._close()
                return
            self._set(reason)
            await self._close()
            await asyncio.sleep(settings.reconnect_wait)

    async def _connect(self, closed: asyncio.Event) -> None:
        settings = self._settings

        async def on_disconnected() -> None:
            # What we close ourselves has a better reason than that.
            if self._nc is not None:
                self._set(self._last_error or "connection lost")

        async def on_closed() -> None:
            closed.set()

        async def on_error(error: Exception) -> None:
            self._last_error = _said(error)

        credentials: dict[str, Any] = {}
        password = settings.password()
        if settings.user:
            credentials["user"] = settings.user
        if password:
            credentials["password"] = password
        self._last_error = ""
        nc = _Connection()
        await nc.connect(
            servers=settings.urls,
            name=settings.name,
            connect_timeout=2,
            allow_reconnect=False,
            # How often and how soon again is ours to say: by itself it would try each server for two minutes.
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            ping_interval=1,
            max_outstanding_pings=2,
            disconnected_cb=on_disconnected,
            closed_cb=on_closed,
            error_cb=on_error,
            **credentials,
        )
        self._nc = nc
        self._js = nc.jetstream(timeout=2)

    async def _prepare(self) -> None:
        nc, js = self._nc, self._js
        assert nc is not None
        assert js is not None
        self._requests, self._settled = None, False
        await _ensure_stream(js, self._settings.replicas, self._settings.retention)
        await _ensure_bucket(js, self._settings.replicas)
        traffic = await self._read_traffic()
        if not self._begun:
            self._begun = True
            self._on_begin(traffic)
        elif traffic is not None:
            self._on_traffic(traffic)
        self._ack_prefix = nc.new_inbox() + "."
        await nc.subscribe(self._ack_prefix + "*", cb=self._acknowledged)
        await nc.subscribe(_TRAFFIC_SUBJECT, cb=self._traffic_changed)
        await self._settle_requests()
        await nc.subscribe(TICKS + "*", cb=self._ticked)
        await nc.subscribe(CONTROL, cb=self._control_changed)
        settings = self._settings
        await nc.subscribe(
            SHADOW + settings.slot, queue=f"{settings.slot}.{settings.release}", cb=self._copied
        )
        await nc.flush(timeout=2)

    async def _traffic_changed(self, message: Msg) -> None:
        await self._take(traffic_from(message.data))

    async def _take(self, traffic: Traffic | None) -> None:
        if traffic is not None:
            self._on_traffic(traffic)
        await self._settle_requests()

    async def announce(self) -> None:
        """Tell every instance that a switch was changed. One that does not hear it reads it soon anyway."""
        nc = self._nc
        if nc is not None and nc.is_connected:
            with contextlib.suppress(NatsError):
                await nc.publish(CONTROL, b"")

    async def copy(self, slot: str, data: bytes) -> bool:
        """Send a copy of an order to a slot; False where that would not leave at once."""
        nc = self._nc
        if nc is None or self._reason is not None or nc.pending_data_size > BACKLOG:
            return False
        try:
            await nc.publish(SHADOW + slot, data)
        except (NatsError, OSError):
            return False
        return True

    async def _copied(self, message: Msg) -> None:
        self._on_copy(message.data)

    async def _control_changed(self, message: Msg) -> None:
        self._on_control()

    async def _ticked(self, message: Msg) -> None:
        tick = tick_from(message.data)
        if tick is not None:
            self._on_tick(*tick)

    async def _watch(self, closed: asyncio.Event) -> None:
        """Until the connection is closed for good. Reads the map too, in case a message of it was lost."""
        nc = self._nc
        # The library tells nobody of its end where the last it had to write cannot be written.
        while nc is not None and not (closed.is_set() or nc.is_closed):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await closed.wait()
            if self._reason is None:
                with contextlib.suppress(NatsError, TimeoutError, OSError):
                    await self._take(await self._read_traffic())

    async def _read_traffic(self) -> Traffic | None:
        assert self._js is not None
        try:
            bucket = await self._js.key_value(BUCKET)
            entry = await bucket.get(TRAFFIC_KEY)
        except (BucketNotFoundError, KeyNotFoundError, NotFoundError):
            return None
        return traffic_from(entry.value or b"")

    async def _close(self) -> None:
        nc, self._nc, self._js = self._nc, None, None
        if nc is not None and not nc.is_closed:
            with contextlib.suppress(NatsError, OSError, TimeoutError):
                await nc.close()


async def _ensure_stream(js: JetStreamContext, replicas: int, retention: float) -> None:
    try:
        there_is = (await js.stream_info(STREAM)).config
        if there_is.max_age != retention:
            await js.update_stream(there_is.evolve(max_age=retention))
    except NotFoundError:
        await js.add_stream(
            StreamConfig(
                name=STREAM,
                subjects=["trading.events.>"],
                storage=StorageType.FILE,
                retention=RetentionPolicy.LIMITS,
                discard=DiscardPolicy.OLD,
                duplicate_window=DUPLICATE_WINDOW,
                max_age=retention,
                num_replicas=replicas,
            )
        )


async def _ensure_bucket(js: JetStreamContext, replicas: int) -> None:
    try:
        await js.key_value(BUCKET)
    except NotFoundError:
        # Made by whoever comes first; another one coming first with the same settings is no error.
        with contextlib.suppress(BadRequestError):
            await js.create_key_value(bucket=BUCKET, history=5, storage=StorageType.FILE, replicas=replicas)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def traffic_from(data: bytes) -> Traffic | None:
    """The traffic map in ``data``, or None if there is none to be read."""
    try:
        traffic = msgspec.json.decode(data, type=Traffic)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return traffic if 0 <= traffic.cut <= 10_000 and traffic.stable else None


class _Tick(msgspec.Struct):
    symbol: str
    price: str
    at: int


def tick_from(data: bytes) -> tuple[str, int, int] | None:
    """Symbol, scaled price and ms of a tick, or None if ``data`` is none."""
    try:
        tick = msgspec.json.decode(data, type=_Tick)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    price = money.parse(tick.price)
    return (
        (tick.symbol, price, tick.at)
        if price and valid_symbol(tick.symbol) and 0 < tick.at < 1 << 52
        else None
    )


def encode(event: Event) -> tuple[str, bytes]:
    """The subject and the JSON that tell of ``event``."""
    fields = event.fields
    body = {"id": event.id, "type": fields["e"], **{k: v for k, v in fields.items() if k != "e"}}
    return f"trading.events.{fields['e']}.{fields.get('account', 'all')}", msgspec.json.encode(body)
