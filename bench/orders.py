"""Orders admitted per second by one worker, beside bare handlers on the same servers in the same run.

    python bench/orders.py [--seconds 2] [--rounds 5] [--connections 256]

The app does everything: validation, tokens, every risk check, audit, outbox, publishing to JetStream, a
log line per order; Redis writes its AOF (everysec). Beside it, on the same Redis and NATS, two bare ASGI
handlers under the same server (uvicorn, uvloop, httptools) that parse nothing, check nothing and log nothing,
written as one writes them (redis-py with its C parser, a pool of connections): one makes a single script
call that writes a hash and counts, the other awaits a JetStream publish as well. The three take turns, round
by round; a ratio is that of one round, and the median of the rounds counts. Then the app again, for as many
rounds, with orders that arrive at half of its rate, however slow the answers are; each round has its P99. It
begins once the background work of the rounds before is done.

All have the same number of connections, each with one request at a time. With few of them the app and Redis
wait for each other; the bare handlers are a little faster with 64 than with 256.

The worker's memory is told with the number of orders: those that are not done, as all are here, are in it while
the ledger is verified.

What an order costs is printed too, in CPU time of every process that works for it: unlike the rates, it hardly
changes when something else runs on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "app" / "tests"))

from servers import TOKEN, App, Nats, Redis, Server, free_port, until  # noqa: E402  # the path comes first

SCRIPT = "redis.call('HSET', KEYS[1], 'order', ARGV[1]) return redis.call('INCR', KEYS[2])"

BARE = f'''
import sys, uvicorn, uvloop, asyncio
redis_port, nats_url, port, publish = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
async def main():
    import redis.asyncio, nats
    client = redis.asyncio.Redis(port=redis_port, max_connections=int(sys.argv[5]))
    sha = await client.script_load("""{SCRIPT}""")
    stream = None
    if publish == "publish":
        stream = (await nats.connect(nats_url)).jetstream()
        await stream.add_stream(name="BARE", subjects=["bare.>"])
    async def app(scope, receive, send):
        message = await receive()
        await client.evalsha(sha, 2, "bare:order", "bare:count", message["body"])
        if stream is not None:
            await stream.publish("bare.order", message["body"])
        await send({{"type": "http.response.start", "status": 201, "headers": [(b"content-length", b"2")]}})
        await send({{"type": "http.response.body", "body": b"{{}}"}})
    config = uvicorn.Config(app, port=port, loop="none", http="httptools", ws="none", lifespan="off",
                            log_config=None, access_log=False)
    await uvicorn.Server(config).serve()
asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
'''


class Bare(Server):
    def __init__(self, directory: Path, redis: Redis, nats: Nats, *, publish: bool, connections: int) -> None:
        port = free_port()
        command = [
            sys.executable, "-c", BARE, str(redis.port), nats.url, str(port), "publish" if publish else "no", str(connections),
        ]  # fmt: skip
        super().__init__(command, port, directory / f"bare-{port}.log")


def complete(answer: bytes) -> bool:
    head = answer.find(b"\r\n\r\n")
    length = answer.find(b"content-length: ") + 16
    return head >= 0 and len(answer) >= head + 4 + int(answer[length : answer.find(b"\r", length)])


class _Lane(asyncio.Protocol):
    """A connection that sends the next request as soon as the last is answered."""

    def __init__(self, shared: Shots) -> None:
        self._shared = shared
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._shared.next())

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if not complete(self._answer):
            return
        self._shared.answered(self._answer)
        self._answer = b""
        if not self._shared.over:
            self._transport.write(self._shared.next())


class Shots:
    """Requests that are all different orders, and what was answered."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._number = 0
        self.good = 0
        self.bad = 0
        self.example = b""
        self.over = False
        self._head = f"POST /api/orders HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nX-Account-Id: "

    def next(self) -> bytes:
        n = self._number
        self._number = n + 1
        side = "buy" if n & 1 else "sell"
        body = (
            f'{{"client_order_id":"{self._run}-{n}","symbol":"BTC-USDT","side":"{side}","type":"limit",'
            f'"quantity":"0.00001","price":"{50000 + n % 100}"}}'
        )
        return f"{self._head}a{n % 2000:04d}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    def answered(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 201"):
            self.good += 1
        else:
            self.bad += 1
            self.example = data


