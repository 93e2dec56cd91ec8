"""What the ledger, the instances and the venue know of one order is told as one life, in the order of time."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.order_life import (
    OrderLifeError,
    amount,
    asked,
    audit_event,
    check,
    ledger_state,
    log_events,
    story,
    venue_events,
)
from ansible.module_utils.redis_client import RedisConnection
from plugin_testing import RunModule, ended, free_port, listens, program, wait_until

FINGERPRINT = "BTC-USDT|buy|limit|100000|5000000000000||GTC|0"
AT = 1769860800123  # 2026-01-31 12:00:00.123 UTC


def line(**fields: Any) -> str:
    return json.dumps({"at": "2026-01-31T12:00:00.125Z", **fields}, separators=(",", ":"))


@pytest.mark.parametrize(("account", "order"), [("", "a1"), ("alice", ""), ("a.b", "a1"), ("alice", "a/1"), ("alice", "stream")])
def test_what_names_no_order_is_refused_with_what_was_expected(account: str, order: str) -> None:
    with pytest.raises(OrderLifeError, match=r"order_(account|id) is .* expected"):
        check(account, order)


@pytest.mark.parametrize(
    ("scaled", "shown"), [("100000", "0.001"), ("5000000000000", "50000"), ("-1", "-0.00000001"), ("0", "0"), ("x", "x")]
)
def test_amounts_of_the_ledger_are_shown_as_decimals(scaled: str, shown: str) -> None:
    assert amount(scaled) == shown


def test_a_fingerprint_says_what_was_asked_for() -> None:
    assert asked(FINGERPRINT) == "buy 0.001 BTC-USDT limit at 50000, GTC"
    assert asked("BTC-USDT|sell|stop|100000||4900000000000|DAY|1") == "sell 0.001 BTC-USDT stop, stop at 49000, DAY, reduce only"
    assert asked("of another kind") == "of another kind"


def test_a_line_of_the_audit_is_told_with_its_time_and_without_what_everybody_has() -> None:
    fields = {"e": "order.fill", "account": "alice", "order": "a1", "quantity": "100000", "trade": "t7", "limits": "x"}
    assert audit_event(f"{AT}-0", fields) == {"at": AT / 1000, "source": "audit", "text": "order.fill: quantity 0.001, trade t7"}


def test_an_instances_log_gives_the_lines_of_this_order_of_this_account() -> None:
    mine = line(event="order", account="alice", order="a1", outcome="accepted", slot="blue", instance="app1")
    other = [
        line(event="order", account="bob", order="a1"),
        line(event="order", account="alice", order="a11"),
        '{"order":"a1',
        '["a1"]',
    ]
    (told,) = log_events([*other, mine], "alice", "a1")
    assert (told["source"], told["text"]) == ("log blue", "order: outcome accepted")


def test_the_venues_executions_have_their_own_times() -> None:
    (told,) = venue_events({"fills": [{"at": AT, "trade": "t7", "quantity": "0.001", "price": "50000", "fee": "0.02"}]})
    assert told == {"at": AT / 1000, "source": "venue", "text": "executed 0.001 at 50000, fee 0.02, trade t7"}
    assert venue_events(None) == []


def test_the_ledger_says_the_state_without_its_bookkeeping() -> None:
    assert ledger_state({"fp": FINGERPRINT, "st": "open", "left": "100000", "fence": "2", "t:7": "1|2", "decision": "1"}) == (
        "buy 0.001 BTC-USDT limit at 50000, GTC, left 0.001, state open"
    )


def test_a_story_is_in_the_order_of_time_and_the_ledger_decides_first() -> None:
    by_host: dict[str, dict[str, Any]] = {
        "app1": {"events": [{"at": 2.0, "source": "log blue", "text": "second"}], "now": {}, "notes": []},
        "data1": {"events": [{"at": 2.0, "source": "audit", "text": "first"}], "now": {"ledger": "state open"}, "notes": ["x"]},
    }
    assert story("alice", "a1", by_host, {"app2": "it did not answer"}) == [
        "1970-01-01 00:00:02.000  data1 audit    first",
        "1970-01-01 00:00:02.000  app1 log blue  second",
        "now, data1 ledger: state open",
        "not read, data1: x",
        "not read, app2: it did not answer",
    ]


def test_within_a_millisecond_what_was_executed_comes_before_the_ledgers_line_that_books_it() -> None:
    lines = ("order.accepted: buy", "order.dispatched", "order.fill: trade t7", "order.filled")
    by_host: dict[str, dict[str, Any]] = {
        "app1": {"events": [{"at": 2.0, "source": "log blue", "text": "order: outcome accepted"}]},
        "data1": {"events": [{"at": 2.0004, "source": "audit", "text": text} for text in lines]},
        "mon1": {"events": [{"at": 2.0, "source": "venue", "text": "executed 0.001, trade t7"}]},
    }
    told = [line.split(maxsplit=4)[4].removeprefix("blue").strip() for line in story("alice", "a1", by_host, {})]
    assert told == [*lines[:2], "executed 0.001, trade t7", *lines[2:], "order: outcome accepted"]


def test_an_order_that_nobody_knows_is_said_to_be_so() -> None:
    assert story("alice", "a1", {}, {}) == ["Nobody has written anything of the order a1 of alice: is it the right account?"]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[int]:
    """A real Redis on a free port."""
    port = free_port()
    process = subprocess.Popen(
        [program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
    )
    wait_until(lambda: listens(port), "Redis listening", process)
    yield port
    ended(process)


def test_the_ledger_is_read_from_the_decision_to_a_minute_after_the_end(
    run_module: RunModule, redis: int, tmp_path: Path
) -> None:
    """Lines of others lie between, more than are read at a time; what comes long after the end is not read."""
    with RedisConnection(("127.0.0.1", redis)) as client:

        def add(at: int, event: str, order: str = "a1", account: str = "alice") -> None:
            client.call("XADD", "trading:audit", f"{at}-*", "e", event, "account", account, "order", order)

        client.call("HSET", "trading:order:alice:a1", "fp", FINGERPRINT, "st", "filled", "at", AT)
        add(AT - 5000, "order.accepted")
        add(AT, "order.accepted")
        for number in range(1500):
            add(AT + 1, "order.accepted", f"b{number}", "bob")
        add(AT + 2, "order.filled")
        add(AT + 30_000, "ledger.difference")
        add(AT + 90_000, "order.doubled")
        client.call("XADD", "trading:outbox", "*", "e", "order.filled", "account", "alice", "order", "a1")
    logs = {"logs": str(tmp_path / "none"), "redis": f"127.0.0.1:{redis}"}
    told = run_module("order_life_read", {"account": "alice", "order": "a1", **logs})
    assert not told["changed"]
    assert [event["text"] for event in told["events"] if event["source"] == "audit"] == [
        "order.accepted",
        "order.filled",
        "ledger.difference",
    ]
    assert [event["source"] for event in told["events"]].count("waits for NATS") == 1
    assert told["now"] == {"ledger": "buy 0.001 BTC-USDT limit at 50000, GTC, state filled"}
    assert told["notes"] == []


def test_who_does_not_answer_is_a_note_and_logs_that_were_rotated_are_read(run_module: RunModule, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "trading-bot-blue.log-20260131.gz", "wt") as file:
        file.write(line(event="order", account="alice", order="a1", outcome="accepted", slot="blue") + "\n")
    places = {"redis": "127.0.0.1:1", "api": "127.0.0.1:1", "venue": "http://127.0.0.1:1", "logs": str(tmp_path)}
    told = run_module("order_life_read", {"account": "alice", "order": "a1", **places})
    assert [event["text"] for event in told["events"]] == ["order: outcome accepted"]
    assert [note.partition(" at ")[0] for note in told["notes"]] == ["the ledger", "the API", "the venue"]


def test_an_order_that_cannot_be_is_an_error(run_module: RunModule, tmp_path: Path) -> None:
    told = run_module("order_life_read", {"account": "alice", "order": "a/1", "logs": str(tmp_path)})
    assert told["failed"]
    assert "order_id is 'a/1', expected" in told["msg"]
