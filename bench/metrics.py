"""What the app's metrics cost of its throughput: one instance under full load, with its metrics on and off in turn.

    python bench/metrics.py [--spans 12] [--pairs 50] [--seconds 0.1]

The instance runs as it is, but for a switch: on one signal its counters and snapshots do nothing, on another they do all.
Slices with and without follow each other closely, each first in every other pair, so that what else the machine does bears
on both alike; after each span of them the outbox is let empty. `/metrics` is asked for once in a span, as often as Prometheus
does. What counts is the worker's CPU time for an order, since a worker that is always busy decides as many orders as it has
CPU time for. Beside the cost stands its standard error over the spans.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orders
from servers import App, Nats, Redis, until  # found by the path that orders has set

SWITCHED = """
import signal, sys
from trading_bot.adapters.metrics import Metrics
from trading_bot.service.telemetry import Telemetry
counting = True
def turn(number, _):
    global counting
    counting = number == signal.SIGUSR1
signal.signal(signal.SIGUSR1, turn)
signal.signal(signal.SIGUSR2, turn)
def switched(real):
    def method(*arguments):
        if counting:
            real(*arguments)
    return method
Metrics.order, Metrics.response = switched(Metrics.order), switched(Metrics.response)
begin = Telemetry.__init__
def init(self, *arguments):
    begin(self, *arguments)
    on = self._on
    self._on = lambda: counting and on()
Telemetry.__init__ = init
from trading_bot.entrypoints.cli import main
sys.exit(main(sys.argv[1:]))
"""


def used(pid: int) -> float:
    """Seconds of CPU, to the nanosecond."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


@dataclass
class Use:
    cpu: float = 0.0
    orders: int = 0
    seconds: float = 0.0


async def span(app: App, run: str, pairs: int, seconds: float) -> dict[str, Use]:
    """What was used with and without."""
    assert app.process is not None
    pid = app.process.pid
    asked: list[asyncio.Future[Any]] = []
    found = {"with": Use(), "without": Use()}
    async with orders.busy(app.port, run, 64) as shots:
        for pair in range(pairs):
            for kind in list(found)[:: 1 if pair % 2 else -1]:
                app.process.send_signal(signal.SIGUSR1 if kind == "with" else signal.SIGUSR2)
                await asyncio.sleep(0.005)
                cpu, good, began = used(pid), shots.good, time.perf_counter()
                if kind == "with" and not asked:
                    asked.append(asyncio.get_running_loop().run_in_executor(None, app.call, "GET", "/metrics"))
                await asyncio.sleep(seconds)
                found[kind].cpu += used(pid) - cpu
                found[kind].orders += shots.good - good
                found[kind].seconds += time.perf_counter() - began
        assert (await asked[0])[0] == 200
    return found


def main() -> int:
    import uvloop

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--spans", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=0.1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-metrics-") as name:
        directory = Path(name)
        redis, nats = Redis(directory / "redis"), Nats(directory / "nats")
        app = App(directory / "app", redis.url, nats.url, extra="risk: {max_orders_per_second: 0}\n")
        app.command = [sys.executable, "-c", SWITCHED, "-config", str(app.config)]
        spans: list[dict[str, Use]] = []
        try:
            redis.start()
            nats.start()
            app.start_ready()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                for number in range(options.spans):
                    spans.append(runner.run(span(app, f"s{number}", options.pairs, options.seconds)))
                    until(lambda: redis.cli("XLEN", "trading:outbox") == "0", 60, "the outbox is empty")
        finally:
            app.kill()
            nats.kill()
            redis.kill()
    for kind in ("with", "without"):
        rate = sum(each[kind].orders for each in spans) / sum(each[kind].seconds for each in spans)
        cost = sum(each[kind].cpu for each in spans) / sum(each[kind].orders for each in spans)
        print(f"metrics.{kind} {rate:.0f} orders/s {cost * 1e6:.1f} us of CPU for an order")
    costs = [
        100 * (1 - (each["without"].cpu / each["without"].orders) / (each["with"].cpu / each["with"].orders)) for each in spans
    ]
    print(f"metrics.error {statistics.stdev(costs) / len(costs) ** 0.5:.2f} %")
    return 0 if orders.figure("metrics.cost", statistics.mean(costs), "%", 3, most=True) else 1


if __name__ == "__main__":
    raise SystemExit(main())
