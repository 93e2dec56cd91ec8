"""The paper exchange over HTTP, with ticks on NATS and faults on demand.

Amounts travel as decimal strings, times as milliseconds. Reports carry rising numbers, so that a reader
that was away asks for those above the last it saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import msgspec

from trading_bot.adapters import asgi
from trading_bot.domain import money
from trading_bot.domain.instrument import Instrument
from trading_bot.paper.exchange import Exchange, Line, VenueOrder
from trading_bot.paper.ticks import Replay

Publish = Callable[[str, bytes], Awaitable[None]]
_encode = msgspec.json.Encoder().encode


class NewOrder(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/orders``. After ``deadline`` the venue does nothing with it."""

    id: str
    symbol: str
    side: str
    type: str
    quantity: str
    price: str | None = None
    stop_price: str | None = None
    time_in_force: str = "GTC"
    deadline: int = 0


class Faults(msgspec.Struct, forbid_unknown_fields=True):
    """Chances from 0 to 1 of what goes wrong with a request, and delays in ms."""

    latency: float = 0
    lose_request: float = 0
    lose_answer: float = 0
    late: float = 0
    late_by: float = 3000
    disconnect: float = 0
    reject: float = 0
    duplicate: float = 0


class PaperVenue:
    """The ASGI application and the clock behind it."""

    def __init__(
        self,
        instruments: dict[Instrument, int],
        journal: str,
        *,
        seed: int,
        tick_seconds: float,
        replay: Replay | None = None,
    ) -> None:
        """Raises ValueError for a journal that cannot be read."""
        self._replayed = replay
        self._file = os.open(journal, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
        self.exchange = Exchange(instruments, self._write, seed=seed)
        self._replay(journal)
        self._instruments = instruments
        self._tick_seconds = tick_seconds
        self._dice = random.Random(seed + 1)  # noqa: S311  # repeatable faults, not a secret
        self._arrived = asyncio.Event()
        self._duplicates: dict[int, Line] = {}
        self.faults = Faults()

    def _replay(self, journal: str) -> None:
        good = 0
        with open(journal, "rb") as file:
            for line in file:
                # A process that was killed in mid-write leaves a last line without an end: it never happened,
                # since nothing was answered before it was written.
                if not line.endswith(b"\n"):
                    break
                try:
                    self.exchange.replay(msgspec.json.decode(line))
                except (msgspec.DecodeError, ValueError, KeyError) as error:
                    where = f"{journal}: byte {good}"
                    raise ValueError(f"{where}: {type(error).__name__}: {error}") from None
                good += len(line)
        os.ftruncate(self._file, good)

    def _write(self, lines: list[Line]) -> None:
        data = b"".join(_encode(line) + b"\n" for line in lines)
        try:
            written = os.write(self._file, data)
        except OSError as error:
            raise SystemExit(f"the journal cannot be written: {error.strerror}") from None
        if written != len(data):
            raise SystemExit("the journal cannot be written whole")
        self._arrived.set()

    async def run(self, publish: Publish) -> None:
        """Tick for ever: walk, or replay what was recorded."""
        if self._replayed is not None:
            await self._replay_ticks(self._replayed, publish)
        while True:
            await asyncio.sleep(self._tick_seconds)
            now = _now()
            self.exchange.expire(now)
            for symbol in self.exchange.markets if self._replayed is None else ():
                await _tell(publish, symbol, self.exchange.walk(symbol, now), now)

    async def _replay_ticks(self, replay: Replay, publish: Publish) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for after, tick in replay.schedule():
            await asyncio.sleep(max(0, began + after - loop.time()))
            now = _now()
            self.exchange.expire(now)
            self.exchange.tick(tick.symbol, tick.price, now)
            await _tell(publish, tick.symbol, tick.price, now)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = b""
        if scope["method"] == "POST":
            more = True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
        path, method = scope["path"], scope["method"]
        trading = path.startswith("/v1/orders")
        faults = self.faults
        if trading:
            if faults.latency:
                await asyncio.sleep(self._dice.expovariate(1000 / faults.latency))
            if self._hit(faults.lose_request):
                await asyncio.sleep(30)
                return await self._break_off(send)
            if self._hit(faults.late):
                await asyncio.sleep(self._dice.uniform(0, faults.late_by) / 1000)
        try:
            status, answer = await self._answer(method, path, parse_qs(scope["query_string"].decode()), body)
        except (msgspec.DecodeError, msgspec.ValidationError, ValueError, KeyError) as error:
            status, answer = 400, {"error": str(error)}
        if trading:
            if self._hit(faults.disconnect):
                return await self._break_off(send)
            if self._hit(faults.lose_answer):
                await asyncio.sleep(30)
                return await self._break_off(send)
        data = _encode(answer)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})
        return None

    def _hit(self, chance: float) -> bool:
        return chance > 0 and self._dice.random() < chance

    @staticmethod
    async def _break_off(send: Any) -> None:
        """Close in mid-answer: the server drops a connection whose answer was begun and not ended."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        await send({"type": "http.response.body", "body": b"", "more_body": True})

    async def _answer(
        self, method: str, path: str, query: dict[str, list[str]], body: bytes
    ) -> tuple[int, Any]:
        exchange = self.exchange
        if path == "/v1/orders" and method == "POST":
            return self._submit(msgspec.json.decode(body, type=NewOrder))
        if path == "/v1/orders":
            wanted = query.get("state", [""])[0]
            return 200, [self._show(o) for o in exchange.orders.values() if not wanted or o.state == wanted]
        if path.startswith("/v1/orders/"):
            id = path.removeprefix("/v1/orders/")
            order = exchange.cancel(id, _now()) if method == "DELETE" else exchange.orders.get(id)
            return (200, self._show(order)) if order else (404, {"error": "no such order"})
        if path == "/v1/reports":
            after, wait = int(query["after"][0]), float(query.get("wait", ["0"])[0])
            return 200, await self._reports(after, wait / 1000)
        if path == "/v1/head":
            return 200, {"last": len(exchange.lines)}
        if path == "/v1/instruments":
            return 200, [
                {
                    "symbol": i.symbol,
                    "tick": money.show(i.tick),
                    "lot": money.show(i.lot),
                    "minimum": money.show(i.minimum),
                    "maximum": money.show(i.maximum),
                    "mark": money.show(exchange.markets[i.symbol].mark),
                }
                for i in self._instruments
            ]
        if path == "/v1/faults" and method == "POST":
            self.faults = msgspec.json.decode(body, type=Faults)
            return 200, self.faults
        if path == "/health":
            return 200, {"status": "live", "orders": len(exchange.orders)}
        return 404, {"error": "nothing here"}

    def _submit(self, new: NewOrder) -> tuple[int, Any]:
        now = _now()
        if new.deadline and now > new.deadline:
            return 408, {"error": "came after its deadline"}
        quantity = money.parse(new.quantity)
        if not quantity or new.symbol not in self.exchange.markets:
            return 422, {"error": "unknown instrument or no quantity"}
        order = VenueOrder(
            new.id,
            new.symbol,
            new.side,
            new.type,
            quantity,
            None if new.price is None else money.parse(new.price),
            None if new.stop_price is None else money.parse(new.stop_price),
            new.time_in_force,
            now,
        )
        if new.id not in self.exchange.orders and self._hit(self.faults.reject):
            return 200, self._show(self.exchange.reject(order, now, "refused by the venue"))
        known = self.exchange.submit(order, now)
        return (200, self._show(known)) if known else (409, {"error": "the id names another order"})

    async def _reports(self, after: int, wait: float) -> Any:
        lines = self.exchange.lines
        if len(lines) <= after and wait:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._arrived.wait()
        chunk = lines[after : after + 500]
        reports: list[Line] = []
        for line in chunk:
            if line["kind"] in ("fill", "done", "rest"):
                report = self._report(line)
                reports.append(report)
                if self._hit(self.faults.duplicate):
                    reports.append(report)
        return {"last": after + len(chunk), "reports": reports}

    def _report(self, line: Line) -> Line:
        order = self.exchange.orders[line["id"]]
        report: Line = {"id": order.id, "state": "", "filled": "", "fills": [], "reason": ""}
        if line["kind"] == "fill":
            report["fills"] = [_fill(line)]
        elif line["kind"] == "rest":
            report["state"] = "open"
        else:
            # Everything that this order was ever filled is known by then.
            report |= {"state": line["state"], "filled": money.show(order.filled), "reason": line["reason"]}
        return report

    @staticmethod
    def _show(order: VenueOrder) -> Line:
        return {
            "id": order.id,
            "symbol": order.symbol,
            "side": order.side,
            "quantity": money.show(order.quantity),
            "state": order.state,
            "filled": money.show(order.filled),
            "fills": [_fill(line) for line in order.fills],
            "reason": order.reason,
        }


def _fill(line: Line) -> Line:
    return {
        "trade": line["trade"],
        "quantity": money.show(line["quantity"]),
        "price": money.show(line["price"]),
        "fee": money.show(line["fee"]),
        "at": line["at"],
    }


async def _tell(publish: Publish, symbol: str, mark: int, now: int) -> None:
    tick = {"symbol": symbol, "price": money.show(mark), "at": now}
    await publish(f"market.ticks.{symbol}", _encode(tick))


def _now() -> int:
    return int(time.time() * 1000)


async def serve(
    venue: PaperVenue, host: str, port: int, connect: Callable[[], Awaitable[Publish]] | None
) -> None:
    """Serve until SIGTERM or SIGINT. Ticks go to NATS as soon as it is there."""
    server = asgi.server(venue, host, port, timeout_graceful_shutdown=1)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    publish: Publish | None = None

    async def to_bus(subject: str, data: bytes) -> None:
        if publish is not None:
            await publish(subject, data)

    async def join() -> None:
        nonlocal publish
        if connect is not None:
            publish = await connect()

    market, joining = loop.create_task(venue.run(to_bus)), loop.create_task(join())
    market.add_done_callback(lambda _: stop())
    await server.serve()
    if market.done():
        market.result()  # it never ends by itself
    for task in (market, joining):
        task.cancel()
    await asyncio.gather(market, joining, return_exceptions=True)
