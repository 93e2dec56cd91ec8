"""The release agent on the load balancers."""

from __future__ import annotations

import json
from typing import Any

from testinfra.host import Host

testinfra_hosts = ["ansible://lb"]

COMMAND = "/usr/local/sbin/trading-bot-release"
STATE = "/var/lib/trading-bot-release"


def agent(host: Host, command: str, **request: Any) -> dict[str, Any]:
    """A command's answer."""
    with host.sudo():
        done = host.run("printf %%s %s | %s %s", json.dumps(request), COMMAND, command)
    assert done.stdout, done.stderr
    return dict(json.loads(done.stdout))


def running_cut(host: Host) -> int:
    return int(agent(host, "status", entries=0)["running"]["cut"])


def test_the_agent_sees_what_haproxy_does(host: Host) -> None:
    found = agent(host, "status")
    assert found["ok"]
    assert found["running_differs"] == []
    assert found["traffic"]["stable"] == found["running"]["stable"]
    assert found["traffic"]["cut"] == 0


def test_the_agents_configuration_and_state_are_for_root_alone(host: Host) -> None:
    with host.sudo():
        for path, mode in (("/etc/trading-bot-release/agent.json", 0o600), (STATE, 0o700)):
            file = host.file(path)
            assert (file.user, file.group, file.mode) == ("root", "root", mode)


def test_the_watchdog_looks_now_and_after_a_boot_and_fills_no_journal(host: Host) -> None:
    timer = host.service("trading-bot-release-watchdog.timer")
    assert timer.is_running
    assert timer.is_enabled
    with host.sudo():
        since = "journalctl --unit trading-bot-release-watchdog.service --since -1min --output cat --no-pager"
        assert host.check_output(since) in ("", "-- No entries --")


def test_haproxy_learned_what_the_fleet_does_before_it_served(host: Host) -> None:
    events = [entry["event"] for entry in agent(host, "status", entries=10_000)["journal"]]
    assert "sync" in events


def test_the_masters_socket_is_for_root_alone(host: Host) -> None:
    with host.sudo():
        file = host.file("/run/haproxy-master.sock")
        assert (file.user, file.mode) == ("root", 0o600)


def test_every_account_is_answered_by_the_slot_that_has_it(host: Host) -> None:
    found = agent(host, "probe", accounts=100)
    assert (found["asked"], found["wrong"], found["expected_on_canary"]) == (100, [], 0)


def test_a_canary_that_nobody_looks_after_loses_its_accounts_by_itself(host: Host) -> None:
    """As after the death of the control node: the lock is taken, a share is given, and nothing is heard any more."""
    before = agent(host, "status", entries=0)["traffic"]
    other = "green" if before["stable"] == "blue" else "blue"
    token = agent(host, "acquire", owner="test", rollout="silent", ttl=3)["token"]
    given = agent(host, "cut", token=token, canary=other, salt="silent", cut=1, min_up=0)
    assert given["ok"], given
    with host.sudo():
        waits = "for i in $(seq 300); do grep -q '^canary 0$' /etc/haproxy/maps/cut.map && exit 0; sleep 0.1; done; exit 1"
        assert host.run(waits).rc == 0
    assert running_cut(host) == 0
    journal = agent(host, "status", entries=10, rollout="silent")["journal"]
    assert [entry["phase"] for entry in journal if entry["by"] == "watchdog"] == ["intend", "done"]
    assert agent(host, "cut", token=token, cut=1)["code"] == "fenced"
    token = agent(host, "acquire", owner="test", rollout="tidy", ttl=30)["token"]
    back = {name: before[name] for name in ("canary", "salt", "cut")}
    assert agent(host, "cut", token=token, kv=True, **back)["kv"]["ok"]
    assert agent(host, "unlock", token=token)["ok"]
