"""``trading-bot venue``: the paper exchange as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

# Where prices begin, in hundredths; anything else begins at 100.
_BEGIN = {"BTC-USDT": 5_000_000, "ETH-USDT": 300_000}


def add_parser(commands: Any) -> None:
    venue = commands.add_parser("venue", help="run the paper exchange until SIGTERM")
    venue.add_argument(
        "-config",
        "--config",
        metavar="FILE",
        help="for nats and venue.instruments; without it no ticks go out",
    )
    venue.add_argument("--host", default="127.0.0.1")
    venue.add_argument("--port", type=int, default=9200)
    venue.add_argument("--journal", required=True, metavar="FILE", help="what happened; read again at start")
    venue.add_argument("--seed", type=int, default=1)
    venue.add_argument("--tick", type=float, default=0.1, help="seconds between ticks (default 0.1)")
    venue.add_argument(
        "--ticks",
        metavar="FILE",
        help="replay these instead of a random walk: CSV or JSON lines of time, symbol and price",
    )
    venue.add_argument("--speed", type=float, default=1.0, help="times as fast as recorded (default 1)")
    venue.add_argument(
        "--loop",
        action="store_true",
        help="begin again at the end of the file; else the market stands still from there on",
    )
    venue.set_defaults(handler=_venue)


def _venue(options: argparse.Namespace) -> int:
    import os
    import sys
    from pathlib import Path

    import uvloop

    from trading_bot import config
    from trading_bot.domain.money import SCALE
    from trading_bot.errors import ConfigError
    from trading_bot.paper import ticks
    from trading_bot.paper.server import PaperVenue, Publish, serve

    try:
        settings = config.load(options.config) if options.config else config.parse("none", b"", os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 78
    instruments = {i: _BEGIN.get(i.symbol, 10_000) * SCALE // 100 for i in settings.venue.instruments}

    replay = None
    try:
        if options.ticks:
            if not 0.001 <= options.speed <= 1_000_000:
                raise ValueError(f"--speed: expected 0.001 to 1000000, found {options.speed:g}")
            text = Path(options.ticks).read_text(encoding="utf-8")
            known = {i.symbol: i for i in instruments}
            replay = ticks.Replay(ticks.read(options.ticks, text, known), options.speed, options.loop)
            instruments |= {known[symbol]: price for symbol, price in replay.first_prices().items()}
        elif options.loop or options.speed != 1.0:
            raise ValueError("--speed and --loop are for --ticks")
        venue = PaperVenue(
            instruments, options.journal, seed=options.seed, tick_seconds=options.tick, replay=replay
        )
    except (OSError, ValueError) as error:
        print(f"venue: {error}", file=sys.stderr)
        return 78

    async def _quiet(error: Exception) -> None:
        """The client tries again by itself."""

    async def connect() -> Publish:
        import nats
        from nats.errors import Error as NatsError

        said = ""
        while True:
            credentials: dict[str, Any] = {}
            try:
                if settings.nats.user:
                    credentials["user"] = settings.nats.user
                if settings.nats.password_file:
                    credentials["password"] = config.read_secret(settings.nats.password_file)
                client = await nats.connect(
                    [url.strip() for url in settings.nats.url.split(",")],
                    name="trading-bot venue",
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    error_cb=_quiet,
                    reconnect_time_wait=settings.nats.reconnect_wait,
                    **credentials,
                )
                break
            except (NatsError, OSError, ValueError) as error:
                if str(error) != said:
                    said = str(error)
                    print(f"venue: no ticks go out: {type(error).__name__}: {error}", file=sys.stderr)
                await asyncio.sleep(settings.nats.reconnect_wait)

        async def publish(subject: str, data: bytes) -> None:
            # A tick that cannot go out now is worth nothing later.
            if client.is_connected:
                try:
                    await client.publish(subject, data)
                except NatsError:
                    return

        return publish

    async def main() -> None:
        orders = len(venue.exchange.orders)
        print(f"venue: {orders} orders in the journal; listens on {options.host}:{options.port}", flush=True)
        await serve(venue, options.host, options.port, connect if options.config else None)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    return 0
