"""The fleet-wide switches, followed by every instance."""

from __future__ import annotations

import base64
import json
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trading_bot.adapters import signing
from trading_bot.domain.features import REGISTRY, RETIRED

from servers import OBSERVER, App, Nats, Redis, order, until


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    private, public = signing.generate()
    (directory / "private").write_text(private)
    (directory / "public").write_text(public)
    return directory


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[tuple[App, App, Redis]]:
    directory = tmp_path_factory.mktemp("fleet")
    redis, nats = Redis(directory / "redis"), Nats(directory / "nats")
    redis.start()
    nats.start()
    apps = [
        App(
            directory / slot,
            redis.url,
            nats.url,
            slot=slot,
            TRADING_SERVER_HOTFIX_KEY_FILE=str(keys / "public"),
        )
        for slot in ("blue", "green")
    ]
    for app in apps:
        app.start_ready()
    yield apps[0], apps[1], redis
    for server in (*apps, nats, redis):
        server.kill()


def submit(app: App, account: str = "", **fields: Any) -> tuple[int, dict[str, Any]]:
    id = uuid.uuid4().hex[:10]
    return app.call("POST", "/api/orders", order(id, **fields), account=account or f"acc-{id}")[:2]


def audited(redis: Redis) -> dict[str, str]:
    """The latest line of the audit."""
    _, flat = json.loads(redis.cli("--json", "XREVRANGE", "trading:audit", "+", "-", "COUNT", "1"))[0]
    return dict(zip(flat[::2], flat[1::2], strict=True))


def test_halt_stops_every_instance_at_once_and_resume_needs_a_reason(fleet: tuple[App, App, Redis]) -> None:
    one, other, redis = fleet
    status, answer, _ = one.call("POST", "/api/trading/halt", {"reason": "prices look wrong"})
    assert (status, answer) == (200, {"mode": "halted"})
    assert {k: v for k, v in audited(redis).items() if k in ("e", "by", "reason")} == {
        "e": "trading.halted", "by": "desk", "reason": "prices look wrong",
    }  # fmt: skip
    for app in (one, other):
        assert submit(app)[0] == 503
        assert app.call("GET", "/api/status")[1]["mode"] == "halted"
    status, answer, _ = other.call("POST", "/api/trading/resume", {})
    assert (status, list(answer["errors"])) == (400, ["reason"])
    assert other.call("POST", "/api/trading/resume", {"reason": "checked"})[1] == {"mode": "normal"}
    assert submit(one)[0] == 201


def test_degradation_is_reduce_only_and_survives_a_restart(fleet: tuple[App, App, Redis]) -> None:
    one, other, _ = fleet
    assert one.call("POST", "/api/degradation/enable")[1] == {"mode": "reduce_only"}
    other.signal(signal.SIGTERM)
    assert other.wait() == 0
    other.start_ready()
    status, answer = submit(other)
    assert (status, answer["rule"]) == (422, "degraded")
    assert other.call("POST", "/api/degradation/disable", {"reason": "over"})[1] == {"mode": "normal"}
    assert submit(one)[0] == 201


def test_features_are_switched_by_name_and_all_non_core_ones_without(fleet: tuple[App, App, Redis]) -> None:
    one, other, _ = fleet
    assert one.call("POST", "/api/features/disable", {"features": ["order_listing"]})[1]["changed"] == [
        "order_listing"
    ]
    until(lambda: not other.call("GET", "/api/status")[1]["features"]["order_listing"], 1, "within a second")
    until(lambda: other.call("GET", "/api/orders")[0] == 503, 1, "the other instance follows")
    assert one.call("POST", "/api/features/enable")[0] == 200
    until(lambda: other.call("GET", "/api/orders")[0] == 200, 1, "and back")
    changed = one.call("POST", "/api/features/disable")[1]["changed"]
    assert changed == [f.name for f in REGISTRY.values() if not f.core]
    assert submit(other)[0] == 201
    assert one.call("POST", "/api/features/enable")[0] == 200


