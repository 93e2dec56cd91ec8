#!/usr/bin/python
"""Have servers that left the inventory leave their JetStream cluster, too."""

from __future__ import annotations

from functools import partial

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.nats_client import NatsError, connect
from ansible.module_utils.nats_members import depart, look, remove

DOCUMENTATION = r"""
module: nats_members
short_description: Have servers that left the inventory leave their JetStream cluster, too
description:
  - Compares the members of the cluster with I(hosts). A member that is not one of them and does not run is removed; the cluster
    then makes the copies of streams that it kept on those that are left, which the module waits for.
  - Nothing is removed while another member is not healthy, while a stream has no majority of its copies, or where the servers
    that are left are fewer than the copies of a stream. A cluster never becomes a single server.
  - A member that is not one of I(hosts) and runs is an error, after those that do not run were removed.
  - In check mode a server that lets nobody in yet is told, and is no error.
author: Trading Bot Ops (@trading-bot-ops)
options:
  servers:
    description: Servers of the cluster that are told, C(host:port); the first that lets the user in is.
    type: list
    elements: str
    required: true
  hosts:
    description: By name, the address of the monitoring of each server that the cluster is to have, C(host:port).
    type: dict
    required: true
  user:
    description: A user who publishes to C($JS.API.STREAM.NAMES), C($JS.API.STREAM.INFO.*) and C($JS.API.SERVER.REMOVE).
    type: str
    required: true
  password:
    description: The password of I(user).
    type: str
    required: true
  wait:
    description: Seconds in which the others have to be well before a server leaves, and streams to have their copies after it.
    type: float
    default: 120
  timeout:
    description: Seconds that one answer of a server may take.
    type: float
    default: 2.0
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: Have the cluster forget the servers that are gone
  nats_members:
    servers: ["10.0.0.40:4222"]
    hosts:
      data1: 10.0.0.40:8222
      data2: 10.0.0.41:8222
    user: system
    password: "{{ vault_nats_system_password }}"
"""

RETURN = r"""
removed: {description: The servers that were removed; in check mode those that would be, type: list, returned: always}
members: {description: The members of the cluster afterwards; in check mode as they would be, type: list, returned: always}
told: {description: Why check mode cannot tell. Empty if it can, type: str, returned: always}
"""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "servers": {"type": "list", "elements": "str", "required": True},
            "hosts": {"type": "dict", "required": True},
            "user": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "wait": {"type": "float", "default": 120},
            "timeout": {"type": "float", "default": 2.0},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        connection = connect(given["servers"], given["user"], given["password"], timeout=given["timeout"])
    except NatsError as error:
        if module.check_mode:
            module.exit_json(changed=False, removed=[], members=[], told=str(error))
        module.fail_json(msg=str(error))
    ask, forget = partial(look, connection, given["hosts"]), partial(remove, connection)
    with connection:
        try:
            seen = depart(ask, forget, list(given["hosts"]), given["wait"], module.check_mode)
        except NatsError as error:
            module.fail_json(msg=str(error))
    result = {"changed": bool(seen.removed), "removed": seen.removed, "members": seen.after, "told": ""}
    if module._diff:
        result["diff"] = {"before": "\n".join(seen.before) + "\n", "after": "\n".join(seen.after) + "\n"}
    if seen.running:
        done = f"Removed: {', '.join(seen.removed)}. " if seen.removed and not module.check_mode else ""
        why = f"{', '.join(seen.running)} runs as a member of the cluster, and is not in the inventory"
        module.fail_json(msg=f"{done}{why}. Stop nats-server there and run this again, or put it back", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
