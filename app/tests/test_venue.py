"""From the ledger to the paper venue and back."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import nats as nats_client
import pytest

from trading_bot.domain.traffic import Traffic

from servers import App, Nats, PaperVenue, Redis, listening, order, until, verified

FINAL = {"filled", "cancelled", "rejected", "expired"}


def venue_section(venue: PaperVenue, **more: str) -> str:
    keys = {
        "adapter": "paper",
        "url": f'"{venue.url}"',
        "request_timeout": "400ms",
        "recheck_interval": "1s",
        **more,
    }
    return "venue: {" + ", ".join(f"{k}: {v}" for k, v in keys.items()) + "}\n"


class Trading:
    """An instance with all that it trades with, and an account of its own for each test."""

    def __init__(self, app: App, redis: Redis, nats: Nats, venue: PaperVenue) -> None:
        self.app, self.redis, self.nats, self.venue = app, redis, nats, venue
        self.account = "nobody"

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any], dict[str, str]]:
        return self.app.call(method, path, body, account=self.account)

    def lines(self) -> list[dict[str, Any]]:
        return [line for line in self.app.lines() if line.get("account") == self.account]

    def verified(self) -> dict[str, Any]:
        return verified(self.redis, self.venue)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trading]:
    directory = tmp_path_factory.mktemp("trading")
    redis, nats = Redis(directory / "redis"), Nats(directory / "nats")
    redis.start()
    nats.start()
    venue = PaperVenue(directory / "venue", nats.url, "--tick", "0.05")
    venue.start()
    app = App(directory / "app", redis.url, nats.url, extra=venue_section(venue))
    app.start_ready()
    until(lambda: redis.cli("HGET", "trading:marks", "BTC-USDT"), 5, "a mark")
    yield Trading(app, redis, nats, venue)
    for server in (app, venue, nats, redis):
        server.kill()


@pytest.fixture
def trading(stack: Trading) -> Iterator[Trading]:
    stack.account = f"acc-{uuid.uuid4().hex[:8]}"
    yield stack
    if not listening(stack.venue.port):
        stack.venue.start()
    stack.venue.faults()


def state(app: App | Trading, id: str) -> dict[str, Any]:
    return app.call("GET", f"/api/orders/{id}")[1]


def reaches(app: App | Trading, id: str, *states: str) -> dict[str, Any]:
    return until(
        lambda: (found := state(app, id))["status"] in states and found, 15, f"{id} is one of {states}"
    )


def test_a_market_order_is_filled_and_makes_a_position(trading: Trading) -> None:
    assert (
        trading.call("POST", "/api/orders", order("m1", type="market", price=None, quantity="0.01"))[0] == 201
    )
    found = reaches(trading, "m1", "filled")
    assert (found["filled"], found["time_in_force"]) == ("0.01", "IOC")
    account = trading.call("GET", "/api/account")[1]
    position = account["positions"][0]
    assert (position["symbol"], position["quantity"]) == ("BTC-USDT", "0.01")
    assert account["open_orders"] == 0
    assert float(account["leverage"]) > 0
    assert float(position["fees"]) > 0
    assert trading.verified()["ok"]


def test_a_position_can_be_reduced_but_not_beyond(trading: Trading) -> None:
    trading.call("POST", "/api/orders", order("m1", type="market", price=None, quantity="0.01"))
    reaches(trading, "m1", "filled")
    closing = {"type": "market", "price": None, "side": "sell", "reduce_only": True}
    status, answer, _ = trading.call("POST", "/api/orders", order("r1", quantity="0.02", **closing))
    assert (status, answer["rule"], answer["limit"], answer["value"]) == (422, "reduce_only", "0.01", "0.02")
    assert trading.call("POST", "/api/orders", order("r2", quantity="0.01", **closing))[0] == 201
    reaches(trading, "r2", "filled")
    assert trading.call("GET", "/api/account")[1]["positions"][0]["quantity"] == "0"
    assert trading.verified()["ok"]


def test_a_resting_order_is_open_listed_and_cancelled(trading: Trading) -> None:
    trading.call("POST", "/api/orders", order("l1", price="40000"))
    reaches(trading, "l1", "open")
    listed = trading.call("GET", "/api/orders?status=open")[1]["orders"]
    assert [entry["client_order_id"] for entry in listed] == ["l1"]
    status, answer, _ = trading.call("DELETE", "/api/orders/l1")
    assert (status, answer["cancel_wanted"]) == (202, True)
    reaches(trading, "l1", "cancelled")
    assert trading.call("DELETE", "/api/orders/l1")[0] == 409
    assert trading.call("DELETE", "/api/orders/none")[0] == 404
    assert trading.call("GET", "/api/orders/none")[0] == 404
    assert trading.call("GET", "/api/orders?status=open")[1]["orders"] == []
    assert trading.verified()["ok"]


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({"price": "40000", "time_in_force": "IOC"}, "expired"),
        ({"price": "60000", "quantity": "1", "time_in_force": "FOK"}, "expired"),
        ({"price": "60000", "quantity": "0.01", "time_in_force": "FOK"}, "filled"),
        ({"price": "60000", "quantity": "0.2"}, "filled"),
        ({"price": "40000", "time_in_force": "DAY"}, "open"),
        ({"type": "stop", "price": None, "stop_price": "60000"}, "open"),
        ({"type": "stop", "price": None, "stop_price": "40000"}, "filled"),
        ({"type": "stop_limit", "price": "60000", "stop_price": "40000"}, "filled"),
    ],
)
def test_each_type_and_time_in_force_ends_as_it_should(
    fields: dict[str, Any], end: str, trading: Trading
) -> None:
    """A large order is filled in parts, over several ticks."""
    assert trading.call("POST", "/api/orders", order("o1", **fields))[0] == 201
    reaches(trading, "o1", end)
    assert trading.verified()["ok"]


@pytest.mark.parametrize(
    "faults",
    [
        {"lose_answer": 1.0},
        {"lose_request": 1.0},
        {"disconnect": 1.0},
        {"late": 1.0, "late_by": 1500},
        {"duplicate": 1.0},
        {"reject": 1.0},
    ],
)
def test_no_fault_of_the_venue_loses_or_doubles_an_order(faults: dict[str, float], trading: Trading) -> None:
    """While the venue misbehaves an order's state may be unknown; afterwards it is what the venue says."""
    trading.venue.faults(**faults)
    for n in range(8):
        body = order(f"f{n}", type="market", price=None, side="buy" if n % 2 else "sell")
        assert trading.call("POST", "/api/orders", body)[0] == 201
    until(lambda: any(x["event"] in ("dispatch", "venue") for x in trading.lines()), 5, "the venue was tried")
    if "reject" not in faults and "duplicate" not in faults:
        until(lambda: any(x.get("outcome") == "unknown" for x in trading.lines()), 5, "an order is unknown")
        trading.venue.faults()
    for n in range(8):
        found = reaches(trading, f"f{n}", *FINAL)
        assert found["status"] == ("rejected" if "reject" in faults else "filled")
    verdict = trading.verified()
    assert verdict["ok"], verdict
    fills = trading.redis.cli("XRANGE", "trading:fills", "-", "+").count(trading.account)
    assert fills == (0 if "reject" in faults else 8)


