"""What happened is found again: in the logs of all hosts at once, in the life of an order, on the page of a review."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, SCENARIO, STATE, Fleet

ACCOUNT = "review"


@pytest.fixture(scope="module")
def order(fleet: Fleet) -> str:
    """An order that was taken, executed and answered."""
    name = f"of-the-test-{time.time_ns()}"
    token = (STATE / "secrets/api_desk_token").read_text().strip()
    body = {"client_order_id": name, "symbol": "BTC-USDT", "side": "buy", "type": "market", "quantity": "0.001"}
    request = urllib.request.Request(
        f"{fleet.url}/api/orders",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "X-Account-Id": ACCOUNT},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 201
    return name


def test_an_order_is_followed_from_every_host_while_it_happens(fleet: Fleet, order: str, tmp_path: Path) -> None:
    """What was written before the following began, by whichever instance took it; and nothing is left running."""
    out = tmp_path / "out"
    with out.open("wb") as file:
        command = [sys.executable, str(ROOT / "bin/follow_logs.py"), "-i", str(SCENARIO / "inventory"), "--since", "5m"]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 30
        while not re.search(rf'^app\d +{{"at":.*"order":"{order}"', out.read_text(), re.MULTILINE):
            assert time.monotonic() < deadline, out.read_text()[-2000:]
            assert process.poll() is None
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, b"")


def test_the_life_of_an_order_is_told_in_the_order_of_time(fleet: Fleet, order: str) -> None:
    run = fleet.play("order-life.yml", "-e", f"order_account={ACCOUNT}", "-e", f"order_id={order}")
    assert run.code == 0, run.output
    assert set(run.changed.values()) == {0}
    steps = (
        "order.accepted: buy 0.001 BTC-USDT market, IOC",
        "order.dispatched",
        "executed 0.001",
        "order.filled",
        "now, data1 ledger",
    )
    places = [run.output.index(step) for step in steps]
    assert places == sorted(places)
    assert re.search(r"app\d log (blue|green) +order: outcome accepted", run.output)
    assert re.search(r"now, lb1 API: status filled, .*quantity 0.001", run.output)
    assert re.search(r"now, mon1 venue: .*filled 0.001", run.output)
    assert "not read" not in run.output


def test_an_order_that_is_not_named_stops_before_a_host_is_asked(fleet: Fleet) -> None:
    run = fleet.play("order-life.yml", "-e", "order_account=alice")
    assert run.code != 0
    assert "-e order_id=<client order id>" in " ".join(run.output.split())
    assert "Read what each host knows" not in run.output


def test_a_review_has_what_operators_did_and_what_the_fleet_runs(fleet: Fleet, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    given = ("-e", "postmortem_from=2h", "-e", f"postmortem_to_file={page}")
    checked = fleet.play("postmortem.yml", *given, "--check", "--diff")
    assert checked.code == 0, checked.output
    assert not page.exists()
    run = fleet.play("postmortem.yml", *given)
    assert run.code == 0, run.output
    text = page.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")][:4] == [
        "## Found",
        "## Located",
        "## Solved",
        "## Reviewed",
    ]
    assert re.search(r"\| config \| app1.* came onto the disk", text)
    assert re.search(r"\| app \| .*app1.* redis: state usable", text)
    assert "Not read" not in text
    for secret in (STATE / "secrets").iterdir():
        assert secret.read_text().strip() not in text


def test_a_mistyped_variable_ends_a_run_before_it_begins(fleet: Fleet) -> None:
    run = fleet.play("postmortem.yml", "-e", "postmortem_form=2h")
    assert run.code != 0
    assert "There is no variable postmortem_form, did you mean postmortem_from" in run.output
    assert "PLAY" not in run.output
