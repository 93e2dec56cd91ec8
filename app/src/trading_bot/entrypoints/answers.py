"""Decisions and errors as answers: a status and a body, the same over HTTP and over NATS."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from trading_bot.domain import money
from trading_bot.domain.admission import Admission, Code, refusal_from
from trading_bot.domain.order import Order, order_from_fingerprint
from trading_bot.domain.position import Account, signed_value
from trading_bot.errors import AccessDenied, Malformed, TooMany, TradingError, Unavailable
from trading_bot.ports import Event, OrderView

RETRY_AFTER = 1


class Answer(NamedTuple):
    """``problem`` tells an application/problem+json body from an application/json one."""

    status: int
    body: bytes
    problem: bool = False
    retry_after: int | None = None


class Accepted(msgspec.Struct, frozen=True):
    """The answer to an accepted order: the same for ever, whoever answers. ``accepted_at`` is in ms."""

    account_id: str
    client_order_id: str
    status: str
    accepted_at: int
    version: str
    slot: str


class Replacing(msgspec.Struct, frozen=True):
    """The answer to an accepted replacement; as ``Accepted``, for ever the same."""

    account_id: str
    client_order_id: str
    replaces: str
    status: str
    accepted_at: int
    version: str
    slot: str


class OrderBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """An order as ``GET`` shows it. Amounts are strings, ``accepted_at`` is in ms."""

    account_id: str
    client_order_id: str
    status: str
    symbol: str
    side: str
    type: str
    quantity: str
    filled: str
    time_in_force: str
    reduce_only: bool
    accepted_at: int
    version: str
    slot: str
    price: str | None = None
    stop_price: str | None = None
    reason: str = ""
    rule: str = ""
    limit: str = ""
    value: str = ""
    cancel_wanted: bool = False
    total_quantity: str = ""
    replaces: str = ""
    replaced_by: str = ""
    awaits: str = ""


def order_body(view: OrderView) -> OrderBody:
    order = view.order
    return OrderBody(
        account_id=order.account,
        client_order_id=order.client_order_id,
        status=view.state.value,
        symbol=order.symbol,
        side=order.side.value,
        type=order.type.value,
        quantity=money.show(order.quantity),
        filled=money.show(view.filled),
        time_in_force=order.time_in_force.value,
        reduce_only=order.reduce_only,
        accepted_at=view.at,
        version=view.version,
        slot=view.slot,
        price=None if order.price is None else money.show(order.price),
        stop_price=None if order.stop_price is None else money.show(order.stop_price),
        reason=view.reason,
        rule=view.rule,
        limit=view.limit,
        value=view.value,
        cancel_wanted=view.cancel_wanted,
        total_quantity=money.show(view.total) if view.replaces else "",
        replaces=view.replaces,
        replaced_by=view.replaced_by,
        awaits=view.awaits,
    )


def account_body(
    name: str, account: Account, marks: Mapping[str, int], margin_rate: Decimal
) -> dict[str, Any]:
    """``GET /api/account``. What needs a mark that is missing is null, as is a ratio to nothing."""

    def shown(value: int | None) -> str | None:
        return None if value is None else money.show(value)

    def ratio(numerator: int | None, denominator: Decimal | int | None) -> str | None:
        if numerator is None or not denominator or denominator < 0:
            return None
        return f"{Decimal(numerator) / Decimal(denominator):.6f}"

    unrealised, equity, exposure = account.unrealised(marks), account.equity(marks), account.exposure(marks)
    peak = account.peak
    positions = []
    for symbol, position in sorted(account.positions.items()):
        mark = marks.get(symbol)
        value = None if mark is None else signed_value(position.quantity, mark)
        positions.append(
            {
                "symbol": symbol,
                "quantity": money.show(position.quantity),
                "average_price": money.show(position.average_price),
                "mark": shown(mark),
                "value": shown(value),
                "unrealised_pnl": None if value is None else money.show(value - position.cost),
                "realised_pnl": money.show(position.realised),
                "fees": money.show(position.fees),
            }
        )
    return {
        "account_id": name,
        "cash": money.show(account.cash),
        "equity": shown(equity),
        "exposure": shown(exposure),
        "leverage": ratio(exposure, equity),
        "margin_level": None if exposure is None else ratio(equity, exposure * margin_rate),
        "unrealised_pnl": shown(unrealised),
        "realised_pnl": money.show(sum(p.realised for p in account.positions.values())),
        "drawdown": None if equity is None else ratio(max(peak - equity, 0), peak),
        "reduce_only": account.latched,
        "open_orders": account.open_orders,
        "positions": positions,
    }


_AMOUNTS = ("quantity", "price", "fee", "filled", "peak", "equity")
_WORDS = ("symbol", "side", "venue", "trade", "reason", "by", "version", "slot")


def event_body(event: Event) -> dict[str, Any]:
    """An event as clients are shown it: amounts as decimals, a refusal as in the answer. What a later version
    adds is left out."""
    fields = event.fields
    body: dict[str, Any] = {"type": fields["e"], "account_id": fields.get("account", "")}
    if "order" in fields:
        body["client_order_id"] = fields["order"]
    if "at" in fields:
        body["at"] = int(fields["at"])
    body |= {name: money.show(int(fields[name])) for name in _AMOUNTS if fields.get(name)}
    body |= {name: fields[name] for name in _WORDS if fields.get(name)}
    if fields.get("next"):
        body["replaced_by"] = fields["next"]
    if "rule" in fields:
        refusal = refusal_from(fields["rule"], fields["limit"], fields["value"])
        body |= {"rule": refusal.rule, "limit": refusal.limit, "value": refusal.value}
    if "fp" in fields:
        order = order_from_fingerprint("", fields.get("order", ""), fields["fp"])
        body["order"] = {
            "symbol": order.symbol,
            "side": order.side.value,
            "type": order.type.value,
            "quantity": money.show(order.quantity),
            "price": None if order.price is None else money.show(order.price),
            "stop_price": None if order.stop_price is None else money.show(order.stop_price),
            "time_in_force": order.time_in_force.value,
            "reduce_only": order.reduce_only,
        }
    return body


_encode = msgspec.json.Encoder().encode


def of_admission(order: Order, admission: Admission) -> Answer:
    code = admission.code
    if code is Code.ACCEPTED:
        body = _encode(
            Accepted(
                order.account,
                order.client_order_id,
                "accepted",
                admission.at,
                admission.version,
                admission.slot,
            )
        )
        return Answer(200 if admission.again else 201, body)
    return _not_accepted(order.account, order.client_order_id, admission)


def of_replacement(account: str, id: str, replaced: str, admission: Admission, state: str) -> Answer:
    """The answer to ``PUT`` of the order ``replaced``, which is in ``state``, with the new order's ``id``."""
    code = admission.code
    if code is Code.ACCEPTED:
        body = Replacing(account, id, replaced, "accepted", admission.at, admission.version, admission.slot)
        return Answer(200 if admission.again else 201, _encode(body))
    if code is Code.NONE:
        return problem(404, "not-found", "The account has no order by this id")
    detail: dict[str, Any] = {"account_id": account, "client_order_id": replaced, "order_status": state}
    if code is Code.DONE:
        return problem(409, "done", "The order is done", **detail)
    if code is Code.PENDING:
        return problem(409, "pending", "The order is being cancelled or replaced", **detail)
    return _not_accepted(account, id, admission)


