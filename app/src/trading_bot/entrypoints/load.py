"""``trading-bot load`` sends orders at a fixed rate; ``trading-bot judge`` holds its log against the ledger.

The load is open-loop: orders leave when they are due, however slow the answers are. Nothing is sent a
second time in silence: an order without a good answer is a failed order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trading_bot.adapters.http_client import HttpClient

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient

GOOD = frozenset({200, 201, 422})
SYMBOLS = (("BTC-USDT", 5_000_000, 2), ("ETH-USDT", 300_000, 3))
"""Symbol, price in hundredths around which orders lie, and the smallest quantity in 1/10^5."""


def add_parsers(commands: Any) -> None:
    load = commands.add_parser("load", help="send orders at a fixed rate and log every answer")
    load.add_argument("--url", help="the HTTP API, or several with commas between that take turns")
    load.add_argument("--nats", help="a NATS URL; with --url every second order goes there")
    load.add_argument("--nats-user", default="")
    load.add_argument("--nats-password-file", default="")
    load.add_argument("--token-file", required=True, help="a file that holds the bearer token")
    load.add_argument("--rate", type=float, default=100, help="orders a second (default 100)")
    load.add_argument("--count", type=int, help="stop after so many orders")
    load.add_argument("--duration", type=float, help="stop after so many seconds (default 10)")
    load.add_argument(
        "--accounts", type=int, default=1000, help="how many accounts take turns (default 1000)"
    )
    load.add_argument(
        "--account-prefix", default="load-", help="accounts are <prefix>0000 ... (default load-)"
    )
    load.add_argument(
        "--resend", type=float, default=0.0, help="fraction of orders that are sent twice on purpose"
    )
    load.add_argument(
        "--stop-every", type=int, default=0, help="every so many orders one is a stop-limit (default: none)"
    )
    load.add_argument("--time-in-force", default="GTC", choices=["GTC", "IOC"], help="of limit orders")
    load.add_argument("--seed", type=int, default=1)
    load.add_argument("--run", help="first part of each client order id (default: from the time)")
    load.add_argument("--timeout", type=float, default=5.0, help="seconds to wait for an answer (default 5)")
    load.add_argument("--log", help="write one JSON line per order here")
    load.add_argument("--allow-failed", action="store_true", help="exit 0 even if orders failed")
    load.set_defaults(handler=_load)
    judge = commands.add_parser("judge", help="compare a load's log with the ledger; exit 1 if they differ")
    judge.add_argument("log", metavar="LOG")
    judge.add_argument("--redis", required=True, help="redis://host:port/db")
    judge.add_argument("--redis-username", default="")
    judge.add_argument("--redis-password-file", default="")
    judge.add_argument("--nats", help="compare with the events in JetStream too")
    judge.add_argument("--nats-user", default="")
    judge.add_argument("--nats-password-file", default="")
    judge.set_defaults(handler=_judge)


@dataclass
class Shot:
    """One order that is sent, and what came of it. ``status`` 0 means no answer."""

    account: str
    id: str
    path: str
    body: bytes
    fingerprint: str
    sent: float = 0.0
    answered: float = 0.0
    status: int = 0
    answer: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def line(self) -> bytes:
        record: dict[str, Any] = {
            "id": self.id,
            "account": self.account,
            "path": self.path,
            "sent": round(self.sent, 6),
            "answered": round(self.answered, 6),
            "status": self.status,
            "latency_ms": round((self.answered - self.sent) * 1000, 3),
            "version": self.answer.get("version", ""),
            "slot": self.answer.get("slot", ""),
            "fingerprint": self.fingerprint,
        }
        if self.error:
            record["error"] = self.error
        elif self.status not in (200, 201):
            record["answer"] = self.answer
        return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def shots(options: argparse.Namespace, run: str) -> Iterator[Shot]:
    """The same orders for the same seed, for ever. Small limit orders, both sides, no long runs of one."""
    dice = random.Random(options.seed)  # noqa: S311  # a repeatable load, not a secret
    number = 0
    while True:
        account = f"{options.account_prefix}{number % options.accounts:04d}"
        symbol, around, lot = SYMBOLS[dice.randrange(len(SYMBOLS))]
        side = "buy" if dice.random() < 0.5 else "sell"
        price = around + dice.randint(-around // 100, around // 100)
        quantity = dice.randint(1, 5) * lot
        path = "http" if not options.nats or (options.url and number % 2 == 0) else "nats"
        id = f"{run}-{number:07d}"
        stop = bool(options.stop_every) and number % options.stop_every == 0
        type_, tif = ("stop_limit", "GTC") if stop else ("limit", options.time_in_force)
        at = f"{price // 100}.{price % 100:02d}"
        body = (
            f'{{"client_order_id":"{id}","symbol":"{symbol}","side":"{side}","type":"{type_}",'
            f'"quantity":"{quantity / 1e5:.5f}","price":"{at}","time_in_force":"{tif}"'
            + (f',"stop_price":"{at}"}}' if stop else "}")
        ).encode()
        scaled = price * 1_000_000
        fingerprint = f"{symbol}|{side}|{type_}|{quantity * 1000}|{scaled}|{scaled if stop else ''}|{tif}|0"
        yield Shot(account, id, path, body, fingerprint)
        if dice.random() < options.resend:
            yield Shot(account, id, path, body, fingerprint)
        number += 1


class _Http:
    def __init__(self, url: str, token: str) -> None:
        self._client = HttpClient(
            url, {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        )

    async def send(self, shot: Shot) -> None:
        account = f"X-Account-Id: {shot.account}\r\n"
        shot.status, body = await self._client.request("POST", "/api/orders", shot.body, account)
        shot.answer = _json(body)

    def close(self) -> None:
        self._client.close()


class _Nats:
    def __init__(self, client: NatsClient, token: str, timeout: float) -> None:
        self._client = client
        self._headers = {"Authorization": f"Bearer {token}"}
        self._timeout = timeout

    async def send(self, shot: Shot) -> None:
        subject = f"trading.orders.submit.{shot.account}"
        try:
            reply = await self._client.request(
                subject, shot.body, timeout=self._timeout, headers=self._headers
            )
        except RuntimeError as error:
            # uvloop's word for a transport that is closed.
            raise ConnectionResetError(str(error)) from error
        shot.status = int((reply.headers or {}).get("Http-Status", 0))
        shot.answer = _json(reply.data)


def _json(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {"body": body[:200].decode(errors="replace")}
    return answer if isinstance(answer, dict) else {"body": answer}


def _secret(path: str) -> str:
    return Path(path).read_text(encoding="utf-8").strip() if path else ""


async def _quiet(error: Exception) -> None:
    """An order that failed says so itself."""


async def _connect_nats(url: str, user: str, password_file: str) -> NatsClient:
    import nats

    credentials: dict[str, Any] = {}
    if user:
        credentials["user"] = user
    if password_file:
        credentials["password"] = _secret(password_file)
    return await nats.connect(
        url.split(","), max_reconnect_attempts=-1, error_cb=_quiet, reconnect_time_wait=0.2, **credentials
    )


async def _run(options: argparse.Namespace) -> int:
    from nats.errors import Error as NatsError

    token = _secret(options.token_file)
    run = options.run or f"r{int(time.time() * 1000):x}"
    targets = [_Http(url, token) for url in options.url.split(",")] if options.url else []
    client = (
        await _connect_nats(options.nats, options.nats_user, options.nats_password_file)
        if options.nats
        else None
    )
    bus = _Nats(client, token, options.timeout) if client else None
    count = options.count or int(options.rate * (options.duration or 10))
    log: IO[bytes] | None = open(options.log, "wb") if options.log else None  # noqa: SIM115,ASYNC230
    statuses: Counter[int] = Counter()
    served: Counter[tuple[str, str]] = Counter()
    errors: Counter[str] = Counter()
    latencies: list[float] = []
    failed = 0

    async def fire(number: int, shot: Shot, due: float) -> None:
        nonlocal failed
        shot.sent = time.time()
        late = time.perf_counter() - due
        try:
            async with asyncio.timeout(options.timeout):
                if shot.path == "nats":
                    assert bus is not None
                    await bus.send(shot)
                else:
                    await targets[number % len(targets)].send(shot)
        except TimeoutError:
            shot.error = f"no answer within {options.timeout:g} s"
        except (OSError, NatsError) as error:
            shot.error = f"{type(error).__name__}: {error}"
        shot.answered = time.time()
        statuses[shot.status] += 1
        latencies.append(shot.answered - shot.sent + max(late, 0))
        if shot.status in GOOD:
            served[str(shot.answer.get("version", "")), str(shot.answer.get("slot", ""))] += 1
        else:
            failed += 1
            errors[shot.error or str(shot.answer.get("title", shot.status))] += 1
        if log is not None:
            log.write(shot.line())

    stop = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
    tasks: set[asyncio.Task[None]] = set()
    began = time.perf_counter()
    for number, shot in zip(range(count), shots(options, run), strict=False):
        if stop.is_set():
            break
        due = began + number / options.rate
        wait = due - time.perf_counter()
        if wait > 0.0005:
            await asyncio.sleep(wait)
        elif number % 16 == 0:
            await asyncio.sleep(0)
        task = asyncio.create_task(fire(number, shot, due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    while tasks:
        await asyncio.wait(tasks)
    took = time.perf_counter() - began
    for target in targets:
        target.close()
    if client is not None:
        await client.close()
    if log is not None:
        log.close()
    latencies.sort()
    print(
        json.dumps(
            {
                "run": run,
                "sent": len(latencies),
                "failed": failed,
                "seconds": round(took, 2),
                "rate": round(len(latencies) / took, 1),
                "statuses": {str(k): v for k, v in sorted(statuses.items())},
                "answered_by": {f"{v} {s}".strip() or "none": n for (v, s), n in sorted(served.items())},
                "latency_ms": {
                    name: round(latencies[min(len(latencies) - 1, int(len(latencies) * q))] * 1000, 2)
                    if latencies
                    else None
                    for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
                },
                "errors": dict(errors.most_common(5)),
            }
        )
    )
    return 0 if failed == 0 or options.allow_failed else 1


def _load(options: argparse.Namespace) -> int:
    import uvloop

    if not options.url and not options.nats:
        print("load: give --url, --nats or both", file=sys.stderr)
        return 2
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(options))
    except (OSError, ValueError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 2


@dataclass
class Verdict:
    """What differs between a client's log and the ledger. Each list holds ``account/id`` with a reason."""

    orders: int = 0
    accepted: int = 0
    refused: int = 0
    unanswered: int = 0
    unanswered_but_accepted: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    unpublished: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.lost or self.doubled or self.different or self.unpublished)


