"""Each key of the config does what docs/config.md says. A key that nobody proves fails the last test."""

from __future__ import annotations

import ast
import asyncio
import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import nats as nats_client
import pytest

from test_venue import venue_section
from trading_bot import config
from trading_bot.errors import ConfigError

from servers import App, Nats, PaperVenue, Redis, free_port, order, until

PROVEN: dict[str, str] = {}
Test = TypeVar("Test", bound=Callable[..., None])

# fmt: off
ELSEWHERE = {
    "server.hotfix_key_file": "test_cli.test_a_signed_hotfix_is_applied_by_who_trusts_the_key",
    "server.max_streams": "test_stream.test_the_instances_bound_holds_for_all_accounts",
    "redis.pool_size": "test_resilience.test_an_instance_opens_no_more_connections_than_the_pool_has",
    "redis.max_outbox_events": "test_resilience."
    "test_new_orders_are_503_while_too_many_events_wait_and_cancels_are_not",
    "redis.audit_retention": "test_resilience."
    "test_the_audit_is_cut_at_its_age_and_the_ledger_can_still_be_verified",
    "nats.user": "test_resilience.test_a_wrong_nats_password_keeps_it_live_but_not_ready_with_the_reason",
    "nats.password_file": "test_resilience."
    "test_a_wrong_nats_password_keeps_it_live_but_not_ready_with_the_reason",
    "risk.max_position_size": "test_switches.test_sighup_takes_over_risk_and_refuses_a_bad_file",
    "risk.max_leverage": "test_switches.test_leverage_and_margin_name_the_ratio",
    "risk.min_margin_level": "test_switches.test_leverage_and_margin_name_the_ratio",
    "risk.margin_rate": "test_switches.test_leverage_and_margin_name_the_ratio",
    "risk.initial_equity": "test_switches.test_leverage_and_margin_name_the_ratio",
    "risk.max_orders_per_second": "test_switches.test_a_throttled_account_is_429_and_others_are_not",
    "risk.duplicate_window": "test_switches.test_a_throttled_account_is_429_and_others_are_not",
    "risk.price_collar": "test_switches.test_a_collar_needs_a_fresh_mark",
    "risk.max_mark_age": "test_switches.test_a_collar_needs_a_fresh_mark",
    "risk.canary_fraction": "test_switches.test_a_canary_is_held_to_a_fraction_of_each_limit",
    "venue.adapter": "test_resilience."
    "test_without_a_venue_no_order_is_accepted_and_the_instance_is_not_ready",
    "venue.exchange": "test_ccxt.test_a_config_without_keys_or_with_another_exchange_is_refused",
    "venue.sandbox": "test_ccxt.test_production_has_to_be_asked_for",
    # What every test of the executor on an exchange is configured with.
    "venue.exchange_url": "test_ccxt.section",
    "venue.api_key_file": "test_ccxt.section",
    "venue.api_secret_file": "test_ccxt.section",
}
# fmt: on


def proves(*keys: str) -> Callable[[Test], Test]:
    def note(test: Test) -> Test:
        PROVEN.update(dict.fromkeys(keys, test.__name__))
        return test

    return note


def submit(app: App, id: str, account: str, **fields: Any) -> dict[str, Any]:
    status, answer, _ = app.call("POST", "/api/orders", order(id, **fields), account=account)
    return {**answer, "code": status}


@proves("server.host", "server.port")
def test_it_listens_where_it_is_told(redis: Redis, nats: Nats, tmp_path: Path) -> None:
    port = free_port()
    app = App(tmp_path, redis.url, nats.url, TRADING_SERVER_HOST="127.0.0.2", TRADING_SERVER_PORT=str(port))
    app.start(wait=False)

    def answers(host: str) -> bool:
        with socket.socket() as client:
            return client.connect_ex((host, port)) == 0

    try:
        until(lambda: answers("127.0.0.2"), 10, "listens there")
        assert not answers("127.0.0.1")
    finally:
        app.kill()


