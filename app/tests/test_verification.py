"""The ledger is recomputed from its audit for ever, and what should not have been accepted is found."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from trading_bot.adapters.redis import ledger as redis_ledger
from trading_bot.adapters.redis.connection import Client, Endpoint
from trading_bot.adapters.redis.ledger import RedisArchive, RedisAudit, RedisBook, RedisLedger
from trading_bot.domain.admission import Code
from trading_bot.domain.audit import Finding, OrderFields, Told, Working, limits_from
from trading_bot.domain.instrument import Instrument
from trading_bot.domain.limits import Limits
from trading_bot.domain.order import Order, OrderType, Side, TimeInForce
from trading_bot.errors import Unavailable
from trading_bot.ports import Fill
from trading_bot.service import verification
from trading_bot.service.verification import LEASE_NAME, Progress, Verifier

from servers import App, Nats, PaperVenue, Redis, order, until

UNIT = 10**8
LIMITS = Limits(
    max_position_size=4000 * UNIT, max_order_notional=3000 * UNIT, max_open_orders=3, max_orders_per_second=0,
    price_collar=UNIT // 5, max_leverage=UNIT // 2, min_margin_level=2 * UNIT, margin_rate=UNIT // 2,
    max_drawdown=UNIT, duplicate_window_ms=0, initial_equity=10_000 * UNIT, max_mark_age_ms=0,
)  # fmt: skip


class Desk:
    """A ledger whose admit.lua may be another one, its book, and a verifier, on one Redis."""

    def __init__(self, runner: asyncio.Runner, redis: Redis) -> None:
        self.run = runner.run
        endpoint = Endpoint.from_url(redis.url, "", "")
        self.client = Client(lambda: endpoint, name="desk", scripts=redis_ledger.SCRIPTS, deadline=10)
        self.ledger = RedisLedger(self.client, version="9", slot="green", limits=LIMITS)
        self.book = RedisBook(self.client, version="9", slot="green", holder="desk", venue="paper")
        self.lines: list[dict[str, Any]] = []
        self._stamp = 1
        self.verifier = self.another("one")
        self.run(self._start())

    async def _start(self) -> None:
        self.client.start()
        await self.client.usable()
        await self.client.call("FLUSHDB")
        await self.book.note_instruments([Instrument("AAA-USDT", 10**6, 10**5, 10**5, 10**13)], replace=True)
        await self.book.note_marks({"AAA-USDT": (100 * UNIT, 1)})

    def log(self, event: str, /, **fields: Any) -> None:
        self.lines.append({"event": event, **fields})

    def another(self, holder: str) -> Verifier:
        archive = RedisArchive(self.client, holder=holder)
        return Verifier(archive, lambda: 1.0, {"version": "9", "slot": "green"}, self.log)

    def call(self, *command: str | int) -> Any:
        return self.run(self.client.call(*command))

    def order(
        self,
        id: str,
        quantity: float,
        price: int | None = 100,
        side: Side = Side.BUY,
        reduce_only: bool = False,
    ) -> Code:
        order = Order(
            "acc", id, "AAA-USDT", side, OrderType.MARKET if price is None else OrderType.LIMIT,
            round(quantity * UNIT), None if price is None else price * UNIT, None, reduce_only,
            TimeInForce.GTC,
        )  # fmt: skip
        return self.run(self._admit(order))

    async def _admit(self, order: Order) -> Code:
        return (await self.ledger.admit(order, "r")).code

    def fill(self, id: str, quantity: float, price: int = 100) -> None:
        self.call("ZADD", "trading:dispatch", 0, f"acc {id}")
        self.run(self.book.take("acc", id, 5))
        size = round(quantity * UNIT)
        self.run(self.book.settle("acc", id, None, [Fill(f"t-{id}", size, price * UNIT, 5, 1)], again_in=1))

    def mark(self, price: int) -> None:
        self._stamp += 1
        self.run(self.book.note_marks({"AAA-USDT": (price * UNIT, self._stamp)}))

    def hold(self, **changes: int) -> None:
        """Hold the next orders to other limits."""
        self.ledger.limits = msgspec.structs.replace(LIMITS, **changes)

    def step(self) -> Progress:
        self.run(self.verifier.step())
        return self.verifier.known

    def told_in_audit(self, event: str) -> list[dict[str, str]]:
        found = []
        for _, flat in self.call("XRANGE", "trading:audit", "-", "+"):
            words = [word.decode() for word in flat]
            line = dict(zip(words[::2], words[1::2], strict=True))
            if line["e"] == event:
                found.append(line)
        return found


@pytest.fixture
def desk(redis: Redis) -> Iterator[Desk]:
    with asyncio.Runner() as runner:
        desk = Desk(runner, redis)
        yield desk
        runner.run(desk.client.stop())


def breach_leverage(desk: Desk) -> None:
    desk.hold(max_position_size=90_000 * UNIT)
    desk.order("a", 30)
    desk.fill("a", 30)
    desk.mark(200)
    desk.order("x", 5, 200)


def breach_position(desk: Desk) -> None:
    desk.order("a", 20)
    desk.fill("a", 20)
    desk.order("b", 10)
    desk.order("x", 11)


def breach_margin(desk: Desk) -> None:
    desk.order("a", 20)
    desk.hold(margin_rate=2 * UNIT)
    desk.order("x", 10)


CHECKS: dict[str, tuple[str, Callable[[Desk], Any]]] = {
    "max_order_notional": ("if notional > tonumber(ARGV[15]) then return", lambda d: d.order("x", 31)),
    "price_collar": ("if width and math.abs(price - mark) > width then", lambda d: d.order("x", 1, 130)),
    "max_open_orders": (
        "if field('open') >= tonumber(ARGV[16]) then",
        lambda d: [d.order(id, 1) for id in ("a", "b", "c", "x")],
    ),
    "max_position_size": (
        "if size > tonumber(ARGV[14]) then return",
        breach_position,
    ),
    "max_leverage": ("if gross > room or equity <= 0 then", breach_leverage),
    "min_margin_level": ("if not need or equity < need then", breach_margin),
    "reduce_only": ("if ARGV[10] == '1' then return", lambda d: d.order("x", 1, reduce_only=True)),
}


def _dying(keep: Any) -> Any:
    async def kept(
        self: RedisArchive, what: str, accounts: Any, findings: Any, progress: bytes = b""
    ) -> bool:
        if progress:
            raise Unavailable("redis", "connection lost")
        return bool(await keep(self, what, accounts, findings))

    return kept


@pytest.mark.parametrize("rule", CHECKS)
@pytest.mark.parametrize(("lost", "dies"), [(False, False), (True, False), (True, True)])
def test_an_order_that_a_version_accepts_past_a_limit_is_found(
    monkeypatch: pytest.MonkeyPatch, redis: Redis, rule: str, lost: bool, dies: bool
) -> None:
    """And none is found of a version that has the check, on the same orders."""
    check, breach = CHECKS[rule]
    if lost:
        text = redis_ledger.ADMIT
        assert text.count(check) == 1
        other = text.replace(check, check.replace(check.removesuffix(" return"), "if false then"))
        sha = hashlib.sha1(other.encode(), usedforsecurity=False).hexdigest()
        monkeypatch.setattr(redis_ledger, "_ADMIT", sha)
        monkeypatch.setattr(redis_ledger, "SCRIPTS", (*redis_ledger.SCRIPTS, other))
    with asyncio.Runner() as runner:
        desk = Desk(runner, redis)
        breach(desk)
        if dies:
            # Whoever found it is gone once the account is kept, before it kept how far it came.
            with monkeypatch.context() as patch:
                patch.setattr(RedisArchive, "keep", _dying(RedisArchive.keep))
                with pytest.raises(Unavailable):
                    desk.step()
            first, desk.verifier = desk.verifier, desk.another("one")
        assert desk.step().differences == {}
        found = desk.told_in_audit("limit.passed")
        if lost:
            [line] = found
            assert (line["account"], line["order"], line["rule"]) == ("acc", "x", rule)
            assert line["accepted_by"] == "9 green"
            assert [(x["outcome"], x["rule"]) for x in desk.lines] == [("limit.passed", rule)]
        else:
            assert found == []
        # Limits that are tightened and prices that move afterwards make nothing of it.
        desk.hold(max_order_notional=UNIT, max_open_orders=1, max_position_size=UNIT, max_leverage=1)
        desk.mark(170)
        desk.order("later", 1)
        assert desk.step().differences == {}
        assert (first if dies else desk.verifier).limits_passed == int(lost)
        assert len(desk.told_in_audit("limit.passed")) == int(lost)
        runner.run(desk.client.stop())


ACCOUNT = "trading:account:acc"
TAMPERING: dict[str, tuple[tuple[str | int, ...], tuple[str | int, ...]]] = {
    "q:AAA-USDT": (("HINCRBY", ACCOUNT, "q:AAA-USDT", 1), ("HINCRBY", ACCOUNT, "q:AAA-USDT", -1)),
    "c:AAA-USDT": (("HINCRBY", ACCOUNT, "c:AAA-USDT", 1), ("HINCRBY", ACCOUNT, "c:AAA-USDT", -1)),
    "bn:AAA-USDT": (("HINCRBY", ACCOUNT, "bn:AAA-USDT", 1), ("HINCRBY", ACCOUNT, "bn:AAA-USDT", -1)),
    "sq:AAA-USDT": (("HINCRBY", ACCOUNT, "sq:AAA-USDT", 1), ("HINCRBY", ACCOUNT, "sq:AAA-USDT", -1)),
    "cash": (("HINCRBY", ACCOUNT, "cash", 1), ("HINCRBY", ACCOUNT, "cash", -1)),
    "open": (("HINCRBY", ACCOUNT, "open", 1), ("HINCRBY", ACCOUNT, "open", -1)),
    "accepted": (("HINCRBY", ACCOUNT, "accepted", 1), ("HINCRBY", ACCOUNT, "accepted", -1)),
    "a filled": (
        ("HINCRBY", "trading:order:acc:a", "filled", 1),
        ("HINCRBY", "trading:order:acc:a", "filled", -1),
    ),
    "b in dispatch": (
        ("ZREM", "trading:dispatch", "acc b"),
        ("ZADD", "trading:dispatch", 0, "acc b"),
    ),
    "b done": (
        ("HSET", "trading:order:acc:b", "st", "cancelled"),
        ("HSET", "trading:order:acc:b", "st", "accepted"),
    ),
    "fills": (
        ("XADD", "trading:fills", "99999999999999-1", "account", "acc"),
        ("XDEL", "trading:fills", "99999999999999-1"),
    ),
}


@pytest.mark.parametrize("field", TAMPERING)
def test_whatever_differs_is_found_named_and_gone_once_it_is_mended(desk: Desk, field: str) -> None:
    """Also by the next verifier, which goes on where the last one kept it."""
    desk.order("first", 1)
    assert desk.step().count == 0
    desk.order("a", 10)
    desk.order("b", 5, side=Side.SELL)
    desk.fill("a", 4)
    change, mend = TAMPERING[field]
    desk.call(*change)
    account = "" if field == "fills" else "acc"
    for holder in ("one", "two"):
        desk.verifier = desk.another(holder)
        [finding] = desk.step().differences[account]
        assert finding.field == field
        assert finding.ledger != finding.computed
    assert [line["field"] for line in desk.told_in_audit("ledger.difference")] == [field]
    [line] = [line for line in desk.lines if line.get("outcome") == "ledger.difference"]
    assert (line["account"], line["field"]) == (account, field)
    desk.call(*mend)
    assert desk.step().differences == {}


def test_a_pass_reads_only_what_has_happened_since(monkeypatch: pytest.MonkeyPatch, desk: Desk) -> None:
    """Whichever instance makes it, and however much it has to catch up with."""
    monkeypatch.setattr(verification, "LINES", 7)
    monkeypatch.setattr(verification, "KEEP_AFTER", 20)
    monkeypatch.setattr(verification, "REST", 0)
    monkeypatch.setattr(verification, "ORDERS", 2)
    desk.hold(max_open_orders=1000)
    for n in range(30):
        desk.order(f"a{n}", 0.1)
        desk.fill(f"a{n}", 0.05 if n % 2 else 0.1)
    first = desk.step()
    assert first.differences == {}
    read: list[str] = []
    lines = RedisArchive.lines

    async def watched(self: RedisArchive, after: str, count: int) -> list[tuple[str, dict[str, str]]]:
        found = await lines(self, after, count)
        read.extend(id for id, _ in found)
        return found

    monkeypatch.setattr(RedisArchive, "lines", watched)
    desk.order("b", 1)
    desk.verifier = desk.another("two")
    assert desk.step().differences == {}
    assert len(read) == 1
    assert read[0] > first.at


def test_the_audit_is_cut_only_as_far_as_it_was_verified(desk: Desk) -> None:
    """And one that was cut before anybody read it tells nothing: then nothing is said to be verified."""
    desk.call("CONFIG", "SET", "stream-node-max-entries", 10)
    for n in range(60):
        desk.order(f"o{n}", 5000)
    audit = RedisAudit(desk.client)
    assert desk.run(audit.trim(-60)) == 0
    assert desk.step().verified_ms > 0
    assert desk.run(audit.trim(-60)) > 0
    desk.call("CONFIG", "SET", "stream-node-max-entries", 100)
    desk.order("a", 1)
    desk.verifier = desk.another("two")
    assert desk.step().differences == {}
    desk.call("DEL", "trading:verified:progress", "trading:verified")
    for _ in range(2):
        assert desk.step().verified_ms == 0
    assert [line["outcome"] for line in desk.lines] == [
        "cannot begin: the audit was cut before it was ever read"
    ]


def test_one_instance_at_a_time_verifies(monkeypatch: pytest.MonkeyPatch, desk: Desk) -> None:
    desk.order("a", 1)
    archive = RedisArchive(desk.client, holder="other")
    assert desk.run(archive.lead(LEASE_NAME, 10))
    assert desk.step().verified_ms == 0
    assert desk.told_in_audit("ledger.difference") == []
    # One that lost the lease in mid-pass keeps nothing of what it found.
    desk.call("DEL", "trading:lease:verify")
    desk.call("HINCRBY", ACCOUNT, "open", 5)
    keep = RedisArchive.keep

    async def robbed(self: RedisArchive, *arguments: Any) -> bool:
        await desk.client.call("SET", "trading:lease:verify", "other")
        return await keep(self, *arguments)

    monkeypatch.setattr(RedisArchive, "keep", robbed)
    with pytest.raises(verification._LeaseLost):
        desk.step()
    assert desk.told_in_audit("ledger.difference") == []
    assert desk.call("GET", "trading:verified:progress") is None
    assert desk.verifier.known.count == 0


def test_what_keeps_it_from_verifying_is_logged_once(desk: Desk) -> None:
    """As where a user of Redis may not call read-only scripts yet; it goes on once it can."""
    desk.order("a", 1)

    async def run() -> None:
        await desk.client.call("ACL", "SETUSER", "default", "-evalsha_ro")
        verifier = Verifier(RedisArchive(desk.client, holder="one"), lambda: 0.02, {}, desk.log)
        task = asyncio.create_task(verifier.run())
        try:
            async with asyncio.timeout(5):
                while not desk.lines:  # noqa: ASYNC110  # a log has no event to wait for
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.1)
                await desk.client.call("ACL", "SETUSER", "default", "+evalsha_ro")
                while not verifier.known.verified_ms:  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0.001)
        finally:
            task.cancel()
            await desk.client.call("ACL", "SETUSER", "default", "+evalsha_ro")

    desk.run(run())
    [line] = desk.lines
    assert line["outcome"] == "waiting"
    assert "evalsha_ro" in line["reason"]


def test_lines_of_a_version_that_told_less_are_taken_as_they_are() -> None:
    """No price, no limits: nothing is said of limits, and the price is learnt from the ledger."""
    told = Told()
    line = {"e": "order.accepted", "account": "acc", "order": "m", "version": "0", "slot": "blue"}
    assert told.read({**line, "fp": f"AAA-USDT|buy|market|{UNIT}|||IOC|0"}, {}, True) == []
    limits = {"l": msgspec.structs.replace(LIMITS, max_position_size=1)}
    later = {**line, "order": "n", "fp": f"AAA-USDT|sell|limit|{UNIT}|{100 * UNIT}||GTC|0", "limits": "l"}
    assert told.read({**later, "cash": "0", "marks": ""}, limits, True) == []
    fields = {"accepted": "2", "open": "2", "bq:AAA-USDT": str(UNIT), "bn:AAA-USDT": str(90 * UNIT)}
    fields |= {"sq:AAA-USDT": str(UNIT), "sn:AAA-USDT": str(100 * UNIT)}
    order = OrderFields("open", UNIT, 90 * UNIT, 90 * UNIT, 0, True)
    assert told.compare(fields, {}) == []
    assert told.compare(fields, {"m": order}) == []
    assert told.touched == {"n"}
    assert told.compare({**fields, "bn:AAA-USDT": "1"}, {}) == [Finding("bn:AAA-USDT", "1", str(90 * UNIT))]
    # Now that every price is known, the next acceptance is checked: without a mark for what is held.
    fill = {"e": "order.fill", "order": "m", "symbol": "AAA-USDT", "side": "buy", "fee": "0"}
    told.read({**fill, "quantity": str(UNIT), "price": str(90 * UNIT)}, limits, True)
    again = {**later, "order": "o", "fp": f"AAA-USDT|buy|limit|{UNIT}|{100 * UNIT}||GTC|0", "cash": "0"}
    assert [passed.rule for passed in told.read({**again, "marks": ""}, limits, True)] == ["mark_missing"]
    assert told.read({**again, "order": "p", "marks": ""}, limits, False) == []


def test_a_fill_that_comes_after_the_end_counts() -> None:
    told = Told()
    line = {"account": "acc", "order": "a", "version": "0", "slot": "blue"}
    told.read({**line, "e": "order.accepted", "fp": f"AAA-USDT|sell|limit|{UNIT}|{UNIT}||GTC|0"}, {}, True)
    told.read({**line, "e": "order.cancelled"}, {}, True)
    told.read({**line, "e": "order.cancelled"}, {}, True)
    told.read({**line, "e": "order.released", "fp": "AAA-USDT|sell|limit|1|1||GTC|0"}, {}, True)
    told.read({**line, "e": "order.dispatched"}, {}, True)
    fill = {
        "e": "order.fill",
        "symbol": "AAA-USDT",
        "side": "sell",
        "quantity": "7",
        "price": "1",
        "fee": "0",
    }
    told.read({**line, **fill}, {}, True)
    assert told.ended["a"].filled == 7
    whole = {"accepted": "1", "q:AAA-USDT": "-7"}
    assert told.compare(whole, {"a": OrderFields("filled", 0, 0, UNIT, 7, False)}) == [
        Finding("a filled whole", "7", str(UNIT))
    ]
    # What was filled beyond the order is another matter: the ledger holds what has happened.
    beyond = OrderFields("filled", 0, 0, UNIT, 7, False)
    told.ended["a"].quantity = 6
    assert told.compare(whole, {"a": beyond}) == []
    told.touched, told.ended = {"a"}, {"a": Working("AAA-USDT", Side.SELL, 8, UNIT, 7)}
    assert told.compare(whole, {"a": OrderFields("cancelled", 0, 0, UNIT, 7, False)}) == []
    assert (told.ended, told.touched) == ({}, set())
    told.read({**line, **fill}, {}, True)
    assert told.positions["AAA-USDT"].quantity == -14


def test_limits_of_a_version_that_has_others_are_passed_over() -> None:
    assert limits_from("|".join(map(str, LIMITS.arguments()))) == LIMITS
    assert limits_from("1|2|3") is None


def test_two_instances_verify_while_orders_are_filled(
    own_redis: Redis, own_nats: Nats, venue: PaperVenue, start_app: Callable[..., App]
) -> None:
    """Nothing differs under load; what somebody changes by hand shows on both, and in the log of one."""
    section = (
        f'venue: {{adapter: paper, url: "{venue.url}", request_timeout: 500ms}}\n'
        "versioning: {validation_interval: 1s}\nrisk: {max_position_size: 30000}\n"
    )
    apps = [start_app(own_redis.url, own_nats.url, slot=slot, extra=section) for slot in ("blue", "green")]
    until(lambda: own_redis.cli("HEXISTS", "trading:marks", "BTC-USDT") == "1", 5, "a mark")
    dice = random.Random(3)

    def gauges(name: str) -> list[float]:
        return [metric(app, name) for app in apps]

    passes: set[float] = set()
    deadline = time.monotonic() + 30
    for n in itertools.count():
        # As long as it takes for both to have verified in the middle of it, and more than once.
        if n >= 600 and len(passes) > 4:
            break
        assert time.monotonic() < deadline, f"verified only at {passes}"
        fields: dict[str, Any] = {
            "side": dice.choice(["buy", "sell"]),
            "quantity": f"0.0{dice.randint(1, 99):02}",
        }
        if n % 3:
            fields |= {"type": "market", "price": None}
        apps[n % 2].call("POST", "/api/orders", order(f"o{n}", **fields), account=f"acc{n % 7}")
        if n % 20 == 0:
            assert gauges("trading_ledger_differences") == [0, 0]
            passes |= set(gauges("trading_ledger_verified_timestamp_seconds"))
    until(lambda: int(own_redis.cli("XLEN", "trading:fills")) > 100, 10, "fills")
    assert gauges("trading_risk_limit_passed_total") == [0, 0]
    own_redis.cli("HINCRBY", "trading:account:acc1", "q:BTC-USDT", "1")
    # Nobody looks at an account that nothing happens to; a fill of a changed position would differ in more.
    apps[0].call("POST", "/api/orders", order("last", price="45000"), account="acc1")
    until(lambda: gauges("trading_ledger_differences") == [1, 1], 10, "the difference shows")
    told = [x for app in apps for x in app.lines() if x.get("outcome") == "ledger.difference"]
    assert [(x["outcome"], x["account"], x["field"]) for x in told] == [
        ("ledger.difference", "acc1", "q:BTC-USDT")
    ]
    own_redis.cli("HINCRBY", "trading:account:acc1", "q:BTC-USDT", "-1")
    until(lambda: gauges("trading_ledger_differences") == [0, 0], 10, "the difference is gone")


def metric(app: App, name: str) -> float:
    lines = app.call("GET", "/metrics")[1]["text"].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))
