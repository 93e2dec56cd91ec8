"""The operator's commands on a fleet that serves: releases, scaling, and requests that make no sense."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import APPS, HOSTS, LAB, SCENARIO, Fleet, Play, Run, on_host, operations, read_only
from test_monitoring import asked
from test_paper_venue import within
from test_rollouts import assert_nothing_lost, wait_for

SCALED_OUT = (SCENARIO / "inventory", SCENARIO / "scaled-out.yml")
THIRD_BALANCER = (SCENARIO / "inventory", SCENARIO / "third-balancer.yml")
NEXT = "0.1.1"


def assert_refused(run: Run, *words: str) -> None:
    assert run.code != 0, run.output
    assert not [word for word in words if word not in run.said], run.output


def assert_idle_is_stopped(fleet: Fleet) -> None:
    status = fleet.status()
    idle = "blue" if status["served"]["slot"] == "green" else "green"
    for host, state in status["hosts"].items():
        assert not state[idle]["running"], (host, state)
        unit = ["docker", "exec", f"trading-molecule-{host}", "systemctl", "is-enabled", f"trading-bot@{idle}.service"]
        assert subprocess.run(unit, capture_output=True, text=True, check=False).stdout.strip() == "disabled"


@contextmanager
def undisturbed(fleet: Fleet, name: str) -> Iterator[None]:
    """While the block runs, every order is answered, and afterwards the same release serves from the same slot."""
    before = fleet.served()
    load = fleet.load(rate=20, count=100_000, name=name)
    yield
    summary = load.finish(now=True)
    assert summary["failed"] == 0, summary
    assert fleet.served() == before


def test_deploy_again_changes_nothing(fleet: Fleet) -> None:
    before = operations("app1", 1)
    again = fleet.play("deploy.yml")
    assert again.code == 0
    assert set(again.changed.values()) == {0}
    assert operations("app1", 1) == before


def test_check_on_a_changed_config_shows_just_that_change_and_changes_nothing(
    fleet: Fleet, shared_config: dict[str, Any]
) -> None:
    wanted = {**shared_config, "risk": {**shared_config["risk"], "max_leverage": 2.5}}
    before = fleet.status()
    run = fleet.play("deploy.yml", "--check", "--diff", "-e", json.dumps({"release_config": wanted}))
    assert run.code == 0
    # What it says of itself is an item of a list, "- Brings…"; a line of the difference that is indented has two spaces.
    lines = [line.strip() for line in run.output.splitlines() if not re.match(r" *- \S", line)]
    changed = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert [line for line in changed if line] == ["-  max_leverage: 3.0", "+  max_leverage: 2.5"], changed
    assert fleet.status() == before


def test_a_second_release_under_load_loses_no_order(fleet: Fleet, source: Callable[..., Path]) -> None:
    before, slot = fleet.served()
    load = fleet.load(rate=220, count=20_000, name="second-release")
    run = fleet.play("deploy.yml", "-e", f"release_version={NEXT}", "-e", f"release_source={source(NEXT)}")
    assert run.code == 0
    # Its dependencies are the same, so only the app's own layer travels.
    moved = [int(count) for count in re.findall(r"app\d: (\d+) bytes of \d+ moved", run.output)]
    assert len(moved) == 2, run.output
    assert max(moved) < 10_000_000
    summary = load.finish()
    assert summary["failed"] == 0, summary
    assert summary["sent"] >= 20_000
    assert {answer.split()[0] for answer in summary["answered_by"]} == {before.split("-")[0], NEXT}, summary
    verdict = load.judge()
    assert (verdict["lost"], verdict["doubled"], verdict["different"]) == (0, 0, 0), verdict
    after, new_slot = fleet.served()
    assert after.startswith(f"{NEXT}-")
    assert new_slot != slot
    begin, end = operations("app2", 2)
    assert (begin["operation"], begin["event"], end["result"]) == ("deploy", "begin", "changed")
    assert end["undo"] == "ansible-playbook rollback.yml"


def test_the_release_before_stays_on_disk_as_previous_and_its_slot_is_stopped(fleet: Fleet) -> None:
    assert_idle_is_stopped(fleet)
    for host, state in fleet.status()["hosts"].items():
        assert state["previous"].startswith("0.1.0-"), (host, state)


@pytest.mark.long
def test_scaling_out_and_in_under_load_loses_no_order(fleet: Fleet) -> None:
    bare = fleet.play(str(Path("lab/create.yml")), inventories=SCALED_OUT)
    assert bare.code == 0
    load = fleet.load(rate=60, count=1_000_000, name="scaling")

    assert fleet.play("deploy.yml", "-l", "new_nodes", inventories=SCALED_OUT).code == 0
    assert fleet.play("update-lb.yml", inventories=SCALED_OUT).code == 0
    rotation = fleet.play("release-status.yml", inventories=SCALED_OUT)
    assert f"{fleet.served()[1]} 3/3" in rotation.output
    within(30, lambda: asked(fleet, 'up{job="app", host="app3"} == 1'), "Prometheus asks the new host, without a restart")

    # The power goes, and a new machine takes the same place.
    subprocess.run(["docker", "rm", "--force", "--volumes", "trading-molecule-app3"], check=True, capture_output=True)
    subprocess.run(["docker", "volume", "rm", "trading-molecule-app3-docker"], check=True, capture_output=True)
    assert fleet.play(str(Path("lab/create.yml")), inventories=SCALED_OUT).code == 0
    assert fleet.play("deploy.yml", "-l", "new_nodes", inventories=SCALED_OUT).code == 0
    whole = f"{fleet.served()[1]} 3/3"
    within(60, lambda: whole in fleet.play("release-status.yml", inventories=SCALED_OUT).output, "it serves")

    assert fleet.play("update-lb.yml").code == 0
    summary = load.finish(now=True)
    assert summary["failed"] == 0, summary
    verdict = load.judge()
    assert (verdict["lost"], verdict["doubled"], verdict["different"]) == (0, 0, 0), verdict
    assert f"{fleet.served()[1]} 2/2" in fleet.play("release-status.yml").output
    within(30, lambda: not asked(fleet, 'up{job="app", host="app3"}'), "Prometheus asks no host that left")


def test_the_load_balancers_refuse_to_go_below_the_minimum_of_healthy_hosts(fleet: Fleet, tmp_path: Path) -> None:
    inventory = (SCENARIO / "inventory" / "hosts.yml").read_text()
    home = tmp_path / "inventory"
    home.mkdir()
    (home / "hosts.yml").write_text(
        "\n".join(line for line in inventory.splitlines() if not line.strip().startswith("app2:")) + "\n"
    )
    (home / "group_vars").symlink_to((SCENARIO / "inventory" / "group_vars").resolve())
    with undisturbed(fleet, "below-minimum"):
        assert_refused(fleet.play("update-lb.yml", inventories=(home,)), "app2", "must go on serving")
    begin, end = operations("lb1", 2)
    assert (begin["operation"], begin["event"]) == ("update-lb", "begin")
    assert (end["id"], end["event"], end["result"]) == (begin["id"], "end", "failed")
    balancer = fleet.status()["load_balancers"]["lb1"]["servers"]
    assert {server["admin"] for servers in balancer.values() for server in servers.values()} == {"ready"}


def test_a_host_that_is_not_ready_is_not_put_into_rotation(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "more.yml").write_text(
        "all: {children: {app: {hosts: {app9: {ansible_host: 10.204.1.29, private_address: 10.204.2.29}}}}}\n"
    )
    with undisturbed(fleet, "not-ready"):
        assert_refused(
            fleet.play("update-lb.yml", inventories=(SCENARIO / "inventory", tmp_path / "more.yml")),
            "app9",
            "deploy.yml -l new_nodes",
        )


def test_a_new_version_on_a_few_hosts_is_refused(fleet: Fleet) -> None:
    with undisturbed(fleet, "limited"):
        assert_refused(fleet.play("deploy.yml", "-l", "app1", "-e", "release_version=0.1.0"), "0.1.0")


def test_an_unknown_release_is_refused(fleet: Fleet) -> None:
    with undisturbed(fleet, "unknown-release"):
        assert_refused(fleet.play("deploy.yml", "-e", "release_version=9.9.9"), "9.9.9", "0.1.0")


def test_a_config_with_an_unknown_key_or_a_bad_unit_is_refused(fleet: Fleet, shared_config: dict[str, Any]) -> None:
    wrong = {
        **shared_config,
        "risk": {**shared_config["risk"], "max_positon_size": 1},
        "monitoring": {**shared_config["monitoring"], "collect_interval": "10 parsecs"},
    }
    with undisturbed(fleet, "bad-config"):
        assert_refused(
            fleet.play("deploy.yml", "-e", json.dumps({"release_config": wrong})),
            "risk.max_positon_size",
            "monitoring.collect_interval",
            "10 parsecs",
        )


def test_a_version_that_crashes_at_start_never_gets_traffic(fleet: Fleet, source: Callable[..., Path]) -> None:
    def crash(app: Path) -> None:
        bootstrap = app / "src/trading_bot/bootstrap.py"
        bootstrap.write_text(bootstrap.read_text() + '\n\nraise RuntimeError("this version crashes at start")\n')

    with undisturbed(fleet, "crash"):
        assert_refused(
            fleet.play(
                "deploy.yml",
                "-e",
                "release_version=0.1.2",
                "-e",
                f"release_source={source('0.1.2', crash)}",
                "-e",
                "release_ready_timeout=15",
            ),
            "this version crashes at start",
        )
    # Every host has it in its log, not only the one where it was seen.
    for host in APPS:
        begin, end = operations(host, 2)
        assert (begin["operation"], begin["event"]) == ("deploy", "begin")
        assert (end["id"], end["event"], end["result"]) == (begin["id"], "end", "failed")


def test_a_wrong_secret_never_gets_traffic(fleet: Fleet) -> None:
    with undisturbed(fleet, "wrong-secret"):
        assert_refused(
            fleet.play("deploy.yml", "-e", "vault_redis_trading_bot_password=wrong", "-e", "release_ready_timeout=10"),
            "not fit to serve",
            "redis",
        )


def test_an_unreachable_host_stops_a_deployment_before_anything_starts(fleet: Fleet) -> None:
    with undisturbed(fleet, "unreachable"):
        on_host("app2", "systemctl stop ssh; pkill sshd")
        try:
            run = fleet.play("deploy.yml")
        finally:
            on_host("app2", "systemctl start ssh")
        assert_refused(run, "app2", "UNREACHABLE")


def test_a_full_disk_on_one_host_stops_a_deployment_before_anything_starts(fleet: Fleet) -> None:
    fill = (
        "cd /opt/trading-bot && cp -a releases /tmp/kept && mount -t tmpfs -o size=1m,mode=755 tmpfs releases"
        " && cp -a /tmp/kept/. releases/ && ! dd if=/dev/zero of=releases/.full bs=4k 2>/dev/null"
    )
    empty = "umount /opt/trading-bot/releases && rm -rf /tmp/kept"
    with undisturbed(fleet, "full-disk"):
        on_host("app2", f"set -e; {fill}")
        try:
            run = fleet.play("deploy.yml", "-e", "vault_api_desk_token=another-token-of-the-desk")
        finally:
            on_host("app2", f"set -e; {empty}")
        assert_refused(run, "app2", "MiB free")


@pytest.mark.long
def test_a_deployment_that_one_load_balancer_cannot_take_moves_nobody(fleet: Fleet, shared_config: dict[str, Any]) -> None:
    wanted = {**shared_config, "risk": {**shared_config["risk"], "max_leverage": 2.4}}
    with undisturbed(fleet, "one-cannot"):
        with read_only("lb2", "/etc/haproxy/maps"):
            run = fleet.play("deploy.yml", "-e", json.dumps({"release_config": wanted}))
        assert_refused(
            run, "could not be moved everywhere", "lb2", "Read-only file system", "Once it is mended, run deploy.yml again"
        )
        for host in APPS:
            [end] = operations(host, 1)
            assert (end["operation"], end["event"], end["result"]) == ("deploy", "end", "failed")
        # What was prepared is stopped again where the fleet is to go on as it is.
        assert fleet.play("deploy.yml").code == 0
        assert_idle_is_stopped(fleet)


def take_lock(balancer: str) -> int:
    """Ann's, from whoever has it."""
    asked = json.dumps({"owner": "ann@desk", "rollout": "r7", "kind": "deploy", "ttl": 600, "preempt": True})
    return int(json.loads(on_host(balancer, f"echo '{asked}' | trading-bot-release acquire"))["token"])


