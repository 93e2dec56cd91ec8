"""The Lua ledger against the Decimal model, over long random histories.

``LEDGER_HISTORIES`` says how many; each has 100 steps. The steps come from one string of bytes, so that a
failing history shrinks to the few steps that matter.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
from collections.abc import Iterator
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model import Holding, Model, Rules, down
from trading_bot.adapters.redis import ledger as redis_ledger
from trading_bot.adapters.redis.connection import Client, Endpoint
from trading_bot.adapters.redis.ledger import RedisBook, RedisLedger
from trading_bot.domain import money
from trading_bot.domain.admission import Admission
from trading_bot.domain.instrument import Instrument
from trading_bot.domain.lifecycle import FINAL, TRANSITIONS, State
from trading_bot.domain.limits import Limits
from trading_bot.domain.order import Order, OrderType, Side, TimeInForce
from trading_bot.ports import CancelCode, Fill, SettleCode
from trading_bot.service.verification import Verifier

from servers import Redis

HISTORIES = int(os.environ.get("LEDGER_HISTORIES", "300"))
STEPS = 100
SYMBOLS = ("AAA-USDT", "BBB-USDT")
RULES = Rules(
    position=Decimal(4000), notional=Decimal(3000), orders=9, collar=Decimal("0.2"), leverage=Decimal("1.5"),
    margin_level=Decimal("1.6"), margin_rate=Decimal("0.4"), drawdown=Decimal("0.15"), equity=Decimal(5000),
)  # fmt: skip
LIMITS = Limits(
    max_position_size=money.scale(RULES.position), max_order_notional=money.scale(RULES.notional),
    max_open_orders=RULES.orders, max_orders_per_second=0, price_collar=money.scale(RULES.collar),
    max_leverage=money.scale(RULES.leverage), min_margin_level=money.scale(RULES.margin_level),
    margin_rate=money.scale(RULES.margin_rate), max_drawdown=money.scale(RULES.drawdown),
    duplicate_window_ms=0, initial_equity=money.scale(RULES.equity), max_mark_age_ms=0,
)  # fmt: skip


def scaled(value: Decimal) -> int:
    return int(value.scaleb(8))


class World:
    """A Redis, and two versions of the executor on it."""

    def __init__(self, runner: asyncio.Runner, redis: Redis) -> None:
        self.runner = runner
        endpoint = Endpoint.from_url(redis.url, "", "")
        self.client = Client(lambda: endpoint, name="properties", scripts=redis_ledger.SCRIPTS, deadline=10)
        runner.run(self._start())
        self.ledgers = [
            RedisLedger(self.client, version=v, slot=s, limits=LIMITS)
            for v, s in (("1", "blue"), ("2", "green"))
        ]
        self.books = [
            RedisBook(self.client, version=v, slot=s, holder=s, venue="paper")
            for v, s in (("1", "blue"), ("2", "green"))
        ]

    async def _start(self) -> None:
        self.client.start()
        await self.client.usable()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    redis = Redis(tmp_path_factory.mktemp("properties"), "--appendonly", "no")
    redis.start()
    with asyncio.Runner() as runner:
        world = World(runner, redis)
        yield world
        runner.run(world.client.stop())
    redis.kill()


class Script:
    """Reads a history from bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def below(self, n: int) -> int:
        return next(self._data, 0) % n


