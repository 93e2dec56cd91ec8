"""A small Redis client for one-off commands, over TCP or a Unix socket. Standard library only, as it travels to hosts."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, Union


class RedisError(RuntimeError):
    """The server refused a command, in its own words."""


class RedisConnection:
    """One connection, blocking, each answer bounded by a timeout."""

    def __init__(self, where: Union[Path, tuple[str, int]], user: str = "", password: str = "", timeout: float = 10.0) -> None:
        """Raises OSError where nobody listens, RedisError where the user is refused."""
        self._socket = socket.socket(socket.AF_UNIX) if isinstance(where, Path) else socket.create_connection(where, timeout)
        self._reader = self._socket.makefile("rb")
        try:
            if isinstance(where, Path):
                self._socket.settimeout(timeout)
                self._socket.connect(str(where))
            if password:
                self.call(*(["AUTH", user, password] if user else ["AUTH", password]))
        except (OSError, RedisError):
            self.close()
            raise

    def close(self) -> None:
        """End the connection."""
        self._reader.close()
        self._socket.close()

    def __enter__(self) -> RedisConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, *words: Union[str, int]) -> Any:
        """The answer to a command: text, a number, a list, or None. Raises RedisError."""
        parts = [str(word).encode() for word in words]
        self._socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
        return self._read()

    def info(self, section: str) -> dict[str, str]:
        """A section of INFO by name."""
        lines = str(self.call("INFO", section)).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))

    def _read(self) -> Any:
        line = self._reader.readline()
        if not line.endswith(b"\r\n"):
            raise OSError("the server closed the connection")
        kind, rest = line[:1], line[1:-2].decode()
        if kind == b"-":
            raise RedisError(rest)
        if kind == b"$":
            return None if rest == "-1" else self._reader.read(int(rest) + 2)[:-2].decode(errors="replace")
        if kind == b"*":
            return None if rest == "-1" else [self._read() for _ in range(int(rest))]
        return int(rest) if kind == b":" else rest
