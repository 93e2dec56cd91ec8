"""A release in its slot on an app host."""

from __future__ import annotations

import json

import pytest
from conftest import Fleet
from testinfra.host import Host

testinfra_hosts = ["ansible://app"]


@pytest.fixture
def slot(fleet: Fleet) -> str:
    """The slot that serves."""
    return fleet.served()[1]


def test_the_service_owns_the_slots(host: Host, slot: str) -> None:
    assert host.service("trading-bot").is_running
    assert host.service("trading-bot").is_enabled
    assert host.service(f"trading-bot@{slot}").is_running
    assert host.service(f"trading-bot@{slot}").is_enabled


def test_the_container_may_do_no_more_than_it_has_to(host: Host, slot: str) -> None:
    with host.sudo():
        found = json.loads(host.check_output(f"docker inspect trading-bot-{slot}"))[0]
    limits = found["HostConfig"]
    assert found["Config"]["User"] == "10001:10001"
    assert limits["ReadonlyRootfs"]
    assert limits["CapDrop"] == ["ALL"]
    assert limits["SecurityOpt"] == ["no-new-privileges:true"]
    assert limits["Memory"] == 512 * 2**20
    assert limits["PidsLimit"] == 256


def test_it_listens_on_the_private_interface_only(host: Host, slot: str, fleet: Fleet) -> None:
    with host.sudo():
        found = host.check_output("ss -Hltn 'sport = :18080 or sport = :18081' | awk '{print $4}'").split()
    assert found == [f"{fleet.private[host.backend.host]}:{ {'blue': 18080, 'green': 18081}[slot] }"]


def test_the_release_and_its_secrets_are_for_root_and_the_app_alone(host: Host, slot: str) -> None:
    with host.sudo():
        home = host.file(host.check_output(f"readlink -f /opt/trading-bot/slots/{slot}"))
        secret = host.file(f"{home.path}/secrets/redis_password")
        assert (home.user, home.group, home.mode) == ("root", "trading-bot", 0o750)
        assert (secret.user, secret.group, secret.mode) == ("root", "trading-bot", 0o640)


def test_what_it_logs_is_read_by_docker_logs_and_as_a_file(host: Host, slot: str) -> None:
    with host.sudo():
        last = host.check_output(f"docker logs --tail 1 trading-bot-{slot} 2>&1")
        assert json.loads(last)
        assert json.loads(host.check_output(f"tail -n 1 /var/log/trading-bot/trading-bot-{slot}.log"))


def test_restarting_the_service_restarts_the_slot_that_serves_and_no_other(host: Host, slot: str) -> None:
    other = {"blue": "green", "green": "blue"}[slot]
    started = f"docker inspect -f '{{{{.State.StartedAt}}}}' trading-bot-{slot}"
    running = f"docker inspect -f '{{{{.State.Running}}}}' trading-bot-{slot} 2>/dev/null | grep -q true"
    with host.sudo():
        before = host.check_output(started)
        host.check_output("systemctl restart trading-bot")
        host.check_output(f'timeout 60 sh -c "until {running}; do sleep 0.2; done"')
        assert host.check_output(started) != before
        assert not host.service(f"trading-bot@{other}").is_running


@pytest.mark.long
def test_a_slot_that_could_not_start_again_and_again_comes_back_by_itself(host: Host, slot: str) -> None:
    unit, logs = f"trading-bot@{slot}", "/var/log/trading-bot"
    restarts = f"systemctl show -P NRestarts {unit}"
    with host.sudo():
        before = host.check_output(f"systemctl restart {unit} && systemctl show -P MainPID {unit}")
        # No file can be made there, so that the unit has nowhere to write to.
        host.check_output(f"mount -t tmpfs -o nr_inodes=1 tmpfs {logs}")
        try:
            host.check_output(f"kill -KILL {before}")
            host.check_output(f'timeout 180 sh -c "until [ \\$({restarts}) -ge 7 ]; do sleep 0.2; done"')
        finally:
            host.check_output(f"umount {logs}")
        running = f"docker inspect -f '{{{{.State.Running}}}}' trading-bot-{slot} 2>/dev/null | grep -q true"
        host.check_output(f'timeout 120 sh -c "until {running}; do sleep 0.2; done"')