@proves("server.debug", "versioning.metrics_interval", "versioning.validation_interval")
@proves("versioning.error_threshold", "versioning.latency_threshold", "server.tokens_file")
def test_debug_logs_answers_thresholds_are_shown_and_without_tokens_nobody_is_let_in(
    redis: Redis, nats: Nats, app: App, start_app: Callable[..., App]
) -> None:
    told = (
        "versioning: {metrics_interval: 2s, validation_interval: 5m, error_threshold: 0.5, "
        "latency_threshold: 7}\n"
    )
    loud = start_app(
        redis.url, nats.url, extra=told, TRADING_SERVER_DEBUG="true", TRADING_SERVER_TOKENS_FILE=""
    )
    status, _, headers = loud.call("POST", "/api/orders?secret=1", order("a"))
    assert status == 401
    line = until(
        lambda: next((x for x in loud.lines() if x.get("request") == headers["x-request-id"]), None),
        2,
        "a line",
    )
    assert {k: line[k] for k in ("event", "method", "path", "status")} == {
        "event": "http", "method": "POST", "path": "/api/orders", "status": 401,
    }  # fmt: skip
    assert "secret" not in loud.log.read_text()
    app.call("GET", "/health/live")
    assert not any(x["event"] == "http" for x in app.lines())
    text = loud.call("GET", "/metrics")[1]["text"]
    for key, value in {
        "metrics_interval": "2", "validation_interval": "300", "error_threshold": "0.5",
        "latency_threshold": "7",
    }.items():  # fmt: skip
        assert f'trading_versioning{{key="{key}",version="0.1.0",slot="blue"}} {value}\n' in text


