"""What the app's metrics cost of its throughput, beside the same app without them, on the same servers in the same run.

    python bench/metrics.py [--seconds 5] [--rounds 6]

Two instances take turns on one Redis and one NATS, round by round: one as it is, asked for `/metrics` once in each round; the
other with its counters and its snapshots replaced by nothing, in its process alone. What counts is the CPU time of the
worker for an order, since a worker that is always busy decides as many orders as it has CPU time for; the rates are
printed too.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from pathlib import Path

import orders
from servers import App, Nats, Redis, until  # found by the path that orders has set

WITHOUT = """
import asyncio, sys
from trading_bot.adapters.metrics import Metrics
from trading_bot.service.telemetry import Telemetry
async def never(self): await asyncio.Event().wait()
Metrics.order = Metrics.response = lambda *_: None
Telemetry.run = never
from trading_bot.entrypoints.cli import main
sys.exit(main(sys.argv[1:]))
"""


async def round_of(app: App, seconds: float, run: str, *, asked: bool) -> tuple[float, float]:
    """Orders a second, and the worker's microseconds of CPU for one; ``asked`` for its metrics in the middle."""
    assert app.process is not None

    async def ask() -> None:
        if asked:
            await asyncio.sleep(0.5 + seconds / 2)
            await asyncio.to_thread(app.call, "GET", "/metrics")

    (rate, cost), _ = await asyncio.gather(orders.saturate(app.port, seconds, run, {"worker": app.process.pid}), ask())
    return rate, cost["worker"]


def main() -> int:
    import uvloop

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-metrics-") as name:
        directory = Path(name)
        redis, nats = Redis(directory / "redis"), Nats(directory / "nats")
        redis.start()
        nats.start()
        apps = {
            kind: App(directory / kind, redis.url, nats.url, slot=slot, extra="risk: {max_orders_per_second: 0}\n")
            for kind, slot in (("with", "blue"), ("without", "green"))
        }
        apps["without"].command = [sys.executable, "-c", WITHOUT, "-config", str(apps["without"].config)]
        rates: dict[str, list[float]] = {kind: [] for kind in apps}
        costs: dict[str, list[float]] = {kind: [] for kind in apps}
        try:
            for app in apps.values():
                app.start_ready()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                for turn in range(options.rounds):
                    # Each goes first in every other round.
                    for kind in list(apps)[:: 1 if turn % 2 else -1]:
                        found = runner.run(round_of(apps[kind], options.seconds, f"{kind}{turn}", asked=kind == "with"))
                        rates[kind].append(found[0])
                        costs[kind].append(found[1])
                        until(lambda: redis.cli("XLEN", "trading:outbox") == "0", 60, "the outbox is empty")
        finally:
            for app in apps.values():
                app.kill()
            nats.kill()
            redis.kill()
    for kind in apps:
        rate, cost = statistics.median(rates[kind]), statistics.median(costs[kind])
        print(f"metrics.{kind} {rate:.0f} orders/s {cost:.1f} us of CPU for an order")
    more = statistics.median(a / b for a, b in zip(costs["with"], costs["without"], strict=True))
    return 0 if orders.figure("metrics.cost", 100 * (1 - 1 / more), "%", 3, most=True) else 1


if __name__ == "__main__":
    raise SystemExit(main())
