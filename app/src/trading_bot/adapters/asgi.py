"""A server for an ASGI application that leaves signals to its caller."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import uvicorn


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server(application: Any, host: str, port: int, **more: Any) -> uvicorn.Server:
    """Not yet started; ``more`` are uvicorn's settings. It serves until its ``should_exit`` is true."""
    settings: dict[str, Any] = {"http": "httptools", "timeout_graceful_shutdown": 2, **more}
    return _Server(
        uvicorn.Config(
            application,
            host=host,
            port=port,
            loop="none",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            **settings,
        )
    )
