"""What /metrics shows is what docs/metrics.md says, and the figures that alerts go by."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trading_bot.adapters.tokens import Token, Tokens
from trading_bot.errors import AccessDenied

from servers import TOKEN, App, Nats, Redis, until

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|([^|]*)\| ([^|]+) \|$", re.MULTILINE)
SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
EVERY = {"version", "slot"}


def page(app: App) -> str:
    return str(app.call("GET", "/metrics", token=None)[1]["text"])


def value(app: App, name: str) -> float:
    """The value of the one series of this name."""
    [found] = [number for series, _, number in SAMPLE.findall(page(app)) if series == name]
    return float(found)


def family(series: str, kinds: dict[str, str]) -> str:
    """The name that a sample is documented by: a histogram's own, not that of its parts."""
    short = re.sub(r"_(bucket|sum|count)$", "", series)
    return short if kinds.get(short) == "histogram" else series


def test_the_page_of_metrics_names_every_series_with_its_type_and_labels_and_no_other(app: App) -> None:
    text = page(app)
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    documented = {name: (kind, labels) for name, kind, _, labels, _ in ROW.findall(PAGE.read_text())}
    assert {name: kind for name, (kind, _) in documented.items()} == kinds
    found: dict[str, set[str]] = {}
    for series, labels, _ in SAMPLE.findall(text):
        found.setdefault(family(series, kinds), set()).update(re.findall(r'(\w+)="', labels))
    wrong = {
        name: labels
        for name, labels in found.items()
        if labels - EVERY - {"le"} != set(re.findall(r"`(\w+)`", documented[name][1])) or not labels >= EVERY
    }
    assert wrong == {}


def test_a_counter_is_told_by_its_name() -> None:
    rows = ROW.findall(PAGE.read_text())
    assert [name for name, kind, *_ in rows if (kind == "counter") != name.endswith("_total")] == []


def test_orders_that_were_sent_and_not_answered_are_counted_and_how_long_ago(
    own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    now = int(time.time() * 1000)
    for name, state, ago in (("a", "unknown", 90_000), ("b", "dispatched", 1_000), ("c", "open", 600_000)):
        own_redis.cli("HSET", f"trading:order:alice:{name}", "st", state, "sent", str(now - ago))
        own_redis.cli("ZADD", "trading:dispatch", str(now), f"alice {name}")
    app = start_app(own_redis.url, own_nats.url)
    until(lambda: value(app, "trading_unknown_orders") == 2, 10, "both are counted")
    assert 90 <= value(app, "trading_unknown_orders_oldest_seconds") < 150


def test_the_age_of_what_waits_for_nats_is_told(
    own_redis: Redis, own_nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(own_redis.url, own_nats.url)
    assert value(app, "trading_outbox_oldest_seconds") == 0
    own_nats.kill()
    own_redis.cli("XADD", "trading:outbox", f"{int(time.time() * 1000) - 45_000}-0", "e", "order.accepted")
    assert value(app, "trading_outbox_oldest_seconds") >= 45


def test_switches_and_limits_in_force_are_told(app: App) -> None:
    assert (value(app, "trading_halted"), value(app, "trading_degraded")) == (0, 0)
    app.call("POST", "/api/degradation/enable", {"reason": "a test"})
    assert value(app, "trading_degraded") == 1
    app.call("POST", "/api/degradation/disable", {"reason": "a test"})
    assert value(app, "trading_degraded") == 0
    limits = dict(re.findall(r'^trading_limit\{limit="(\w+)".*\} (\S+)$', page(app), re.MULTILINE))
    assert {name: float(number) for name, number in limits.items()} == {
        "max_position_size": 100000, "max_leverage": 3, "min_margin_level": 1.5, "max_drawdown": 0.1,
    }  # fmt: skip


def token(**more: Any) -> dict[str, Any]:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    return {"name": "desk", "sha256": digest, "roles": ["observe"], "accounts": ["*"], **more}


def test_a_token_is_let_in_until_it_expires(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps({"tokens": [token(expires="2026-01-01T00:00:00Z")]}))
    tokens = Tokens.from_file(str(file))
    at = tokens.expiry()["desk"]
    [entry] = tokens._by_digest.values()
    now = [at - 1]
    timed = Tokens([entry], lambda: now[0])
    assert timed.require(f"Bearer {TOKEN}", "observe") == "desk"
    now[0] = at
    with pytest.raises(AccessDenied, match="expired at 2026-01-01") as refused:
        timed.require(f"Bearer {TOKEN}", "observe")
    assert refused.value.status == 401


def test_a_token_that_does_not_expire_has_no_end() -> None:
    entry = Token("desk", hashlib.sha256(b"x").hexdigest(), frozenset({"observe"}))
    assert Tokens([entry]).expiry() == {}
