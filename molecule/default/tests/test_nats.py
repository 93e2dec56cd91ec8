"""The bus' servers."""

from __future__ import annotations

import json
import re

import pytest
from testinfra.host import Host

testinfra_hosts = ["ansible://nats"]

# The guide asks for NATS 2.9 or later.
MINIMUM = (2, 9)


def variable(host: Host, name: str) -> str:
    """Return an inventory variable as a task would see it."""
    return str(host.ansible("ansible.builtin.debug", f"var={name}")[name])


def monitor(host: Host, path: str) -> dict[str, object]:
    """Return what the monitoring port says."""
    address = variable(host, "private_address")
    return dict(json.loads(host.check_output(f"curl --fail --silent --max-time 5 http://{address}:8222/{path}")))


def test_version_is_what_the_guide_asks_for(host: Host) -> None:
    found = re.match(r"(\d+)\.(\d+)", str(monitor(host, "varz")["version"]))
    assert found
    assert (int(found[1]), int(found[2])) >= MINIMUM


def test_service_runs_now_and_after_a_boot(host: Host) -> None:
    service = host.service("nats-server")
    assert service.is_running
    assert service.is_enabled


@pytest.mark.parametrize("port", [4222, 8222])
def test_it_listens_on_the_private_interface_only(host: Host, port: int) -> None:
    with host.sudo():
        found = host.check_output(f"ss -Hltn 'sport = :{port}' | awk '{{print $4}}'").split()
    assert found == [f"{variable(host, 'private_address')}:{port}"]


def test_server_and_streams_are_healthy(host: Host) -> None:
    assert monitor(host, "healthz")["status"] == "ok"


def test_messages_are_on_disk_before_they_are_acknowledged(host: Host) -> None:
    """JetStream stores on disk; 2.10 and later are told to write at once."""
    settings = monitor(host, "jsz")["config"]
    assert isinstance(settings, dict)
    assert settings["store_dir"].startswith("/var/lib/nats")
    if not str(monitor(host, "varz")["version"]).startswith("2.9."):
        assert settings["sync_always"] is True


def test_configuration_is_for_root_and_the_server_alone_and_has_no_clear_password(host: Host) -> None:
    with host.sudo():
        file = host.file("/etc/nats/nats-server.conf")
        assert (file.user, file.group, file.mode) == ("root", "nats", 0o640)
        assert host.file("/var/lib/nats").mode == 0o750
        for user in ("trading_bot", "release", "client"):
            assert variable(host, f"vault_nats_{user}_password") not in file.content_string


def test_nobody_gets_in_without_a_password(host: Host) -> None:
    address = variable(host, "private_address")
    script = f"exec 3<>/dev/tcp/{address}/4222; printf 'CONNECT {{}}\\r\\nPING\\r\\n' >&3; timeout 3 head -n 2 <&3"
    answer = host.run("bash -c %s", script)
    assert "Authorization Violation" in answer.stdout


def test_unit_may_do_no_more_than_it_has_to(host: Host) -> None:
    properties = host.check_output(
        "systemctl show nats-server --property User,NoNewPrivileges,ProtectSystem,CapabilityBoundingSet"
    )
    assert set(properties.split()) == {"User=nats", "NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet="}
