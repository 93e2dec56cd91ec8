"""``ports.Venue`` over a real exchange's REST API, spoken by ccxt (``pip install 'trading-bot[ccxt]'``).

What is said here holds for the exchanges of ``EXCHANGES``, which were tested, and only for spot markets:

- An order carries a client order id that is computed from ours, and is asked for and cancelled by it.
- It carries its deadline as the exchange's own receive window, counted from the exchange's own clock, so
  that it does nothing with an order that arrives later. Without this nothing could ever be sent again safely.
- An order counts as refused only where the exchange says so in an answer that leaves no doubt. Silence, an
  error of the server, a limit of requests, a clock that is off, a duplicate: the order is asked for.
- There is no numbered list of reports: executions are learnt when an order is looked at, which is every
  ``venue.recheck_interval``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import ccxt.async_support as exchanges
from ccxt.base import errors

from trading_bot.domain import money
from trading_bot.domain.instrument import Instrument
from trading_bot.domain.lifecycle import State
from trading_bot.domain.order import Order, OrderType, TimeInForce
from trading_bot.errors import VenueRefused, VenueTimeout
from trading_bot.ports import Fill, Log, Report

EXCHANGES = ("binance",)
"""Those whose receive window, errors and ids were tested to mean what this module says."""

CLOCK_SECONDS = 300.0
"""How long a comparison with the exchange's clock is good for."""

CONNECT_SECONDS = 30.0
"""The list of all markets is long. Everything else has ``venue.request_timeout``."""

_MAX_WINDOW_MS = 60_000
_PAUSE_SECONDS = 1.0
_deadline: ContextVar[int | None] = ContextVar("deadline", default=None)

# Whatever else is raised leaves a doubt.
_REFUSED = (
    errors.InsufficientFunds, errors.InvalidOrder, errors.BadSymbol, errors.BadRequest, errors.MarketClosed,
    errors.OperationRejected, errors.NotSupported,
)  # fmt: skip
_DOUBTFUL = (errors.DuplicateOrderId, errors.InvalidNonce, errors.OrderNotFound)

_STATES = {
    "open": State.OPEN, "closed": State.FILLED, "canceled": State.CANCELLED, "expired": State.EXPIRED,
    "rejected": State.REJECTED,
}  # fmt: skip

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Settings:
    """``url`` replaces the exchange's own host, for a proxy or a test. ``key`` and ``secret`` are asked for
    at each connection. ``symbols`` are those whose prices are wanted."""

    exchange: str
    sandbox: bool
    timeout: float
    url: str
    symbols: tuple[str, ...]
    key: Callable[[], str]
    secret: Callable[[], str]


def _careful(base: Any) -> Any:
    """The exchange's class of ccxt, with the two things that it does not do by itself."""

    class Careful(base):  # type: ignore[misc]  # ccxt has no types
        def sign(
            self, path: str, api: Any = "public", method: str = "GET", params: Any = None,
            headers: Any = None, body: Any = None,
        ) -> Any:  # fmt: skip
            """The last moment before a request leaves: an order has as long as is left, or is not sent."""
            deadline = _deadline.get()
            if method == "POST" and deadline is not None:
                left = deadline - self.milliseconds()
                if left <= 0:
                    raise errors.RequestTimeout("its deadline passed before it was sent")
                params = {**(params or {}), "recvWindow": min(left, _MAX_WINDOW_MS)}
            return super().sign(path, api, method, params or {}, headers, body)

        def handle_errors(self, code: int, reason: str, *rest: Any) -> Any:
            """A broken server's word on what became of an order is worth nothing, whatever its body says."""
            if code >= 500:
                raise errors.ExchangeNotAvailable(f"{self.id} answered {code} {reason}")
            return super().handle_errors(code, reason, *rest)

    return Careful


