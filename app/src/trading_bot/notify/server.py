"""The notifier's HTTP: what takes alerts and notices, acknowledgements, silences, and what shows what
became of them."""

from __future__ import annotations

import hmac
import html
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from trading_bot.errors import Malformed
from trading_bot.notify.delivery import Acknowledgements, Delivery
from trading_bot.notify.notice import from_alertmanager, from_release
from trading_bot.notify.store import Store

LARGEST = 4 * 1024 * 1024
_encode = msgspec.json.Encoder().encode
_JSON, _PROBLEM, _HTML = b"application/json", b"application/problem+json", b"text/html; charset=utf-8"
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Matcher(msgspec.Struct, forbid_unknown_fields=True):
    name: Text
    value: Text


class Silence(msgspec.Struct, forbid_unknown_fields=True):
    """``starts`` is now where it is left out."""

    matchers: Annotated[list[Matcher], msgspec.Meta(min_length=1, max_length=20)]
    ends: Moment
    by: Text
    why: Text
    starts: Moment | None = None


class Acknowledgement(msgspec.Struct, forbid_unknown_fields=True):
    message: Text
    by: Text


class Problem(Exception):
    def __init__(self, status: int, title: str, **members: Any) -> None:
        self.status = status
        self.body = {"type": "about:blank", "title": title, "status": status, **members}
        super().__init__(title)


_ALWAYS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'",
    ),
]
Answer = tuple[int, bytes, bytes]


