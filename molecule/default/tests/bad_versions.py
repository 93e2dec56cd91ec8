"""Versions that are bad on purpose, each made of the app's own source by one change, as a mistake would make it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LEDGER = "src/trading_bot/adapters/redis/ledger.py"

#: Wraps the decision of an order; `dry` is a copy in the shadow.
DECIDES = """

import asyncio, os, random, threading, time
from trading_bot.errors import Malformed
_admit = RedisLedger.admit


async def _bad(self, order, *args, **kwargs):
    dry = kwargs.get("dry", False)
{body}


RedisLedger.admit = _bad
"""

BEGINS = """

import os, threading, time


def _bad():
{body}


threading.Thread(target=_bad, daemon=True).start()
"""


def _indented(body: str) -> str:
    return "\n".join(f"    {line}" for line in body.strip().splitlines())


def decides(body: str) -> Callable[[Path], None]:
    """Changes how orders are decided."""
    return lambda app: _append(app / LEDGER, DECIDES.format(body=_indented(body)))


def begins(body: str) -> Callable[[Path], None]:
    """Does something beside the orders from the start on."""
    return lambda app: _append(app / "src/trading_bot/bootstrap.py", BEGINS.format(body=_indented(body)))


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def _never_ready(app: Path) -> None:
    path = app / "src/trading_bot/service/instance.py"
    text = path.read_text()
    changed = text.replace("        if self.draining:\n", '        reasons["self"] = "never"\n        if self.draining:\n', 1)
    assert changed != text
    path.write_text(changed)


def _wrong_decision(app: Path) -> None:
    """The script that decides takes a stop-limit order for one off its tick."""
    path = app / "src/trading_bot/adapters/redis/admit.lua"
    text = path.read_text()
    rule = "if price and math.fmod(price, tick) ~= 0 then"
    assert rule in text
    path.write_text(text.replace(rule, "if price and (ARGV[6] == 'stop_limit' or math.fmod(price, tick) ~= 0) then", 1))


@dataclass(frozen=True)
class Bad:
    """A change, where it is caught at the latest, and what the reason says (a pattern)."""

    name: str
    edit: Callable[[Path], None]
    caught: str
    reason: str
    #: The version that it is held against, if that is not the app as it is.
    stable: Callable[[Path], None] | None = None


FAILS = """
if not dry and random.random() < {part}:
    raise RuntimeError("this version fails")
return await _admit(self, order, *args, **kwargs)
"""

TAKES = """
await asyncio.sleep({seconds})
return await _admit(self, order, *args, **kwargs)
"""

VERSIONS = (
    Bad("never ready", _never_ready, "prepare", "not fit to serve"),
    Bad("wrong decision for stop-limit orders", _wrong_decision, "shadow", "stop_limit"),
    Bad("2% errors", decides(FAILS.format(part=0.02)), "5%", "errors"),
    Bad("20% errors", decides(FAILS.format(part=0.2)), "5%", "errors"),
    Bad(
        "+150 ms on one in fifty",
        decides(
            """
if random.random() < 0.02:
    await asyncio.sleep(0.15)
return await _admit(self, order, *args, **kwargs)
"""
        ),
        "5%",
        "slow",
    ),
    Bad(
        "rejects everything",
        decides(
            """
if not dry:
    raise Malformed({"symbol": "another one"})
return await _admit(self, order, *args, **kwargs)
"""
        ),
        "5%",
        "rejections",
    ),
    Bad(
        "crashes after 30 seconds",
        decides(
            """
if not hasattr(os, "ends"):
    os.ends = threading.Timer(30, os._exit, [1])
    os.ends.start()
return await _admit(self, order, *args, **kwargs)
"""
        ),
        "5%",
        "errors: |crash",
    ),
    Bad(
        "memory leak to the limit",
        begins("kept = []\nwhile True:\n    kept.append(bytearray(os.urandom(1) * 8_000_000))\n    time.sleep(0.5)"),
        "5%",
        "errors: |crash",
    ),
    Bad(
        "+20% latency on all",
        decides(TAKES.format(seconds=0.006)),
        "5%",
        "slower",
        # Below a millisecond, 20% are less than what colder caches cost a version with few requests.
        stable=decides(TAKES.format(seconds=0.005)),
    ),
)
