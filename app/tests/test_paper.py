"""The paper exchange: that it forgets nothing, and replays what was recorded."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trading_bot.domain.instrument import instruments_from
from trading_bot.domain.money import SCALE
from trading_bot.entrypoints.cli import main
from trading_bot.paper import ticks
from trading_bot.paper.exchange import FINAL, Exchange, VenueOrder

from servers import Nats, PaperVenue, Redis, listening, need, until

BTC, ETH = instruments_from("BTC-USDT:0.01:0.00001:0.00001:100,ETH-USDT:0.01:0.00001:0.00001:1000")
DAY = 86_400_000


def exchange(written: list[list[Any]], seed: int = 1) -> Exchange:
    return Exchange({BTC: 50_000 * SCALE, ETH: 3_000 * SCALE}, written.append, seed=seed)


def some_order(dice: random.Random, number: int, now: int) -> VenueOrder:
    kind = dice.choice(["market", "limit", "limit", "limit", "stop"])
    around = 50_000 * SCALE
    price = around + dice.randint(-20, 20) * SCALE
    return VenueOrder(
        f"a.{number}", "BTC-USDT", dice.choice(["buy", "sell"]), kind, dice.randint(1, 900) * SCALE // 10_000,
        None if kind == "market" else price,
        around + dice.randint(-15, 15) * SCALE if kind == "stop" else None,
        "IOC" if kind == "market" else dice.choice(["GTC", "GTC", "IOC", "FOK", "DAY"]), now,
    )  # fmt: skip


def busy_day(venue: Exchange, dice: random.Random, steps: int) -> None:
    now = 10 * DAY - 500 * steps
    for number in range(steps):
        now += 1000
        venue.submit(some_order(dice, number, now), now)
        if number % 3 == 0:
            venue.cancel(f"a.{dice.randint(0, number)}", now)
        if number % 2 == 0:
            venue.expire(now)
            venue.walk("BTC-USDT", now)


@pytest.mark.parametrize("seed", range(5))
def test_an_exchange_that_was_killed_after_any_step_comes_back_as_it_was(seed: int) -> None:
    """Its orders, what rests in which order, and the stops that wait are the fold of what was written."""
    written: list[list[Any]] = []
    venue = exchange(written)
    busy_day(venue, random.Random(seed), 400)
    again = exchange([])
    for lines in copy.deepcopy(written):
        for line in lines:
            again.replay(line)
    assert again.orders == venue.orders
    assert again.lines == venue.lines
    for symbol, market in venue.markets.items():
        other = again.markets[symbol]
        assert (other.bids, other.asks, sorted(other.stops)) == (
            market.bids,
            market.asks,
            sorted(market.stops),
        )
    states = {order.state for order in venue.orders.values()}
    assert states >= {"filled", "cancelled", "expired", "open"}
    assert any(order.triggered for order in venue.orders.values())


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_done_no_order_is_filled_beyond_its_quantity_and_only_live_ones_rest(seed: int) -> None:
    venue = exchange([])
    busy_day(venue, random.Random(seed), 400)
    for order in venue.orders.values():
        assert order.filled == sum(fill["quantity"] for fill in order.fills) <= order.quantity
        assert (order.state == "filled") == (order.filled == order.quantity)
    market = venue.markets["BTC-USDT"]
    waiting = [id for _, _, id in market.bids + market.asks] + market.stops
    assert len(waiting) == len(set(waiting))
    assert set(waiting) == {o.id for o in venue.orders.values() if o.state not in FINAL}


def test_one_step_is_written_at_once_so_that_no_kill_leaves_half_of_it() -> None:
    """An order that trades with three others: one write has all of its lines."""
    written: list[list[Any]] = []
    venue = exchange(written)
    for n in range(3):
        venue.submit(
            VenueOrder(
                f"s.{n}", "BTC-USDT", "sell", "limit", SCALE // 100, 50_000 * SCALE + n, None, "GTC", 1
            ),
            1,
        )
    assert len(written) == 3
    venue.submit(
        VenueOrder("b.1", "BTC-USDT", "buy", "limit", SCALE * 3 // 100, 50_001 * SCALE, None, "GTC", 2), 2
    )
    assert len(written) == 4
    kinds = [line["kind"] for line in written[-1]]
    assert kinds[0] == "new"
    assert kinds.count("fill") >= 4


def test_a_killed_venue_still_has_every_order_and_execution(own_nats: Nats, tmp_path: Path) -> None:
    venue = PaperVenue(tmp_path / "venue", own_nats.url, "--tick", "60")
    venue.start()
    try:
        body = {"symbol": "BTC-USDT", "quantity": "0.01", "time_in_force": "GTC"}
        for n in range(20):
            price = {"price": "60000"} if n % 2 else {"price": "40000"}
            new = {**body, **price, "id": f"k.{n}", "side": "buy", "type": "limit"}
            venue.call("POST", "/v1/orders", new)
        before = venue.call("GET", "/v1/orders")
        head = venue.call("GET", "/v1/head")
        assert {order["state"] for order in before} == {"filled", "open"}
        venue.kill()
        venue.start()
        assert venue.call("GET", "/v1/orders") == before
        assert venue.call("GET", "/v1/head")["last"] >= head["last"]
        assert venue.call("POST", "/v1/orders", new) == before[-1]
        assert len(venue.call("GET", "/v1/orders")) == 20
    finally:
        venue.kill()


def test_a_last_line_that_was_cut_off_never_happened(own_nats: Nats, tmp_path: Path) -> None:
    venue = PaperVenue(tmp_path / "venue", own_nats.url)
    journal = tmp_path / "venue" / "journal"
    venue.start()
    new = {"symbol": "BTC-USDT", "quantity": "0.01", "price": "40000", "side": "buy", "type": "limit"}
    try:
        venue.call("POST", "/v1/orders", {**new, "id": "c.1"})
        venue.kill()
        with journal.open("ab") as file:
            file.write(b'{"seq":3,"kind":"new","id":"c.2"')
        venue.start()
        assert [order["id"] for order in venue.call("GET", "/v1/orders")] == ["c.1"]
        venue.call("POST", "/v1/orders", {**new, "id": "c.3"})
        venue.kill()
        venue.start()
        assert [order["id"] for order in venue.call("GET", "/v1/orders")] == ["c.1", "c.3"]
    finally:
        venue.kill()


def test_a_journal_with_a_gap_is_refused_rather_than_forgotten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "journal"
    journal.write_text('{"seq":2,"kind":"done","id":"x","at":1,"state":"cancelled","reason":""}\n')
    assert main(["venue", "--journal", str(journal)]) == 78
    assert "line 2 of the journal comes after line 0" in capsys.readouterr().err


# Replayed ticks

CSV = """time,symbol,price
1700000000000,BTC-USDT,50000.00
2023-11-14T22:13:20.500Z,ETH-USDT,3000.5
1700000001000,BTC-USDT,49000
"""
JSONL = """{"time": 1700000000000, "symbol": "BTC-USDT", "price": "50000.00"}
{"time": "2023-11-14T22:13:20.500+00:00", "symbol": "ETH-USDT", "price": 3000.5}