class Application:
    """The ASGI application. Everything but health, figures and signed links wants the token."""

    def __init__(
        self,
        store: Store,
        delivery: Delivery,
        links: Acknowledgements,
        token: str,
        ledger: Callable[[], str | None] | None,
    ) -> None:
        """``ledger`` says why the ledger's alerts cannot be read; None where they are not read at all."""
        self._store = store
        self._delivery = delivery
        self._links = links
        self._token = token.encode()
        self._ledger = ledger
        self._heard: dict[str, float] = {}
        self._refused = 0
        self._routes: Mapping[tuple[str, str], Callable[[bytes], Answer]] = {
            ("POST", "/api/alerts"): self._alerts,
            ("POST", "/api/notices"): self._notices,
            ("GET", "/api/messages"): lambda _: (200, _JSON, _encode(self._store.recent(200))),
            ("POST", "/api/acknowledgements"): self._acknowledge,
            ("GET", "/api/silences"): lambda _: (200, _JSON, _encode(self._store.silences())),
            ("POST", "/api/silences"): self._silence,
        }

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        try:
            answer = await self._answer(scope, receive)
        except Malformed as error:
            self._refused += 1
            answer = _problem(400, "The request is malformed", errors=error.errors)
        except Problem as error:
            self._refused += 1
            answer = (error.status, _PROBLEM, _encode(error.body))
        status, kind, body = answer
        headers = [
            (b"content-type", kind),
            (b"content-length", str(len(body)).encode()),
            *_ALWAYS,
        ]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body if scope["method"] != "HEAD" else b""})

    async def _answer(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]]) -> Answer:
        method, path = scope["method"], scope["path"]
        if path == "/health" and method in ("GET", "HEAD"):
            return 200, _JSON, _encode({"status": "live"})
        if path == "/metrics" and method in ("GET", "HEAD"):
            return 200, _TEXT, self._figures()
        if path.startswith("/ack/"):
            return self._by_link(method, path.removeprefix("/ack/"))
        self._authorise(scope["headers"])
        if path.startswith("/api/silences/") and method == "DELETE":
            number = path.removeprefix("/api/silences/")
            if (
                not number.isascii()
                or not number.isdecimal()
                or len(number) > 15
                or not self._store.end_silence(int(number))
            ):
                raise Problem(404, "There is no such silence in force or to come")
            return 200, _JSON, _encode({"ended": int(number)})
        if (method, path) not in self._routes:
            allowed = [known for known, of in self._routes if of == path]
            raise Problem(
                405 if allowed else 404,
                f"Expected {' or '.join(allowed)}" if allowed else "There is nothing here",
            )
        return self._routes[method, path](await _body(receive))

    def _authorise(self, headers: list[tuple[bytes, bytes]]) -> None:
        given = next((value for name, value in headers if name == b"authorization"), b"")
        if not hmac.compare_digest(given, b"Bearer " + self._token):
            raise Problem(401, "The notifier's token is needed")

    def _alerts(self, body: bytes) -> Answer:
        notices = from_alertmanager(body)
        self._heard["alertmanager"] = time.time()
        return 200, _JSON, _encode({"news": self._delivery.take(notices)})

    def _notices(self, body: bytes) -> Answer:
        notice = from_release(body)
        self._heard["release"] = time.time()
        return 200, _JSON, _encode({"news": self._delivery.take([notice])})

    def _acknowledge(self, body: bytes) -> Answer:
        asked = _decode(body, Acknowledgement)
        found = self._store.acknowledge(asked.message, asked.by)
        if found < 0:
            raise Problem(404, "There is no message of that reference")
        return 200, _JSON, _encode({"acknowledged": found})

    def _silence(self, body: bytes) -> Answer:
        asked = _decode(body, Silence)
        starts = asked.starts or datetime.now(UTC)
        if asked.ends <= starts or asked.ends.timestamp() <= time.time():
            raise Malformed({"ends": "a time after starts and after now"})
        matchers = [{"name": matcher.name, "value": matcher.value} for matcher in asked.matchers]
        id = self._store.silence(matchers, starts.timestamp(), asked.ends.timestamp(), asked.by, asked.why)
        return 201, _JSON, _encode({"id": id})

    def _by_link(self, method: str, signed: str) -> Answer:
        """A page with a button: programs that look at the links of messages only GET them."""
        message = self._links.message(signed)
        if message is None:
            raise Problem(404, "This link is not one of the notifier's")
        if method in ("GET", "HEAD"):
            return (
                200,
                _HTML,
                _page(
                    f"<p>Message {html.escape(message)}</p><form method=post><button>I look after "
                    f"it</button></form>"
                ),
            )
        if method != "POST":
            raise Problem(405, "Expected GET or POST")
        if self._store.acknowledge(message, "link") < 0:
            raise Problem(404, "The message is too old")
        return (
            200,
            _HTML,
            _page(
                f"<p>Message {html.escape(message)} is acknowledged. The phone does not ring for it "
                f"any more.</p>"
            ),
        )

    def _figures(self) -> bytes:
        kept = self._store.figures()
        delivery = self._delivery
        series: list[tuple[str, str, str, dict[str, float]]] = [
            (
                *(
                    "notifier_oldest_waiting_seconds",
                    "gauge",
                    "How long the oldest message that is owed waits.",
                ),
                {"": max((each["oldest"] for each in kept.values()), default=0.0)},
            ),
            (
                *("notifier_deliveries", "gauge", "What the notifier keeps, by what became of it."),
                {
                    f'channel="{channel}",state="{state}"': each[state]
                    for channel, each in sorted(kept.items())
                    for state in ("waiting", "sent", "refused")
                },
            ),
            (
                *("notifier_confirmed_total", "counter", "Messages that a channel confirmed."),
                {f'channel="{name}"': count for name, count in delivery.confirmed.items()},
            ),
            (
                *("notifier_failed_total", "counter", "Tries that a channel did not confirm."),
                {f'channel="{name}"': count for name, count in delivery.failed.items()},
            ),
            (
                *("notifier_refused_total", "counter", "Messages that a channel will never take."),
                {f'channel="{name}"': count for name, count in delivery.refused.items()},
            ),
            (
                *("notifier_channels", "gauge", "Channels that are set up; with none nobody is told."),
                {"": len(delivery.failed)},
            ),
            (
                *("notifier_unacknowledged", "gauge", "Alerts that the phone rings for."),
                {"": self._store.unacknowledged()},
            ),
            (
                *("notifier_malformed_total", "counter", "What came in and was no alert."),
                {'where="http"': self._refused, 'where="ledger"': delivery.malformed},
            ),
            (
                *("notifier_heard_timestamp_seconds", "gauge", "When a source was last heard of."),
                {f'source="{source}"': at for source, at in self._heard.items()},
            ),
        ]
        if self._ledger is not None:
            up = {"": float(self._ledger() is None)}
            series.append(("notifier_ledger_up", "gauge", "1 while the ledger's alerts can be read.", up))
        return ("\n".join(line for each in series for line in _series(*each)) + "\n").encode()


def _series(name: str, kind: str, text: str, values: Mapping[str, float]) -> list[str]:
    shown = [f"{name}{f'{{{labels}}}' if labels else ''} {value:.15g}" for labels, value in values.items()]
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *shown]


def _decode(body: bytes, shape: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed({"body": str(error)[:300]}) from None


def _problem(status: int, title: str, **members: Any) -> Answer:
    return status, _PROBLEM, _encode({"type": "about:blank", "title": title, "status": status, **members})


async def _body(receive: Callable[[], Awaitable[Any]]) -> bytes:
    body = b""
    while True:
        event = await receive()
        part: bytes = event.get("body", b"")
        body += part
        if len(body) > LARGEST:
            raise Problem(413, f"At most {LARGEST} bytes are taken")
        if event["type"] == "http.disconnect":
            raise Problem(400, "The request ended in the middle")
        if not event.get("more_body", False):
            return body


_STYLE = (
    "body{font:1.2rem sans-serif;margin:3rem auto;max-width:30rem;padding:0 1rem}"
    "button{font:inherit;padding:.7rem 1.2rem}"
)


def _page(content: str) -> bytes:
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Acknowledge</title>"
        "<meta name='viewport' content='width=device-width'>"
        f"<style>{_STYLE}</style><main><h1>Acknowledge</h1>{content}</main></html>"
    ).encode()
