#!/usr/bin/python
"""Measure on a host what may be the cause of a problem, change nothing."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.diagnose_servers import (
    nats_login,
    nats_state,
    port_outcome,
    readiness_of,
    redis_login,
    redis_state,
    series,
    time_offset,
)
from ansible.module_utils.diagnose_text import (
    chrony_offset,
    host_port,
    last_errors,
    listening,
    named_certificates,
    not_after,
    sections,
)
from ansible.module_utils.preflight import os_release
from ansible.module_utils.redaction import redacted, redacted_values
from ansible.module_utils.slots import parse_unit, readiness

DOCUMENTATION = r"""
module: diagnose_measure
short_description: Measure on a host what may be the cause of a problem, change nothing
description:
  - Services, slots of the app, disks, memory, load, clock, ports of other hosts, firewall, certificates, and how Redis and NATS
    answer, each probe bounded in time.
  - A probe that fails is part of what was measured. Logs and facts leave the host without secrets.
author: Trading Bot Ops (@trading-bot-ops)
options:
  services:
    description: The units that the host needs, each with I(name), I(unit) and I(vital).
    type: list
    elements: dict
    default: []
  slots:
    description: Where the app's slots are, on a host that has them, with I(root), I(runtime), I(address) and I(ports).
    type: dict
    default: {}
  app_passwords:
    description: What the inventory says that the app's files C(redis_password) and C(nats_password) hold.
    type: dict
    default: {}
  redis:
    description: The server on this host, if it has one, with I(address), I(port) and I(user).
    type: dict
    default: {}
  redis_password:
    description: That user's password.
    type: str
    default: ""
  nats_monitor:
    description: The monitoring address of the server on this host, as host:port; empty if it has none.
    type: str
    default: ""
  reach:
    description: What this host needs of others, each with I(to), I(service), I(address) and I(port).
    type: list
    elements: dict
    default: []
  paths:
    description: Directories whose file systems count.
    type: list
    elements: path
    default: [/]
  certificates:
    description: PEM files whose end counts, besides those that HAProxy's configuration names.
    type: list
    elements: path
    default: []
  haproxy_config:
    description: HAProxy's configuration.
    type: path
    default: /etc/haproxy/haproxy.cfg
  time_servers:
    description: Servers to compare the clock with, as host or host:port.
    type: list
    elements: str
    default: []
  prometheus:
    description: Prometheus on this host as host:port; empty if it has none.
    type: str
    default: ""
  series:
    description: What to ask of it.
    type: list
    elements: str
    default: []
  since:
    description: How many seconds back logs, slow commands, kills and series go.
    type: int
    default: 3600
  logs:
    description: Log files to take besides the units' journals.
    type: list
    elements: path
    default: []
  log_bytes:
    description: The most bytes of the end of each log.
    type: int
    default: 400000
  secrets:
    description: Values that are left out of whatever leaves the host.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Measure the host
  diagnose_measure:
    services: [{name: Redis, unit: redis-server.service}]
    reach: [{to: data1, service: NATS, address: 10.0.0.61, port: 4222}]
    secrets: "{{ diagnose_secrets }}"
"""

RETURN = r"""
facts:
  description: What was measured, by the name of the probe. A probe that failed has I(error).
  returned: always
  type: dict
logs:
  description: The ends of the logs, by name, without secrets.
  returned: always
  type: dict
"""

_UNIT = "LoadState,UnitFileState,ActiveState,SubState,NRestarts,Result,ExecMainStatus,ControlGroup"
#: Seconds within which a slow command may be why Redis is slow now.
_RECENT = 120
_USED = ("enabled", "enabled-runtime")
_RUNS = ("active", "activating", "reloading", "deactivating", "failed")
_VERSIONS = {
    "docker": ["docker", "--version"],
    "redis": ["redis-server", "--version"],
    "nats": ["nats-server", "--version"],
    "haproxy": ["haproxy", "-v"],
    "prometheus": ["prometheus", "--version"],
    "openssl": ["openssl", "version"],
}
_FIREWALLS = {"nft": ["nft", "list", "ruleset"], "iptables": ["iptables-save"], "ufw": ["ufw", "status"]}
_ENVIRONMENT = {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"}


def run(command: list[str], timeout: float = 5) -> tuple[Optional[int], str]:
    """Exit status (None if it could not be run or took too long) and what it printed, both streams together."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
            env=_ENVIRONMENT,
        )
    except subprocess.TimeoutExpired:
        return None, f"{command[0]} took more than {timeout:g} s"
    except OSError as error:
        return None, f"{command[0]}: {error.strerror}"
    return done.returncode, done.stdout.decode(errors="replace")


