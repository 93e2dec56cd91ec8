"""``trading-bot hotfix``: make the key, sign a hotfix, look at one. Nothing of it needs a connection."""

from __future__ import annotations

import argparse
import base64
import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    hotfix = commands.add_parser("hotfix", help="make the signing key, sign a hotfix, show one")
    verbs = hotfix.add_subparsers(required=True, metavar="VERB")

    keygen = verbs.add_parser(
        "keygen", help="make a key: FILE is secret, FILE.pub goes to server.hotfix_key_file"
    )
    keygen.add_argument("file", metavar="FILE")
    keygen.set_defaults(handler=_run, verb=_keygen)

    sign = verbs.add_parser("sign", help="sign a hotfix; prints the body for POST /api/hotfix/apply")
    sign.add_argument("--key", required=True, metavar="FILE", help="the secret key")
    sign.add_argument("--id", required=True)
    sign.add_argument("--reason", required=True)
    sign.add_argument("--for", dest="lasts", required=True, metavar="DURATION", help="30m, 2h; 7d at most")
    sign.add_argument(
        "--set",
        dest="settings",
        action="append",
        required=True,
        metavar="risk.KEY=VALUE",
        help="may be repeated",
    )
    sign.add_argument("--out", metavar="FILE", help="write there instead; refuses to overwrite")
    sign.set_defaults(handler=_run, verb=_sign)

    show = verbs.add_parser("show", help="what a signed hotfix says; with a public key whether it is genuine")
    show.add_argument("file", metavar="FILE", help="- is standard input")
    show.add_argument("--public-key", metavar="FILE")
    show.set_defaults(handler=_run, verb=_show)


class _Refused(Exception):
    pass


def _run(options: argparse.Namespace) -> int:
    from trading_bot.errors import TradingError

    try:
        return int(options.verb(options))
    except FileExistsError as error:
        print(f"trading-bot hotfix: {error.filename}: is there already; nothing was written", file=sys.stderr)
    except (_Refused, TradingError, OSError, ValueError) as error:
        print(f"trading-bot hotfix: {error}", file=sys.stderr)
    return 1


def _write_new(path: str, text: str, mode: int) -> None:
    """Write a file that is not there yet; nobody else can read it meanwhile. Raises FileExistsError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(descriptor, mode)
        file.write(text + "\n")
        file.flush()
        os.fsync(descriptor)


def _keygen(options: argparse.Namespace) -> int:
    from trading_bot.adapters import signing

    public_file = f"{options.file}.pub"
    if os.path.lexists(public_file):
        raise FileExistsError(17, "File exists", public_file)
    private, public = signing.generate()
    _write_new(options.file, private, 0o600)
    _write_new(public_file, public, 0o644)
    print(f"{options.file}: the secret key; keep it off the fleet")
    print(f"{public_file}: the public key, for server.hotfix_key_file")
    return 0


def _sign(options: argparse.Namespace) -> int:
    import msgspec

    from trading_bot import config
    from trading_bot.adapters import signing
    from trading_bot.service import hotfix

    mode = stat.S_IMODE(os.stat(options.key).st_mode)
    if mode & 0o077:
        raise _Refused(f"{options.key}: others may read it (mode {mode:04o}); chmod 600, or make a new key")
    try:
        seconds = int(config.duration(options.lasts))
    except Exception:
        raise _Refused(f"--for {options.lasts}: a duration such as 30m, 2h or 7d") from None
    settings: dict[str, str] = {}
    for setting in options.settings:
        name, equals, value = setting.partition("=")
        if not equals or name in settings:
            raise _Refused(f"--set {setting}: risk.KEY=VALUE, each key once")
        settings[name] = value
    now = int(time.time())
    data = msgspec.json.encode(hotfix.Payload(options.id, settings, options.reason, now, now + seconds))
    signed = hotfix.Signed(
        base64.b64encode(data).decode(), base64.b64encode(signing.sign(options.key, data)).decode()
    )
    # What the fleet would refuse is refused here, before anybody is handed it.
    fix = hotfix.read(signed, lambda payload, signature: True)
    errors = hotfix.untimely(fix.payload, now)
    if errors:
        raise _Refused("; ".join(f"{name}: {expected}" for name, expected in errors.items()))
    text = msgspec.json.encode(signed).decode()
    if options.out:
        _write_new(options.out, text, 0o644)
        print(f"{options.out}: until {_at(fix.payload.expires)}")
    else:
        print(text)
    return 0


def _show(options: argparse.Namespace) -> int:
    import msgspec

    from trading_bot.adapters import signing
    from trading_bot.service import hotfix

    text = sys.stdin.read() if options.file == "-" else Path(options.file).read_text(encoding="utf-8")
    try:
        signed = msgspec.json.decode(text, type=hotfix.Signed)
    except msgspec.DecodeError as error:
        raise _Refused(f"{options.file}: not a signed hotfix: {error}") from None
    key = options.public_key
    genuine = "not checked"

    def verify(payload: bytes, signature: bytes) -> bool:
        nonlocal genuine
        if key:
            genuine = "genuine" if signing.verify(key, payload, signature) else "NOT by this key"
        return True

    payload = hotfix.read(signed, verify).payload
    print(
        json.dumps(
            {
                "id": payload.id,
                "reason": payload.reason,
                "settings": payload.settings,
                "issued": _at(payload.issued),
                "expires": _at(payload.expires),
                "in_time": not hotfix.untimely(payload, time.time()),
                "signature": genuine,
            },
            indent=2,
        )
    )
    return 1 if genuine.startswith("NOT") else 0


def _at(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
