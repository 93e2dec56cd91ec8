"""What the plugins' tests share: how a plugin is loaded, and real servers on free ports."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import ansible.module_utils
import pytest

ROOT = Path(__file__).resolve().parents[3]
PLUGINS = ROOT / "plugins"

# Ansible lays the project's module_utils beside its own when it packs a module; so do the tests.
ansible.module_utils.__path__.append(str(PLUGINS / "module_utils"))

from ansible.module_utils.haproxy import HaproxyError, RuntimeSocket  # noqa: E402 - found by the line above


def load(path: Path) -> ModuleType:
    """The plugin at this path as a module object."""
    spec = importlib.util.spec_from_file_location(f"plugin_{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


RunModule = Callable[..., dict[str, Any]]


def missing(what: str) -> NoReturn:
    """A server that is not installed: skip on a laptop, fail in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"{what} is not installed")


def program(name: str) -> str:
    """The path of a program that the test needs."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        missing(name)
    return found


def free_port() -> int:
    """A port that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], what: str, process: subprocess.Popen[bytes] | None = None) -> None:
    """Until the condition holds, at most a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        if process is not None and process.poll() is not None:
            pytest.fail(f"{what}: the process ended with {process.returncode}")
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen in a minute")
        time.sleep(0.02)


def listens(port: int) -> bool:
    """Whether somebody accepts connections on the port."""
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ended(process: subprocess.Popen[bytes]) -> None:
    """End the process that the test started."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


HAPROXY_CONFIG = """
global
    stats socket {socket} mode 600 level admin
    stats timeout 30s
defaults
    mode http
    timeout connect 2s
    timeout client 10s
    timeout server 10s
frontend api
    option idle-close-on-response
    bind 127.0.0.1:{port}
    http-request set-var(txn.salt) str(salt),map({maps}/release.map,none)
    http-request set-var(txn.bucket) req.hdr(X-Account-Id),concat(:,txn.salt,),xxh32,mod(10000)
    http-request set-var(txn.cut) str(canary),map_str_int({maps}/cut.map,0)
    http-request set-var(txn.slot) str(stable),map({maps}/release.map,blue)
    http-request set-var(txn.slot) str(canary),map({maps}/release.map,blue) if {{ var(txn.bucket),sub(txn.cut) lt 0 }}
    http-request return status 200 content-type text/plain lf-string "%[var(txn.slot)]" if {{ path /slot }}
    use_backend slot_%[var(txn.slot)]
backend slot_blue
    server app1 127.0.0.1:{app1}
    server app2 127.0.0.1:{app2}
    server app3 127.0.0.1:{app3} disabled
backend slot_green
    server app1 127.0.0.1:{app1}
    server app2 127.0.0.1:{app2}
"""


class Haproxy:
    """A real HAProxy with the design's split, its maps in a directory of the test."""

    def __init__(self, directory: Path) -> None:
        self.maps = directory / "maps"
        self.maps.mkdir()
        self.socket = directory / "admin.sock"
        self.master = directory / "master.sock"
        self.config = directory / "haproxy.cfg"
        self.port = free_port()
        self.app_ports = [free_port() for _ in range(3)]
        self.process: subprocess.Popen[bytes] | None = None
        (self.maps / "release.map").write_text("# what traffic does\nstable blue\ncanary green\nsalt none\n")
        (self.maps / "cut.map").write_text("canary 0\n")
        ports = dict(zip(("app1", "app2", "app3"), self.app_ports, strict=True))
        self.config.write_text(
            HAPROXY_CONFIG.format(socket=self.socket, port=self.port, maps=self.maps, **ports),
        )

    @property
    def where(self) -> dict[str, str]:
        """The module arguments that say where it is."""
        return {"maps_dir": str(self.maps), "socket": str(self.socket)}

    def start(self) -> None:
        """Start it, until it listens."""
        self.process = subprocess.Popen([program("haproxy"), "-db", "-q", "-f", str(self.config)])
        wait_until(lambda: listens(self.port) and self.socket.exists(), "HAProxy listening", self.process)

    def start_with_master(self) -> None:
        """Start it as the fleet's unit does, with a master that outlives its workers."""
        self.process = subprocess.Popen([program("haproxy"), "-W", "-q", "-S", str(self.master), "-f", str(self.config)])
        wait_until(lambda: listens(self.port) and self.socket.exists(), "HAProxy listening", self.process)

    def reload(self) -> None:
        """Have the master load the configuration, until the new worker is the one that answers."""
        assert self.process is not None
        runtime = RuntimeSocket(str(self.socket))
        before = runtime.about()["pid"]
        self.process.send_signal(signal.SIGUSR2)

        def replaced() -> bool:
            try:
                return runtime.about()["pid"] != before
            except HaproxyError:
                return False

        wait_until(replaced, "a new worker answering", self.process)

    def stop(self) -> None:
        """Stop it if it runs."""
        if self.process is not None:
            ended(self.process)
            self.process = None


NATS_CONFIG = """
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: "{store}" }}
{more}
authorization {{ users: [
  {{ user: admin, password: admin-secret }}
  {{ user: release, password: release-secret, permissions: {{
      publish: [
        "$KV.release.>", "$JS.API.STREAM.INFO.KV_release", "$JS.API.STREAM.CREATE.KV_release",
        "$JS.API.STREAM.MSG.GET.KV_release"]
      subscribe: ["_INBOX.>"] }} }}
  {{ user: client, password: client-secret, permissions: {{
      publish: ["trading.orders.submit.*"], subscribe: ["_INBOX.>"] }} }}
] }}
"""


class Nats:
    """A real NATS server with JetStream and the fleet's users."""

    def __init__(self, directory: Path, more: str = "") -> None:
        self.port = free_port()
        self.config = directory / "nats.conf"
        self.config.write_text(NATS_CONFIG.format(port=self.port, store=directory / "store", more=more))
        self.process = subprocess.Popen(
            [program("nats-server"), "-c", str(self.config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(lambda: listens(self.port), "NATS listening", self.process)

    @property
    def where(self) -> dict[str, Any]:
        """The module arguments that say where it is and who asks."""
        return {"servers": [f"127.0.0.1:{self.port}"], "user": "release", "password": "release-secret"}

    def stop(self) -> None:
        """Stop it."""
        ended(self.process)
