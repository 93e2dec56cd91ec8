"""Orders at a fixed rate while everything is killed and started again; then everything is compared.

    python tests/chaos.py --count 50000 --rate 200

Four instances (two of each slot, which runs another build: another version, with other scripts), Redis, NATS
and the venue are killed in turn, at random, with SIGKILL, and the venue loses, delays and repeats answers
besides. Afterwards the client's log, the ledger, the events and the venue's book have to agree: no
order lost, none executed twice, none past a limit.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trading_bot

from servers import App, Nats, PaperVenue, Redis, Server, listening, until, verified

LIMIT = 20
OTHER = "0+other"
FAULTS = {
    "latency": 2, "lose_request": 0.01, "lose_answer": 0.01, "late": 0.02, "late_by": 900, "disconnect": 0.01,
    "reject": 0.01, "duplicate": 0.05,
}  # fmt: skip


def run(
    directory: Path,
    *,
    count: int,
    rate: float,
    seed: int,
    pause: float,
    fsync: str = "everysec",
) -> dict[str, Any]:
    """One run; what it found. ``ok`` is the verdict."""
    dice = random.Random(seed)
    redis = Redis(directory / "redis", "--appendfsync", fsync)
    nats = Nats(directory / "nats")
    redis.start()
    nats.start()
    venue = PaperVenue(directory / "venue", nats.url, "--tick", "0.1", "--seed", str(seed))
    venue.start()
    section = (
        f'venue: {{adapter: paper, url: "{venue.url}", request_timeout: 500ms, recheck_interval: 2s}}\n'
        f"risk: {{max_position_size: {LIMIT}, max_mark_age: 5s, max_drawdown: 1}}\n"
        "versioning: {validation_interval: 1s}\n"
    )
    apps = [
        App(directory / f"app{n}", redis.url, nats.url, slot="blue" if n % 2 else "green", extra=section)
        for n in range(4)
    ]
    other = build(directory / "other")
    for app in apps[::2]:
        app.env = {**(app.env or {}), "PYTHONPATH": str(other)}
    started: list[Server] = [redis, nats, venue, *apps]
    try:
        for app in apps:
            app.start()
        for app in apps:
            until(app.ready, 20, "an instance is ready")
        until(lambda: redis.cli("HGET", "trading:marks", "BTC-USDT"), 5, "a mark")
        log = directory / "load.log"
        command = [
            sys.executable, "-m", "trading_bot", "load", "--url", ",".join(app.url for app in apps),
            "--nats", nats.url, "--token-file", str(apps[0].config.parent / "token"), "--rate", str(rate),
            "--count", str(count), "--accounts", "40", "--resend", "0.02", "--seed", str(seed),
            "--timeout", "3", "--log", str(log), "--allow-failed",
        ]  # fmt: skip
        loading = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        kills = dict.fromkeys(("app", "redis", "nats", "venue"), 0)
        deck: list[str] = []
        while loading.poll() is None:
            time.sleep(pause * dice.uniform(0.5, 1.5))
            venue_up = listening(venue.port)
            if venue_up:
                venue.faults(**(FAULTS if dice.random() < 0.7 else {}))
            if not deck:
                deck = ["app", "app", "redis", "nats", "venue"]
                dice.shuffle(deck)
            what = deck.pop()
            victim: Server = {"redis": redis, "nats": nats, "venue": venue}.get(what) or dice.choice(apps)
            victim.kill()
            kills[what] += 1
            time.sleep(pause * dice.uniform(0, 0.5))
            victim.start(wait=False)
        out, _ = loading.communicate(timeout=60)
        summary = json.loads(out.splitlines()[-1])
        for server in started:
            until(lambda server=server: listening(server.port), 20, "everything is up")
        venue.faults()
        for app in apps:
            until(app.ready, 180, "an instance is ready again")
        rest(apps, redis)
        judged = subprocess.run(
            [*command[:3], "judge", str(log), "--redis", redis.url, "--nats", nats.url],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        judge = json.loads(judged.stdout)
        ledger = verified(redis, venue)
        largest = largest_position(redis)
        unfenced = [x for app in apps for x in app.lines() if x["event"] == "defect"]
        # Verified all the while: nothing may have differed, not even for a moment.
        verified_lines = [x for app in apps for x in app.lines() if x["event"] == "verify"]
        wrong = [x for x in verified_lines if x["outcome"] in ("ledger.difference", "limit.passed")]
        passes = redis.cli("EXISTS", "trading:verified:progress") == "1"
        return {
            "ok": judge["ok"]
            and ledger["ok"]
            and largest <= LIMIT * 1.02
            and not unfenced
            and passes
            and not wrong,
            "kills": kills,
            "load": summary,
            "judge": judge,
            "ledger": ledger,
            "largest_position": round(largest, 2),
            "accepted_by": accepted_by(redis),
            "defects": unfenced[:3],
            "verification": wrong[:3],
        }
    finally:
        for server in reversed(started):
            server.kill()


def build(directory: Path) -> Path:
    """Another build of this code: its version is another, and so are the digests of its scripts."""
    source = Path(trading_bot.__file__).parent
    shutil.copytree(source, directory / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    named = directory / "trading_bot-0+other.dist-info"
    named.mkdir()
    (named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: trading-bot\nVersion: {OTHER}\n")
    for script in (directory / source.name).rglob("*.lua"):
        with script.open("a", encoding="utf-8") as file:
            file.write(f"-- {OTHER}\n")
    return directory


def accepted_by(redis: Redis) -> dict[str, int]:
    """How many orders each version accepted."""
    lines = entries(redis, "trading:audit")
    return dict(Counter(line["version"] for line in lines if line["e"] == "order.accepted"))


def rest(apps: list[App], redis: Redis) -> None:
    """Cancel what is open and wait until nothing is under way any more."""

    def settled() -> bool:
        for member in redis.cli("ZRANGE", "trading:dispatch", "0", "-1").splitlines():
            account, _, id = member.partition(" ")
            apps[0].call("DELETE", f"/api/orders/{id}", account=account)
        return redis.cli("ZCARD", "trading:dispatch") == "0" and redis.cli("XLEN", "trading:outbox") == "0"

    until(settled, 300, "every order is done and every event published")
    # The venue's last reports may still be on their way.
    until(lambda: redis.cli("XLEN", "trading:outbox") == "0", 10)


def entries(redis: Redis, stream: str) -> Iterator[dict[str, str]]:
    """Every entry of a stream, the oldest first."""
    start = "-"
    while True:
        chunk = json.loads(redis.cli("--json", "XRANGE", stream, start, "+", "COUNT", "5000"))
        for _, flat in chunk:
            yield dict(zip(flat[::2], flat[1::2], strict=True))
        if len(chunk) < 5000:
            return
        start = f"({chunk[-1][0]}"


def largest_position(redis: Redis) -> float:
    """The largest value that any account's position ever had, at the price of the fill that led to it."""
    held: dict[tuple[str, str], float] = {}
    largest = 0.0
    for fill in entries(redis, "trading:fills"):
        key = (fill["account"], fill["symbol"])
        sign = 1 if fill["side"] == "buy" else -1
        held[key] = held.get(key, 0) + sign * int(fill["quantity"]) / 1e8
        largest = max(largest, abs(held[key]) * int(fill["price"]) / 1e8)
    return largest


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=3, help="mean seconds between kills")
    parser.add_argument("--appendfsync", default="everysec")
    parser.add_argument("--directory", type=Path, help="where everything is kept (default: a temporary one)")
    options = parser.parse_args()
    directory = options.directory or Path(tempfile.mkdtemp(prefix="chaos-"))
    result = run(
        directory, count=options.count, rate=options.rate, seed=options.seed, pause=options.pause,
        fsync=options.appendfsync,
    )  # fmt: skip
    print(json.dumps(result, indent=1))
    print(f"kept in {directory}")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