@pytest.mark.parametrize("name", ["no_such_feature", "order_entry", "shadow_orders"])
def test_unknown_core_and_retired_features_are_refused(name: str, fleet: tuple[App, App, Redis]) -> None:
    status, answer, _ = fleet[0].call("POST", "/api/features/disable", {"features": ["order_listing", name]})
    assert (status, list(answer["errors"])) == (400, [name])
    assert all(fleet[0].call("GET", "/api/status")[1]["features"].values())


def test_no_name_of_a_feature_is_used_again() -> None:
    assert not RETIRED & REGISTRY.keys()
    assert all(name == feature.name and feature.owner for name, feature in REGISTRY.items())


def test_only_operators_may_switch(fleet: tuple[App, App, Redis]) -> None:
    for path in ("trading/halt", "trading/resume", "degradation/enable", "features/disable", "hotfix/apply"):
        assert fleet[0].call("POST", f"/api/{path}", {}, token=OBSERVER)[0] == 403
        assert fleet[0].call("POST", f"/api/{path}", {}, token=None)[0] == 401


def signed(keys: Path, **fields: Any) -> dict[str, str]:
    now = int(time.time())
    payload = {
        "id": f"fix-{uuid.uuid4().hex[:6]}", "settings": {"risk.max_position_size": "1000"},
        "reason": "venue trouble", "issued": now, "expires": now + 600, **fields,
    }  # fmt: skip
    data = json.dumps(payload).encode()
    signature = signing.sign(str(keys / "private"), data)
    return {"payload": base64.b64encode(data).decode(), "signature": base64.b64encode(signature).decode()}


def test_a_hotfix_tightens_a_limit_everywhere_until_it_is_reverted(
    fleet: tuple[App, App, Redis], keys: Path
) -> None:
    one, other, redis = fleet
    status, answer, _ = one.call("POST", "/api/hotfix/apply", signed(keys, id="tight"))
    assert (status, [fix["id"] for fix in answer["hotfixes"]]) == (200, ["tight"])
    assert audited(redis)["e"] == "hotfix.applied"

    def refused() -> bool:
        status, answer = submit(other, quantity="0.1")
        return (status, answer.get("rule"), answer.get("limit")) == (422, "max_position_size", "1000")

    until(refused, 1, "the other instance follows within a second")
    assert other.call("GET", "/api/hotfix")[1]["hotfixes"][0]["reason"] == "venue trouble"
    assert other.call("GET", "/api/status")[1]["hotfixes"][0]["id"] == "tight"
    assert one.call("POST", "/api/hotfix/revert", {"id": "tight", "reason": "over"})[1] == {"hotfixes": []}
    until(lambda: submit(other, quantity="0.1")[0] == 201, 1, "and back")
    assert one.call("POST", "/api/hotfix/revert", {"id": "tight"})[0] == 400


def test_a_hotfix_ends_by_itself(fleet: tuple[App, App, Redis], keys: Path) -> None:
    one = fleet[0]
    assert one.call("POST", "/api/hotfix/apply", signed(keys, expires=int(time.time()) + 2))[0] == 200
    until(lambda: one.call("GET", "/api/hotfix")[1] == {"hotfixes": []}, 4, "expired")
    assert submit(one, quantity="0.1")[0] == 201


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"settings": {"risk.max_position_size": "200000"}}, "risk.max_position_size"),
        ({"settings": {"risk.min_margin_level": "1"}}, "risk.min_margin_level"),
        ({"settings": {"risk.price_collar": "0"}, "reason": ""}, "reason"),
        ({"settings": {"server.port": "1"}}, "server.port"),
        ({"settings": {"risk.max_leverage": "x"}}, "risk.max_leverage"),
        ({"settings": {}}, "settings"),
        ({"expires": 1}, "expires"),
        ({"expires": 9_000_000_000}, "issued"),
        ({"id": "a b"}, "id"),
        ({"code": "import os"}, "payload"),
    ],
)
def test_a_hotfix_that_loosens_or_is_not_whitelisted_is_refused(
    fields: dict[str, Any], wrong: str, fleet: tuple[App, App, Redis], keys: Path
) -> None:
    status, answer, _ = fleet[0].call("POST", "/api/hotfix/apply", signed(keys, **fields))
    assert (status, wrong in answer["errors"]) == (400, True), answer