def test_an_order_that_was_accepted_while_the_venue_is_away_is_sent_when_it_is_back(
    trading: Trading,
) -> None:
    trading.venue.kill()
    assert trading.call("POST", "/api/orders", order("a1", price="60000"))[0] == 201
    reaches(trading, "a1", "unknown")
    trading.venue.start()
    reaches(trading, "a1", "filled")
    assert trading.verified()["ok"]


def test_another_instance_picks_up_what_a_dead_one_left(
    own_redis: Redis, own_nats: Nats, venue: PaperVenue, start_app: Callable[..., App]
) -> None:
    app = start_app(own_redis.url, own_nats.url, extra=venue_section(venue))
    until(lambda: own_redis.cli("HGET", "trading:marks", "BTC-USDT"), 5, "a mark")
    venue.faults(lose_request=1.0)
    app.call("POST", "/api/orders", order("p1", type="market", price=None))
    reaches(app, "p1", "dispatched", "unknown")
    app.kill()
    venue.faults()
    other = start_app(own_redis.url, own_nats.url, slot="green", extra=venue_section(venue))
    reaches(other, "p1", "filled")
    assert verified(own_redis, venue)["ok"]


def put_traffic(nats: Nats, traffic: Traffic) -> None:
    async def run() -> None:
        client = await nats_client.connect(nats.url)
        bucket = await client.jetstream().key_value("release")
        await bucket.put("traffic", msgspec.json.encode(traffic))
        await client.close()

    asyncio.run(run())


def metric(app: App, name: str) -> float:
    lines = app.call("GET", "/metrics")[1]["text"].splitlines()
    return float(next(x for x in lines if x.startswith(name + "{")).rpartition(" ")[2])


def is_member(app: App) -> bool:
    return metric(app, "trading_member") == 1


