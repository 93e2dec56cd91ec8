"""An account's events as Server-Sent Events: ``GET /api/orders/stream``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import msgspec

from trading_bot.entrypoints import answers
from trading_bot.errors import Unavailable
from trading_bot.ports import Batch

IDLE_SECONDS = 2.0
"""How often a comment is sent when nothing happens; load balancers end what is silent for longer."""
STALL_SECONDS = 5.0
"""How long a reader may take nothing in before it is cut off."""

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Follow = Callable[[int | None, float], AsyncGenerator[Batch, None]]

_encode = msgspec.json.Encoder().encode


class _Slow(Exception):
    """The reader takes nothing in."""


async def serve(
    follow: Follow,
    after: int | None,
    on: Callable[[], bool],
    closing: asyncio.Event,
    receive: Receive,
    send: Send,
) -> tuple[str, bytes]:
    """Write the body of a stream whose head was sent; why it ends, and what ``finish`` is to write then. It
    goes on while ``on()``.

    Nothing is read from the source while the reader has not taken in what it was sent, so that a reader holds
    one batch of memory at most, and none slows down another.
    """

    async def write(data: bytes) -> None:
        await _write(send, data, more=True)

    async def pump() -> None:
        begun = False
        async with contextlib.aclosing(follow(after, IDLE_SECONDS)) as batches:
            async for batch in batches:
                if not on():
                    raise Unavailable("order_stream", "this feature is switched off")
                if batch.gap:
                    await write(_line("gap", {"detail": "events are missing: read the orders"}, batch.last))
                elif batch.events:
                    lines = (_line(e.fields["e"], answers.event_body(e), int(e.id)) for e in batch.events)
                    await write(b"".join(lines))
                else:
                    # The first names where the stream begins, for a reader that leaves before anything comes.
                    await write(b": \n\n" if begun else _line("begin", {}, batch.last))
                begun = True

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = {
        asyncio.create_task(pump(), name="source"),
        asyncio.create_task(gone(), name="left"),
        asyncio.create_task(closing.wait(), name="drain"),
    }
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    ended = min(done, key=lambda task: ("left", "source", "drain").index(task.get_name()))
    why, error = ended.get_name(), ended.exception()
    if why == "left":
        return why, b""
    detail = "the instance stops: connect again"
    if isinstance(error, _Slow):
        why, detail = "slow", f"nothing was read for {STALL_SECONDS:g} s"
    elif isinstance(error, Unavailable):
        detail = str(error)
    elif error is not None:
        raise error
    return why, _line("end", {"reason": why, "detail": detail}, None)


async def finish(send: Send, last: bytes) -> None:
    """End the body; a reader that still takes nothing in is not waited for."""
    with contextlib.suppress(_Slow):
        await _write(send, last, more=False)


async def _write(send: Send, data: bytes, *, more: bool) -> None:
    try:
        async with asyncio.timeout(STALL_SECONDS):
            await send({"type": "http.response.body", "body": data, "more_body": more})
    except TimeoutError:
        raise _Slow from None


def _line(name: str, body: Any, number: int | None) -> bytes:
    id = b"" if number is None else b"id: %d\n" % number
    return b"%sevent: %s\ndata: %s\n\n" % (id, name.encode(), _encode(body))
