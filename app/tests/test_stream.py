"""An account's events as Server-Sent Events."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import nats as nats_client
import pytest

from servers import NARROW, OBSERVER, TOKEN, App, Nats, Redis, order, until

PATH = "/api/orders/stream"
Line = tuple[int | None, str, dict[str, Any]]


class Reader:
    """Follows a stream as a browser's EventSource would, without connecting again."""

    def __init__(self, app: App, account: str, after: int | None = None, token: str = TOKEN) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=15)
        headers = {"Authorization": f"Bearer {token}", "X-Account-Id": account}
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        self.connection.request("GET", PATH, headers=headers)
        self.answer = self.connection.getresponse()

    def lines(self) -> Iterator[Line]:
        id, name, data = None, "", {}
        while raw := self.answer.readline():
            field, _, text = raw.decode().rstrip("\n").partition(": ")
            if field == "id":
                id = int(text)
            elif field == "event":
                name = text
            elif field == "data":
                data = json.loads(text)
            elif name:
                yield id, name, data
                id, name, data = None, "", {}

    def next(self, count: int) -> list[Line]:
        lines = self.lines()
        return [next(lines) for _ in range(count)]

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


Follow = Callable[..., Reader]


@pytest.fixture
def follow() -> Iterator[Follow]:
    readers: list[Reader] = []

    def begin(*arguments: Any, **options: Any) -> Reader:
        readers.append(Reader(*arguments, **options))
        return readers[-1]

    yield begin
    for reader in readers:
        reader.close()


@pytest.fixture
def account() -> str:
    return f"acc-{uuid.uuid4().hex[:8]}"


def submit(app: App, account: str, id: str, **fields: Any) -> int:
    return app.call("POST", "/api/orders", order(id, **fields), account=account)[0]


def names(lines: list[Line]) -> list[tuple[str, str]]:
    return [(name, data.get("client_order_id", "")) for _, name, data in lines]


def test_a_stream_shows_what_any_instance_decides(
    redis: Redis, nats: Nats, app: App, start_app: Callable[..., App], account: str, follow: Follow
) -> None:
    other = start_app(redis.url, nats.url, slot="green")
    reader = follow(app, account)
    assert reader.answer.status == 200
    assert reader.answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert names(reader.next(1)) == [("begin", "")]
    submit(app, "somebody-else", uuid.uuid4().hex)
    submit(app, account, "a", quantity="0.002")
    submit(other, account, "b", quantity="9")
    app.call("PUT", "/api/orders/a", {"client_order_id": "c", "price": "49000"}, account=account)
    other.call("DELETE", "/api/orders/c", account=account)
    lines = reader.next(5)
    assert names(lines) == [
        ("order.accepted", "a"),
        ("order.refused", "b"),
        ("order.accepted", "c"),
        ("order.cancelled", "a"),
        ("order.cancelled", "c"),
    ]
    accepted, refused, _, replaced, _ = (data for _, _, data in lines)
    assert accepted["account_id"] == account
    assert (accepted["order"]["quantity"], accepted["order"]["price"]) == ("0.002", "50000")
    assert (refused["rule"], refused["limit"], refused["value"]) == ("max_position_size", "100000", "450100")
    assert replaced["replaced_by"] == "c"
    ids = [id for id, _, _ in lines]
    assert ids == sorted(set(ids))


def test_a_reader_that_comes_back_misses_nothing(app: App, account: str, follow: Follow) -> None:
    reader = follow(app, account)
    begin = reader.next(1)[0][0]
    assert begin is not None
    for n in range(100):
        submit(app, account, f"o{n}", quantity="0.00001")
    again = follow(app, account, begin)
    lines = [line for line in again.next(101) if line[1] != "begin"]
    assert names(lines) == [("order.accepted", f"o{n}") for n in range(100)]
    middle = follow(app, account, lines[59][0])
    assert names(middle.next(3)[1:]) == [("order.accepted", "o60"), ("order.accepted", "o61")]


def test_a_number_that_the_stream_has_not_reached_is_a_gap(app: App, account: str, follow: Follow) -> None:
    reader = follow(app, account, 10**12)
    id, name, _ = reader.next(1)[0]
    assert name == "gap"
    assert id is not None
    assert id < 10**12
    submit(app, account, "a")
    assert names(reader.next(1)) == [("order.accepted", "a")]


def test_a_stream_is_only_for_who_may_see_the_account(app: App, account: str, follow: Follow) -> None:
    assert app.call("GET", PATH, token=None)[0] == 401
    assert app.call("GET", PATH, token=NARROW)[0] == 403
    assert app.call("GET", PATH, account=None)[0] == 400
    assert app.call("GET", PATH, account=account, headers={"Last-Event-ID": "x"})[0] == 400
    assert app.call("POST", PATH, {})[0] == 405
    reader = follow(app, account, token=OBSERVER)
    assert reader.answer.status == 200


