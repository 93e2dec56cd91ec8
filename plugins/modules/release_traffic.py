#!/usr/bin/python
"""Set and read which slot a load balancer sends which accounts to."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.haproxy import HaproxyError, HaproxyStopped, RuntimeSocket, by_slot
from ansible.module_utils.map_files import read_text, replace_text
from ansible.module_utils.traffic import (
    CUT_MAP,
    RELEASE_MAP,
    Step,
    Traffic,
    TrafficError,
    differences,
    gaining,
    parse_map,
    plan_steps,
    traffic_of_maps,
    wanted,
    with_value,
)

DOCUMENTATION = r"""
module: release_traffic
short_description: Set and read which slot a load balancer sends which accounts to
description:
  - The map files on disk are the truth. Each single change is written to its file (beside it, synced, renamed), set in the
    running HAProxy over its admin socket and read back before the next one is made.
  - The order of the changes is such that after each of them every account is on its old or its new slot. A change
    that has no such order is refused and nothing is done; a change to I(cut=0) alone is always possible.
  - No slot gets more accounts than it has before I(min_up) of its servers are up for this HAProxy.
author: Trading Bot Ops (@trading-bot-ops)
options:
  state:
    description: C(present) makes files and running maps say what is asked; C(read) only tells.
    type: str
    choices: [present, read]
    default: present
  stable:
    description: The slot that serves everybody who is not on the canary. Stays as it is if omitted.
    type: str
    choices: [blue, green]
  canary:
    description: The slot that serves the canary's share. Stays as it is if omitted, the other slot on first contact.
    type: str
    choices: [blue, green]
  salt:
    description: What is hashed with the account, the canary's release id. Stays as it is if omitted.
    type: str
  cut:
    description: The canary's share in basis points of accounts. Stays as it is if omitted.
    type: int
  min_up:
    description: How many servers must be up in a slot before it gets accounts; 0 does not look.
    type: int
    default: 1
  up_timeout:
    description: Seconds to wait for them.
    type: float
    default: 10
  maps_dir:
    description: Where C(release.map) and C(cut.map) are. The running maps are known under these paths.
    type: path
    default: /etc/haproxy/maps
  socket:
    description: HAProxy's admin socket.
    type: path
    default: /run/haproxy/admin.sock
  allow_stopped:
    description: Where HAProxy does not run, write the files alone instead of failing.
    type: bool
    default: false
  backend_prefix:
    description: What the name of a slot's backend starts with.
    type: str
    default: slot_
  timeout:
    description: Seconds that one answer of the socket may take.
    type: float
    default: 2.0
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: Move five percent of the accounts to the canary
  release_traffic:
    canary: green
    salt: 1.4.0-3f2a9c01de
    cut: 500

- name: Read what this load balancer does
  release_traffic:
    state: read
  register: __traffic
"""

RETURN = r"""
traffic: {description: "What the files say afterwards: stable, canary, salt, cut. Null if nothing", type: dict, returned: always}
before: {description: What the files said before, type: dict, returned: always}
after: {description: What they say afterwards; what they would say in check mode, type: dict, returned: always}
running: {description: What the running HAProxy does afterwards, type: dict, returned: always}
running_differs: {description: "Keys whose running value is not on disk: map, key, disk, running", type: list, returned: always}
haproxy: {description: running or stopped, type: str, returned: always}
steps: {description: "The single changes of the running maps in their order: map, key, value", type: list, returned: always}
servers: {description: "By slot and server: address, status, admin, up, sessions, queue, check", type: dict, returned: always}
"""

# HAProxy reads the keys of one request one after the other. A request that is just at it when a key changes sees that
# change or not, and both are safe; the pause keeps a second change from falling into the same request.
_PAUSE_BETWEEN_STEPS = 0.01

_POLL = 0.1
_FILES = (RELEASE_MAP, CUT_MAP)


class LoadBalancer:
    """The maps of this load balancer: the files, and the running HAProxy if there is one."""

    def __init__(self, maps_dir: Path, runtime: RuntimeSocket) -> None:
        self.maps_dir = maps_dir
        self.runtime = runtime

    def texts(self) -> dict[str, str]:
        """The files' texts, empty for a missing file."""
        return {name: read_text(self.maps_dir / name) for name in _FILES}

    def running(self) -> Optional[dict[str, dict[str, str]]]:
        """The running maps, None where HAProxy does not run."""
        try:
            return {name: self.runtime.read_map(str(self.maps_dir / name)) for name in _FILES}
        except HaproxyStopped:
            return None

    def write(self, step: Step) -> None:
        """Bring the step to its file, if it does not say so already."""
        path = self.maps_dir / step.map
        text = read_text(path)
        if parse_map(text).get(step.key) != step.value:
            replace_text(path, with_value(text, step.key, step.value))

    def set_running(self, step: Step) -> None:
        """Bring the step to the running map and read it back."""
        path = str(self.maps_dir / step.map)
        self.runtime.set_map(path, step.key, step.value)
        found = self.runtime.read_map(path).get(step.key)
        if found != step.value:
            raise HaproxyError(f"the running map {path} says {step.key} {found} after it was set to {step.value}")


