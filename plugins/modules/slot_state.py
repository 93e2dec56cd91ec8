#!/usr/bin/python
"""Tell what runs in the slots of an app host, and wait for it to be ready."""

from __future__ import annotations

import hashlib
import http.client
import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slots import UNIT_PROPERTIES, in_vain, masked, parse_containers, parse_unit, readiness, restarts

DOCUMENTATION = r"""
module: slot_state
short_description: Tell what runs in the slots of an app host, and wait for it to be ready
description:
  - Reads the links and releases on disk, the slots' units, the image or wheel that really runs, and the live answers of
    C(/health/ready) and C(/api/status). It changes nothing, and what is absent is told, never an error.
author: Trading Bot Ops (@trading-bot-ops)
options:
  root:
    description: Where releases and slots are.
    type: path
    default: /opt/trading-bot
  runtime:
    description: How a slot runs.
    type: str
    choices: [docker, systemd]
    default: docker
  private_address:
    description: The address that the slots listen on.
    type: str
    required: true
  ports:
    description: The port of each slot.
    type: dict
    default: {blue: 18080, green: 18081}
  slots:
    description: The slots to look at, and to wait for.
    type: list
    elements: str
    choices: [blue, green]
    default: [blue, green]
  token:
    description: A token with the role C(observe) for C(/api/status).
    type: str
  unit:
    description: The name of a slot's unit.
    type: str
    default: trading-bot@{slot}.service
  container:
    description: The name of a slot's container.
    type: str
    default: trading-bot-{slot}
  log:
    description: The file that a slot's standard output goes to with the runtime C(systemd).
    type: str
    default: /var/log/trading-bot/trading-bot-{slot}.log
  config:
    description: The configuration's name in a release's directory.
    type: str
    default: config.yaml
  venv:
    description: The virtual environment's name in a release's directory, for the runtime C(systemd).
    type: str
    default: venv
  wait:
    description: C(ready) waits until every slot in I(slots) is ready, and fails if one does not become so.
    type: str
    choices: [none, ready]
    default: none
  timeout:
    description: Seconds to wait. A crash loop, a failed unit or a refused configuration ends the wait at once.
    type: float
    default: 60
  http_timeout:
    description: Seconds that one answer may take.
    type: float
    default: 1.0
attributes:
  check_mode:
    support: full
    details: It does not wait in check mode, as what it would wait for was not started.
"""

EXAMPLES = r"""
- name: Wait until the new release is ready in green
  slot_state:
    private_address: "{{ private_address }}"
    token: "{{ vault_api_release_token }}"
    slots: [green]
    wait: ready
    timeout: 90
  register: __slot
"""

RETURN = r"""
slots:
  description: >-
    By slot: slot, release_id, version, release (its release.json), config_sha256 (of the file), image (the digest of what
    really runs), unit, container, running, live, ready, ready_reason, status (what /api/status says), reasons (what is
    absent or failed). What is absent is null.
  type: dict
  returned: always
previous: {description: The release that was stable before. Null if there is none, type: str, returned: always}
releases: {description: The release.json of every release on disk, type: list, returned: always}
waited: {description: Seconds waited, type: float, returned: always}
"""

_COMMAND_TIMEOUT = 5
_POLL = 0.25
_LOG_LINES = "20"
_BODY_LIMIT = 1 << 20


def run(command: list[str]) -> tuple[Optional[int], str, str]:
    """Exit status (None if it could not be run or took too long), standard output, standard error."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=_COMMAND_TIMEOUT, check=False)
    except FileNotFoundError:
        return None, "", f"{command[0]} is not installed"
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, "", str(error)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def sha256_of(path: Path) -> str:
    """The file's digest in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def installed_wheel(venv: Path, release: Path) -> Optional[str]:
    """The digest of the wheel that the virtual environment was installed from, as pip recorded it.

    Where pip did not record one, the digest of the release's own wheel file.
    """
    for record in sorted(venv.glob("lib/python*/site-packages/trading_bot-*.dist-info/direct_url.json")):
        archive = json.loads(record.read_text(encoding="utf-8")).get("archive_info", {})
        digest = archive.get("hashes", {}).get("sha256") or str(archive.get("hash", "")).partition("sha256=")[2]
        if digest:
            return f"sha256:{digest}"
    for pattern in ("trading_bot-*.whl", "wheels/trading_bot-*.whl"):
        for wheel in sorted(release.glob(pattern)):
            return f"sha256:{sha256_of(wheel)}"
    return None


