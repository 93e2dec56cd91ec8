"""The paper exchange: what it may do on its host, that orders reach it, and that it forgets none when it is killed."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

import nats
import pytest
import requests
from conftest import Fleet
from nats.aio.client import Client
from test_orders import ACCOUNT, order, post, secret
from testinfra.host import Host

testinfra_hosts = ["ansible://venue"]

FINAL = {"filled", "cancelled", "rejected", "expired"}


@pytest.fixture
def url(host: Host) -> str:
    """Where the exchange answers."""
    return f"http://{host.ansible('ansible.builtin.debug', 'var=private_address')['private_address']}:9200"


def within(seconds: float, condition: Callable[[], Any], what: str) -> Any:
    """The first true value of the condition; fails after six times the seconds that it takes at most on a free machine."""
    end = time.monotonic() + 6 * seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {6 * seconds} s: {what}"
        time.sleep(0.1)
    return value


def seen(fleet: Fleet, client_order_id: str) -> dict[str, Any]:
    """The order as the app has it."""
    headers = {"Authorization": f"Bearer {secret('api_desk_token')}", "X-Account-Id": ACCOUNT}
    return dict(requests.get(f"{fleet.url}/api/orders/{client_order_id}", headers=headers, timeout=10).json())


def test_it_runs_now_and_after_a_boot(host: Host) -> None:
    service = host.service("paper-venue")
    assert service.is_running
    assert service.is_enabled


def test_it_listens_on_the_private_interface_only(host: Host, url: str) -> None:
    with host.sudo():
        found = host.check_output("ss -Hltn 'sport = :9200' | awk '{print $4}'").split()
    assert found == [url.removeprefix("http://")]


def test_it_may_do_no_more_than_it_has_to(host: Host) -> None:
    properties = host.check_output(
        "systemctl show paper-venue --property User,NoNewPrivileges,ProtectSystem,CapabilityBoundingSet,MemoryMax"
    )
    assert set(properties.split()) == {
        "User=paper-venue",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "CapabilityBoundingSet=",
        f"MemoryMax={2**30}",
    }


def test_its_book_is_its_own_and_its_password_not_for_all(host: Host) -> None:
    with host.sudo():
        journal = host.file("/var/lib/paper-venue/journal")
        password = host.file("/etc/paper-venue/nats_password")
        assert (journal.user, journal.mode & 0o007) == ("paper-venue", 0)
        assert (password.user, password.group, password.mode) == ("root", "paper-venue", 0o640)
        assert secret("nats_feed") not in host.file("/etc/paper-venue/config.yaml").content_string


def test_a_market_order_is_filled_at_its_price(fleet: Fleet, url: str) -> None:
    body = order(type="market", quantity="0.001")
    del body["price"]
    made = post(fleet, body)
    assert made.status_code == 201, made.text
    id = body["client_order_id"]
    found = within(20, lambda: (now := seen(fleet, id))["status"] in FINAL and now, "the order is done")
    assert (found["status"], found["filled"]) == ("filled", "0.001")
    at_venue = requests.get(f"{url}/v1/orders/{ACCOUNT}.{id}", timeout=10).json()
    assert (at_venue["state"], at_venue["filled"]) == ("filled", "0.001")


def test_a_killed_exchange_comes_back_with_its_book_and_orders_sent_meanwhile_are_filled(
    fleet: Fleet, host: Host, url: str
) -> None:
    resting = order(price="1000.01")
    assert post(fleet, resting).status_code == 201
    within(20, lambda: seen(fleet, resting["client_order_id"])["status"] == "open", "it rests at the exchange")
    before = {found["id"]: found for found in requests.get(f"{url}/v1/orders", timeout=30).json()}
    with host.sudo():
        pid = host.check_output("systemctl show paper-venue --property MainPID --value")
        host.check_output(f"systemctl kill --signal KILL paper-venue; until ! kill -0 {pid} 2>/dev/null; do sleep 0.1; done")
    meanwhile = order(price="90000", client_order_id=f"meanwhile-{uuid.uuid4().hex}", quantity="0.0001")
    assert post(fleet, meanwhile).status_code == 201
    id = meanwhile["client_order_id"]
    within(60, lambda: seen(fleet, id)["status"] == "filled", "what was sent meanwhile is filled")
    after = {found["id"]: found for found in requests.get(f"{url}/v1/orders", timeout=30).json()}
    assert before.keys() <= after.keys()
    assert all(after[id] == found for id, found in before.items() if found["state"] in FINAL)
    assert len([id for id in after if id.endswith(meanwhile["client_order_id"])]) == 1


async def flush(client: Client) -> None:
    """Return once the server has all that was sent: nats-py's first ping overtakes what is buffered, the second does not."""
    await client.flush()
    await client.flush()


def test_who_publishes_prices_may_publish_nothing_else(fleet: Fleet) -> None:
    async def attempt() -> list[str]:
        refused: list[str] = []

        async def on_error(error: Exception) -> None:
            refused.append(str(error))

        url = f"nats://{fleet.private['data1']}:4222"
        client = await nats.connect(url, user="feed", password=secret("nats_feed"), error_cb=on_error)
        try:
            await client.publish("market.ticks.NONE", b"")
            await flush(client)
            assert refused == []
            await client.publish("trading.events.order.filled.desk-1", b"")
            await client.publish("trading.orders.submit.desk-1", b"")
            await flush(client)
        finally:
            await client.close()
        return refused

    assert len(asyncio.run(attempt())) == 2