@proves("server.drain_notice", "server.drain_timeout")
def test_a_stop_takes_no_longer_than_it_may(redis: Redis, nats: Nats, start_app: Callable[..., App]) -> None:
    """Somebody began a request and does not end it; orders are served during the notice all the same."""
    times = {"TRADING_SERVER_DRAIN_NOTICE": "900ms", "TRADING_SERVER_DRAIN_TIMEOUT": "2s"}
    app = start_app(redis.url, nats.url, **times)
    with socket.create_connection(("127.0.0.1", app.port)) as half:
        half.sendall(b"POST /api/orders HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        app.signal(signal.SIGTERM)
        until(lambda: not app.ready(), 0.9, "not ready any more")
        assert submit(app, "during", f"drain-{app.port}")["code"] == 201
        assert app.wait() == 0
    assert any("drain timed out" in x.get("outcome", "") for x in app.lines())


@proves("redis.url", "redis.username", "redis.password_file")
def test_redis_is_used_as_the_user_and_in_the_database_that_are_named(
    own_redis: Redis, nats: Nats, start_app: Callable[..., App], tmp_path: Path
) -> None:
    own_redis.cli("ACL", "SETUSER", "bot", "on", ">sesame", "~*", "&*", "+@all")
    secret = tmp_path / "secret"
    secret.write_text("sesame\n")
    app = start_app(
        own_redis.url.removesuffix("/0") + "/3", nats.url, TRADING_REDIS_USERNAME="bot",
        TRADING_REDIS_PASSWORD_FILE=str(secret),
    )  # fmt: skip
    assert submit(app, "a", "alice")["code"] == 201
    assert own_redis.cli("-n", "3", "EXISTS", "trading:order:alice:a") == "1"
    assert own_redis.cli("DBSIZE") == "0"
    lines = [x for x in own_redis.cli("CLIENT", "LIST").splitlines() if "name=trading-bot" in x]
    assert lines
    assert all("user=bot" in line for line in lines)


@proves("nats.url", "nats.reconnect_wait", "nats.max_reconnects")
def test_the_bus_is_tried_as_often_and_as_fast_as_it_may(
    redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    """Of several servers one that answers is enough; after so many failures it is given up, and said."""
    both = f"nats://127.0.0.1:{free_port()},{own_nats.url}"
    few = {"TRADING_NATS_MAX_RECONNECTS": "2", "TRADING_NATS_RECONNECT_WAIT": "100ms"}
    app = start_app(redis.url, both, **few)
    slow = start_app(redis.url, own_nats.url, TRADING_NATS_RECONNECT_WAIT="1m")
    own_nats.kill()

    def reason() -> str:
        return str(app.call("GET", "/health/ready")[1].get("reasons", {}).get("nats", ""))

    until(lambda: "gave up after 2 attempts" in reason(), 15, "given up")
    own_nats.start()
    later = start_app(redis.url, own_nats.url)
    assert later.ready()
    assert not slow.ready()
    assert "gave up" in reason()


@proves("nats.stream_replicas")
def test_streams_are_made_with_so_many_copies(
    own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    """One server cannot keep three: it says so, and the instance is not ready for that reason."""
    app = start_app(own_redis.url, own_nats.url, ready=False, TRADING_NATS_STREAM_REPLICAS="3")

    def reason() -> str:
        return str(app.call("GET", "/health/ready")[1].get("reasons", {}).get("nats", ""))

    until(lambda: "replicas" in reason(), 10, "the server's words")

    async def copies() -> int:
        client = await nats_client.connect(own_nats.url)
        info = await client.jetstream().stream_info("TRADING_EVENTS")
        await client.close()
        return int(info.config.num_replicas or 0)

    start_app(own_redis.url, own_nats.url, slot="green")
    assert asyncio.run(copies()) == 1


@proves("nats.events_retention")
def test_events_are_kept_so_long(own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]) -> None:
    """A stream that is there is changed, and keeps what it has and all else that it is."""

    async def stream() -> tuple[Any, int]:
        client = await nats_client.connect(own_nats.url)
        info = await client.jetstream().stream_info("TRADING_EVENTS")
        await client.close()
        return info.config, info.state.messages

    first = start_app(own_redis.url, own_nats.url)
    assert submit(first, "a", "alice")["code"] == 201
    until(lambda: own_redis.cli("XLEN", "trading:outbox") == "0", 10, "the outbox is empty")
    before, messages = asyncio.run(stream())
    assert before.max_age == 30 * 86400
    start_app(own_redis.url, own_nats.url, slot="green", TRADING_NATS_EVENTS_RETENTION="1h")
    assert asyncio.run(stream()) == (before.evolve(max_age=3600), messages)
    # Two minutes are what a repeated event is known for.
    with pytest.raises(ConfigError, match="0s or a duration from 2m to 3650d"):
        config.load("config.example.yaml", {"TRADING_NATS_EVENTS_RETENTION": "1m"})


@proves("risk.max_drawdown", "risk.max_order_notional", "risk.max_open_orders")
def test_limits_are_those_of_the_file(redis: Redis, nats: Nats, start_app: Callable[..., App]) -> None:
    app = start_app(
        redis.url, nats.url, extra="risk: {max_drawdown: 0.3, max_order_notional: 60, max_open_orders: 1}\n"
    )
    account = f"acc-{app.port}"
    answer = submit(app, "big", account, quantity="0.002")
    assert (answer["rule"], answer["limit"]) == ("max_order_notional", "60")
    assert submit(app, "a", account)["code"] == 201
    answer = submit(app, "b", account)
    assert (answer["rule"], answer["limit"]) == ("max_open_orders", "1")
    scale, day = 10**8, str(int(time.time() // 86400))
    for cash, code in (("75000", 201), ("65000", 422)):
        key = f"trading:account:{account}-{cash}"
        redis.cli("HSET", key, "cash", str(int(cash) * scale), "peak", str(100_000 * scale), "day", day)
        assert submit(app, "a", f"{account}-{cash}")["code"] == code


@proves("venue.url", "venue.request_timeout", "venue.recheck_interval")
def test_the_venue_is_asked_as_long_and_as_often_as_it_is_told(
    own_redis: Redis, own_nats: Nats, venue: PaperVenue, start_app: Callable[..., App]
) -> None:
    """Without an answer within the time the order is unknown; it is looked at again soon."""
    extra = venue_section(venue, request_timeout="200ms", recheck_interval="1s")
    app = start_app(own_redis.url, own_nats.url, extra=extra)
    venue.faults(lose_request=1.0)
    submit(app, "a", "alice", price="40000")
    found = until(
        lambda: next(
            (x for x in app.lines() if x.get("order") == "a" and x.get("outcome") == "unknown"), None
        ),
        5,
    )
    assert "0.2 s" in found["reason"]
    venue.faults()
    until(lambda: app.call("GET", "/api/orders/a")[1]["status"] == "open", 10, "open")
    due = float(own_redis.cli("ZSCORE", "trading:dispatch", "alice a")) / 1000
    assert due - time.time() <= 1.0


@proves("venue.instruments")
def test_only_what_is_listed_is_traded(own_redis: Redis, nats: Nats, start_app: Callable[..., App]) -> None:
    app = start_app(own_redis.url, nats.url, TRADING_VENUE_INSTRUMENTS="SOL-USDT:0.01:0.1:0.1:10")
    assert submit(app, "a", "alice", symbol="SOL-USDT", quantity="0.1", price="150")["code"] == 201
    assert submit(app, "b", "alice", symbol="SOL-USDT", quantity="0.15", price="150")["rule"] == "lot_size"
    assert submit(app, "c", "alice")["rule"] == "instrument_unknown"


@proves("monitoring.collect_interval", "monitoring.retention_period", "monitoring.metrics_channel")
@proves(
    "monitoring.alerts_channel",
    "monitoring.alert_at",
    "monitoring.alert_interval",
    "monitoring.account_series",
)
def test_metrics_and_alerts_go_where_and_as_often_as_they_are_told(
    own_redis: Redis, nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(
        own_redis.url, nats.url,
        extra="monitoring: {collect_interval: 1s, retention_period: 1m, metrics_channel: 'trading:m', "
        "alerts_channel: 'trading:a', alert_at: 0.4, alert_interval: 1s, account_series: 0}\n",
    )  # fmt: skip
    old = f"{int(time.time() * 1000) - 61_000}"
    for n in range(200):
        own_redis.cli("XADD", "trading:m:history", f"{old}-{n + 1}", "json", "{}")
    submit(app, "a", "alice", quantity="0.9")

    def alerts() -> list[dict[str, Any]]:
        found = json.loads(own_redis.cli("--json", "XRANGE", "trading:a:history", "-", "+"))
        return [json.loads(flat[1]) for _, flat in found]

    # The sweep finds it anew each second.
    until(lambda: len([x for x in alerts() if x["rule"] == "limit_approached"]) >= 3, 10, "told again")
    assert alerts()[0]["fraction"] == "0.4500"
    first = own_redis.cli("--json", "XRANGE", "trading:m:history", "-", "+", "COUNT", "1")
    until(lambda: int(own_redis.cli("XLEN", "trading:m:history")) < 200, 10, f"cut: {first}")
    assert "trading_account_" not in "".join(
        x for x in app.call("GET", "/metrics")[1]["text"].splitlines() if not x.startswith("#")
    )


def test_every_key_is_proven() -> None:
    keys = {f"{section}.{name}" for section, names in config.KEYS.items() for name in names}
    assert keys == PROVEN.keys() | ELSEWHERE.keys()
    for key, place in ELSEWHERE.items():
        module, name = place.split(".")
        text = (Path(__file__).parent / f"{module}.py").read_text()
        test = next(x for x in ast.parse(text).body if isinstance(x, ast.FunctionDef) and x.name == name)
        variable = "TRADING_" + key.replace(".", "_").upper()
        source = ast.get_source_segment(text, test) or ""
        assert variable in source or key.partition(".")[2] in source, f"{place} does not set {key}"
