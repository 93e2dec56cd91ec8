"""A small NATS client for one-off requests: connect, request with reply, JetStream key-value get and put.

Standard library only, as it travels to hosts; blocking, and every call is bounded by a timeout.
"""

from __future__ import annotations

import base64
import json
import secrets
import socket
import ssl
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

_STREAM_NOT_FOUND, _MESSAGE_NOT_FOUND, _STREAM_NAME_IN_USE, _WRONG_LAST_SEQUENCE = 10059, 10037, 10058, 10071
_NO_RESPONDERS = "503"


class NatsError(RuntimeError):
    """The server cannot be reached or says no; the message is one sentence for the operator, without secrets."""


class JetStreamError(NatsError):
    """An error that the JetStream API answered, with its number."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        return f"{'tls' if self.tls else 'nats'}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """``host``, ``host:port``, ``nats://host:port`` or ``tls://host:port``; IPv6 in brackets; 4222 where no port is named."""
    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        scheme, rest = "nats", scheme
    if scheme not in ("nats", "tls") or "@" in rest:
        raise NatsError(f"{text.rpartition('@')[2]!r} is no NATS server, expected nats://host:port without a user")
    host, _, port = rest.rpartition("]:") if rest.startswith("[") else rest.partition(":")
    if rest.startswith("["):
        host, port = (host[1:], port) if host else (rest[1:-1], "")
    if not host or (port and not port.isdecimal()):
        raise NatsError(f"{text!r} is no NATS server, expected nats://host:port")
    return Address(host, int(port or 4222), scheme == "tls")


@dataclass(frozen=True)
class Message:
    """A message as it came: its status (empty for an ordinary one), and its payload."""

    status: str
    payload: bytes


