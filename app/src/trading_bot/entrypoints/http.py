"""The HTTP API as a plain ASGI application: no framework between a request and the desk."""

from __future__ import annotations

import functools
import itertools
import re
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable
from decimal import Decimal
from typing import Any, TypeVar
from urllib.parse import parse_qs

import msgspec

from trading_bot.domain.admission import Code
from trading_bot.domain.lifecycle import FINAL, State
from trading_bot.domain.order import valid_account, valid_client_order_id
from trading_bot.entrypoints import answers, sse
from trading_bot.entrypoints.answers import Answer, problem
from trading_bot.errors import Malformed, TradingError, Unavailable
from trading_bot.ports import Access, CancelCode, Log, Role
from trading_bot.service.hotfix import Signed
from trading_bot.service.instance import Instance
from trading_bot.service.streams import Streams
from trading_bot.service.submit import OrderDesk, decode
from trading_bot.service.switches import Switches

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

BODY_LIMIT = 16 * 1024
HEADER_LIMIT = 16 * 1024

_JSON = (b"content-type", b"application/json")
_PROBLEM = (b"content-type", b"application/problem+json")
_TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
_NO_CACHE = (b"cache-control", b"no-store")
_OTHER = {"/metrics": _TEXT, "/docs": (b"content-type", b"text/html; charset=utf-8")}
_CLOSE = (b"connection", b"close")
_STREAM = "/api/orders/stream"
_LENGTHS = [(b"content-length", str(n).encode()) for n in range(1024)]

_encode = msgspec.json.Encoder().encode
Metrics = Callable[[], Awaitable[bytes]]


class Request:
    """What a handler needs of a request."""

    __slots__ = ("account", "authorization", "body", "dry_run", "id", "last_event", "method", "path", "query")

    def __init__(self, scope: Scope, id: str) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.id = id
        self.authorization = ""
        self.account = ""
        self.last_event = ""
        self.body = b""
        self.dry_run = False


class Reason(msgspec.Struct, forbid_unknown_fields=True):
    reason: str = ""


class ResumeBody(msgspec.Struct, forbid_unknown_fields=True):
    """With an account its drawdown latch is lifted, without one the halt of all trading."""

    reason: str = ""
    account: str | None = None


class MaintenanceBody(msgspec.Struct, forbid_unknown_fields=True):
    seconds: int
    reason: str = ""


class FeaturesBody(msgspec.Struct, forbid_unknown_fields=True):
    features: list[str] | None = None
    reason: str = ""


