"""Stand-ins for a mail server, Slack's webhooks and Twilio: they check what the real ones check, and fail
when they are told to.

As a program it runs until it is ended: ``python notify_servers.py DIRECTORY [--host H]`` writes
``ports.json``, then a line for each delivery into ``deliveries.jsonl``: when, on which channel, to whom,
what, and whether the sender got its yes.
"""

from __future__ import annotations

import argparse
import base64
import json
import signal
import socket
import ssl
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

ACCOUNT, TOKEN = "AC" + "0" * 32, "twilio-token-for-tests"
HOOK = "/services/T00000000/B00000000/slack-webhook-for-tests"
MAIL_USER, MAIL_PASSWORD = "alerts", "mail-password-for-tests"
OK, AWAY, LOSE = "ok", "away", "lose"
"""``away`` ends each connection before anything is taken; ``lose`` takes it, and ends the connection instead
of saying so. Any other mode is a status, such as 503."""


class Servers:
    """The three of them on free ports, with what they took."""

    def __init__(
        self,
        log: Path | None = None,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        ports: tuple[int, int] = (0, 0),
    ) -> None:
        """``ports``: of HTTP and of mail, where they are not to be any that are free."""
        self.taken: list[dict[str, Any]] = []
        self.modes: dict[str, str] = dict.fromkeys(("email", "slack", "sms", "call"), OK)
        self.retry_after = ""
        self.mail_refused: set[str] = set()
        self.tries: Counter[str] = Counter()
        self._log = log
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer._post(self, body)

            def do_GET(self) -> None:
                outer._get(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer((host, ports[0]), Handler)
        self._http.daemon_threads = True
        self.url = f"http://{host}:{self._http.server_port}"
        self.hook = self.url + HOOK
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self._mail = Controller(
            _Mailbox(self),
            hostname=host,
            port=ports[1] or _free_port(host),
            ready_timeout=60,
            decode_data=False,
            tls_context=tls,
            require_starttls=tls is not None,
            auth_required=tls is not None,
            authenticator=_login,
        )
        self._mail.start()
        self.mail_port = self._mail.port

    def stop(self) -> None:
        self._mail.stop()
        self._http.shutdown()
        self._http.server_close()

    def of(self, channel: str) -> list[dict[str, Any]]:
        """What a channel took."""
        with self._lock:
            return [each for each in self.taken if each["channel"] == channel]

    def take(self, channel: str, to: str, confirmed: bool, **what: Any) -> dict[str, Any]:
        line = {"at": time.time(), "channel": channel, "to": to, "confirmed": confirmed, **what}
        with self._lock:
            self.taken.append(line)
            if self._log is not None:
                with self._log.open("a") as log:
                    log.write(json.dumps(line, ensure_ascii=False) + "\n")
        return line

    # HTTP

    def _fails(self, request: BaseHTTPRequestHandler, channel: str) -> bool:
        self.tries[channel] += 1
        mode = self.modes[channel]
        if mode == AWAY:
            request.close_connection = True
            request.connection.close()
            return True
        if mode not in (OK, LOSE):
            _answer(
                request,
                int(mode),
                b'{"code":20000,"message":"as told","status":%s}' % mode.encode(),
                self.retry_after,
            )
            return True
        return False

    def _post(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        path = urlsplit(request.path).path
        if path == "/control":
            told = json.loads(body)
            self.modes.update(told)
            return _answer(request, 200, b"{}")
        if path.startswith("/services/"):
            return self._slack(request, path, body)
        prefix = f"/2010-04-01/Accounts/{ACCOUNT}/"
        channel = {prefix + "Messages.json": "sms", prefix + "Calls.json": "call"}.get(path)
        if channel is None:
            return _answer(request, 404, b"{}")
        return self._twilio(request, channel, body)

    def _slack(self, request: BaseHTTPRequestHandler, path: str, body: bytes) -> None:
        if self._fails(request, "slack"):
            return None
        if path != HOOK:
            return _answer(request, 404, b"no_service", kind="text/plain")
        wrong = _wrong_with_slack(request.headers.get("Content-Type", ""), body)
        if wrong:
            return _answer(request, 400, wrong.encode(), kind="text/plain")
        payload = json.loads(body)
        told = "\n".join(block["text"]["text"] for block in payload["blocks"])
        lose = self.modes["slack"] == LOSE
        self.take("slack", "webhook", not lose, subject=payload["text"], text=told)
        if lose:
            request.close_connection = True
            return request.connection.close()
        return _answer(request, 200, b"ok", kind="text/plain")

    def _twilio(self, request: BaseHTTPRequestHandler, channel: str, body: bytes) -> None:
        if self._fails(request, channel):
            return None
        if not _authorised(request):
            return _answer(request, 401, b'{"code":20003,"message":"Authenticate","status":401}')
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        text = form.get("Body", "") if channel == "sms" else form.get("Twiml", "")
        if not form.get("To", "").startswith("+") or not form.get("From", "").startswith("+") or not text:
            return _answer(request, 400, b'{"code":21604,"message":"A parameter is missing","status":400}')
        if channel == "sms" and len(text) > 1600:
            return _answer(request, 400, b'{"code":21617,"message":"The body is too long","status":400}')
        if channel == "call":
            root = ElementTree.fromstring(text)
            if root.tag != "Response" or {each.tag for each in root} - {"Say", "Pause"}:
                return _answer(
                    request, 400, b'{"code":12100,"message":"Document parse failure","status":400}'
                )
            text = root.findtext("Say", "")
        lose = self.modes[channel] == LOSE
        taken = self.take(channel, form["To"], not lose, text=text)
        if lose:
            request.close_connection = True
            return request.connection.close()
        return _answer(request, 201, json.dumps(_shown(channel, taken)).encode())

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        split = urlsplit(request.path)
        kind = split.path.rpartition("/")[2]
        channel = {"Messages.json": "sms", "Calls.json": "call"}.get(kind)
        if channel is None:
            return _answer(request, 404, b"{}")
        if self._fails(request, channel):
            return None
        if not _authorised(request):
            return _answer(request, 401, b'{"code":20003,"message":"Authenticate","status":401}')
        to = parse_qs(split.query).get("To", [""])[0]
        found = [_shown(channel, each) for each in reversed(self.of(channel)) if each["to"] == to]
        page = {"page": 0, "page_size": 1000, "next_page_uri": None, "uri": request.path}
        name = "messages" if channel == "sms" else "calls"
        return _answer(request, 200, json.dumps({**page, name: found}).encode())


def _shown(channel: str, taken: dict[str, Any]) -> dict[str, Any]:
    at = format_datetime(datetime.fromtimestamp(taken["at"], UTC))
    shown = {
        "sid": ("SM" if channel == "sms" else "CA") + "1" * 32,
        "to": taken["to"],
        "date_created": at,
        "status": "queued",
    }
    return {**shown, "body": taken["text"]} if channel == "sms" else shown


def _wrong_with_slack(kind: str, body: bytes) -> str:
    """What Slack would say of the payload; nothing where it takes it."""
    if not kind.startswith("application/json"):
        return "invalid_payload"
    payload = json.loads(body)
    if not payload.get("text") or len(payload["text"]) > 40_000:
        return "no_text"
    blocks = payload.get("blocks", [])
    if len(blocks) > 50:
        return "invalid_blocks"
    for block in blocks:
        if (
            block["type"] != "section"
            or block["text"]["type"] != "mrkdwn"
            or not 0 < len(block["text"]["text"]) <= 3000
        ):
            return "invalid_blocks"
    return ""


def _authorised(request: BaseHTTPRequestHandler) -> bool:
    expected = base64.b64encode(f"{ACCOUNT}:{TOKEN}".encode()).decode()
    return request.headers.get("Authorization") == f"Basic {expected}"


def _answer(
    request: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    retry_after: str = "",
    kind: str = "application/json",
) -> None:
    request.send_response(status)
    request.send_header("Content-Type", kind)
    if retry_after:
        request.send_header("Retry-After", retry_after)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def _free_port(host: str) -> int:
    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


class _Mailbox:
    """What aiosmtpd asks at each step."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, _: Any) -> str:
        self._servers.tries["email"] += 1
        mode = self._servers.modes["email"]
        if mode == AWAY:
            server.transport.abort()
            return "421 going"
        if mode not in (OK, LOSE):
            return f"{mode} as told"
        if address in self._servers.mail_refused:
            return "550 5.1.1 no such user here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        mail = message_from_bytes(envelope.content, policy=policy.default)
        lose = self._servers.modes["email"] == LOSE
        plain = mail.get_body(("plain",))
        rich = mail.get_body(("html",))
        assert plain is not None
        assert rich is not None
        for to in envelope.rcpt_tos:
            self._servers.take(
                "email",
                to,
                not lose,
                id=mail["Message-ID"],
                subject=mail["Subject"],
                text=plain.get_content(),
                html=rich.get_content(),
                headers=mail.keys(),
            )
        if lose:
            server.transport.abort()
        return "250 OK"


def _login(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    known = isinstance(data, LoginPassword) and (data.login, data.password) == (
        MAIL_USER.encode(),
        MAIL_PASSWORD.encode(),
    )
    return AuthResult(success=known, handled=known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--http-port", type=int, default=0)
    parser.add_argument("--mail-port", type=int, default=0)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    log, ports = options.directory / "deliveries.jsonl", (options.http_port, options.mail_port)
    servers = Servers(log, options.host, ports=ports)
    told = options.directory / "ports.json"
    part = told.with_suffix(".part")
    part.write_text(json.dumps({"url": servers.url, "hook": servers.hook, "mail_port": servers.mail_port}))
    part.rename(told)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    servers.stop()


if __name__ == "__main__":
    main()
