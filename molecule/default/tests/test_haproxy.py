"""The load balancers."""

from __future__ import annotations

import json
import re

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://lb"]

# What the configuration needs.
MINIMUM = (2, 4)


def variable(host: Host, name: str) -> str:
    """Return an inventory variable as a task would see it."""
    return str(host.ansible("ansible.builtin.debug", f"var={name}")[name])


def ask(host: Host, command: str) -> str:
    """Return the admin socket's answer."""
    script = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock');"
        " s.sendall(sys.argv[1].encode()+b'\\n'); print(b''.join(iter(lambda: s.recv(65536), b'')).decode())"
    )
    with host.sudo():
        return str(host.check_output("python3 -c %s %s", script, command))


def servers(host: Host) -> dict[tuple[str, str], str]:
    """Return the status of every server by (backend, name)."""
    rows = [line.split(",") for line in ask(host, "show stat").splitlines()]
    return {(row[0], row[1]): row[17] for row in rows if row[0].startswith("slot_") and row[1] != "BACKEND"}


def test_version_is_new_enough(host: Host) -> None:
    found = re.search(r"version (\d+)\.(\d+)", host.check_output("haproxy -v"))
    assert found
    assert (int(found[1]), int(found[2])) >= MINIMUM


def test_service_runs_now_and_after_a_boot(host: Host) -> None:
    service = host.service("haproxy")
    assert service.is_running
    assert service.is_enabled


def test_statistics_are_on_the_private_interface_only(host: Host) -> None:
    with host.sudo():
        found = host.check_output("ss -Hltn 'sport = :8404' | awk '{print $4}'").split()
    assert set(found) == {f"{variable(host, 'private_address')}:8404"}
    metrics = host.check_output(f"curl --fail --silent --max-time 5 http://{variable(host, 'private_address')}:8404/metrics")
    assert "haproxy_server_status" in metrics


def test_every_app_host_is_in_both_slots(host: Host) -> None:
    names = host.ansible.get_variables()["groups"]["app"]
    assert set(servers(host)) == {(f"slot_{slot}", name) for slot in ("blue", "green") for name in names}


def test_every_server_of_the_stable_slot_is_up(host: Host) -> None:
    slot = dict(line.split() for line in host.file("/etc/haproxy/maps/release.map").content_string.splitlines())["stable"]
    found = {name: status for (backend, name), status in servers(host).items() if backend == f"slot_{slot}"}
    assert found
    assert set(found.values()) == {"UP"}, found


def test_running_maps_are_those_on_disk(host: Host) -> None:
    """A restart would not change the split."""
    for name in ("release.map", "cut.map"):
        path = f"/etc/haproxy/maps/{name}"
        running = [" ".join(line.split()[1:]) for line in ask(host, f"show map {path}").splitlines() if line.strip()]
        assert running == host.file(path).content_string.splitlines()


def test_running_process_has_the_configuration_on_disk(host: Host) -> None:
    with host.sudo():
        assert host.run("/usr/local/sbin/haproxy-state stale").rc == 1


def test_admin_socket_is_for_its_group_alone(host: Host) -> None:
    with host.sudo():
        file = host.file("/run/haproxy/admin.sock")
        assert (file.user, file.group, file.mode) == ("root", "haproxy", 0o660)


@pytest.mark.parametrize(
    ("accounts", "status"), [("-H 'X-Account-Id: a' -H 'X-Account-Id: b'", 400), ("-H 'X-Account-Id: a,b'", 400)]
)
def test_request_that_names_two_accounts_is_refused_with_a_problem(host: Host, accounts: str, status: int) -> None:
    answer = host.check_output(f"curl --silent --max-time 5 {accounts} http://127.0.0.1:8080/api/account")
    assert json.loads(answer)["status"] == 400


def test_reload_returns_when_the_new_process_serves_and_keeps_who_is_up(host: Host) -> None:
    before = servers(host)
    with host.sudo():
        assert host.run("systemctl reload haproxy").rc == 0
    assert servers(host) == before
    assert host.run("curl --fail --silent --max-time 5 http://127.0.0.1:8080/health/ready").rc == 0