def give_lock(balancer: str, token: int) -> None:
    on_host(balancer, f"""echo '{{"token": {token}}}' | trading-bot-release unlock""")


def test_what_is_held_by_another_run_is_left_alone(fleet: Fleet, shared_config: dict[str, Any]) -> None:
    wanted = {**shared_config, "risk": {**shared_config["risk"], "max_leverage": 2.3}}
    token = take_lock("lb2")
    try:
        for playbook in ("deploy.yml", "update-config.yml"):
            run = fleet.play(playbook, "-e", json.dumps({"release_config": wanted}))
            assert_refused(run, "Somebody else is at it", "deploy r7 of ann@desk holds", "lb2")
        assert fleet.status()["held"][0].startswith("deploy r7 of ann@desk holds lb2 for ")
    finally:
        give_lock("lb2", token)
    # The other load balancer gave its lock, and has it back.
    assert fleet.status()["held"] == []


@pytest.mark.long
def test_of_two_deployments_at_once_one_is_refused_and_one_is_whole(fleet: Fleet, shared_config: dict[str, Any]) -> None:
    def start(leverage: float) -> Play:
        wanted = {**shared_config, "risk": {**shared_config["risk"], "max_leverage": leverage}}
        return fleet.start("deploy.yml", "-e", json.dumps({"release_config": wanted}))

    before, _ = fleet.served()
    load = fleet.load(rate=20, count=100_000, name="two-at-once")
    runs = [play.finish() for play in [start(2.41), start(2.42)]]
    [refused] = [run for run in runs if run.code != 0]
    assert_refused(refused, "Somebody else is at it", "the deploy", "holds", "release_preempt")
    # One of this machine that died holds nobody up.
    died = fleet.start("deploy.yml")
    wait_for(lambda: "lock | Check that it is ours" in died.printed(), 120, "it has the lock")
    died.kill()
    assert len(fleet.status()["held"]) == 1
    assert fleet.play("deploy.yml").code == 0
    assert fleet.served()[0] == before
    assert fleet.status()["held"] == []
    assert_nothing_lost(load)


