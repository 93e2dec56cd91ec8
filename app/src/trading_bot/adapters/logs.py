"""One JSON object a line on standard output, written once per turn of the event loop."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode


class JsonLog:
    """``ports.Log``. ``bound`` is on every line: which instance speaks."""

    def __init__(self, fd: int = 1, **bound: str) -> None:
        self._fd = fd
        self._bound = bound
        self._lines: list[bytes] = []
        self._second = 0
        self._stamp = ""

    def __call__(self, event: str, /, **fields: Any) -> None:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        stamp = f"{self._stamp}.{int((now - second) * 1000):03d}Z"
        self._lines.append(_encode({"at": stamp, "event": event, **fields, **self._bound}))
        if len(self._lines) == 1:
            try:
                asyncio.get_running_loop().call_soon(self.flush)
            except RuntimeError:
                self.flush()

    def flush(self) -> None:
        if not self._lines:
            return
        data = b"\n".join(self._lines) + b"\n"
        self._lines.clear()
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except OSError:
                # Nobody reads the log any more. Orders go on.
                return
