#!/usr/bin/python
"""Set and read which slot a load balancer sends which accounts to."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ansible.module_utils.balancer import FILES, LoadBalancer, as_dict, make, plan, read, wait_up
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.haproxy import HaproxyError, RuntimeSocket, by_slot
from ansible.module_utils.lease import refuses_strangers
from ansible.module_utils.state_files import StateFiles, current_time
from ansible.module_utils.traffic import TrafficError, traffic_of_maps, with_value

DOCUMENTATION = r"""
module: release_traffic
short_description: Set and read which slot a load balancer sends which accounts to
description:
  - The map files on disk are the truth. Each single change is written to its file (beside it, synced, renamed), set in the
    running HAProxy over its admin socket and read back before the next one is made.
  - The order of the changes is such that after each of them every account is on its old or its new slot. A change
    that has no such order is refused and nothing is done; a change to I(cut=0) alone is always possible.
  - No slot gets more accounts than it has before I(min_up) of its servers are up for this HAProxy.
  - Workers that finish their connections after a reload are told too, over the master's socket.
  - Refused while somebody else's rollout holds this load balancer.
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
  master_socket:
    description: The socket of HAProxy's master, by which workers that finish after a reload are reached; empty, they are not.
    type: str
    default: /run/haproxy-master.sock
  state_dir:
    description: Where the release agent keeps who holds this load balancer.
    type: path
    default: /var/lib/trading-bot-release
  token:
    description: The number that says that it is the holder who asks; without one, a load balancer that is held is left alone.
    type: int
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


def _hold(module: AnsibleModule) -> contextlib.AbstractContextManager[Any]:
    """Alone with what the agent of this load balancer changes too, where there is one."""
    files = StateFiles(Path(module.params["state_dir"]))
    if module.check_mode or not files.directory.is_dir():
        return contextlib.nullcontext()
    return files.exclusively()


def _refuse_strangers(module: AnsibleModule) -> None:
    files = StateFiles(Path(module.params["state_dir"]))
    reason = refuses_strangers(files.lock(), current_time(), module.params["token"])
    if reason:
        raise TrafficError(f"{reason}; nothing was changed")


def _present(module: AnsibleModule, balancer: LoadBalancer) -> dict[str, Any]:
    wanted = {name: module.params[name] for name in ("stable", "canary", "salt", "cut")}
    with _hold(module):
        _refuse_strangers(module)
        change = plan(balancer, wanted, module.params["allow_stopped"])
        differs: list[dict[str, Any]] = []
        if module.check_mode:
            differs = read(balancer)[2]
        else:
            wait_up(change, module.params["min_up"], module.params["up_timeout"])
            differs = make(change)
            if not change.on_disk:
                raise TrafficError("; ".join(change.warnings))
    for warning in change.warnings:
        module.warn(warning)
    after_texts = dict(change.texts)
    for step in change.disk_steps:
        after_texts[step.map] = with_value(after_texts[step.map], step.key, step.value)
    running = change.running_before
    if running is not None and not module.check_mode:
        running = balancer.running()
    return {
        "changed": change.changes,
        "before": as_dict(change.before),
        "after": as_dict(change.target),
        "traffic": as_dict(change.before if module.check_mode else change.target),
        "running": as_dict(traffic_of_maps(running, defaults=True)) if running is not None else None,
        "running_differs": differs,
        "steps": [vars(step) for step in (change.running_steps if running is not None else change.disk_steps)],
        "haproxy": "stopped" if running is None else "running",
        "diff": [
            {
                "before_header": str(balancer.maps_dir / name),
                "after_header": str(balancer.maps_dir / name),
                "before": change.texts[name],
                "after": after_texts[name],
            }
            for name in FILES
            if change.texts[name] != after_texts[name]
        ]
        + [
            {
                "before_header": f"running {balancer.maps_dir / step.map}",
                "after_header": f"running {balancer.maps_dir / step.map}",
                "before": "",
                "after": f"{step.key} {step.value}\n",
            }
            for step in change.running_steps
            if step not in change.disk_steps
        ],
    }


def _read(balancer: LoadBalancer) -> dict[str, Any]:
    traffic, running, differs = read(balancer)
    return {
        "changed": False,
        "before": as_dict(traffic),
        "after": as_dict(traffic),
        "traffic": as_dict(traffic),
        "running": as_dict(running),
        "running_differs": differs,
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
            "master_socket": {"type": "str", "default": "/run/haproxy-master.sock"},
            "state_dir": {"type": "path", "default": "/var/lib/trading-bot-release"},
            "token": {"type": "int", "no_log": False},
            "allow_stopped": {"type": "bool", "default": False},
            "backend_prefix": {"type": "str", "default": "slot_"},
            "timeout": {"type": "float", "default": 2.0},
        },
        supports_check_mode=True,
    )
    runtime = RuntimeSocket(module.params["socket"], module.params["timeout"])
    master, prefix = module.params["master_socket"], module.params["backend_prefix"]
    balancer = LoadBalancer(Path(module.params["maps_dir"]), runtime, master, prefix)
    try:
        result = _present(module, balancer) if module.params["state"] == "present" else _read(balancer)
        stopped = result["haproxy"] == "stopped"
        result["servers"] = {} if stopped else by_slot(runtime.servers(), prefix)
    except (TrafficError, HaproxyError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