async def play(world: World, data: bytes) -> None:
    """One history: every answer and, at the end, every field is what the model says."""
    client = world.client
    await client.call("FLUSHDB")
    await world.books[0].note_instruments(
        [Instrument(symbol, 10**6, 1, 1, 10**13) for symbol in SYMBOLS], replace=True
    )
    model = Model(RULES)
    script = Script(data)
    stamp = 1
    decided: list[tuple[Order, Admission]] = []
    for _ in range(STEPS):
        side_of = script.below(2)
        ledger, book = world.ledgers[side_of], world.books[side_of]
        action = script.below(25)
        symbol = SYMBOLS[script.below(2)]
        if action == 0:
            price = Decimal(100 + script.below(60)) + Decimal(script.below(100)) / 100
            model.marks[symbol] = price
            await book.note_marks({symbol: (scaled(price), stamp)})
            stamp += 1
        elif action <= 7:
            id = f"o{script.below(40)}"
            side = Side.BUY if script.below(2) else Side.SELL
            quantity = Decimal(1 + script.below(200)) / 10 + Decimal(script.below(5)) / 1000
            market = script.below(3) == 0
            price = None if market else Decimal(90 + script.below(80)) + Decimal(script.below(100)) / 100
            reduce_only = script.below(5) == 0
            order = Order(
                "acc", id, symbol, side, OrderType.MARKET if market else OrderType.LIMIT, scaled(quantity),
                None if price is None else scaled(price), None, reduce_only,
                TimeInForce.IOC if market else TimeInForce.GTC,
            )  # fmt: skip
            expected, rule = model.admit(id, symbol, side.value, quantity, price, reduce_only)
            decision = await ledger.admit(order, "r", tell=True)
            decided.append((order, decision))
            name = decision.code.name.lower()
            found = "again" if decision.again and name == "accepted" else name
            found_rule = decision.refusal.rule if decision.refusal else ""
            assert (found, found_rule) == (expected, rule)
        elif not model.orders:
            continue
        else:
            ids = sorted(model.orders)
            id = ids[script.below(len(ids))]
            order_ = model.orders[id]
            if action == 8:
                code, _ = await ledger.cancel("acc", id, "r")
                if order_.state in FINAL:
                    assert code is CancelCode.DONE
                elif order_.state is State.ACCEPTED:
                    assert code is CancelCode.CANCELLED
                    order_.state = State.CANCELLED
                else:
                    assert code is CancelCode.WANTED
                    order_.cancel = True
            elif action <= 11:
                # Due at once, so that whoever comes takes it.
                if order_.state not in FINAL:
                    await client.call("ZADD", "trading:dispatch", 0, f"acc {id}")
                task = await book.take("acc", id, 5)
                if order_.state in FINAL:
                    assert task is None
                elif order_.awaits:
                    assert task is None
                    await client.call("ZADD", "trading:dispatch", "+inf", f"acc {id}")
                else:
                    assert task is not None
                    assert task.ask_first == (order_.state is not State.ACCEPTED)
                    assert (task.cancel_wanted, task.filled) == (order_.cancel, scaled(order_.filled))
                    if order_.state is State.ACCEPTED:
                        order_.state = State.DISPATCHED
            elif order_.state is State.ACCEPTED:
                continue
            elif action <= 16:
                alive = [name for name in ids if model.orders[name].state not in FINAL]
                if alive and script.below(4):
                    # Mostly one that can be replaced, and of these one that awaits another.
                    held = [name for name in alive if model.orders[name].awaits]
                    chosen = held if held and script.below(3) else alive
                    id = chosen[script.below(len(chosen))]
                new = f"o{script.below(60)}"
                total = None if script.below(4) == 0 else Decimal(1 + script.below(200)) / 10
                amended = Decimal(90 + script.below(80)) + Decimal(script.below(100)) / 100
                await replace(model, ledger, new, id, total, None if script.below(4) == 0 else amended)
            elif order_.awaits:
                # The venue has not got it, so it cannot tell of it.
                await client.call("ZADD", "trading:replacing", 0, f"acc {id} {order_.awaits}")
                await book.due(1)
                model.proceed(id)
            else:
                fills = []
                for _ in range(script.below(3)):
                    most = scaled(order_.quantity - order_.filled) - sum(f.quantity for f in fills)
                    if most > 0:
                        size = most if script.below(3) == 0 else max(1, most * script.below(256) // 256)
                        price = Decimal(95 + script.below(70)) + Decimal(script.below(100)) / 100
                        fee = Decimal(script.below(200)).scaleb(-3)
                        trade = f"t{len(model.trades) + len(fills)}"
                        fills.append(Fill(trade, size, scaled(price), scaled(fee), 1))
                if model.trades and script.below(4) == 0:
                    # A trade that was told before changes nothing, whatever it says now.
                    fills.append(Fill(sorted(model.trades)[0], 10**8, 10**10, 10**8, 1))
                fresh = 0
                for fill in fills:
                    fresh += fill.trade not in model.trades
                    values = [Decimal(x).scaleb(-8) for x in (fill.quantity, fill.price, fill.fee)]
                    model.fill(id, fill.trade, *values)
                wanted = (None, State.OPEN, State.UNKNOWN, State.CANCELLED, State.EXPIRED, State.FILLED)[
                    script.below(6)
                ]
                total = None if script.below(3) == 0 else order_.filled + script.below(2)
                expected = model.conclude(id, wanted, total)
                code_, new_fills, _ = await book.settle(
                    "acc", id, wanted, fills, filled=None if total is None else scaled(total), again_in=1
                )
                assert (code_.name.lower(), new_fills) == (expected, fresh)
                for following in [n for n, o in model.orders.items() if o.awaits == id]:
                    model.proceed(following)
    for order, decision in decided:
        if decision.facts is None:
            assert decision.again
            continue
        # Long after, whatever has changed: from the same facts the other version decides the same.
        judged = await world.ledgers[1].judge(order, decision.facts(), LIMITS)
        assert judged is not None
        assert (judged.code, judged.refusal) == (decision.code, decision.refusal)
    await compare(client, model)
    await verify(world)


async def verify(world: World) -> None:
    """What the audit tells is the ledger, and no order was accepted past a limit."""
    archive = redis_ledger.RedisArchive(world.client, holder="verifier")
    lines: list[dict[str, object]] = []

    def log(event: str, /, **fields: object) -> None:
        lines.append({"event": event, **fields})

    verifier = Verifier(archive, lambda: 1, {"version": "1", "slot": "blue"}, log)
    await verifier.step()
    assert verifier.known.verified_ms > 0
    assert (verifier.known.differences, verifier.limits_passed, lines) == ({}, 0, [])
    told = [line for _, line in await archive.lines("0-0", 10_000) if line["e"] == "order.accepted"]
    assert {line["limits"] for line in told} <= (await archive.limits()).keys()


async def replace(
    model: Model, ledger: RedisLedger, id: str, old: str, total: Decimal | None, price: Decimal | None
) -> None:
    """Replace ``old`` by ``id`` in both; what is None stays as it is."""
    view = await ledger.order("acc", old)
    assert view is not None
    order = view.order
    market = order.price is None
    wanted = Decimal(view.total).scaleb(-8) if total is None else total
    amended = None if order.price is None else Decimal(order.price).scaleb(-8) if price is None else price
    expected = model.replace(id, old, wanted, None if market else amended) if id != old else None
    if expected is None:
        return
    meant = Order(
        "acc", id, order.symbol, order.side, order.type, scaled(wanted),
        None if amended is None else scaled(amended), None, order.reduce_only, order.time_in_force,
    )  # fmt: skip
    decision, _ = await ledger.replace(view, meant, "r")
    name = decision.code.name.lower()
    found = "again" if decision.again and name == "accepted" else name
    assert (found, decision.refusal.rule if decision.refusal else "") == expected


async def compare(client: Client, model: Model) -> None:
    flat = await client.call("HGETALL", "trading:account:acc")
    fields = {k.decode(): v.decode() for k, v in zip(flat[::2], flat[1::2], strict=True)}

    def field(name: str) -> Decimal:
        return Decimal(fields.get(name, 0)).scaleb(-8)

    if model.cash is not None:
        assert field("cash") == model.cash
    assert int(fields.get("accepted", 0)) == len(model.orders)
    assert int(fields.get("open", 0)) == sum(o.state not in FINAL for o in model.orders.values())
    assert fields.get("latched", "0") == ("1" if model.latched else "0")
    if model.peak is not None and model.cash is not None:
        assert field("peak") == model.peak
    for symbol in SYMBOLS:
        holding = model.holdings.get(symbol, Holding())
        found = tuple(field(f"{letter}:{symbol}") for letter in "qcrf")
        assert found == (holding.quantity, holding.cost, holding.realised, holding.fees)
        for side, letter in (("buy", "b"), ("sell", "s")):
            quantity, notional = model.reserved(symbol, side)
            assert (field(f"{letter}q:{symbol}"), field(f"{letter}n:{symbol}")) == (quantity, notional)
    for id, order in model.orders.items():
        st_, left, filled = await client.call("HMGET", f"trading:order:acc:{id}", "st", "left", "filled")
        assert st_.decode() == order.state.value
        assert int(filled or 0) == scaled(order.filled)
        assert int(left) == (0 if order.state in FINAL else scaled(order.left))
    due = await client.call("ZRANGE", "trading:dispatch", 0, -1)
    assert {m.decode() for m in due} == {
        f"acc {id}" for id, o in model.orders.items() if o.state not in FINAL
    }


@settings(
    max_examples=HISTORIES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow, HealthCheck.large_base_example],
)
@given(st.binary(min_size=STEPS * 12, max_size=STEPS * 12))
def test_the_ledger_is_the_model(world: World, data: bytes) -> None:
    """Two versions take turns on one account; nothing differs from the model in the last digit."""
    world.runner.run(play(world, data))