@contextlib.asynccontextmanager
async def busy(port: int, run: str, connections: int) -> AsyncIterator[Shots]:
    """Every lane always busy, from half a second before the body. Fails if an answer was not good."""
    shots = Shots(run)
    loop = asyncio.get_running_loop()
    lanes = await asyncio.gather(*(loop.create_connection(lambda: _Lane(shots), "127.0.0.1", port) for _ in range(connections)))
    await asyncio.sleep(0.5)
    yield shots
    shots.over = True
    await asyncio.sleep(0.3)
    for transport, _ in lanes:
        transport.close()
    assert shots.bad == 0, f"{shots.bad} answers were not 201, such as {shots.example!r}"


async def saturate(
    port: int, seconds: float, run: str, processes: dict[str, int], connections: int
) -> tuple[float, dict[str, float]]:
    """Good answers a second with every lane always busy, and the microseconds of CPU that each of
    ``processes`` took for one. Fails if an answer was not good."""
    async with busy(port, run, connections) as shots:
        used = {name: cpu(pid) for name, pid in processes.items()}
        before, began = shots.good, time.perf_counter()
        await asyncio.sleep(seconds)
        answered = shots.good - before
        rate = answered / (time.perf_counter() - began)
        return rate, {name: (cpu(pid) - used[name]) / max(answered, 1) * 1e6 for name, pid in processes.items()}


class _Timed(asyncio.Protocol):
    """A connection that sends when it is told to, and notes how long after the order was due it was answered."""

    def __init__(self, shots: Shots, idle: list[_Timed], latencies: list[float]) -> None:
        self._shots = shots
        self._idle = idle
        self._latencies = latencies
        self._answer = b""
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._idle.append(self)

    def fire(self, due: float) -> None:
        self._due = due
        self._transport.write(self._shots.next())

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if complete(self._answer):
            self._latencies.append(time.perf_counter() - self._due)
            self._shots.answered(self._answer)
            self._answer = b""
            self._idle.append(self)

    def close(self) -> None:
        self._transport.close()


async def arrive(port: int, rate: float, seconds: float, run: str, connections: int) -> tuple[list[float], int]:
    """Orders that are due at a fixed rate, however slow the answers are, from half a second after the server
    accepted the connections: latencies, and how many failed."""
    shots, idle, latencies = Shots(run), list[_Timed](), list[float]()
    loop = asyncio.get_running_loop()

    async def connect() -> None:
        await loop.create_connection(lambda: _Timed(shots, idle, latencies), "127.0.0.1", port)

    await asyncio.gather(*(connect() for _ in range(connections)))
    lanes = list(idle)
    await asyncio.sleep(0.5)
    began = time.perf_counter()
    sent, count = 0, int(rate * seconds)
    while sent < count:
        await asyncio.sleep(0.001)
        now = time.perf_counter() - began
        while sent < count and sent / rate <= now and idle:
            idle.pop().fire(began + sent / rate)
            sent += 1
    for _ in range(300):
        if len(latencies) == count:
            break
        await asyncio.sleep(0.01)
    for lane in lanes:
        lane.close()
    return sorted(latencies), count - shots.good


