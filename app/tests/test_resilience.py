"""What happens when something is away, wrong, or told to stop."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from servers import App, Nats, Redis, Server, order, until, verified


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


def test_without_a_venue_no_order_is_accepted_and_the_instance_is_not_ready(
    redis: Redis, nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(redis.url, nats.url, ready=False, extra="venue: {adapter: none}\n")

    def reasons() -> dict[str, str]:
        found: dict[str, str] = app.call("GET", "/health/ready")[1].get("reasons", {})
        return found

    until(lambda: list(reasons()) == ["venue"], 10, "only the venue is missing")
    assert "venue.adapter is none" in reasons()["venue"]
    status, answer, headers = app.call("POST", "/api/orders", order("n1"), account="no-venue")
    assert (status, answer["dependency"], headers["retry-after"]) == (503, "venue", "1")
    assert app.call("GET", "/api/orders/n1", account="no-venue")[0] == 404
    assert app.call("DELETE", "/api/orders/n1", account="no-venue")[0] == 404, "a cancel is looked at"
    assert app.call("POST", "/api/maintenance", {"seconds": 9})[0] == 200
    try:
        assert quickest(lambda: app.call("POST", "/api/orders", order("n1"), account="no-venue")) < 1
        assert list(reasons()) == ["venue"], "nobody waits for that"
    finally:
        app.call("POST", "/api/maintenance", {"seconds": 0})


def test_with_hold_orders_stay_accepted_and_nothing_is_sent(app: App) -> None:
    assert app.call("POST", "/api/orders", order("h1"), account="holds")[0] == 201
    assert app.call("GET", "/api/orders/h1", account="holds")[1]["status"] == "accepted"
    assert any("nothing is sent" in line.get("detail", "") for line in app.lines())


def test_new_orders_are_503_while_too_many_events_wait_and_cancels_are_not(
    own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    """The outbox of a bus that takes nothing is bounded; no event is lost, and orders are taken again."""
    most = {"TRADING_REDIS_MAX_OUTBOX_EVENTS": "100", "TRADING_RISK_MAX_ORDERS_PER_SECOND": "0"}
    app = start_app(own_redis.url, own_nats.url, **most)
    own_redis.cli("SET", "trading:lease:outbox", "a holder that hangs", "PX", "600000")
    for n in range(100):
        assert app.call("POST", "/api/orders", order(f"b{n}"))[0] == 201
    until(lambda: app.call("POST", "/api/orders", order("b100"))[0] == 503, 5, "the outbox is full")
    status, answer, _ = app.call("POST", "/api/orders", order("b101"))
    assert (status, answer["dependency"]) == (503, "outbox")
    assert "redis.max_outbox_events is 100" in answer["detail"]
    assert app.ready(), "it still answers, and cancels"
    assert app.call("DELETE", "/api/orders/b0")[0] == 200
    own_redis.cli("DEL", "trading:lease:outbox")
    until(lambda: app.call("POST", "/api/orders", order("b102"))[0] == 201, 10, "it is taken again")
    until(lambda: own_redis.cli("XLEN", "trading:outbox") == "0", 10, "every event is published")


def test_the_audit_is_cut_at_its_age_and_the_ledger_can_still_be_verified(
    own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    """What was verified and is older; with 0s nothing ever goes."""
    for n in range(1, 501):
        own_redis.cli("XADD", "trading:audit", f"{n}-1", "e", "features.disabled", "account", "", "by", "ops")
    often = {"TRADING_VERSIONING_VALIDATION_INTERVAL": "1s"}
    keeps = start_app(own_redis.url, own_nats.url, TRADING_REDIS_AUDIT_RETENTION="0s", **often)
    assert keeps.call("POST", "/api/orders", order("young"))[0] == 201
    until(lambda: own_redis.cli("EXISTS", "trading:verified:progress") == "1", 20, "it was verified once")
    assert int(own_redis.cli("XLEN", "trading:audit")) >= 501
    app = start_app(own_redis.url, own_nats.url, TRADING_REDIS_AUDIT_RETENTION="1h", **often)
    until(lambda: int(own_redis.cli("XLEN", "trading:audit")) <= 120, 20, "the old lines are gone")
    assert "young" in own_redis.cli("XRANGE", "trading:audit", "-", "+")
    assert verified(own_redis)["ok"]
    assert keeps.ready()
    trimmed = [line for line in app.lines() if line["event"] == "audit"]
    assert sum(line["lines"] for line in trimmed) >= 400
    assert not [line for line in keeps.lines() if line["event"] == "audit"]


def quickest(call: Callable[[], Any]) -> float:
    """Seconds that the quickest of three took: all three are held up only by what is asked."""
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        call()
        seconds.append(time.monotonic() - began)
    return min(seconds)


@pytest.mark.parametrize("victim", ["redis", "nats"])
def test_orders_are_503_while_a_dependency_is_away_and_resume_by_themselves(
    victim: str, own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(own_redis.url, own_nats.url)
    server: Server = own_redis if victim == "redis" else own_nats
    assert app.call("POST", "/api/orders", order("before"))[0] == 201
    server.kill()
    until(lambda: not app.ready(), 5, "not ready")
    assert quickest(lambda: app.call("POST", "/api/orders", order("during"))) < 1
    status, answer, headers = app.call("POST", "/api/orders", order("during"))
    assert (status, answer["dependency"], headers["retry-after"]) == (503, victim, "1")
    assert victim in app.call("GET", "/health/ready")[1]["reasons"]
    assert app.call("GET", "/health/live")[0] == 200
    assert app.call("GET", "/metrics")[0] == 200
    server.start()
    until(app.ready, 10, "ready again")
    assert app.call("POST", "/api/orders", order("before"))[0] == 200
    assert app.call("POST", "/api/orders", order("during"))[0] == 201


@pytest.mark.parametrize("victim", ["redis", "nats"])
def test_in_maintenance_requests_wait_for_what_is_restarted_and_none_fails(
    victim: str, own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(own_redis.url, own_nats.url, TRADING_RISK_MAX_ORDERS_PER_SECOND="0")
    server: Server = {"redis": own_redis, "nats": own_nats}[victim]
    assert app.call("POST", "/api/maintenance", {"seconds": 30, "reason": "upgrade"})[1] == {
        "maintenance": True
    }
    assert app.call("GET", "/api/status")[1]["maintenance"]
    over = threading.Event()
    statuses: Counter[int] = Counter()
    slowest = [0.0]

    def trade(account: str) -> None:
        for n in itertools.count():
            for method, path, body in (
                ("POST", "/api/orders", order(f"m{n}")),
                ("GET", f"/api/orders/m{n}", None),
                ("GET", "/api/orders?limit=1", None),
                ("GET", "/api/account", None),
                ("DELETE", f"/api/orders/m{n}", None),
                ("GET", "/health/ready", None),
            ):
                began = time.monotonic()
                statuses[app.call(method, path, body, account=account)[0]] += 1
                slowest[0] = max(slowest[0], time.monotonic() - began)
            if over.is_set():
                return

    with ThreadPoolExecutor() as pool:
        traders = [pool.submit(trade, f"acc-{n}") for n in range(4)]
        try:
            for _ in range(3):
                time.sleep(0.5)
                server.signal(signal.SIGTERM)
                server.wait()
                time.sleep(0.7)
                server.start()
        finally:
            time.sleep(0.5)
            over.set()
        for trader in traders:
            trader.result()
    assert set(statuses) <= {200, 201, 202}, statuses
    assert slowest[0] > 0.5, "some had to wait"
    assert app.call("POST", "/api/maintenance", {"seconds": 0})[1] == {"maintenance": False}
    assert verified(own_redis)["ok"]


def test_maintenance_is_no_patience_without_end(
    own_redis: Redis, nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(own_redis.url, nats.url)
    for seconds in (-1, 61):
        status, answer, _ = app.call("POST", "/api/maintenance", {"seconds": seconds})
        assert (status, answer["errors"]) == (400, {"seconds": "a whole number from 0 to 60"})
    assert app.call("POST", "/api/maintenance", {"seconds": 8})[0] == 200
    own_redis.kill()
    began = time.monotonic()
    status, answer, headers = app.call("POST", "/api/orders", order("a"))
    assert (status, answer["dependency"], headers["retry-after"]) == (503, "redis", "1")
    assert 3.5 < time.monotonic() - began < 5, "below the load balancers' patience"
    assert app.ready(), "orders still are to come here"
    until(lambda: not app.ready(), 8, "maintenance is over")
    assert app.call("GET", "/health/ready")[1]["reasons"].keys() == {"redis"}
    assert quickest(lambda: app.call("POST", "/api/orders", order("a"))) < 1


def test_a_redis_that_hangs_is_503_in_under_a_second(
    own_redis: Redis, nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(own_redis.url, nats.url)
    own_redis.signal(signal.SIGSTOP)
    assert quickest(lambda: app.call("POST", "/api/orders", order("a"))) < 1
    status, _, headers = app.call("POST", "/api/orders", order("a"))
    assert (status, headers["retry-after"]) == (503, "1")
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


def test_a_redis_whose_memory_is_used_up_takes_no_order_and_whatever_ends_one(
    own_redis: Redis, nats: Nats, start_app: Callable[..., App]
) -> None:
    """A person can still cancel and halt, over the load balancer too, and an instance can still begin."""
    app = start_app(own_redis.url, nats.url)
    assert app.call("POST", "/api/orders", order("a"))[0] == 201
    own_redis.cli("CONFIG", "SET", "maxmemory", "1")
    status, answer, headers = app.call("POST", "/api/orders", order("b"))
    assert (status, answer["dependency"], headers["retry-after"]) == (503, "redis", "1")
    assert "OOM" in answer["detail"]
    assert app.call("POST", "/api/orders", order("a"))[0] == 200
    other = start_app(own_redis.url, nats.url)
    assert other.call("DELETE", "/api/orders/a")[1]["status"] == "cancelled"
    assert app.call("POST", "/api/trading/halt", {"reason": "memory"})[0] == 200
    until(lambda: other.call("GET", "/api/status")[1]["mode"] == "halted", 5, "halted")
    assert app.call("POST", "/api/trading/resume", {"reason": "there is more"})[0] == 200
    own_redis.cli("DEL", "trading:risk")
    until(lambda: own_redis.cli("EXISTS", "trading:risk") == "1", 10, "somebody looked over the accounts")
    [beat, _] = own_redis.cli("KEYS", "trading:instance:*").splitlines()
    own_redis.cli("PEXPIRE", beat, "100000")
    until(lambda: int(own_redis.cli("PTTL", beat)) <= 5000, 5, "another heartbeat was written")
    assert app.ready()
    own_redis.cli("CONFIG", "SET", "maxmemory", "0")
    assert app.call("POST", "/api/orders", order("b"))[0] == 201


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
    app = start_app(own_redis.url, own_nats.url, TRADING_SERVER_DRAIN_NOTICE="6s")
    log = tmp_path / "load.log"
    shooting = load(
        app.config.parent, "--url", app.url, "--rate", "200", "--duration", "1.5", "--log", str(log)
    )
    until(lambda: '"event":"order"' in app.log.read_text(), 5, "orders arrive")
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


def test_what_cannot_be_published_at_the_end_is_left_to_the_next_instance(
    own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    """NATS goes away before an instance is told to stop: it exits 0 in time, and no event is lost."""
    app = start_app(own_redis.url, own_nats.url)
    # The events wait while somebody else holds the lease.
    until(lambda: own_redis.cli("GET", "trading:lease:outbox"), 5, "the instance publishes")
    own_redis.cli("SET", "trading:lease:outbox", "another", "PX", "60000")
    for n in range(5):
        assert app.call("POST", "/api/orders", order(f"left-{n}"))[0] == 201
    own_nats.kill()
    own_redis.cli("DEL", "trading:lease:outbox")
    app.signal(signal.SIGTERM)
    assert app.wait(10) == 0
    assert int(own_redis.cli("XLEN", "trading:outbox")) >= 5
    own_nats.start()
    start_app(own_redis.url, own_nats.url)
    until(lambda: own_redis.cli("XLEN", "trading:outbox") == "0", 10, "the next instance publishes it")


def test_a_port_that_is_taken_is_said_with_71(app: App, tmp_path: Path) -> None:
    second = subprocess.run(app.command, env=app.env, capture_output=True, text=True, timeout=60, check=False)
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


@pytest.mark.parametrize("size", [3, 5])
def test_an_instance_opens_no_more_connections_than_the_pool_has(
    size: int, own_redis: Redis, nats: Nats, start_app: Callable[..., App]
) -> None:
    """Reads that come at once get connections of their own, up to redis.pool_size; orders have one."""
    app = start_app(own_redis.url, nats.url, TRADING_REDIS_POOL_SIZE=str(size))
    for n in range(100):
        app.call("POST", "/api/orders", order(f"o{n}", quantity="0.00001"))
    threads = [
        threading.Thread(target=lambda: [app.call("GET", "/api/orders?limit=1000") for _ in range(10)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = re.findall(r"name=(trading-bot:blue\S*)", own_redis.cli("CLIENT", "LIST"))
    assert sorted(set(names)) == ["trading-bot:blue", "trading-bot:blue:feed", "trading-bot:blue:read"]
    assert len(names) == size
    assert names.count("trading-bot:blue:read") == size - 2
