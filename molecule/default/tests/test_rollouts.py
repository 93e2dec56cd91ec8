"""Rollouts on a fleet that serves: a good version walks to all accounts, each bad one is caught and gone by itself."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from bad_versions import VERSIONS, Bad
from conftest import APPS, BALANCERS, STATE, Fleet, Load, on_host, operations
from test_emergency import broken

RATE = 150
#: A stage is shorter here than in production; how much evidence the judge wants is the same, and a slow machine has time.
QUICK = {
    "canary_stage_min": "5s",
    "canary_stage_deadline": "10m",
    "canary_shadow_orders": 200,
    "canary_keep_warm": "5s",
    "canary_shadow_deadline": "5m",
    "canary_lock_ttl": 30,
}
#: A stage that the test ends, not the judge.
STANDING = {"canary_stage_min": "10m"}


def quick(version: str, home: Path, **more: Any) -> list[str]:
    return ["-e", json.dumps({**QUICK, "release_version": version, "release_source": str(home), **more})]


def idle(fleet: Fleet) -> str:
    """The slot that does not serve."""
    return "blue" if fleet.served()[1] == "green" else "green"


def at(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def traffic(balancer: str) -> dict[str, str]:
    """What a load balancer's map files say, read on it."""
    command = "cat /etc/haproxy/maps/release.map; sed 's/^canary/cut/' /etc/haproxy/maps/cut.map"
    return dict(line.split() for line in on_host(balancer, command).splitlines())


def cuts() -> list[int]:
    return [int(traffic(balancer)["cut"]) for balancer in BALANCERS]


def rollouts() -> list[Path]:
    """The rollouts' directories on the control node, the newest last."""
    return sorted((STATE / "rollouts").iterdir())


def journal(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "journal.jsonl").read_text().splitlines()]


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, what
        time.sleep(0.1)
    return time.monotonic() - began


def assert_nothing_lost(load: Load) -> None:
    summary = load.finish(now=True)
    assert summary["failed"] == 0, summary
    verdict = load.judge()
    assert (verdict["lost"], verdict["doubled"], verdict["different"]) == (0, 0, 0), verdict


def test_the_plan_tells_from_what_to_what_and_changes_nothing(fleet: Fleet, source: Callable[..., Path]) -> None:
    before = fleet.status()
    run = fleet.play("canary.yml", "--check", *quick("0.2.0", source("0.2.0")))
    assert run.code == 0
    for words in (fleet.served()[0], "0.2.0-unbuilt", "app1, app2", "lb1, lb2", "about 50 of 1,000 accounts"):
        assert words in run.output
    assert fleet.status() == before


def test_a_rollout_whose_release_no_host_can_have_ends_and_gives_the_lock_back(fleet: Fleet, source: Callable[..., Path]) -> None:
    before = fleet.served()
    run = fleet.play("canary.yml", *quick("0.2.0", source("0.2.0"), release_registry="127.0.0.1:1/none"))
    assert run.code != 0
    assert "pulling the image failed" in run.output
    assert "connection refused" in run.output
    assert fleet.served() == before
    assert journal(rollouts()[-1])[-1]["event"] == "end"
    for host in APPS:
        [end] = operations(host, 1)
        assert (end["operation"], end["event"], end["result"]) == ("canary", "end", "failed")
    for balancer in BALANCERS:
        assert json.loads(on_host(balancer, "echo {} | trading-bot-release status"))["lock"] is None


@pytest.mark.long
def test_a_control_node_that_dies_at_20_percent_leaves_0_percent_behind(fleet: Fleet, source: Callable[..., Path]) -> None:
    before, home = fleet.served()[0], source("0.2.0")
    load = fleet.load(rate=RATE, count=1_000_000, name="killed", stop_every=20)
    rollout = fleet.start("canary.yml", *quick("0.2.0", home, canary_stages=[20, 100], **STANDING))
    wait_for(lambda: cuts() == [2000, 2000], 400, "20%")
    second = fleet.play("canary.yml", *quick("0.2.0", home))
    assert second.code != 0
    assert re.search(r"pid \d+ holds", second.output), second.output
    assert fleet.play("deploy.yml").code != 0
    assert cuts() == [2000, 2000]
    rollout.kill()
    seconds = wait_for(lambda: cuts() == [0, 0], 120, "0% by the watchdogs")
    print(f"0% on both load balancers {seconds:.1f} s after the control node died")
    assert fleet.served()[0] == before
    assert_nothing_lost(load)


def test_a_good_version_walks_to_all_accounts_and_no_order_fails(fleet: Fleet, source: Callable[..., Path]) -> None:
    """It goes on where the one that died left it."""
    load = fleet.load(rate=RATE, count=1_000_000, name="good", stop_every=20)
    rollout = fleet.start("canary.yml", *quick("0.2.0", source("0.2.0"), canary_stages=[10, 50, 100]))
    wait_for(lambda: min(cuts()) >= 1000, 400, "the first stage")
    on_host("lb1", "systemctl reload haproxy")
    walked = rollout.finish()
    assert walked.code == 0
    assert "orders were decided alike" in walked.output
    assert fleet.served()[0].startswith("0.2.0-")
    report = (rollouts()[-1] / "report.html").read_text()
    assert "promoted" in json.loads((rollouts()[-1] / "rollout.json").read_text())["outcome"]
    assert "<svg" in report
    for host in APPS:
        lines = [(line["operation"], line["event"], line.get("result")) for line in operations(host, 2)]
        assert lines == [("canary", "begin", None), ("canary", "end", "changed")]
    assert_nothing_lost(load)


