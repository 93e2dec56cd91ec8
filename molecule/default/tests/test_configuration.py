"""A changed configuration and a restart under load: no order fails, and what makes things worse is put back."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from conftest import APPS, Fleet, Run, on_host, operations, read_only
from test_rollouts import QUICK, assert_nothing_lost, wait_for

#: Orders a second where no judge waits for evidence: the playbooks share two processors with the fleet and have more of them.
CALM = 80
#: Two app hosts, of which one is out of rotation at a time; shorter looks than in production.
SETTINGS = {"release_min_healthy": 1, "update_config_watch": "5s", "update_config_baseline": "3s", "release_ready_timeout": 20}


def changed(config: dict[str, Any], **sections: dict[str, Any]) -> list[str]:
    """The playbook's arguments for the shared configuration with these keys changed."""
    wanted = {name: {**values, **sections.get(name, {})} for name, values in config.items()}
    return ["-e", json.dumps({**SETTINGS, "release_config": wanted})]


def started(slot: str) -> list[str]:
    """When the slot's instance began, on each host."""
    return [on_host(host, f"systemctl show -p ActiveEnterTimestamp trading-bot@{slot}") for host in APPS]


def links(slot: str) -> set[str]:
    return {on_host(host, f"readlink /opt/trading-bot/slots/{slot}") for host in APPS}


def assert_played(run: Run) -> None:
    assert run.code == 0, run.output


def test_no_order_fails_through_a_reload_and_a_restart(fleet: Fleet, shared_config: dict[str, Any]) -> None:
    before, slot = fleet.served()
    load = fleet.load(rate=CALM, count=1_000_000, name="configuration")

    ran_since = started(slot)
    reloaded = changed(shared_config, risk={"max_leverage": 2.9})
    assert_played(fleet.play("update-config.yml", *reloaded))
    assert started(slot) == ran_since
    assert fleet.served()[0] != before
    again = fleet.play("deploy.yml", *reloaded)
    assert set(again.changed.values()) == {0}, again.output

    restarted = changed(shared_config, risk={"max_leverage": 2.9}, server={"debug": True})
    assert_played(fleet.play("update-config.yml", *restarted))
    assert not set(started(slot)) & set(ran_since)

    assert_played(fleet.play("restart-service.yml", *restarted))
    both = fleet.play("restart-service.yml", *restarted, "-e", "restart_batch=2")
    assert both.code != 0
    assert "must go on serving" in both.output
    # And back to the configuration that was there.
    assert_played(fleet.play("update-config.yml", *changed(shared_config)))
    assert fleet.served() == (before, slot)
    assert_nothing_lost(load)


@pytest.mark.parametrize(
    ("bad", "reason", "failed"),
    [
        pytest.param({"risk": {"max_position_size": 1.0}}, "refusals", False, id="refuses orders", marks=pytest.mark.long),
        # Without a venue no instance is ready; it needs a restart, and the second host never gets it. On NATS the first one
        # is still asked, and answers that nothing was decided.
        pytest.param({"venue": {"adapter": "none"}}, "ready", True, id="never ready"),
    ],
)
def test_a_bad_configuration_is_put_back_by_itself_on_every_host(
    fleet: Fleet, shared_config: dict[str, Any], bad: dict[str, Any], reason: str, failed: bool
) -> None:
    before, slot = fleet.served()
    load = fleet.load(rate=CALM, count=1_000_000, name=f"bad-{next(iter(bad))}")
    run = fleet.play("update-config.yml", *changed(shared_config, **bad))
    assert run.code != 0
    assert "was put back on every host" in run.output
    assert reason in run.output
    assert links(slot) == {f"../releases/{before}"}
    assert fleet.served() == (before, slot)
    for host in APPS:
        [end] = operations(host, 1)
        assert (end["operation"], end["result"], "undo" in end) == ("update-config", "failed", False)
    summary = load.finish(now=True)
    assert failed or summary["failed"] == 0, summary
    verdict = load.judge()
    assert (verdict["lost"], verdict["doubled"], verdict["different"]) == (0, 0, 0), verdict


