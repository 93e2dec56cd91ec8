"""Cancel and replace: one order takes the place of another, in one step."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from test_venue import Trading, reaches, stack, state

from servers import OBSERVER, App, Redis, order

__all__ = ["stack"]


@pytest.fixture
def trading(stack: Trading) -> Iterator[Trading]:
    stack.account = f"acc-{uuid.uuid4().hex[:8]}"
    yield stack
    stack.venue.faults()


class Desk:
    """An account at an instance without a venue: what is accepted is not sent."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.account = f"acc-{uuid.uuid4().hex[:8]}"

    def call(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, dict[str, Any]]:
        return self.app.call(method, path, body, account=self.account, **more)[:2]

    def submit(self, id: str, **fields: Any) -> tuple[int, dict[str, Any]]:
        return self.call("POST", "/api/orders", order(id, **fields))

    def replace(self, old: str, new: str, **fields: str) -> tuple[int, dict[str, Any]]:
        return self.call("PUT", f"/api/orders/{old}", {"client_order_id": new, **fields})

    def exposure(self) -> str:
        return str(self.call("GET", "/api/account")[1]["exposure"])


@pytest.fixture
def desk(app: App) -> Desk:
    return Desk(app)


def test_an_order_that_was_not_sent_is_replaced_at_once(desk: Desk) -> None:
    desk.submit("a", quantity="0.002")
    status, first = desk.replace("a", "b", price="49000")
    assert (status, first["status"], first["client_order_id"], first["replaces"]) == (
        201,
        "accepted",
        "b",
        "a",
    )
    old, new = desk.call("GET", "/api/orders/a")[1], desk.call("GET", "/api/orders/b")[1]
    assert (old["status"], old["replaced_by"]) == ("cancelled", "b")
    assert (new["quantity"], new["price"], new["replaces"], new["total_quantity"]) == (
        "0.002", "49000", "a", "0.002",
    )  # fmt: skip
    assert "awaits" not in new
    assert desk.exposure() == "98"
    assert desk.call("GET", "/api/account")[1]["open_orders"] == 1


def test_the_same_replacement_again_gets_the_same_answer_whatever_happened_since(desk: Desk) -> None:
    desk.submit("a")
    _, first = desk.replace("a", "b", price="49000")
    desk.replace("b", "c", price="48000")
    desk.call("DELETE", "/api/orders/c")
    for _ in range(2):
        assert desk.replace("a", "b", price="49000") == (200, first)
    assert desk.exposure() == "0"


def test_the_new_id_names_one_order_for_ever(desk: Desk) -> None:
    desk.submit("a")
    desk.replace("a", "b", price="49000")
    assert desk.replace("a", "b", price="49001")[0] == 409
    assert desk.replace("b", "a", price="49000")[0] == 409
    # Not even the same order, sent by itself, is the one that took another's place.
    assert desk.submit("b", price="49000")[0] == 409


def test_a_refused_replacement_leaves_the_old_order_as_it_was(desk: Desk) -> None:
    desk.submit("a", quantity="1")
    before = (desk.call("GET", "/api/orders/a"), desk.call("GET", "/api/account"))
    refused = desk.replace("a", "b", quantity="3")
    assert (refused[0], refused[1]["rule"], refused[1]["value"]) == (422, "max_position_size", "150000")
    assert (desk.call("GET", "/api/orders/a"), desk.call("GET", "/api/account")) == before
    assert desk.replace("a", "b", quantity="3") == refused
    assert desk.replace("a", "b", quantity="1")[0] == 409
    assert desk.call("GET", "/api/orders/b")[1]["status"] == "rejected"
    assert desk.replace("b", "c", quantity="1")[1]["order_status"] == "rejected"


def test_the_old_orders_reservation_makes_room_for_the_new_one(desk: Desk) -> None:
    """Both together would be far past the largest position."""
    desk.submit("a", quantity="2")
    assert desk.submit("other", quantity="0.001")[0] == 422
    assert desk.replace("a", "b", price="49999")[0] == 201
    assert desk.exposure() == "99998"


def test_only_an_order_that_is_not_done_can_be_replaced(desk: Desk) -> None:
    desk.submit("a")
    desk.call("DELETE", "/api/orders/a")
    status, answer = desk.replace("a", "b")
    assert (status, answer["order_status"]) == (409, "cancelled")
    assert desk.replace("none", "b")[0] == 404
    assert desk.call("GET", "/api/orders/b")[0] == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"client_order_id": "a"}, "client_order_id"),
        ({"client_order_id": "b", "quantity": "0"}, "quantity"),
        ({"client_order_id": "b", "price": "-1"}, "price"),
        ({"client_order_id": "b", "stop_price": "1"}, "stop_price"),
        ({"client_order_id": "b", "side": "sell"}, "body"),
        ({}, "body"),
    ],
)
def test_a_malformed_replacement_is_400_with_the_field(body: dict[str, str], field: str, desk: Desk) -> None:
    desk.submit("a")
    status, answer = desk.call("PUT", "/api/orders/a", body)
    assert (status, field in answer["errors"]) == (400, True), answer


def test_replacing_needs_the_role_to_trade(desk: Desk) -> None:
    assert desk.call("PUT", "/api/orders/a", {"client_order_id": "b"}, token=OBSERVER)[0] == 403


