"""``trading-bot page``: the built-in page as a process; its configuration checked, a password hashed."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from typing import Any

from trading_bot.errors import CannotListen, ConfigError


def add_parser(commands: Any) -> None:
    page = commands.add_parser(
        "page", help="run the built-in page until SIGTERM, check its config, or hash a password for it"
    )
    actions = ["run", "check-config", "check-users", "hash"]
    page.add_argument("action", nargs="?", choices=actions, default="run")
    page.add_argument("-config", "--config", metavar="FILE", help="needed by all but hash")
    page.set_defaults(handler=_page)


def _page(options: argparse.Namespace) -> int:
    from trading_bot.page import settings

    if options.action == "hash":
        return _hash()
    if options.config is None:
        print(f"trading-bot page {options.action}: -config FILE is needed", file=sys.stderr)
        return 2
    try:
        if options.action == "check-users":
            settings.users(options.config)
            print(f"{options.config}: valid")
            return 0
        found = settings.load(options.config)
        if options.action == "check-config":
            print(f"{options.config}: valid")
            return 0
        return _run(found, settings.users(found.users_file))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 78
    except CannotListen as error:
        print(error, file=sys.stderr)
        return 71


def _hash() -> int:
    """The hash of a password, which is read without being shown, or from a pipe."""
    import getpass

    from trading_bot.page.login import hashed

    password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    if len(password) < 12:
        print("trading-bot page hash: expected a password of 12 characters or more", file=sys.stderr)
        return 2
    print(hashed(password))
    return 0


def _run(settings: Any, users: dict[str, str]) -> int:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, users))
    return 0


async def _serve(settings: Any, users: dict[str, str]) -> None:

    from trading_bot.adapters import asgi
    from trading_bot.adapters.logs import JsonLog
    from trading_bot.page.login import Door
    from trading_bot.page.server import Application
    from trading_bot.page.sources import Alertmanager, Prometheus
    from trading_bot.page.view import View

    at = settings.server
    alertmanager = Alertmanager("Alertmanager", settings.alertmanager) if settings.alertmanager else None
    view = View(Prometheus("Prometheus", settings.prometheus), alertmanager, settings.slots, settings.reports)
    door = Door(users, settings.session, time.monotonic)
    application = Application(view, door, title=settings.title, secure=bool(at.certificate_file))

    try:
        server = asgi.server(
            application,
            at.host,
            at.port,
            server_header=False,
            # Whose address it is, the connection says: there is no proxy in front that would know better.
            proxy_headers=False,
            ssl_certfile=at.certificate_file or None,
            ssl_keyfile=at.key_file or None,
        )
        server.config.load()
    except OSError as error:
        raise CannotListen(f"{at.certificate_file} and {at.key_file} cannot be used: {error}") from None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: setattr(server, "should_exit", True))
    JsonLog()("started", port=at.port, users=len(users))
    await server.serve()
    if not server.started:
        raise CannotListen(f"{at.host}:{at.port} cannot be listened on")