def cpu(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def verified(redis: Redis) -> bool:
    """Whether the verification has read all of the audit, so that none of its work is left from earlier rounds."""
    progress = redis.cli("GET", "trading:verified:progress")
    last = redis.cli("XREVRANGE", "trading:audit", "+", "-", "COUNT", "1").partition("\n")[0]
    return bool(progress) and json.loads(progress)["at"] == last


def figure(name: str, value: float, unit: str, goal: float, *, most: bool = False) -> bool:
    good = value <= goal if most else value >= goal
    print(f"{name} {value:.2f} {unit} goal {goal:g} {'ok' if good else 'short'}", flush=True)
    return good


def main() -> int:
    import uvloop

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--nats-config", help="for nats-server -c, such as: jetstream {sync_interval: always}, as a fleet has it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-orders-") as name:
        directory = Path(name)
        redis = Redis(directory / "redis")
        nats = Nats(directory / "nats", *(["-c", options.nats_config] if options.nats_config else []))
        redis.start()
        nats.start()
        app = App(directory / "app", redis.url, nats.url, extra="risk: {max_orders_per_second: 0}\n")
        bare = {
            "script": Bare(directory, redis, nats, publish=False, connections=options.connections),
            "publish": Bare(directory, redis, nats, publish=True, connections=options.connections),
        }
        servers: dict[str, Server] = {"app": app, **bare}
        try:
            app.start_ready()
            for handler in bare.values():
                handler.start()
            rates: dict[str, list[float]] = {name: [] for name in servers}
            costs: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                for turn in range(options.rounds):
                    for kind, server in servers.items():
                        processes = {"worker": server, "redis": redis, "nats": nats}
                        pids = {name: each.process.pid for name, each in processes.items() if each.process}
                        rate, cost = runner.run(
                            saturate(server.port, options.seconds, f"{kind}{turn}", pids, options.connections)
                        )
                        rates[kind].append(rate)
                        costs[kind].append(cost)
                        until(lambda: redis.cli("XLEN", "trading:outbox") == "0", 60, "the outbox is empty")
            until(lambda: verified(redis), 120, "the ledger is verified as far as it goes")
            median = {kind: statistics.median(values) for kind, values in rates.items()}

            def ratio(bare: str) -> float:
                return statistics.median(ours / theirs for ours, theirs in zip(rates["app"], rates[bare], strict=True))

            assert app.process is not None
            memory, ordered = resident(app.process.pid), int(redis.cli("ZCARD", "trading:dispatch"))
            half = median["app"] / 2
            latencies: dict[float, list[float]] = {0.5: [], 0.99: []}
            failed = 0
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                for turn in range(options.rounds):
                    taken, unanswered = runner.run(arrive(app.port, half, options.seconds, f"open{turn}", options.connections))
                    failed += unanswered
                    for quantile, values in latencies.items():
                        values.append(taken[int(len(taken) * quantile)] * 1000)
                    until(lambda: redis.cli("XLEN", "trading:outbox") == "0", 60, "the outbox is empty")
            p50, p99 = (statistics.median(values) for values in latencies.values())
            print(f"orders.app.rate {median['app']:.0f} orders/s")
            print(f"orders.bare-script.rate {median['script']:.0f} requests/s")
            print(f"orders.bare-publish.rate {median['publish']:.0f} requests/s")
            for kind, rounds in costs.items():
                parts = {name: statistics.median(cost[name] for cost in rounds) for name in rounds[0]}
                shown = " ".join(f"{name} {value:.0f}" for name, value in parts.items())
                print(f"orders.cpu.{kind} {sum(parts.values()):.0f} us of which {shown}")
            each = ", ".join(f"{of_round:.1f}" for of_round in latencies[0.99])
            print(f"orders.half.rate {half:.0f} orders/s p50 {p50:.2f} ms, p99 of each round {each} ms")
            print(f"orders.worker-memory-after {ordered} orders")
            good = [
                figure("orders.ratio-to-bare-script", ratio("script"), "x", 1.0),
                figure("orders.ratio-to-bare-publish", ratio("publish"), "x", 2.0),
                figure("orders.p99-at-half-rate", p99, "ms", 10, most=True),
                figure("orders.failed-at-half-rate", failed, "orders", 0, most=True),
                figure("orders.worker-memory", memory, "MB", 120, most=True),
            ]
        finally:
            for started in (*servers.values(), nats, redis):
                started.kill()
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(main())