@pytest.mark.long
@pytest.mark.parametrize("playbook", ["restart-service.yml", "update-config.yml"])
def test_a_run_that_is_overtaken_goes_no_further_and_one_that_insists_takes_over(
    fleet: Fleet, shared_config: dict[str, Any], playbook: str
) -> None:
    wanted = {**shared_config, "risk": {**shared_config["risk"], "max_leverage": 2.43}}
    given = {"release_config": wanted} if playbook == "update-config.yml" else {"release_min_healthy": 1}
    arguments = ["-e", json.dumps(given)]
    load = fleet.load(rate=20, count=100_000, name=f"overtaken-{playbook}")
    served = fleet.served()
    overtaken = fleet.start(playbook, *arguments)
    wait_for(lambda: "lock | Check that it is ours" in overtaken.printed(), 120, "it has the lock")
    token = take_lock("lb1")
    assert_refused(overtaken.finish(), "The lock is not this run's any more", "lb1", "ann@desk")
    assert [operations(host, 1)[0].get("result") for host in APPS] == ["failed"] * len(APPS)
    give_lock("lb1", token)
    # What it has elsewhere is in nobody's way, of who has nothing to do neither.
    assert fleet.play("deploy.yml").code == 0
    assert fleet.served() == served
    token = take_lock("lb1")
    insists = fleet.play(playbook, *arguments, "-e", "release_preempt=true")
    assert insists.code == 0, insists.output
    assert fleet.status()["held"] == []
    with pytest.raises(subprocess.CalledProcessError):
        give_lock("lb1", token)
    assert fleet.play("deploy.yml").code == 0
    assert_nothing_lost(load)


