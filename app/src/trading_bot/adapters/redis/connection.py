"""One Redis connection that everything concurrent shares.

Commands of one turn of the event loop leave in one write, and answers come back in order, so a hundred
concurrent orders cost one round trip. It reconnects by itself; while it is away every command fails at
once, and one that gets no answer within ``deadline`` fails with the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import hiredis

from trading_bot.errors import LedgerError, Unavailable

Argument = str | bytes | int
# Errors that say "not now": the command was not carried out and may be sent again.
_NOT_NOW = (
    "LOADING",
    "BUSY",
    "MASTERDOWN",
    "READONLY",
    "MISCONF",
    "OOM",
    "NOREPLICAS",
    "TRYAGAIN",
    "CLUSTERDOWN",
)
# Commands that leave at once, so that the server begins on them while more are being prepared here.
_BURST = 8
_NOT_ALLOWED = ("NOAUTH", "WRONGPASS", "NOPERM")


@dataclass(frozen=True)
class Endpoint:
    host: str
    port: int
    database: int
    username: str
    password: str
    tls: bool

    @classmethod
    def from_url(cls, url: str, username: str, password: str) -> Endpoint:
        """The endpoint of a redis:// or rediss:// URL; a password of its own wins over the URL's."""
        split = urlsplit(url)
        return cls(
            host=split.hostname or "localhost",
            port=split.port or 6379,
            database=int(split.path.strip("/") or 0),
            username=username or unquote(split.username or ""),
            password=password or unquote(split.password or ""),
            tls=split.scheme == "rediss",
        )


