"""Orders over NATS, the traffic map, and the events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import nats as nats_client
import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeout
from nats.js.api import DeliverPolicy

from trading_bot.adapters.nats.bus import Bus, Settings
from trading_bot.domain.traffic import Traffic, slot_of

from servers import OBSERVER, TOKEN, App, Nats, Redis, order, until


def with_client(nats: Nats, work: Callable[[Client], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        client = await nats_client.connect(nats.url)
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(run())


async def submit(
    client: Client, account: str, body: bytes | dict[str, Any], token: str = TOKEN, timeout: float = 2
) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    reply = await client.request(f"trading.orders.submit.{account}", data, timeout=timeout, headers=headers)
    assert reply.headers is not None
    return int(reply.headers["Http-Status"]), json.loads(reply.data)


def test_both_paths_are_one(app: App, nats: Nats) -> None:
    """An order that came by one path is the same order on the other, with the same answer."""

    async def work(client: Client) -> None:
        account = f"bus-{uuid.uuid4().hex[:8]}"
        status, first = await submit(client, account, order("a1"))
        assert status == 201
        assert await submit(client, account, order("a1")) == (200, first)
        assert app.call("POST", "/api/orders", order("a1"), account=account)[:2] == (200, first)
        assert (await submit(client, account, order("a1", price="1")))[0] == 409

    with_client(nats, work)


def test_errors_are_problems_on_the_bus_too(app: App, nats: Nats) -> None:
    async def work(client: Client) -> None:
        assert (await submit(client, "a", b"{"))[0] == 400
        assert (await submit(client, "a", b"\xff" * 9))[0] == 400
        assert (await submit(client, "a", b""))[0] == 400
        assert (await submit(client, "a", order("x"), token=""))[0] == 401
        assert (await submit(client, "a", order("x"), token=OBSERVER))[0] == 403
        assert (await submit(client, "a$", order("x")))[0] == 400
        status, answer = await submit(client, "a", order("big", quantity="9"))
        assert (status, answer["rule"]) == (422, "max_position_size")

    with_client(nats, work)


def test_each_slot_answers_only_its_accounts(
    redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    """With a map, exactly the slot that the hash names answers; a change is followed within a second."""
    start_app(redis.url, own_nats.url, slot="blue")
    start_app(redis.url, own_nats.url, slot="green")

    async def work(client: Client) -> None:
        bucket = await client.jetstream().key_value("release")
        for cut in (5000, 10000, 0):
            traffic = Traffic("blue", "green", f"salt{cut}", cut)
            await bucket.put("traffic", msgspec.json.encode(traffic))
            await asyncio.sleep(1.3)  # a slot that loses an account goes on answering for a second
            for n in range(20):
                account = f"cut{cut}-{uuid.uuid4().hex[:8]}-{n}"
                _, answer = await submit(client, account, order("a1"))
                assert answer["slot"] == slot_of(account, traffic)

    with_client(own_nats, work)


def test_a_former_release_left_running_in_the_slot_takes_no_order(
    redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    """As on a host that was taken out of the fleet and not switched off: its share must not go unanswered."""
    start_app(redis.url, own_nats.url, slot="blue", TRADING_RELEASE_ID="r2")
    start_app(redis.url, own_nats.url, slot="blue", TRADING_RELEASE_ID="r1")

    async def work(client: Client) -> None:
        bucket = await client.jetstream().key_value("release")
        traffic = Traffic("blue", "green", "salt", 0, {"blue": "r2"})
        await bucket.put("traffic", msgspec.json.encode(traffic))
        await asyncio.sleep(1.3)  # as above
        for n in range(30):
            assert (await submit(client, f"left-{uuid.uuid4().hex[:8]}", order(f"a{n}")))[0] == 201

    with_client(own_nats, work)


def test_a_reload_that_makes_it_the_named_release_gives_it_requests(
    redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(redis.url, own_nats.url, slot="blue")
    release = {"id": "r2", "image": app.call("GET", "/api/status")[1]["image"]}
    account = f"named-{uuid.uuid4().hex[:8]}"

    async def work(client: Client) -> None:
        bucket = await client.jetstream().key_value("release")
        await bucket.put("traffic", msgspec.json.encode(Traffic("blue", "green", "salt", 0, {"blue": "r2"})))
        await asyncio.sleep(1.3)  # as above
        with pytest.raises(NoRespondersError):
            await submit(client, account, order("a1"), timeout=0.5)
        app.config.with_name("release.json").write_text(json.dumps(release))
        app.signal(signal.SIGHUP)
        async with asyncio.timeout(5):
            while True:
                with contextlib.suppress(NoRespondersError):
                    assert (await submit(client, account, order("a1")))[0] == 201
                    return
                await asyncio.sleep(0.05)

    with_client(own_nats, work)


def test_while_a_slot_changes_its_release_each_order_is_asked_of_one_instance(
    redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    """Two could answer differently: one that has no room left, and one a moment later that has it again."""
    apps = [start_app(redis.url, own_nats.url, slot="blue", TRADING_RELEASE_ID=id) for id in ("r1", "r2")]

    async def work(client: Client) -> None:
        bucket = await client.jetstream().key_value("release")
        await bucket.put("traffic", msgspec.json.encode(Traffic("blue", "green", "salt", 0, {"blue": ""})))
        await asyncio.sleep(1.3)  # as above
        for n in range(30):
            assert (await submit(client, f"one-{uuid.uuid4().hex[:8]}", order(f"a{n}")))[0] == 201

    with_client(own_nats, work)
    decided = [sum(line["event"] == "order" for line in app.lines()) for app in apps]
    assert sum(decided) == 30
    assert min(decided) > 0, "both have their turn"


def test_the_status_shows_the_map_in_force_whatever_a_later_version_adds_to_it(
    redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(redis.url, own_nats.url, slot="blue")
    assert app.call("GET", "/api/status")[1]["traffic"] is None
    shown = {"stable": "blue", "canary": "green", "salt": "r2", "cut": 500, "shadow": "green"}

    async def work(client: Client) -> None:
        bucket = await client.jetstream().key_value("release")
        await bucket.put("traffic", json.dumps({**shown, "releases": {}, "region": "eu"}).encode())

    with_client(own_nats, work)
    until(lambda: app.call("GET", "/api/status")[1]["traffic"] == shown, 3, "the map is in force")


def test_an_unreadable_map_leaves_the_last_one_in_force(
    redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    start_app(redis.url, own_nats.url, slot="blue")

    async def work(client: Client) -> None:
        bucket = await client.jetstream().key_value("release")
        account = f"m-{uuid.uuid4().hex[:8]}"
        assert (await submit(client, account, order("a1")))[0] == 201
        await bucket.put("traffic", b'{"stable":"green","canary":"blue","salt":"none","cut":0}')
        await bucket.put("traffic", b'{"stable":"blue","cut":"x"}')
        await asyncio.sleep(1.3)  # as above
        with pytest.raises((NatsTimeout, NoRespondersError)):
            await submit(client, account, order("a2"), timeout=0.5)

    with_client(own_nats, work)


def test_a_connection_that_ended_without_a_word_is_made_anew(nats: Nats) -> None:
    """As the library leaves it where its last write fails: closed, and nobody was called."""

    async def work() -> None:
        changes: asyncio.Queue[str | None] = asyncio.Queue()
        bus = Bus(
            Settings([nats.url], "test", "blue", "r1", "", str, 0.05, -1, 1, 0),
            takes=lambda: True, on_begin=lambda _: None, on_traffic=lambda _: None,
            on_request=lambda _: asyncio.sleep(0), on_tick=lambda *_: None,
            on_control=lambda: None, on_copy=lambda _: None,
            on_change=changes.put_nowait,
        )  # fmt: skip
        bus.start()
        async with asyncio.timeout(60):
            assert await changes.get() is None
            before, _ = bus.connection()
            await before._close(Client.CLOSED, do_cbs=False)
            assert [await changes.get(), await changes.get()] == ["connection lost", None]
        after, _ = bus.connection()
        assert after is not before
        assert after.is_connected
        await bus.stop()

    asyncio.run(work())


def test_every_event_is_published_once_and_in_order(
    own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    """Two instances share the outbox; each decision is in the stream exactly once, in its order."""
    apps = [start_app(own_redis.url, own_nats.url, slot=slot) for slot in ("blue", "green")]
    for n in range(40):
        apps[n % 2].call("POST", "/api/orders", order(f"o{n}"), account="alice")
    until(lambda: own_redis.cli("XLEN", "trading:outbox") == "0", 10, "the outbox is empty")

    async def work(client: Client) -> list[dict[str, Any]]:
        subscription = await client.jetstream().subscribe(
            "trading.events.>", ordered_consumer=True, deliver_policy=DeliverPolicy.ALL
        )
        return [json.loads((await subscription.next_msg(timeout=20)).data) for _ in range(40)]

    events = with_client(own_nats, work)
    assert [event["order"] for event in events] == [f"o{n}" for n in range(40)]
    assert all(event["type"] == "order.accepted" for event in events)
    assert len({event["id"] for event in events}) == 40


def test_a_batch_that_was_partly_published_before_is_completed(
    own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    """An instance that died between publishing and forgetting: every event is there once, none is missing."""
    first = start_app(own_redis.url, own_nats.url)
    own_redis.cli("SET", "trading:lease:outbox", "a holder that died", "PX", "60000")
    for n in range(12):
        assert first.call("POST", "/api/orders", order(f"o{n}"), account="alice")[0] == 201
    lines = json.loads(own_redis.cli("--json", "XRANGE", "trading:outbox", "-", "+"))
    assert len(lines) == 12

    async def publish_some(client: Client) -> None:
        stream = client.jetstream()
        for id, flat in (lines[3], lines[4], lines[11]):
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            body = json.dumps({"id": id, "type": fields["e"], "order": fields["order"]}).encode()
            await stream.publish("trading.events.order.accepted.alice", body, headers={"Nats-Msg-Id": id})

    with_client(own_nats, publish_some)
    own_redis.cli("DEL", "trading:lease:outbox")
    until(lambda: own_redis.cli("XLEN", "trading:outbox") == "0", 10, "the outbox is empty")

    async def work(client: Client) -> list[str]:
        stream = client.jetstream()
        info = await stream.stream_info("TRADING_EVENTS")
        subscription = await stream.subscribe("trading.events.>", ordered_consumer=True)
        return [
            json.loads((await subscription.next_msg(timeout=20)).data)["order"]
            for _ in range(info.state.messages)
        ]

    assert sorted(with_client(own_nats, work)) == sorted(f"o{n}" for n in range(12))
