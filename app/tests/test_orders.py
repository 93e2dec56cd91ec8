"""Orders over HTTP, against real Redis and NATS."""

from __future__ import annotations

import http.client
import itertools
import json
import uuid
from collections.abc import Callable

import pytest

from servers import NARROW, OBSERVER, App, Nats, Redis, order, until


def unique(prefix: str = "acc") -> str:
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def submit(app: App, body: dict[str, object], account: str) -> tuple[int, dict[str, object]]:
    status, answer, _ = app.call("POST", "/api/orders", body, account=account)
    return status, answer


def test_an_order_is_accepted_once_and_the_same_answer_given_again(app: App) -> None:
    account = unique()
    status, first, headers = app.call("POST", "/api/orders", order("a1"), account=account)
    assert status == 201
    assert headers["content-type"] == "application/json"
    assert first["status"] == "accepted"
    assert first["account_id"] == account
    assert (first["version"], first["slot"]) == ("0.1.0", "blue")
    for _ in range(2):
        assert submit(app, order("a1", quantity="0.00100"), account) == (200, first)


def test_the_same_id_with_another_order_is_a_conflict(app: App) -> None:
    account = unique()
    assert submit(app, order("a1"), account)[0] == 201
    status, answer = submit(app, order("a1", price="50001"), account)
    assert status == 409
    assert answer["type"] == "urn:trading-bot:problem:conflict"


def test_accounts_do_not_share_ids(app: App) -> None:
    assert submit(app, order("a1"), unique())[0] == 201
    assert submit(app, order("a1"), unique())[0] == 201


def test_position_size_counts_what_is_in_flight(app: App) -> None:
    account = unique()
    assert submit(app, order("a1", quantity="1"), account)[0] == 201
    assert submit(app, order("a2", quantity="1"), account)[0] == 201
    status, answer = submit(app, order("a3", quantity="0.001"), account)
    assert status == 422
    assert (answer["rule"], answer["limit"], answer["value"]) == ("max_position_size", "100000", "100050")
    assert submit(app, order("s1", side="sell", quantity="2"), account)[0] == 201


def test_a_refusal_is_remembered_too(app: App) -> None:
    account = unique()
    first = submit(app, order("a1", quantity="9"), account)
    assert first[0] == 422
    assert submit(app, order("a1", quantity="9"), account) == first


def test_a_reduce_only_order_without_a_position_is_refused(app: App) -> None:
    status, answer = submit(app, order("a1", reduce_only=True), unique())
    assert (status, answer["rule"]) == (422, "reduce_only")


def test_a_market_order_without_a_mark_is_refused(app: App) -> None:
    status, answer = submit(app, order("a1", type="market", price=None), unique())
    assert (status, answer["rule"]) == (422, "mark_missing")


@pytest.mark.parametrize(
    ("fields", "rule", "limit", "value"),
    [
        ({"symbol": "NEW-USDT"}, "instrument_unknown", "a known instrument", "NEW-USDT"),
        ({"price": "50000.001"}, "tick_size", "0.01", "50000.001"),
        ({"quantity": "0.000015"}, "lot_size", "0.00001", "0.000015"),
        ({"quantity": "101", "price": "1"}, "max_quantity", "100", "101"),
        (
            {"quantity": "100", "price": "80000000"},
            "max_order_notional",
            "1000000",
            "beyond what can be held",
        ),
        ({"quantity": "100", "price": "20000"}, "max_order_notional", "1000000", "2000000"),
        ({"quantity": "3"}, "max_position_size", "100000", "150000"),
    ],
)
def test_each_check_names_itself_its_limit_and_the_value(
    app: App, fields: dict[str, object], rule: str, limit: str, value: str
) -> None:
    status, answer = submit(app, order("a1", **fields), unique())
    assert (status, answer["rule"], answer["limit"], answer["value"]) == (422, rule, limit, value)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (b"[]", "body"),
        (b"\xff", "body"),
        (b"", "body"),
        (json.dumps(order("a", quantity=1)).encode(), "quantity"),
        (json.dumps(order("a", side="hold")).encode(), "side"),
        (json.dumps(order("a", leverage="3")).encode(), "body"),
        (json.dumps(order("a", quantity="0")).encode(), "quantity"),
        (json.dumps(order("a/b")).encode(), "client_order_id"),
    ],
)
def test_a_malformed_order_is_400_with_the_field(app: App, body: bytes, field: str) -> None:
    status, answer, headers = app.call("POST", "/api/orders", body)
    assert status == 400
    assert headers["content-type"] == "application/problem+json"
    assert field in answer["errors"]


def test_nothing_is_let_in_without_the_right_token(app: App) -> None:
    assert app.call("POST", "/api/orders", order("a"), token=None)[0] == 401
    status, _, headers = app.call("POST", "/api/orders", order("a"), token="wrong")
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert app.call("POST", "/api/orders", order("a"), token=OBSERVER)[0] == 403
    assert app.call("POST", "/api/orders", order("a"), token=NARROW, account="bob")[0] == 403
    assert app.call("POST", "/api/orders", order("narrow"), token=NARROW, account="alice")[0] in (200, 201)
    assert app.call("GET", "/api/status", token=NARROW)[0] == 403
    assert app.call("GET", "/api/status", token=None)[0] == 401