@pytest.mark.long
def test_a_host_that_cannot_be_put_back_is_named_and_every_other_is_put_back(fleet: Fleet, shared_config: dict[str, Any]) -> None:
    before, slot = fleet.served()
    load = fleet.load(rate=CALM, count=1_000_000, name="half-back")
    play = fleet.start("update-config.yml", *changed(shared_config, risk={"max_position_size": 1.0}))
    wait_for(lambda: f"../releases/{before}" not in links(slot), 180, "both hosts have the new configuration")
    with read_only("app1", "/opt/trading-bot/slots"):
        run = play.finish()
    assert run.code != 0
    for words in ("refusals", "was put back, but not on app1: ", "Read-only file system"):
        assert words in run.said, run.output
    kept = on_host("app1", f"readlink /opt/trading-bot/slots/{slot}")
    assert kept != f"../releases/{before}"
    assert on_host("app2", f"readlink /opt/trading-bot/slots/{slot}") == f"../releases/{before}"
    for host in APPS:
        [end] = operations(host, 1)
        assert (end["operation"], end["event"], end["result"]) == ("update-config", "end", "failed")
        assert "but not on app1" in end["what"][0]
    # The way that it names is one.
    [named] = set(re.findall(r"`ansible-playbook (deploy\.yml -e release_version=\S+)`", run.said))
    assert_played(fleet.play(*named.split()))
    assert fleet.served()[0] == before
    assert_nothing_lost(load)


def test_a_configuration_that_the_app_refuses_reaches_no_host(fleet: Fleet, shared_config: dict[str, Any]) -> None:
    before = fleet.status()
    run = fleet.play("update-config.yml", *changed(shared_config, risk={"max_leverage": -1}))
    assert run.code != 0
    for words in ("No host has it yet", "app1: ", "app2: ", "risk.max_leverage"):
        assert words in run.output
    assert fleet.status() == before


def test_what_a_hand_changed_on_a_host_is_shown_and_stops_a_change(fleet: Fleet, shared_config: dict[str, Any]) -> None:
    config = f"/opt/trading-bot/slots/{fleet.served()[1]}/config.yaml"
    on_host("app2", f"cp -p {config} /root/kept && echo '# by hand' >> {config}")
    try:
        shown = fleet.play("update-config.yml", "--check", "--diff", *changed(shared_config))
        refused = fleet.play("update-config.yml", *changed(shared_config, risk={"max_leverage": 2.7}))
    finally:
        on_host("app2", f"cat /root/kept > {config} && rm /root/kept")
    assert shown.code == 0, shown.output
    for run in (shown, refused):
        assert "app2" in run.output
        assert "config.yaml" in run.output
    assert refused.code != 0
    assert "Not as the repository left them" in refused.output


@pytest.mark.long
def test_the_way_back_that_a_changed_configuration_names_is_one(fleet: Fleet, shared_config: dict[str, Any]) -> None:
    before, _ = fleet.served()
    load = fleet.load(rate=CALM, count=1_000_000, name="way-back")
    assert_played(fleet.play("update-config.yml", *changed(shared_config, risk={"max_leverage": 2.6})))
    assert fleet.served()[0] != before
    [end] = operations("app1", 1)
    command, playbook, *words = end["undo"].split()
    assert command == "ansible-playbook"
    assert_played(fleet.play(playbook, *words, "-e", json.dumps(SETTINGS)))
    assert fleet.served()[0] == before
    assert_nothing_lost(load)


# It is a rollout, as those of test_rollouts.py, whose version differs in its configuration alone.
@pytest.mark.long
def test_a_configuration_walks_through_the_canary_and_no_order_fails(fleet: Fleet, shared_config: dict[str, Any]) -> None:
    before, slot = fleet.served()
    load = fleet.load(rate=CALM, count=1_000_000, name="walk")
    steps = ["-e", json.dumps({**QUICK, "canary": True, "canary_stages": [20, 100], "release_ready_timeout": 60})]
    assert_played(fleet.play("update-config.yml", *changed(shared_config, risk={"max_leverage": 2.8}), *steps))
    after, other = fleet.served()
    assert other != slot
    assert after.rpartition("-")[0] == before.rpartition("-")[0]
    assert_played(fleet.play("rollback.yml"))
    assert fleet.served() == (before, slot)
    assert_nothing_lost(load)
