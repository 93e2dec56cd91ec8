"""``trading-bot orders``: an account's orders from a shell, over the HTTP API."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PATIENCE_SECONDS = 10.0
"""How long a call is sent again where nothing was decided: no answer, 429, 503. All calls may be."""
_AGAIN = (429, 502, 503, 504)


def add_parser(commands: Any) -> None:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--url", default="http://127.0.0.1:8080", help="the load balancer, or an instance")
    common.add_argument("--token-file", required=True, metavar="FILE")
    common.add_argument("--account", required=True)
    common.add_argument("--json", action="store_true", help="print what the API says, one object a line")
    orders = commands.add_parser("orders", help="list, show, submit, cancel, replace and watch orders")
    verbs = orders.add_subparsers(required=True, metavar="VERB")

    listing = verbs.add_parser("list", parents=[common], help="the latest accepted orders, newest first")
    listing.add_argument("--status", default="", help="open, or a state")
    listing.add_argument("--limit", type=int, default=100)
    listing.set_defaults(handler=_run, verb=_list)

    show = verbs.add_parser("show", parents=[common], help="one order")
    show.add_argument("id")
    show.set_defaults(handler=_run, verb=_show)

    submit = verbs.add_parser(
        "submit", parents=[common], help="send an order; again with the same --id is the same"
    )
    submit.add_argument("symbol")
    submit.add_argument("side", choices=["buy", "sell"])
    submit.add_argument("quantity")
    submit.add_argument("--price", help="a limit order; without it a market order")
    submit.add_argument("--stop-price", help="a stop, or a stop limit with --price")
    submit.add_argument("--reduce-only", action="store_true")
    submit.add_argument("--time-in-force", choices=["GTC", "DAY", "IOC", "FOK"])
    submit.add_argument("--id", help="the client order id; made up if there is none")
    submit.add_argument("--dry-run", action="store_true", help="decide, and keep nothing")
    submit.set_defaults(handler=_run, verb=_submit)

    cancel = verbs.add_parser("cancel", parents=[common], help="cancel an order")
    cancel.add_argument("id")
    cancel.set_defaults(handler=_run, verb=_cancel)

    replace = verbs.add_parser("replace", parents=[common], help="replace an order by another, in one step")
    replace.add_argument("id")
    replace.add_argument("--quantity", help="what is wanted in all, with what has been filled")
    replace.add_argument("--price")
    replace.add_argument("--stop-price")
    replace.add_argument("--new-id", help="the new order's id; made up if there is none")
    replace.set_defaults(handler=_run, verb=_replace)

    watch = verbs.add_parser("watch", parents=[common], help="the account's events as they happen, until ^C")
    watch.add_argument("--after", help="begin behind the event with this id; without it now")
    watch.add_argument("--count", type=int, default=0, help="stop after so many events")
    watch.set_defaults(handler=_run, verb=_watch)


class _Failed(Exception):
    """The argument says what the API, or the network, said."""


class _Api:
    def __init__(self, url: str, token: str, account: str) -> None:
        split = urlsplit(url)
        if split.scheme not in ("http", "https") or not split.hostname:
            raise _Failed(f"{url}: http://host:port is expected")
        self._split = split
        self._headers = {"Authorization": f"Bearer {token}", "X-Account-Id": account}

    def connect(self, seconds: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._split.scheme == "https" else http.client.HTTPConnection
        return kind(str(self._split.hostname), self._split.port, timeout=seconds)

    def begin(
        self, connection: http.client.HTTPConnection, path: str, after: str
    ) -> http.client.HTTPResponse:
        extra = {"Last-Event-ID": after} if after else {}
        connection.request("GET", self._split.path.rstrip("/") + path, headers=self._headers | extra)
        return connection.getresponse()

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
        """Status and body. Sent again while nothing was decided: the same call again is the same call."""
        end = time.monotonic() + PATIENCE_SECONDS
        data = None if body is None else json.dumps(body).encode()
        while True:
            wait = 0.2
            try:
                with contextlib.closing(self.connect(5)) as connection:
                    connection.request(
                        method, self._split.path.rstrip("/") + path, data, self._headers | headers
                    )
                    answer = connection.getresponse()
                    text = answer.read()
                if answer.status not in _AGAIN or time.monotonic() > end:
                    return answer.status, _object(text)
                wait = min(float(answer.headers.get("Retry-After") or 0.2), 2.0)
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() > end:
                    raise _Failed(f"no answer: {type(error).__name__}: {error}") from None
            time.sleep(wait)


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"title": text.decode(errors="replace").strip()[:200]}


def _run(options: argparse.Namespace) -> int:
    try:
        token = Path(options.token_file).read_text(encoding="utf-8").strip()
        return int(options.verb(_Api(options.url, token, options.account), options))
    except (_Failed, OSError) as error:
        print(f"trading-bot orders: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _answered(answer: tuple[int, dict[str, Any]], options: argparse.Namespace, shown: str) -> int:
    """Print an answer: itself with --json, else ``shown`` filled in from it, or what is wrong."""
    status, body = answer
    good = status < 300
    if options.json:
        print(json.dumps(body))
    elif good:
        print(shown.format_map(body))
    else:
        print(f"{status} {_problem(body)}", file=sys.stderr)
    return 0 if good else 1


def _problem(body: dict[str, Any]) -> str:
    words = [str(body.get("title", ""))]
    if body.get("rule"):
        words.append(f"{body['rule']}: limit {body.get('limit')}, value {body.get('value')}")
    words += [f"{field}: {expected}" for field, expected in (body.get("errors") or {}).items()]
    words += [str(body[name]) for name in ("detail", "order_status") if body.get(name)]
    return "; ".join(word for word in words if word)


_COLUMNS = (
    "client_order_id",
    "status",
    "side",
    "quantity",
    "symbol",
    "type",
    "price",
    "filled",
    "accepted_at",
)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [tuple(name.upper() for name in _COLUMNS)]
    for row in rows:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(row["accepted_at"] / 1000))
        price = row.get("price") or row.get("stop_price") or "-"
        lines.append(tuple(str({**row, "accepted_at": at, "price": price}[name]) for name in _COLUMNS))
    widths = [max(len(line[n]) for line in lines) for n in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _list(api: _Api, options: argparse.Namespace) -> int:
    query = f"?limit={options.limit}" + (f"&status={options.status}" if options.status else "")
    status, body = api.call("GET", f"/api/orders{query}")
    if status != 200:
        return _answered((status, body), options, "")
    if options.json:
        for row in body["orders"]:
            print(json.dumps(row))
    else:
        print(_table(body["orders"]))
    return 0


def _show(api: _Api, options: argparse.Namespace) -> int:
    status, body = api.call("GET", f"/api/orders/{options.id}")
    if status != 200 or options.json:
        return _answered((status, body), options, "")
    width = max(map(len, body))
    for name, value in body.items():
        print(f"{name.ljust(width)}  {value}")
    return 0


def _submit(api: _Api, options: argparse.Namespace) -> int:
    id = options.id or _new_id()
    kind = {
        (False, False): "market", (True, False): "limit", (False, True): "stop", (True, True): "stop_limit",
    }[options.price is not None, options.stop_price is not None]  # fmt: skip
    body = {
        "client_order_id": id, "symbol": options.symbol, "side": options.side, "type": kind,
        "quantity": options.quantity, "price": options.price, "stop_price": options.stop_price,
        "reduce_only": options.reduce_only, "time_in_force": options.time_in_force,
    }  # fmt: skip
    headers = {"X-Dry-Run": "true"} if options.dry_run else {}
    answer = api.call("POST", "/api/orders", body, **headers)
    shown = "{client_order_id} would be {decision}" if options.dry_run else "{client_order_id} {status}"
    return _answered(answer, options, shown)


def _new_id() -> str:
    """Said before it is used: whoever gets no answer can ask for it, or send it again."""
    id = f"cli-{uuid.uuid4().hex[:16]}"
    print(f"client order id: {id}", file=sys.stderr)
    return id


def _cancel(api: _Api, options: argparse.Namespace) -> int:
    answer = api.call("DELETE", f"/api/orders/{options.id}")
    return _answered(
        answer, options, "{client_order_id} {status}" + (", cancel wanted" if answer[0] == 202 else "")
    )


def _replace(api: _Api, options: argparse.Namespace) -> int:
    body = {
        "client_order_id": options.new_id or _new_id(), "quantity": options.quantity, "price": options.price,
        "stop_price": options.stop_price,
    }  # fmt: skip
    answer = api.call("PUT", f"/api/orders/{options.id}", body)
    return _answered(answer, options, "{client_order_id} {status}, replaces {replaces}")


def _watch(api: _Api, options: argparse.Namespace) -> int:
    for seen, (id, name, body) in enumerate(_events(api, options.after or ""), 1):
        if options.json:
            print(json.dumps({"id": id, **body}), flush=True)
        else:
            at = time.strftime("%H:%M:%S", time.gmtime(body.get("at", 0) / 1000))
            rest = body.get("order") or {
                k: v for k, v in body.items() if k not in ("type", "account_id", "client_order_id", "at")
            }
            words = " ".join(f"{k}={v}" for k, v in rest.items() if v not in (None, False))
            print(f"{at}  {name:<22} {body.get('client_order_id', ''):<24} {words}", flush=True)
        if seen == options.count:
            break
    return 0


def _events(api: _Api, last: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The account's events, for ever: where a stream ends the next begins behind its last event."""
    while True:
        try:
            with contextlib.closing(api.connect(15)) as connection:
                answer = api.begin(connection, "/api/orders/stream", last)
                if answer.status in _AGAIN:
                    raise ConnectionError(f"status {answer.status}")
                if answer.status != 200:
                    raise _Failed(f"{answer.status} {_problem(_object(answer.read()))}")
                for id, name, body in _parsed(answer):
                    last = id or last
                    if name == "gap":
                        print(f"trading-bot orders: {body['detail']}", file=sys.stderr)
                    elif name not in ("begin", "end"):
                        yield id, name, body
        except (OSError, http.client.HTTPException) as error:
            print(f"trading-bot orders: {error}: connecting again", file=sys.stderr)
            time.sleep(0.5)


def _parsed(answer: http.client.HTTPResponse) -> Iterator[tuple[str, str, dict[str, Any]]]:
    fields: dict[str, str] = {}
    while raw := answer.readline():
        line = raw.decode().rstrip("\n")
        if line:
            name, _, text = line.partition(": ")
            fields[name] = text
        elif "event" in fields:
            yield fields.get("id", ""), fields["event"], json.loads(fields["data"])
            fields = {}
        else:
            fields = {}
