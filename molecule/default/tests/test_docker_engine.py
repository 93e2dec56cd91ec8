"""The engine that runs the app."""

from __future__ import annotations

import json
import re

from testinfra.host import Host

testinfra_hosts = ["ansible://app"]


def version(text: str) -> tuple[int, ...]:
    """The first dotted number of a text, as numbers."""
    match = re.search(r"\d+(\.\d+)+", text)
    assert match is not None, text
    return tuple(int(part) for part in match.group().split("."))


def test_the_engine_runs_now_and_after_a_boot(host: Host) -> None:
    """The service is running and enabled."""
    service = host.service("docker")
    assert service.is_running
    assert service.is_enabled


def test_versions_are_those_of_the_guide_or_later(host: Host) -> None:
    """Docker 24.0 and Compose 2.20, asked of the programs that run."""
    with host.sudo():
        assert version(host.check_output("docker version --format '{{.Server.Version}}'")) >= (24, 0)
        assert version(host.check_output("docker compose version --short")) >= (2, 20)


def test_the_configuration_is_valid_and_in_force(host: Host) -> None:
    """The engine validates its file, rotates the logs of containers, and leaves them running when it restarts."""
    with host.sudo():
        host.check_output("dockerd --validate --config-file=/etc/docker/daemon.json")
        told = json.loads(host.check_output("docker info --format '{{json .}}'"))
        wanted = json.loads(host.file("/etc/docker/daemon.json").content_string)
    assert wanted["log-opts"] == {"max-size": "50m", "max-file": "5"}
    assert told["LoggingDriver"] == wanted["log-driver"] == "local"
    assert told["LiveRestoreEnabled"] is True


def test_the_service_user_cannot_command_the_engine(host: Host) -> None:
    """Membership of the group docker is as good as root, and the app has no need of it."""
    assert "docker" not in host.user("trading-bot").groups
    assert not host.file("/var/run/docker.sock").mode & 0o007
    assert not any(
        socket.startswith("tcp://") and socket.endswith((":2375", ":2376")) for socket in host.socket.get_listening_sockets()
    )