def _parsed(texts: dict[str, str]) -> dict[str, dict[str, str]]:
    parsed = {}
    for name, text in texts.items():
        try:
            parsed[name] = parse_map(text)
        except TrafficError as error:
            raise TrafficError(f"{name}: {error}") from error
    return parsed


def _as_dict(traffic: Optional[Traffic]) -> Optional[dict[str, Any]]:
    return traffic.as_dict() if traffic else None


def _complete(target: Traffic, maps: dict[str, dict[str, str]]) -> list[Step]:
    """The steps that write out what the maps leave to HAProxy's defaults; none of them moves an account."""
    return [
        Step(missing["map"], missing["key"], missing["disk"])
        for missing in differences(_maps_of(target), maps)
        if missing["running"] is None
    ]


def _maps_of(traffic: Traffic) -> dict[str, dict[str, str]]:
    return {
        RELEASE_MAP: {"stable": traffic.stable, "canary": traffic.canary, "salt": traffic.salt},
        CUT_MAP: {"canary": str(traffic.cut)},
    }


def _steps(maps: dict[str, dict[str, str]], target: Traffic) -> list[Step]:
    """What leads from these maps to the target: the safe order, then the keys that were only defaults until now."""
    start = traffic_of_maps(maps, defaults=True)
    assert start is not None
    steps = list(plan_steps(start, target))
    set_by_steps = {(step.map, step.key) for step in steps}
    return steps + [step for step in _complete(target, maps) if (step.map, step.key) not in set_by_steps]


def _wait_up(params: dict[str, Any], runtime: RuntimeSocket, maps: dict[str, dict[str, str]], target: Traffic) -> None:
    """Until every slot that is to get more accounts has enough servers that are up."""
    now = traffic_of_maps(maps, defaults=True)
    assert now is not None
    slots = gaining(now, target)
    deadline = time.monotonic() + params["up_timeout"]
    while slots and params["min_up"]:
        servers = runtime.servers()
        up = {slot: [s for s in servers if s.backend == f"{params['backend_prefix']}{slot}" and s.serves] for slot in slots}
        if all(len(found) >= params["min_up"] for found in up.values()):
            return
        if time.monotonic() >= deadline:
            each = ", ".join(
                f"{slot} has {len(found)} ({', '.join(s.name for s in found) or 'none'})" for slot, found in up.items()
            )
            raise HaproxyError(
                f"HAProxy does not find enough servers up after {params['up_timeout']:g} s to send accounts there:"
                f" {each}, {params['min_up']} must be up; nothing was changed"
            )
        time.sleep(_POLL)


