"""The HTTP API as a plain ASGI application: no framework between a request and the desk."""

from __future__ import annotations

import itertools
import re
import traceback
from collections.abc import Awaitable, Callable, Iterable
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs

import msgspec

from trading_bot.domain.lifecycle import FINAL, State
from trading_bot.domain.order import valid_account, valid_client_order_id
from trading_bot.entrypoints import answers
from trading_bot.entrypoints.answers import Answer, problem
from trading_bot.errors import Malformed, TradingError
from trading_bot.ports import Access, CancelCode, Log, Role
from trading_bot.service.instance import Instance
from trading_bot.service.submit import OrderDesk

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

BODY_LIMIT = 16 * 1024
HEADER_LIMIT = 16 * 1024

_JSON = (b"content-type", b"application/json")
_PROBLEM = (b"content-type", b"application/problem+json")
_TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_CLOSE = (b"connection", b"close")
_LENGTHS = [(b"content-length", str(n).encode()) for n in range(1024)]

_encode = msgspec.json.Encoder().encode
Metrics = Callable[[], Awaitable[bytes]]


class Request:
    """What a handler needs of a request."""

    __slots__ = ("account", "authorization", "body", "id", "method", "path", "query")

    def __init__(self, scope: Scope, id: str) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.id = id
        self.authorization = ""
        self.account = ""
        self.body = b""