def test_a_dry_replacement_decides_and_leaves_no_trace(desk: Desk, redis: Redis) -> None:
    desk.submit("a")

    def everything() -> tuple[Any, ...]:
        keys = sorted(redis.cli("KEYS", f"*{desk.account}*").split())
        return keys, desk.call("GET", "/api/orders/a"), desk.call("GET", "/api/account")

    before = everything()
    dry = {"X-Dry-Run": "true"}
    body = {"client_order_id": "b", "quantity": "9"}
    assert desk.call("PUT", "/api/orders/a", body, headers=dry)[1]["rule"] == "max_position_size"
    body["quantity"] = "1"
    assert desk.call("PUT", "/api/orders/a", body, headers=dry)[1]["decision"] == "accepted"
    assert everything() == before


def test_nothing_is_replaced_while_trading_is_halted_but_all_can_be_cancelled(
    desk: Desk, redis: Redis
) -> None:
    desk.submit("a")
    redis.cli("HSET", "trading:control", "halted", "1")
    try:
        assert desk.replace("a", "b")[0] == 503
        assert desk.call("DELETE", "/api/orders/a")[0] == 200
    finally:
        redis.cli("HDEL", "trading:control", "halted")


def test_a_resting_order_is_taken_back_before_the_new_one_is_sent(trading: Trading) -> None:
    trading.call("POST", "/api/orders", order("a", price="40000"))
    reaches(trading, "a", "open")
    assert replace(trading, "a", "b", price="41000")[0] == 201
    reaches(trading, "b", "open")
    old = state(trading, "a")
    assert (old["status"], old["replaced_by"]) == ("cancelled", "b")
    assert trading.verified()["ok"]


def replace(trading: Trading, old: str, new: str, **fields: str) -> tuple[int, dict[str, Any]]:
    return trading.call("PUT", f"/api/orders/{old}", {"client_order_id": new, **fields})[:2]


def filled(trading: Trading, *ids: str) -> Decimal:
    return sum((Decimal(state(trading, id)["filled"]) for id in ids), Decimal(0))


def test_what_the_old_order_fills_meanwhile_is_taken_off_the_new_one(trading: Trading) -> None:
    """The quantity is what is wanted in all: no race makes it more, none makes it less."""
    trading.call("POST", "/api/orders", order("a", price="60000", quantity="0.3"))
    reaches(trading, "a", "partially_filled")
    assert replace(trading, "a", "b", price="61000", quantity="0.25")[0] == 201
    new = reaches(trading, "b", "filled", "cancelled")
    old = reaches(trading, "a", "filled", "cancelled")
    assert filled(trading, "a", "b") == max(Decimal("0.25"), Decimal(old["filled"]))
    assert new["total_quantity"] == "0.25"
    assert trading.verified()["ok"]


def test_a_new_order_of_which_nothing_is_left_is_cancelled(trading: Trading) -> None:
    trading.call("POST", "/api/orders", order("a", price="60000", quantity="0.5"))
    reaches(trading, "a", "partially_filled")
    trading.venue.faults(lose_request=1.0)
    assert replace(trading, "a", "b", price="61000", quantity="0.45")[0] == 201
    assert state(trading, "b")["awaits"] == "a"
    reaches(trading, "a", "filled")
    new = reaches(trading, "b", "cancelled")
    assert (new["filled"], new["reason"]) == ("0", "the order that it replaces was filled")
    trading.venue.faults()
    assert trading.verified()["ok"]


def test_an_order_that_awaits_another_can_be_replaced_and_cancelled(trading: Trading) -> None:
    trading.call("POST", "/api/orders", order("a", price="40000"))
    reaches(trading, "a", "open")
    trading.venue.faults(lose_request=1.0)
    assert replace(trading, "a", "b", price="41000")[0] == 201
    status, answer = replace(trading, "a", "other", price="41000")
    assert (status, answer["type"]) == (409, "urn:trading-bot:problem:pending")
    assert replace(trading, "b", "c", price="42000")[0] == 201
    assert state(trading, "b")["status"] == "cancelled"
    assert state(trading, "c")["awaits"] == "a"
    assert replace(trading, "c", "d", price="43000")[0] == 201
    trading.venue.faults()
    reaches(trading, "d", "open")
    assert [state(trading, id)["status"] for id in "abc"] == ["cancelled"] * 3
    trading.venue.faults(lose_request=1.0)
    assert replace(trading, "d", "e", price="44000")[0] == 201
    assert trading.call("DELETE", "/api/orders/e")[0] == 200
    trading.venue.faults()
    reaches(trading, "d", "cancelled")
    assert state(trading, "e")["status"] == "cancelled"
    assert trading.call("GET", "/api/account")[1]["open_orders"] == 0
    assert trading.verified()["ok"]


def test_the_end_that_an_older_version_saw_is_found(trading: Trading) -> None:
    """A version that knows of no replacement ends the old order and does nothing about the new one."""
    trading.call("POST", "/api/orders", order("a", price="40000"))
    reaches(trading, "a", "open")
    trading.venue.faults(lose_request=1.0)
    assert replace(trading, "a", "b", price="41000")[0] == 201
    # What the older version's script leaves: it does not read this field.
    trading.redis.cli("HDEL", f"trading:order:{trading.account}:a", "next")
    trading.venue.faults()
    reaches(trading, "b", "open")
    assert state(trading, "a")["status"] == "cancelled"
    assert trading.verified()["ok"]