def _present(module: AnsibleModule, balancer: LoadBalancer) -> dict[str, Any]:
    texts = balancer.texts()
    disk = _parsed(texts)
    before = traffic_of_maps(disk, defaults=bool(any(disk.values())))
    target = wanted(before, {name: module.params[name] for name in ("stable", "canary", "salt", "cut")})
    running = balancer.running()
    if running is None and not module.params["allow_stopped"]:
        raise HaproxyStopped(
            f"no HAProxy answers on {balancer.runtime.path}; start it, or allow_stopped to write the files alone"
        )
    disk_steps = _steps(disk, target)
    running_steps = _steps(running, target) if running is not None else []
    if not module.check_mode:
        if running is not None:
            _wait_up(module.params, balancer.runtime, running, target)
        if disk_steps == running_steps:
            for at, step in enumerate(disk_steps):
                if at:
                    time.sleep(_PAUSE_BETWEEN_STEPS)
                balancer.write(step)
                balancer.set_running(step)
        else:
            for step in disk_steps:
                balancer.write(step)
            for at, step in enumerate(running_steps):
                if at:
                    time.sleep(_PAUSE_BETWEEN_STEPS)
                balancer.set_running(step)
        disk, running = _parsed(balancer.texts()), balancer.running()
        left = differences(_maps_of(target), disk)
        if left:
            raise TrafficError(f"the files in {balancer.maps_dir} do not say what was written: {left}")
    differs = differences(disk, running) if running is not None else []
    if differs and not module.check_mode:
        raise HaproxyError(f"the running maps differ from the files after they were set: {differs}")
    after_texts = dict(texts)
    for step in disk_steps:
        after_texts[step.map] = with_value(after_texts[step.map], step.key, step.value)
    return {
        "changed": bool(disk_steps or running_steps),
        "before": _as_dict(before),
        "after": _as_dict(target),
        "traffic": _as_dict(before if module.check_mode else target),
        "running": _as_dict(traffic_of_maps(running, defaults=True)) if running is not None else None,
        "running_differs": differs,
        "steps": [vars(step) for step in (running_steps if running is not None else disk_steps)],
        "haproxy": "stopped" if running is None else "running",
        "diff": [
            {
                "before_header": str(balancer.maps_dir / name),
                "after_header": str(balancer.maps_dir / name),
                "before": texts[name],
                "after": after_texts[name],
            }
            for name in _FILES
            if texts[name] != after_texts[name]
        ]
        + [
            {
                "before_header": f"running {balancer.maps_dir / step.map}",
                "after_header": f"running {balancer.maps_dir / step.map}",
                "before": "",
                "after": f"{step.key} {step.value}\n",
            }
            for step in running_steps
            if step not in disk_steps
        ],
    }


def _read(balancer: LoadBalancer) -> dict[str, Any]:
    disk = _parsed(balancer.texts())
    traffic = traffic_of_maps(disk, defaults=any(disk.values()))
    running = balancer.running()
    return {
        "changed": False,
        "before": _as_dict(traffic),
        "after": _as_dict(traffic),
        "traffic": _as_dict(traffic),
        "running": _as_dict(traffic_of_maps(running, defaults=True)) if running is not None else None,
        "running_differs": differences(disk, running) if running is not None else [],
        "steps": [],
        "haproxy": "stopped" if running is None else "running",
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "read"], "default": "present"},
            "stable": {"type": "str", "choices": ["blue", "green"]},
            "canary": {"type": "str", "choices": ["blue", "green"]},
            "salt": {"type": "str"},
            "cut": {"type": "int"},
            "min_up": {"type": "int", "default": 1},
            "up_timeout": {"type": "float", "default": 10},
            "maps_dir": {"type": "path", "default": "/etc/haproxy/maps"},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
            "allow_stopped": {"type": "bool", "default": False},
            "backend_prefix": {"type": "str", "default": "slot_"},
            "timeout": {"type": "float", "default": 2.0},
        },
        supports_check_mode=True,
    )
    runtime = RuntimeSocket(module.params["socket"], module.params["timeout"])
    balancer = LoadBalancer(Path(module.params["maps_dir"]), runtime)
    try:
        result = _present(module, balancer) if module.params["state"] == "present" else _read(balancer)
        stopped = result["haproxy"] == "stopped"
        result["servers"] = {} if stopped else by_slot(runtime.servers(), module.params["backend_prefix"])
    except (TrafficError, HaproxyError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
