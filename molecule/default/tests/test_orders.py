"""An order from end to end, on both paths, through the load balancer and over NATS."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import nats
import requests
from conftest import STATE, Fleet

ACCOUNT = "desk-1"


def secret(name: str) -> str:
    return (STATE / "secrets" / name).read_text().strip()


def order(**changes: Any) -> dict[str, Any]:
    made = {"client_order_id": uuid.uuid4().hex, "symbol": "BTC-USDT", "side": "buy", "type": "limit"}
    return {**made, "quantity": "0.001", "price": "50000", **changes}


def post(fleet: Fleet, body: dict[str, Any], token: str = "api_desk_token") -> requests.Response:
    headers = {"Authorization": f"Bearer {secret(token)}", "X-Account-Id": ACCOUNT}
    return requests.post(f"{fleet.url}/api/orders", json=body, headers=headers, timeout=10)


def taken(fleet: Fleet) -> bool:
    """Whether an order is taken now. A load balancer without an instance may just close the connection."""
    try:
        return post(fleet, order()).status_code == 201
    except requests.RequestException:
        return False


async def submit(fleet: Fleet, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    client = await nats.connect(f"nats://{fleet.private['data1']}:4222", user="client", password=secret("nats_client"))
    try:
        reply = await client.request(
            f"trading.orders.submit.{ACCOUNT}",
            json.dumps(body).encode(),
            timeout=10,
            headers={"Authorization": f"Bearer {secret('api_desk_token')}"},
        )
        return int((reply.headers or {})["Http-Status"]), json.loads(reply.data)
    finally:
        await client.close()


def test_the_same_order_twice_is_one_order_whichever_path_it_takes(fleet: Fleet) -> None:
    body = order()
    first, second = post(fleet, body), post(fleet, body)
    assert (first.status_code, second.status_code) == (201, 200), (first.text, second.text)
    assert first.json() == second.json()
    status, answer = asyncio.run(submit(fleet, body))
    assert (status, answer) == (200, first.json())


def test_an_order_over_nats_is_the_same_order_over_http(fleet: Fleet) -> None:
    body = order()
    status, answer = asyncio.run(submit(fleet, body))
    assert status == 201
    again = post(fleet, body)
    assert (again.status_code, again.json()) == (200, answer)


def test_the_same_id_for_another_order_is_a_conflict(fleet: Fleet) -> None:
    body = order()
    assert post(fleet, body).status_code == 201
    conflict = post(fleet, {**body, "quantity": "0.002"})
    assert conflict.status_code == 409
    assert conflict.headers["Content-Type"].startswith("application/problem+json")


def test_an_order_past_the_position_limit_is_refused_with_the_rule(fleet: Fleet) -> None:
    refused = post(fleet, order(quantity="100"))
    assert refused.status_code == 422, refused.text
    assert {"rule", "limit", "value"} <= set(refused.json())


def test_nobody_without_a_token_gets_an_answer(fleet: Fleet) -> None:
    assert requests.post(f"{fleet.url}/api/orders", json=order(), timeout=10).status_code == 401