def test_a_hotfix_with_another_key_or_a_changed_payload_is_refused(
    fleet: tuple[App, App, Redis], keys: Path, tmp_path: Path
) -> None:
    (tmp_path / "private").write_text(signing.generate()[0])
    app, redis = fleet[0], fleet[2]
    assert app.call("POST", "/api/hotfix/apply", signed(tmp_path))[1]["errors"].keys() == {"signature"}
    changed = signed(keys) | {"payload": signed(keys)["payload"]}
    assert app.call("POST", "/api/hotfix/apply", changed)[1]["errors"].keys() == {"signature"}
    assert app.call("POST", "/api/hotfix/apply", {"payload": "%", "signature": "%"})[0] == 400
    # Nor is it enough to be able to write to Redis.
    redis.cli("HSET", "trading:control", "hotfix:forged", json.dumps(signed(tmp_path)))
    until(lambda: any(x["event"] == "hotfix" for x in app.lines()), 2, "the forged one is seen")
    assert app.call("GET", "/api/hotfix")[1] == {"hotfixes": []}
    redis.cli("HDEL", "trading:control", "hotfix:forged")


def test_without_a_key_no_hotfix_is_applied(app: App, keys: Path) -> None:
    assert app.call("POST", "/api/hotfix/apply", signed(keys))[0] == 403


def test_a_dry_run_decides_and_leaves_no_trace(fleet: tuple[App, App, Redis]) -> None:
    app, _, redis = fleet
    before = redis.cli("XLEN", "trading:audit")
    body, dry = order("d1"), {"X-Dry-Run": "true"}
    status, answer, _ = app.call("POST", "/api/orders", body, account="dry", headers=dry)
    assert (status, answer["decision"], answer["again"]) == (200, "accepted", False)
    _, answer, _ = app.call("POST", "/api/orders", order("d2", quantity="9"), account="dry", headers=dry)
    assert (answer["decision"], answer["rule"], answer["value"]) == ("refused", "max_position_size", "450000")
    assert (redis.cli("KEYS", "*:dry*"), redis.cli("XLEN", "trading:audit")) == ("", before)
    assert app.call("POST", "/api/orders", body, account="dry")[0] == 201


