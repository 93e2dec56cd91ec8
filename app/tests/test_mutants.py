"""Would the tests of the ledger notice one wrong sign or one comparison the other way round, wherever it is?

Each sign and each comparison in the scripts that hold money is turned round, one at a time, and what holds
the scripts has to object: the limits' edges below, and the histories of ``test_ledger_properties``.

    LEDGER_MUTANTS=all pytest tests/test_mutants.py

turns every one of them, else it is one in nine.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import pytest

from test_ledger_properties import STEPS, World, play, to_the_last_digit
from trading_bot.adapters.redis import ledger as redis_ledger
from trading_bot.adapters.redis.connection import Client
from trading_bot.adapters.redis.ledger import RedisLedger
from trading_bot.domain.instrument import Instrument
from trading_bot.domain.lifecycle import State
from trading_bot.domain.limits import Limits
from trading_bot.domain.order import Order, OrderType, Side, TimeInForce
from trading_bot.errors import TradingError
from trading_bot.ports import CancelCode, Fill, SettleCode

from servers import Redis

UNIT = 10**8
SECOND = 1_700_000_000
DAY = 86_400
A, B = "AAA-USDT", "BBB-USDT"
WIDE = Limits(
    max_position_size=9 * 10**15, max_order_notional=9 * 10**15, max_open_orders=1000,
    max_orders_per_second=0, price_collar=0, max_leverage=9 * 10**15, min_margin_level=0, margin_rate=1,
    max_drawdown=UNIT - 1, duplicate_window_ms=0, initial_equity=10_000 * UNIT, max_mark_age_ms=0,
)  # fmt: skip

CLOCK = """(function()
  local told = redis.call('HMGET', 'clock', 's', 'us')
  return told[1] and told or redis.call('TIME')
end)()"""
SCRIPTS = ("admit", "settle", "cancel")
TURNED = {
    "+": "-", "-": "+", "<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "~=", "~=": "==", "'-'": "''",
}  # fmt: skip
_TOKEN = re.compile(r"#![^\n]*|--[^\n]*|'[^'\n]*'|[<>=~]=|[<>+-]")


@dataclass(frozen=True)
class Mutant:
    script: str
    place: int
    """Where in the script, in characters."""
    was: str
    now: str

    def __str__(self) -> str:
        return (
            f"{self.script}.lua:{source(self.script).count(chr(10), 0, self.place) + 1} {self.was} {self.now}"
        )

    @property
    def text(self) -> str:
        whole = source(self.script)
        return f"{whole[: self.place]} {self.now} {whole[self.place + len(self.was) :]}"


def source(script: str) -> str:
    return str(getattr(redis_ledger, script.upper()))


def mutants(script: str) -> Iterator[Mutant]:
    text = source(script)
    for token in _TOKEN.finditer(text):
        was = token.group()
        if was in TURNED:
            # A minus that stands before an amount, not between two, is left out.
            alone = was == "-" and text[: token.start()].rstrip().endswith(
                ("(", ",", "=", "{", "or", "return")
            )
            yield Mutant(script, token.start(), was, "" if alone else TURNED[was])


ALL = [mutant for script in SCRIPTS for mutant in mutants(script)]


class Clocked(World):
    """A world whose scripts read the time from a hash, so that a test can say what time it is."""

    def use(self, script: str, text: str) -> str:
        """Have the adapter call ``text`` for ``script``."""
        text = text.replace("redis.call('TIME')", CLOCK)
        self.runner.run(_load(self.client, text))
        before = str(getattr(redis_ledger, f"_{script.upper()}"))
        setattr(redis_ledger, f"_{script.upper()}", hashlib.sha1(text.encode()).hexdigest())
        return before

    async def at(self, second: int, ms: int = 0) -> None:
        await self.client.call("HSET", "clock", "s", second, "us", ms * 1000)

    async def fresh(self, **limits: int) -> RedisLedger:
        """An empty ledger, two instruments at 100, an executor with ``limits``, wide where not named."""
        await self.client.call("FLUSHDB")
        await self.at(SECOND)
        instruments = [Instrument(symbol, 10**6, 10**5, 10**5, 9 * 10**15) for symbol in (A, B)]
        await self.books[0].note_instruments(instruments, replace=True)
        await self.mark(A, 100 * UNIT)
        await self.mark(B, 100 * UNIT)
        return RedisLedger(self.client, version="1", slot="blue", limits=limited(**limits))

    async def mark(self, symbol: str, price: int, at: int = SECOND * 1000) -> None:
        await self.client.call("HSET", "trading:marks", symbol, f"{price}|{at}")


def limited(**limits: int) -> Limits:
    return Limits(**{name: limits.get(name, getattr(WIDE, name)) for name in Limits.__struct_fields__})


async def _load(client: Client, text: str) -> None:
    await client.call("SCRIPT", "LOAD", text)


_numbers = iter(range(10**9))


async def rule(
    ledger: RedisLedger,
    side: str = "buy",
    quantity: int = UNIT,
    price: int | None = 100 * UNIT,
    *,
    symbol: str = A,
    stop: int | None = None,
    reduce_only: bool = False,
    dry: bool = False,
    id: str = "",
) -> str:
    """What becomes of an order: ``accepted``, or the rule that refuses it, its limit and the value found."""
    type_ = OrderType.STOP if stop else OrderType.MARKET if price is None else OrderType.LIMIT
    order = Order(
        "acc", id or f"e{next(_numbers)}", symbol, Side(side), type_, quantity, None if stop else price, stop,
        reduce_only, TimeInForce.GTC,
    )  # fmt: skip
    decision = await ledger.admit(order, "r", dry=dry)
    refusal = decision.refusal
    if refusal is None:
        return decision.code.name.lower()
    return f"{refusal.rule} {refusal.limit} {refusal.value}".rstrip()


async def hold(world: Clocked, ledger: RedisLedger, side: str, quantity: int) -> None:
    """Have the account hold ``quantity`` more of A, or less."""
    id, price = f"h{next(_numbers)}", 100 * UNIT
    assert await rule(ledger, side, quantity, price, id=id) == "accepted"
    assert await world.books[0].take("acc", id, 5) is not None
    await world.books[0].settle("acc", id, None, [Fill(id, quantity, price, 0, 1)])


async def throttle(world: Clocked) -> None:
    ledger = await world.fresh(max_orders_per_second=2)
    assert [await rule(ledger, dry=True) for _ in range(4)] == ["accepted"] * 4
    assert [await rule(ledger) for _ in range(3)] == ["accepted"] * 2 + ["max_orders_per_second 2 3"]
    await world.at(SECOND + 1, 999)
    assert await rule(ledger, id="last") == "accepted"
    assert await ledger.cancel("acc", "last", "r") == (CancelCode.CANCELLED, "cancelled")
    assert await rule(ledger) == "max_orders_per_second 2 3"
    await world.at(SECOND + 2)
    assert [await rule(ledger, id="x"), await rule(ledger, id="y")] == ["accepted"] * 2
    assert await ledger.cancel("acc", "x", "r") == (CancelCode.THROTTLED, "accepted")
    await world.at(SECOND + 3)
    assert [(await ledger.cancel("acc", id, "r"))[0] for id in ("x", "y")] == [CancelCode.CANCELLED] * 2


async def steps(world: Clocked) -> None:
    ledger = await world.fresh()
    await world.books[0].note_instruments([Instrument(A, 10**6, 10**5, 10**6, 10**9)], replace=True)
    assert await rule(ledger, price=100 * UNIT + 1) == "tick_size 0.01 100.00000001"
    assert await rule(ledger, stop=100 * UNIT + 1) == "tick_size 0.01 100.00000001"
    assert await rule(ledger, stop=100 * UNIT) == "accepted"
    assert await rule(ledger, quantity=10**6 + 1) == "lot_size 0.001 0.01000001"
    assert await rule(ledger, quantity=9 * 10**5) == "min_quantity 0.01 0.009"
    assert [await rule(ledger, quantity=q) for q in (10**6, 10**9)] == ["accepted"] * 2
    assert await rule(ledger, quantity=10**9 + 10**5) == "max_quantity 10 10.001"
    assert await rule(ledger, symbol="CCC-USDT") == "instrument_unknown a known instrument CCC-USDT"


async def marks(world: Clocked) -> None:
    ledger = await world.fresh(max_mark_age_ms=1000)
    await world.at(SECOND + 1)
    assert await rule(ledger, price=None) == "accepted"
    await world.at(SECOND + 1, 1)
    assert await rule(ledger, price=None) == f"mark_missing a mark for {A} none"
    assert await rule(ledger) == "accepted"
    await world.at(SECOND - 1)
    assert await rule(ledger, price=None) == "accepted"
    await world.at(SECOND - 2, 999)
    assert await rule(ledger, price=None) == f"mark_missing a mark for {A} none"
    ledger = await world.fresh(price_collar=UNIT // 10, max_mark_age_ms=1000)
    await world.at(SECOND + 2)
    assert await rule(ledger) == f"mark_missing a mark for {A} none"
    ledger = await world.fresh(price_collar=UNIT // 10)
    await world.at(SECOND + DAY)
    assert [await rule(ledger, price=p * UNIT) for p in (90, 110)] == ["accepted"] * 2
    assert await rule(ledger, price=110 * UNIT + 10**6) == "price_collar 90..110 110.01"
    assert await rule(ledger, price=90 * UNIT - 10**6) == "price_collar 90..110 89.99"
    assert await rule(ledger, price=None) == "accepted"


async def sizes(world: Clocked) -> None:
    ledger = await world.fresh(max_order_notional=100 * UNIT)
    assert await rule(ledger) == "accepted"
    assert await rule(ledger, quantity=UNIT + 10**5) == "max_order_notional 100 100.1"
    assert (await rule(ledger, quantity=9 * 10**15)).startswith("max_order_notional 100 beyond")
    ledger = await world.fresh(max_open_orders=2)
    assert [await rule(ledger, id=id) for id in "xyz"] == ["accepted"] * 2 + ["max_open_orders 2 3"]
    assert (await ledger.cancel("acc", "x", "r"))[0] is CancelCode.CANCELLED
    assert await rule(ledger) == "accepted"
    for side, other in (("buy", "sell"), ("sell", "buy")):
        ledger = await world.fresh(max_position_size=300 * UNIT)
        await hold(world, ledger, side, UNIT)
        assert await rule(ledger, other, UNIT, symbol=B) == "accepted"
        assert await rule(ledger, side, UNIT) == "accepted"
        assert await rule(ledger, side, UNIT + 10**5) == "max_position_size 300 300.1"
        assert await rule(ledger, other, 4 * UNIT + 10**5) == "max_position_size 300 300.1"
        assert await rule(ledger, other, 4 * UNIT) == "accepted"
        assert await rule(ledger, side, UNIT) == "accepted"
    ledger = await world.fresh(initial_equity=0)
    assert await rule(ledger) == "equity_missing a funded account none"


async def gross(world: Clocked) -> None:
    for side, other in (("buy", "sell"), ("sell", "buy")):
        ledger = await world.fresh(max_leverage=UNIT, initial_equity=1000 * UNIT)
        await hold(world, ledger, side, 2 * UNIT)
        assert await rule(ledger, other, 3 * UNIT, symbol=B) == "accepted"
        # 200 held, 300 in flight elsewhere; the worse side counts, so the first two of these are free.
        assert await rule(ledger, other, 3 * UNIT) == "accepted"
        assert await rule(ledger, other, UNIT) == "accepted"
        assert await rule(ledger, side, 5 * UNIT + 10**5) == "max_leverage 1 1.000100"
        assert await rule(ledger, side, 5 * UNIT) == "accepted"
        # What it holds gains and loses: equity and exposure both move.
        await world.mark(A, 101 * UNIT)
        found = await rule(ledger, side, UNIT)
        sign = 1 if side == "buy" else -1
        assert found == f"max_leverage 1 {(202 + 500 + 100 + 300) / (1000 + sign * 2):.6f}"
        # Closing is not held up.
        assert await rule(ledger, other, 10**6, reduce_only=True) == "reduce_only 0 0.01"
    ledger = await world.fresh(min_margin_level=2 * UNIT, margin_rate=UNIT // 2, initial_equity=1000 * UNIT)
    assert await rule(ledger, "buy", 10 * UNIT + 10**5) == "min_margin_level 2 1.999800"
    assert await rule(ledger, "buy", 10 * UNIT) == "accepted"


async def reducing(world: Clocked) -> None:
    for side, other in (("buy", "sell"), ("sell", "buy")):
        ledger = await world.fresh()
        await hold(world, ledger, side, 3 * UNIT)
        limits = limited(max_leverage=1, max_position_size=1)
        tight = RedisLedger(world.client, version="1", slot="blue", limits=limits)
        assert await rule(tight, side, 10**6) == "max_position_size 0.00000001 301"
        assert await rule(tight, other, UNIT, reduce_only=True) == "accepted"
        assert await rule(tight, other, 2 * UNIT + 10**5, reduce_only=True) == "reduce_only 2 2.001"
        await world.client.call("HSET", "trading:control", "degraded", "1")
        assert await rule(tight, other, 2 * UNIT + 10**5) == "degraded 2 2.001"
        assert await rule(tight, side, 10**6) == "degraded 0 0.01"
        assert await rule(tight, other, 2 * UNIT) == "accepted"
        await world.client.call("HSET", "trading:control", "degraded", "0", "halted", "1")
        assert await rule(tight, other, UNIT) == "halted"


async def drawdown(world: Clocked) -> None:
    for side in ("buy", "sell"):
        away = -1 if side == "buy" else 1
        ledger = await world.fresh(max_drawdown=UNIT // 100)
        await hold(world, ledger, side, 10 * UNIT)
        await world.mark(A, (100 + away * 10) * UNIT)
        assert await rule(ledger, symbol=B) == "accepted"
        # A new day counts from what the account is worth then.
        await world.at(SECOND + DAY)
        await world.mark(A, (100 + away * 19) * UNIT)
        assert await rule(ledger, symbol=B) == "accepted"
        await world.mark(A, (100 + away * 19) * UNIT - away * 19 * 10**6)
        assert await rule(ledger, symbol=B) == "accepted"
        await world.mark(A, (100 + away * 29) * UNIT)
        for dry in (True, True, False):
            assert (await rule(ledger, symbol=B, dry=dry)) == f"max_drawdown 0.01 {101.9 / 9811.9:.6f}"
        await world.mark(A, 100 * UNIT)
        assert await rule(ledger, symbol=B) == "drawdown_latched 0 1"


async def windows(world: Clocked) -> None:
    ledger = await world.fresh(duplicate_window_ms=600_000)
    assert await rule(ledger, id="first") == "accepted"
    assert await rule(ledger) == "duplicate_intent one such order in 600000 ms first"
    assert await rule(ledger, "sell") == "accepted"
    ledger = await world.fresh()
    assert [await rule(ledger), await rule(ledger)] == ["accepted"] * 2


async def cancels(world: Clocked) -> None:
    ledger = await world.fresh()
    assert await ledger.cancel("acc", "none", "r") == (CancelCode.NONE, "")
    await rule(ledger, id="x")
    assert await world.books[0].take("acc", "x", 5) is not None
    for _ in range(2):
        assert await ledger.cancel("acc", "x", "r") == (CancelCode.WANTED, "dispatched")
    lines = await world.client.call("XRANGE", "trading:audit", "-", "+")
    assert [line[1][1] for line in lines].count(b"order.cancel_wanted") == 1


async def roundings(world: Clocked) -> None:
    """What a limit demands is rounded up, each time it is multiplied."""
    for level, need in ((UNIT, 3_333_667), (UNIT * 3 // 2 + 1, 5_000_501)):
        for equity, passes in ((need, True), (need - 1, False)):
            ledger = await world.fresh(min_margin_level=level, margin_rate=UNIT // 3, initial_equity=equity)
            found = await rule(ledger, quantity=10**5, price=10_001 * 10**6)
            assert found == "accepted" if passes else found.startswith("min_margin_level ")
    ledger = await world.fresh(max_drawdown=UNIT // 100, initial_equity=3_333_667)
    await hold(world, ledger, "buy", 10**5)
    await world.mark(A, 100 * UNIT - 33_336_000)
    assert await rule(ledger, quantity=10**6, symbol=B) == "accepted"
    await world.mark(A, 100 * UNIT - 33_337_000)
    assert (await rule(ledger, quantity=10**6, symbol=B)).startswith("max_drawdown 0.01 ")


async def times(world: Clocked) -> None:
    """When an order is looked at again, and what is written of when."""
    ledger, book = await world.fresh(), world.books[0]
    await world.at(SECOND, 7)
    now = SECOND * 1000 + 7

    async def due(id: str) -> int:
        return int(await world.client.call("ZSCORE", "trading:dispatch", f"acc {id}") or 0)

    await rule(ledger, id="x")
    assert await due("x") == now
    assert await book.take("acc", "x", 5) is not None
    assert await due("x") == now + 5000
    await book.settle("acc", "x", State.OPEN, [Fill("t", 10**6, UNIT, 3, 11)], again_in=2)
    assert await due("x") == now + 2000
    await ledger.cancel("acc", "x", "r")
    assert await due("x") == now
    ((_, flat),) = await world.client.call("XRANGE", "trading:fills", "-", "+")
    assert flat[-2:] == [b"at", b"11"]
    events = await world.client.call("XRANGE", "trading:outbox", "-", "+")
    assert {dict(zip(flat[::2], flat[1::2], strict=True))[b"at"] for _, flat in events} == {str(now).encode()}


async def conclusions(world: Clocked) -> None:
    """Only the latest fence concludes; a reason is kept where there is one."""
    ledger, book = await world.fresh(), world.books[0]
    for id, reason in (("x", "no more of it"), ("y", "")):
        await rule(ledger, id=id)
        task = await book.take("acc", id, 5)
        assert task is not None
        for fence, expected in ((task.fence + 1, SettleCode.FENCED), (task.fence, SettleCode.APPLIED)):
            code, *_ = await book.settle("acc", id, State.REJECTED, (), filled=0, fence=fence, reason=reason)
            assert code is expected
        stored = await world.client.call("HGET", f"trading:order:acc:{id}", "reason")
        assert stored == (reason.encode() or None)


async def doubles(world: Clocked) -> None:
    """A trade told again is nothing; with another content, or past the order, it is said, once."""
    ledger, book = await world.fresh(), world.books[0]
    await rule(ledger, id="x", quantity=4 * 10**6)
    assert await book.take("acc", "x", 5) is not None

    async def told(*fills: tuple[str, int, int]) -> int:
        """How often ``order.doubled`` was said so far; what is new of it is counted in the answer."""
        nonlocal said
        some = [Fill(name, q, p * UNIT, 0, 1) for name, q, p in fills]
        _, _, found = await book.settle("acc", "x", None, some)
        lines = await world.client.call("XRANGE", "trading:audit", "-", "+")
        before, said = said, [line[1][1] for line in lines].count(b"order.doubled")
        assert found == said - before
        return said

    said = 0
    assert await told(("a", 10**6, 100), ("a", 10**6, 100)) == 0
    assert await told(("a", 10**6, 100)) == 0
    assert await told(("a", 2 * 10**6, 100)) == 1
    assert await told(("a", 10**6, 101)) == 1
    assert await told(("b", 10**6, 100), ("b", 10**6, 99)) == 2
    assert await told(("c", 10**6, 100), ("c", 2 * 10**6, 100)) == 3
    assert await told(("d", 10**6, 100)) == 3
    assert await told(("d", 10**6, 101)) == 4
    assert await told(("e", 10**6, 100)) == 5


Edge = Callable[[Clocked], Awaitable[None]]
EDGES: tuple[Edge, ...] = (
    throttle, steps, marks, sizes, gross, reducing, drawdown, windows, cancels,
    roundings, times, conclusions,
    doubles,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clocked]:
    redis = Redis(tmp_path_factory.mktemp("mutants"), "--appendonly", "no")
    redis.start()
    with asyncio.Runner() as runner:
        world = Clocked(runner, redis)
        before = {name: world.use(name, source(name)) for name in (*SCRIPTS, "take")}
        yield world
        for name, sha in before.items():
            setattr(redis_ledger, f"_{name.upper()}", sha)
        runner.run(world.client.stop())
    redis.kill()


@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: edge.__name__)
def test_a_check_holds_to_the_last_digit_of_its_limit(edge: Edge, world: Clocked) -> None:
    """What is at a limit passes, one step more is refused, with the rule, the limit and the value."""
    world.runner.run(edge(world))


def chosen() -> list[Mutant]:
    return ALL if os.environ.get("LEDGER_MUTANTS") == "all" else ALL[::9]


@pytest.mark.parametrize("mutant", chosen(), ids=str)
def test_a_sign_or_comparison_turned_round_is_noticed(mutant: Mutant, world: Clocked) -> None:
    before = world.use(mutant.script, mutant.text)
    try:
        assert noticed(world), mutant
    finally:
        setattr(redis_ledger, f"_{mutant.script.upper()}", before)


def noticed(world: Clocked) -> bool:
    dice = random.Random(1)
    try:
        for edge in EDGES:
            world.runner.run(edge(world))
        world.runner.run(to_the_last_digit(world))
        for _ in range(60):
            world.runner.run(play(world, dice.randbytes(STEPS * 12)))
    except (AssertionError, TradingError):
        return True
    return False