class RevertBody(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    reason: str = ""


Body = TypeVar("Body")


def _read(request: Request, type_: type[Body]) -> Body:
    """The request's body; none at all counts as an empty object. Raises Malformed."""
    return decode(request.body or b"{}", type_)


class HttpApi:
    """The ASGI application."""

    def __init__(
        self,
        instance: Instance,
        desk: OrderDesk,
        switches: Switches,
        streams: Streams,
        access: Access,
        metrics: Metrics,
        margin_rate: Callable[[], Decimal],
        count: Callable[[int], None],
        log: Log,
        shadow: Callable[[], dict[str, Any]],
        debug: bool = False,
    ) -> None:
        """With ``debug`` each answer is a line of the log, without headers, query or body."""
        self._instance = instance
        self._desk = desk
        self._switches = switches
        self._streams = streams
        self._access = access
        self._metrics = metrics
        self._margin_rate = margin_rate
        self._count = count
        self._log = log
        self._shadow = shadow
        self._debug = debug
        self._numbers = itertools.count(1)
        self._prefix = f"{instance.identity.instance}-{instance.identity.slot}-{instance.started_ms:x}"
        self._routes: dict[tuple[str, str], Callable[[Request], Awaitable[Answer]]] = {
            ("POST", "/api/orders"): self._submit,
            ("GET", "/api/orders"): self._list,
            ("GET", "/api/account"): self._show_account,
            ("GET", "/health/live"): self._live,
            ("GET", "/health/ready"): self._ready,
            ("GET", "/api/status"): self._status,
            ("POST", "/api/trading/halt"): self._halt,
            ("POST", "/api/trading/resume"): self._resume,
            ("POST", "/api/degradation/enable"): self._degrade,
            ("POST", "/api/degradation/disable"): self._undegrade,
            ("POST", "/api/maintenance"): self._maintain,
            ("POST", "/api/features/enable"): self._enable,
            ("POST", "/api/features/disable"): self._disable,
            ("POST", "/api/hotfix/apply"): self._apply_hotfix,
            ("POST", "/api/hotfix/revert"): self._revert_hotfix,
            ("GET", "/api/hotfix"): self._list_hotfixes,
            ("GET", "/api/shadow"): self._show_shadow,
            ("GET", "/metrics"): self._show_metrics,
            ("GET", "/openapi.json"): self._show_contract,
            ("GET", "/docs"): self._show_docs,
        }
        self._one_order = {"GET": self._show_order, "PUT": self._replace, "DELETE": self._cancel}
        self._routes["GET", _STREAM] = self._live  # answered by _stream
        self._paths = {path for _, path in self._routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"cannot serve {scope['type']}")
        request = Request(scope, "")
        began = time.perf_counter()
        answer = self._read_headers(scope["headers"], request)
        if not request.id:
            request.id = f"{self._prefix}-{next(self._numbers)}"
        if answer is None and request.method in ("POST", "PUT", "PATCH", "DELETE"):
            answer = await self._read_body(receive, request)
        if answer is None and request.path == _STREAM and request.method == "GET":
            answer = await self._stream(request, receive, send)
            if answer is None:
                return
        if answer is None:
            answer = await self._answer(request)
        status, body, is_problem, retry_after = answer
        self._count(status)
        if self._debug:
            took = round((time.perf_counter() - began) * 1000, 3)
            self._log(
                "http", method=request.method, path=request.path, status=status, ms=took, request=request.id
            )
        headers = [
            _PROBLEM if is_problem else _OTHER.get(request.path, _JSON),
            _LENGTHS[len(body)] if len(body) < 1024 else (b"content-length", str(len(body)).encode()),
            (b"x-request-id", request.id.encode()),
        ]
        if retry_after is not None:
            headers.append((b"retry-after", str(retry_after).encode()))
        if status == 405:
            headers.append((b"allow", msgspec.json.decode(body).get("allow", "").encode()))
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
                elif name == b"last-event-id":
                    request.last_event = value.decode("ascii")
                elif name == b"x-dry-run":
                    request.dry_run = value == b"true"
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

    @staticmethod
    def _wrong_method(known: Iterable[str]) -> Answer:
        title = "The path does not know this method"
        return problem(405, "method-not-allowed", title, allow=", ".join(sorted(known)))

    async def _answer(self, request: Request) -> Answer:
        handler = self._routes.get((request.method, request.path))
        elsewhere = request.path in self._paths
        if handler is None and not elsewhere and request.path.startswith("/api/orders/"):
            handler = self._one_order.get(request.method)
            if handler is None:
                return self._wrong_method(self._one_order)
        if handler is None:
            if elsewhere:
                return self._wrong_method([m for m, path in self._routes if path == request.path])
            return problem(404, "not-found", "There is nothing at this path")
        try:
            return await handler(request)
        except Exception as error:
            return self._failed(request, error)

    def _failed(self, request: Request, error: Exception) -> Answer:
        answer = answers.of_error(error) if isinstance(error, TradingError) else answers.internal()
        if answer.status == 500:
            trace = "" if isinstance(error, TradingError) else "".join(traceback.format_exception(error))
            self._log("defect", request=request.id, error=repr(error), trace=trace)
        return answer

    async def _stream(self, request: Request, receive: Receive, send: Send) -> Answer | None:
        """Serve a stream to its end, or say why there is none."""
        begun = False
        try:
            account = self._account_of(request, "observe")
            self._need_feature("order_stream")
            if request.last_event and not re.fullmatch("[0-9]{1,15}", request.last_event):
                raise Malformed({"Last-Event-ID": "the id of an event of this stream"})
            await self._desk.settled()
            if self._streams.closing.is_set():
                raise Unavailable("instance", "draining")
            with self._streams.place(account) as follow:
                self._count(200)
                headers = [_EVENTS, _NO_CACHE, (b"x-request-id", request.id.encode())]
                if self._instance.draining:
                    headers.append(_CLOSE)
                begun = True
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                self._log("stream", account=account, outcome="begun", request=request.id)
                after = int(request.last_event) if request.last_event else None
                on = functools.partial(self._switches.on, "order_stream")
                why, last = await sse.serve(follow, after, on, self._streams.closing, receive, send)
                self._log("stream", account=account, outcome="ended", reason=why, request=request.id)
                await sse.finish(send, last)
            return None
        except Exception as error:
            answer = self._failed(request, error)
            # Once the head was sent no other answer can be: the connection is closed, the log says why.
            return None if begun else answer

    def _account_of(self, request: Request, role: Role) -> str:
        """The account that the request names and its token owns."""
        self._access.require(request.authorization, role)
        if not valid_account(request.account):
            raise Malformed({"X-Account-Id": "a header with 1 to 64 of A-Z a-z 0-9 _ -"})
        self._access.require(request.authorization, role, request.account)
        return request.account

    def _need_feature(self, feature: str) -> None:
        if not self._switches.on(feature):
            raise Unavailable(feature, "this feature is switched off")

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
        self._need_feature("order_listing")
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

    async def _replace(self, request: Request) -> Answer:
        account = self._account_of(request, "trade")
        replaced = self._order_id(request)
        id, admission, state = await self._desk.replace(
            account, replaced, request.body, "http", request.id, dry=request.dry_run
        )
        if request.dry_run and admission.code not in (Code.NONE, Code.DONE, Code.PENDING):
            return answers.of_rehearsal(account, id, admission)
        return answers.of_replacement(account, id, replaced, admission, state)

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
        return Answer(200, _encode(answers.account_body(account, state, marks, self._margin_rate())))

    async def _submit(self, request: Request) -> Answer:
        account = self._account_of(request, "trade")
        if request.dry_run:
            order, admission = await self._desk.rehearse(account, request.body, request.id)
            return answers.of_rehearsal(account, order.client_order_id, admission)
        return answers.of_admission(*await self._desk.submit(account, request.body, "http", request.id))

    def _operator(self, request: Request) -> str:
        return self._access.require(request.authorization, "operate")

    async def _halt(self, request: Request) -> Answer:
        who, body = self._operator(request), _read(request, Reason)
        await self._switches.halt(who, body.reason, request.id)
        return await self._mode()

    async def _resume(self, request: Request) -> Answer:
        who, body = self._operator(request), _read(request, ResumeBody)
        if body.account is not None and not valid_account(body.account):
            raise Malformed({"account": "1 to 64 of A-Z a-z 0-9 _ -"})
        await self._switches.resume(who, body.reason, request.id, body.account or "")
        return await self._mode()

    async def _degrade(self, request: Request) -> Answer:
        who, body = self._operator(request), _read(request, Reason)
        await self._switches.degrade(True, who, body.reason, request.id)
        return await self._mode()

    async def _undegrade(self, request: Request) -> Answer:
        who, body = self._operator(request), _read(request, Reason)
        await self._switches.degrade(False, who, body.reason, request.id)
        return await self._mode()

    async def _maintain(self, request: Request) -> Answer:
        who, body = self._operator(request), _read(request, MaintenanceBody)
        await self._switches.maintain(body.seconds, who, body.reason, request.id)
        return Answer(200, _encode({"maintenance": self._switches.maintenance()}))

    async def _mode(self) -> Answer:
        return Answer(200, _encode({"mode": await self._switches.mode()}))

    async def _enable(self, request: Request) -> Answer:
        return await self._switch(request, on=True)

    async def _disable(self, request: Request) -> Answer:
        return await self._switch(request, on=False)

    async def _switch(self, request: Request, *, on: bool) -> Answer:
        who, body = self._operator(request), _read(request, FeaturesBody)
        changed = await self._switches.switch(on, body.features, who, body.reason, request.id)
        return Answer(200, _encode({"changed": changed, "features": await self._switches.features()}))

    async def _apply_hotfix(self, request: Request) -> Answer:
        who, body = self._operator(request), _read(request, Signed)
        await self._switches.apply(body, who, request.id)
        return await self._hotfixes()

    async def _revert_hotfix(self, request: Request) -> Answer:
        who, body = self._operator(request), _read(request, RevertBody)
        await self._switches.revert(body.id, who, body.reason, request.id)
        return await self._hotfixes()

    async def _list_hotfixes(self, request: Request) -> Answer:
        self._access.require(request.authorization, "observe")
        return await self._hotfixes()

    async def _hotfixes(self) -> Answer:
        return Answer(200, _encode({"hotfixes": self._switches.shown()}))

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

    async def _show_shadow(self, request: Request) -> Answer:
        self._access.require(request.authorization, "observe")
        return Answer(200, _encode(self._shadow()))

    async def _show_contract(self, request: Request) -> Answer:
        from trading_bot.entrypoints import openapi

        return Answer(200, _encode(openapi.document(self._instance.identity.version)))

    async def _show_docs(self, request: Request) -> Answer:
        from trading_bot.entrypoints import openapi

        self._need_feature("api_docs")
        return Answer(200, openapi.page(self._instance.identity.version))

    async def _show_metrics(self, request: Request) -> Answer:
        return Answer(200, await self._metrics())
