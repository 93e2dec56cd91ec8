"""The config is the guide's, validated whole."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import re
from decimal import Decimal
from pathlib import Path

import pytest

from trading_bot import config
from trading_bot.entrypoints.cli import main
from trading_bot.errors import ConfigError

EXAMPLE = Path(__file__).parents[1] / "config.example.yaml"
GUIDE = """\
server:
  port: 8080
  debug: false

redis:
  url: "redis://localhost:6379/0"
  pool_size: 10

nats:
  url: "nats://localhost:4222"
  max_reconnects: -1
  reconnect_wait: 1s

risk:
  max_position_size: 100000.0
  max_drawdown: 0.1
  max_leverage: 3.0
  min_margin_level: 1.5

monitoring:
  collect_interval: 10s
  retention_period: 24h
  alerts_channel: "trading:alerts"
  metrics_channel: "trading:metrics"

versioning:
  metrics_interval: 10s
  validation_interval: 1m
  error_threshold: 0.01
  latency_threshold: 100
"""


def parse(text: str, **environ: str) -> config.Config:
    return config.parse("config.yaml", text.encode(), environ)


def issues(text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, **environ)
    return [str(issue) for issue in caught.value.issues]


def test_the_guides_file_is_valid_and_means_what_it_says() -> None:
    settings = parse(GUIDE)
    assert settings.server.port == 8080
    assert settings.nats.reconnect_wait == 1
    assert settings.nats.max_reconnects == -1
    assert settings.risk.max_position_size == Decimal("100000.0")
    assert settings.monitoring.retention_period == 24 * 3600
    assert settings.versioning.latency_threshold == 100
    assert len(settings.sha256) == 64


def test_an_empty_file_has_the_defaults() -> None:
    assert parse("").server.port == 8080


def test_the_example_explains_every_key_and_holds_the_defaults() -> None:
    text = EXAMPLE.read_text()
    example, default = parse(text), parse("")
    for section in config.KEYS:
        assert getattr(example, section) == getattr(default, section)
    lines = text.splitlines()
    for section, keys in config.KEYS.items():
        begin = lines.index(f"{section}:")
        for name in keys:
            number = next(n for n in range(begin, len(lines)) if lines[n].startswith(f"  {name}:"))
            assert lines[number - 1].startswith("  # "), f"{section}.{name} is not explained"


def test_every_section_has_exactly_the_keys_of_the_table() -> None:
    for section, keys in config.KEYS.items():
        fields = dataclasses.fields(getattr(parse(""), section))
        assert [field.name for field in fields] == list(keys)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    found = issues("server: {port: 0, prot: 1}\nrisc: {}\nnats: {reconnect_wait: 1}\nredis: {url: nope}\n")
    assert found == [
        f"server.prot: expected one of {', '.join(config.KEYS['server'])}, found an unknown key",
        f"risc: expected one of {', '.join(config.KEYS)}, found an unknown section",
        "server.port: expected a whole number from 1 to 65535, found '0'",
        "redis.url: expected a URL such as redis://host:port or rediss://host:port, found 'nope'",
        "nats.reconnect_wait: expected a duration such as 500ms, 10s, 1m or 24h, found '1'",
    ]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("redis: {url: 'redis://a:1,redis://b:2'}", "redis.url"),
        ("redis: {url: 'redis://a:1/main'}", "redis.url"),
        ("redis: {url: 'redis://a:1/0?db=1'}", "redis.url"),
        ("nats: {url: 'nats://a:1,redis://b:2'}", "nats.url"),
        ("nats: {url: 'nats://a:1/x'}", "nats.url"),
        ("venue: {url: 'https://a:1'}", "venue.url"),
        ("risk: {max_drawdown: 1.5}", "risk.max_drawdown"),
        ("risk: {max_position_size: 1e5}", "risk.max_position_size"),
        ("risk: {max_position_size: -1}", "risk.max_position_size"),
        ("risk: {max_position_size: 90000000.00000001}", "risk.max_position_size"),
        ("risk: {max_leverage: .nan}", "risk.max_leverage"),
        ("server: {debug: yes}", "server.debug"),
        ("server: {drain_notice: 10s}", "server.drain_notice"),
        ("server: {port: [1]}", "server.port"),
        ("server: 7", "server"),
        ("server: {port: 1, port: 2}", "server.port"),
        ("server: {}\nserver: {}", "server"),
        ("monitoring: {alerts_channel: alerts}", "monitoring.alerts_channel"),
        ("monitoring: {retention_period: 24}", "monitoring.retention_period"),
        ("- a", "(file)"),
        ("a: [", "line 1"),
        ("a: \x01", "(file)"),
    ],
)
def test_a_bad_value_is_refused_by_its_key(text: str, key: str) -> None:
    assert issues(text)[0].startswith(f"{key}: expected ")


def test_the_environment_overrides_any_key() -> None:
    settings = parse(
        GUIDE,
        TRADING_SERVER_PORT="8081",
        TRADING_REDIS_URL="redis://redis.example.com:6379/0",
        TRADING_NATS_URL="nats://nats.example.com:4222",
        TRADING_RISK_MAX_POSITION_SIZE="5",
        TRADING_RELEASE_SLOT="green",
    )
    assert settings.server.port == 8081
    assert settings.redis.url == "redis://redis.example.com:6379/0"
    assert settings.nats.url == "nats://nats.example.com:4222"
    assert settings.risk.max_position_size == 5


def test_a_wrong_variable_is_named() -> None:
    assert issues("", TRADING_SERVER_PORT="x", TRADING_SERVER_PROT="1") == [
        "TRADING_SERVER_PROT: expected TRADING_<SECTION>_<KEY> of a known key, found an unknown key",
        "server.port (from TRADING_SERVER_PORT): expected a whole number from 1 to 65535, found 'x'",
    ]


def test_a_password_in_a_url_is_never_shown() -> None:
    shown = "".join(issues('redis: {url: "http://user:hunter2@host"}'))
    assert "hunter2" not in shown
    assert "hunter2" not in repr(parse('redis: {url: "redis://user:hunter2@host"}'))


def test_random_bytes_are_refused_or_read_but_never_crash() -> None:
    dice = random.Random(7)
    text = GUIDE.encode()
    for _ in range(300):
        content = bytearray(text)
        for _ in range(dice.randint(1, 12)):
            content[dice.randrange(len(content))] = dice.randrange(256)
        with contextlib.suppress(ConfigError):
            assert config.parse("config.yaml", bytes(content), {}).sha256


def test_check_config_exits_0_or_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config", str(EXAMPLE)]) == 0
    bad = tmp_path / "bad.yaml"
    bad.write_text("server: {port: x}")
    assert main(["check-config", str(bad)]) == 78
    assert main(["check-config", str(tmp_path / "none.yaml")]) == 78
    shown = capsys.readouterr()
    assert "valid" in shown.out
    assert re.search(
        r"bad\.yaml: server\.port: expected a whole number from 1 to 65535, found 'x'", shown.err
    )
    assert "a readable file, found No such file" in shown.err


def test_a_bad_config_or_tokens_file_stops_the_start_with_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("nats: {url: x}")
    assert main(["-config", str(path)]) == 78
    tokens = tmp_path / "tokens.json"
    tokens.write_text('{"tokens": [{"name": "a"}]}')
    path.write_text(f"server: {{tokens_file: {tokens}}}")
    assert main(["run", "-config", str(path)]) == 78
    path.write_text("server: {tokens_file: /nowhere}")
    assert main(["run", "-config", str(path)]) == 78
    shown = capsys.readouterr().err
    assert "nats.url: expected a URL" in shown
    assert (
        "server.tokens_file: expected a readable list of tokens, found Object missing required field" in shown
    )


def test_the_documentation_explains_every_key() -> None:
    text = (Path(__file__).parents[2] / "docs" / "config.md").read_text()
    for section, keys in config.KEYS.items():
        table = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
        for name, key in keys.items():
            assert f"| `{name}` | `{key.default or 'none'}` |" in table


def test_what_a_config_changes_is_told_and_what_of_it_needs_a_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text("risk: {max_leverage: 3.0}\nserver: {debug: false}\n")
    # The same value in other words is no change.
    new.write_text("risk: {max_leverage: 2.5, duplicate_window: 0ms}\nserver: {debug: true}\n")
    assert main(["check-config", str(new), "--against", str(old)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"changed": ["server.debug", "risk.max_leverage"], "needs_restart": ["server.debug"]}
    assert main(["check-config", str(old), "--against", str(old)]) == 0
    assert json.loads(capsys.readouterr().out) == {"changed": [], "needs_restart": []}
