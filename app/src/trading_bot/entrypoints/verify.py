"""``trading-bot verify-ledger``: recompute everything from the fills and say what differs."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from trading_bot.domain.audit import OrderFields, Told, Working
from trading_bot.domain.lifecycle import FINAL, State
from trading_bot.domain.order import Side
from trading_bot.domain.position import Position, apply_fill


def add_parser(commands: Any) -> None:
    verify = commands.add_parser(
        "verify-ledger", help="recompute every position from the fills; exit 1 if one differs"
    )
    verify.add_argument("--redis", required=True, help="redis://host:port/db")
    verify.add_argument("--redis-username", default="")
    verify.add_argument("--redis-password-file", default="")
    verify.add_argument("--venue", help="compare with the paper venue's book at this URL too")
    verify.set_defaults(handler=_verify)


@dataclass
class Findings:
    """What was compared, and every difference."""

    accounts: int = 0
    orders: int = 0
    fills: int = 0
    not_done: int = 0
    differences: list[str] = field(default_factory=list)

    def expect(self, what: str, found: object, computed: object) -> None:
        if found != computed:
            self.differences.append(f"{what}: the ledger holds {found}, computed {computed}")


Text = dict[str, str]


def _text(flat: list[bytes]) -> Text:
    words = [word.decode() for word in flat]
    return dict(zip(words[::2], words[1::2], strict=True))


async def _scan(call: Any, pattern: str) -> list[str]:
    cursor, keys = b"0", []
    while True:
        cursor, found = await call("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
        keys += [key.decode() for key in found]
        if cursor == b"0":
            return sorted(set(keys))


async def _stream(call: Any, key: str) -> list[Text]:
    lines: list[Text] = []
    start = "-"
    while True:
        chunk = await call("XRANGE", key, start, "+", "COUNT", 5000)
        lines += [_text(flat) for _, flat in chunk]
        if len(chunk) < 5000:
            return lines
        start = "(" + chunk[-1][0].decode()


async def verify(call: Any, venue_orders: list[dict[str, Any]] | None = None) -> Findings:
    """Compare the ledger that ``call(*command)`` reads with the fold of its fills, and with a venue's book.

    The ledger has to be at rest: nothing may be written meanwhile.
    """
    findings = Findings()
    fills = await _stream(call, "trading:fills")
    findings.fills = len(fills)
    positions: dict[tuple[str, str], Position] = defaultdict(Position)
    filled: dict[tuple[str, str], int] = defaultdict(int)
    trades: dict[str, set[str]] = defaultdict(set)
    for fill in fills:
        if fill["trade"] in trades[fill["venue"]]:
            findings.differences.append(f"trade {fill['venue']}/{fill['trade']}: applied twice")
        trades[fill["venue"]].add(fill["trade"])
        key = (fill["account"], fill["symbol"])
        positions[key] = apply_fill(
            positions[key], Side(fill["side"]), int(fill["quantity"]), int(fill["price"]), int(fill["fee"])
        )
        filled[fill["account"], fill["order"]] += int(fill["quantity"])
    for venue, seen in trades.items():
        findings.expect(f"trades of {venue}", await call("SCARD", f"trading:trades:{venue}"), len(seen))
    accounts = [key.removeprefix("trading:account:") for key in await _scan(call, "trading:account:*")]
    findings.accounts = len(accounts)
    ledger: dict[tuple[str, str], tuple[Text, int]] = {}
    for account in accounts:
        await _verify_account(call, account, positions, filled, ledger, findings)
    findings.orders = len(ledger)
    due = {m.decode() for m in await call("ZRANGE", "trading:dispatch", 0, -1)}
    findings.expect(
        "orders in dispatch",
        due,
        {f"{a} {o}" for (a, o), (f, _) in ledger.items() if State(f["st"]) not in FINAL},
    )
    if venue_orders is not None:
        _verify_venue(venue_orders, ledger, trades["paper"], findings)
    return findings


async def _verify_account(
    call: Any,
    account: str,
    positions: dict[tuple[str, str], Position],
    filled: dict[tuple[str, str], int],
    ledger: dict[tuple[str, str], tuple[Text, int]],
    findings: Findings,
) -> None:
    fields = _text(await call("HGETALL", f"trading:account:{account}"))
    ids = [id.decode() for id in await call("ZRANGE", f"trading:orders:{account}", 0, -1)]
    told = Told(
        accepted=len(ids), positions={symbol: p for (name, symbol), p in positions.items() if name == account}
    )
    orders: dict[str, OrderFields] = {}
    for first in range(0, len(ids), 500):
        some = ids[first : first + 500]
        found = await asyncio.gather(*(call("HGETALL", f"trading:order:{account}:{id}") for id in some))
        for id, flat in zip(some, found, strict=True):
            order = _text(flat)
            if order.get("decision") != "1":
                findings.differences.append(f"{account}/{id}: listed but not in the ledger")
                continue
            symbol, side, _, quantity = order["fp"].split("|")[:4]
            done = int(order.get("filled", 0))
            if done > int(quantity):
                findings.differences.append(f"{account}/{id}: filled {done} of {quantity}")
            ledger[account, id] = (order, done)
            final = State(order["st"]) in FINAL
            # By the fills: what the ledger holds of the order is compared with it.
            by_fills = filled.get((account, id), 0)
            told.put(
                id, Working(symbol, Side(side), int(quantity), int(order["reference"]), by_fills), done=final
            )
            orders[id] = OrderFields(
                order["st"],
                int(order["left"]),
                int(order["reserved"]),
                int(order["reference"]),
                done,
                not final,
            )
    findings.not_done += len(told.orders)
    for finding in told.compare(fields, orders):
        findings.expect(f"{account}: {finding.field}", finding.ledger, finding.computed)


def _verify_venue(
    venue_orders: list[dict[str, Any]],
    ledger: dict[tuple[str, str], tuple[Text, int]],
    trades: set[str],
    findings: Findings,
) -> None:
    """The venue's book holds no order that the ledger does not, and both filled the same trades."""
    from trading_bot.adapters.venues.paper import report_from

    at_venue: set[str] = set()
    reports = {(r.account, r.client_order_id): r for r in map(report_from, venue_orders)}
    for (account, id), report in reports.items():
        at_venue |= {fill.trade for fill in report.fills}
        entry = ledger.get((account, id))
        if entry is None:
            findings.differences.append(f"{account}/{id}: at the venue, not in the ledger")
            continue
        order, done = entry
        findings.expect(f"{account}/{id}: filled at the venue", done, report.filled)
        if (State(order["st"]) in FINAL) != (report.state in FINAL) or (
            report.state in FINAL and State(order["st"]) != report.state
        ):
            findings.differences.append(
                f"{account}/{id}: {order['st']} in the ledger, {report.state} at the venue"
            )
    findings.expect("trades", trades, at_venue)
    for (account, id), (order, done) in ledger.items():
        if (account, id) not in reports and (done or order["st"] in ("open", "partially_filled", "filled")):
            findings.differences.append(f"{account}/{id}: {order['st']} in the ledger, not at the venue")


