#!/usr/bin/python
"""Take servers of a slot into rotation, drain them, or take them out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.haproxy import HaproxyError, RuntimeSocket, Server, would_leave
from ansible.module_utils.map_files import read_text
from ansible.module_utils.traffic import RELEASE_MAP, TrafficError, parse_map

DOCUMENTATION = r"""
module: haproxy_server
short_description: Take servers of a backend into rotation, drain them, or take them out
description:
  - Sets the state of servers in the running HAProxy over its admin socket, and waits until the drained ones hold no session.
    What is on disk stays as it is; a reload brings back what the configuration says.
  - It refuses to leave fewer than I(min_healthy) servers that serve in the backend of the stable slot.
author: Trading Bot Ops (@trading-bot-ops)
options:
  backend:
    description: The backend.
    type: str
    required: true
  servers:
    description: The servers of that backend.
    type: list
    elements: str
    required: true
  state:
    description: C(ready) takes requests; C(drain) finishes what it has; C(maint) is out, and its health is not checked.
    type: str
    choices: [ready, drain, maint]
    required: true
  wait_drained:
    description: With C(drain) and C(maint), wait until the servers hold no session and no queued request.
    type: bool
    default: true
  timeout:
    description: Seconds to wait for that.
    type: float
    default: 30
  min_healthy:
    description: How many servers must go on serving in the stable slot's backend.
    type: int
    default: 1
  backend_prefix:
    description: What the name of a slot's backend starts with.
    type: str
    default: slot_
  stable:
    description: The stable slot; what C(release.map) in I(maps_dir) says if omitted.
    type: str
    choices: [blue, green]
  maps_dir:
    description: Where C(release.map) is.
    type: path
    default: /etc/haproxy/maps
  socket:
    description: HAProxy's admin socket.
    type: path
    default: /run/haproxy/admin.sock
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: Let the host finish what it has
  haproxy_server:
    backend: slot_blue
    servers: [app3]
    state: drain
    min_healthy: 2
"""

RETURN = r"""
before: {description: The backend's servers before, type: dict, returned: always}
after: {description: The backend's servers afterwards, type: dict, returned: always}
waited: {description: Seconds waited for the servers to be drained, type: float, returned: always}
"""

_POLL = 0.1


def _of_backend(runtime: RuntimeSocket, backend: str) -> dict[str, Server]:
    found = {server.name: server for server in runtime.servers() if server.backend == backend}
    if not found:
        raise HaproxyError(f"HAProxy has no backend {backend}, or it has no servers")
    return found


def _stable_backend(params: dict[str, Any]) -> str:
    stable = params["stable"] or parse_map(read_text(Path(params["maps_dir"]) / RELEASE_MAP)).get("stable")
    if not stable:
        raise TrafficError(f"{Path(params['maps_dir']) / RELEASE_MAP} does not say which slot is stable")
    return f"{params['backend_prefix']}{stable}"


def _wait_drained(runtime: RuntimeSocket, backend: str, names: Sequence[str], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        servers = _of_backend(runtime, backend)
        held = {name: servers[name] for name in names if servers[name].sessions or servers[name].queue}
        if not held:
            return
        if time.monotonic() >= deadline:
            each = ", ".join(f"{name} holds {s.sessions} sessions and {s.queue} queued requests" for name, s in held.items())
            raise HaproxyError(f"{backend} is not drained after {timeout:g} s: {each}")
        time.sleep(_POLL)


def _run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    runtime = RuntimeSocket(params["socket"])
    backend, names, state = params["backend"], params["servers"], params["state"]
    before = _of_backend(runtime, backend)
    unknown = [name for name in names if name not in before]
    if unknown:
        raise HaproxyError(f"{backend} has no server {', '.join(unknown)}; it has {', '.join(before)}")
    change = [name for name in names if before[name].admin != state]
    if state != "ready" and change and backend == _stable_backend(params):
        left = would_leave(list(before.values()), names)
        if len(left) < params["min_healthy"]:
            raise HaproxyError(
                f"{state} of {', '.join(names)} would leave {len(left)} of {len(before)} servers serving in {backend}"
                f" ({', '.join(left) or 'none'}), and {params['min_healthy']} must go on serving"
            )
    waited = 0.0
    after = before
    if not check_mode:
        for name in change:
            runtime.do(f"set server {backend}/{name} state {state}")
        if state != "ready" and params["wait_drained"]:
            started = time.monotonic()
            _wait_drained(runtime, backend, names, params["timeout"])
            waited = round(time.monotonic() - started, 2)
        after = _of_backend(runtime, backend)
        wrong = [name for name in names if after[name].admin != state]
        if wrong:
            raise HaproxyError(f"{', '.join(wrong)} in {backend} did not become {state}")
    told = {name: state if name in change else server.admin for name, server in before.items()}
    return {
        "changed": bool(change),
        "before": {name: server.as_dict() for name, server in before.items()},
        "after": {name: server.as_dict() for name, server in after.items()},
        "waited": waited,
        "diff": {
            "before_header": backend,
            "after_header": backend,
            "before": "".join(f"{name} {server.admin}\n" for name, server in before.items()),
            "after": "".join(f"{name} {admin}\n" for name, admin in told.items()),
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "backend": {"type": "str", "required": True},
            "servers": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["ready", "drain", "maint"], "required": True},
            "wait_drained": {"type": "bool", "default": True},
            "timeout": {"type": "float", "default": 30},
            "min_healthy": {"type": "int", "default": 1},
            "backend_prefix": {"type": "str", "default": "slot_"},
            "stable": {"type": "str", "choices": ["blue", "green"]},
            "maps_dir": {"type": "path", "default": "/etc/haproxy/maps"},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
        },
        supports_check_mode=True,
    )
    try:
        result = _run(module.params, module.check_mode)
    except (HaproxyError, TrafficError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
