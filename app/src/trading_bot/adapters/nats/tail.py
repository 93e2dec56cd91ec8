"""An account's events, read from the stream that every instance publishes to."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from trading_bot.adapters.nats.bus import STREAM, Bus
from trading_bot.errors import Unavailable
from trading_bot.ports import Batch, Event

BATCH = 64
"""The most that is asked for at once, and so the most that waits here for a slow reader."""
GONE_SECONDS = 30.0


class EventTail:
    """``ports.Tail``. Each reader has a consumer of its own, which the server forgets by itself."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def follow(self, account: str, after: int | None, idle: float) -> AsyncGenerator[Batch, None]:
        nc, js = self._bus.connection()
        try:
            state = (await js.stream_info(STREAM)).state
            position = state.last_seq if after is None else after
            # A stream that was made anew, or that was cut: what was missed cannot be told.
            gap = position > state.last_seq or position + 1 < state.first_seq
            if gap:
                position = state.last_seq
            yield Batch((), position, gap)
            async for batch in self._consume(nc, js, account, position, idle):
                yield batch
        except (NatsError, OSError, TimeoutError) as error:
            raise Unavailable("nats", f"{type(error).__name__}: {error}") from None

    async def _consume(
        self, nc: Client, js: JetStreamContext, account: str, position: int, idle: float
    ) -> AsyncGenerator[Batch, None]:
        inbox = nc.new_inbox()
        subscription = await nc.subscribe(inbox)
        consumer = await js.add_consumer(
            STREAM,
            ConsumerConfig(
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=position + 1,
                # trading.events.<what>.<happened>.<account>
                filter_subject=f"trading.events.*.*.{account}",
                ack_policy=AckPolicy.NONE,
                inactive_threshold=GONE_SECONDS,
                mem_storage=True,
                num_replicas=1,
            ),
        )
        name = consumer.name
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{name}"
        request = json.dumps({"batch": BATCH, "expires": int(idle * 1e9)}).encode()
        try:
            while True:
                await nc.publish(subject, request, reply=inbox)
                asked = BATCH
                while asked:
                    messages = await _arrived(subscription, asked, idle + 2)
                    if messages is None:
                        # Nothing more for this request: it came to its time.
                        yield Batch((), position, False)
                        break
                    asked -= len(messages)
                    events = tuple(_event(message) for message in messages)
                    position = int(events[-1].id)
                    yield Batch(events, position, False)
        finally:
            with contextlib.suppress(NatsError, OSError, TimeoutError):
                await subscription.unsubscribe()
                await js.delete_consumer(STREAM, str(name))


async def _arrived(subscription: Subscription, count: int, seconds: float) -> list[Msg] | None:
    """The messages that are here once the first is, or None at the end of the request."""
    messages: list[Msg] = []
    while not messages or (subscription.pending_msgs and len(messages) < count):
        message = await subscription.next_msg(seconds)
        status = (message.headers or {}).get("Status", "")
        if not status:
            messages.append(message)
        elif status in ("404", "408"):
            return messages or None
        elif status != "100":
            raise OSError(f"the stream answered {status} {(message.headers or {}).get('Description', '')}")
    return messages


def _event(message: Msg) -> Event:
    """The event with its number in the stream as its id."""
    body = msgspec.json.decode(message.data, type=dict[str, str])
    fields = {"e": body.pop("type"), **{name: text for name, text in body.items() if name != "id"}}
    return Event(str(message.metadata.sequence.stream), fields)