class HttpApi:
    """The ASGI application."""

    def __init__(
        self,
        instance: Instance,
        desk: OrderDesk,
        access: Access,
        metrics: Metrics,
        margin_rate: Decimal,
        count: Callable[[int], None],
        log: Log,
    ) -> None:
        self._instance = instance
        self._desk = desk
        self._access = access
        self._metrics = metrics
        self._margin_rate = margin_rate
        self._count = count
        self._log = log
        self._numbers = itertools.count(1)
        self._prefix = f"{instance.identity.instance}-{instance.identity.slot}-{instance.started_ms:x}"
        self._routes: dict[tuple[str, str], Callable[[Request], Awaitable[Answer]]] = {
            ("POST", "/api/orders"): self._submit,
            ("GET", "/api/orders"): self._list,
            ("GET", "/api/account"): self._show_account,
            ("GET", "/health/live"): self._live,
            ("GET", "/health/ready"): self._ready,
            ("GET", "/api/status"): self._status,
            ("GET", "/metrics"): self._show_metrics,
        }
        self._one_order = {"GET": self._show_order, "DELETE": self._cancel}
        self._paths = {path for _, path in self._routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"cannot serve {scope['type']}")
        request = Request(scope, "")
        answer = self._read_headers(scope["headers"], request)
        if not request.id:
            request.id = f"{self._prefix}-{next(self._numbers)}"
        if answer is None and request.method in ("POST", "PUT", "PATCH", "DELETE"):
            answer = await self._read_body(receive, request)
        if answer is None:
            answer = await self._answer(request)
        status, body, is_problem, retry_after = answer
        self._count(status)
        headers = [
            _TEXT if request.path == "/metrics" and status == 200 else _PROBLEM if is_problem else _JSON,
            _LENGTHS[len(body)] if len(body) < 1024 else (b"content-length", str(len(body)).encode()),
            (b"x-request-id", request.id.encode()),
        ]
        if retry_after is not None:
            headers.append((b"retry-after", str(retry_after).encode()))
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self._instance.draining:
            headers.append(_CLOSE)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _read_headers(self, headers: Iterable[tuple[bytes, bytes]], request: Request) -> Answer | None:
        size = 0
        try:
            for name, value in headers:
                size += len(name) + len(value)
                if name == b"authorization":
                    request.authorization = value.decode("ascii")
                elif name == b"x-account-id":
                    request.account = value.decode("ascii")
                elif name == b"x-request-id" and len(value) <= 64 and value.isalnum():
                    request.id = value.decode("ascii")
        except UnicodeDecodeError:
            return problem(400, "malformed", "A header is not ASCII")
        if size > HEADER_LIMIT:
            return problem(431, "headers-too-large", "The headers are too large", limit=HEADER_LIMIT)
        return None

    async def _read_body(self, receive: Receive, request: Request) -> Answer | None:
        message = await receive()
        body = message.get("body", b"")
        while message.get("more_body"):
            if len(body) > BODY_LIMIT:
                break
            message = await receive()
            body += message.get("body", b"")
        if len(body) > BODY_LIMIT:
            return problem(413, "body-too-large", "The body is too large", limit=BODY_LIMIT)
        request.body = body
        return None

    async def _answer(self, request: Request) -> Answer:
        handler = self._routes.get((request.method, request.path))
        if handler is None and request.path.startswith("/api/orders/"):
            handler = self._one_order.get(request.method)
            if handler is None:
                return problem(405, "method-not-allowed", "The path does not know this method")
        if handler is None:
            if request.path in self._paths:
                return problem(405, "method-not-allowed", "The path does not know this method")
            return problem(404, "not-found", "There is nothing at this path")
        try:
            return await handler(request)
        except TradingError as error:
            answer = answers.of_error(error)
            if answer.status == 500:
                self._log("defect", request=request.id, error=repr(error))
            return answer
        except Exception as error:
            self._log("defect", request=request.id, error=repr(error), trace=traceback.format_exc())
            return answers.internal()

    def _account_of(self, request: Request, role: Role) -> str:
        """The account that the request names and its token owns."""
        self._access.require(request.authorization, role)
        if not valid_account(request.account):
            raise Malformed({"X-Account-Id": "a header with 1 to 64 of A-Z a-z 0-9 _ -"})
        self._access.require(request.authorization, role, request.account)
        return request.account

    @staticmethod
    def _order_id(request: Request) -> str:
        id = request.path.removeprefix("/api/orders/")
        if not valid_client_order_id(id):
            raise Malformed({"client_order_id": "1 to 64 of A-Z a-z 0-9 _ . -"})
        return id

    async def _list(self, request: Request) -> Answer:
        account = self._account_of(request, "observe")
        query = {
            k: v[-1] for k, v in parse_qs(request.query.decode("latin-1"), keep_blank_values=True).items()
        }
        errors = dict.fromkeys(query.keys() - {"limit", "status"}, "no such parameter")
        limit, status = query.get("limit", "100"), query.get("status", "")
        if not re.fullmatch("[0-9]{1,4}", limit) or not 1 <= int(limit) <= 1000:
            errors["limit"] = "a whole number from 1 to 1000"
        if status not in ("", "open", *State):
            errors["status"] = "open, or one of " + ", ".join(State)
        if errors:
            raise Malformed(errors)
        views = await self._desk.orders(account, int(limit))
        if status == "open":
            views = [view for view in views if view.state not in FINAL]
        elif status:
            views = [view for view in views if view.state == status]
        return Answer(200, _encode({"orders": [answers.order_body(view) for view in views]}))

    async def _show_order(self, request: Request) -> Answer:
        account = self._account_of(request, "observe")
        view = await self._desk.order(account, self._order_id(request))
        if view is None:
            return problem(404, "not-found", "The account has no order by this id")
        return Answer(200, _encode(answers.order_body(view)))

    async def _cancel(self, request: Request) -> Answer:
        account = self._account_of(request, "trade")
        id = self._order_id(request)
        code, state = await self._desk.cancel(account, id, request.id)
        body = {"account_id": account, "client_order_id": id, "status": state}
        if code is CancelCode.CANCELLED:
            return Answer(200, _encode(body))
        if code is CancelCode.WANTED:
            return Answer(202, _encode({**body, "cancel_wanted": True}))
        if code is CancelCode.DONE:
            return problem(
                409, "done", "The order is done", account_id=account, client_order_id=id, order_status=state
            )
        if code is CancelCode.NONE:
            return problem(404, "not-found", "The account has no order by this id")
        return problem(429, "throttled", "Too many requests for the account", answers.RETRY_AFTER)

    async def _show_account(self, request: Request) -> Answer:
        account = self._account_of(request, "observe")
        state, marks = await self._desk.account(account)
        return Answer(200, _encode(answers.account_body(account, state, marks, self._margin_rate)))

    async def _submit(self, request: Request) -> Answer:
        account = self._account_of(request, "trade")
        return answers.of_admission(*await self._desk.submit(account, request.body, "http", request.id))

    async def _live(self, request: Request) -> Answer:
        return Answer(200, b'{"status":"live"}')

    async def _ready(self, request: Request) -> Answer:
        reasons = self._instance.not_ready()
        if not reasons:
            return Answer(200, b'{"status":"ready"}')
        return problem(503, "not-ready", "Not ready", answers.RETRY_AFTER, reasons=reasons)

    async def _status(self, request: Request) -> Answer:
        self._access.require(request.authorization, "observe")
        return Answer(200, _encode(await self._instance.status()))

    async def _show_metrics(self, request: Request) -> Answer:
        return Answer(200, await self._metrics())
