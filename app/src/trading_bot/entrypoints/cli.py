"""The ``trading-bot`` command."""

from __future__ import annotations

import argparse
import json
import os
import sys

EX_CONFIG = 78
EX_OSERR = 71


def main(argv: list[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    # As the guide writes it: `trading-bot -config config.yaml` runs an instance.
    if not arguments or arguments[0] in ("-config", "--config"):
        arguments.insert(0, "run")
    options = _parser().parse_args(arguments)
    return int(options.handler(options))


def _parser() -> argparse.ArgumentParser:
    from trading_bot.entrypoints import hotfix, load, notify, orders, page, venue, verify

    parser = argparse.ArgumentParser(prog="trading-bot", description="The trading executor.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run an instance until SIGTERM (the default)")
    run.add_argument("-config", "--config", required=True, metavar="FILE")
    run.set_defaults(handler=_run)
    check = commands.add_parser(
        "check-config", help="say everything that is wrong with a config (- is standard input); exit 0 or 78"
    )
    check.add_argument("file", metavar="FILE")
    check.add_argument(
        "--against",
        metavar="OLD",
        help="a config that runs: print as JSON which keys FILE changes, and which of them need a restart",
    )
    check.set_defaults(handler=_check)
    status = commands.add_parser("status", help="show an instance's /api/status and readiness")
    status.add_argument("--url", default="http://127.0.0.1:8080")
    status.add_argument("--token-file", required=True)
    status.set_defaults(handler=_status)
    notify.add_parser(commands)
    orders.add_parser(commands)
    page.add_parser(commands)
    hotfix.add_parser(commands)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(handler=_version)
    load.add_parsers(commands)
    venue.add_parser(commands)
    verify.add_parser(commands)
    return parser


def _run(options: argparse.Namespace) -> int:
    from trading_bot import bootstrap, config
    from trading_bot.errors import CannotListen, ConfigError

    try:
        settings = config.load(options.config)
        return bootstrap.run(settings, bootstrap.identity_from(dict(os.environ)))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EX_CONFIG
    except CannotListen as error:
        print(error, file=sys.stderr)
        return EX_OSERR


def _check(options: argparse.Namespace) -> int:
    from trading_bot import config
    from trading_bot.errors import ConfigError

    try:
        if options.file == "-":
            fresh = config.parse("(standard input)", sys.stdin.buffer.read(), os.environ)
        else:
            fresh = config.load(options.file)
        before = config.load(options.against) if options.against else None
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EX_CONFIG
    if before is None:
        print(f"{options.file}: valid")
        return 0
    changed = config.changes(before, fresh)
    print(json.dumps({"changed": changed, "needs_restart": config.needs_restart(changed)}))
    return 0


def _version(options: argparse.Namespace) -> int:
    from importlib import metadata

    print(metadata.version("trading-bot"))
    return 0


def _status(options: argparse.Namespace) -> int:
    import urllib.error
    import urllib.request
    from pathlib import Path

    token = Path(options.token_file).read_text(encoding="utf-8").strip()
    ok = True
    for path in ("/api/status", "/health/ready"):
        request = urllib.request.Request(  # noqa: S310  # the operator names the URL
            options.url.rstrip("/") + path, headers={"Authorization": f"Bearer {token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310  # as above
                print(answer.read().decode())
        except urllib.error.HTTPError as error:
            print(error.read().decode())
            ok = False
        except OSError as error:
            print(f"{options.url}: {error}", file=sys.stderr)
            return 1
    return 0 if ok else 1