def installed(program: str) -> bool:
    """Whether the host has this program."""
    return shutil.which(program, path=_ENVIRONMENT["PATH"]) is not None


def unit(name: str) -> dict[str, Any]:
    """A unit's state, its control group, and the last errors in its journal if it does not run."""
    status, out = run(["systemctl", "show", name, f"--property={_UNIT}"])
    if status != 0:
        return {"unit": name, "error": out.strip()}
    state = {"unit": name, **parse_unit(out)}
    group = dict(line.split("=", 1) for line in out.splitlines() if "=" in line).get("ControlGroup", "")
    state["oom_kills"] = oom_kills(group) if group else 0
    if state["load"] == "loaded" and (state["active"] != "active" or state["restarts"]):
        _, journal = run(["journalctl", "--unit", name, "--lines", "60", "--no-pager", "--output", "cat"])
        state["errors"] = last_errors(journal, 3)
    return state


def oom_kills(group: str) -> int:
    """How many processes of a control group were killed for want of memory."""
    places = [f"/sys/fs/cgroup{group}/memory.events", f"/sys/fs/cgroup/memory{group}/memory.oom_control"]
    for line in (line for place in places if os.path.exists(place) for line in Path(place).read_text().splitlines()):
        words = line.split()
        if len(words) == 2 and words[0] == "oom_kill":
            return int(words[1])
    return 0


def disk(path: str) -> dict[str, Any]:
    """How full the file system of a directory is, as root's programs see it."""
    found = os.statvfs(path)
    used = found.f_blocks - found.f_bfree
    usable = used + found.f_bavail
    return {
        "path": path,
        "used_percent": round(100 * used / usable, 1) if usable else 0.0,
        "inodes_percent": round(100 * (1 - found.f_favail / found.f_files), 1) if found.f_files else 0.0,
        "free_mib": found.f_bavail * found.f_frsize // 2**20,
    }


def disks(paths: list[str]) -> list[dict[str, Any]]:
    """Each file system below the directories, once."""
    seen: dict[int, dict[str, Any]] = {}
    for path in paths:
        if os.path.isdir(path):
            seen.setdefault(os.stat(path).st_dev, disk(path))
    return list(seen.values())


def memory(since: float) -> dict[str, Any]:
    """Memory that is there and free, and whom the kernel killed for want of it."""
    kilobytes = {
        words[0].rstrip(":"): int(words[1]) for words in map(str.split, Path("/proc/meminfo").read_text().splitlines()) if words
    }
    _, journal = run(["journalctl", "--dmesg", "--since", f"@{int(since)}", "--no-pager", "--output", "cat"])
    return {
        "total_mib": kilobytes["MemTotal"] // 1024,
        "available_mib": kilobytes["MemAvailable"] // 1024,
        "kills": [line for line in journal.splitlines() if "Killed process" in line][-5:],
    }


def load() -> dict[str, Any]:
    """Processes that want a processor, and which of them take most."""
    one, five, fifteen = os.getloadavg()
    _, busiest = run(["ps", "-eo", "pcpu,rss,comm", "--sort=-pcpu", "--no-headers"])
    return {"one": one, "five": five, "fifteen": fifteen, "processors": os.cpu_count(), "busiest": busiest.splitlines()[:4]}


