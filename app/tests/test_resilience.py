"""What happens when something is away, wrong, or told to stop."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servers import App, Nats, Redis, Server, order, until


def load(app_directory: Path, *options: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "trading_bot",
        "load",
        "--token-file",
        str(app_directory / "token"),
        *options,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def summary(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=60)
    return dict(json.loads(out.splitlines()[-1]))


def judged(log: Path, redis: Redis, nats: Nats | None = None) -> dict[str, Any]:
    command = [sys.executable, "-m", "trading_bot", "judge", str(log), "--redis", redis.url]
    if nats is not None:
        command += ["--nats", nats.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    verdict = dict(json.loads(done.stdout))
    assert done.returncode == (0 if verdict["ok"] else 1)
    return verdict


@pytest.mark.parametrize("victim", ["redis", "nats"])
def test_orders_are_503_while_a_dependency_is_away_and_resume_by_themselves(
    victim: str, own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(own_redis.url, own_nats.url)
    server: Server = own_redis if victim == "redis" else own_nats
    assert app.call("POST", "/api/orders", order("before"))[0] == 201
    server.kill()
    until(lambda: not app.ready(), 5, "not ready")
    began = time.monotonic()
    status, answer, headers = app.call("POST", "/api/orders", order("during"))
    assert time.monotonic() - began < 1
    assert (status, answer["dependency"], headers["retry-after"]) == (503, victim, "1")
    assert victim in app.call("GET", "/health/ready")[1]["reasons"]
    assert app.call("GET", "/health/live")[0] == 200
    assert app.call("GET", "/metrics")[0] == 200
    server.start()
    until(app.ready, 10, "ready again")
    assert app.call("POST", "/api/orders", order("before"))[0] == 200
    assert app.call("POST", "/api/orders", order("during"))[0] == 201


def test_a_redis_that_hangs_is_503_in_under_a_second(
    own_redis: Redis, nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(own_redis.url, nats.url)
    own_redis.signal(signal.SIGSTOP)
    began = time.monotonic()
    status, _, headers = app.call("POST", "/api/orders", order("a"))
    assert (status, headers["retry-after"]) == (503, "1")
    assert time.monotonic() - began < 1
    own_redis.signal(signal.SIGCONT)
    until(app.ready, 10, "ready again")
    assert app.call("POST", "/api/orders", order("a"))[0] in (200, 201)


def test_a_redis_that_cannot_write_is_not_ready(
    own_redis: Redis, nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(own_redis.url, nats.url)
    own_redis.cli("REPLICAOF", "127.0.0.1", "1")
    until(lambda: not app.ready(), 5, "not ready")
    assert "READONLY" in app.call("GET", "/health/ready")[1]["reasons"]["redis"]
    assert app.call("POST", "/api/orders", order("a"))[0] == 503
    own_redis.cli("REPLICAOF", "NO", "ONE")
    until(app.ready, 5, "ready again")


def test_a_wrong_redis_password_keeps_it_live_but_not_ready_with_the_reason(
    tmp_path: Path, nats: Nats, start_app: Callable[..., App]
) -> None:
    server = Redis(tmp_path / "secured", "--requirepass", "right")
    server.start()
    secret = tmp_path / "redis_password"
    secret.write_text("wrong-one\n")
    try:
        app = start_app(server.url, nats.url, ready=False, TRADING_REDIS_PASSWORD_FILE=str(secret))
        until(lambda: "WRONGPASS" in app.call("GET", "/health/ready")[1]["reasons"].get("redis", ""), 5)
        assert app.call("GET", "/health/live")[0] == 200
        assert app.call("POST", "/api/orders", order("a"))[0] == 503
        secret.write_text("right\n")
        until(app.ready, 5, "ready once the file is right")
        assert "wrong-one" not in app.log.read_text()
    finally:
        server.kill()


def test_a_wrong_nats_password_keeps_it_live_but_not_ready_with_the_reason(
    tmp_path: Path, redis: Redis, start_app: Callable[..., App]
) -> None:
    server = Nats(tmp_path / "secured", "--user", "bot", "--pass", "right")
    server.start()
    secret = tmp_path / "nats_password"
    secret.write_text("wrong-one\n")
    try:
        app = start_app(
            redis.url,
            server.url,
            ready=False,
            TRADING_NATS_USER="bot",
            TRADING_NATS_PASSWORD_FILE=str(secret),
        )
        until(lambda: "uthorization" in app.call("GET", "/health/ready")[1]["reasons"].get("nats", ""), 5)
        assert app.call("POST", "/api/orders", order("a"))[0] == 503
        secret.write_text("right\n")
        until(app.ready, 5, "ready once the file is right")
        assert "wrong-one" not in app.log.read_text()
    finally:
        server.kill()


def test_a_missing_secret_is_a_reason_not_a_crash(
    redis: Redis, nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(redis.url, nats.url, ready=False, TRADING_REDIS_PASSWORD_FILE="/nowhere/secret")
    until(lambda: "/nowhere/secret" in app.call("GET", "/health/ready")[1]["reasons"].get("redis", ""), 5)


def test_a_drain_loses_no_request(
    tmp_path: Path, own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    """Told to stop under load, an instance is not ready at once, serves on, flushes, and exits 0."""
    app = start_app(own_redis.url, own_nats.url, TRADING_SERVER_DRAIN_NOTICE="1500ms")
    log = tmp_path / "load.log"
    shooting = load(
        app.config.parent, "--url", app.url, "--rate", "200", "--duration", "1.5", "--log", str(log)
    )
    until(lambda: "order" in app.log.read_text(), 5, "orders arrive")
    app.signal(signal.SIGTERM)
    until(lambda: app.call("GET", "/health/ready")[0] == 503, 1, "not ready at once")
    status, answer, headers = app.call("GET", "/health/ready")
    assert (status, answer["reasons"]) == (503, {"instance": "draining"})
    assert headers["connection"] == "close"
    result = summary(shooting)
    assert result["failed"] == 0, result
    assert app.wait() == 0
    assert own_redis.cli("XLEN", "trading:outbox") == "0"
    assert judged(log, own_redis, own_nats)["ok"]


def test_a_drain_ends_even_if_everything_is_away(
    own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(own_redis.url, own_nats.url)
    own_redis.kill()
    own_nats.kill()
    app.signal(signal.SIGTERM)
    assert app.wait(10) == 0


def test_a_port_that_is_taken_is_said_with_71(app: App, tmp_path: Path) -> None:
    second = subprocess.run(app.command, env=app.env, capture_output=True, text=True, timeout=10, check=False)
    assert second.returncode == 71
    assert f"cannot listen on 127.0.0.1:{app.port}: Address already in use" in second.stderr


def test_load_and_judge_agree_over_both_paths(
    tmp_path: Path, own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(own_redis.url, own_nats.url)
    log = tmp_path / "load.log"
    options = ("--rate", "400", "--count", "400", "--accounts", "7", "--resend", "0.1", "--log", str(log))
    result = summary(load(app.config.parent, "--url", app.url, "--nats", own_nats.url, *options))
    assert result["failed"] == 0, result
    assert result["sent"] == 400
    until(lambda: own_redis.cli("XLEN", "trading:outbox") == "0", 10, "the outbox is empty")
    verdict = judged(log, own_redis, own_nats)
    assert verdict["ok"], verdict
    assert verdict["accepted"] == verdict["orders"] < 400


def test_the_judge_sees_a_lost_a_doubled_and_a_changed_order(
    tmp_path: Path, own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(own_redis.url, own_nats.url)
    log = tmp_path / "load.log"
    summary(
        load(
            app.config.parent,
            "--url",
            app.url,
            "--count",
            "10",
            "--accounts",
            "1",
            "--run",
            "j",
            "--log",
            str(log),
        )
    )
    own_redis.cli("DEL", "trading:order:load-0000:j-0000001")
    own_redis.cli("HSET", "trading:order:load-0000:j-0000002", "fp", "other")
    own_redis.cli(
        "XADD", "trading:audit", "*", "e", "order.accepted", "account", "load-0000", "order", "j-0000003"
    )
    verdict = judged(log, own_redis)
    assert (verdict["ok"], verdict["lost"], verdict["doubled"], verdict["different"]) == (False, 1, 1, 1)
