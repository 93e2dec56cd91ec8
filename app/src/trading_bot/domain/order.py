"""An order as the client meant it, and the canonical form that identifies it."""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec

from trading_bot.domain import money
from trading_bot.errors import Malformed


class Side(StrEnum):
    BUY = "buy"
    SELL = "sell"


class OrderType(StrEnum):
    MARKET = "market"
    LIMIT = "limit"
    STOP = "stop"
    STOP_LIMIT = "stop_limit"


class TimeInForce(StrEnum):
    GTC = "GTC"
    IOC = "IOC"
    FOK = "FOK"
    DAY = "DAY"


class OrderRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /api/orders``, as it travels. Amounts are strings."""

    client_order_id: str
    symbol: str
    side: Side
    type: OrderType
    quantity: str
    price: str | None = None
    stop_price: str | None = None
    reduce_only: bool = False
    time_in_force: TimeInForce | None = None


class ReplaceRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``PUT /api/orders/{client_order_id}``. What is left out stays as it is; ``quantity`` is
    what is wanted in all, with what has been filled."""

    client_order_id: str
    quantity: str | None = None
    price: str | None = None
    stop_price: str | None = None


class Order(msgspec.Struct, frozen=True):
    """A valid order. Quantity and prices are scaled integers (see ``money``)."""

    account: str
    client_order_id: str
    symbol: str
    side: Side
    type: OrderType
    quantity: int
    price: int | None
    stop_price: int | None
    reduce_only: bool
    time_in_force: TimeInForce


def replacement_from(request: ReplaceRequest, replaced: Order, total: int) -> Order:
    """The order that ``request`` means in the place of ``replaced``, of which ``total`` was wanted. Raises
    Malformed."""
    if request.client_order_id == replaced.client_order_id:
        raise Malformed({"client_order_id": "another one than that of the order which is replaced"})

    def kept(price: int | None) -> str | None:
        return None if price is None else money.show(price)

    whole = OrderRequest(
        request.client_order_id,
        replaced.symbol,
        replaced.side,
        replaced.type,
        money.show(total) if request.quantity is None else request.quantity,
        kept(replaced.price) if request.price is None else request.price,
        kept(replaced.stop_price) if request.stop_price is None else request.stop_price,
        replaced.reduce_only,
        replaced.time_in_force,
    )
    return order_from(replaced.account, whole)


_ACCOUNT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CLIENT_ORDER_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SYMBOL = re.compile(r"[A-Z0-9]{1,15}(?:-[A-Z0-9]{1,15}){0,2}")

RESERVED = frozenset({"stream"})
"""Would-be ids under which ``/api/orders/`` has something else."""

_PRICED = frozenset({OrderType.LIMIT, OrderType.STOP_LIMIT})
_STOPPED = frozenset({OrderType.STOP, OrderType.STOP_LIMIT})
_AMOUNT = "a positive decimal string with at most 8 decimals and below 90000000"


def valid_account(account: str) -> bool:
    """Whether ``account`` can name an account: it is a token of NATS subjects and of Redis keys."""
    return _ACCOUNT.fullmatch(account) is not None


def valid_client_order_id(client_order_id: str) -> bool:
    """Whether ``client_order_id`` can name an order: it is a part of URLs and of Redis keys."""
    return _CLIENT_ORDER_ID.fullmatch(client_order_id) is not None


def valid_symbol(symbol: str) -> bool:
    """Whether ``symbol`` can name an instrument: it is a token of NATS subjects and of Redis fields."""
    return _SYMBOL.fullmatch(symbol) is not None


def order_from(account: str, request: OrderRequest) -> Order:
    """The order that ``request`` means for ``account``.

    Raises Malformed with every field that is wrong. Market and stop orders default to IOC and GTC,
    orders with a price to GTC.
    """
    errors: dict[str, str] = {}
    if not valid_account(account):
        errors["account"] = "1 to 64 of A-Z a-z 0-9 _ -"
    if not valid_client_order_id(request.client_order_id):
        errors["client_order_id"] = "1 to 64 of A-Z a-z 0-9 _ . -"
    elif request.client_order_id in RESERVED:
        errors["client_order_id"] = f"none of {', '.join(sorted(RESERVED))}: the API has a path of that name"
    if _SYMBOL.fullmatch(request.symbol) is None:
        errors["symbol"] = "an instrument such as BTC-USDT"
    quantity = money.parse(request.quantity)
    if not quantity:
        errors["quantity"] = _AMOUNT
    price = _amount("price", request.price, request.type in _PRICED, request.type, errors)
    stop_price = _amount("stop_price", request.stop_price, request.type in _STOPPED, request.type, errors)
    time_in_force = request.time_in_force
    if time_in_force is None:
        time_in_force = TimeInForce.IOC if request.type is OrderType.MARKET else TimeInForce.GTC
    elif request.type is OrderType.MARKET and time_in_force not in (TimeInForce.IOC, TimeInForce.FOK):
        errors["time_in_force"] = "IOC or FOK for a market order: it never rests"
    elif request.type in _STOPPED and time_in_force not in (TimeInForce.GTC, TimeInForce.DAY):
        errors["time_in_force"] = "GTC or DAY for a stop: it waits for its price"
    if errors or quantity is None:
        raise Malformed(errors)
    return Order(
        account,
        request.client_order_id,
        request.symbol,
        request.side,
        request.type,
        quantity,
        price,
        stop_price,
        request.reduce_only,
        time_in_force,
    )


def _amount(
    field: str, text: str | None, wanted: bool, type_: OrderType, errors: dict[str, str]
) -> int | None:
    if text is None:
        if wanted:
            errors[field] = f"{_AMOUNT}, since the type is {type_.value}"
        return None
    if not wanted:
        errors[field] = f"nothing, since the type is {type_.value}"
        return None
    value = money.parse(text)
    if not value:
        errors[field] = _AMOUNT
    return value


def fingerprint(order: Order) -> str:
    """What makes two orders under one client order id the same order.

    Every version computes it alike, for ever: the fields below in this order, amounts as scaled
    integers. A field that a later version adds is appended as ``|name=value`` and only where it differs
    from its default, so that an order without it keeps its fingerprint.
    """
    return (
        f"{order.symbol}|{order.side.value}|{order.type.value}|{order.quantity}"
        f"|{'' if order.price is None else order.price}"
        f"|{'' if order.stop_price is None else order.stop_price}"
        f"|{order.time_in_force.value}|{1 if order.reduce_only else 0}"
    )


def order_from_fingerprint(account: str, client_order_id: str, text: str) -> Order:
    """The order that a fingerprint was computed from; fields appended by later versions are ignored."""
    symbol, side, type_, quantity, price, stop_price, time_in_force, reduce_only = text.split("|")[:8]
    return Order(
        account,
        client_order_id,
        symbol,
        Side(side),
        OrderType(type_),
        int(quantity),
        int(price) if price else None,
        int(stop_price) if stop_price else None,
        reduce_only == "1",
        TimeInForce(time_in_force),
    )
