"""Wires one instance together and runs it until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
from collections.abc import Iterator
from decimal import Decimal
from importlib import metadata

import uvicorn
from nats.aio.msg import Msg

from trading_bot import config
from trading_bot.adapters import signing
from trading_bot.adapters.logs import JsonLog
from trading_bot.adapters.metrics import Metrics
from trading_bot.adapters.nats.bus import Bus, Settings
from trading_bot.adapters.redis import ledger as redis
from trading_bot.adapters.redis.connection import Client, Endpoint
from trading_bot.adapters.tokens import Tokens
from trading_bot.config import Config
from trading_bot.domain.limits import Limits
from trading_bot.domain.traffic import Traffic, TrafficGate
from trading_bot.entrypoints.bus import BusApi
from trading_bot.entrypoints.cork import CorkedProtocol
from trading_bot.entrypoints.http import HttpApi
from trading_bot.errors import CannotListen, ConfigError, TradingError, Unavailable
from trading_bot.ports import Probe, Venue
from trading_bot.service.dispatch import Dispatcher
from trading_bot.service.hotfix import tightened
from trading_bot.service.instance import Identity, Instance
from trading_bot.service.marks import Marks
from trading_bot.service.relay import Relay
from trading_bot.service.submit import OUTCOMES, OrderDesk
from trading_bot.service.switches import Switches
from trading_bot.service.telemetry import Telemetry


def version() -> str:
    return metadata.version("trading-bot")


def identity_from(environ: dict[str, str]) -> Identity:
    return Identity(
        version=version(),
        release_id=environ.get("TRADING_RELEASE_ID", "none"),
        slot=environ.get("TRADING_RELEASE_SLOT", "blue"),
        image=environ.get("TRADING_RELEASE_IMAGE", "none"),
        instance=environ.get("TRADING_RELEASE_INSTANCE") or socket.gethostname(),
    )


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: when to stop listening is the drain's decision."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _secret(path: str, dependency: str) -> str:
    """Read anew at each connection, so that a rotated password needs no restart."""
    if not path:
        return ""
    try:
        return config.read_secret(path)
    except OSError as error:
        raise Unavailable(dependency, f"{path}: {error.strerror}") from None


class Executor:
    """One instance: everything that ``run`` starts, and the order in which it stops."""

    def __init__(self, settings: Config, identity: Identity) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        log = self._log = JsonLog(version=identity.version, slot=identity.slot, instance=identity.instance)
        name = f"{identity.instance}/{identity.slot}"

        def endpoint() -> Endpoint:
            password = _secret(settings.redis.password_file, "redis")
            return Endpoint.from_url(settings.redis.url, settings.redis.username, password)

        self._client = Client(endpoint, name=f"trading-bot:{identity.slot}", scripts=redis.SCRIPTS)
        self._feed = Client(endpoint, name=f"trading-bot:{identity.slot}:feed", deadline=5)
        holder = f"{name}/{os.getpid()}"
        self._outbox = redis.RedisOutbox(self._client, self._feed, holder=holder)
        self._probe = redis.RedisProbe(
            self._client, f"trading:instance:{name}", identity.version, self._prepare
        )
        ledger = self._ledger = redis.RedisLedger(
            self._client,
            version=identity.version,
            slot=identity.slot,
            limits=Limits.of(settings.risk),
        )
        self._venue = _venue(settings)
        book = self._book = redis.RedisBook(
            self._client,
            version=identity.version,
            slot=identity.slot,
            holder=holder,
            venue=self._venue.name if self._venue else "none",
        )
        self._marks = Marks(book)
        self._dispatcher = None
        if self._venue is not None:
            self._dispatcher = Dispatcher(
                book,
                self._venue,
                log,
                timeout=settings.venue.request_timeout,
                recheck=settings.venue.recheck_interval,
            )
        gate = self._gate = TrafficGate(identity.slot, identity.release_id)
        build = {
            "release_id": identity.release_id,
            "image": identity.image,
            "instance": identity.instance,
            "config_hash": settings.sha256,
        }
        metrics = self._metrics = Metrics(identity.version, identity.slot, build, OUTCOMES)
        tokens = Tokens.from_file(settings.server.tokens_file)
        self._bus = Bus(
            Settings(
                urls=[url.strip() for url in settings.nats.url.split(",")],
                name=f"trading-bot {name}",
                slot=identity.slot,
                user=settings.nats.user,
                password=lambda: _secret(settings.nats.password_file, "nats"),
                reconnect_wait=settings.nats.reconnect_wait,
                max_reconnects=settings.nats.max_reconnects,
                replicas=settings.nats.stream_replicas,
            ),
            on_begin=self._on_begin,
            on_traffic=self._on_traffic,
            on_request=self._on_request,
            on_tick=self._marks.tick,
            on_control=self._on_control,
            on_change=lambda reason: log("nats", state="away" if reason else "usable", reason=reason),
        )
        self._client.on_change(
            lambda reason: log("redis", state="away" if reason else "usable", reason=reason)
        )
        needs: dict[str, Probe] = {"redis": self._probe, "nats": self._bus}
        key_file = settings.server.hotfix_key_file
        self._switches = Switches(
            redis.RedisPanel(self._client, version=identity.version, slot=identity.slot),
            lambda: self._settings.risk,
            (lambda payload, signature: signing.verify(key_file, payload, signature)) if key_file else None,
            self._announce,
            self._hold_to_limits,
            log,
        )
        self._telemetry = Telemetry(
            redis.RedisFeed(self._client),
            metrics.totals,
            {"instance": identity.instance, "version": identity.version, "slot": identity.slot},
            self._monitoring,
            lambda: self._switches.on("metrics_feed"),
        )
        nudge = self._dispatcher.nudge if self._dispatcher else lambda: None
        self._desk = OrderDesk(ledger, needs, metrics.order, log, nudge)
        ready: dict[str, Probe] = {**needs, **({"venue": self._dispatcher} if self._dispatcher else {})}
        self.instance = Instance(identity, settings.sha256, ready, self._switches)
        prefix = f"{identity.instance}-{identity.slot}-{self.instance.started_ms:x}"
        self._bus_api = BusApi(gate, self._desk, tokens, prefix, log)
        self._relay = Relay(self._outbox, self._bus, log)
        self._pending = 0
        metrics.gauges["trading_ready"] = (
            "1 while the instance takes orders.",
            lambda: not self.instance.not_ready(),
        )
        metrics.gauges["trading_redis_up"] = (
            "1 while Redis is usable.",
            lambda: self._probe.reason() is None,
        )
        metrics.gauges["trading_nats_up"] = ("1 while NATS is usable.", lambda: self._bus.reason() is None)
        metrics.gauges["trading_orders_in_flight"] = (
            "Orders being decided now.",
            lambda: self._desk.in_flight,
        )
        metrics.gauges["trading_outbox_pending"] = (
            "Events that the bus has yet to store.",
            lambda: self._pending,
        )
        rate = settings.risk.margin_rate
        api = HttpApi(
            self.instance,
            self._desk,
            self._switches,
            tokens,
            self._render_metrics,
            rate,
            metrics.response,
            log,
        )
        self._server = _Server(
            uvicorn.Config(
                api,
                host=settings.server.host,
                port=settings.server.port,
                loop="none",
                http=CorkedProtocol,
                proxy_headers=False,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=75,
            )
        )

    def stop(self) -> None:
        self._stop.set()

    def reload(self) -> None:
        """Read the config again and take over risk, monitoring and versioning. A bad file changes nothing."""
        try:
            fresh = config.load(self._settings.file)
        except ConfigError as error:
            self._log("reload", outcome="refused", reason=str(error))
            return
        before = self._settings
        self._settings = dataclasses.replace(
            before,
            sha256=fresh.sha256,
            risk=fresh.risk,
            monitoring=fresh.monitoring,
            versioning=fresh.versioning,
        )
        self.instance.config_hash = fresh.sha256
        self._hold_to_limits()
        same = ("server", "redis", "nats", "venue")
        restart = [name for name in same if getattr(fresh, name) != getattr(before, name)]
        self._log("reload", outcome="taken over", config=fresh.sha256, needs_restart=restart)

    async def run(self) -> None:
        """Serve until ``stop``, then drain. Raises CannotListen."""
        identity, settings = self.instance.identity, self._settings
        listener = _listen(settings.server.host, settings.server.port)
        self._log(
            "start",
            release=identity.release_id,
            config=settings.sha256,
            listen=f"{settings.server.host}:{settings.server.port}",
        )
        if not settings.server.tokens_file:
            self._log("warning", detail="server.tokens_file is not set: every order is refused with 401")
        self._client.start()
        self._feed.start()
        self._bus.start()
        loop = asyncio.get_running_loop()
        relaying = loop.create_task(self._relay.run())
        background = [relaying, loop.create_task(self._probe.run()), loop.create_task(self._marks.run())]
        background += [loop.create_task(self._switches.run()), loop.create_task(self._telemetry.run())]
        if self._dispatcher is not None:
            background += [
                loop.create_task(self._dispatcher.run()),
                loop.create_task(self._dispatcher.follow()),
            ]
        opening = loop.create_task(self._open_requests())
        serving = loop.create_task(self._server.serve(sockets=[listener]))
        stopping = loop.create_task(self._stop.wait())
        done, _ = await asyncio.wait({serving, stopping, *background}, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            task.result()
            raise TradingError("a part of the instance ended by itself")
        try:
            async with asyncio.timeout(settings.server.drain_timeout):
                await self._drain(serving, relaying)
        except TimeoutError:
            self._log("stop", outcome="drain timed out; what waits in the outbox is left to others")
        for task in (serving, opening, *background):
            task.cancel()
        await asyncio.gather(serving, opening, *background, return_exceptions=True)
        if self._venue is not None:
            await self._venue.close()
            with contextlib.suppress(TradingError):
                await self._book.leave("reports")
        await self._bus.stop()
        await self._client.stop()
        await self._feed.stop()
        self._log("stop", outcome="stopped")
        self._log.flush()

    async def _open_requests(self) -> None:
        """On NATS nobody checks the health of who is chosen, so an instance takes part once it can serve."""
        await self._probe.usable_once.wait()
        self._bus.open_requests()

    async def _drain(self, serving: asyncio.Task[None], relaying: asyncio.Task[None]) -> None:
        """No request fails: stop being chosen, go on serving while others notice, finish, flush."""
        self.instance.draining = True
        self._log("drain", step="not ready any more", notice=self._settings.server.drain_notice)
        await self._bus.stop_requests()
        await self._bus_api.finish()
        await asyncio.sleep(self._settings.server.drain_notice)
        self._server.should_exit = True
        await serving
        self._desk.closed = True
        self._log("drain", step="requests finished")
        if self._dispatcher is not None:
            await self._dispatcher.finish()
        relaying.cancel()
        await asyncio.gather(relaying, return_exceptions=True)
        try:
            flushed = await self._relay.flush()
            self._log("drain", step="outbox flushed" if flushed else "outbox left to its holder")
        except TradingError as error:
            self._log("drain", step="outbox left to others", reason=str(error))

    def _monitoring(self) -> tuple[float, float, str]:
        section = self._settings.monitoring
        return section.collect_interval, section.retention_period, section.metrics_channel

    async def _announce(self) -> None:
        await self._bus.announce()

    def _on_control(self) -> None:
        self._switches.nudge()

    async def _on_request(self, message: Msg) -> None:
        await self._bus_api.handle(message)

    async def _prepare(self) -> None:
        await self._book.note_instruments(self._settings.venue.instruments, replace=False)

    def _hold_to_limits(self) -> None:
        """What the config says, tightened by hotfixes; a canary may be held to a fraction of each limit."""
        traffic = self._gate.current
        canary = traffic is not None and traffic.canary == self.instance.identity.slot and traffic.cut > 0
        risk = tightened(self._settings.risk, self._switches.hotfixes)
        self._ledger.limits = Limits.of(risk, risk.canary_fraction if canary else Decimal(1))

    def _on_begin(self, traffic: Traffic | None) -> None:
        self._gate.begin(traffic)
        self._hold_to_limits()

    def _on_traffic(self, traffic: Traffic) -> None:
        if self._gate.update(traffic, asyncio.get_running_loop().time()):
            self._hold_to_limits()
            self._log(
                "traffic", stable=traffic.stable, canary=traffic.canary, salt=traffic.salt, cut=traffic.cut
            )

    async def _render_metrics(self) -> bytes:
        with contextlib.suppress(TradingError):
            self._pending = await self._outbox.pending()
        self._metrics.published = self._relay.published
        return self._metrics.render()


def _venue(settings: Config) -> Venue | None:
    if settings.venue.adapter == "paper":
        from trading_bot.adapters.venues.paper import PaperVenueClient

        return PaperVenueClient(settings.venue.url, settings.venue.request_timeout)
    return None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CannotListen(f"cannot listen on {host}:{port}: {error.strerror}") from None
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def run(settings: Config, identity: Identity) -> int:
    """Run one instance to its end; the exit status."""
    import gc

    import uvloop

    async def main() -> None:
        executor = Executor(settings, identity)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, executor.stop)
        loop.add_signal_handler(signal.SIGHUP, executor.reload)
        # What exists now lives as long as the process: spare the collector from looking at it again.
        gc.collect()
        gc.freeze()
        await executor.run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    return 0