def test_an_inventory_with_no_app_host_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    groups = "lb: {hosts: {lb1: {}}}, redis: {hosts: {data1: {}}}, nats: {hosts: {data1: {}}}, app: {}"
    (tmp_path / "hosts.yml").write_text(f"all: {{children: {{{groups}}}}}\n")
    for playbook in ("deploy.yml", "update-lb.yml", "site.yml"):
        assert_refused(fleet.play(playbook, inventories=(tmp_path / "hosts.yml",)), "The inventory has no host in: app")


@pytest.mark.long
def test_settings_that_restart_docker_are_not_put_on_every_app_host_at_once(fleet: Fleet) -> None:
    more = (
        "-e",
        json.dumps({"docker_engine_options": {"log-driver": "local", "live-restore": True, "max-concurrent-uploads": 3}}),
    )
    before = {host: on_host(host, "cat /etc/docker/daemon.json") for host in APPS}
    assert_refused(fleet.play("site.yml", "-l", "app", *more), "Run it for one host after the other: -l app1", "log-opts")
    assert before == {host: on_host(host, "cat /etc/docker/daemon.json") for host in APPS}
    one = fleet.play("site.yml", "-l", "app2", *more, "--check")
    assert one.code == 0, one.output
    assert one.changed["app2"] > 0