class Host:
    """An app host, and how to ask it."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.root = Path(params["root"])

    # on disk

    def release_json(self, directory: Path) -> Optional[dict[str, Any]]:
        """The release.json in a release's directory; raises OSError or ValueError where it cannot be read."""
        found = json.loads((directory / "release.json").read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"{directory / 'release.json'} is no JSON object")
        return found

    def releases(self) -> list[dict[str, Any]]:
        """Every release on disk that can be read."""
        found = []
        for directory in sorted(self.root.glob("releases/*")):
            try:
                found.append(self.release_json(directory))
            except (OSError, ValueError):
                continue
        return [release for release in found if release]

    def previous(self) -> Optional[str]:
        """The release that the link `previous` names."""
        link = self.root / "previous"
        return link.resolve().name if link.is_symlink() else None

    def on_disk(self, slot: str, state: dict[str, Any]) -> None:
        """Fill in what the slot's link leads to."""
        link = self.root / "slots" / slot
        if not link.is_symlink():
            state["reasons"].append(f"{link} is absent")
            return
        directory = link.resolve()
        state["release_id"] = directory.name
        try:
            state["release"] = self.release_json(directory)
            state["version"] = state["release"].get("version")
            if state["release"].get("id") != directory.name:
                state["reasons"].append(
                    f"{link} leads to {directory.name}, but its release.json says {state['release'].get('id')}"
                )
        except (OSError, ValueError) as error:
            state["reasons"].append(f"release.json: {error}")
        try:
            state["config_sha256"] = sha256_of(directory / self.params["config"])
        except OSError as error:
            state["reasons"].append(f"config: {error}")

    # what runs

    def units(self, states: dict[str, dict[str, Any]]) -> None:
        """Fill in each slot's unit."""
        for slot, state in states.items():
            name = self.params["unit"].format(slot=slot)
            status, out, err = run(["systemctl", "show", name, f"--property={','.join(UNIT_PROPERTIES)}"])
            if status == 0:
                state["unit"] = parse_unit(out)
            else:
                state["reasons"].append(f"unit {name}: {err.strip() or f'systemctl ended with {status}'}")

    def containers(self, states: dict[str, dict[str, Any]]) -> None:
        """Fill in each slot's container, and the image that it really runs."""
        names = {slot: self.params["container"].format(slot=slot) for slot in states}
        status, out, err = run(["docker", "container", "inspect", *names.values()])
        found = parse_containers(out) if out.strip() else {}
        for slot, name in names.items():
            container = found.get(name)
            if container:
                states[slot].update(container=container, image=container["image"], running=container["running"])
            else:
                absent = status is None or "no such container" not in err.lower()
                states[slot]["reasons"].append(f"container {name}: {err.strip() if absent else 'absent'}")

    def processes(self, states: dict[str, dict[str, Any]]) -> None:
        """Fill in whether each slot's unit runs, and the wheel that it was installed from."""
        for slot, state in states.items():
            state["running"] = (state["unit"] or {}).get("active") in ("active", "reloading", "deactivating")
            if state["release_id"] is None:
                continue
            directory = (self.root / "slots" / slot).resolve()
            try:
                state["image"] = installed_wheel(directory / self.params["venv"], directory)
            except (OSError, ValueError) as error:
                state["reasons"].append(f"wheel: {error}")
            if state["image"] is None:
                state["reasons"].append(f"no wheel is installed in {directory}")

    # what answers

    def get(self, port: int, path: str, token: Optional[str]) -> tuple[int, bytes]:
        """Status and body of an answer; raises OSError or HTTPException."""
        connection = http.client.HTTPConnection(self.params["private_address"], port, timeout=self.params["http_timeout"])
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
            answer = connection.getresponse()
            return answer.status, answer.read(_BODY_LIMIT)
        finally:
            connection.close()

    def ask_ready(self, port: int, answers: dict[str, Any]) -> None:
        """Ask for readiness."""
        try:
            status, body = self.get(port, "/health/ready", None)
        except (OSError, http.client.HTTPException) as error:
            answers["ready_reason"] = f"no answer on port {port}: {error}"
        else:
            answers["live"] = True
            answers["ready"], answers["ready_reason"] = readiness(status, body)

    def ask_status(self, port: int, answers: dict[str, Any]) -> None:
        """Ask the instance who it is."""
        try:
            status, body = self.get(port, "/api/status", self.params["token"])
            told = json.loads(body) if status == 200 else None
            if not isinstance(told, dict):
                raise ValueError(f"answered {status}")
        except (OSError, ValueError, http.client.HTTPException) as error:
            answers["status_reason"] = f"/api/status: {error}"
        else:
            answers["status"] = told

    def answers(self, states: dict[str, dict[str, Any]]) -> None:
        """Fill in what each slot answers; all of them are asked at once, and none is waited for longer than the timeout."""
        deadline = time.monotonic() + self.params["http_timeout"]
        threads = []
        told: dict[str, dict[str, Any]] = {}
        for slot in states:
            port = int(self.params["ports"][slot])
            told[slot] = {"ready_reason": f"no answer on port {port} in time"}
            questions: list[Callable[[int, dict[str, Any]], None]] = [self.ask_ready, self.ask_status]
            threads += [threading.Thread(target=ask, args=(port, told[slot]), daemon=True) for ask in questions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        for slot, state in states.items():
            answer = dict(told[slot])
            reason = answer.pop("status_reason", None)
            state.update(answer)
            state["reasons"] += [reason] if reason else []

    # all of it

    def states(self) -> dict[str, dict[str, Any]]:
        """Every slot's state."""
        states: dict[str, dict[str, Any]] = {}
        for slot in self.params["slots"]:
            states[slot] = {
                "slot": slot,
                "release_id": None,
                "version": None,
                "release": None,
                "config_sha256": None,
                "image": None,
                "unit": None,
                "container": None,
                "running": False,
                "live": False,
                "ready": False,
                "ready_reason": "",
                "status": None,
                "reasons": [],
            }
            self.on_disk(slot, states[slot])
        self.units(states)
        if self.params["runtime"] == "docker":
            self.containers(states)
        else:
            self.processes(states)
        self.answers(states)
        return states

    def last_lines(self, slot: str) -> str:
        """The last lines of the slot's log, secrets masked."""
        unit = self.params["unit"].format(slot=slot)
        printed = []
        if self.params["runtime"] == "docker":
            printed.append(["docker", "logs", "--tail", _LOG_LINES, self.params["container"].format(slot=slot)])
        else:
            printed.append(["tail", "--lines", _LOG_LINES, self.params["log"].format(slot=slot)])
        printed.append(["journalctl", "--unit", unit, "--lines", _LOG_LINES, "--no-pager", "--output", "cat"])
        for command in printed:
            status, out, err = run(command)
            if status == 0 and (out + err).strip():
                return masked((out + err).strip())
        return "none"


def wait_ready(host: Host, timeout: float) -> tuple[dict[str, dict[str, Any]], Optional[str]]:
    """The slots' states when all are ready, or when waiting is in vain or over, with the sentence that says so."""
    deadline = time.monotonic() + timeout
    states = host.states()
    at_start = {slot: restarts(state) for slot, state in states.items()}
    while True:
        waiting = [slot for slot, state in states.items() if not state["ready"]]
        if not waiting:
            return states, None
        for slot in waiting:
            why = in_vain(states[slot], at_start[slot])
            if why is None and time.monotonic() >= deadline:
                why = f"it was not after {timeout:g} s"
            if why is not None:
                seen = restarts(states[slot]) - at_start[slot]
                return states, (
                    f"{slot} does not become ready: {why}. Last readiness: {states[slot]['ready_reason']}."
                    f" Restarts: {restarts(states[slot])}, {seen} of them while waiting. Last log lines:\n{host.last_lines(slot)}"
                )
        time.sleep(min(_POLL, max(deadline - time.monotonic(), 0)))
        states = host.states()


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/opt/trading-bot"},
            "runtime": {"type": "str", "choices": ["docker", "systemd"], "default": "docker"},
            "private_address": {"type": "str", "required": True},
            "ports": {"type": "dict", "default": {"blue": 18080, "green": 18081}},
            "slots": {"type": "list", "elements": "str", "choices": ["blue", "green"], "default": ["blue", "green"]},
            "token": {"type": "str", "no_log": True},
            "unit": {"type": "str", "default": "trading-bot@{slot}.service"},
            "container": {"type": "str", "default": "trading-bot-{slot}"},
            "log": {"type": "str", "default": "/var/log/trading-bot/trading-bot-{slot}.log"},
            "config": {"type": "str", "default": "config.yaml"},
            "venv": {"type": "str", "default": "venv"},
            "wait": {"type": "str", "choices": ["none", "ready"], "default": "none"},
            "timeout": {"type": "float", "default": 60},
            "http_timeout": {"type": "float", "default": 1.0},
        },
        supports_check_mode=True,
    )
    host = Host(module.params)
    absent = [slot for slot in module.params["slots"] if slot not in module.params["ports"]]
    if absent:
        module.fail_json(msg=f"ports has no port for {', '.join(absent)}")
    started = time.monotonic()
    failure = None
    if module.params["wait"] == "ready" and not module.check_mode:
        states, failure = wait_ready(host, module.params["timeout"])
    else:
        states = host.states()
    result = {
        "changed": False,
        "slots": states,
        "previous": host.previous(),
        "releases": host.releases(),
        "waited": round(time.monotonic() - started, 2),
    }
    if failure:
        module.fail_json(msg=failure, **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