class Connection:
    """One authenticated connection."""

    def __init__(self, stream: socket.socket, address: Address, timeout: float) -> None:
        self.address = address
        self.timeout = timeout
        self._stream = stream
        self._buffer = bytearray()
        self._deadline = time.monotonic() + timeout
        self._waiting: dict[str, deque[tuple[Message, str]]] = {}

    def close(self) -> None:
        """End the connection."""
        self._stream.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # reading and writing

    def _within_deadline(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise NatsError(f"{self.address} did not answer within {self.timeout:g} s")
        self._stream.settimeout(left)

    def _fill(self) -> None:
        try:
            self._within_deadline()
            chunk = self._stream.recv(65536)
        except OSError as error:
            raise NatsError(f"{self.address} did not answer within {self.timeout:g} s: {error}") from error
        if not chunk:
            raise NatsError(f"{self.address} closed the connection")
        self._buffer += chunk

    def _send(self, data: bytes) -> None:
        try:
            self._within_deadline()
            self._stream.sendall(data)
        except OSError as error:
            raise NatsError(f"{self.address} cannot be written to: {error}") from error

    def _line(self) -> str:
        while b"\r\n" not in self._buffer:
            self._fill()
        line, _, rest = bytes(self._buffer).partition(b"\r\n")
        self._buffer = bytearray(rest)
        return line.decode(errors="replace")

    def _bytes(self, size: int) -> bytes:
        while len(self._buffer) < size + 2:
            self._fill()
        data = bytes(self._buffer[:size])
        del self._buffer[: size + 2]
        return data

    def _next(self) -> tuple[str, list[str], Optional[Message]]:
        """The next operation that is not housekeeping: its verb, its arguments, its message if it carries one."""
        while True:
            verb, _, rest = self._line().partition(" ")
            verb = verb.upper()
            if verb == "PING":
                self._send(b"PONG\r\n")
            elif verb == "-ERR":
                raise NatsError(f"{self.address} says: {rest.strip(chr(39))}")
            elif verb == "MSG":
                words = rest.split()
                return verb, words, Message("", self._bytes(int(words[-1])))
            elif verb == "HMSG":
                words = rest.split()
                data = self._bytes(int(words[-1]))
                header = data[: int(words[-2])].split(b"\r\n", 1)[0].decode().split(None, 2)
                return verb, words, Message(header[1] if len(header) > 1 else "", data[int(words[-2]) :])
            elif verb not in ("INFO", "+OK"):
                return verb, [rest], None

    # the session

    def greet(self, user: Optional[str], password: Optional[str], tls: Optional[ssl.SSLContext]) -> None:
        """Read the server's INFO, turn on TLS where asked or demanded, authenticate."""
        line = self._line()
        if not line.upper().startswith("INFO "):
            raise NatsError(f"{self.address} is no NATS server: it said {line[:60]!r}")
        about = json.loads(line[5:])
        if tls is None and about.get("tls_required"):
            raise NatsError(f"{self.address} demands TLS, and it was not asked for")
        if tls is not None:
            if not (about.get("tls_required") or about.get("tls_available")):
                raise NatsError(f"TLS was asked for, and {self.address} has none")
            self._within_deadline()
            try:
                self._stream = tls.wrap_socket(self._stream, server_hostname=self.address.host)
            except OSError as error:
                raise NatsError(f"TLS with {self.address} failed: {error}") from error
        options: dict[str, Any] = {
            "verbose": False,
            "pedantic": False,
            "name": "trading-bot-release",
            "lang": "python",
            "version": "1",
            "protocol": 1,
            "headers": True,
            "no_responders": True,
        }
        if user is not None:
            options.update(user=user, **{"pass": password or ""})
        self._send(b"CONNECT " + json.dumps(options).encode() + b"\r\nPING\r\n")
        verb, rest, _ = self._next()
        if verb != "PONG":
            raise NatsError(f"{self.address} answered {verb} {' '.join(rest)!r} to the greeting")

    def request(self, subject: str, payload: bytes, headers: Optional[Mapping[str, str]] = None) -> Message:
        """Publish with a reply inbox and wait for the one answer."""
        self._deadline = time.monotonic() + self.timeout
        inbox = f"_INBOX.{secrets.token_hex(11)}"
        number = secrets.randbits(31)
        operation = f"SUB {inbox} {number}\r\nUNSUB {number} 1\r\n".encode()
        if headers:
            head = ("NATS/1.0\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items()) + "\r\n").encode()
            operation += f"HPUB {subject} {inbox} {len(head)} {len(head) + len(payload)}\r\n".encode() + head
        else:
            operation += f"PUB {subject} {inbox} {len(payload)}\r\n".encode()
        self._send(operation + payload + b"\r\n")
        while True:
            verb, words, message = self._next()
            if message is not None and words[0] == inbox:
                return message
            self._keep(verb, words, message)

    def _keep(self, verb: str, words: list[str], message: Optional[Message]) -> None:
        """Keep a message for `receive`, and where it wants its answer, if it is for an inbox of `subscribe`."""
        if message is not None and words[0] in self._waiting:
            sizes = 2 if verb == "HMSG" else 1
            self._waiting[words[0]].append((message, words[2] if len(words) == 3 + sizes else ""))

    def subscribe(self) -> str:
        """An inbox of our own, whose messages `receive` returns: those too that come while another answer is waited for."""
        inbox = f"_INBOX.{secrets.token_hex(11)}"
        self._waiting[inbox] = deque()
        self._deadline = time.monotonic() + self.timeout
        self._send(f"SUB {inbox} {secrets.randbits(31)}\r\n".encode())
        return inbox

    def publish(self, subject: str, payload: bytes) -> None:
        """Publish without waiting for an answer."""
        self._deadline = time.monotonic() + self.timeout
        self._send(f"PUB {subject} {len(payload)}\r\n".encode() + payload + b"\r\n")

    def receive(self, inbox: str) -> tuple[Message, str]:
        """The next message to an inbox of `subscribe`, and the subject that it wants to be answered on; empty: none."""
        self._deadline = time.monotonic() + self.timeout
        while not self._waiting[inbox]:
            self._keep(*self._next())
        return self._waiting[inbox].popleft()

    def api(self, subject: str, payload: Mapping[str, Any], headers: Optional[Mapping[str, str]] = None) -> dict[str, Any]:
        """A request that JetStream answers with JSON; raises JetStreamError with what it says when it says no."""
        message = self.request(subject, json.dumps(payload).encode() if payload else b"", headers)
        return self._answer(subject, message)

    def _answer(self, subject: str, message: Message) -> dict[str, Any]:
        if message.status == _NO_RESPONDERS:
            raise NatsError(f"nobody answers {subject} at {self.address}: is JetStream on, and does the stream exist?")
        answer: dict[str, Any] = json.loads(message.payload)
        error = answer.get("error")
        if error:
            raise JetStreamError(int(error.get("err_code", 0)), f"{self.address}: {subject}: {error.get('description')}")
        return answer


def connect(
    servers: Sequence[str],
    user: Optional[str] = None,
    password: Optional[str] = None,
    tls: Optional[ssl.SSLContext] = None,
    timeout: float = 2.0,
) -> Connection:
    """A connection to the first of the servers that lets us in; raises NatsError with every server's reason."""
    reasons = []
    for text in servers:
        address = parse_address(text)
        try:
            stream = socket.create_connection((address.host, address.port), timeout=timeout)
        except OSError as error:
            reasons.append(f"{address}: {error}")
            continue
        connection = Connection(stream, address, timeout)
        try:
            context = tls or (ssl.create_default_context() if address.tls else None)
            connection.greet(user, password, context)
        except NatsError as error:
            connection.close()
            reasons.append(str(error))
            continue
        return connection
    raise NatsError("no NATS server lets us in: " + ("; ".join(reasons) or "none was named"))


# --- the key-value bucket ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A key's value, and the revision that it has."""

    value: bytes
    revision: int


class Conflict(NatsError):
    """The key has another revision than the one that was expected: somebody else wrote it meanwhile."""


class KeyValue:
    """A JetStream key-value bucket."""

    def __init__(self, connection: Connection, bucket: str) -> None:
        self._connection = connection
        self.bucket = bucket
        self.stream = f"KV_{bucket}"

    def exists(self) -> bool:
        """Whether the bucket is there."""
        try:
            self._connection.api(f"$JS.API.STREAM.INFO.{self.stream}", {})
        except JetStreamError as error:
            if error.code == _STREAM_NOT_FOUND:
                return False
            raise
        return True

    def create(self, history: int, replicas: int) -> bool:
        """Make the bucket; False when somebody else made it first, perhaps with other settings, which stay."""
        settings = {
            "name": self.stream,
            "subjects": [f"$KV.{self.bucket}.>"],
            "storage": "file",
            "retention": "limits",
            "discard": "new",
            "max_msgs_per_subject": history,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_consumers": -1,
            "max_msg_size": -1,
            "num_replicas": replicas,
            "duplicate_window": 120_000_000_000,
            "allow_rollup_hdrs": True,
            "deny_delete": True,
        }
        try:
            self._connection.api(f"$JS.API.STREAM.CREATE.{self.stream}", settings)
        except JetStreamError as error:
            if error.code == _STREAM_NAME_IN_USE:
                return False
            raise
        return True

    def get(self, key: str) -> tuple[Optional[Entry], int]:
        """The key's value, None where it has none or was deleted; and the revision that a compare-and-set must name."""
        subject = f"$JS.API.STREAM.MSG.GET.{self.stream}"
        try:
            answer = self._connection.api(subject, {"last_by_subj": f"$KV.{self.bucket}.{key}"})
        except JetStreamError as error:
            if error.code == _MESSAGE_NOT_FOUND:
                return None, 0
            raise
        message = answer["message"]
        revision = int(message["seq"])
        headers = base64.b64decode(message.get("hdrs", ""))
        if b"KV-Operation:" in headers:
            return None, revision
        return Entry(base64.b64decode(message.get("data", "")), revision), revision

    def put(self, key: str, value: bytes, expected_revision: int) -> int:
        """Set the key if its revision is still the expected one (0: it has none); returns the new revision.

        Raises Conflict when it is not.
        """
        subject = f"$KV.{self.bucket}.{key}"
        headers = {"Nats-Expected-Last-Subject-Sequence": str(expected_revision)}
        message = self._connection.request(subject, value, headers)
        try:
            return int(self._connection._answer(subject, message)["seq"])
        except JetStreamError as error:
            if error.code == _WRONG_LAST_SEQUENCE:
                raise Conflict(f"somebody else wrote {key} to the bucket {self.bucket} meanwhile") from error
            raise
