"""The ledger's server."""

from __future__ import annotations

import re

import pytest
from conftest import DATA, Fleet, on_host
from test_orders import taken
from test_paper_venue import within
from testinfra.host import Host

testinfra_hosts = ["ansible://redis"]

# The guide asks for Redis 7.0 or later.
MINIMUM = (7, 0)


def variable(host: Host, name: str) -> str:
    """Return an inventory variable as a task would see it."""
    return str(host.ansible("ansible.builtin.debug", f"var={name}")[name])


def ask(host: Host, user: str, command: str) -> str:
    """Return what Redis answers to a user; the password travels in the environment."""
    password = variable(host, f"vault_redis_{user}_password")
    with host.sudo():
        result = host.run(f"REDISCLI_AUTH=%s redis-cli --user {user} -h 127.0.0.1 {command}", password)
    return str(result.stdout + result.stderr).strip()


def test_version_is_what_the_guide_asks_for(host: Host) -> None:
    found = re.search(r"v=(\d+)\.(\d+)", host.check_output("redis-server --version"))
    assert found
    assert (int(found[1]), int(found[2])) >= MINIMUM


def test_service_runs_now_and_after_a_boot(host: Host) -> None:
    service = host.service("redis-server")
    assert service.is_running
    assert service.is_enabled


def test_it_listens_on_the_private_interface_and_loopback_only(host: Host) -> None:
    with host.sudo():
        found = host.check_output("ss -Hltn 'sport = :6379' | awk '{print $4}'").split()
    assert sorted(found) == sorted(["127.0.0.1:6379", f"{variable(host, 'private_address')}:6379"])


@pytest.mark.parametrize(
    ("path", "mode"), [("/etc/redis/redis.conf", 0o640), ("/etc/redis/users.acl", 0o640), ("/var/lib/redis", 0o750)]
)
def test_files_are_for_redis_alone(host: Host, path: str, mode: int) -> None:
    with host.sudo():
        file = host.file(path)
        assert (file.user, file.group, file.mode) == ("redis", "redis", mode)


def test_no_clear_password_is_on_disk(host: Host) -> None:
    with host.sudo():
        written = host.file("/etc/redis/users.acl").content_string + host.file("/etc/redis/redis.conf").content_string
    assert variable(host, "vault_redis_trading_bot_password") not in written
    assert variable(host, "vault_redis_operator_password") not in written


def test_nobody_gets_in_without_a_user(host: Host) -> None:
    assert "NOAUTH" in host.run("redis-cli -h 127.0.0.1 ping").stdout


@pytest.mark.parametrize(
    "command", ["flushall", "flushdb", "config get maxmemory", "keys '*'", "shutdown nosave", "get other:key"]
)
def test_app_may_not(host: Host, command: str) -> None:
    assert "NOPERM" in ask(host, "trading_bot", command)


def test_app_may_work_on_its_keys(host: Host) -> None:
    assert ask(host, "trading_bot", "set trading:of-the-test 1 px 5000") == "OK"
    assert ask(host, "trading_bot", "publish trading:of-the-test 1").isdigit()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("appendonly", "yes"), ("appendfsync", "everysec"), ("maxmemory-policy", "noeviction"), ("protected-mode", "yes")],
)
def test_guarantees_of_the_ledger_are_on(host: Host, setting: str, value: str) -> None:
    assert ask(host, "operator", f"config get {setting}").splitlines()[-1] == value


def test_operator_can_save_as_the_guide_has_it(host: Host) -> None:
    assert ask(host, "operator", "save") == "OK"


def test_a_killed_redis_comes_back_with_every_order(fleet: Fleet) -> None:
    load = fleet.load(rate=50, count=1_000_000, name="killed-redis")
    within(20, lambda: load.log.exists() and load.log.read_text().count("\n") > 200, "orders are answered")
    began = on_host(DATA, "systemctl show --property MainPID redis-server")
    on_host(DATA, "systemctl kill --signal KILL redis-server")
    within(20, lambda: taken(fleet), "orders are taken again")
    summary = load.finish(now=True)
    assert on_host(DATA, "systemctl show --property MainPID redis-server") != began
    assert summary["statuses"]["201"] > 100, summary
    # None, where a load balancer without an instance just closed the connection.
    assert set(summary["statuses"]) <= {"200", "201", "503", "0"}, summary
    verdict = load.judge()
    assert (verdict["lost"], verdict["doubled"], verdict["different"]) == (0, 0, 0), verdict