def clock(servers: list[str]) -> dict[str, Any]:
    """What keeps the clock, and how far off it says that it is."""
    _, tracking = run(["chronyc", "-c", "tracking"]) if installed("chronyc") else (None, "")
    _, told = run(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
    return {
        "container": run(["systemd-detect-virt", "--container"])[0] == 0,
        "synchronized": told.strip() == "yes",
        "chrony_offset": chrony_offset(tracking),
        "servers": [time_offset(server) for server in servers],
    }


def reach(needed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What becomes of a connection to each port, all tried at once."""
    with ThreadPoolExecutor(max_workers=max(1, len(needed))) as pool:
        outcomes = list(pool.map(lambda item: port_outcome(item["address"], int(item["port"])), needed))
    return [{**item, **outcome} for item, outcome in zip(needed, outcomes)]


def sockets() -> list[tuple[str, int]]:
    """Where something listens."""
    tables = [Path(f"/proc/net/{name}") for name in ("tcp", "tcp6")]
    return sorted({pair for table in tables if table.exists() for pair in listening(table.read_text())})


def firewall() -> dict[str, str]:
    """The rules of each firewall that is installed."""
    return {name: run(command)[1][:200_000] for name, command in _FIREWALLS.items() if installed(command[0])}


def certificates(paths: list[str], haproxy_config: str) -> list[dict[str, Any]]:
    """When each certificate ends."""
    by_haproxy = named_certificates(Path(haproxy_config).read_text()) if os.path.exists(haproxy_config) else []
    found = []
    for path in sorted({*paths, *by_haproxy}):
        status, out = run(["openssl", "x509", "-noout", "-enddate", "-in", path])
        ends = not_after(out)
        found.append({"path": path, "ends": ends, "error": "" if ends else out.strip()[:200] or f"openssl ended with {status}"})
    return found


class Slots:
    """What the app's slots run, and how what they depend on answers to them."""

    def __init__(self, asked: Mapping[str, Any], passwords: Mapping[str, str]) -> None:
        self.root = Path(asked["root"])
        self.runtime = asked["runtime"]
        self.address = asked["address"]
        self.ports = asked["ports"]
        self.passwords = passwords

    def all(self) -> dict[str, Any]:
        """Every slot that is in use."""
        found = {}
        for slot, port in self.ports.items():
            state = unit(f"trading-bot@{slot}.service")
            if state.get("enabled") in _USED or state.get("active") in _RUNS:
                found[slot] = {"port": int(port), "unit": state, **self.slot(slot, int(port))}
        return found

    def slot(self, slot: str, port: int) -> dict[str, Any]:
        """One slot: its release, what it runs, and what it depends on."""
        directory = (self.root / "slots" / slot).resolve()
        found: dict[str, Any] = {"release_id": directory.name if directory.is_dir() else None}
        environment = self.text(directory / "release.env")
        reference = next((line.split("=", 1)[1] for line in environment.splitlines() if line.startswith("RELEASE_IMAGE_REF")), "")
        if self.runtime == "docker":
            found["image"] = self.image(reference)
            found["container"] = self.container(slot)
            checked = found["image"]["present"]
            command = ["docker", "run", "--rm", "--network=none", "--read-only", f"--volume={directory}:/etc/trading-bot:ro"]
            command += [reference, "check-config", "/etc/trading-bot/config.yaml"]
        else:
            program = directory / "venv/bin/trading-bot"
            checked = program.exists()
            command = [str(program), "check-config", str(directory / "config.yaml")]
        if checked and directory.is_dir():
            status, out = run(command, timeout=20)
            found["config"] = {"status": status, "output": out.strip()[:1000]}
        settings = sections(self.text(directory / "config.yaml"))
        found.update(self.dependencies(directory, settings))
        status, body = readiness_of(f"{self.address}:{port}")
        ready, why = (False, body) if status is None else readiness(status, body.encode())
        found["ready"] = {"ready": ready, "reason": why}
        return found

    @staticmethod
    def text(path: Path) -> str:
        """A file's text; empty if it cannot be read."""
        try:
            return path.read_text(errors="replace")
        except OSError:
            return ""

    @staticmethod
    def image(reference: str) -> dict[str, Any]:
        """Whether the engine has the image; None where the engine does not answer."""
        status, out = run(["docker", "image", "inspect", "--format", "{{.Id}}", reference])
        lacks = status == 1 and "no such image" in out.lower()
        return {"reference": reference, "present": True if status == 0 else False if lacks else None, "error": out.strip()[-200:]}

    def container(self, slot: str) -> dict[str, Any]:
        """The slot's container as it is, and how often the kernel killed it in the last quarter of an hour."""
        name = f"trading-bot-{slot}"
        status, out = run(["docker", "container", "inspect", name])
        found: dict[str, Any] = {"present": status == 0}
        if status == 0:
            about = json.loads(out)[0]
            state = about["State"]
            found.update(
                status=state["Status"],
                exit_status=state["ExitCode"],
                oom_killed=bool(state.get("OOMKilled")),
                error=state.get("Error", ""),
                memory_mib=about["HostConfig"].get("Memory", 0) // 2**20,
            )
        now = int(time.time())
        filters = ["--filter", "event=oom", "--filter", f"container={name}", "--format", "{{.Time}}"]
        status, out = run(["docker", "events", "--since", str(now - 900), "--until", str(now), *filters])
        found["oom_events"] = len(out.split()) if status == 0 else 0
        return found

    def dependencies(self, directory: Path, settings: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
        """How Redis and NATS answer to the user and the password that the release has."""
        found: dict[str, Any] = {}
        ports = {"redis": 6379, "nats": 4222}
        for name, port in ports.items():
            section = settings.get(name, {})
            if not section.get("url"):
                continue
            file = section.get("password_file", "")
            password = self.text(directory / file).strip() if file else ""
            try:
                host, at = host_port(section["url"], port)
            except ValueError as error:
                found[name] = {"error": str(error), "refused": False, "milliseconds": None}
                continue
            if name == "redis":
                answer = redis_login(host, at, section.get("username", ""), password)
            else:
                answer = nats_login(section["url"], section.get("user", ""), password)
            expected = self.passwords.get(f"{name}_password", "")
            found[name] = {**answer, "password_as_inventory": password == expected if expected else None, "file": file}
        return found


def taken_logs(params: Mapping[str, Any], since: float) -> dict[str, str]:
    """The ends of the journals and log files."""
    units = [item["unit"] for item in params["services"]]
    if params["slots"]:
        units += [f"trading-bot@{slot}.service" for slot in params["slots"]["ports"]]
    logs = {}
    for name in units:
        status, out = run(["journalctl", "--unit", name, "--since", f"@{int(since)}", "--no-pager", "--output", "short-iso"], 10)
        if status == 0 and "-- No entries --" not in out:
            logs[name] = out[-params["log_bytes"] :]
    for path in map(Path, params["logs"]):
        if path.is_file():
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - params["log_bytes"]))
                logs[path.name] = file.read(params["log_bytes"]).decode(errors="replace")
    return logs


def probes(params: Mapping[str, Any], since: float) -> dict[str, Callable[[], Any]]:
    """What is measured, by name."""
    found: dict[str, Callable[[], Any]] = {
        "services": lambda: {
            item["name"]: {**unit(item["unit"]), "vital": bool(item.get("vital"))} for item in params["services"]
        },
        "disks": lambda: disks(params["paths"]),
        "memory": lambda: memory(since),
        "load": load,
        "clock": lambda: clock(params["time_servers"]),
        "reach": lambda: reach(params["reach"]),
        "listening": sockets,
        "firewall": firewall,
        "certificates": lambda: certificates(params["certificates"], params["haproxy_config"]),
        "system": lambda: {
            **os_release(Path("/etc/os-release").read_text()),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "versions": lambda: {
            name: (run(command)[1].strip().splitlines() or [""])[0]
            for name, command in _VERSIONS.items()
            if installed(command[0])
        },
    }
    if params["slots"]:
        found["slots"] = Slots(params["slots"], params["app_passwords"]).all
    if params["redis"]:
        redis, password = params["redis"], params["redis_password"]
        recent = max(since, time.time() - _RECENT)
        found["redis"] = lambda: redis_state(redis["address"], int(redis["port"]), redis["user"], password, recent)
    if params["nats_monitor"]:
        found["nats"] = lambda: nats_state(params["nats_monitor"])
    if params["prometheus"]:
        found["series"] = lambda: series(params["prometheus"], params["series"], since, time.time())
    return found


def probed(probe: Callable[[], Any]) -> Any:
    """What a probe measured, or why it could not."""
    try:
        return probe()
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def known_secrets(params: Mapping[str, Any]) -> list[str]:
    """What is known to be secret: what was given, and the secret files of the releases that the slots run."""
    found = [*params["secrets"], *params["app_passwords"].values(), params["redis_password"]]
    root = params["slots"].get("root")
    for path in sorted(Path(root).glob("slots/*/secrets/*")) if root else []:
        if path.suffix != ".json":
            found.append(Slots.text(path))
    return [secret for secret in found if secret]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "services": {"type": "list", "elements": "dict", "default": []},
            "slots": {"type": "dict", "default": {}},
            "app_passwords": {"type": "dict", "default": {}, "no_log": True},
            "redis": {"type": "dict", "default": {}},
            "redis_password": {"type": "str", "default": "", "no_log": True},
            "nats_monitor": {"type": "str", "default": ""},
            "reach": {"type": "list", "elements": "dict", "default": []},
            "paths": {"type": "list", "elements": "path", "default": ["/"]},
            "certificates": {"type": "list", "elements": "path", "default": []},
            "haproxy_config": {"type": "path", "default": "/etc/haproxy/haproxy.cfg"},
            "time_servers": {"type": "list", "elements": "str", "default": []},
            "prometheus": {"type": "str", "default": ""},
            "series": {"type": "list", "elements": "str", "default": []},
            "since": {"type": "int", "default": 3600},
            "logs": {"type": "list", "elements": "path", "default": []},
            "log_bytes": {"type": "int", "default": 400_000},
            "secrets": {"type": "list", "elements": "str", "default": [], "no_log": True},
        },
        supports_check_mode=True,
    )
    began = time.time()
    since = began - module.params["since"]
    asked = probes(module.params, since)
    with ThreadPoolExecutor(max_workers=len(asked)) as pool:
        found = dict(zip(asked, pool.map(probed, asked.values())))
    found["time"] = time.time()
    found["took"] = round(found["time"] - began, 2)
    secrets = known_secrets(module.params)
    logs = {name: redacted(text, secrets) for name, text in taken_logs(module.params, since).items()}
    module.exit_json(changed=False, facts=redacted_values(found, secrets), logs=logs)


if __name__ == "__main__":
    main()