@pytest.mark.parametrize("account", [None, "", "a.b", "a*", "x" * 65, "a b"])
def test_an_account_that_is_none_is_400(app: App, account: str | None) -> None:
    status, answer, _ = app.call("POST", "/api/orders", order("a"), account=account)
    assert status == 400
    assert "X-Account-Id" in answer["errors"]


def test_unknown_paths_and_methods_are_problems(app: App) -> None:
    assert app.call("GET", "/nothing")[0] == 404
    assert app.call("PUT", "/api/orders", {})[0] == 405


def test_bodies_and_headers_have_limits(app: App) -> None:
    assert app.call("POST", "/api/orders", b" " * 20_000)[0] == 413
    assert app.call("GET", "/health/live", headers={"X-Long": "x" * 20_000})[0] == 431


def test_health_and_metrics_need_no_token(app: App) -> None:
    assert app.call("GET", "/health/live", token=None)[1] == {"status": "live"}
    assert app.call("GET", "/health/ready", token=None)[1] == {"status": "ready"}
    assert app.call("GET", "/metrics", token=None)[0] == 200


def test_status_says_what_runs(app: App) -> None:
    status, answer, _ = app.call("GET", "/api/status")
    assert status == 200
    assert answer["version"] == "0.1.0"
    assert answer["release_id"] == "r1"
    assert answer["slot"] == "blue"
    assert answer["image"] == "sha256:0"
    assert answer["mode"] == "normal"
    assert answer["draining"] is False
    assert len(answer["config_hash"]) == 64
    assert answer["started_at"].endswith("Z")


def test_every_series_carries_version_and_slot(app: App) -> None:
    submit(app, order("m1"), unique())
    text = app.call("GET", "/metrics")[1]["text"]
    series = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all('version="0.1.0",slot="blue"' in line for line in series)
    accepted = next(x for x in series if x.startswith('trading_orders_total{path="http",outcome="accepted"'))
    assert int(accepted.rpartition(" ")[2]) >= 1
    assert any(
        line.startswith("trading_order_duration_seconds_bucket") and 'le="+Inf"' in line for line in series
    )


def test_durations_are_counted_in_buckets_that_grow_by_a_fifth(app: App) -> None:
    submit(app, order("m1"), unique())
    text = app.call("GET", "/metrics")[1]["text"]
    name = 'trading_order_duration_seconds_bucket{path="http",le="'
    rows = [line.removeprefix(name).partition('"') for line in text.splitlines() if line.startswith(name)]
    bounds = [float(bound) for bound, _, _ in rows]
    counts = [int(rest.rpartition(" ")[2]) for _, _, rest in rows]
    assert (bounds[0], bounds[-1]) == (0.0003, float("inf"))
    assert 3 <= bounds[-2] < 4
    assert all(abs(after / before - 1.2) < 0.001 for before, after in itertools.pairwise(bounds[:-1]))
    assert counts == sorted(counts)
    assert counts[-1] >= 1


def test_each_decision_is_one_log_line_and_one_audit_line(app: App, redis: Redis) -> None:
    account = unique()
    submit(app, order("a1"), account)
    submit(app, order("a1"), account)
    assert submit(app, order("a2", quantity="9"), account)[0] == 422
    logged = [x for x in app.lines() if x["event"] == "order" and x.get("account") == account]
    assert [(x["order"], x["outcome"]) for x in logged] == [
        ("a1", "accepted"),
        ("a1", "again"),
        ("a2", "refused"),
    ]
    audit = redis.cli("--json", "XREVRANGE", "trading:audit", "+", "-", "COUNT", "50")
    mine = [fields for _, fields in json.loads(audit) if account in fields]
    assert [fields[1] for fields in mine] == ["order.refused", "order.accepted"]


def test_a_keep_alive_connection_carries_many_requests(app: App) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=5)
    ports = set()
    for _ in range(3):
        connection.request("GET", "/health/live")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b'{"status":"live"}')
        ports.add(connection.sock.getsockname())
    assert len(ports) == 1
    connection.close()


def test_halted_trading_is_503_and_leaves_no_trace(app: App, redis: Redis) -> None:
    account = unique()
    redis.cli("HSET", "trading:control", "halted", "1")
    try:
        status, answer, headers = app.call("POST", "/api/orders", order("a1"), account=account)
        assert (status, headers["retry-after"]) == (503, "1")
        assert answer["type"] == "urn:trading-bot:problem:halted"
        assert app.call("GET", "/api/status")[1]["mode"] == "halted"
    finally:
        redis.cli("HDEL", "trading:control", "halted")
    assert submit(app, order("a1"), account)[0] == 201


def test_flushed_scripts_are_loaded_again(app: App, redis: Redis) -> None:
    redis.cli("SCRIPT", "FLUSH")
    assert submit(app, order("a1"), unique())[0] == 201


def test_metrics_are_published_on_redis_and_kept(
    redis: Redis, nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(redis.url, nats.url, slot="green", extra="monitoring: {collect_interval: 1s}\n")
    submit(app, order("a1"), unique())

    def line() -> dict[str, object] | None:
        for _, flat in json.loads(redis.cli("--json", "XREVRANGE", "trading:metrics:history", "+", "-")):
            found = json.loads(flat[1])
            if found["slot"] == "green" and found["order_rate"] > 0:
                return dict(found)
        return None

    found = until(line, 5, "a line that tells of the order")
    assert (found["success_rate"], found["error_rate"], found["version"]) == (1.0, 0.0, "0.1.0")
    assert found["memory_bytes"] > 0
