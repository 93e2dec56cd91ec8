"""The config file: the guide's sections and keys, validated whole, each key overridable by environment.

``KEYS`` is the one table of what a config may hold; ``config.example.yaml`` explains each line of it and a
test holds the two together.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trading_bot.domain import money
from trading_bot.domain.instrument import Instrument, instruments_from
from trading_bot.errors import ConfigError, ConfigIssue


class _Wrong(Exception):
    """A value that does not fit; the argument says what was expected."""


Parse = Callable[[str], Any]

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DECIMAL = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_INTEGER = re.compile(r"-?[0-9]+")


def duration(text: str) -> float:
    """Seconds, from ``500ms``, ``10s``, ``1m``, ``24h`` or ``30d``."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise _Wrong("a duration such as 500ms, 10s, 1m or 24h")
    return float(match.group(1)) * _UNIT_SECONDS[match.group(2)]


def _duration_within(low: str, high: str, *, zero: bool = False) -> Parse:
    """``zero``: 0s is allowed, too."""

    def parse(text: str) -> float:
        value = duration(text)
        if not (duration(low) <= value <= duration(high) or (zero and value == 0)):
            raise _Wrong(f"{'0s or ' if zero else ''}a duration from {low} to {high}")
        return value

    return parse


def _integer(low: int, high: int) -> Parse:
    def parse(text: str) -> int:
        if _INTEGER.fullmatch(text) is None or not low <= int(text) <= high:
            raise _Wrong(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def _decimal(low: str, high: str) -> Parse:
    def parse(text: str) -> Decimal:
        if _DECIMAL.fullmatch(text) is None or not Decimal(low) <= Decimal(text) <= Decimal(high):
            raise _Wrong(f"a decimal from {low} to {high}")
        return Decimal(text)

    return parse


def _amount(low: str = "0") -> Parse:
    """Money: a decimal that the ledger can hold exactly."""

    def parse(text: str) -> Decimal:
        value = money.parse(text)
        if value is None or Decimal(text) < Decimal(low):
            raise _Wrong(f"an amount from {low} to 90000000 with at most 8 decimals")
        return Decimal(text)

    return parse


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise _Wrong("true or false")
    return text.lower() == "true"


def _url(*schemes: str, several: bool = False, path: str = "/?") -> Parse:
    def parse(text: str) -> str:
        expected = "a URL such as " + " or ".join(f"{scheme}://host:port" for scheme in schemes)
        for part in text.split(",") if several else [text]:
            try:
                split = urlsplit(part.strip())
                port = split.port
            except ValueError:
                raise _Wrong(expected) from None
            fits = re.fullmatch(path, split.path) and not split.query and not split.fragment
            if split.scheme not in schemes or not split.hostname or port == 0 or not fits:
                raise _Wrong(expected)
        return text

    return parse


def _optional_url(*schemes: str) -> Parse:
    parse = _url(*schemes, path=".*")
    return lambda text: parse(text) if text else text


def _text(text: str) -> str:
    if not text:
        raise _Wrong("a text that is not empty")
    return text


def _optional_text(text: str) -> str:
    return text


def _one_of(*words: str) -> Parse:
    def parse(text: str) -> str:
        if text not in words:
            raise _Wrong("one of " + ", ".join(words))
        return text

    return parse


def _instruments(text: str) -> list[Instrument]:
    try:
        return instruments_from(text)
    except ValueError:
        raise _Wrong("SYMBOL:tick:lot:minimum:maximum, several with commas between") from None


def _channel(text: str) -> str:
    if not text.startswith("trading:") or any(c.isspace() for c in text):
        raise _Wrong("a channel name that begins with trading:")
    return text


@dataclass(frozen=True)
class Key:
    """One key of the config: how to read it, and what holds where the file is silent."""

    parse: Parse
    default: str
    secret: bool = False


DEFAULT_INSTRUMENTS = "BTC-USDT:0.01:0.00001:0.00001:100,ETH-USDT:0.01:0.00001:0.00001:1000"

KEYS: dict[str, dict[str, Key]] = {
    "server": {
        "port": Key(_integer(1, 65535), "8080"),
        "debug": Key(_boolean, "false"),
        "host": Key(_text, "127.0.0.1"),
        "drain_timeout": Key(_duration_within("1s", "10m"), "10s"),
        "drain_notice": Key(_duration_within("0s", "5m"), "3s"),
        "tokens_file": Key(_optional_text, ""),
        "hotfix_key_file": Key(_optional_text, ""),
        "max_streams": Key(_integer(0, 10_000), "200"),
    },
    "redis": {
        "url": Key(_url("redis", "rediss", path="(/[0-9]*)?"), "redis://localhost:6379/0", secret=True),
        "pool_size": Key(_integer(3, 1000), "10"),
        "max_outbox_events": Key(_integer(100, 100_000_000), "200000"),
        "audit_retention": Key(_duration_within("0s", "3650d"), "30d"),
        "username": Key(_optional_text, ""),
        "password_file": Key(_optional_text, ""),
    },
    "nats": {
        "url": Key(_url("nats", "tls", several=True), "nats://localhost:4222", secret=True),
        "max_reconnects": Key(_integer(-1, 1_000_000), "-1"),
        "reconnect_wait": Key(_duration_within("10ms", "1m"), "1s"),
        "user": Key(_optional_text, ""),
        "password_file": Key(_optional_text, ""),
        "stream_replicas": Key(_integer(1, 5), "1"),
        # Not shorter than the time in which the stream knows a repeated event.
        "events_retention": Key(_duration_within("2m", "3650d", zero=True), "30d"),
    },
    "risk": {
        "max_position_size": Key(_amount("0.00000001"), "100000.0"),
        "max_drawdown": Key(_decimal("0.0001", "1"), "0.1"),
        "max_leverage": Key(_decimal("0.01", "1000"), "3.0"),
        "min_margin_level": Key(_decimal("0", "1000"), "1.5"),
        "margin_rate": Key(_decimal("0.0001", "1"), "0.2"),
        "max_order_notional": Key(_amount("0.00000001"), "1000000.0"),
        "max_open_orders": Key(_integer(1, 10_000_000), "10000"),
        "max_orders_per_second": Key(_integer(0, 1_000_000), "100"),
        "price_collar": Key(_decimal("0", "1"), "0"),
        "duplicate_window": Key(_duration_within("0s", "24h"), "0s"),
        "max_mark_age": Key(_duration_within("0s", "24h"), "1m"),
        "initial_equity": Key(_amount(), "100000.0"),
        "canary_fraction": Key(_decimal("0.0001", "1"), "1"),
    },
    "venue": {
        "adapter": Key(_one_of("none", "hold", "paper", "ccxt"), "none"),
        "url": Key(_url("http", path=".*"), "http://127.0.0.1:9200"),
        "exchange": Key(_one_of("binance"), "binance"),
        "sandbox": Key(_boolean, "true"),
        "exchange_url": Key(_optional_url("http", "https"), ""),
        "api_key_file": Key(_optional_text, ""),
        "api_secret_file": Key(_optional_text, ""),
        "request_timeout": Key(_duration_within("50ms", "1m"), "2s"),
        "recheck_interval": Key(_duration_within("1s", "1h"), "15s"),
        "instruments": Key(_instruments, DEFAULT_INSTRUMENTS),
    },
    "monitoring": {
        "collect_interval": Key(_duration_within("1s", "1h"), "10s"),
        "retention_period": Key(_duration_within("1m", "365d"), "24h"),
        "alerts_channel": Key(_channel, "trading:alerts"),
        "alert_at": Key(_decimal("0.01", "1"), "0.8"),
        "alert_interval": Key(_duration_within("1s", "24h"), "5m"),
        "account_series": Key(_integer(0, 200), "20"),
        "metrics_channel": Key(_channel, "trading:metrics"),
    },
    "versioning": {
        "metrics_interval": Key(_duration_within("1s", "1h"), "10s"),
        "validation_interval": Key(_duration_within("1s", "24h"), "1m"),
        "error_threshold": Key(_decimal("0", "1"), "0.01"),
        "latency_threshold": Key(_integer(1, 600_000), "100"),
    },
}


@dataclass(frozen=True)
class Server:
    port: int
    debug: bool
    host: str
    drain_timeout: float
    drain_notice: float
    tokens_file: str
    hotfix_key_file: str
    max_streams: int


@dataclass(frozen=True)
class Redis:
    url: str = field(repr=False)
    pool_size: int
    max_outbox_events: int
    audit_retention: float
    username: str
    password_file: str


@dataclass(frozen=True)
class Nats:
    url: str = field(repr=False)
    max_reconnects: int
    reconnect_wait: float
    user: str
    password_file: str
    stream_replicas: int
    events_retention: float


@dataclass(frozen=True)
class Risk:
    """Limits. Money in the quote currency; leverage and levels as ratios; drawdown as a fraction."""

    max_position_size: Decimal
    max_drawdown: Decimal
    max_leverage: Decimal
    min_margin_level: Decimal
    margin_rate: Decimal
    max_order_notional: Decimal
    max_open_orders: int
    max_orders_per_second: int
    price_collar: Decimal
    duplicate_window: float
    max_mark_age: float
    initial_equity: Decimal
    canary_fraction: Decimal


@dataclass(frozen=True)
class Venue:
    """Where orders go. With the adapter ``none`` no order is taken; with ``hold`` they stay accepted."""

    adapter: str
    url: str
    exchange: str
    sandbox: bool
    exchange_url: str
    api_key_file: str
    api_secret_file: str
    request_timeout: float
    recheck_interval: float
    instruments: list[Instrument]


@dataclass(frozen=True)
class Monitoring:
    collect_interval: float
    retention_period: float
    alerts_channel: str
    alert_at: Decimal
    alert_interval: float
    account_series: int
    metrics_channel: str


@dataclass(frozen=True)
class Versioning:
    """Thresholds that the release engine judges by. ``latency_threshold`` is in milliseconds."""

    metrics_interval: float
    validation_interval: float
    error_threshold: Decimal
    latency_threshold: int


@dataclass(frozen=True)
class Config:
    """A whole, valid config. Durations are seconds. ``sha256`` is that of the file's bytes."""

    file: str
    sha256: str
    server: Server
    redis: Redis
    nats: Nats
    risk: Risk
    venue: Venue
    monitoring: Monitoring
    versioning: Versioning


_SECTIONS: dict[str, Any] = {
    "server": Server,
    "redis": Redis,
    "nats": Nats,
    "risk": Risk,
    "venue": Venue,
    "monitoring": Monitoring,
    "versioning": Versioning,
}

#: The sections that a running instance takes over; what changes elsewhere needs a restart.
RELOADED = ("risk", "monitoring", "versioning")

# Set by the unit that starts an instance: who it is, not how it is configured.
_IDENTITY = frozenset({"ID", "SLOT", "IMAGE", "INSTANCE"})


def load(path: str, environ: Mapping[str, str] = os.environ) -> Config:
    """The config in the file at ``path`` with the overrides of ``environ``.

    Raises ConfigError with everything that is wrong with either.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            path, [ConfigIssue("(file)", "a readable file", error.strerror or "error")]
        ) from None
    return parse(path, content, environ)


def parse(path: str, content: bytes, environ: Mapping[str, str]) -> Config:
    """As ``load``, from bytes."""
    issues: list[ConfigIssue] = []
    found = _read(path, content, issues)
    _override(found, environ, issues)
    sections: dict[str, Any] = {}
    for section, keys in KEYS.items():
        values: dict[str, Any] = {}
        for name, key in keys.items():
            text, origin = found.get((section, name), (key.default, ""))
            try:
                values[name] = key.parse(text)
            except _Wrong as wrong:
                shown = "a value that is not shown" if key.secret and "@" in text else repr(text)
                issues.append(ConfigIssue(f"{section}.{name}{origin}", str(wrong), shown))
        if len(values) == len(keys):
            sections[section] = _SECTIONS[section](**values)
    if "server" in sections and sections["server"].drain_notice >= sections["server"].drain_timeout:
        notice = f"{sections['server'].drain_notice:g}s"
        issues.append(ConfigIssue("server.drain_notice", "less than server.drain_timeout", notice))
    if "venue" in sections and sections["venue"].adapter == "ccxt":
        for name in ("api_key_file", "api_secret_file"):
            if not getattr(sections["venue"], name):
                issues.append(ConfigIssue(f"venue.{name}", "a file, with the adapter ccxt", "none"))
    if issues:
        raise ConfigError(path, issues)
    return Config(file=path, sha256=hashlib.sha256(content).hexdigest(), **sections)


def changes(before: Config, after: Config) -> list[str]:
    """The keys whose values differ, as ``section.key``, in the order of ``KEYS``.

    Another spelling of a value is no change.
    """
    return [
        f"{section}.{name}"
        for section, keys in KEYS.items()
        for name in keys
        if getattr(getattr(before, section), name) != getattr(getattr(after, section), name)
    ]


def needs_restart(changed: Iterable[str]) -> list[str]:
    """Those of the changed keys that a running instance does not take over."""
    return [key for key in changed if key.partition(".")[0] not in RELOADED]


def beside(file: str, path: str) -> str:
    """A file that the config in ``file`` names: a relative path is one from the config's own directory."""
    return str(Path(file).parent / path) if path else ""


def _read(path: str, content: bytes, issues: list[ConfigIssue]) -> dict[tuple[str, str], tuple[str, str]]:
    """Every (section, key) that the file sets, as text; what is not a known key becomes an issue."""
    import yaml

    # Nodes rather than values: amounts keep every digit as written, and a key given twice is seen.
    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "(file)"
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(path, [ConfigIssue(where, "YAML", problem)]) from None
    except RecursionError:
        raise ConfigError(path, [ConfigIssue("(file)", "sections of keys", "far deeper nesting")]) from None
    found: dict[tuple[str, str], tuple[str, str]] = {}
    if root is None:
        return found
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(path, [ConfigIssue("(file)", "sections of keys", root.tag.rpartition(":")[2])])
    seen: set[str] = set()
    for section_node, keys_node in root.value:
        section = _word(section_node)
        if section not in KEYS:
            issues.append(ConfigIssue(section, f"one of {', '.join(KEYS)}", "an unknown section"))
            continue
        if section in seen:
            issues.append(ConfigIssue(section, "one section of that name", "it a second time"))
        seen.add(section)
        if not isinstance(keys_node, yaml.MappingNode):
            issues.append(ConfigIssue(section, "keys below it", repr(_word(keys_node))))
            continue
        for name_node, value_node in keys_node.value:
            name = _word(name_node)
            where = f"{section}.{name}"
            if name not in KEYS[section]:
                expected = f"one of {', '.join(KEYS[section])}"
                issues.append(ConfigIssue(where, expected, "an unknown key"))
            elif (section, name) in found:
                issues.append(ConfigIssue(where, "one value", "a second one"))
            elif not isinstance(value_node, yaml.ScalarNode):
                issues.append(ConfigIssue(where, "one value", f"a {value_node.id}"))
            else:
                found[section, name] = (value_node.value, "")
    return found


def _word(node: Any) -> str:
    """What a node says if it is one word; what else it is named for (its aliases could make it endless)."""
    return node.value if isinstance(node.value, str) else f"a {node.id}"


def _override(
    found: dict[tuple[str, str], tuple[str, str]], environ: Mapping[str, str], issues: list[ConfigIssue]
) -> None:
    for variable, text in environ.items():
        if not variable.startswith("TRADING_"):
            continue
        section, _, name = variable.removeprefix("TRADING_").partition("_")
        if section == "RELEASE" and name in _IDENTITY:
            continue
        section, name = section.lower(), name.lower()
        if name not in KEYS.get(section, {}):
            issues.append(ConfigIssue(variable, "TRADING_<SECTION>_<KEY> of a known key", "an unknown key"))
            continue
        found[section, name] = (text, f" (from {variable})")


def value(section: str, name: str, text: str) -> Any:
    """What ``text`` means as the value of a key. Raises ConfigError."""
    try:
        return KEYS[section][name].parse(text)
    except _Wrong as wrong:
        raise ConfigError("(value)", [ConfigIssue(f"{section}.{name}", str(wrong), repr(text))]) from None


def read_secret(path: str) -> str:
    """The secret in the file at ``path``, without the newline at its end. Raises OSError."""
    return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
