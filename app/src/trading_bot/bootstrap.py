"""Wires one instance together and runs it until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from importlib import metadata
from pathlib import Path

from nats.aio.msg import Msg

from trading_bot import config
from trading_bot.adapters import asgi, signing
from trading_bot.adapters.logs import JsonLog
from trading_bot.adapters.metrics import Metrics, escape
from trading_bot.adapters.nats.bus import Bus, Settings
from trading_bot.adapters.nats.tail import EventTail
from trading_bot.adapters.redis import ledger as redis
from trading_bot.adapters.redis.accounts import RedisAccounts, RedisAlerts
from trading_bot.adapters.redis.connection import Client, Endpoint, Pool
from trading_bot.adapters.redis.probe import RedisFeed, RedisProbe
from trading_bot.adapters.redis.unanswered import RedisUnanswered
from trading_bot.adapters.tokens import Tokens
from trading_bot.config import Config
from trading_bot.domain.limits import Limits
from trading_bot.domain.money import SCALE
from trading_bot.domain.traffic import Traffic, TrafficGate
from trading_bot.entrypoints.bus import BusApi
from trading_bot.entrypoints.cork import CorkedProtocol
from trading_bot.entrypoints.http import HttpApi
from trading_bot.errors import CannotListen, ConfigError, ConfigIssue, TradingError, Unavailable
from trading_bot.ports import Event, Log, Probe, Venue
from trading_bot.service.alerts import Alerts
from trading_bot.service.dispatch import Dispatcher, NoVenue
from trading_bot.service.hotfix import tightened
from trading_bot.service.instance import Identity, Instance
from trading_bot.service.marks import Marks
from trading_bot.service.relay import Relay
from trading_bot.service.retention import Backlog, Retention
from trading_bot.service.risk import RiskSettings, RiskWatch, gauges
from trading_bot.service.shadow import Mirror, Shadow
from trading_bot.service.streams import Streams
from trading_bot.service.submit import OUTCOMES, OrderDesk
from trading_bot.service.switches import Switches
from trading_bot.service.telemetry import Telemetry
from trading_bot.service.unanswered import UnansweredWatch
from trading_bot.service.verification import Verifier


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


def reloaded(identity: Identity, file: str) -> Identity:
    """Who the instance is with the release.json beside its config; without one, who it was.

    Raises ConfigError.
    """
    path = Path(file).with_name("release.json")
    try:
        release = json.loads(path.read_bytes())
        named, images = str(release["id"]), (release.get("image"), release.get("wheel_sha256"))
    except FileNotFoundError:
        return identity
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(str(path), [ConfigIssue("id", "a release with an id", str(error))]) from None
    if identity.image not in images:
        raise ConfigError(str(path), [ConfigIssue("image", f"{identity.image}, which runs", str(images[0]))])
    return dataclasses.replace(identity, release_id=named)


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
            password = _secret(config.beside(settings.file, settings.redis.password_file), "redis")
            return Endpoint.from_url(settings.redis.url, settings.redis.username, password)

        self._client = Client(endpoint, name=f"trading-bot:{identity.slot}", scripts=redis.SCRIPTS)
        self._feed = Client(endpoint, name=f"trading-bot:{identity.slot}:feed", deadline=5)
        # The two above and this are all the connections there are: redis.pool_size.
        size = settings.redis.pool_size - 2
        self._reads = Pool(
            endpoint, name=f"trading-bot:{identity.slot}:read", scripts=redis.SCRIPTS, size=size
        )
        holder = f"{name}/{os.getpid()}"
        self._outbox = redis.RedisOutbox(self._client, self._feed, holder=holder)
        self._probe = RedisProbe(self._client, f"trading:instance:{name}", identity.version, self._prepare)
        ledger = self._ledger = redis.RedisLedger(
            self._client,
            version=identity.version,
            slot=identity.slot,
            limits=Limits.of(settings.risk),
            reads=self._reads,
        )
        self._venue = _venue(settings, log)
        book = self._book = redis.RedisBook(
            self._client,
            version=identity.version,
            slot=identity.slot,
            holder=holder,
            venue=self._venue.name if self._venue else "none",
        )
        gate = self._gate = TrafficGate(identity.slot, identity.release_id)
        self._marks = Marks(book)
        self._dispatcher = None
        if self._venue is not None:
            self._dispatcher = Dispatcher(
                book,
                self._venue,
                log,
                timeout=settings.venue.request_timeout,
                recheck=settings.venue.recheck_interval,
                member=gate.member,
            )
        build = {
            "release_id": identity.release_id,
            "image": identity.image,
            "instance": identity.instance,
            "config_hash": settings.sha256,
        }
        metrics = self._metrics = Metrics(identity.version, identity.slot, build, OUTCOMES)
        tokens = Tokens.from_file(config.beside(settings.file, settings.server.tokens_file))
        self._bus = Bus(
            Settings(
                urls=[url.strip() for url in settings.nats.url.split(",")],
                name=f"trading-bot {name}",
                slot=identity.slot,
                release=identity.release_id,
                user=settings.nats.user,
                password=lambda: _secret(config.beside(settings.file, settings.nats.password_file), "nats"),
                reconnect_wait=settings.nats.reconnect_wait,
                max_reconnects=settings.nats.max_reconnects,
                replicas=settings.nats.stream_replicas,
                retention=settings.nats.events_retention,
            ),
            takes=gate.takes,
            on_begin=self._on_begin,
            on_traffic=self._on_traffic,
            on_request=self._on_request,
            on_tick=self._marks.tick,
            on_control=self._on_control,
            on_copy=self._on_copy,
            on_change=lambda reason: log("nats", state="away" if reason else "usable", reason=reason),
        )
        self._client.on_change(
            lambda reason: log("redis", state="away" if reason else "usable", reason=reason)
        )
        needs: dict[str, Probe] = {"redis": self._probe, "nats": self._bus}
        key_file = config.beside(settings.file, settings.server.hotfix_key_file)
        self._switches = Switches(
            redis.RedisPanel(self._client, version=identity.version, slot=identity.slot),
            lambda: self._settings.risk,
            (lambda payload, signature: signing.verify(key_file, payload, signature)) if key_file else None,
            self._announce,
            self._hold_to_limits,
            log,
        )
        self._telemetry = Telemetry(
            RedisFeed(self._client),
            metrics.totals,
            {"instance": identity.instance, "version": identity.version, "slot": identity.slot},
            self._monitoring,
            lambda: self._switches.on("metrics_feed"),
            lambda: self._risk.summary,
        )
        self._alerts = Alerts(
            RedisAlerts(self._client),
            {"instance": identity.instance, "version": identity.version, "slot": identity.slot},
            lambda: (self._settings.monitoring.alerts_channel, self._settings.monitoring.alert_interval),
            log,
        )
        self._risk = RiskWatch(
            RedisAccounts(self._reads, self._client, book, ledger),
            lambda: ledger.limits,
            self._alerts,
            self._risk_settings,
            identity.version,
        )
        metrics.labelled |= gauges(lambda: self._risk.summary)
        metrics.counters["trading_alerts_total"] = (
            "Alerts that this instance put on the board.",
            lambda: {"": self._alerts.told},
        )
        metrics.counters["trading_alerts_dropped_total"] = (
            "Alerts that came too fast for the board.",
            lambda: {"": self._alerts.dropped},
        )
        self._mirror = Mirror(identity.slot, self._bus.copy, log)
        shadow = self._shadow = Shadow(identity.slot, identity.release_id, ledger, log)
        nudge = self._dispatcher.nudge if self._dispatcher else lambda: None
        self._backlog = Backlog(self._outbox, settings.redis.max_outbox_events)
        self._retention = Retention(
            redis.RedisAudit(self._client), settings.redis.audit_retention, log, gate.member
        )
        intake: dict[str, Probe] = {"outbox": self._backlog}
        ready: dict[str, Probe] = dict(needs)
        if self._dispatcher is not None:
            ready["venue"] = self._dispatcher
        elif settings.venue.adapter == "none":
            ready["venue"] = intake["venue"] = NoVenue()
        self._desk = OrderDesk(
            ledger, needs, metrics.order, log, nudge, self._mirror, intake, self._switches.maintenance
        )
        self._desk.on_conflict = self._alerts.conflict
        self.instance = Instance(
            identity, settings.sha256, ready, needs, self._switches, lambda: gate.current
        )
        prefix = f"{identity.instance}-{identity.slot}-{self.instance.started_ms:x}"
        self._bus_api = BusApi(gate, self._desk, tokens, prefix, log)
        self._relay = Relay(self._outbox, self._bus, log, gate.member, self._hear)
        metrics.gauges["trading_ready"] = (
            "1 while the instance takes orders.",
            lambda: not self.instance.not_ready(),
        )
        metrics.gauges["trading_member"] = (
            "1 while the instance sends orders and publishes events: the traffic map gives it a part.",
            gate.member,
        )
        dispatcher = self._dispatcher
        metrics.counters["trading_duplicated_executions_total"] = (
            "Fills beyond an order's quantity, and trades that came a second time with another content.",
            lambda: {"": dispatcher.doubled if dispatcher else 0},
        )
        metrics.counters["trading_fenced_writes_total"] = (
            "Conclusions that came after another instance had taken the order over, and were not written.",
            lambda: {"": dispatcher.fenced if dispatcher else 0},
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
            lambda: self._backlog.pending,
        )
        metrics.gauges["trading_outbox_oldest_seconds"] = (
            "How long the oldest of them has waited.",
            lambda: self._backlog.oldest_seconds,
        )
        unanswered = self._unanswered = UnansweredWatch(
            RedisUnanswered(self._reads), settings.venue.request_timeout * 3 + 1
        )
        metrics.gauges["trading_unknown_orders"] = (
            "Orders that were sent and about which the venue has said nothing yet, of all instances.",
            lambda: unanswered.count,
        )
        metrics.gauges["trading_unknown_orders_oldest_seconds"] = (
            "How long ago the first of them was sent.",
            lambda: unanswered.oldest_seconds,
        )
        for name, text in (("halted", "nobody trades"), ("degraded", "all may only reduce")):
            metrics.gauges[f"trading_{name}"] = (f"1 while {text}.", partial(self._switches.in_force, name))
        metrics.labelled["trading_limit"] = (
            "Limits in force for an order that this instance decides.",
            lambda: {
                f'limit="{name}"': getattr(ledger.limits, name) / SCALE
                for name in ("max_position_size", "max_leverage", "min_margin_level", "max_drawdown")
            },
        )
        metrics.labelled["trading_token_expires_timestamp_seconds"] = (
            "When an API token ends; one that does not end has no series.",
            lambda: {f'token="{escape(name)}"': at for name, at in tokens.expiry().items()},
        )
        verifier = self._verifier = Verifier(
            redis.RedisArchive(self._reads, holder=holder),
            lambda: self._settings.versioning.validation_interval,
            {"version": identity.version, "slot": identity.slot},
            log,
            gate.member,
        )
        metrics.gauges["trading_ledger_differences"] = (
            "Where the ledger differs from what its audit tells, by the last verification of any instance.",
            lambda: verifier.known.count,
        )
        metrics.gauges["trading_ledger_verified_timestamp_seconds"] = (
            "When the ledger was last verified, by any instance.",
            lambda: verifier.known.verified_ms / 1000,
        )
        metrics.counters["trading_risk_limit_passed_total"] = (
            "Orders found accepted past a limit that was in force, by this instance's verification.",
            lambda: {"": verifier.limits_passed},
        )
        metrics.counters |= shadow_counters(self._mirror, shadow)
        self._streams = Streams(EventTail(self._bus), settings.server.max_streams)
        metrics.gauges["trading_event_streams"] = (
            "Streams of events that are open.",
            lambda: self._streams.count,
        )
        metrics.labelled["trading_versioning"] = (
            "What a release is judged by: keys of the section versioning, durations in seconds.",
            lambda: {f'key="{key}"': float(x) for key, x in vars(self._settings.versioning).items()},
        )
        api = HttpApi(
            self.instance,
            self._desk,
            self._switches,
            self._streams,
            tokens,
            self._render_metrics,
            lambda: Decimal(ledger.limits.margin_rate) / SCALE,
            metrics.response,
            log,
            shadow.shown,
            settings.server.debug,
        )
        # When to stop listening is the drain's decision.
        self._server = asgi.server(
            api,
            settings.server.host,
            settings.server.port,
            http=CorkedProtocol,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=None,
        )

    def stop(self) -> None:
        self._stop.set()

    def reload(self) -> None:
        """Read the config again and take over risk, monitoring and versioning. A bad file changes nothing.

        A release beside the config is the one that the instance is from then on; it must have the same image.
        """
        try:
            fresh = config.load(self._settings.file)
            identity = reloaded(self.instance.identity, self._settings.file)
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
        self.instance.identity = identity
        self.instance.config_hash = fresh.sha256
        self._gate.release = self._shadow.release = identity.release_id
        self._bus.settle_requests()
        self._metrics.build |= {"release_id": identity.release_id, "config_hash": fresh.sha256}
        self._hold_to_limits()
        restart = config.needs_restart(config.changes(before, fresh))
        self._log(
            "reload",
            outcome="taken over",
            release=identity.release_id,
            config=fresh.sha256,
            needs_restart=restart,
        )

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
        if settings.venue.adapter == "hold":
            self._log("warning", detail="venue.adapter is hold: orders are accepted and nothing is sent")
        self._client.start()
        self._feed.start()
        self._reads.start()
        self._bus.start()
        loop = asyncio.get_running_loop()
        relaying = loop.create_task(self._relay.run())
        background = [relaying, loop.create_task(self._probe.run()), loop.create_task(self._marks.run())]
        background += [loop.create_task(self._switches.run()), loop.create_task(self._telemetry.run())]
        background += [loop.create_task(self._alerts.run()), loop.create_task(self._risk.follow())]
        background += [loop.create_task(self._risk.sweep())]
        background += [loop.create_task(self._mirror.run()), loop.create_task(self._shadow.run())]
        background += [loop.create_task(self._backlog.run()), loop.create_task(self._unanswered.run())]
        background.append(loop.create_task(self._retention.run()))
        background.append(loop.create_task(self._verifier.run()))
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
        with contextlib.suppress(TradingError):
            await self._book.leave("risk")
        if self._venue is not None:
            await self._venue.close()
            with contextlib.suppress(TradingError):
                await self._book.leave("reports")
        await self._bus.stop()
        await self._client.stop()
        await self._feed.stop()
        await self._reads.stop()
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
        # Whoever followed events here goes on elsewhere: new connections no longer come to this instance.
        self._streams.closing.set()
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

    def _risk_settings(self) -> RiskSettings:
        section = self._settings.monitoring
        return RiskSettings(section.collect_interval, float(section.alert_at), section.account_series)

    def _hear(self, events: Sequence[Event]) -> None:
        self._alerts.heard(events)
        self._risk.heard(events)

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
        self._shadow.limits = Limits.of(risk)
        self._ledger.limits = Limits.of(risk, risk.canary_fraction if canary else Decimal(1))

    def _on_begin(self, traffic: Traffic | None) -> None:
        self._gate.begin(traffic)
        self._follow(traffic)

    def _follow(self, traffic: Traffic | None) -> None:
        self._mirror.follow(traffic)
        self._shadow.follow(traffic)
        self._hold_to_limits()

    def _on_copy(self, data: bytes) -> None:
        self._shadow.hear(data)

    def _on_traffic(self, traffic: Traffic) -> None:
        if self._gate.update(traffic, asyncio.get_running_loop().time()):
            self._follow(traffic)
            self._log(
                "traffic",
                stable=traffic.stable,
                canary=traffic.canary,
                salt=traffic.salt,
                cut=traffic.cut,
                shadow=traffic.shadow,
                member=self._gate.member(),
            )

    async def _render_metrics(self) -> bytes:
        with contextlib.suppress(TradingError):
            await self._backlog.look()
        self._metrics.published = self._relay.published
        return self._metrics.render()


def shadow_counters(mirror: Mirror, shadow: Shadow) -> dict[str, tuple[str, Callable[[], dict[str, float]]]]:
    def skipped() -> dict[str, float]:
        return {f'reason="{reason}"': n for reason, n in (mirror.skipped + shadow.skipped).items()}

    return {
        "trading_shadow_mirrored_total": (
            "Copies of decided orders sent to the slot on trial.",
            lambda: {"": mirror.mirrored},
        ),
        "trading_shadow_compared_total": (
            "Copies that this instance decided and compared.",
            lambda: {"": shadow.compared},
        ),
        "trading_shadow_skipped_total": ("Copies that were dropped or not compared.", skipped),
        "trading_shadow_differences_total": (
            "Copies that this instance decided otherwise.",
            lambda: {"": shadow.differences},
        ),
    }


def _venue(settings: Config, log: Log) -> Venue | None:
    venue = settings.venue
    if venue.adapter == "ccxt":
        try:
            from trading_bot.adapters.venues import ccxt
        except ImportError as error:
            issue = ConfigIssue("venue.adapter", "pip install 'trading-bot[ccxt]' for ccxt", str(error))
            raise ConfigError(settings.file, [issue]) from None
        if not venue.sandbox:
            log("warning", detail=f"venue.sandbox is false: orders go to {venue.exchange} with real money")
        return ccxt.CcxtVenue(
            ccxt.Settings(
                exchange=venue.exchange,
                sandbox=venue.sandbox,
                timeout=venue.request_timeout,
                url=venue.exchange_url,
                symbols=tuple(instrument.symbol for instrument in venue.instruments),
                key=lambda: config.read_secret(config.beside(settings.file, venue.api_key_file)),
                secret=lambda: config.read_secret(config.beside(settings.file, venue.api_secret_file)),
            ),
            log,
        )
    if settings.venue.adapter == "paper":
        from trading_bot.adapters.venues.paper import PaperVenueClient

        return PaperVenueClient(settings.venue.url, settings.venue.request_timeout)
    return None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted connections inherit it: a client that takes nothing in is dropped with all that waits for it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    # A bound on what the kernel holds for each: by itself it would hold megabytes for a reader that is slow.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * 1024)
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