{"time": 1700000001000, "symbol": "BTC-USDT", "price": "49000", "volume": 3}
"""
KNOWN = {"BTC-USDT": BTC, "ETH-USDT": ETH}


@pytest.mark.parametrize("text", [CSV, JSONL])
def test_ticks_are_read_from_csv_and_from_json_lines_alike(text: str) -> None:
    assert ticks.read("t", text, KNOWN) == (
        ticks.Tick(1700000000000, "BTC-USDT", 50_000 * SCALE),
        ticks.Tick(1700000000500, "ETH-USDT", 3_000 * SCALE + SCALE // 2),
        ticks.Tick(1700000001000, "BTC-USDT", 49_000 * SCALE),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: expected a header with time, symbol, price, found nothing"),
        ("time,symbol\n", "line 1: expected a header with time, symbol, price, found time, symbol"),
        ("time,symbol,price\n", "expected at least one tick, found none"),
        ("time,symbol,price\n1,DOGE,1\n", "line 2: symbol: expected one of BTC-USDT, ETH-USDT, found 'DOGE'"),
        ("time,symbol,price\nnow,BTC-USDT,1\n", "line 2: time: expected whole milliseconds"),
        ("time,symbol,price\n2026-01-31T12:00:00,BTC-USDT,1\n", "line 2: time: expected whole milliseconds"),
        (
            "time,symbol,price\n1,BTC-USDT,-1\n",
            "line 2: price: expected a positive multiple of 0.01, found '-1'",
        ),
        (
            "time,symbol,price\n1,BTC-USDT,0\n",
            "line 2: price: expected a positive multiple of 0.01, found '0'",
        ),
        ("time,symbol,price\n1,BTC-USDT,1.005\n", "line 2: price: expected a positive multiple of 0.01"),
        ("time,symbol,price\n1,BTC-USDT\n", "line 2: price: expected a positive multiple of 0.01, found ''"),
        (
            "time,symbol,price\n5,BTC-USDT,1\n4,BTC-USDT,1\n",
            "line 3: time: expected 5 ms or later, found 4 ms",
        ),
        ('{"time": 1, "symbol"', "line 1: expected a JSON object"),
        ('{"time": 1, "symbol": "BTC-USDT", "price": 1}\n[]', "line 2: expected a JSON object"),
    ],
)
def test_a_wrong_file_of_ticks_is_refused_with_the_line_and_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^t: ") as caught:
        ticks.read("t", text, KNOWN)
    assert said in str(caught.value)


def test_a_replay_keeps_the_distances_divided_by_its_speed_and_a_loop_goes_on_for_ever() -> None:
    read = ticks.read("t", CSV, KNOWN)
    assert [after for after, _ in ticks.Replay(read, 2, False).schedule()] == [0, 0.25, 0.5]
    looping = ticks.Replay(read, 1, True).schedule()
    assert [next(looping)[0] for _ in range(7)] == [0, 0.5, 1, 1.5, 2, 2.5, 3]


def test_a_wrong_file_or_speed_stops_the_start_with_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = ["--journal", str(tmp_path / "journal")]
    file = tmp_path / "ticks.csv"
    file.write_text(CSV)
    for arguments in (
        ["--ticks", str(tmp_path / "none")],
        ["--ticks", str(file), "--speed", "0"],
        ["--loop"],
    ):
        assert main(["venue", *journal, *arguments]) == 78
    shown = capsys.readouterr().err
    assert "No such file" in shown
    assert "--speed: expected 0.001 to 1000000, found 0" in shown
    assert "--speed and --loop are for --ticks" in shown


def marks(venue: PaperVenue) -> dict[str, str]:
    return {i["symbol"]: i["mark"] for i in venue.call("GET", "/v1/instruments")}


def test_the_market_follows_the_file_and_stands_still_at_its_end(own_nats: Nats, tmp_path: Path) -> None:
    """And an order is matched at the prices of the file."""
    file = tmp_path / "ticks.csv"
    file.write_text(CSV)
    venue = PaperVenue(tmp_path / "venue", own_nats.url, "--ticks", str(file), "--speed", "2")
    venue.start()
    try:
        until(
            lambda: marks(venue) == {"BTC-USDT": "49000", "ETH-USDT": "3000.5"}, 5, "the file's last prices"
        )
        new = {"id": "r.1", "symbol": "BTC-USDT", "quantity": "0.01", "side": "buy", "type": "market"}
        found = venue.call("POST", "/v1/orders", {**new, "time_in_force": "IOC"})
        assert [fill["price"] for fill in found["fills"]] == ["49000.02"]
    finally:
        venue.kill()


def test_replayed_ticks_become_the_ledgers_marks(
    own_redis: Redis, own_nats: Nats, tmp_path: Path, start_app: Callable[..., Any]
) -> None:
    need("nats-server")
    file = tmp_path / "ticks.jsonl"
    file.write_text(JSONL)
    venue = PaperVenue(tmp_path / "venue", own_nats.url, "--ticks", str(file), "--speed", "5", "--loop")
    venue.start()
    try:
        section = f'venue: {{adapter: paper, url: "{venue.url}"}}\n'
        start_app(own_redis.url, own_nats.url, extra=section)

        def mark(symbol: str) -> str:
            return own_redis.cli("HGET", "trading:marks", symbol).partition("|")[0]

        until(lambda: mark("BTC-USDT") == str(50_000 * SCALE), 10, "one price of the file")
        until(lambda: mark("BTC-USDT") == str(49_000 * SCALE), 10, "the other")
        until(lambda: mark("BTC-USDT") == str(50_000 * SCALE), 10, "the first again")
        assert mark("ETH-USDT") == str(3_000 * SCALE + SCALE // 2)
        assert listening(venue.port)
    finally:
        venue.kill()
