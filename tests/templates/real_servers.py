"""What the template tests share: real servers on free ports."""

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest


def program(name: str) -> str:
    """Return the path of a server's program. Without it a test is skipped on a laptop and fails in CI."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        message = f"{name} is not installed"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def free_ports(count: int) -> list[int]:
    """Return distinct ports of the loopback interface that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Return as soon as `condition` holds; fail the test when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def listens(port: int, address: str = "127.0.0.1") -> bool:
    """Tell whether somebody listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def log_tail(path: Path) -> str:
    """Return the end of a server's log, for a message."""
    return path.read_text()[-2000:] if path.exists() else ""
