"""The module that tells what runs in the slots, against real HTTP answers and a real container engine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.slots import in_vain, masked, parse_containers, parse_unit, readiness, restarts
from plugin_testing import PLUGINS, RunModule, free_port, load, missing

TOKEN = "observer-token-0123456789"
RELEASE = {"id": "1.0.0-aaaaaaaaaa", "version": "1.0.0"}


class Instance:
    """An HTTP server that answers as an instance does."""

    def __init__(self) -> None:
        self.ready: tuple[int, bytes] = (200, b"{}")
        self.status: tuple[int, bytes] = (200, json.dumps({"version": "1.0.0", "slot": "blue"}).encode())
        self.hang = threading.Event()
        instance = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/health/ready":
                    code, body = instance.ready
                elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    code, body = 401, b""
                else:
                    code, body = instance.status
                if code == 0:
                    instance.hang.wait(10)
                    return
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def stop(self) -> None:
        self.hang.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def instance() -> Iterator[Instance]:
    served = Instance()
    yield served
    served.stop()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host's /opt/trading-bot with one release in blue."""
    release = tmp_path / "releases" / RELEASE["id"]
    release.mkdir(parents=True)
    (release / "release.json").write_text(json.dumps(RELEASE))
    (release / "config.yaml").write_text("server: {}\n")
    (tmp_path / "slots").mkdir()
    (tmp_path / "slots" / "blue").symlink_to(f"../releases/{RELEASE['id']}")
    return tmp_path


def where(root: Path, blue: int, **more: Any) -> dict[str, Any]:
    names = {"unit": f"tb-test-{os.getpid()}@{{slot}}.service", "container": f"tb-test-{os.getpid()}-{{slot}}"}
    ports = {"blue": blue, "green": free_port()}
    return {"root": str(root), "private_address": "127.0.0.1", "ports": ports, "token": TOKEN, **names, **more}


def test_a_slot_is_told_from_the_link_to_the_live_answer(root: Path, instance: Instance, run_module: RunModule) -> None:
    blue = run_module("slot_state", where(root, instance.port))["slots"]["blue"]
    assert (blue["release_id"], blue["version"], blue["release"]) == (RELEASE["id"], "1.0.0", RELEASE)
    assert blue["config_sha256"] == hashlib.sha256(b"server: {}\n").hexdigest()
    assert (blue["live"], blue["ready"], blue["status"]["slot"]) == (True, True, "blue")


def test_a_host_without_anything_is_no_error(tmp_path: Path, run_module: RunModule) -> None:
    result = run_module("slot_state", where(tmp_path, free_port()))
    assert (result.get("failed"), result["previous"], result["releases"]) == (None, None, [])
    green = result["slots"]["green"]
    assert (green["release_id"], green["image"], green["status"], green["running"]) == (None, None, None, False)
    assert any("slots/green is absent" in reason for reason in green["reasons"])
    assert "no answer on port" in green["ready_reason"]


def test_the_previous_release_and_all_on_disk_are_told(root: Path, run_module: RunModule) -> None:
    (root / "previous").symlink_to(f"releases/{RELEASE['id']}")
    (root / "releases" / "broken").mkdir()
    result = run_module("slot_state", where(root, free_port()))
    assert (result["previous"], result["releases"]) == (RELEASE["id"], [RELEASE])


@pytest.mark.parametrize(("text", "says"), [("{", "release.json: "), ("[]", "is no JSON object")])
def test_a_broken_release_is_a_reason(root: Path, run_module: RunModule, text: str, says: str) -> None:
    (root / "releases" / RELEASE["id"] / "release.json").write_text(text)
    (root / "releases" / RELEASE["id"] / "config.yaml").unlink()
    blue = run_module("slot_state", where(root, free_port()))["slots"]["blue"]
    assert (blue["release_id"], blue["release"], blue["config_sha256"]) == (RELEASE["id"], None, None)
    assert any(says in reason for reason in blue["reasons"])
    assert any(reason.startswith("config: ") for reason in blue["reasons"])


