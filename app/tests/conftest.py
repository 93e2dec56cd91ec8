from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servers import App, Nats, PaperVenue, Redis


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """One Redis for all tests that do not break it."""
    server = Redis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    """One NATS for all tests that do not break it."""
    server = Nats(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path / "redis")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[Nats]:
    server = Nats(tmp_path / "nats")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def app(redis: Redis, nats: Nats, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """One instance for all tests that neither stop it nor break what it needs."""
    instance = App(tmp_path_factory.mktemp("app"), redis.url, nats.url)
    instance.start_ready()
    yield instance
    instance.kill()


@pytest.fixture
def start_app(tmp_path: Path) -> Iterator[Callable[..., App]]:
    """Start instances of one's own; they are stopped at the end."""
    started: list[App] = []

    def start(redis_url: str, nats_url: str, *, ready: bool = True, **options: Any) -> App:
        instance = App(tmp_path / f"app{len(started)}", redis_url, nats_url, **options)
        started.append(instance)
        if ready:
            instance.start_ready()
        else:
            instance.start()
        return instance

    yield start
    for instance in started:
        instance.kill()


@pytest.fixture
def venue(own_nats: Nats, tmp_path: Path) -> Iterator[PaperVenue]:
    server = PaperVenue(tmp_path / "venue", own_nats.url, "--tick", "0.05")
    server.start()
    yield server
    server.kill()
