"""A notice reaches the notifier, and whatever the notifier does, the rollout goes on in time."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from plugin_testing import RunModule

NOTICE = {"event": "stage", "rollout": "r1", "from": "1.3.2-77ab01c2ff", "to": "1.4.0-3f2a9c01de", "stage": "20%"}


class Notifier(ThreadingHTTPServer):
    """Takes notices over HTTP as told, and keeps what it was sent."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
        taken: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                taken.append({"path": self.path, "type": self.headers["Content-Type"], **json.loads(self.rfile.read(length))})
                answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.taken = taken
        self.url = f"http://127.0.0.1:{self.server_port}/api/notices"


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[Notifier]:
    """A notifier that runs."""
    with Notifier(answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def says(status: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer without a body."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def test_a_notice_arrives_as_json_with_the_time(run_module: RunModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directly, although the environment names a proxy."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(says(202)) as notifier:
        told = run_module("release_notice", {"url": notifier.url, "notice": {**NOTICE, "report": None}})
    assert told["sent"] is True
    assert told["changed"] is True
    (taken,) = notifier.taken
    assert taken["path"] == "/api/notices"
    assert taken["type"] == "application/json"
    assert {key: taken[key] for key in NOTICE} == NOTICE
    assert taken["at"].endswith("Z")
    assert "report" not in taken


def test_the_notifier_is_shown_the_token(run_module: RunModule) -> None:
    shown: list[str | None] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        shown.append(request.headers["Authorization"])
        says(200)(request)

    with serving(answer) as notifier:
        run_module("release_notice", {"url": notifier.url, "notice": NOTICE, "token": "a-token"})
        run_module("release_notice", {"url": notifier.url, "notice": NOTICE})
    assert shown == ["Bearer a-token", None]


@pytest.mark.parametrize(("answer", "why"), [(says(500), "it answers 500"), (says(302, Location="/elsewhere"), "it answers 302")])
def test_a_notice_that_was_not_taken_is_said_and_fails_nothing(
    run_module: RunModule, answer: Callable[[BaseHTTPRequestHandler], None], why: str
) -> None:
    with serving(answer) as notifier:
        told = run_module("release_notice", {"url": notifier.url, "notice": NOTICE})
    assert told["sent"] is False
    assert "failed" not in told
    assert told["error"].startswith(why)
    assert len(notifier.taken) == 1


def test_a_notifier_that_is_not_there_fails_nothing(run_module: RunModule) -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    told = run_module("release_notice", {"url": url, "notice": NOTICE})
    assert told["sent"] is False
    assert "refused" in told["error"]


def test_a_notifier_that_answers_a_byte_at_a_time_is_not_waited_for(run_module: RunModule) -> None:
    """Each byte comes within the socket's timeout, the whole answer would never end."""
    over = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        while not over.wait(0.05):
            try:
                request.wfile.write(b"H")
            except OSError:
                return

    with serving(drip) as notifier:
        before = time.monotonic()
        told = run_module("release_notice", {"url": notifier.url, "notice": NOTICE, "timeout": 0.5})
        took = time.monotonic() - before
        over.set()
    assert told["sent"] is False
    assert took < 10


def test_without_a_notifier_and_in_check_mode_nothing_is_sent(run_module: RunModule) -> None:
    assert run_module("release_notice", {"url": "", "notice": NOTICE})["sent"] is False
    with serving(says(202)) as notifier:
        told = run_module("release_notice", {"url": notifier.url, "notice": NOTICE}, check=True)
    assert told["changed"] is False
    assert notifier.taken == []


@pytest.mark.parametrize(
    "given",
    [
        {"notice": {"event": "party"}},
        {"notice": {**NOTICE, "stagee": 1}},
        {"notice": NOTICE, "url": "file:///etc/passwd"},
        {"notice": NOTICE, "url": "mon1:9095"},
    ],
)
def test_a_mistake_of_a_playbook_is_one(run_module: RunModule, given: dict[str, Any]) -> None:
    assert run_module("release_notice", given)["failed"] is True