SIGNS = [
    (
        "admit",
        "equity = equity + value - field('c:' .. name)",
        "equity = equity + value + field('c:' .. name)",
    ),
    ("admit", "down = down - notional", "down = down + notional"),
    (
        "admit",
        "local up, down = value + field('bn:' .. name)",
        "local up, down = value - field('bn:' .. name)",
    ),
    (
        "admit",
        "closable = -position - field('bq:' .. symbol)",
        "closable = -position + field('bq:' .. symbol)",
    ),
    (
        "settle",
        "realised = realised - sign * (closed_value - out)",
        "realised = realised + sign * (closed_value - out)",
    ),
    ("settle", "position = position + sign * closed", "position = position - sign * closed"),
    ("settle", "cost = sign * (value - closed_value)", "cost = sign * (value + closed_value)"),
    ("settle", "int(realised - fees)", "int(realised + fees)"),
    ("settle", "int(notional - reserved)", "int(notional + reserved)"),
    (
        "replace",
        "total, before = tonumber(ARGV[7]), live.before + live.filled",
        "total, before = tonumber(ARGV[7]), live.filled",
    ),
    ("replace", "local quantity = total - before", "local quantity = total + before"),
    ("replace", "if price < live.reference then extra", "if price > live.reference then extra"),
    ("replace", "reserve(-1, old, held and 0 or extra)", "reserve(-1, old, 0)"),
    ("replace", "if held and not ended then reserve(-1, live, extra) end", ""),
    ("proceed", "local quantity = tonumber(order[4]) - before", "local quantity = tonumber(order[5])"),
    ("proceed", "int(reserved - tonumber(order[6]))", "int(reserved + tonumber(order[6]))"),
]