async def judge(
    entries: list[dict[str, Any]], call: Any, published: Counter[tuple[str, str]] | None = None
) -> Verdict:
    """Hold a log's entries against the ledger that ``call(*command)`` reads.

    Every order answered with 200 or 201 is in the ledger exactly once, as it was sent; one answered with
    422 is there as refused; one without an answer is there at most once.
    """
    verdict = Verdict()
    answers: dict[tuple[str, str], set[int]] = defaultdict(set)
    meant: dict[tuple[str, str], str] = {}
    for entry in entries:
        key = (entry["account"], entry["id"])
        answers[key].add(entry["status"])
        meant[key] = entry["fingerprint"]
    verdict.orders = len(answers)
    audited: Counter[tuple[str, str]] = Counter()
    start = f"{int(min((entry['sent'] for entry in entries), default=0) * 1000) - 60_000}"
    while True:
        lines = await call("XRANGE", "trading:audit", start, "+", "COUNT", 5000)
        for _, flat in lines:
            line = dict(zip(flat[::2], flat[1::2], strict=True))
            if line[b"e"] == b"order.accepted":
                audited[line[b"account"].decode(), line[b"order"].decode()] += 1
        if len(lines) < 5000:
            break
        start = "(" + lines[-1][0].decode()
    keys = list(answers)
    for first in range(0, len(keys), 500):
        chunk = keys[first : first + 500]
        records = await asyncio.gather(
            *(call("HMGET", f"trading:order:{account}:{id}", "decision", "fp") for account, id in chunk)
        )
        for key, (decision, fingerprint) in zip(chunk, records, strict=True):
            name = f"{key[0]}/{key[1]}"
            statuses = answers[key]
            if decision is not None and fingerprint.decode() != meant[key]:
                verdict.different.append(
                    f"{name}: the ledger holds {fingerprint.decode()}, sent {meant[key]}"
                )
            if audited[key] > 1:
                verdict.doubled.append(f"{name}: accepted {audited[key]} times")
            if statuses & {200, 201}:
                verdict.accepted += 1
                if decision != b"1":
                    verdict.lost.append(f"{name}: answered {sorted(statuses)}, the ledger says {decision!r}")
                elif audited[key] == 0:
                    verdict.lost.append(f"{name}: accepted without a line in the audit")
                elif published is not None and published[key] == 0:
                    verdict.unpublished.append(name)
                elif published is not None and published[key] > 1:
                    verdict.doubled.append(f"{name}: published {published[key]} times")
            elif 422 in statuses:
                verdict.refused += 1
                if decision != b"2":
                    verdict.different.append(f"{name}: answered 422, the ledger says {decision!r}")
            else:
                verdict.unanswered += 1
                verdict.unanswered_but_accepted += decision == b"1"
            if len(statuses & {200, 201, 422}) > 1 and 422 in statuses:
                verdict.different.append(f"{name}: answered {sorted(statuses)}")
    accounts = sorted({account for account, _ in keys})
    for first in range(0, len(accounts), 500):
        some = accounts[first : first + 500]
        counters = await asyncio.gather(*(call("HGET", f"trading:account:{a}", "accepted") for a in some))
        indexes = await asyncio.gather(*(call("ZCARD", f"trading:orders:{a}") for a in some))
        for account, counter, index in zip(some, counters, indexes, strict=True):
            if int(counter or 0) != index:
                verdict.doubled.append(f"{account}: {int(counter or 0)} admissions, {index} orders")
    return verdict