class Connection(asyncio.Protocol):
    """A connection and the commands that wait on it."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._out: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        self.lost: asyncio.Future[str] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch = self._loop.call_later(self._deadline / 4, self._check)

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        reader.feed(data)
        try:
            reply = reader.gets()
            while reply is not False:
                future, _ = waiting.popleft()
                if not future.done():
                    future.set_result(reply)
                reply = reader.gets()
        except hiredis.ProtocolError as error:
            self.close(f"broken answer: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(f"connection lost ({exc})" if exc else "connection closed by the server")

    def close(self, reason: str) -> None:
        """End the connection; whatever waits on it fails with ``reason``."""
        if self.lost.done():
            return
        self.lost.set_result(reason)
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._out.clear()
        for future, _ in self._waiting:
            if not future.done():
                future.set_exception(Unavailable("redis", reason))
        self._waiting.clear()

    def send(self, *command: Argument) -> asyncio.Future[Any]:
        """The reply to ``command``; a hiredis.ReplyError is a reply too."""
        future = self._loop.create_future()
        if self.lost.done():
            future.set_exception(Unavailable("redis", self.lost.result()))
            return future
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(hiredis.pack_command(command))  # type: ignore[arg-type]  # it takes str too
        self._waiting.append((future, self._loop.time()))
        if len(self._out) >= _BURST:
            self._flush()
        return future

    def _flush(self) -> None:
        if self._out and self._transport is not None:
            data = b"".join(self._out)
            self._out.clear()
            self._transport.write(data)

    def _check(self) -> None:
        if self._waiting and self._loop.time() - self._waiting[0][1] > self._deadline:
            self.close(f"no answer within {self._deadline:g} s")
            return
        self._watch = self._loop.call_later(self._deadline / 4, self._check)


class Client:
    """A connection that is kept up. ``reason()`` is None while it is usable."""

    def __init__(
        self,
        endpoint: Callable[[], Endpoint],
        *,
        name: str,
        scripts: Sequence[str] = (),
        deadline: float = 0.7,
    ) -> None:
        self._endpoint = endpoint
        self._name = name
        self._scripts = scripts
        self._deadline = deadline
        self._connection: Connection | None = None
        self.connections = 0
        self._reason: str | None = "not connected yet"
        self._task: asyncio.Task[None] | None = None
        self._changed: list[Callable[[str | None], None]] = []

    def reason(self) -> str | None:
        return self._reason

    def on_change(self, callback: Callable[[str | None], None]) -> None:
        """Call ``callback`` with the new reason whenever it changes."""
        self._changed.append(callback)

    async def usable(self) -> None:
        """Return once there is a connection."""
        if self._reason is not None:
            up = asyncio.Event()
            self.on_change(lambda reason: up.set() if reason is None else None)
            await up.wait()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep_up())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._connection is not None:
            self._connection.close("stopped")
        # The transport ends in the next turn of the loop.
        await asyncio.sleep(0)

    async def call(self, *command: Argument) -> Any:
        """The reply to ``command``. Raises Unavailable, or LedgerError for an error that is no state."""
        connection = self._connection
        if connection is None:
            raise Unavailable("redis", self._reason or "not connected")
        reply = await connection.send(*command)
        if type(reply) is hiredis.ReplyError:
            if str(reply).startswith("NOSCRIPT"):
                # Somebody flushed the scripts. Nothing was carried out, so load them and send it again.
                await self._load(connection)
                reply = await connection.send(*command)
            if type(reply) is hiredis.ReplyError:
                raise _error(reply)
        return reply

    def _set(self, reason: str | None) -> None:
        if reason != self._reason:
            self._reason = reason
            for callback in self._changed:
                callback(reason)

    async def _keep_up(self) -> None:
        wait = 0.05
        while True:
            connection = None
            try:
                connection = await self._connect()
                self._connection = connection
                self.connections += 1
                self._set(None)
                wait = 0.05
                # Shielded: to stop waiting for the loss must not count as one.
                reason = await asyncio.shield(connection.lost)
            except Unavailable as error:
                reason = error.reason
            except (OSError, ValueError) as error:
                reason = f"{type(error).__name__}: {error}"
            finally:
                self._connection = None
                if connection is not None:
                    connection.close("stopped")
            self._set(reason)
            await asyncio.sleep(wait)
            wait = min(wait * 2, 0.5)

    async def _connect(self) -> Connection:
        endpoint = self._endpoint()
        context = ssl.create_default_context() if endpoint.tls else None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(2):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._deadline), endpoint.host, endpoint.port, ssl=context
                )
        except TimeoutError:
            raise Unavailable("redis", "no connection within 2 s") from None
        try:
            if endpoint.password:
                credentials = (
                    (endpoint.username, endpoint.password) if endpoint.username else (endpoint.password,)
                )
                await self._expect_ok(connection, "AUTH", *credentials)
            if endpoint.database:
                await self._expect_ok(connection, "SELECT", endpoint.database)
            await self._expect_ok(connection, "CLIENT", "SETNAME", self._name)
            await self._load(connection)
        except BaseException:
            connection.close("set-up failed")
            raise
        return connection

    async def _load(self, connection: Connection) -> None:
        for script in self._scripts:
            reply = await connection.send("SCRIPT", "LOAD", script)
            if type(reply) is hiredis.ReplyError:
                raise _error(reply)

    @staticmethod
    async def _expect_ok(connection: Connection, *command: Argument) -> None:
        reply = await connection.send(*command)
        if type(reply) is hiredis.ReplyError:
            raise _error(reply, refused=True)


class Pool:
    """Connections beside that of the orders, so that nothing long is in front of an order. One at first, and
    one more whenever all wait for an answer, up to ``size``."""

    def __init__(
        self, endpoint: Callable[[], Endpoint], *, name: str, scripts: Sequence[str] = (), size: int
    ) -> None:
        self._endpoint = endpoint
        self._name = name
        self._scripts = scripts
        self._size = size
        self._waiting: dict[Client, int] = {}

    def start(self) -> None:
        client = Client(self._endpoint, name=self._name, scripts=self._scripts)
        self._waiting[client] = 0
        client.start()

    async def call(self, *command: Argument) -> Any:
        """As ``Client.call``."""
        client = min(self._waiting, key=lambda client: (client.reason() is not None, self._waiting[client]))
        if self._waiting[client] and len(self._waiting) < self._size:
            # This call does not wait for it; the next one finds it open.
            self.start()
        self._waiting[client] += 1
        try:
            return await client.call(*command)
        finally:
            self._waiting[client] -= 1

    async def stop(self) -> None:
        for client in self._waiting:
            await client.stop()


def _error(reply: Exception, refused: bool = False) -> Unavailable | LedgerError:
    text = str(reply)
    code = text.partition(" ")[0]
    if code in _NOT_NOW:
        return Unavailable("redis", text)
    if code in _NOT_ALLOWED or refused:
        return Unavailable("redis", f"access refused: {text}")
    return LedgerError(text)