def test_sighup_takes_over_risk_and_refuses_a_bad_file(
    redis: Redis, nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(redis.url, nats.url)
    before = app.call("GET", "/api/status")[1]["config_hash"]
    text = app.config.read_text()
    app.config.write_text(text + "risk: {max_position_size: 10, max_levrage: 3}\n")
    app.signal(signal.SIGHUP)
    until(lambda: any(x.get("outcome") == "refused" and x["event"] == "reload" for x in app.lines()), 5)
    assert app.call("GET", "/api/status")[1]["config_hash"] == before
    assert submit(app)[0] == 201
    app.config.write_text(text + "risk: {max_position_size: 10}\n")
    app.signal(signal.SIGHUP)
    until(lambda: app.call("GET", "/api/status")[1]["config_hash"] != before, 5, "taken over")
    status, answer = submit(app)
    assert (status, answer["limit"]) == (422, "10")


def test_a_reload_takes_over_the_release_beside_the_config_unless_its_image_is_another(
    redis: Redis, nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(redis.url, nats.url)
    beside = app.config.with_name("release.json")
    before = app.call("GET", "/api/status")[1]
    for image, release in (("another", "r1"), (before["image"], "r2")):
        app.config.write_text(app.config.read_text() + f"# {release}\n")
        beside.write_text(json.dumps({"id": release, "image": image}))
        app.signal(signal.SIGHUP)
        until(lambda: [x for x in app.lines() if x["event"] == "reload"][-1:], 5, "an answer")
        if release == "r1":
            until(lambda: any(x.get("outcome") == "refused" for x in app.lines()), 5, "refused")
            assert app.call("GET", "/api/status")[1] == before
    until(lambda: app.call("GET", "/api/status")[1]["release_id"] == "r2", 5, "taken over")
    metrics = app.call("GET", "/metrics")[1]
    assert 'release_id="r2"' in str(metrics)


def test_a_throttled_account_is_429_and_others_are_not(
    redis: Redis, nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(redis.url, nats.url, extra="risk: {max_orders_per_second: 3, duplicate_window: 1h}\n")
    answers = [submit(app, "many", price=str(50000 + n)) for n in range(8)]
    assert 429 in {status for status, _ in answers}
    assert submit(app, "few")[0] == 201
    status, answer = submit(app, "few")
    assert (status, answer["rule"]) == (422, "duplicate_intent")


def test_a_collar_needs_a_fresh_mark(redis: Redis, nats: Nats, start_app: Callable[..., App]) -> None:
    app = start_app(redis.url, nats.url, extra="risk: {price_collar: 0.05, max_mark_age: 30s}\n")
    redis.cli("HDEL", "trading:marks", "ETH-USDT")
    eth = {"symbol": "ETH-USDT", "quantity": "0.01"}
    assert submit(app, price="3000", **eth)[1]["rule"] == "mark_missing"
    redis.cli("HSET", "trading:marks", "ETH-USDT", f"{3000 * 10**8}|{int(time.time() * 1000) - 60_000}")
    assert submit(app, price="3000", **eth)[1]["rule"] == "mark_missing"
    redis.cli("HSET", "trading:marks", "ETH-USDT", f"{3000 * 10**8}|{int(time.time() * 1000)}")
    assert submit(app, price="3150", **eth)[0] == 201
    answer = submit(app, price="3150.01", **eth)[1]
    assert (answer["rule"], answer["limit"], answer["value"]) == ("price_collar", "2850..3150", "3150.01")
    redis.cli("HDEL", "trading:marks", "ETH-USDT")


def test_a_drawdown_latches_reduce_only_until_a_person_resumes(
    redis: Redis, nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(redis.url, nats.url)
    now = int(time.time())
    redis.cli("HSET", "trading:account:sunk", "cash", str(80_000 * 10**8), "peak", str(100_000 * 10**8))
    redis.cli("HSET", "trading:account:sunk", "day", str(now // 86400))
    answer = submit(app, "sunk")[1]
    assert (answer["rule"], answer["limit"], answer["value"]) == ("max_drawdown", "0.1", "0.200000")
    assert submit(app, "sunk")[1]["rule"] == "drawdown_latched"
    assert app.call("GET", "/api/account", account="sunk")[1]["reduce_only"] is True
    assert app.call("POST", "/api/trading/resume", {"reason": "talked", "account": "sunk"})[0] == 200
    assert submit(app, "sunk")[0] == 201


def test_leverage_and_margin_name_the_ratio(redis: Redis, nats: Nats, start_app: Callable[..., App]) -> None:
    extra = "risk: {max_leverage: 0.5, initial_equity: 1000, min_margin_level: 4, margin_rate: 1}\n"
    app = start_app(redis.url, nats.url, extra=extra)
    answer = submit(app, quantity="0.012")[1]
    assert (answer["rule"], answer["limit"], answer["value"]) == ("max_leverage", "0.5", "0.600000")
    answer = submit(app, quantity="0.008")[1]
    assert (answer["rule"], answer["limit"], answer["value"]) == ("min_margin_level", "4", "2.500000")
    assert submit(app, quantity="0.005")[0] == 201


def test_a_canary_is_held_to_a_fraction_of_each_limit(
    redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    import asyncio

    import nats as client

    app = start_app(redis.url, own_nats.url, slot="green", extra="risk: {canary_fraction: 0.1}\n")
    assert submit(app, quantity="0.3")[0] == 201

    async def cut() -> None:
        nc = await client.connect(own_nats.url)
        bucket = await nc.jetstream().key_value("release")
        await bucket.put("traffic", b'{"stable":"blue","canary":"green","salt":"r","cut":500}')
        await nc.close()

    asyncio.run(cut())
    until(lambda: submit(app, quantity="0.3")[1].get("limit") == "10000", 2, "held to a tenth")
