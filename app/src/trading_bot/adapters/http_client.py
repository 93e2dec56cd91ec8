"""A small HTTP/1.1 client: keep-alive connections, one request on each at a time, nothing sent twice."""

from __future__ import annotations

import asyncio
from typing import cast
from urllib.parse import urlsplit

import httptools

IDLE_SECONDS = 1.0
"""A connection that has been idle for longer may be closed by the server at any moment: not used again."""


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.open = True
        self.idle_since = 0.0
        self.transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, data: bytes) -> asyncio.Future[tuple[int, bytes]]:
        assert self.transport is not None
        self._waiting = asyncio.get_running_loop().create_future()
        self._body = []
        self._parser = httptools.HttpResponseParser(self)
        self.transport.write(data)
        return self._waiting

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"broken answer: {error}")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self.open = self.open and bool(self._parser.should_keep_alive())
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result((self._parser.get_status_code(), b"".join(self._body)))
        if not self.open and self.transport is not None:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(str(exc) if exc else "closed without an answer")

    def _fail(self, reason: str) -> None:
        self.open = False
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError(reason))
        if self.transport is not None:
            self.transport.abort()


class HttpClient:
    """Requests to one server. As many connections as there are requests without an answer."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        split = urlsplit(url)
        if split.scheme != "http" or not split.hostname:
            raise ValueError(f"cannot send to {url!r}: http://host:port is expected")
        self._host, self._port = split.hostname, split.port or 80
        self._base = split.path.rstrip("/")
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self._common = f"Host: {split.netloc}\r\n{lines}"
        self._idle: list[_Connection] = []

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: str = ""
    ) -> tuple[int, bytes]:
        """Status and body. ``headers`` are whole lines. Raises OSError where no answer came."""
        loop = asyncio.get_running_loop()
        connection = None
        while self._idle:
            candidate = self._idle.pop()
            if candidate.open and loop.time() - candidate.idle_since < IDLE_SECONDS:
                connection = candidate
                break
            if candidate.transport is not None:
                candidate.transport.close()
        if connection is None:
            _, connection = await loop.create_connection(_Connection, self._host, self._port)
        line = f"{method} {self._base}{path} HTTP/1.1\r\n"
        head = f"{line}{self._common}{headers}Content-Length: {len(body)}\r\n\r\n"
        try:
            answer = await connection.send(head.encode() + body)
        except BaseException:
            if connection.transport is not None:
                connection.transport.abort()
            raise
        if connection.open:
            connection.idle_since = loop.time()
            self._idle.append(connection)
        return answer

    def close(self) -> None:
        for connection in self._idle:
            if connection.transport is not None:
                connection.transport.close()
