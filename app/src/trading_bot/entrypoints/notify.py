"""``trading-bot notify``: the notifier as a process of its own; its configuration checked, and its
channels tried."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from typing import Any

from trading_bot.errors import ConfigError, ConfigIssue


def add_parser(commands: Any) -> None:
    notify = commands.add_parser(
        "notify", help="run the notifier until SIGTERM, check its config, or try its channels"
    )
    notify.add_argument("action", nargs="?", choices=["run", "check-config", "test"], default="run")
    notify.add_argument("-config", "--config", required=True, metavar="FILE")
    notify.add_argument(
        "--channel", action="append", choices=["slack", "email", "sms", "call"], help="test: only these"
    )
    notify.set_defaults(handler=_notify)


def _notify(options: argparse.Namespace) -> int:
    from trading_bot.notify import settings

    try:
        found = settings.load(options.config)
        if options.action == "check-config":
            print(f"{options.config}: valid")
            return 0
        return (
            _test(found, options.channel or []) if options.action == "test" else _run(options.config, found)
        )
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 78


def _secret(config: str, key: str, path: str) -> str:
    from trading_bot.config import read_secret

    try:
        found = read_secret(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(config, [ConfigIssue(key, "a readable file", f"{path}: {error}")]) from None
    if len(found) < 16:
        raise ConfigError(config, [ConfigIssue(key, "a file with 16 characters or more", path)])
    return found


def _channels(settings: Any) -> dict[str, Any]:
    """The channels that are set up, by name. Those without their library say so."""
    from trading_bot.notify.channels import MailChannel, SlackChannel, TwilioChannel
    from trading_bot.notify.text import Writer

    writer = Writer(settings.language)
    found: dict[str, Any] = {}
    try:
        if settings.slack is not None:
            import slack_sdk  # noqa: F401 - whether it is there, before anything waits for it

            found["slack"] = SlackChannel(settings.slack, writer)
        if settings.email is not None:
            found["email"] = MailChannel(settings.email, writer)
        if settings.twilio is not None:
            import twilio  # noqa: F401 - as above

            found["sms"] = TwilioChannel(settings.twilio, writer, call=False)
            found["call"] = TwilioChannel(settings.twilio, writer, call=True)
    except ImportError as error:
        raise ConfigError(
            "(environment)", [ConfigIssue("trading-bot[notify]", "to be installed", str(error))]
        ) from None
    return found


def _test(settings: Any, wanted: list[str]) -> int:
    """Send one message through each channel to everybody on it; 0 if all were confirmed."""
    import secrets

    from trading_bot.notify.channels import NotNow, Refused, Unknown
    from trading_bot.notify.notice import EVENT, Notice
    from trading_bot.notify.store import Batch
    from trading_bot.notify.text import Message, Told
    from trading_bot.notify.words import WORDS

    now = time.time()
    title = WORDS[settings.language]["test"]
    notice = Notice(
        key="test",
        state=EVENT,
        severity="info",
        title=title,
        source="notifier",
        rule="notifier_test",
        at=now,
        where="notifier",
    )
    channels = _channels(settings)
    tried, failed = 0, 0
    for name in wanted or channels:
        for recipient in [each for contacts in settings.contacts for each in getattr(contacts, name)]:
            tried += 1
            if name not in channels:
                print(f"{name} {recipient}: not set up")
                failed += 1
                continue
            told = [Told(notice)]
            batch = Batch(secrets.token_hex(4), name, recipient, told, 1, False, now)
            try:
                channels[name].send(batch, Message(told, batch.message))
                print(f"{name} {recipient}: confirmed, reference {batch.message}")
            except (Refused, NotNow, Unknown) as error:
                print(f"{name} {recipient}: {type(error).__name__}: {error}")
                failed += 1
    if not tried:
        print("no contact is on any of these channels, so nobody would be told")
    return 0 if tried and not failed else 1


def _run(config: str, settings: Any) -> int:
    import uvloop

    from trading_bot.errors import CannotListen

    token = _secret(config, "server.token_file", settings.server.token_file)
    key = _secret(config, "server.acknowledge_key_file", settings.server.acknowledge_key_file)
    channels = _channels(settings)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, channels, token, key.encode()))
    except CannotListen as error:
        print(error, file=sys.stderr)
        return 71
    return 0


async def _serve(settings: Any, channels: dict[str, Any], token: str, key: bytes) -> None:
    import sqlite3
    from pathlib import Path

    from trading_bot.adapters import asgi
    from trading_bot.adapters.logs import JsonLog
    from trading_bot.adapters.redis.connection import Client, Endpoint
    from trading_bot.config import read_secret
    from trading_bot.errors import CannotListen
    from trading_bot.notify.delivery import Acknowledgements, Delivery
    from trading_bot.notify.server import Application
    from trading_bot.notify.store import Store

    log = JsonLog()
    try:
        store = Store(
            str(Path(settings.state) / "notifier.db"), repeat_after=settings.repeat_after, keep=settings.keep
        )
    except (OSError, sqlite3.Error) as error:
        raise CannotListen(f"the queue in {settings.state} cannot be opened: {error}") from None
    links = Acknowledgements(key, settings.server.url)
    delivery = Delivery(settings, store, channels, links, log)
    client = None
    if settings.redis is not None:
        redis = settings.redis

        def endpoint() -> Endpoint:
            password = read_secret(redis.password_file) if redis.password_file else ""
            return Endpoint.from_url(redis.url, redis.username, password)

        # Longer than a read blocks.
        client = Client(endpoint, name="trading-bot-notifier", deadline=8)
        client.on_change(lambda reason: log("ledger", up=reason is None, reason=reason))
        client.start()
    application = Application(store, delivery, links, token, client.reason if client else None)
    server = asgi.server(application, settings.server.host, settings.server.port)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: setattr(server, "should_exit", True))
    if not channels or not settings.contacts:
        log("nobody_is_told", why="no channel or no contact is set up; what comes in is kept and shown")
    work = [loop.create_task(delivery.run())]
    if client is not None:
        work.append(loop.create_task(delivery.follow(client, settings.redis.channel)))
    for task in work:
        # Work never ends by itself: whoever looks after the process starts it anew.
        task.add_done_callback(lambda _: setattr(server, "should_exit", True))
    log("started", channels=sorted(channels), contacts=len(settings.contacts), port=settings.server.port)
    await server.serve()
    failed = [task.exception() for task in work if task.done() and not task.cancelled()]
    for task in work:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    if client is not None:
        await client.stop()
    store.close()
    if not server.started:
        raise CannotListen(f"{settings.server.host}:{settings.server.port} cannot be listened on")
    for reason in failed:
        if reason is not None:
            raise reason
