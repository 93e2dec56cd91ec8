"""Alerts on Redis, and what the accounts have at stake in the metrics."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servers import App, Nats, Redis, need, order, until

SCALE = 10**8
EXTRA = "monitoring: {collect_interval: 1s, account_series: 2, alert_interval: 1h}\n"


class Fleet:
    def __init__(self, redis: Redis, nats: Nats, *apps: App) -> None:
        self.redis, self.nats, self.apps = redis, nats, apps

    def alerts(self, account: str = "", rule: str = "") -> list[dict[str, Any]]:
        """What was kept, oldest first."""
        lines = json.loads(self.redis.cli("--json", "XRANGE", "trading:alerts:history", "-", "+"))
        found = [json.loads(flat[1]) for _, flat in lines]
        return [x for x in found if x["account"] == account and rule in ("", x["rule"])]

    def alert(self, rule: str, account: str = "") -> dict[str, Any]:
        return until(lambda: self.alerts(account, rule), 5, f"{rule} of {account!r}")[-1]

    def summary(self) -> dict[str, Any]:
        return json.loads(self.redis.cli("GET", "trading:risk") or "{}")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("risk")
    redis, nats = Redis(directory / "redis"), Nats(directory / "nats")
    redis.start()
    nats.start()
    apps = [App(directory / slot, redis.url, nats.url, slot=slot, extra=EXTRA) for slot in ("blue", "green")]
    for app in apps:
        app.start_ready()
    yield Fleet(redis, nats, *apps)
    for server in (*apps, nats, redis):
        server.kill()


@pytest.fixture
def account() -> str:
    return f"acc-{uuid.uuid4().hex[:8]}"


def submit(app: App, account: str, id: str, **fields: Any) -> int:
    return app.call("POST", "/api/orders", order(id, **fields), account=account)[0]


def test_an_order_at_a_limit_is_told_once_whoever_decided_it(fleet: Fleet, account: str) -> None:
    for n in range(20):
        assert submit(fleet.apps[n % 2], account, f"o{n}", quantity="9") == 422
    found = fleet.alert("limit_hit", account)
    assert {k: found[k] for k in ("schema", "severity", "limit_name", "limit", "value", "version")} == {
        "schema": 1, "severity": "warning", "limit_name": "max_position_size", "limit": "100000",
        "value": "450000", "version": "0.1.0",
    }  # fmt: skip
    # Another rule of the account is news; this also waits for whatever the orders above led to.
    assert submit(fleet.apps[0], account, "big", quantity="100", price="20000") == 422
    until(lambda: len(fleet.alerts(account, "limit_hit")) == 2, 5, "the other rule")


def test_coming_close_to_a_limit_is_told_at_once(fleet: Fleet, account: str) -> None:
    assert submit(fleet.apps[0], account, "a", quantity="1.5") == 201
    assert submit(fleet.apps[0], account, "b", quantity="0.2") == 201
    found = fleet.alert("limit_approached", account)
    assert (found["limit_name"], found["limit"], found["value"], found["fraction"]) == (
        "max_position_size", "100000", "85000", "0.8500",
    )  # fmt: skip


def test_a_limit_that_prices_carried_an_account_past_is_critical(fleet: Fleet, account: str) -> None:
    """Nobody orders anything: the sweep finds it."""
    held = {
        "cash": 100_000 * SCALE, "q:BTC-USDT": 10 * SCALE, "c:BTC-USDT": 100_000 * SCALE,
        "peak": 100_000 * SCALE, "day": int(time.time() // 86400),
    }  # fmt: skip
    fleet.redis.cli("HSET", "trading:marks", "BTC-USDT", f"{5000 * SCALE}|{int(time.time() * 1000)}")
    fleet.redis.cli("HSET", f"trading:account:{account}", *(str(x) for pair in held.items() for x in pair))
    fleet.redis.cli("SADD", "trading:accounts", account)
    found = until(lambda: fleet.alerts(account, "limit_passed"), 5, "passed")
    assert {(x["limit_name"], x["severity"]) for x in found} == {("max_drawdown", "critical")}
    fleet.redis.cli("DEL", f"trading:account:{account}", "trading:marks")


def test_a_latched_account_is_critical_and_its_release_is_told(fleet: Fleet, account: str) -> None:
    key, day = f"trading:account:{account}", str(int(time.time() // 86400))
    fleet.redis.cli("HSET", key, "cash", str(80_000 * SCALE), "peak", str(100_000 * SCALE), "day", day)
    assert submit(fleet.apps[0], account, "a") == 422
    assert fleet.alert("drawdown_latched", account)["severity"] == "critical"
    body = {"reason": "talked to the desk", "account": account}
    fleet.apps[1].call("POST", "/api/trading/resume", body)
    assert fleet.alert("drawdown_resumed", account)["reason"] == "talked to the desk"


def test_each_throw_of_a_switch_is_told_with_who_and_why(fleet: Fleet) -> None:
    for n in range(2):
        fleet.apps[0].call("POST", "/api/trading/halt", {"reason": f"halt {n}"})
        fleet.apps[1].call("POST", "/api/trading/resume", {"reason": f"resume {n}"})
    until(lambda: len(fleet.alerts(rule="trading_resumed")) == 2, 5, "all of them")
    assert [(x["reason"], x["by"], x["severity"]) for x in fleet.alerts(rule="trading_halted")] == [
        ("halt 0", "desk", "critical"),
        ("halt 1", "desk", "critical"),
    ]
    fleet.apps[0].call("POST", "/api/degradation/enable")
    fleet.apps[0].call("POST", "/api/degradation/disable")
    assert fleet.alert("trading_degraded")["severity"] == "critical"
    assert fleet.alert("trading_undegraded")["severity"] == "info"


def test_a_used_id_with_another_order_is_told(fleet: Fleet, account: str) -> None:
    submit(fleet.apps[0], account, "a")
    assert submit(fleet.apps[1], account, "a", quantity="0.002") == 409
    assert fleet.alert("duplicate_id", account)["order"] == "a"


def test_an_alert_goes_out_on_the_channel(fleet: Fleet, account: str) -> None:
    command = [need("redis-cli"), "-p", str(fleet.redis.port), "SUBSCRIBE", "trading:alerts"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listening:
        assert listening.stdout is not None
        subscribed = [listening.stdout.readline().strip() for _ in range(3)]
        assert subscribed == ["subscribe", "trading:alerts", "1"]
        submit(fleet.apps[0], account, "a", quantity="9")
        kind, _, text = (listening.stdout.readline().strip() for _ in range(3))
        assert (kind, json.loads(text)["account"]) == ("message", account)
        listening.terminate()


def test_a_switch_is_told_while_nats_is_away(
    own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    """The bus cannot take events then, and more of them wait than are published at once."""
    app = start_app(own_redis.url, own_nats.url)
    own_nats.kill()
    until(lambda: not app.ready(), 5, "it is seen")
    for _ in range(100):
        own_redis.cli(
            "XADD", "trading:outbox", "*", "e", "order.open", "account", "a", "order", "a", "at", "1"
        )
    app.call("POST", "/api/trading/halt", {"reason": "no bus"})
    Fleet(own_redis, own_nats).alert("trading_halted")


def test_the_same_intent_twice_is_told(
    redis: Redis, own_nats: Nats, start_app: Callable[..., App], account: str
) -> None:
    app = start_app(redis.url, own_nats.url, extra="risk: {duplicate_window: 1h}\n")
    submit(app, account, "a")
    assert submit(app, account, "b") == 422
    assert Fleet(redis, own_nats).alert("duplicate_intent", account)["order"] == "b"


def series(app: App) -> dict[str, float]:
    text = app.call("GET", "/metrics")[1]["text"]
    lines = [line for line in text.splitlines() if line.startswith(("trading_risk", "trading_account"))]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_every_instance_shows_the_worst_of_all_accounts_and_the_nearest_few(
    own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    apps = [start_app(own_redis.url, own_nats.url, slot=slot, extra=EXTRA) for slot in ("blue", "green")]
    for name, quantity in (("small", "0.1"), ("large", "1.8"), ("middle", "1")):
        submit(apps[0], name, "a", quantity=quantity)
    fleet = Fleet(own_redis, own_nats)
    until(lambda: fleet.summary().get("accounts") == 3, 10, "swept")
    for app, slot in zip(apps, ("blue", "green"), strict=True):
        labels = f'version="0.1.0",slot="{slot}"'
        until(lambda app=app, labels=labels: series(app).get(f"trading_risk_accounts{{{labels}}}") == 3, 5)
        found = series(app)
        assert all(labels in name for name in found)
        assert found[f"trading_risk_worst_position_size{{{labels}}}"] == 90_000
        assert found[f"trading_risk_worst_leverage{{{labels}}}"] == pytest.approx(0.9)
        assert found[f"trading_risk_worst_margin_level{{{labels}}}"] == pytest.approx(100_000 / 18_000)
        assert found[f"trading_risk_worst_drawdown{{{labels}}}"] == 0
        assert found[f"trading_risk_worst_unrealised_pnl{{{labels}}}"] == 0
        assert found[f"trading_risk_exposure{{{labels}}}"] == 145_000
        of = [name for name in found if name.startswith("trading_account_position_size")]
        assert [name.split('"')[1] for name in of] == ["large", "middle"]
        assert found[f'trading_account_used{{account="large",{labels}}}'] == pytest.approx(0.9)
    apps[0].call("DELETE", "/api/orders/a", account="large")
    until(lambda: "small" in fleet.summary()["nearest"], 5, "another one is nearer now")
    until(lambda: not any("large" in name for name in series(apps[1])), 5, "and the old series is gone")


def test_the_published_line_holds_the_risk_and_its_schema(fleet: Fleet, account: str) -> None:
    submit(fleet.apps[0], account, "a")

    def line() -> dict[str, Any] | None:
        lines = json.loads(fleet.redis.cli("--json", "XREVRANGE", "trading:metrics:history", "+", "-"))
        found = [json.loads(flat[1]) for _, flat in lines]
        return next((x for x in found if x["risk"] and x["risk"]["accounts"]), None)

    found = until(line, 10, "a line with risk")
    assert (found["schema"], found["version"]) == (1, "0.1.0")
    assert (found["risk"]["schema"], found["risk"]["version"]) == (1, "0.1.0")
    assert {"exposure", "unrealised_pnl", "worst", "nearest", "latched", "unpriced"} <= found["risk"].keys()


def test_another_instance_goes_on_when_the_one_that_looks_over_is_gone(
    own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    apps = [start_app(own_redis.url, own_nats.url, slot=slot, extra=EXTRA) for slot in ("blue", "green")]
    fleet = Fleet(own_redis, own_nats)
    until(fleet.summary, 10, "swept")
    holder = own_redis.cli("GET", "trading:lease:risk")
    leader = apps[0] if f"host-{apps[0].port}" in holder else apps[1]
    leader.process.terminate()
    leader.wait()
    until(lambda: own_redis.cli("GET", "trading:lease:risk") not in ("", holder), 10, "taken over at once")


def test_the_directory_of_accounts_is_made_from_what_is_there(
    own_redis: Redis, own_nats: Nats, start_app: Callable[..., App], tmp_path: Path
) -> None:
    """A ledger that an older version wrote has none."""
    for n in range(60):
        own_redis.cli("HSET", f"trading:account:old{n}", "cash", str(SCALE))
    own_redis.cli("HSET", "trading:account:never-funded", "second", "1")
    start_app(own_redis.url, own_nats.url, extra=EXTRA)
    fleet = Fleet(own_redis, own_nats)
    until(lambda: fleet.summary().get("accounts") == 60, 10, "all of them")
    assert own_redis.cli("SCARD", "trading:accounts") == "61"
