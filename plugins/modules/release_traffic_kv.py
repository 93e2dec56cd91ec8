#!/usr/bin/python
"""Tell the app's instances, through NATS, which slot answers for which accounts."""

from __future__ import annotations

import ssl
from typing import Any

from ansible.module_utils.balancer import as_dict
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.nats_client import KeyValue, NatsError, connect
from ansible.module_utils.traffic import TrafficError
from ansible.module_utils.traffic_kv import Told, Write, parse, write

DOCUMENTATION = r"""
module: release_traffic_kv
short_description: Tell the app's instances, through NATS, which slot answers for which accounts
description:
  - Writes the same four values as M(release_traffic) to a JetStream key-value bucket, which it creates if it is missing.
  - Compare and set. If another writer comes between, the module fails, unless that one wrote the same.
author: Trading Bot Ops (@trading-bot-ops)
options:
  state:
    description: C(present) makes the bucket say what is asked; C(read) only tells.
    type: str
    choices: [present, read]
    default: present
  servers:
    description: NATS servers, C(host:port), C(nats://host:port) or C(tls://host:port); tried in this order.
    type: list
    elements: str
    required: true
  user:
    description: The user. It publishes to C($KV.<bucket>.>) and C($JS.API.STREAM.{INFO,CREATE,MSG.GET}.KV_<bucket>).
    type: str
  password:
    description: The user's password.
    type: str
  tls:
    description: Speak TLS with every server.
    type: bool
    default: false
  ca_file:
    description: The authority that signed the servers' certificates; the system's if omitted.
    type: path
  bucket:
    description: The bucket's name.
    type: str
    default: release
  key:
    description: The key's name.
    type: str
    default: traffic
  stable:
    description: As for M(release_traffic).
    type: str
    choices: [blue, green]
  canary:
    description: As for M(release_traffic).
    type: str
    choices: [blue, green]
  salt:
    description: As for M(release_traffic).
    type: str
  cut:
    description: As for M(release_traffic).
    type: int
  releases:
    description:
      - The id of the release that each slot is to run; those of slots that are left out stay.
      - An instance that runs another one, on a host that left the fleet, answers nothing.
    type: dict
    default: {}
  shadow:
    description: The slot that decides copies of the orders without carrying them out; empty, none does. Stays if omitted.
    type: str
    choices: ["", blue, green]
  replicas:
    description: How many servers keep the bucket, used when it is created.
    type: int
    default: 1
  history:
    description: How many values of the key are kept, used when the bucket is created.
    type: int
    default: 5
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
- name: Tell the instances that green is stable
  release_traffic_kv:
    servers: ["10.0.0.40:4222"]
    user: release
    password: "{{ vault_nats_release_password }}"
    stable: green
    canary: blue
    salt: none
    cut: 0
"""

RETURN = r"""
releases: {description: The release of each slot as the bucket says it afterwards, type: dict, returned: always}
shadow: {description: The slot in the shadow as the bucket says it afterwards, type: str, returned: always}
traffic: {description: What the bucket says afterwards. Null if it says nothing, type: dict, returned: always}
before: {description: What it said before, type: dict, returned: always}
after: {description: What it says afterwards; what it would say in check mode, type: dict, returned: always}
revision: {description: The key's revision, type: int, returned: always}
created_bucket: {description: Whether the bucket was created; whether it would be in check mode, type: bool, returned: always}
server: {description: The server that answered, type: str, returned: always}
unreadable: {description: The value found that is no traffic. Null if it was one, type: str, returned: always}
"""


_SAID = ("stable", "canary", "salt", "cut", "releases", "shadow")


def _run(module: AnsibleModule, bucket: KeyValue) -> dict[str, Any]:
    key = module.params["key"]
    if module.params["state"] == "read":
        there = bucket.exists()
        entry, _ = bucket.get(key) if there else (None, 0)
        told = parse(entry)
        done = Write(told, told, False, entry.revision if entry else None, False)
    else:
        changes = {name: module.params[name] for name in _SAID}
        settings = {"history": module.params["history"], "replicas": module.params["replicas"]}
        done = write(bucket, changes, key=key, dry=module.check_mode, **settings)
    before, after = done.before, done.after
    found = before if module.check_mode else after
    said, says = as_dict(before.traffic), as_dict(after.traffic)
    return {
        "changed": done.changed,
        "before": said,
        "after": says,
        "traffic": as_dict(found.traffic),
        "releases": found.releases,
        "shadow": found.shadow,
        "revision": done.revision,
        "created_bucket": done.created_bucket,
        "unreadable": before.unreadable,
        "diff": {
            "before_header": f"{bucket.bucket}/{key}",
            "after_header": f"{bucket.bucket}/{key}",
            "before": _shown(before),
            "after": _shown(after),
        },
    }


def _shown(told: Told) -> Any:
    if told.traffic is None:
        return ""
    return {**told.traffic.as_dict(), "releases": told.releases, "shadow": told.shadow}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "read"], "default": "present"},
            "servers": {"type": "list", "elements": "str", "required": True},
            "user": {"type": "str"},
            "password": {"type": "str", "no_log": True},
            "tls": {"type": "bool", "default": False},
            "ca_file": {"type": "path"},
            "bucket": {"type": "str", "default": "release"},
            "key": {"type": "str", "default": "traffic", "no_log": False},
            "stable": {"type": "str", "choices": ["blue", "green"]},
            "canary": {"type": "str", "choices": ["blue", "green"]},
            "salt": {"type": "str"},
            "cut": {"type": "int"},
            "releases": {"type": "dict", "default": {}},
            "shadow": {"type": "str", "choices": ["", "blue", "green"]},
            "replicas": {"type": "int", "default": 1},
            "history": {"type": "int", "default": 5},
            "timeout": {"type": "float", "default": 2.0},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        tls = ssl.create_default_context(cafile=given["ca_file"]) if given["tls"] or given["ca_file"] else None
        with connect(given["servers"], given["user"], given["password"], tls, given["timeout"]) as connection:
            result = _run(module, KeyValue(connection, given["bucket"]))
            result["server"] = str(connection.address)
    except (NatsError, TrafficError, OSError) as error:
        module.fail_json(msg=str(error))
    if not module._diff:
        # Ansible shows whatever there is, also where a play wants none.
        del result["diff"]
    module.exit_json(**result)


if __name__ == "__main__":
    main()
