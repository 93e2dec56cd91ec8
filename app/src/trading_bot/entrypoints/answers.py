"""Decisions and errors as answers: a status and a body, the same over HTTP and over NATS."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from trading_bot.domain.admission import Admission, Code
from trading_bot.domain.order import Order
from trading_bot.errors import AccessDenied, Malformed, TradingError, Unavailable

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
    detail: dict[str, Any] = {"account_id": order.account, "client_order_id": order.client_order_id}
    refusal = admission.refusal
    if refusal is not None:
        detail |= {"rule": refusal.rule, "limit": refusal.limit, "value": refusal.value}
    if code is Code.REFUSED:
        return problem(422, "refused", "Refused by a risk check", **detail)
    if code is Code.CONFLICT:
        return problem(409, "conflict", "The client order id names another order", **detail)
    if code is Code.THROTTLED:
        return problem(429, "throttled", "Too many requests for the account", RETRY_AFTER, **detail)
    return problem(503, "halted", "Trading is halted", RETRY_AFTER, **detail)


def of_error(error: TradingError) -> Answer:
    if isinstance(error, Malformed):
        return problem(400, "malformed", "The request cannot be understood", errors=error.errors)
    if isinstance(error, AccessDenied):
        return problem(error.status, "access-denied", "Access denied", detail=str(error))
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
