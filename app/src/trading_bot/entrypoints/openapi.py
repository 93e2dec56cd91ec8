"""The contract of the HTTP API, as OpenAPI 3.1, and a page that shows it. A test holds it to the routes."""

from __future__ import annotations

import html
from typing import Any

from trading_bot.domain.features import REGISTRY
from trading_bot.domain.lifecycle import State
from trading_bot.service.switches import LONGEST_MAINTENANCE

Schema = dict[str, Any]

_AMOUNT: Schema = {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,8})?$"}
_AMOUNT_IN: Schema = {"type": "string", "pattern": r"^[0-9]{1,8}(\.[0-9]{1,8})?$", "examples": ["0.001"]}
_RATIO: Schema = {"type": ["string", "null"]}
_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_ACCOUNT: Schema = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}
_ORDER_ID: Schema = {"type": "string", "pattern": r"^[A-Za-z0-9_.-]{1,64}$"}
_STATES = [state.value for state in State]


def _object(
    required: dict[str, Schema], optional: dict[str, Schema] | None = None, closed: bool = False
) -> Schema:
    schema: Schema = {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
    }
    if closed:
        schema["additionalProperties"] = False
    return schema


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


SCHEMAS: dict[str, Schema] = {
    "Problem": _object(
        {"type": _TEXT, "title": _TEXT, "status": {"type": "integer", "minimum": 400, "maximum": 599}},
        {
            "detail": _TEXT,
            "errors": {"type": "object", "additionalProperties": _TEXT},
            "rule": _TEXT,
            "limit": {"type": ["string", "integer"]},
            "value": _TEXT,
            "dependency": _TEXT,
            "reasons": {"type": "object", "additionalProperties": _TEXT},
        },
    ),
    "NewOrder": _object(
        {
            "client_order_id": _ORDER_ID,
            "symbol": {
                "type": "string",
                "pattern": "^[A-Z0-9]{1,15}(-[A-Z0-9]{1,15}){0,2}$",
                "examples": ["BTC-USDT"],
            },
            "side": {"enum": ["buy", "sell"]},
            "type": {"enum": ["market", "limit", "stop", "stop_limit"]},
            "quantity": _AMOUNT_IN,
        },
        {
            "price": {"anyOf": [_AMOUNT_IN, {"type": "null"}]},
            "stop_price": {"anyOf": [_AMOUNT_IN, {"type": "null"}]},
            "reduce_only": {"type": "boolean"},
            "time_in_force": {"enum": ["GTC", "IOC", "FOK", "DAY", None]},
        },
        closed=True,
    ),
    "Replacement": _object(
        {"client_order_id": _ORDER_ID},
        {name: {"anyOf": [_AMOUNT_IN, {"type": "null"}]} for name in ("quantity", "price", "stop_price")},
        closed=True,
    ),
    "Replacing": _object(
        {
            "account_id": _ACCOUNT,
            "client_order_id": _ORDER_ID,
            "replaces": _ORDER_ID,
            "status": {"const": "accepted"},
            "accepted_at": _COUNT,
            "version": _TEXT,
            "slot": _TEXT,
        }
    ),
    "Accepted": _object(
        {
            "account_id": _ACCOUNT,
            "client_order_id": _ORDER_ID,
            "status": {"const": "accepted"},
            "accepted_at": _COUNT,
            "version": _TEXT,
            "slot": _TEXT,
        }
    ),
    "Rehearsed": _object(
        {
            "account_id": _ACCOUNT,
            "client_order_id": _ORDER_ID,
            "dry_run": {"const": True},
            "decision": {"enum": ["accepted", "refused", "conflict", "throttled", "halted"]},
            "again": {"type": "boolean"},
            "rule": {"type": ["string", "null"]},
            "limit": {"type": ["string", "null"]},
            "value": {"type": ["string", "null"]},
        }
    ),
    "Order": _object(
        {
            "account_id": _ACCOUNT,
            "client_order_id": _ORDER_ID,
            "status": {"enum": _STATES},
            "symbol": _TEXT,
            "side": {"enum": ["buy", "sell"]},
            "type": {"enum": ["market", "limit", "stop", "stop_limit"]},
            "quantity": _AMOUNT,
            "filled": _AMOUNT,
            "time_in_force": {"enum": ["GTC", "IOC", "FOK", "DAY"]},
            "reduce_only": {"type": "boolean"},
            "accepted_at": _COUNT,
            "version": _TEXT,
            "slot": _TEXT,
        },
        {
            "price": _AMOUNT,
            "stop_price": _AMOUNT,
            "reason": _TEXT,
            "rule": _TEXT,
            "limit": _TEXT,
            "value": _TEXT,
            "cancel_wanted": {"type": "boolean"},
            "total_quantity": _AMOUNT,
            "replaces": _ORDER_ID,
            "replaced_by": _ORDER_ID,
            "awaits": _ORDER_ID,
        },
    ),
    "Orders": _object({"orders": {"type": "array", "items": _ref("Order")}}),
    "Cancelled": _object(
        {"account_id": _ACCOUNT, "client_order_id": _ORDER_ID, "status": {"enum": _STATES}},
        {"cancel_wanted": {"type": "boolean"}},
    ),
    "Account": _object(
        {
            "account_id": _ACCOUNT,
            "cash": _AMOUNT,
            "equity": _RATIO,
            "exposure": _RATIO,
            "leverage": _RATIO,
            "margin_level": _RATIO,
            "unrealised_pnl": _RATIO,
            "realised_pnl": _AMOUNT,
            "drawdown": _RATIO,
            "reduce_only": {"type": "boolean"},
            "open_orders": _COUNT,
            "positions": {"type": "array", "items": {"type": "object"}},
        }
    ),
    "Status": _object(
        {
            "version": _TEXT,
            "release_id": _TEXT,
            "slot": _TEXT,
            "instance": _TEXT,
            "image": _TEXT,
            "config_hash": _TEXT,
            "mode": {"enum": ["normal", "reduce_only", "halted", "unknown"]},
            "maintenance": {"type": "boolean"},
            "features": {"type": "object", "additionalProperties": {"type": "boolean"}},
            "hotfixes": {"type": "array", "items": _ref("Hotfix")},
            "traffic": {"oneOf": [_ref("Traffic"), {"type": "null"}]},
            "started_at": _TEXT,
            "draining": {"type": "boolean"},
            "ready": {"type": "boolean"},
        }
    ),
    "Traffic": _object(
        {
            "stable": _TEXT,
            "canary": _TEXT,
            "salt": _TEXT,
            "cut": _COUNT,
            "shadow": {"enum": ["", "blue", "green"]},
        }
    ),
    "Decision": _object({"outcome": _TEXT, "rule": _TEXT}, {"limit": _TEXT, "value": _TEXT}),
    "Difference": _object(
        {
            "type": _TEXT,
            "side": _TEXT,
            "stable": _ref("Decision"),
            "canary": _ref("Decision"),
            "count": _COUNT,
            "examples": {
                "type": "array",
                "maxItems": 3,
                "items": _object(
                    {
                        "account": _TEXT,
                        "client_order_id": _TEXT,
                        "stable": _ref("Decision"),
                        "canary": _ref("Decision"),
                    }
                ),
            },
        }
    ),
    "Shadow": _object(
        {
            "since": _COUNT,
            "compared": _COUNT,
            "skipped": {"type": "object", "additionalProperties": _COUNT},
            "differences": {"type": "array", "maxItems": 200, "items": _ref("Difference")},
        }
    ),
    "Hotfix": _object(
        {
            "id": _TEXT,
            "settings": {"type": "object", "additionalProperties": _TEXT},
            "reason": _TEXT,
            "expires": _COUNT,
        }
    ),
    "Hotfixes": _object({"hotfixes": {"type": "array", "items": _ref("Hotfix")}}),
    "Mode": _object({"mode": {"enum": ["normal", "reduce_only", "halted", "unknown"]}}),
    "Maintenance": _object({"maintenance": {"type": "boolean"}}),
    "Features": _object(
        {
            "changed": {"type": "array", "items": {"enum": list(REGISTRY)}},
            "features": {"type": "object", "additionalProperties": {"type": "boolean"}},
        }
    ),
    "Health": _object({"status": {"enum": ["live", "ready"]}}),
    "Reason": _object({}, {"reason": _TEXT}, closed=True),
    "Resume": _object(
        {"reason": {"type": "string", "minLength": 1}},
        {"account": {"anyOf": [_ACCOUNT, {"type": "null"}]}},
        closed=True,
    ),
    "Seconds": _object(
        {"seconds": {"type": "integer", "minimum": 0, "maximum": LONGEST_MAINTENANCE}},
        {"reason": _TEXT},
        closed=True,
    ),
    "FeatureNames": _object(
        {},
        {
            "features": {
                "anyOf": [
                    {"type": "array", "items": {"enum": [f.name for f in REGISTRY.values() if not f.core]}},
                    {"type": "null"},
                ]
            },
            "reason": _TEXT,
        },
        closed=True,
    ),
    "Signed": _object({"payload": _TEXT, "signature": _TEXT}, closed=True),
    "Revert": _object({"id": _TEXT}, {"reason": _TEXT}, closed=True),
}