@pytest.mark.long
def test_a_load_balancer_comes_and_goes_and_no_order_fails(fleet: Fleet) -> None:
    load = fleet.load(rate=60, count=1_000_000, name="balancers")
    for playbook, *more in (["lab/create.yml"], ["site.yml", "-l", "lb"], ["update-lb.yml"]):
        run = fleet.play(playbook, *more, inventories=THIRD_BALANCER)
        assert run.code == 0, run.output
    status = fleet.play("release-status.yml", inventories=THIRD_BALANCER).output
    traffic = [line.split("ok", 1)[1] for line in status.splitlines() if re.match(r" *lb\d +running +ok", line)]
    assert (len(traffic), len(set(traffic))) == (3, 1), status
    third = replace(fleet, url=fleet.url.replace(HOSTS["children"]["lb"]["hosts"]["lb1"]["ansible_host"], "10.204.1.13"))
    assert third.load(rate=20, count=200, name="third-balancer").finish()["failed"] == 0
    within(30, lambda: asked(fleet, 'up{job="haproxy", host="lb3"} == 1'), "Prometheus asks the new one")

    assert fleet.play("update-lb.yml").code == 0
    on_host("lb3", "systemctl disable --now haproxy trading-bot-release-watchdog.timer")
    assert "lb3" not in fleet.play("release-status.yml").output
    within(30, lambda: not asked(fleet, 'up{job="haproxy", host="lb3"}'), "Prometheus asks no host that left")
    subprocess.run(["docker", "rm", "--force", "--volumes", f"{LAB}-lb3"], check=True, capture_output=True)
    summary = load.finish(now=True)
    assert summary["failed"] == 0, summary


@pytest.mark.long
def test_the_newest_ansible_finds_nothing_to_do(fleet: Fleet) -> None:
    # What refused releases left on the hosts' disks goes with the next deployment.
    assert fleet.play("deploy.yml").code == 0
    assert fleet.play("tests/newest/verify.yml").code == 0
