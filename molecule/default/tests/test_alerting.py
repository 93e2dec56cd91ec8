"""From a cause to a person: each alert arrives on the channels that its severity asks for, once, and so does its end.

Most causes take as long as their rules wait, so they are marked `long`. How long each took is in
`.lab/trading-molecule/alerts.jsonl`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import testinfra
from conftest import ROOT, STATE, Fleet
from test_paper_venue import within
from testinfra.host import Host

testinfra_hosts = ["ansible://monitoring"]

CHANNELS = {"warning": ["email", "slack"], "critical": ["call", "email", "slack", "sms"]}


class People:
    """Who is told, at servers that speak SMTP, Slack's webhook and Twilio's API."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def told(self, what: str) -> list[dict[str, Any]]:
        """The deliveries that name this."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [each for each in map(json.loads, lines) if what in each["text"] or what in each.get("subject", "")]


@pytest.fixture(scope="module")
def people() -> Iterator[People]:
    directory = STATE / "people"
    directory.mkdir(exist_ok=True)
    log = directory / "deliveries.jsonl"
    log.unlink(missing_ok=True)
    address = ["--host", "10.204.2.1", "--http-port", "19080", "--mail-port", "19025"]
    process = subprocess.Popen([sys.executable, str(ROOT / "app/tests/notify_servers.py"), str(directory), *address])
    yield People(log)
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def at_rest(fleet: Fleet, people: People) -> None:
    """Nothing is owed any more of what happened while the fleet was made."""
    within(60, lambda: figure(fleet, "notifier_oldest_waiting_seconds") == 0, "what waited is told")


def figure(fleet: Fleet, name: str) -> float:
    text = requests.get(f"http://{fleet.private['mon1']}:9095/metrics", timeout=10).text
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found, text
    return float(found.group(1))


def on(host: str) -> Host:
    return testinfra.get_host(f"ansible://{host}?ansible_inventory={STATE / 'inventory.yml'}", sudo=True)


def trade(fleet: Fleet, method: str, path: str, account: str = "alerted", *, by: str = "desk", **body: Any) -> requests.Response:
    token = (STATE / f"secrets/api_{by}_token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}", "X-Account-Id": account}
    return requests.request(method, fleet.url + path, json=body, headers=headers, timeout=10)


def buy(fleet: Fleet, account: str, quantity: str, **more: str) -> requests.Response:
    order = {"client_order_id": f"{account}-{time.time_ns()}", "symbol": "BTC-USDT", "side": "buy", "quantity": quantity}
    return trade(fleet, "POST", "/api/orders", account, **{**order, "type": "market", "time_in_force": "IOC", **more})


def arrives(people: People, what: str, severity: str, since: float, *, over: bool = False) -> dict[str, float]:
    """Seconds from the cause until each channel of the severity has it; the phone says no end."""
    wanted = [channel for channel in CHANNELS[severity] if not (over and channel == "call")]
    state = "RESOLVED" if over else ""

    def found() -> dict[str, float]:
        told = [each for each in people.told(what) if each["at"] >= since and state in each["text"]]
        return {each["channel"]: each["at"] - since for each in reversed(told)}

    within(420, lambda: set(found()) >= set(wanted), f"{what} {state} on {wanted}")
    return found()


def once(people: People, what: str, since: float) -> None:
    """Each channel was told of its beginning once, and of its end once at most; and only the channels of its severity."""
    states: Counter[tuple[str, bool]] = Counter()
    for each in people.told(what):
        if each["at"] >= since and "STILL" not in each["text"]:
            lines = [line for line in each["text"].splitlines() if what in line and re.match(r"[\[:]", line)] or [each["text"]]
            states.update((each["channel"], "RESOLVED" in line) for line in lines)
    assert {key: count for key, count in states.items() if count > 1} == {}


def record(cause: str, alert: str, severity: str, began: dict[str, float], ended: dict[str, float]) -> None:
    line = {"cause": cause, "alert": alert, "severity": severity, "told": began, "over": ended}
    print(line)
    with (STATE / "alerts.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")


def test_redis_that_stops_is_told_on_every_channel_once_and_so_is_its_end(fleet: Fleet, people: People, at_rest: None) -> None:
    data1, title = on("data1"), "Redis on data1 does not answer"
    since = time.time()
    try:
        data1.check_output("systemctl stop redis-server")
        began = arrives(people, title, "critical", since)
    finally:
        data1.check_output("systemctl start redis-server")
    back = time.time()
    ended = arrives(people, title, "critical", back, over=True)
    once(people, title, since)
    record("Redis is stopped", "RedisDown", "critical", began, ended)


def test_what_the_ledger_sees_does_not_wait_for_a_measurement(fleet: Fleet, people: People, at_rest: None) -> None:
    """An account comes to 95% of its position limit with what it has in flight, and the kill switch is thrown."""
    account = f"risky{time.time_ns()}"
    within(60, lambda: trade(fleet, "GET", "/health/ready").status_code == 200, "the fleet takes orders again")
    assert buy(fleet, account, "0.001").status_code == 201
    price = within(30, lambda: average_price(fleet, account), "it is filled")
    # Below the market, so that it rests there: the market has less to sell than the limit allows to hold.
    resting = {"type": "limit", "time_in_force": "GTC", "price": f"{price * 0.9:.2f}"}
    since = time.time()
    answer = buy(fleet, account, f"{95_000 / (price * 0.9):.5f}", **resting)
    assert answer.status_code == 201, answer.text
    try:
        began = arrives(people, account, "warning", since)
    finally:
        trade(fleet, "DELETE", f"/api/orders/{answer.json()['client_order_id']}", account)
    record("An account is at 95% of its position limit", "limit_approached", "warning", began, {})
    since = time.time()
    try:
        assert trade(fleet, "POST", "/api/trading/halt", by="operator", reason="a test of alerts").ok
        began = arrives(people, "Trading is halted", "critical", since)
    finally:
        assert trade(fleet, "POST", "/api/trading/resume", by="operator", reason="it was a test").ok
    record("The kill switch is thrown", "trading_halted", "critical", began, {})
    once(people, "Trading is halted", since)


def average_price(fleet: Fleet, account: str) -> float:
    """The price at which the account holds what it holds; 0 before it is filled."""
    found = trade(fleet, "GET", "/api/account", account).json()
    held = [each for each in found.get("positions", []) if float(each["quantity"])]
    return float(held[0]["average_price"]) if held else 0.0


@contextmanager
def full_disk(fleet: Fleet) -> Iterator[None]:
    host = on("app1")
    # A small disk of its own: the host's own is the machine's.
    host.check_output(
        "mkdir -p /srv/small && mount -t tmpfs -o size=8m tmpfs /srv/small && head -c 7800k /dev/zero > /srv/small/x"
    )
    try:
        yield
    finally:
        host.check_output("umount /srv/small")


@contextmanager
def busy_processors(fleet: Fleet) -> Iterator[None]:
    spin = "import os,signal; [os.fork() for _ in range(2)]\nwhile True: pass"
    process = subprocess.Popen(["timeout", "600", "nice", "-n", "19", sys.executable, "-c", spin], start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, 15)
        process.wait()


@contextmanager
def refused_orders(fleet: Fleet) -> Iterator[None]:
    for _ in range(300):
        assert buy(fleet, "greedy", "90").status_code in (422, 429)
    yield


@contextmanager
def slow_orders(fleet: Fleet) -> Iterator[None]:
    """Redis holds every command up for 150 ms, again and again, while orders come."""
    password = (STATE / "secrets/redis_operator").read_text().strip()
    redis = ["redis-cli", "-h", fleet.private["data1"], "--user", "operator", "--no-auth-warning"]
    pause = "while true; do printf 'CLIENT PAUSE 150 ALL\\n'; sleep 0.4; done | " + " ".join(redis)
    process = subprocess.Popen(
        ["timeout", "300", "bash", "-c", pause], env={**os.environ, "REDISCLI_AUTH": password}, start_new_session=True
    )
    load = fleet.load(50, 50 * 90, name=f"slow{time.time_ns()}")
    try:
        yield
    finally:
        os.killpg(process.pid, 15)
        process.wait()
        load.finish(now=True)


CAUSES: list[tuple[str, str, str, str, Callable[[Fleet], Any]]] = [
    ("A disk is 95% full", "HostDiskFull", "critical", "/srv/small of app1 is almost full", full_disk),
    ("Processors are busy", "HostCpuHigh", "warning", "Processors of", busy_processors),
    ("Orders are refused", "OrderRejectionsHigh", "warning", "Orders are refused by risk checks", refused_orders),
    ("Answers take 150 ms longer", "OrderLatencyHigh", "warning", "Orders are answered slowly", slow_orders),
]


@pytest.mark.long
@pytest.mark.parametrize(("cause", "alert", "severity", "title", "make"), CAUSES, ids=[each[1] for each in CAUSES])
def test_every_other_cause_is_told_and_so_is_its_end(
    fleet: Fleet,
    people: People,
    at_rest: None,
    cause: str,
    alert: str,
    severity: str,
    title: str,
    make: Callable[[Fleet], Any],
) -> None:
    since = time.time()
    with ExitStack() as stack:
        stack.enter_context(make(fleet))
        began = arrives(people, title, severity, since)
    over = time.time()
    ended = arrives(people, title, severity, over, over=True)
    if alert == "HostDiskFull":
        once(people, title, since)
    record(cause, alert, severity, began, ended)