_TITLES = {
    200: "Done",
    201: "Accepted",
    202: "The venue is asked to cancel",
    400: "The request cannot be understood; errors names each field",
    401: "No token, or one that is not known",
    403: "The token lacks the role or the account",
    404: "No such order",
    405: "The path does not know the method",
    409: "The id names another order, or the order is done",
    413: "The body is too large",
    422: "Refused by a risk check, with rule, limit and value",
    429: "Too many requests of the account; see Retry-After",
    431: "The headers are too large",
    503: "Halted, draining, or without Redis or NATS; see Retry-After",
}
_ALWAYS = (400, 405, 431)
_GUARDED = (*_ALWAYS, 401, 403, 503)


def _answer(status: int, schema: str | None) -> Schema:
    if schema is None:
        return {"description": _TITLES[status], "content": {"text/plain": {"schema": _TEXT}}}
    kind = "application/problem+json" if schema == "Problem" else "application/json"
    answer: Schema = {"description": _TITLES[status], "content": {kind: {"schema": _ref(schema)}}}
    if status in (429, 503):
        answer["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return answer


def _call(
    summary: str,
    good: dict[int, str | None],
    bad: tuple[int, ...],
    *,
    account: bool = False,
    body: str | None = None,
    body_required: bool = False,
    parameters: tuple[Schema, ...] = (),
    guarded: bool = True,
) -> Schema:
    call: Schema = {
        "summary": summary,
        "responses": {
            **{str(status): _answer(status, schema) for status, schema in good.items()},
            **{str(status): _answer(status, "Problem") for status in sorted(bad) if status not in good},
        },
    }
    headers = []
    if account:
        headers.append({"name": "X-Account-Id", "in": "header", "required": True, "schema": _ACCOUNT})
    if headers or parameters:
        call["parameters"] = [*headers, *parameters]
    if body is not None:
        call["requestBody"] = {
            "required": body_required,
            "content": {"application/json": {"schema": _ref(body)}},
        }
    if guarded:
        call["security"] = [{"bearer": []}]
    return call


_ID = {"name": "client_order_id", "in": "path", "required": True, "schema": _ORDER_ID}
_DRY = {"name": "X-Dry-Run", "in": "header", "required": False, "schema": {"enum": ["true", "false"]}}
_LAST_EVENT = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": "^[0-9]{1,15}$"},
}
_LIMIT = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000}}
_STATUS = {"name": "status", "in": "query", "schema": {"enum": ["open", *_STATES]}}


