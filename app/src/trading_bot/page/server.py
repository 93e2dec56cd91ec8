"""The page's HTTP: GET and HEAD for those who are logged in; the only POSTs are those that log in and out."""

from __future__ import annotations

import asyncio
import html
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from importlib import resources
from typing import Any
from urllib.parse import parse_qs

import msgspec

from trading_bot.page.login import Door
from trading_bot.page.plots import SPANS
from trading_bot.page.view import View

LARGEST = 4096
_FILES = ("page.css", "login.css", "page.js", "plot.js", "icon.svg")
_encode = msgspec.json.Encoder().encode
_HTML, _JSON, _PLAIN = "text/html; charset=utf-8", "application/json", "text/plain; charset=utf-8"
_FIGURES = "text/plain; version=0.0.4; charset=utf-8"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
#: A report brings its style and a little script with it: it may run them, as nobody, and reach nothing.
_REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox allow-scripts"
)
_ALWAYS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    # With none at all a browser would not say either from which page a form is sent.
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    kind: str = _PLAIN
    headers: dict[str, str] = field(default_factory=dict)


def _said(status: int, text: str, **headers: str) -> Answer:
    return Answer(status, f"{text}\n".encode(), headers={k.replace("_", "-"): v for k, v in headers.items()})


class Application:
    """The ASGI application. ``secure``: it is reached over TLS."""

    def __init__(self, view: View, door: Door, *, title: str, secure: bool) -> None:
        self._view = view
        self._door = door
        self._cookie = "__Host-session" if secure else "session"
        self._flags = f"; Path=/; HttpOnly; SameSite=Strict{'; Secure' if secure else ''}"
        files = resources.files("trading_bot.page") / "static"
        self._files = {name: (files / name).read_bytes() for name in _FILES}
        self._page, self._login = (
            (files / name).read_text(encoding="utf-8").replace("{title}", html.escape(title))
            for name in ("page.html", "login.html")
        )
        # One at a time: each takes 32 MiB and a tenth of a second of a processor.
        self._checking = asyncio.Lock()
        self._logins = {"accepted": 0, "refused": 0, "throttled": 0}

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        answer = await self._answer(scope, receive)
        headers = {
            "content-type": answer.kind,
            "content-length": str(len(answer.body)),
            "content-security-policy": _POLICY,
            **_ALWAYS,
            **answer.headers,
        }
        sent = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": sent})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})

    async def _answer(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]]) -> Answer:
        method, path = scope["method"], scope["path"]
        posts = path in ("/login", "/logout")
        if method == "POST" and posts:
            return await self._post(scope, receive)
        if method not in ("GET", "HEAD") or path == "/logout":
            allowed = "POST" if path == "/logout" else "GET, HEAD, POST" if posts else "GET, HEAD"
            return _said(405, f"Expected {allowed}", allow=allowed)
        if path == "/health":
            return Answer(200, b'{"status":"live"}', _JSON)
        if path == "/metrics":
            return Answer(200, self._figures(), _FIGURES)
        name = path[1:]
        if name in self._files:
            kind = {"css": "text/css", "svg": "image/svg+xml"}.get(name.rpartition(".")[2], "text/javascript")
            return Answer(200, self._files[name], f"{kind}; charset=utf-8")
        who = self._door.who(self._session(scope))
        if path == "/login":
            return _moved("/") if who else self._asked("", 200)
        if who is None:
            return _said(401, "Log in first") if path == "/view.json" else _moved("/login")
        if path == "/":
            return Answer(200, self._page.replace("{user}", html.escape(who)).encode(), _HTML)
        if path == "/view.json":
            span = parse_qs(scope["query_string"].decode("latin-1")).get("span", ["1h"])[0]
            if span not in SPANS:
                return _said(400, f"span: expected one of {', '.join(SPANS)}")
            return Answer(200, _encode(await self._view.of(span)), _JSON)
        if path.startswith("/reports/"):
            report = await asyncio.to_thread(self._view.report, path.removeprefix("/reports/"))
            if report is not None:
                return Answer(200, report, _HTML, {"content-security-policy": _REPORT_POLICY})
        return _said(404, "There is nothing here")

    async def _post(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]]) -> Answer:
        site = _header(scope, b"sec-fetch-site")
        origin = _header(scope, b"origin")
        if site not in ("", "same-origin", "none") or (
            origin and origin.partition("://")[2] != _header(scope, b"host")
        ):
            return _said(403, "Only this page's own forms may ask that")
        if scope["path"] == "/logout":
            self._door.leave(self._session(scope))
            return _moved("/login", f"{self._cookie}=; Max-Age=0{self._flags}")
        body = await _body(receive)
        if body is None:
            return _said(413, f"At most {LARGEST} bytes are taken")
        form = parse_qs(body.decode("utf-8", "replace"))
        name, password = (form.get(key, [""])[0] for key in ("name", "password"))
        address = (scope.get("client") or ("?",))[0]
        async with self._checking:
            wait = self._door.wait(address, name)
            if wait:
                self._logins["throttled"] += 1
                answer = self._asked(f"Too many tries. Try again in {int(wait) // 60 + 1} minutes.", 429)
                answer.headers["retry-after"] = str(int(wait) + 1)
                return answer
            if not await asyncio.to_thread(self._door.knows, name, password):
                self._door.failed(address, name)
                self._logins["refused"] += 1
                return self._asked("This name and password do not belong together.", 401)
        self._logins["accepted"] += 1
        return _moved("/", f"{self._cookie}={self._door.enter(name)}{self._flags}")

    def _session(self, scope: dict[str, Any]) -> str:
        try:
            found = SimpleCookie(_header(scope, b"cookie")).get(self._cookie)
        except CookieError:
            return ""
        return found.value if found else ""

    def _asked(self, problem: str, status: int) -> Answer:
        said = f'<p id="problem" role="alert">{html.escape(problem)}</p>' if problem else ""
        return Answer(status, self._login.replace("{problem}", said).encode(), _HTML)

    def _figures(self) -> bytes:
        tries = "".join(
            f'page_logins_total{{outcome="{name}"}} {count}\n' for name, count in self._logins.items()
        )
        return (
            "# HELP page_logins_total Tries to log in.\n# TYPE page_logins_total counter\n"
            f"{tries}"
            "# HELP page_prometheus_up 0 while the last look at Prometheus had no answer.\n"
            "# TYPE page_prometheus_up gauge\n"
            f"page_prometheus_up {int(not self._view.trouble)}\n"
        ).encode()


def _moved(to: str, cookie: str = "") -> Answer:
    return Answer(303, headers={"location": to, **({"set-cookie": cookie} if cookie else {})})


def _header(scope: dict[str, Any], name: bytes) -> str:
    found: bytes = next((value for key, value in scope["headers"] if key == name), b"")
    return found.decode("latin-1")


async def _body(receive: Callable[[], Awaitable[Any]]) -> bytes | None:
    """None where it is too long, or ended in the middle."""
    body = b""
    while True:
        event = await receive()
        if event["type"] != "http.request":
            return None
        part: bytes = event.get("body", b"")
        body += part
        if len(body) > LARGEST:
            return None
        if not event.get("more_body", False):
            return body