def test_only_members_of_the_fleet_send_orders_follow_the_venue_and_publish(
    own_redis: Redis, own_nats: Nats, venue: PaperVenue, start_app: Callable[..., App]
) -> None:
    """A leftover that the map does not name takes no part, though it runs alone, until it is named again."""
    section = venue_section(venue)
    names = {"blue": "r1", "green": "r2"}
    leftover = start_app(own_redis.url, own_nats.url, slot="green", extra=section, TRADING_RELEASE_ID="r9")
    until(lambda: own_redis.cli("HGET", "trading:marks", "BTC-USDT"), 5, "a mark")
    leftover.call("POST", "/api/orders", order("first", type="market", price=None))
    reaches(leftover, "first", "filled")
    until(lambda: own_redis.cli("XLEN", "trading:outbox") == "0", 5, "its events are published")
    put_traffic(own_nats, Traffic("blue", "green", "s", 5000, names))
    until(lambda: not is_member(leftover), 5, "it knows that it is none")
    leases = ("trading:lease:reports", "trading:lease:outbox")
    until(lambda: not any(own_redis.cli("GET", lease) for lease in leases), 5, "its leases are given back")
    assert leftover.ready()
    assert leftover.call("POST", "/api/orders", order("m1", type="market", price=None))[0] == 201
    time.sleep(1)  # ten looks of a dispatcher
    assert state(leftover, "m1")["status"] == "accepted"
    assert not any(own_redis.cli("GET", lease) for lease in leases)
    assert own_redis.cli("XLEN", "trading:outbox") == "1"
    member = start_app(own_redis.url, own_nats.url, slot="blue", extra=section)
    reaches(member, "m1", "filled")
    until(lambda: own_redis.cli("XLEN", "trading:outbox") == "0", 5, "the member publishes")
    member.kill()
    assert leftover.call("POST", "/api/orders", order("m2", type="market", price=None))[0] == 201
    put_traffic(own_nats, Traffic("blue", "green", "s", 5000, {"blue": "r1", "green": "r9"}))
    reaches(leftover, "m2", "filled")
    until(lambda: own_redis.cli("XLEN", "trading:outbox") == "0", 10, "it publishes again")
    assert verified(own_redis, venue)["ok"]


def test_an_execution_that_another_order_had_is_counted_and_told(
    own_redis: Redis, own_nats: Nats, venue: PaperVenue, start_app: Callable[..., App]
) -> None:
    app = start_app(own_redis.url, own_nats.url, extra=venue_section(venue))
    until(lambda: own_redis.cli("HGET", "trading:marks", "BTC-USDT"), 5, "a mark")
    assert app.call("POST", "/api/orders", order("d1", type="market", price=None))[0] == 201
    reaches(app, "d1", "filled")
    assert metric(app, "trading_duplicated_executions_total") == 0
    assert metric(app, "trading_fenced_writes_total") == 0
    head = venue.call("GET", "/v1/head")["last"]
    own_redis.cli("SADD", "trading:trades:paper", *(f"t{head + n}" for n in range(1, 20)))
    assert app.call("POST", "/api/orders", order("d2", type="market", price=None))[0] == 201
    until(lambda: metric(app, "trading_duplicated_executions_total") == 1, 10, "it is counted")
    assert [line["order"] for line in app.lines() if line["event"] == "defect"] == ["d2"]


def test_an_instance_is_not_ready_before_it_is_reconciled(
    own_redis: Redis, own_nats: Nats, venue: PaperVenue, start_app: Callable[..., App]
) -> None:
    venue.kill()
    app = start_app(own_redis.url, own_nats.url, ready=False, extra=venue_section(venue))
    until(
        lambda: list(app.call("GET", "/health/ready")[1].get("reasons", {})) == ["venue"],
        5,
        "only the venue is missing",
    )
    venue.start()
    until(app.ready, 5, "ready once reconciled")


def test_an_order_before_dispatch_is_cancelled_at_once_and_gives_its_reserve_back(app: App) -> None:
    """Without a venue orders stay accepted."""
    for n in range(3):
        assert app.call("POST", "/api/orders", order(f"c{n}", quantity="2"), account="cancels")[0] == 201
        status, answer, _ = app.call("DELETE", f"/api/orders/c{n}", account="cancels")
        assert (status, answer["status"]) == (200, "cancelled")
    account = app.call("GET", "/api/account", account="cancels")[1]
    assert (account["exposure"], account["open_orders"]) == ("0", 0)


def test_verify_ledger_sees_what_was_tampered_with(trading: Trading) -> None:
    trading.call("POST", "/api/orders", order("m1", type="market", price=None, quantity="0.01"))
    reaches(trading, "m1", "filled")
    trading.redis.cli("HINCRBY", f"trading:account:{trading.account}", "q:BTC-USDT", "1")
    verdict = trading.verified()
    assert not verdict["ok"]
    assert f"{trading.account}: q:BTC-USDT" in verdict["examples"][0]
    trading.redis.cli("HINCRBY", f"trading:account:{trading.account}", "q:BTC-USDT", "-1")
    assert trading.verified()["ok"]