def _operate(summary: str, answer: str, body: str, required: bool = False) -> Schema:
    return _call(summary, {200: answer}, (*_GUARDED, 413), body=body, body_required=required)


PATHS: dict[str, dict[str, Schema]] = {
    "/api/orders": {
        "post": _call(
            "Decide an order: 201 the first time, 200 the same answer again. With X-Dry-Run nothing is kept.",
            {200: "Accepted", 201: "Accepted"},
            (*_GUARDED, 409, 413, 422, 429),
            account=True,
            body="NewOrder",
            body_required=True,
            parameters=(_DRY,),
        ),
        "get": _call(
            "The account's latest accepted orders, newest first",
            {200: "Orders"},
            _GUARDED,
            account=True,
            parameters=(_LIMIT, _STATUS),
        ),
    },
    "/api/orders/stream": {
        "get": _call(
            "The account's events as they happen, as Server-Sent Events",
            {200: None},
            (*_GUARDED, 429),
            account=True,
            parameters=(_LAST_EVENT,),
        )
    },
    "/api/orders/{client_order_id}": {
        "get": _call("One order", {200: "Order"}, (*_GUARDED, 404), account=True, parameters=(_ID,)),
        "put": _call(
            "Replace by another order, in one step: 201 the first time, 200 the same answer again",
            {200: "Replacing", 201: "Replacing"},
            (*_GUARDED, 404, 409, 413, 422, 429),
            account=True,
            body="Replacement",
            body_required=True,
            parameters=(_ID, _DRY),
        ),
        "delete": _call(
            "Cancel: 200 where it had not been sent, 202 where the venue is asked",
            {200: "Cancelled", 202: "Cancelled"},
            (*_GUARDED, 404, 409, 413, 429),
            account=True,
            parameters=(_ID,),
        ),
    },
    "/api/account": {
        "get": _call("Positions, exposure, leverage, margin, PnL", {200: "Account"}, _GUARDED, account=True)
    },
    "/api/shadow": {"get": _call("Where a release on trial decides otherwise", {200: "Shadow"}, _GUARDED)},
    "/api/status": {"get": _call("What runs here", {200: "Status"}, _GUARDED)},
    "/api/trading/halt": {"post": _operate("Stop taking orders, everywhere", "Mode", "Reason")},
    "/api/trading/resume": {
        "post": _operate("Lift the halt, or an account's drawdown latch", "Mode", "Resume", required=True)
    },
    "/api/degradation/enable": {"post": _operate("Reduce-only, everywhere", "Mode", "Reason")},
    "/api/degradation/disable": {"post": _operate("Back to normal", "Mode", "Reason")},
    "/api/maintenance": {
        "post": _operate(
            "For so many seconds orders wait for Redis and NATS; 0 ends it",
            "Maintenance",
            "Seconds",
            required=True,
        )
    },
    "/api/features/enable": {"post": _operate("Switch features on", "Features", "FeatureNames")},
    "/api/features/disable": {
        "post": _operate(
            "Switch features off; without names all that are not core", "Features", "FeatureNames"
        )
    },
    "/api/hotfix": {"get": _call("The hotfixes in force", {200: "Hotfixes"}, _GUARDED)},
    "/api/hotfix/apply": {
        "post": _operate("Apply a signed, expiring, tightening override", "Hotfixes", "Signed", required=True)
    },
    "/api/hotfix/revert": {"post": _operate("End a hotfix early", "Hotfixes", "Revert", required=True)},
    "/health/live": {"get": _call("Whether the process serves", {200: "Health"}, _ALWAYS, guarded=False)},
    "/health/ready": {
        "get": _call("Whether it takes orders", {200: "Health"}, (*_ALWAYS, 503), guarded=False)
    },
    "/metrics": {"get": _call("Prometheus text", {200: None}, _ALWAYS, guarded=False)},
    "/openapi.json": {"get": _call("This document", {200: "Document"}, _ALWAYS, guarded=False)},
    "/docs": {"get": _call("This document, to read", {200: None}, (*_ALWAYS, 503), guarded=False)},
}
PATHS["/api/orders/stream"]["get"]["responses"]["200"]["content"] = {"text/event-stream": {"schema": _TEXT}}
PATHS["/docs"]["get"]["responses"]["200"]["content"] = {"text/html": {"schema": _TEXT}}
SCHEMAS["Document"] = {"type": "object"}
for _call_, _answer_ in (
    (PATHS["/api/orders"]["post"], "Accepted"),
    (PATHS["/api/orders/{client_order_id}"]["put"], "Replacing"),
):
    _call_["responses"]["200"]["content"]["application/json"]["schema"] = {
        "anyOf": [_ref(_answer_), _ref("Rehearsed")]
    }


def document(version: str) -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Trading executor",
            "version": version,
            "description": "Amounts are strings. Errors are application/problem+json (RFC 9457).",
        },
        "paths": PATHS,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def page(version: str) -> bytes:
    """The contract as one page without scripts."""
    rows = []
    for path, calls in PATHS.items():
        for method, call in calls.items():
            answers = ", ".join(f"{s} {a['description']}" for s, a in call["responses"].items())
            rows.append(
                f"<tr><td><code>{method.upper()}</code></td><td><code>{html.escape(path)}</code></td>"
                f"<td>{html.escape(call['summary'])}</td><td><small>{html.escape(answers)}</small></td></tr>"
            )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Trading executor</title>"
        "<style>body{font:15px/1.4 system-ui;margin:2em;max-width:90em}"
        "td{padding:.3em .6em;vertical-align:top;border-top:1px solid #ccc}</style>"
        f"<h1>Trading executor {html.escape(version)}</h1><p>The whole contract: "
        '<a href="/openapi.json">openapi.json</a>.</p>'
        f"<table>{''.join(rows)}</table></html>"
    ).encode()
