"""Whatever comes over NATS or stands in a config file: the answer says what is wrong, and nothing crashes."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trading_bot import config
from trading_bot.errors import ConfigError, ConfigIssue

from servers import TOKEN, App, Nats, Redis, order

FUZZ = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
ANSWERS = {200, 201, 400, 401, 403, 409, 422}
_numbers = itertools.count()


class Wire:
    """NATS's protocol by hand: a client library would not send what is sent here."""

    def __init__(self, nats: Nats) -> None:
        self._socket = socket.create_connection(("127.0.0.1", nats.port), timeout=5)
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        self._socket.sendall(
            b'CONNECT {"verbose":false,"headers":true,"no_responders":false}\r\nSUB _fuzz.* 1\r\n'
        )

    def publish(self, subject: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
        total = len(headers) + len(body)
        if headers:
            line = b"HPUB %b %b %d %d\r\n" % (subject, reply, len(headers), total)
        else:
            line = b"PUB %b %b %d\r\n" % (subject, reply, total)
        self._socket.sendall(line + headers + body + b"\r\n")

    def answer(self, reply: bytes) -> tuple[int, dict[str, Any]]:
        """The status and the body of what is answered to ``reply``."""
        while True:
            words = self._lines.readline().split()
            assert words, "the server closed the connection"
            if words[0] == b"PING":
                self._socket.sendall(b"PONG\r\n")
            elif words[0] == b"HMSG":
                data = self._lines.read(int(words[-1]) + 2)
                if words[1] == reply:
                    size = int(words[-2])
                    head = data[:size].decode().split("\r\n")
                    status = next(line.partition(": ")[2] for line in head if line.startswith("Http-Status"))
                    return int(status), json.loads(data[size:-2])
            else:
                assert words[0] in (b"PONG", b"+OK"), words

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@dataclass
class Target:
    app: App
    wire: Wire


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    directory = tmp_path_factory.mktemp("fuzz")
    redis, nats = Redis(directory / "redis"), Nats(directory / "nats")
    redis.start()
    nats.start()
    app = App(directory / "app", redis.url, nats.url, extra="risk: {max_orders_per_second: 0}\n")
    app.start_ready()
    wire = Wire(nats)
    yield Target(app, wire)
    wire.close()
    for server in (app, nats, redis):
        server.kill()


GOOD = f"NATS/1.0\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
# An order with some fields left out, some set to anything, some that there are not.
orders = st.tuples(
    st.sets(st.sampled_from(sorted(order("x"))), max_size=3),
    st.dictionaries(st.sampled_from([*order("x"), "stop_price", "reduce_only", "extra"]), values, max_size=3),
).map(lambda change: {k: v for k, v in {**order("x"), **change[1]}.items() if k not in change[0]})


@st.composite
def cut_or_changed(draw: st.DrawFn) -> bytes:
    body = bytearray(json.dumps(draw(orders)).encode())
    for _ in range(draw(st.integers(0, 4))):
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    return bytes(body[: draw(st.integers(0, len(body)))])


bodies = (
    st.binary(max_size=200)
    | orders.map(lambda body: json.dumps(body).encode())
    | orders.map(lambda body: json.dumps(body, ensure_ascii=False).encode("utf-16"))
    | cut_or_changed()
    | st.integers(0, 900_000).map(lambda size: b"[" * size)
    | st.integers(0, 900_000).map(lambda size: b'{"client_order_id":"' + b"x" * size + b'"}')
    | st.integers(300, 5000).map(lambda size: b'{"quantity":' + b"9" * size + b"}")
)
lines = st.binary(max_size=30) | st.sampled_from(
    [
        b"Authorization: Bearer " + TOKEN.encode(),
        b"Authorization",
        b": x",
        b"Status: 503",
        b"NATS/1.0 100",
        b"\xff: \xff",
    ]
)
headers = (
    st.just(GOOD)
    | st.just(b"")
    | st.lists(lines, max_size=5).map(lambda some: b"NATS/1.0\r\n" + b"\r\n".join(some) + b"\r\n\r\n")
    | st.integers(0, 30_000).map(lambda size: b"NATS/1.0\r\nX: " + b"y" * size + b"\r\n\r\n")
    | st.binary(max_size=40)
)
# Whatever NATS takes as one token of a subject.
accounts = st.sampled_from([b"alice", b"bob"]) | st.binary(min_size=1, max_size=80).map(
    lambda token: token.translate(None, b"\0\t\n\r .*>") or b"x"
)


@settings(FUZZ, max_examples=120)
@given(accounts, headers, bodies, st.booleans())
def test_every_message_is_answered_with_what_is_wrong_and_the_next_one_is_served(
    target: Target, account: bytes, headers: bytes, body: bytes, replied: bool
) -> None:
    wire = target.wire
    reply = f"_fuzz.{next(_numbers)}".encode() if replied else b""
    wire.publish(b"trading.orders.submit." + account, reply, headers, body)
    if replied:
        status, answer = wire.answer(reply)
        assert status in ANSWERS, (status, answer)
        if status >= 400:
            assert answer["title"]
            assert answer["status"] == status
        if status == 400:
            assert answer["errors"]
    served(target)


@settings(FUZZ, max_examples=40)
@given(
    st.sampled_from(
        ["market.ticks.BTC-USDT", "$KV.release.traffic", "trading.control.changed", "market.ticks.x"]
    ),
    st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()),
)
def test_no_tick_map_or_call_that_cannot_be_read_stops_an_instance(
    target: Target, subject: str, body: bytes
) -> None:
    target.wire.publish(subject.encode(), b"", b"", body)
    served(target)