def _not_accepted(account: str, id: str, admission: Admission) -> Answer:
    code = admission.code
    detail: dict[str, Any] = {"account_id": account, "client_order_id": id}
    refusal = admission.refusal
    if refusal is not None:
        detail |= {
            "rule": refusal.rule,
            "limit": refusal.limit,
            "value": refusal.value,
            "version": admission.version,
            "slot": admission.slot,
        }
    if code is Code.REFUSED:
        return problem(422, "refused", "Refused by a risk check", **detail)
    if code is Code.CONFLICT:
        return problem(409, "conflict", "The client order id names another order", **detail)
    if code is Code.THROTTLED:
        return problem(429, "throttled", "Too many requests for the account", RETRY_AFTER, **detail)
    return problem(503, "halted", "Trading is halted", RETRY_AFTER, **detail)


def of_rehearsal(account: str, id: str, admission: Admission) -> Answer:
    """The answer to an order with ``X-Dry-Run: true``: the decision that would have been made."""
    refusal = admission.refusal
    body = {
        "account_id": account,
        "client_order_id": id,
        "dry_run": True,
        "decision": admission.code.name.lower(),
        "again": admission.again,
        "rule": refusal.rule if refusal else None,
        "limit": refusal.limit if refusal else None,
        "value": refusal.value if refusal else None,
    }
    return Answer(200, _encode(body))


def of_error(error: TradingError) -> Answer:
    if isinstance(error, Malformed):
        return problem(400, "malformed", "The request cannot be understood", errors=error.errors)
    if isinstance(error, AccessDenied):
        return problem(error.status, "access-denied", "Access denied", detail=str(error))
    if isinstance(error, TooMany):
        return problem(429, "too-many", "Too many at once", RETRY_AFTER, detail=str(error), limit=error.limit)
    if isinstance(error, Unavailable):
        return problem(
            503,
            "unavailable",
            "Not available now; nothing was decided, send it again",
            RETRY_AFTER,
            dependency=error.dependency,
            detail=error.reason,
        )
    return internal()


def internal() -> Answer:
    return problem(500, "internal", "A defect; the log names it by the request id")


def problem(status: int, name: str, title: str, retry_after: int | None = None, **members: Any) -> Answer:
    """An RFC 9457 problem."""
    body = {"type": f"urn:trading-bot:problem:{name}", "title": title, "status": status, **members}
    return Answer(status, _encode(body), True, retry_after)