async def _run(options: argparse.Namespace, password: str) -> int:
    from trading_bot.adapters.http_client import HttpClient
    from trading_bot.adapters.redis.connection import Client, Endpoint

    endpoint = Endpoint.from_url(options.redis, options.redis_username, password)
    client = Client(lambda: endpoint, name="trading-bot:verify", deadline=60)
    client.start()
    try:
        venue_orders = None
        if options.venue:
            http = HttpClient(options.venue)
            status, body = await http.request("GET", "/v1/orders")
            http.close()
            if status != 200:
                print(f"verify-ledger: the venue answered {status}", file=sys.stderr)
                return 2
            venue_orders = json.loads(body)
        async with asyncio.timeout(10):
            await client.usable()
        findings = await verify(client.call, venue_orders)
    except TimeoutError:
        print(f"verify-ledger: redis: {client.reason()}", file=sys.stderr)
        return 2
    finally:
        await client.stop()
    print(
        json.dumps(
            {
                "ok": not findings.differences,
                "accounts": findings.accounts,
                "orders": findings.orders,
                "not_done": findings.not_done,
                "fills": findings.fills,
                "differences": len(findings.differences),
                "examples": findings.differences[:20],
            }
        )
    )
    return 0 if not findings.differences else 1


def _verify(options: argparse.Namespace) -> int:
    from trading_bot import config
    from trading_bot.errors import TradingError

    try:
        password = config.read_secret(options.redis_password_file) if options.redis_password_file else ""
        return asyncio.run(_run(options, password))
    except (OSError, ValueError, TradingError) as error:
        print(f"verify-ledger: {error}", file=sys.stderr)
        return 2