def test_going_back_is_not_held_up_by_what_is_down_and_no_order_fails(fleet: Fleet) -> None:
    """A load balancer, an app host and the monitoring host are gone; once they are back, they do what the others do."""
    left, slot = fleet.served()
    load = fleet.load(rate=RATE, count=1_000_000, name="back", stop_every=20)
    no_ssh = "systemctl stop ssh; pkill sshd || true"
    with (
        broken("lb2", f"systemctl stop haproxy; {no_ssh}", "systemctl start haproxy ssh"),
        broken("app2", no_ssh, "systemctl start ssh"),
        broken("mon1", no_ssh, "systemctl start ssh"),
    ):
        back = fleet.play("rollback.yml", "-e", "release_min_healthy=1")
        status = fleet.status()
    assert back.code == 0
    assert "because they do not answer: app2" in back.output, back.output
    assert {"app2 does not answer", "lb2 does not answer"} <= set(status["problems"])
    now = Path(on_host("app1", f"readlink /opt/trading-bot/slots/{traffic('lb1')['stable']}")).name
    assert now != left
    last = operations("app1", 1)[0]
    assert (last["operation"], last["event"], last["result"]) == ("rollback", "end", "changed")
    wait_for(lambda: traffic("lb2")["stable"] == traffic("lb1")["stable"] != slot, 60, "lb2 does what lb1 does")
    assert fleet.play("deploy.yml").code == 0
    assert fleet.served()[0] == now
    assert_nothing_lost(load)


def test_what_was_left_is_marked_and_not_rolled_out_again_without_a_reason(fleet: Fleet, source: Callable[..., Path]) -> None:
    before = fleet.served()[0]
    again = fleet.play("canary.yml", *quick("0.2.0", source("0.2.0")))
    assert again.code != 0
    assert "marked bad" in again.output
    assert fleet.served()[0] == before
    assert cuts() == [0, 0]


@pytest.mark.parametrize(
    ("number", "bad"),
    # All of them make the table in docs/release.md.
    [
        pytest.param(number, bad, id=bad.name, marks=[] if bad.name == "20% errors" else pytest.mark.long)
        for number, bad in enumerate(VERSIONS)
    ],
)
def test_a_bad_version_is_caught_and_gone_by_itself(fleet: Fleet, source: Callable[..., Path], number: int, bad: Bad) -> None:
    if bad.stable:
        home = source(f"0.2.{number}", bad.stable)
        stable = {"release_version": f"0.2.{number}", "release_source": str(home)}
        assert fleet.play("deploy.yml", "-e", json.dumps(stable)).code == 0
    before, version = fleet.served()[0], f"0.3.{number}"
    load = fleet.load(rate=RATE, count=1_000_000, name=f"bad-{number}", stop_every=20)
    run = fleet.play("canary.yml", *quick(version, source(version, bad.edit), release_ready_timeout=15))
    load.finish(now=True)
    assert run.code != 0
    assert re.search(bad.reason, run.output)
    assert cuts() == [0, 0]
    assert fleet.served()[0] == before
    for host in APPS:
        assert on_host(host, f"systemctl is-active trading-bot@{idle(fleet)} || true") in ("inactive", "failed")
    lost = load.judge()
    assert (lost["lost"], lost["doubled"]) == (0, 0), lost
    entries = journal(rollouts()[-1]) if bad.caught != "prepare" else []
    stages = [entry["stage"] for entry in entries if entry["event"] == "stage"]
    assert set(stages) <= ({"5%"} if bad.caught == "5%" else set()), stages
    note_damage(bad, entries, load.log, version)


def note_damage(bad: Bad, entries: list[dict[str, Any]], log: Path, version: str) -> None:
    """A line of the table in docs/release.md."""
    orders = [json.loads(line) for line in log.read_text().splitlines()]
    back = [entry for entry in entries if entry["event"] == "rollback"]
    moved = [
        entry for entry in entries if entry["event"] == "traffic" and entry.get("phase") == "done" and entry["after"]["cut"] > 0
    ]
    line = {
        "version": bad.name,
        "caught": (moved and "5%") or bad.caught,
        "answered by it": sum(order["version"] == version for order in orders),
        "failed": sum(order["status"] == 0 or (order["status"] >= 400 and order["status"] != 422) for order in orders),
        "seconds at 5%": round(at(back[0]["decided_at"]) - at(moved[0]["at"]), 1) if moved and back else 0,
        "seconds to 0%": back[0]["seconds"] if back else None,
    }
    with (STATE / "bad-versions.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(line)


# tests/unit/plugins/test_rollout.py steers rollouts without hosts.
@pytest.mark.long
def test_an_operator_pauses_a_rollout_and_ends_it(fleet: Fleet, source: Callable[..., Path]) -> None:
    before = fleet.served()[0]
    load = fleet.load(rate=RATE, count=1_000_000, name="steered", stop_every=20)
    rollout = fleet.start("canary.yml", *quick("0.4.0", source("0.4.0"), canary_stages=[5, 100], **STANDING))
    wait_for(lambda: cuts() == [500, 500], 400, "5%")
    assert fleet.play("canary.yml", "-e", "action=pause").code == 0
    wait_for(lambda: fleet.status()["rollout"]["paused"], 60, "paused")
    assert fleet.play("canary.yml", "-e", "action=abort").code == 0
    wait_for(lambda: cuts() == [0, 0], 60, "aborted")
    aborted = rollout.finish()
    assert aborted.code != 0
    assert "aborted" in aborted.output
    assert fleet.served()[0] == before
    assert_nothing_lost(load)