def served(target: Target) -> None:
    n = next(_numbers)
    target.wire.publish(
        b"trading.orders.submit.probe",
        b"_fuzz.%d" % n,
        GOOD,
        json.dumps(order(f"probe-{n}", quantity="0.00001")).encode(),
    )
    assert target.wire.answer(b"_fuzz.%d" % n)[0] == 201


def test_none_of_it_was_a_defect(target: Target) -> None:
    assert target.app.ready()
    assert [line for line in target.app.lines() if line["event"] == "defect"] == []
    assert "Traceback" not in target.app.log.read_text()


# What a file may hold where a key's value is expected: anything that YAML can write.
scalars = (
    values
    | st.decimals()
    | st.integers(-(10**400), 10**400)
    | st.sampled_from(
        [
            "1e999",
            "0x10",
            "010",
            "1_000",
            ".inf",
            "-0",
            "0",
            "~",
            "yes",
            "10s",
            "1e9s",
            "-1s",
            "²",
            "٣",
            "\ufeff",
        ]
    )
    | st.sampled_from(
        ["redis://", "redis://h:99999999", "nats://[::1", "redis://h/x", "nats://,", "tls://h:0"]
    )
)
sections = st.dictionaries(
    st.sampled_from(sorted(config.KEYS)) | st.text(max_size=6), st.deferred(lambda: section), max_size=4
)
section = st.one_of(
    scalars,
    *(st.dictionaries(st.sampled_from(sorted(keys)), scalars, max_size=4) for keys in config.KEYS.values()),
)


sections = st.dictionaries(st.sampled_from(sorted(config.KEYS)) | st.text(max_size=6), section, max_size=4)


def refused_or_read(content: bytes, environ: dict[str, str]) -> None:
    """The config is valid, or every issue names a key and says what was expected and what was found."""
    issues: list[ConfigIssue] = []
    try:
        assert config.parse("config.yaml", content, environ).sha256
    except ConfigError as error:
        issues = error.issues
        assert issues  # either outcome is fine, an error that says nothing is not
    for issue in issues:
        assert issue.expected
        assert issue.found
        assert len(str(issue)) < 1000


@settings(FUZZ, max_examples=100)
@given(sections)
def test_a_config_of_anything_is_read_or_refused_by_key(content: dict[str, Any]) -> None:
    refused_or_read(yaml.dump(content, allow_unicode=True).encode("utf-8", "surrogatepass"), {})


@settings(FUZZ, max_examples=100)
@given(
    st.sampled_from([f"{section}_{key}".upper() for section, keys in config.KEYS.items() for key in keys])
    | st.text(max_size=12),
    st.text(max_size=30) | scalars.map(str),
)
def test_a_variable_of_anything_is_read_or_refused_by_name(name: str, value: str) -> None:
    refused_or_read(b"", {f"TRADING_{name}": value})


@settings(FUZZ, max_examples=100)
@given(
    st.binary(max_size=120)
    | st.text(max_size=120).map(lambda text: text.encode("utf-16"))
    | st.integers(0, 5000).map(lambda depth: b"[" * depth)
    | st.integers(0, 2000).map(lambda depth: b"a: &a [*a, " * depth)
    | st.sampled_from(
        [
            b"a: &a [*a]",
            b"server: &s {port: *s}",
            b"? [a]: b",
            b"!!python/name:os.system",
            b"--- 1\n--- 2",
            b"<<: 1",
        ]
    )
)
def test_no_bytes_crash_the_reading_of_a_config(content: bytes) -> None:
    refused_or_read(content, {})


def test_a_bomb_of_aliases_is_refused_at_once() -> None:
    """A few lines that would be a gigabyte if each alias were written out."""
    lines = ["x: 1", "a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    for last in ("b: *a8", "server: *a8", "server: {port: *a8}", "? *a8\n: b", "server: {? *a8 : 1}"):
        refused_or_read("\n".join([*lines, last]).encode(), {})
