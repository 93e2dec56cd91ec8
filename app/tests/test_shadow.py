"""A release on trial decides copies of real orders: two real instances, real Redis, NATS and paper venue."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Coroutine
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import nats as nats_client
import pytest

import trading_bot
from trading_bot.domain.admission import Admission, Code
from trading_bot.domain.order import Order
from trading_bot.domain.shadow import EXAMPLES, GROUPS, Decision, Differences
from trading_bot.domain.traffic import Traffic
from trading_bot.service import shadow
from trading_bot.service.shadow import Mirror, Shadow

from servers import OBSERVER, TOKEN, App, Nats, PaperVenue, Redis, need, order, until

RELEASES = {"blue": "r1", "green": "r2"}
COUNT = int(os.environ.get("SHADOW_ORDERS", "3000"))
RATE = 300


def other_version(directory: Path, before: str, after: str) -> dict[str, str]:
    """The environment of an instance whose admit.lua has ``after`` in place of ``before``."""
    package = Path(trading_bot.__file__).parent
    shutil.copytree(package, directory / "trading_bot", ignore=shutil.ignore_patterns("__pycache__"))
    script = directory / "trading_bot" / "adapters" / "redis" / "admit.lua"
    text = script.read_text()
    assert text.count(before) == 1
    script.write_text(text.replace(before, after))
    return {"PYTHONPATH": str(directory)}


def set_traffic(nats: Nats, **fields: Any) -> None:
    async def put() -> None:
        client = await nats_client.connect(nats.url)
        bucket = await client.jetstream().key_value("release")
        traffic = {"stable": "blue", "canary": "green", "salt": "r2", "cut": 0, "releases": RELEASES}
        await bucket.put("traffic", json.dumps({**traffic, **fields}).encode())
        await client.close()

    asyncio.run(put())


class Fleet:
    """A stable and a canary on one ledger and one venue; the canary gets copies."""

    def __init__(self, redis: Redis, nats: Nats, venue: PaperVenue, start: Callable[..., App]) -> None:
        self.redis, self.nats, self.venue, self._start = redis, nats, venue, start
        self.section = (
            f'venue: {{adapter: paper, url: "{venue.url}", request_timeout: 500ms}}\n'
            "risk: {max_order_notional: 20000, max_position_size: 30000, max_orders_per_second: 40, "
            "price_collar: 0.5, duplicate_window: 300ms}\n"
        )
        self.stable = self.start("blue")
        self.canary: App | None = None

    def start(self, slot: str, **env: str) -> App:
        return self._start(
            self.redis.url,
            self.nats.url,
            slot=slot,
            extra=self.section,
            TRADING_RELEASE_ID=RELEASES[slot],
            **env,
        )

    def begin(self, **env: str) -> App:
        # The map comes first: an instance that has none answers for every account.
        set_traffic(self.nats, shadow="green")
        until(lambda: shadowed(self.stable), 5, "the map is in force")
        self.canary = self.start("green", **env)
        return self.canary

    def copies_done(self) -> tuple[int, dict[str, Any]]:
        """How many copies were sent and what the canary found, once it has heard all of them."""
        canary = self.canary
        assert canary is not None

        def found() -> dict[str, Any] | None:
            _, answer, _ = canary.call("GET", "/api/shadow", token=OBSERVER)
            whole = answer["compared"] + sum(answer["skipped"].values())
            return answer if whole == self.mirrored() else None

        answer = until(found, 20, "every copy was heard")
        return self.mirrored(), answer

    def mirrored(self) -> int:
        return int(metric(self.stable, "trading_shadow_mirrored_total"))


def status(app: App) -> dict[str, Any]:
    return app.call("GET", "/api/status")[1]


def shadowed(app: App) -> bool:
    return bool(status(app)["traffic"]) and status(app)["traffic"]["shadow"] == "green"


def metric(app: App, name: str) -> float:
    lines = app.call("GET", "/metrics")[1]["text"].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


def random_order(dice: random.Random, n: int) -> dict[str, Any] | bytes:
    """What clients send: mostly orders that are fine, some that a check refuses, some that are no order."""
    kind = dice.random()
    if kind < 0.03:
        return dice.choice([b"{", b"[]", json.dumps({**order(f"o{n}"), "side": "hold"}).encode()])
    side = dice.choice(["buy", "sell"])
    quantity = dice.choice(["0.001", "0.002", "0.003", "0.01", "0.05", "0.3", "0.9", "0.0000001"])
    fields: dict[str, Any] = {"side": side, "quantity": quantity, "reduce_only": dice.random() < 0.2}
    if kind < 0.5:
        fields |= {"type": "market", "price": None}
    elif kind < 0.9:
        fields |= {"price": dice.choice(["49000", "50000", "51000", "50000.001", "90000"])}
    else:
        fields |= {"type": "stop", "price": None, "stop_price": "52000"}
    return order(f"o{n if dice.random() < 0.97 else n - 12}", **fields)


def send_orders(fleet: Fleet, count: int, make: Callable[[int], dict[str, Any] | bytes]) -> Counter[int]:
    """Over NATS at a fixed rate and every tenth over HTTP; how many got which status."""
    statuses: Counter[int] = Counter()

    async def run() -> None:
        client = await nats_client.connect(fleet.nats.url)
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def one(n: int) -> None:
            body = make(n)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            account = f"acc{n % 12}"
            if n % 10 == 0:
                call = fleet.stable.call
                statuses[
                    (await asyncio.to_thread(call, "POST", "/api/orders", data, account=account))[0]
                ] += 1
                return
            reply = await client.request(
                f"trading.orders.submit.{account}", data, timeout=10,
                headers={"Authorization": f"Bearer {TOKEN}"},
            )  # fmt: skip
            assert reply.headers is not None
            statuses[int(reply.headers["Http-Status"])] += 1

        async with asyncio.TaskGroup() as group:
            for n in range(count):
                await asyncio.sleep(max(0, began + n / RATE - loop.time()))
                group.create_task(one(n))
        await client.close()

    asyncio.run(run())
    return statuses


@pytest.fixture
def fleet(own_redis: Redis, own_nats: Nats, venue: PaperVenue, start_app: Callable[..., App]) -> Fleet:
    fleet = Fleet(own_redis, own_nats, venue, start_app)
    until(lambda: own_redis.cli("HEXISTS", "trading:marks", "BTC-USDT") == "1", 5, "a mark")
    return fleet


def test_equal_versions_never_differ_and_all_that_was_decided_is_compared(fleet: Fleet) -> None:
    """Thousands of orders of every kind while the venue fills them and prices move."""
    fleet.begin()
    dice = random.Random(7)
    statuses = send_orders(fleet, COUNT, lambda n: random_order(dice, n))
    mirrored, found = fleet.copies_done()
    print(
        f"\nstatuses {dict(statuses)}; mirrored {mirrored}, compared {found['compared']}, {found['skipped']}"
    )
    assert found["differences"] == []
    assert mirrored == COUNT
    # Nothing is skipped for what happened meanwhile: what decides nothing is all that cannot be compared.
    assert found["skipped"].keys() <= {"again", "throttled"}
    assert found["compared"] >= 0.9 * COUNT
    assert {201, 400, 409, 422} <= statuses.keys()
    assert int(fleet.redis.cli("XLEN", "trading:fills")) > COUNT / 20


def test_each_order_that_the_canary_decides_otherwise_is_listed(fleet: Fleet, tmp_path: Path) -> None:
    """A version that holds limit orders to another limit: found with type, side, rule, and what each said."""
    canary = fleet.begin(
        **other_version(
            tmp_path / "other",
            "if notional > tonumber(ARGV[15]) then",
            "if ARGV[6] == 'limit' and notional > 1e10 then\n"
            "  return refuse('max_order_notional', '10000000000', int(notional))\nend\n"
            "if notional > tonumber(ARGV[15]) then",
        )
    )

    def make(n: int) -> dict[str, Any]:
        # Notional below and above 100; every third is a market order, which both decide alike. Each has a
        # quantity of its own, so that no two are of one intent.
        quantity = Decimal("0.003" if n % 2 else "0.001") + n * Decimal("0.00001")
        fields = {"type": "market", "price": None} if n % 3 == 0 else {}
        return order(f"o{n}", side="buy" if n % 4 < 2 else "sell", quantity=str(quantity), **fields)

    assert send_orders(fleet, 240, make) == {201: 240}
    mirrored, found = fleet.copies_done()
    assert (mirrored, found["compared"]) == (240, 240)
    expected = Counter(
        make(n)["side"] for n in range(240) if n % 3 and Decimal(make(n)["quantity"]) * 50000 > 100
    )
    groups = {
        (d["type"], d["side"], d["stable"]["outcome"], d["canary"]["outcome"], d["canary"]["rule"]): d[
            "count"
        ]
        for d in found["differences"]
    }
    assert groups == {
        ("limit", side, "accepted", "refused", "max_order_notional"): count
        for side, count in expected.items()
    }
    assert metric(canary, "trading_shadow_differences_total") == expected.total()
    [example, *_] = found["differences"][0]["examples"]
    assert example["canary"]["limit"] == "100"
    assert example["stable"] == {"outcome": "accepted", "rule": "", "limit": "", "value": ""}
    assert sum(d["count"] for d in found["differences"]) == expected.total()
    # Another release on trial begins with nothing found; what was counted for Prometheus only rises.
    set_traffic(fleet.nats, shadow="green", salt="another")
    until(lambda: canary.call("GET", "/api/shadow")[1]["differences"] == [], 5, "a new trial")
    assert metric(canary, "trading_shadow_differences_total") == expected.total()


def everything(redis: Redis) -> dict[str, str]:
    """Every key's whole value, but for those that every instance writes as time goes by."""
    renewed = ("trading:instance:", "trading:lease:", "trading:metrics", "trading:verified")
    keys = [key for key in redis.cli("KEYS", "*").split() if not key.startswith(renewed)]
    values = {}
    for key in sorted(keys):
        done = subprocess.run(
            [need("redis-cli"), "-p", str(redis.port), "--no-raw", "DUMP", key],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
        values[key] = done.stdout
    return values


@pytest.mark.parametrize("writes", [False, True])
def test_the_canary_leaves_no_trace(
    own_redis: Redis, own_nats: Nats, tmp_path: Path, start_app: Callable[..., App], writes: bool
) -> None:
    """Not in the ledger and not at the venue; a script that would write is refused by Redis itself."""
    venue = PaperVenue(tmp_path / "venue", own_nats.url, "--tick", "3600")
    venue.start()
    try:
        own_redis.cli("HSET", "trading:marks", "BTC-USDT", "5000000000000|1")
        section = (
            f'venue: {{adapter: paper, url: "{venue.url}"}}\n'
            "risk: {max_mark_age: 0s, duplicate_window: 24h, max_position_size: 3000}\n"
        )
        stable = start_app(own_redis.url, own_nats.url, extra=section, TRADING_RELEASE_ID="r1")
        set_traffic(own_nats, shadow="green")
        until(lambda: (status(stable)["traffic"] or {}).get("shadow") == "green", 5, "the map is in force")
        copies: list[bytes] = []

        async def listen() -> None:
            client = await nats_client.connect(own_nats.url)
            subscription = await client.subscribe("trading.shadow.green")
            await flush(client)
            for n in range(60):
                fields: dict[str, Any] = (
                    {"type": "market", "price": None} if n % 2 else {"price": f"{40000 + n}"}
                )
                call = stable.call
                await asyncio.to_thread(
                    call, "POST", "/api/orders", order(f"o{n}", quantity=f"0.0{n + 1:02}", **fields)
                )
            copies.extend([(await subscription.next_msg(timeout=20)).data for _ in range(60)])
            await client.close()

        asyncio.run(listen())
        until(lambda: own_redis.cli("XLEN", "trading:outbox") == "0", 10, "the outbox is empty")
        stable.signal(signal.SIGTERM)
        assert stable.wait() == 0
        env = {}
        if writes:
            env = other_version(
                tmp_path / "other",
                "if dry then return answer(ACCEPTED, '', '', '') end",
                "if dry then redis.call('SET', 'trading:trace', '1') end",
            )
        canary = start_app(
            own_redis.url, own_nats.url, slot="green", extra=section, TRADING_RELEASE_ID="r2", **env
        )
        before, book = everything(own_redis), venue.call("GET", "/v1/orders")
        assert len(before) > 60

        async def send() -> None:
            client = await nats_client.connect(own_nats.url)
            for copy in copies:
                await client.publish("trading.shadow.green", copy)
            await client.flush()
            await client.close()

        asyncio.run(send())
        found = until(
            lambda: (answer := canary.call("GET", "/api/shadow")[1])["compared"] == 60 and answer,
            10,
            "compared",
        )
        if writes:
            accepted = sum(json.loads(copy)["decision"]["outcome"] == "accepted" for copy in copies)
            assert accepted > 10
            assert {d["canary"]["outcome"] for d in found["differences"]} == {"error"}
            assert sum(d["count"] for d in found["differences"]) == accepted
        else:
            assert found["differences"] == []
        assert everything(own_redis) == before
        assert venue.call("GET", "/v1/orders") == book
    finally:
        venue.kill()


def test_a_canary_that_hangs_or_dies_is_nothing_to_the_stable(fleet: Fleet) -> None:
    canary = fleet.begin()
    send_orders(fleet, 60, lambda n: order(f"a{n}", quantity=f"0.0{n + 1:02}", price="40000"))
    canary.signal(signal.SIGSTOP)
    hung = send_orders(fleet, 600, lambda n: order(f"b{n}", quantity="0.001", price=f"{40000 + n}"))
    canary.signal(signal.SIGCONT)
    _, found = fleet.copies_done()
    assert found["differences"] == []
    canary.kill()
    dead = send_orders(fleet, 300, lambda n: order(f"c{n}", quantity="0.002", price=f"{40000 + n}"))
    assert (hung.total(), dead.total()) == (600, 300)
    assert set(hung) | set(dead) <= {201, 422, 429}
    until(lambda: fleet.mirrored() == 960, 5, "every copy was sent, though nobody heard the last")


def test_only_the_release_on_trial_decides_copies(
    own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    """An instance that was left running in the slot with another release takes no copy from the right one."""
    stable = start_app(own_redis.url, own_nats.url, TRADING_RELEASE_ID="r1")
    left = start_app(own_redis.url, own_nats.url, slot="green", TRADING_RELEASE_ID="r0")
    canary = start_app(own_redis.url, own_nats.url, slot="green", TRADING_RELEASE_ID="r2")
    set_traffic(own_nats, shadow="green")
    for app in (stable, left, canary):
        until(partial(shadowed, app), 5, "the map is in force")
    for n in range(40):
        assert stable.call("POST", "/api/orders", order(f"o{n}"))[0] == 201
    until(lambda: canary.call("GET", "/api/shadow")[1]["compared"] == 40, 5, "every copy was compared")
    assert left.call("GET", "/api/shadow")[1]["compared"] == 0
    set_traffic(own_nats, shadow="")
    until(lambda: status(stable)["traffic"]["shadow"] == "", 5, "no shadow")
    assert stable.call("POST", "/api/orders", order("last"))[0] == 201
    assert metric(stable, "trading_shadow_mirrored_total") == 40


def test_who_may_not_look_is_not_shown(app: App) -> None:
    assert app.call("GET", "/api/shadow", token=None)[0] == 401
    assert app.call("GET", "/api/shadow", token=OBSERVER)[1]["differences"] == []


def test_differences_are_bounded_and_the_most_frequent_come_first() -> None:
    found = Differences()
    stable, canary = Decision("accepted"), Decision("refused", "max_leverage", "3", "3.1")
    for n in range(GROUPS + 5):
        for id in range(5 if n == 7 else 1):
            found.add("acc", f"o{id}", "limit", f"side{n}", stable, canary)
    shown = found.shown()
    assert (len(shown), found.count) == (GROUPS, GROUPS + 9)
    assert (shown[0]["side"], shown[0]["count"]) == ("side7", 5)
    assert [x["client_order_id"] for x in shown[0]["examples"]] == [f"o{id}" for id in range(EXAMPLES)]


async def flush(client: nats_client.NATS) -> None:
    """Return once the server has all that was sent: a first ping overtakes it, the second does not."""
    await client.flush()
    await client.flush()


async def until_counted(part: Coroutine[Any, Any, None], counted: Callable[[], bool]) -> None:
    task = asyncio.create_task(part)
    async with asyncio.timeout(5):
        while not counted():  # noqa: ASYNC110  # what is counted has no event to wait for
            await asyncio.sleep(0.001)
    task.cancel()


def test_copies_beyond_what_may_wait_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither side waits for the other, and a bus that raises harms nobody."""
    monkeypatch.setattr(shadow, "WAITING", 3)
    lines: list[str] = []
    sent: list[bytes] = []

    def log(event: str, /, **fields: Any) -> None:
        lines.append(event)

    async def publish(slot: str, data: bytes) -> bool:
        if len(sent) == 1:
            raise RuntimeError("no such thing")
        sent.append(data)
        return len(sent) < 2

    mirror = Mirror("blue", publish, log)
    refused = Admission(Code.REFUSED, False, 1, "1", "blue")
    assert not mirror.on
    mirror.follow(Traffic("blue", "green", "s", 0, {}, "blue"))
    assert not mirror.on
    mirror.follow(Traffic("blue", "green", "s", 0, {}, "green"))
    assert mirror.on
    for _ in range(5):
        mirror.take("acc", "http", b"{}", "refused", None, refused)

    asyncio.run(until_counted(mirror.run(), lambda: mirror.mirrored + mirror.skipped.total() == 5))
    assert mirror.mirrored == 1
    assert mirror.skipped == {"queue_full": 2, "bus_away": 2}
    assert lines == ["defect", "defect"]

    class Ledger:
        async def judge(self, order: Order, *_: object) -> None:
            raise AssertionError("nothing is decided here")

    other = Shadow("green", "r2", Ledger(), log)
    other.hear(b"{}")
    other.follow(Traffic("blue", "green", "s", 0, {}, "green"))
    for data in (b"{", b"{}", sent[0].replace(b'"s"', b'"t"'), b"one too many"):
        other.hear(data)
    assert other.skipped == {"overrun": 1}

    asyncio.run(until_counted(other.run(), lambda: other.skipped.total() == 4))
    assert other.skipped == {"overrun": 1, "unreadable": 2, "other_map": 1}
    assert other.shown()["compared"] == 0