class CcxtVenue:
    def __init__(self, settings: Settings, log: Log) -> None:
        self._settings = settings
        self._log = log
        exchange = _careful(getattr(exchanges, settings.exchange))(
            {
                "enableRateLimit": True,
                "timeout": round(CONNECT_SECONDS * 1000),
                "enableLastResponseHeaders": True,
                "options": {
                    "defaultType": "spot",
                    "fetchMarkets": {"types": ["spot"]},
                    "fetchCurrencies": False,
                },
            }
        )
        # Every number stays the text that the exchange sent.
        exchange.number = str
        exchange.set_sandbox_mode(settings.sandbox)
        if settings.url:
            exchange.urls["api"] = _at(settings.url, exchange.urls["api"])
        self._exchange = exchange
        self._clock_at = -CLOCK_SECONDS
        self._pause_until = 0.0
        self._connecting = asyncio.Lock()

    @property
    def name(self) -> str:
        return self._settings.exchange + ("-sandbox" if self._settings.sandbox else "")

    async def submit(self, order: Order, deadline_ms: int) -> Report:
        if order.type not in (OrderType.MARKET, OrderType.LIMIT) or order.time_in_force is TimeInForce.DAY:
            raise VenueRefused(f"{self.name} is not sent {order.type} orders, nor such for a day")
        symbol = _symbol(order)

        async def create() -> Any:
            exchange = self._exchange
            quantity, price = (
                money.show(order.quantity),
                None if order.price is None else money.show(order.price),
            )
            if symbol not in exchange.markets:
                raise VenueRefused(f"{self.name} has no market {symbol}")
            if Decimal(exchange.amount_to_precision(symbol, quantity)) != Decimal(quantity) or (
                price is not None and Decimal(exchange.price_to_precision(symbol, price)) != Decimal(price)
            ):
                raise VenueRefused(f"quantity or price do not fit the steps of {symbol} at {self.name}")
            parameters = {"clientOrderId": client_id(order)}
            if order.type is OrderType.LIMIT:
                parameters["timeInForce"] = order.time_in_force.value
            return await exchange.create_order(
                symbol, order.type.value, order.side.value, quantity, price, parameters
            )

        token = _deadline.set(deadline_ms)
        try:
            seconds = min(deadline_ms / 1000 - time.time(), self._settings.timeout)
            return await self._report(order, await self._call(create, seconds))
        except _REFUSED as error:
            # ccxt has no error of its own for this one.
            if isinstance(error, _DOUBTFUL) or "duplicate" in str(error).lower():
                raise VenueTimeout(f"the exchange may have it already: {error}") from None
            raise VenueRefused(str(error)) from None
        except errors.BaseError as error:
            raise VenueTimeout(_said(error)) from None
        finally:
            _deadline.reset(token)

    async def query(self, order: Order) -> Report | None:
        async def fetch() -> Any:
            return await self._exchange.fetch_order("", _symbol(order), {"clientOrderId": client_id(order)})

        async with _in_doubt():
            try:
                found = await self._call(fetch)
            except errors.OrderNotFound:
                return None
            return await self._report(order, found)

    async def cancel(self, order: Order) -> Report | None:
        async def cancel() -> Any:
            parameters = {"clientOrderId": client_id(order)}
            return await self._exchange.cancel_order("", _symbol(order), parameters)

        # What is not found is done already, or was never there: the answer to the question says which.
        async with _in_doubt():
            with contextlib.suppress(errors.OrderNotFound):
                await self._call(cancel)
        return await self.query(order)

    async def reports(self, after: int, wait: float) -> tuple[int, list[Report]]:
        """None: executions are learnt order by order."""
        await asyncio.sleep(wait)
        return after, []

    async def head(self) -> int:
        """0, once the exchange knows our key and its clock is known."""
        async with _in_doubt():
            await self._call(self._exchange.fetch_balance)
        return 0

    async def prices(self) -> dict[str, tuple[int, int]]:
        async def fetch() -> Any:
            wanted = {_market(symbol): symbol for symbol in self._settings.symbols}
            known = [name for name in wanted if name in self._exchange.markets]
            tickers = await self._exchange.fetch_tickers(known) if known else {}
            return {wanted[name]: ticker for name, ticker in tickers.items() if ticker["last"]}

        async with _in_doubt():
            found = await self._call(fetch)
        now = int(time.time() * 1000)
        return {symbol: (_scaled(ticker["last"]), now) for symbol, ticker in found.items()}

    async def instruments(self) -> list[Instrument]:
        async with _in_doubt():
            await self._call(_nothing)
        return [
            instrument
            for market in self._exchange.markets.values()
            if market["spot"] and market["active"] and (instrument := _instrument(market)) is not None
        ]

    async def close(self) -> None:
        await self._exchange.close()

    async def _call(self, work: Callable[[], Awaitable[Answer]], seconds: float | None = None) -> Answer:
        """What the exchange answers to ``work``, on a connection whose clock is known.

        Raises VenueTimeout, and ccxt's errors.
        """
        limit = self._settings.timeout if seconds is None else max(seconds, 0.001)
        if time.monotonic() < self._pause_until:
            raise VenueTimeout(f"{self.name} asked for a pause")
        try:
            await self._connect()
            async with asyncio.timeout(limit):
                return await work()
        except TimeoutError:
            raise VenueTimeout(f"no answer within {limit:.3g} s") from None
        except (errors.DDoSProtection, errors.RateLimitExceeded) as error:
            after = (self._exchange.last_response_headers or {}).get("Retry-After", "")
            pause = float(after) if after.isdigit() else _PAUSE_SECONDS
            self._pause_until = time.monotonic() + pause
            self._log("venue", outcome="pause", seconds=pause, reason=str(error)[:200])
            raise VenueTimeout(f"{self.name} asked for a pause of {pause:g} s") from None
        except (errors.InvalidNonce, errors.AuthenticationError) as error:
            # The clock is compared and the key read again before the next request.
            self._clock_at = -CLOCK_SECONDS
            raise VenueTimeout(_said(error)) from None
        except OSError as error:
            raise VenueTimeout(_said(error)) from None

    async def _connect(self) -> None:
        if time.monotonic() - self._clock_at < CLOCK_SECONDS:
            return
        async with self._connecting:
            if time.monotonic() - self._clock_at < CLOCK_SECONDS:
                return
            exchange = self._exchange
            exchange.apiKey, exchange.secret = self._settings.key(), self._settings.secret()
            before = exchange.options["timeDifference"]
            await exchange.load_markets()
            await exchange.load_time_difference()
            self._clock_at = time.monotonic()
            difference = exchange.options["timeDifference"]
            if abs(difference - before) > 100:
                self._log("venue", outcome="clock", ahead_ms=difference)

    async def _report(self, order: Order, found: Any) -> Report:
        state = _STATES.get(found["status"])
        if state is None:
            raise VenueTimeout(f"{self.name} shows a state that is not known: {found['status']}")
        filled = _scaled(found["filled"])
        fills = await self._fills(order, found["id"]) if filled else ()
        return Report(order.account, order.client_order_id, state, filled, fills, found["status"])

    async def _fills(self, order: Order, id: str) -> tuple[Fill, ...]:
        symbol = _symbol(order)

        async def fetch() -> Any:
            return await self._exchange.fetch_my_trades(symbol, None, 1000, {"orderId": id})

        trades = await self._call(fetch)
        return tuple(self._fill(symbol, trade) for trade in trades)

    def _fill(self, symbol: str, trade: Any) -> Fill:
        quantity, price = _scaled(trade["amount"]), _scaled(trade["price"])
        base, quote = symbol.split("/")
        cost, currency = trade["fee"]["cost"], trade["fee"]["currency"]
        fee = 0
        if currency == quote:
            fee = _scaled(cost)
        elif currency == base:
            fee = _scaled(str(Decimal(cost) * Decimal(trade["price"])))
        elif Decimal(cost):
            self._log("warning", detail=f"a fee of {cost} {currency} is not in the ledger", trade=trade["id"])
        # An exchange's trade ids are unique in a market only.
        return Fill(f"{symbol}:{trade['id']}", quantity, price, fee, int(trade["timestamp"]))