def test_no_order_is_named_as_the_path_of_the_stream(app: App, account: str) -> None:
    assert submit(app, account, "stream") == 400


def test_streams_are_bounded_and_given_back(app: App, account: str, follow: Follow) -> None:
    readers = [follow(app, account) for _ in range(10)]
    status, answer, headers = app.call("GET", PATH, account=account)
    assert (status, answer["limit"], headers["retry-after"]) == (429, 10, "1")
    for reader in readers:
        reader.close()

    def free() -> bool:
        return follow(app, account).answer.status == 200

    until(free, 5, "a place is free again")


def test_the_instances_bound_holds_for_all_accounts(
    redis: Redis, nats: Nats, start_app: Callable[..., App], follow: Follow
) -> None:
    app = start_app(redis.url, nats.url, TRADING_SERVER_MAX_STREAMS="1")
    follow(app, "one")
    assert app.call("GET", PATH, account="two")[1]["limit"] == 1
    assert 'trading_event_streams{version="0.1.0",slot="blue"} 1' in app.call("GET", "/metrics")[1]["text"]


def test_a_stream_ends_with_a_word_when_the_instance_drains(
    redis: Redis, nats: Nats, start_app: Callable[..., App], account: str, follow: Follow
) -> None:
    """Orders are served as long as before, and the drain does not wait for readers."""
    app = start_app(redis.url, nats.url)
    reader = follow(app, account)
    reader.next(1)
    app.signal(signal.SIGTERM)
    assert submit(app, account, "a") == 201
    lines = list(reader.lines())
    assert names(lines) == [("order.accepted", "a"), ("end", "")]
    assert lines[-1][2]["reason"] == "drain"
    assert app.wait() == 0


def test_a_stream_ends_when_its_feature_is_switched_off(
    own_redis: Redis, own_nats: Nats, start_app: Callable[..., App], account: str, follow: Follow
) -> None:
    app = start_app(own_redis.url, own_nats.url)
    reader = follow(app, account)
    reader.next(1)
    app.call("POST", "/api/features/disable", {"features": ["order_stream"]})
    assert [data["reason"] for _, _, data in reader.lines()] == ["source"]
    assert app.call("GET", PATH)[0] == 503


def test_a_stream_ends_with_its_source_and_goes_on_after_it(
    own_redis: Redis, own_nats: Nats, start_app: Callable[..., App], account: str, follow: Follow
) -> None:
    app = start_app(own_redis.url, own_nats.url)
    reader = follow(app, account)
    begin = reader.next(1)[0][0]
    own_nats.kill()
    assert [name for _, name, _ in reader.lines()] == ["end"]
    own_nats.start()
    until(app.ready, 10, "ready again")
    submit(app, account, "a")
    again = follow(app, account, begin)
    assert names(again.next(2)) == [("begin", ""), ("order.accepted", "a")]


def test_a_reader_that_takes_nothing_in_is_cut_off_with_the_reason(
    redis: Redis, nats: Nats, start_app: Callable[..., App], account: str, follow: Follow
) -> None:
    app = start_app(redis.url, nats.url)
    asyncio.run(publish(nats, account, 4000))
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", app.port))
        slow.sendall(
            f"GET {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            f"X-Account-Id: {account}\r\nLast-Event-ID: 0\r\n\r\n".encode()
        )
        quick = follow(app, account, 0)
        assert len(quick.next(4001)) == 4001, "it holds up nobody else"
        quick.close()

        def given_up() -> bool:
            return any(x["event"] == "stream" and x.get("reason") == "slow" for x in app.lines())

        until(given_up, 30, "given up")
        rest = b""
        slow.settimeout(10)
        while b'event: end\ndata: {"reason":"slow"' not in rest:
            chunk = slow.recv(1 << 20)
            assert chunk, "closed without a word"
            rest = (rest + chunk)[-(1 << 21) :]


async def publish(nats: Nats, account: str, count: int) -> None:
    """Events as an instance publishes them, a kilobyte each."""
    client = await nats_client.connect(nats.url)
    event = {
        "id": "0-0",
        "type": "order.rejected",
        "account": account,
        "order": "a",
        "at": "1",
        "reason": "x" * 1000,
    }
    for _ in range(count):
        await client.publish(f"trading.events.order.rejected.{account}", json.dumps(event).encode())
    await client.flush()
    await client.close()