@pytest.mark.parametrize(("script", "right", "wrong"), SIGNS)
def test_one_wrong_sign_in_the_scripts_is_caught(
    script: str, right: str, wrong: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = getattr(redis_ledger, script.upper())
    assert text.count(right) == 1
    mutant = text.replace(right, wrong)
    sha = hashlib.sha1(mutant.encode()).hexdigest()
    world.runner.run(load(world.client, mutant))
    monkeypatch.setattr(redis_ledger, f"_{script.upper()}", sha)
    dice = random.Random(1)
    assert not all(agrees(world, dice.randbytes(STEPS * 12)) for _ in range(200))


def agrees(world: World, data: bytes) -> bool:
    try:
        world.runner.run(play(world, data))
    except AssertionError:
        return False
    return True


async def load(client: Client, text: str) -> None:
    await client.call("SCRIPT", "LOAD", text)


def test_the_scripts_table_of_transitions_is_the_domains() -> None:
    block = redis_ledger.SETTLE.partition("-- transitions:")[2].partition("-- end of transitions")[0]
    table = {
        State(name): {State(word) for word in re.findall(r"(\w+) = 1", body)}
        for name, body in re.findall(r"^  (\w+) = \{(.*)\},$", block, re.MULTILINE)
    }
    assert table == {state: set(after) for state, after in TRANSITIONS.items()}


def test_a_former_holder_cannot_conclude_anything(world: World) -> None:
    """Each taking raises the fence; what an instance concludes with an older one is refused."""

    async def run() -> None:
        client, ledger, book = world.client, world.ledgers[0], world.books[0]
        await client.call("FLUSHDB")
        await book.note_instruments([Instrument("AAA-USDT", 10**6, 10**5, 10**5, 10**13)], replace=True)
        await book.note_marks({"AAA-USDT": (10**10, 1)})
        order = Order(
            "acc", "a", "AAA-USDT", Side.BUY, OrderType.LIMIT, 10**8, 10**10, None, False, TimeInForce.GTC
        )
        await ledger.admit(order, "r")
        first = await book.take("acc", "a", 0.0)
        assert first is not None
        assert not first.ask_first
        second = await world.books[1].take("acc", "a", 5)
        assert second is not None
        assert second.ask_first
        assert second.fence == first.fence + 1
        assert await book.take("acc", "a", 5) is None
        code, _, _ = await book.settle("acc", "a", State.REJECTED, (), filled=0, fence=first.fence)
        assert code is SettleCode.FENCED
        assert not await book.resend(first)
        assert await world.books[1].resend(second)
        code, _, _ = await book.settle("acc", "a", State.REJECTED, (), filled=0, fence=second.fence)
        assert code is SettleCode.APPLIED
        assert (await book.settle("acc", "none", State.OPEN, ()))[0] is SettleCode.NONE

    world.runner.run(run())


def test_a_doubled_execution_is_found_once_and_nothing_that_is_in_order_is(world: World) -> None:
    """A fill beyond the quantity still moves the position, as it happened; a known one never does again."""

    async def run() -> None:
        client, ledger, book = world.client, world.ledgers[0], world.books[0]
        await client.call("FLUSHDB")
        await book.note_instruments([Instrument("AAA-USDT", 10**6, 10**5, 10**5, 10**13)], replace=True)
        await book.note_marks({"AAA-USDT": (10**10, 1)})
        for id in ("a", "b"):
            order = Order(
                "acc", id, "AAA-USDT", Side.BUY, OrderType.LIMIT, 10**8, 10**10, None, False, TimeInForce.GTC
            )
            await ledger.admit(order, "r")
            assert await book.take("acc", id, 5) is not None

        async def told(id: str, *fills: Fill) -> tuple[int, int]:
            _, fresh, doubled = await book.settle("acc", id, None, fills)
            return fresh, doubled

        half = Fill("t1", 5 * 10**7, 10**10, 1, 1)
        other_price = Fill("t1", 5 * 10**7, 10**10 + 1, 1, 1)
        beyond = Fill("t2", 6 * 10**7, 10**10, 1, 1)
        assert await told("a", half) == (1, 0)
        assert await told("a", half) == (0, 0), "the same report again"
        assert await told("a", half, half) == (0, 0)
        assert await told("a", other_price) == (0, 1), "another price under the same id"
        assert await told("a", other_price) == (0, 0), "told once"
        assert await told("b", half) == (0, 1), "another order's trade"
        assert await told("a", beyond) == (1, 1), "0.5 and 0.6 of 1"
        assert await told("a", half, beyond) == (0, 0)
        assert await told("b", Fill("t3", 10**8, 10**10, 1, 1), Fill("t3", 9 * 10**7, 10**10, 1, 1)) == (1, 1)
        assert int(await client.call("HGET", "trading:account:acc", "q:AAA-USDT")) == 21 * 10**7
        audit = await client.call("XRANGE", "trading:audit", "-", "+")
        assert sum(line[1][1] == b"order.doubled" for line in audit) == 4

    world.runner.run(run())


def test_amounts_at_the_edge_of_what_can_be_held_stay_exact(world: World) -> None:
    """Close to 9e15 scaled, where doubles still hold every integer, no digit is lost."""
    world.runner.run(to_the_last_digit(world))


async def to_the_last_digit(world: World) -> None:
    client, book = world.client, world.books[0]
    wide = Limits(9 * 10**15, 9 * 10**15, 100, 0, 0, 9 * 10**15, 0, 1, 99_999_999, 0, 9 * 10**15, 0)
    ledger = RedisLedger(client, version="1", slot="blue", limits=wide)
    await client.call("FLUSHDB")
    await book.note_instruments([Instrument("AAA-USDT", 1, 1, 1, 9 * 10**15)], replace=True)
    quantity, price = 8_999_999_999_999_999, 99_999_989
    await book.note_marks({"AAA-USDT": (price, 1)})
    order = Order(
        "acc", "a", "AAA-USDT", Side.BUY, OrderType.LIMIT, quantity, price, None, False, TimeInForce.GTC
    )
    decision = await ledger.admit(order, "r")
    assert decision.refusal is None
    assert int(await client.call("HGET", "trading:account:acc", "bn:AAA-USDT")) == quantity * price // 10**8
    assert await book.take("acc", "a", 5) is not None
    first = 3_333_333_333_333_331
    await book.settle("acc", "a", None, [Fill("t1", first, price, 7, 1)])
    assert int(await client.call("HGET", "trading:account:acc", "c:AAA-USDT")) == first * price // 10**8
    left = quantity - first
    assert int(await client.call("HGET", "trading:account:acc", "bn:AAA-USDT")) == left * price // 10**8
    sell = Order(
        "acc", "b", "AAA-USDT", Side.SELL, OrderType.LIMIT, 10**15 + 7, price, None, True, TimeInForce.GTC
    )
    assert (await ledger.admit(sell, "r")).refusal is None
    assert await book.take("acc", "b", 5) is not None
    await book.settle("acc", "b", None, [Fill("t2", 10**15 + 7, price, 0, 1)])
    cost = first * price // 10**8
    out = cost * (10**15 + 7) // first
    assert int(await client.call("HGET", "trading:account:acc", "c:AAA-USDT")) == cost - out


def test_down_cuts_towards_zero() -> None:
    assert down(Decimal("-1.999999999")) == Decimal("-1.99999999")


def test_a_price_of_a_time_to_come_gives_way_to_the_next_one(world: World) -> None:
    """From a clock that is ahead, and after the server's own was set back."""
    hour = 3_600_000

    async def run() -> None:
        async def noted(price: int, at: int) -> list[str]:
            await world.books[0].note_marks({"AAA-USDT": (price, at)})
            return str((await world.client.call("HGET", "trading:marks", "AAA-USDT")).decode()).split("|")

        async def now() -> int:
            seconds, microseconds = await world.client.call("TIME")
            return int(seconds) * 1000 + int(microseconds) // 1000

        await world.client.call("FLUSHDB")
        price, stamp = await noted(5, await now() + hour)
        assert (price, int(stamp) <= await now()) == ("5", True)
        while await now() == int(stamp):
            pass
        assert (await noted(6, await now()))[0] == "6"
        assert (await noted(7, await now() - hour))[0] == "6"
        soon = await now() + 500
        assert await noted(7, soon) == ["7", str(soon)]
        await world.client.call("HSET", "trading:marks", "AAA-USDT", f"8|{await now() + hour}")
        assert (await noted(9, await now()))[0] == "9"

    world.runner.run(run())