def client_id(order: Order) -> str:
    """Unique over all accounts, always the same, and of a length and alphabet that exchanges take."""
    digest = hashlib.sha256(f"{order.account}.{order.client_order_id}".encode()).hexdigest()
    return f"tb{digest[:30]}"


@contextlib.asynccontextmanager
async def _in_doubt() -> AsyncGenerator[None, None]:
    """Whatever goes wrong with a question leaves everything as it was."""
    try:
        yield
    except errors.BaseError as error:
        raise VenueTimeout(_said(error)) from None


async def _nothing() -> None:
    """Only the connection is wanted."""


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _symbol(order: Order) -> str:
    return _market(order.symbol)


def _market(symbol: str) -> str:
    return symbol.replace("-", "/")


def _scaled(text: str) -> int:
    return money.scale(Decimal(text))


def _instrument(market: Any) -> Instrument | None:
    """None for a market whose steps the ledger cannot hold exactly."""
    limits, precision = market["limits"]["amount"], market["precision"]
    tick, lot = _scaled(precision["price"]), _scaled(precision["amount"])
    if not tick or not lot or tick * lot % money.SCALE:
        return None
    minimum, maximum = _scaled(limits["min"]), min(_scaled(limits["max"]), money.MAX)
    symbol = f"{market['base']}-{market['quote']}"
    return Instrument(symbol, tick, lot, -(-minimum // lot) * lot, maximum // lot * lot)


def _at(url: str, addresses: Any) -> Any:
    """The same addresses on another host."""
    if isinstance(addresses, dict):
        return {name: _at(url, address) for name, address in addresses.items()}
    own = urlsplit(url)
    return urlunsplit(urlsplit(addresses)._replace(scheme=own.scheme, netloc=own.netloc))
