#!/usr/bin/python
"""Read the app's fleet-wide switches at the instances of a host, and change one."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.instances import parse_metrics
from ansible.module_utils.switching import missing

DOCUMENTATION = r"""
module: switches
short_description: Read the app's fleet-wide switches at the instances of a host, and change one
description:
  - Asks the slots of an app host on its own address, without a load balancer. One that does not answer is told, never an error.
  - With I(path) it tells one of them to change a switch, which all instances of the fleet then follow.
  - With I(wanted) it looks until every instance here that answers has it so, or I(follow) seconds are over.
author: Trading Bot Ops (@trading-bot-ops)
options:
  address:
    description: The address that the slots listen on.
    type: str
    required: true
  ports:
    description: The port of each slot.
    type: dict
    required: true
  token:
    description: A token with the roles C(observe) and C(operate).
    type: str
    required: true
  http_timeout:
    description: Seconds that one answer may take.
    type: float
    default: 2.0
  slot:
    description: The slot that is told.
    type: str
  path:
    description: The call that changes a switch.
    type: str
  body:
    description: What it is told.
    type: dict
    default: {}
  wanted:
    description: What every instance is to have.
    type: dict
  follow:
    description: Seconds in which instances have to follow a change.
    type: float
    default: 5.0
attributes:
  check_mode:
    support: full
    details: In check mode nobody is told, and nothing waited for.
"""

EXAMPLES = r"""
- name: Halt
  switches:
    address: "{{ private_address }}"
    ports: {blue: 18080, green: 18081}
    token: "{{ vault_api_operator_token }}"
    slot: blue
    path: /api/trading/halt
"""

RETURN = r"""
instances:
  description: >-
    By slot: answers, ledger (whether it reaches Redis), halted, degraded, maintenance, features, hotfixes, draining, release_id;
    or code and error.
  type: dict
  returned: without I(path)
answer: {description: What the instance that was told says, type: dict, returned: with I(path)}
waited: {description: Seconds until every instance followed, type: float, returned: with I(wanted)}
"""

_BODY_LIMIT = 4_000_000
_POLL = 0.1


class Slots:
    """The instances of this host, and how to ask them."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params

    def call(self, slot: str, method: str, path: str, body: Optional[dict[str, Any]] = None) -> tuple[int, bytes]:
        """Status and body of an answer; raises OSError or HTTPException."""
        port = int(self.params["ports"][slot])
        connection = http.client.HTTPConnection(self.params["address"], port, timeout=self.params["http_timeout"])
        try:
            headers = {"Authorization": f"Bearer {self.params['token']}"}
            connection.request(method, path, body=None if body is None else json.dumps(body), headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(_BODY_LIMIT)
        finally:
            connection.close()

    def look(self, slot: str) -> dict[str, Any]:
        """What one instance has in force."""
        try:
            code, body = self.call(slot, "GET", "/api/status")
            if code != 200:
                return {"answers": False, "code": code, "error": f"answered {code} on port {self.params['ports'][slot]}"}
            status = json.loads(body)
            # A halted instance names no other mode: the figures, which it has from the same reading, tell whether it is degraded.
            code, body = self.call(slot, "GET", "/metrics")
            samples = parse_metrics(body.decode()) if code == 200 else {}
        except (OSError, ValueError, http.client.HTTPException) as error:
            return {"answers": False, "code": None, "error": f"no answer on port {self.params['ports'][slot]}: {error}"}
        ledger = status.get("mode") in ("normal", "reduce_only", "halted")
        degraded = [value == 1 for _, value in samples.get("trading_degraded", [])] or [status.get("mode") == "reduce_only"]
        return {
            "answers": True,
            "ledger": ledger,
            "halted": status["mode"] == "halted" if ledger else None,
            "degraded": degraded[0] if ledger else None,
            "maintenance": bool(status.get("maintenance")),
            "features": status.get("features") or {},
            "hotfixes": status.get("hotfixes") or [],
            "draining": bool(status.get("draining")),
            "release_id": status.get("release_id"),
        }

    def looks(self) -> dict[str, dict[str, Any]]:
        """All of them."""
        return {slot: self.look(slot) for slot in self.params["ports"]}

    def following(self) -> tuple[dict[str, dict[str, Any]], float]:
        """All of them once they have what is wanted, or time is over; and the seconds that it took."""
        started = time.monotonic()
        while True:
            found = self.looks()
            waited = time.monotonic() - started
            late = [slot for slot, seen in found.items() if seen["answers"] and missing(seen, self.params["wanted"])]
            if not late or waited >= self.params["follow"]:
                return found, round(waited, 2)
            time.sleep(_POLL)


def refused(code: int, body: bytes) -> str:
    """Why the app refused, from its problem document."""
    try:
        problem = json.loads(body)
        errors = problem.get("errors") or {}
        why = "; ".join(f"{name}: expected {expected}" for name, expected in errors.items()) or problem.get("detail", "")
        return f"answered {code}: {problem['title']}{': ' if why else ''}{why}"
    except (ValueError, KeyError, AttributeError):
        return f"answered {code}"


def tell(module: AnsibleModule, slots: Slots) -> None:
    """Tell the named instance, and end the module."""
    slot, path = module.params["slot"], module.params["path"]
    if module.check_mode:
        module.exit_json(changed=True, answer={})
    try:
        code, body = slots.call(slot, "POST", path, module.params["body"])
    except (OSError, http.client.HTTPException) as error:
        module.fail_json(msg=f"{slot} did not answer {path}: {error}. Run this again: it tells another one")
    if code != 200:
        module.fail_json(msg=f"{slot} {refused(code, body)}; nothing was changed")
    module.exit_json(changed=True, answer=json.loads(body))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "ports": {"type": "dict", "required": True},
            "token": {"type": "str", "required": True, "no_log": True},
            "http_timeout": {"type": "float", "default": 2.0},
            "slot": {"type": "str"},
            "path": {"type": "str"},
            "body": {"type": "dict", "default": {}},
            "wanted": {"type": "dict"},
            "follow": {"type": "float", "default": 5.0},
        },
        required_together=[("slot", "path")],
        supports_check_mode=True,
    )
    slots = Slots(module.params)
    if module.params["path"] is not None:
        tell(module, slots)
    if module.params["wanted"] and not module.check_mode:
        found, waited = slots.following()
        module.exit_json(changed=False, instances=found, waited=waited)
    module.exit_json(changed=False, instances=slots.looks())


if __name__ == "__main__":
    main()