def test_a_release_in_the_wrong_directory_is_a_reason(root: Path, run_module: RunModule) -> None:
    (root / "releases" / RELEASE["id"] / "release.json").write_text(json.dumps({**RELEASE, "id": "other"}))
    blue = run_module("slot_state", where(root, free_port()))["slots"]["blue"]
    assert any("but its release.json says other" in reason for reason in blue["reasons"])


def test_an_instance_that_is_not_ready_says_why(root: Path, instance: Instance, run_module: RunModule) -> None:
    instance.ready = (503, b'{"title": "not ready", "detail": "redis: connection refused"}')
    blue = run_module("slot_state", where(root, instance.port))["slots"]["blue"]
    assert (blue["live"], blue["ready"], blue["ready_reason"]) == (True, False, "503: redis: connection refused")


@pytest.mark.parametrize("status", [(500, b""), (200, b"[]"), (200, b"{")])
def test_a_status_that_cannot_be_read_is_a_reason(
    root: Path, instance: Instance, run_module: RunModule, status: tuple[int, bytes]
) -> None:
    instance.status = status
    blue = run_module("slot_state", where(root, instance.port))["slots"]["blue"]
    assert blue["status"] is None
    assert any(reason.startswith("/api/status: ") for reason in blue["reasons"])


def test_a_wrong_token_is_a_reason_and_is_not_shown(root: Path, instance: Instance, run_module: RunModule) -> None:
    result = run_module("slot_state", where(root, instance.port, token="some-other-token"))
    assert "/api/status: answered 401" in result["slots"]["blue"]["reasons"]
    assert "some-other-token" not in json.dumps({k: v for k, v in result.items() if k != "invocation"})


def test_an_instance_that_hangs_is_not_waited_for(root: Path, instance: Instance, run_module: RunModule) -> None:
    instance.ready = instance.status = (0, b"")
    result = run_module("slot_state", where(root, instance.port, http_timeout=0.2))
    blue = result["slots"]["blue"]
    assert (blue["ready"], blue["status"]) == (False, None)
    assert blue["ready_reason"].startswith(f"no answer on port {instance.port}")


def test_waiting_ends_when_the_slot_is_ready(root: Path, instance: Instance, run_module: RunModule) -> None:
    instance.ready = (503, b"")
    timer = threading.Timer(0.5, lambda: setattr(instance, "ready", (200, b"")))
    timer.start()
    result = run_module("slot_state", where(root, instance.port, slots=["blue"], wait="ready", timeout=20))
    timer.join()
    assert (result.get("failed"), result["slots"]["blue"]["ready"]) == (None, True)


def test_waiting_in_vain_fails_with_the_last_reason(root: Path, instance: Instance, run_module: RunModule) -> None:
    instance.ready = (503, b'{"detail": "nats: no servers"}')
    result = run_module("slot_state", where(root, instance.port, slots=["blue"], wait="ready", timeout=0.3))
    assert result["failed"] is True
    assert "blue does not become ready: it was not after 0.3 s" in result["msg"]
    assert "Last readiness: 503: nats: no servers" in result["msg"]
    assert result["slots"]["blue"]["ready"] is False


def test_check_mode_does_not_wait(root: Path, run_module: RunModule) -> None:
    args = where(root, free_port(), slots=["green"], wait="ready", timeout=60)
    assert run_module("slot_state", args, check=True).get("failed") is None


def test_a_slot_without_a_port_is_refused(root: Path, run_module: RunModule) -> None:
    assert "no port for blue, green" in run_module("slot_state", {**where(root, 1), "ports": {}})["msg"]


# --- a real container ---


