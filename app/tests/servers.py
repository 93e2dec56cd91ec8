"""Real servers on free ports, started and stopped by the tests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOKEN = "a-token-for-tests"
OBSERVER = "a-token-that-may-only-look"
NARROW = "a-token-for-one-account"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def need(program: str) -> str:
    """The program's path. Without it: a failure in CI, a skip on a laptop."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} is not installed")
        pytest.skip(f"{program} is not installed")
    return path


def until(condition: Callable[[], Any], seconds: float = 10, what: str = "") -> Any:
    """The first true value of ``condition``; fails after six times the ``seconds`` that it takes at most on a
    machine that is free: how long something takes is not what a test asserts."""
    end = time.monotonic() + 6 * seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {6 * seconds} s: {what or condition}"
        time.sleep(0.02)


def listening(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(0.5)
        return client.connect_ex(("127.0.0.1", port)) == 0


class Server:
    """A process that can be killed and started again on the same port and data."""

    def __init__(self, command: list[str], port: int, log: Path, env: dict[str, str] | None = None) -> None:
        self.command = command
        self.port = port
        self.log = log
        self.env = env
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        with self.log.open("ab") as log:
            process = self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=self.env)
        if wait:
            until(
                lambda: listening(self.port) or process.poll() is not None,
                60,
                f"{self.command[0]} listens",
            )
            assert process.poll() is None, self.log.read_text()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, seconds: float = 20) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)


class Redis(Server):
    def __init__(self, directory: Path, *options: str) -> None:
        port = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        command = [
            need("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory),
            "--save", "", "--appendonly", "yes", "--appendfsync", "everysec", *options,
        ]  # fmt: skip
        super().__init__(command, port, directory / "redis.log")
        self.url = f"redis://127.0.0.1:{port}/0"

    def cli(self, *command: str) -> str:
        done = subprocess.run(
            [need("redis-cli"), "-p", str(self.port), *command],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return done.stdout.strip()


class Nats(Server):
    def __init__(self, directory: Path, *options: str) -> None:
        port = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        command = [
            need("nats-server"), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(directory), *options,
        ]  # fmt: skip
        super().__init__(command, port, directory / "nats.log")
        self.url = f"nats://127.0.0.1:{port}"


class App(Server):
    """An instance of the executor, as a process of its own."""

    def __init__(
        self,
        directory: Path,
        redis_url: str,
        nats_url: str,
        *,
        slot: str = "blue",
        extra: str = "",
        **env: str,
    ) -> None:
        port = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "config.yaml"
        if "venue:" not in extra:
            extra += "venue: {adapter: hold}\n"
        config.write_text(
            f"server: {{port: {port}, drain_notice: 300ms, tokens_file: {write_tokens(directory)}}}\n"
            f'redis: {{url: "{redis_url}"}}\n'
            f'nats: {{url: "{nats_url}", reconnect_wait: 50ms}}\n' + extra
        )
        environment = {
            **os.environ, "TRADING_RELEASE_ID": "r1", "TRADING_RELEASE_SLOT": slot,
            "TRADING_RELEASE_IMAGE": "sha256:0", "TRADING_RELEASE_INSTANCE": f"host-{port}", **env,
        }  # fmt: skip
        command = [sys.executable, "-m", "trading_bot", "-config", str(config)]
        super().__init__(command, port, directory / f"app-{slot}-{port}.log", environment)
        self.url = f"http://127.0.0.1:{port}"
        self.config = config

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = TOKEN,
        account: str | None = "alice",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, decoded body, and headers with lower-case names."""
        request = urllib.request.Request(self.url + path, method=method)
        if body is not None:
            request.data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        if account is not None:
            request.add_header("X-Account-Id", account)
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, _body(answer), {k.lower(): v for k, v in answer.headers.items()}
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _body(error), {k.lower(): v for k, v in error.headers.items()}

    def ready(self) -> bool:
        try:
            return self.call("GET", "/health/ready")[0] == 200
        except OSError:
            return False

    def start_ready(self) -> None:
        self.start()
        until(self.ready, 10, "ready")

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


def _body(answer: Any) -> dict[str, Any]:
    text = answer.read()
    if "json" not in answer.headers.get("content-type", ""):
        return {"text": text.decode()}
    return dict(json.loads(text))


class PaperVenue(Server):
    """The paper exchange, as a process of its own."""

    def __init__(self, directory: Path, nats_url: str, *options: str) -> None:
        port = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "venue.yaml"
        config.write_text(f'nats: {{url: "{nats_url}", reconnect_wait: 50ms}}\n')
        command = [
            sys.executable, "-m", "trading_bot", "venue", "-config", str(config), "--port", str(port),
            "--journal", str(directory / "journal"), *options,
        ]  # fmt: skip
        super().__init__(command, port, directory / "venue.log")
        self.url = f"http://127.0.0.1:{port}"

    def call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(self.url + path, method=method)
        if body is not None:
            request.data = json.dumps(body).encode()
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def faults(self, **chances: float) -> None:
        self.call("POST", "/v1/faults", chances)


def verified(redis: Redis, venue: PaperVenue | None = None) -> dict[str, Any]:
    """What ``verify-ledger`` says."""
    command = [sys.executable, "-m", "trading_bot", "verify-ledger", "--redis", redis.url]
    if venue is not None:
        command += ["--venue", venue.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout, done.stderr
    verdict = dict(json.loads(done.stdout))
    assert done.returncode == (0 if verdict["ok"] else 1)
    return verdict


def write_tokens(directory: Path) -> Path:
    path = directory / "tokens.json"
    tokens = [
        (TOKEN, "desk", ["trade", "observe", "operate"], ["*"]),
        (OBSERVER, "wall", ["observe"], ["*"]),
        (NARROW, "one", ["trade"], ["alice"]),
    ]
    path.write_text(
        json.dumps(
            {
                "tokens": [
                    {
                        "name": name,
                        "sha256": hashlib.sha256(token.encode()).hexdigest(),
                        "roles": roles,
                        "accounts": accounts,
                    }
                    for token, name, roles, accounts in tokens
                ]
            }
        )
    )
    (directory / "token").write_text(TOKEN + "\n")
    return path


def order(client_order_id: str, **fields: Any) -> dict[str, Any]:
    """A small limit order, with ``fields`` set otherwise; a field that is None is left out."""
    whole = {
        "client_order_id": client_order_id, "symbol": "BTC-USDT", "side": "buy", "type": "limit",
        "quantity": "0.001", "price": "50000", **fields,
    }  # fmt: skip
    return {name: value for name, value in whole.items() if value is not None}