async def _published(options: argparse.Namespace, since: float) -> Counter[tuple[str, str]]:
    """How often each accepted order is in the stream of events."""
    import datetime

    from nats.errors import TimeoutError as NatsTimeout
    from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

    client = await _connect_nats(options.nats, options.nats_user, options.nats_password_file)
    found: Counter[tuple[str, str]] = Counter()
    try:
        start = datetime.datetime.fromtimestamp(since - 60, datetime.UTC)
        subscription = await client.jetstream().pull_subscribe(
            "trading.events.order.accepted.*",
            stream="TRADING_EVENTS",
            config=ConsumerConfig(
                ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.BY_START_TIME, opt_start_time=start
            ),
        )
        while True:
            try:
                messages = await subscription.fetch(1000, timeout=1)
            except (TimeoutError, NatsTimeout):
                return found
            for message in messages:
                event = json.loads(message.data)
                found[event["account"], event["order"]] += 1
    finally:
        await client.close()


def _entries(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


async def _run_judge(options: argparse.Namespace) -> int:
    from trading_bot.adapters.redis.connection import Client, Endpoint

    entries = _entries(options.log)
    if not entries:
        print("judge: the log is empty", file=sys.stderr)
        return 1
    password = _secret(options.redis_password_file)
    endpoint = Endpoint.from_url(options.redis, options.redis_username, password)
    published = None
    if options.nats:
        published = await _published(options, min(entry["sent"] for entry in entries))
    client = Client(lambda: endpoint, name="trading-bot:judge", deadline=30)
    client.start()
    try:
        async with asyncio.timeout(10):
            await client.usable()
        verdict = await judge(entries, client.call, published)
    except TimeoutError:
        print(f"judge: redis: {client.reason()}", file=sys.stderr)
        return 1
    finally:
        await client.stop()
    print(
        json.dumps(
            {
                "ok": verdict.ok,
                "orders": verdict.orders,
                "accepted": verdict.accepted,
                "refused": verdict.refused,
                "unanswered": verdict.unanswered,
                "unanswered_but_accepted": verdict.unanswered_but_accepted,
                "lost": len(verdict.lost),
                "doubled": len(verdict.doubled),
                "different": len(verdict.different),
                "unpublished": len(verdict.unpublished),
                "examples": (verdict.lost + verdict.doubled + verdict.different + verdict.unpublished)[:10],
            }
        )
    )
    return 0 if verdict.ok else 1


def _judge(options: argparse.Namespace) -> int:
    from trading_bot.errors import TradingError

    try:
        return asyncio.run(_run_judge(options))
    except (OSError, ValueError, TradingError) as error:
        print(f"judge: {error}", file=sys.stderr)
        return 2