@pytest.fixture
def containers() -> Iterator[dict[str, str]]:
    """A container of this test's own that prints a secret and ends, in an image of nothing but a shell."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, check=False).returncode:
        missing("docker")
    libraries = re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True, check=True).stdout)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", dereference=True) as tar:
        for file in ("/bin/sh", *libraries):
            tar.add(os.path.realpath(file), file.lstrip("/"))
    tag = f"tb-test-{os.getpid()}:1"
    image = subprocess.run([docker, "import", "-", tag], input=archive.getvalue(), capture_output=True, check=True)
    name = f"tb-test-{os.getpid()}-blue"
    yield {"docker": docker, "image": image.stdout.decode().strip(), "tag": tag, "name": name}
    subprocess.run([docker, "rm", "--force", name], capture_output=True, check=True)
    subprocess.run([docker, "image", "rm", "--force", tag], capture_output=True, check=True)


def test_the_image_is_the_one_that_really_runs(root: Path, containers: dict[str, str], run_module: RunModule) -> None:
    command = [containers["docker"], "run", "--detach", "--network", "none", "--name", containers["name"]]
    subprocess.run([*command, containers["tag"], "/bin/sh", "-c", "read line < /dev/full; while :; do read x; done"],
                   check=True, capture_output=True)  # fmt: skip
    blue = run_module("slot_state", where(root, free_port()))["slots"]["blue"]
    assert blue["image"] == containers["image"]
    assert blue["container"]["restarts"] == 0


def test_a_container_that_crashes_again_and_again_ends_the_wait(
    root: Path, containers: dict[str, str], run_module: RunModule
) -> None:
    command = [containers["docker"], "run", "--detach", "--network", "none", "--restart", "always", "--name"]
    script = "echo connecting with password=hunter2-hunter2; exit 3"
    subprocess.run([*command, containers["name"], containers["tag"], "/bin/sh", "-c", script], check=True, capture_output=True)
    result = run_module("slot_state", where(root, free_port(), slots=["blue"], wait="ready", timeout=60))
    assert "it crashes again and again" in result["msg"]
    assert "connecting with password=********" in result["msg"]
    assert "hunter2" not in result["msg"]
    assert result["waited"] < 30


# --- the wheel of the other runtime ---


def test_the_wheel_is_the_one_that_pip_recorded(root: Path, run_module: RunModule) -> None:
    release = root / "releases" / RELEASE["id"]
    record = release / "venv/lib/python3.13/site-packages/trading_bot-1.0.0.dist-info/direct_url.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"url": "file:///x.whl", "archive_info": {"hashes": {"sha256": "ab" * 32}}}))
    blue = run_module("slot_state", where(root, free_port(), runtime="systemd"))["slots"]["blue"]
    assert blue["image"] == f"sha256:{'ab' * 32}"
    record.write_text(json.dumps({"url": "file:///x.whl", "archive_info": {"hash": f"sha256={'cd' * 32}"}}))
    blue = run_module("slot_state", where(root, free_port(), runtime="systemd"))["slots"]["blue"]
    assert blue["image"] == f"sha256:{'cd' * 32}"


def test_without_a_record_it_is_the_releases_own_wheel(root: Path, run_module: RunModule) -> None:
    blue = run_module("slot_state", where(root, free_port(), runtime="systemd"))["slots"]["blue"]
    assert blue["image"] is None
    assert any(reason.startswith("no wheel is installed in ") for reason in blue["reasons"])
    (root / "releases" / RELEASE["id"] / "trading_bot-1.0.0-py3-none-any.whl").write_bytes(b"wheel")
    blue = run_module("slot_state", where(root, free_port(), runtime="systemd"))["slots"]["blue"]
    assert blue["image"] == f"sha256:{hashlib.sha256(b'wheel').hexdigest()}"


def test_a_broken_record_is_a_reason(root: Path, run_module: RunModule) -> None:
    site = root / "releases" / RELEASE["id"] / "venv/lib/python3.13/site-packages/trading_bot-1.0.0.dist-info"
    site.mkdir(parents=True)
    (site / "direct_url.json").write_text("{")
    blue = run_module("slot_state", where(root, free_port(), runtime="systemd"))["slots"]["blue"]
    assert any(reason.startswith("wheel: ") for reason in blue["reasons"])


def test_a_tool_that_hangs_or_is_absent_is_told() -> None:
    module = load(PLUGINS / "modules" / "slot_state.py")
    assert module.run(["no-such-tool"]) == (None, "", "no-such-tool is not installed")
    vars(module)["_COMMAND_TIMEOUT"] = 0.1
    assert module.run(["sleep", "5"])[0] is None


# --- the pure part ---

SHOWN = """LoadState=loaded
UnitFileState=enabled
ActiveState=activating
SubState=auto-restart
NRestarts=3
Result=exit-code
ExecMainStatus=1
"""


def test_a_unit_is_read_from_what_systemctl_prints() -> None:
    assert parse_unit(SHOWN) == {
        "load": "loaded",
        "enabled": "enabled",
        "active": "activating",
        "sub": "auto-restart",
        "restarts": 3,
        "result": "exit-code",
        "exit_status": 1,
    }
    assert parse_unit("NRestarts=[not set]\n")["restarts"] == 0


def test_containers_are_read_from_what_docker_prints() -> None:
    printed = [
        {"Name": "/a", "Image": "sha256:1", "RestartCount": 2, "State": {"Status": "restarting", "Running": True,
         "Restarting": True, "ExitCode": 3}},
    ]  # fmt: skip
    assert parse_containers(json.dumps(printed)) == {
        "a": {"image": "sha256:1", "status": "restarting", "running": False, "restarts": 2, "exit_status": 3}
    }
    assert parse_containers("") == {}


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (200, b"", (True, "")),
        (503, b"", (False, "503")),
        (503, b"plain", (False, "503: plain")),
        (503, b'{"title": "draining"}', (False, "503: draining")),
        (503, b"[1]", (False, "503: [1]")),
        (503, b'{"detail": "d", "reasons": {"redis": "refused", "nats": "away"}}', (False, "503: redis: refused; nats: away")),
        (503, b'{"detail": "d", "reasons": {}}', (False, "503: d")),
        (503, b'{"detail": "redis://u:secret@h refused"}', (False, "503: redis://u:********@h refused")),
    ],
)
def test_readiness_gives_the_reason(status: int, body: bytes, told: tuple[bool, str]) -> None:
    assert readiness(status, body) == told


@pytest.mark.parametrize(
    "text",
    [
        "password=S3cret", 'password: "S3cret"', '"redis_password": "S3cret"', "API_KEY=S3cret", "token = S3cret",
        "Authorization: Bearer S3cret", "nats://app:S3cret@10.0.0.1:4222", "{'secret': 'S3cret'}",
    ],
)  # fmt: skip
def test_secrets_in_logs_are_masked(text: str) -> None:
    assert "S3cret" not in masked(text)
    assert "********" in masked(text)


def test_ordinary_log_lines_stay() -> None:
    line = '{"event": "ready", "took": "12ms", "url": "http://10.0.0.1:18080/health"}'
    assert masked(line) == line


def unit(**more: Any) -> dict[str, Any]:
    return {"unit": {"load": "loaded", "active": "active", "restarts": 0, "exit_status": 0, **more}, "running": True}


@pytest.mark.parametrize(
    ("state", "at_start", "says"),
    [
        (unit(), 0, None),
        (unit(restarts=1), 0, None),
        (unit(restarts=9), 8, None),
        (unit(restarts=2), 0, "crashes again and again (2 restarts while waiting)"),
        (unit(active="failed", result="exit-code"), 0, "its unit failed (exit-code)"),
        (unit(load="not-found", active="inactive"), 0, "cannot be started (not-found)"),
        ({**unit(exit_status=78, active="failed"), "running": False}, 0, "refused its configuration"),
        ({**unit(), "container": {"exit_status": 78}, "running": False}, 0, None),
        ({"unit": None, "container": {"exit_status": 78}, "running": False}, 0, "refused its configuration"),
        ({"unit": None, "container": None, "running": False}, 0, None),
    ],
)
def test_when_waiting_is_in_vain(state: dict[str, Any], at_start: int, says: str | None) -> None:
    why = in_vain(state, at_start)
    assert (why is None) if says is None else (says in (why or ""))


def test_restarts_of_systemd_and_of_the_engine_count_together() -> None:
    assert restarts({"unit": {"restarts": 2}, "container": {"restarts": 3}}) == 5
