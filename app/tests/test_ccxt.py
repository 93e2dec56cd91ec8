"""A real exchange's protocol, spoken by ccxt, against a server that checks and fails as the exchange does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from binance import KEY, LATE_SECONDS, SECRET, Binance
from trading_bot.adapters.venues.ccxt import CcxtVenue, Settings, client_id
from trading_bot.domain.instrument import Instrument
from trading_bot.domain.lifecycle import State
from trading_bot.domain.money import SCALE
from trading_bot.domain.order import Order, OrderType, Side, TimeInForce
from trading_bot.entrypoints.cli import main
from trading_bot.errors import VenueRefused, VenueTimeout
from trading_bot.ports import Report

from servers import App, Nats, Redis, order, until, verified

BUY = Order(
    "acc", "o1", "BTC-USDT", Side.BUY, OrderType.LIMIT, SCALE // 100, 60_000 * SCALE, None, False,
    TimeInForce.GTC,
)  # fmt: skip
DOUBTFUL = ("silent after", "broken after", "broken before", "cut off after", "unknown after", "limit")


@pytest.fixture
def binance() -> Iterator[Binance]:
    server = Binance()
    server.start()
    yield server
    server.stop()


class Logged:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def __call__(self, event: str, /, **fields: Any) -> None:
        self.lines.append({"event": event, **fields})


def trade(
    binance: Binance, work: Callable[[CcxtVenue], Awaitable[Any]], log: Logged | None = None, **changes: Any
) -> Any:
    """What ``work`` gives with a venue of its own."""
    settings = Settings(
        "binance", True, 2.0, binance.url, ("BTC-USDT", "DOGE-USDT"), lambda: KEY, lambda: SECRET
    )

    async def run() -> Any:
        venue = CcxtVenue(replace(settings, **changes), log or Logged())
        try:
            return await work(venue)
        finally:
            await venue.close()

    return asyncio.run(run())


async def submit(venue: CcxtVenue, sent: Order = BUY, seconds: float = 2.0) -> Report:
    return await venue.submit(sent, int((time.time() + seconds) * 1000))


def changed(**fields: Any) -> Order:
    return msgspec.structs.replace(BUY, **fields)


def test_an_order_that_is_filled_comes_back_with_its_executions_to_the_last_digit(binance: Binance) -> None:
    """Trade ids carry their market; a fee in the base currency is what it is worth in the quote's."""
    report = trade(binance, submit)
    assert (report.account, report.client_order_id, report.state) == ("acc", "o1", State.FILLED)
    assert report.filled == SCALE // 100
    assert [(f.trade, f.quantity, f.price, f.fee) for f in report.fills] == [
        ("BTC/USDT:1", SCALE // 400, 50_000 * SCALE, SCALE // 8),
        ("BTC/USDT:2", SCALE * 3 // 400, 50_000 * SCALE, SCALE * 3 // 8),
    ]
    [at_exchange] = binance.orders
    assert at_exchange["clientOrderId"] == client_id(BUY)
    assert (at_exchange["origQty"], at_exchange["price"]) == ("0.01", "60000")


def test_a_resting_order_is_asked_for_and_cancelled_by_our_own_id(binance: Binance) -> None:
    resting = changed(price=40_000 * SCALE)

    async def work(venue: CcxtVenue) -> None:
        assert (await submit(venue, resting)).state is State.OPEN
        asked = await venue.query(resting)
        assert asked is not None
        assert (asked.state, asked.filled, asked.fills) == (State.OPEN, 0, ())
        cancelled = await venue.cancel(resting)
        assert cancelled is not None
        assert cancelled.state is State.CANCELLED
        again = await venue.cancel(resting)
        assert again is not None
        assert again.state is State.CANCELLED, "what is done stays as it is"
        assert await venue.query(changed(client_order_id="none")) is None
        assert await venue.cancel(changed(client_order_id="none")) is None

    trade(binance, work)
    assert binance.requests["POST order"] == 1


def test_a_market_order_and_one_that_finds_nothing_are_told_apart(binance: Binance) -> None:
    async def work(venue: CcxtVenue) -> None:
        market = changed(client_order_id="m", type=OrderType.MARKET, price=None, side=Side.SELL)
        sold = await submit(venue, market)
        assert sold.state is State.FILLED
        assert sum(fill.fee for fill in sold.fills) == SCALE // 2, "0.1% of 500 in the quote currency"
        nothing = changed(client_order_id="i", price=40_000 * SCALE, time_in_force=TimeInForce.IOC)
        assert (await submit(venue, nothing)).state is State.EXPIRED

    trade(binance, work)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"quantity": 10 * SCALE}, "insufficient balance"),
        ({"quantity": 1234}, "do not fit the steps"),
        ({"price": 60_000 * SCALE + 1}, "do not fit the steps"),
        ({"symbol": "DOGE-USDT"}, "no market DOGE/USDT"),
        ({"type": OrderType.STOP, "stop_price": SCALE}, "is not sent stop orders"),
        ({"time_in_force": TimeInForce.DAY}, "nor such for a day"),
    ],
)
def test_a_definite_no_is_a_refusal_and_nothing_is_rounded_in_silence(
    binance: Binance, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(VenueRefused, match=said):
        trade(binance, lambda venue: submit(venue, changed(**fields)))
    assert binance.orders == []


@pytest.mark.parametrize("fault", DOUBTFUL)
def test_whatever_leaves_a_doubt_is_never_a_refusal_and_the_order_is_found_by_asking(
    binance: Binance, fault: str
) -> None:
    """Even where a broken server's body says that it was rejected."""

    async def work(venue: CcxtVenue) -> Report | None:
        await venue.head()
        binance.faults["POST order"] = fault
        with pytest.raises(VenueTimeout):
            await submit(venue)
        binance.faults.clear()
        if fault == "limit":
            with pytest.raises(VenueTimeout, match="asked for a pause"):
                await venue.query(BUY)
            await asyncio.sleep(1.05)  # what the exchange asked for
        return await venue.query(BUY)

    found = trade(binance, work)
    executed = fault not in ("limit", "broken before")
    assert (found is not None) == executed
    assert len(binance.orders) == (1 if executed else 0)
    assert binance.requests["POST order"] == 1, "nothing is sent twice by itself"


def test_an_order_that_arrives_after_its_deadline_is_not_executed(binance: Binance) -> None:
    """The exchange itself refuses it, by its own clock: so what was asked for in vain may be sent again."""

    async def work(venue: CcxtVenue) -> None:
        await venue.head()
        binance.faults["POST order"] = "late"
        with pytest.raises(VenueTimeout):
            await submit(venue, seconds=1)
        binance.faults.clear()
        await asyncio.sleep(LATE_SECONDS)  # until it has arrived
        assert await venue.query(BUY) is None

    trade(binance, work)
    assert binance.requests["POST order"] == 1
    assert binance.orders == []


def test_a_deadline_that_has_passed_sends_nothing(binance: Binance) -> None:
    with pytest.raises(VenueTimeout):
        trade(binance, lambda venue: submit(venue, seconds=-1))
    assert binance.requests["POST order"] == 0


def test_an_open_order_that_is_sent_again_is_in_doubt_not_refused(binance: Binance) -> None:
    resting = changed(price=40_000 * SCALE)

    async def work(venue: CcxtVenue) -> None:
        await submit(venue, resting)
        with pytest.raises(VenueTimeout, match="may have it already"):
            await submit(venue, resting)

    trade(binance, work)
    assert len(binance.orders) == 1


@pytest.mark.parametrize("ahead_ms", [-90_000, 90_000])
def test_a_clock_that_is_off_is_compared_and_a_jump_is_a_doubt_until_it_is_compared_again(
    binance: Binance, ahead_ms: int
) -> None:
    log = Logged()
    binance.ahead_ms = ahead_ms

    async def work(venue: CcxtVenue) -> None:
        assert (await submit(venue)).state is State.FILLED
        binance.ahead_ms = -ahead_ms
        with pytest.raises(VenueTimeout, match="InvalidNonce"):
            await submit(venue, changed(client_order_id="o2"))
        assert (await submit(venue, changed(client_order_id="o3"))).state is State.FILLED

    trade(binance, work, log)
    assert [round(line["ahead_ms"], -4) for line in log.lines] == [-ahead_ms, ahead_ms]


def test_a_wrong_secret_keeps_the_venue_unreachable_and_refuses_nobody(binance: Binance) -> None:
    secrets = iter(["wrong", "wrong", SECRET])

    async def work(venue: CcxtVenue) -> None:
        with pytest.raises(VenueTimeout, match="AuthenticationError"):
            await venue.head()
        with pytest.raises(VenueTimeout, match="AuthenticationError"):
            await submit(venue)
        assert await venue.head() == 0, "it is read again"

    trade(binance, work, secret=lambda: next(secrets))
    assert binance.orders == []


def test_the_markets_become_instruments(binance: Binance) -> None:
    assert trade(binance, lambda venue: venue.instruments()) == [
        Instrument("BTC-USDT", SCALE // 100, SCALE // 100_000, SCALE // 100_000, 9000 * SCALE)
    ]


def test_the_prices_of_what_is_traded_become_marks(binance: Binance) -> None:
    found = trade(binance, lambda venue: venue.prices())
    assert {symbol: price for symbol, (price, _) in found.items()} == {"BTC-USDT": 50_000 * SCALE}


def test_a_client_id_is_always_the_same_and_of_a_kind_that_exchanges_take() -> None:
    ids = {client_id(changed(account=a, client_order_id=o)) for a in ("a", "b") for o in ("1", "2" * 64)}
    assert len(ids) == 4
    assert all(len(id) == 32 and id.isalnum() for id in ids)
    assert client_id(BUY) == client_id(changed(quantity=1))


def test_production_has_to_be_asked_for(binance: Binance) -> None:
    async def address(venue: CcxtVenue) -> str:
        return str(venue._exchange.urls["api"]["private"])

    assert trade(binance, address, url="") == "https://testnet.binance.vision/api/v3"
    assert trade(binance, address, url="", sandbox=False) == "https://api.binance.com/api/v3"
    assert trade(binance, address).startswith("http://127.0.0.1:")


# The whole executor on it


def section(binance: Binance, directory: Path) -> str:
    for name, text in (("key", KEY), ("secret", SECRET)):
        (directory / name).write_text(text + "\n")
    return (
        f"venue: {{adapter: ccxt, exchange_url: '{binance.url}', request_timeout: 1s, recheck_interval: 1s,"
        f" api_key_file: {directory / 'key'}, api_secret_file: {directory / 'secret'}}}\n"
    )


def test_the_executor_trades_on_it_and_executes_once_whatever_goes_wrong(
    binance: Binance, own_redis: Redis, own_nats: Nats, tmp_path: Path, start_app: Callable[..., App]
) -> None:
    app = start_app(own_redis.url, own_nats.url, extra=section(binance, tmp_path))
    until(lambda: own_redis.cli("HGET", "trading:marks", "BTC-USDT"), 10, "a mark")
    asked = {}
    for n, fault in enumerate(("", *DOUBTFUL, "late")):
        binance.faults["POST order"] = fault
        assert app.call("POST", "/api/orders", order(f"e{n}", price="60000"))[0] == 201
        if fault:
            until(
                lambda n=n: app.call("GET", f"/api/orders/e{n}")[1]["status"] == "unknown",
                10,
                f"{fault}: unknown",
            )
        binance.faults.clear()
        asked[f"e{n}"] = fault
    for id, fault in asked.items():
        until(
            lambda id=id: app.call("GET", f"/api/orders/{id}")[1]["status"] == "filled",
            30,
            f"{fault}: filled",
        )
    assert len(binance.orders) == len(asked)
    assert len({o["clientOrderId"] for o in binance.orders}) == len(asked)
    position = app.call("GET", "/api/account")[1]["positions"][0]
    assert position["quantity"] == f"{len(asked) * 0.001:g}"
    verdict = verified(own_redis)
    assert verdict["ok"], verdict
    assert verdict["fills"] == 2 * len(asked)


def test_an_execution_that_comes_later_is_found_and_a_cancel_reaches_the_exchange(
    binance: Binance, own_redis: Redis, own_nats: Nats, tmp_path: Path, start_app: Callable[..., App]
) -> None:
    app = start_app(own_redis.url, own_nats.url, extra=section(binance, tmp_path))
    until(lambda: own_redis.cli("HGET", "trading:marks", "BTC-USDT"), 10, "a mark")

    def status(id: str) -> Any:
        return app.call("GET", f"/api/orders/{id}")[1]["status"]

    for id in ("r1", "r2"):
        app.call("POST", "/api/orders", order(id, price="40000"))
        until(lambda id=id: status(id) == "open", 10, "it rests")
    assert app.call("DELETE", "/api/orders/r1")[0] == 202
    until(lambda: status("r1") == "cancelled", 10, "the exchange cancelled it")
    [other] = [o for o in binance.orders if o["status"] == "NEW"]
    binance.trades.append(
        {
            "symbol": "BTCUSDT", "id": 77, "orderId": other["orderId"], "price": "40000.00", "qty": "0.001",
            "quoteQty": "40", "commission": "0.01", "commissionAsset": "BNB", "time": 1, "isBuyer": True,
            "isMaker": True, "isBestMatch": True,
        }
    )  # fmt: skip
    other.update(status="FILLED", executedQty="0.001", cummulativeQuoteQty="40")
    until(lambda: status("r2") == "filled", 10, "the next look finds it")
    assert any("BNB is not in the ledger" in line.get("detail", "") for line in app.lines())
    assert verified(own_redis)["ok"]


def test_an_instance_without_usable_keys_is_not_ready(
    binance: Binance, redis: Redis, nats: Nats, tmp_path: Path, start_app: Callable[..., App]
) -> None:
    extra = section(binance, tmp_path)
    (tmp_path / "secret").write_text("wrong")
    app = start_app(redis.url, nats.url, ready=False, extra=extra)

    def why() -> str:
        return str(app.call("GET", "/health/ready")[1].get("reasons", {}).get("venue", ""))

    until(lambda: "Authentication" in why(), 10, "it says why")
    (tmp_path / "secret").write_text(SECRET)
    until(app.ready, 10, "the file is read again")


def test_a_config_without_keys_or_with_another_exchange_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("venue: {adapter: ccxt}")
    assert main(["check-config", str(path)]) == 78
    path.write_text("venue: {adapter: ccxt, exchange: kraken, api_key_file: a, api_secret_file: b}")
    assert main(["check-config", str(path)]) == 78
    shown = capsys.readouterr().err
    assert "venue.api_secret_file: expected a file, with the adapter ccxt, found none" in shown
    assert "venue.exchange: expected one of binance, found 'kraken'" in shown
