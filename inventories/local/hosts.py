#!/usr/bin/env python3
"""The lab's inventory: containers on this machine that stand for Ubuntu hosts. `make lab` makes one for every host here.

For more app hosts, raise APP_HOSTS (or set LAB_APP_HOSTS) and go on as with real ones: see docs/runbook/scale.md.
"""

import json
import os

APP_HOSTS = int(os.environ.get("LAB_APP_HOSTS", "3"))

PUBLIC = "10.203.1"
PRIVATE = "10.203.2"
GROUPS = {
    "lb": {"lb1": 11},
    "app": {f"app{n}": 20 + n for n in range(1, APP_HOSTS + 1)},
    "redis": {"data1": 61},
    "nats": {"data1": 61},
    "venue": {"mon1": 71},
    "monitoring": {"mon1": 71},
}

print(
    json.dumps(
        {
            **{name: {"hosts": list(hosts)} for name, hosts in GROUPS.items()},
            # Hosts of `app` that are being added: set LAB_NEW_NODES to their names, separated by commas.
            "new_nodes": {"hosts": [name for name in os.environ.get("LAB_NEW_NODES", "").split(",") if name]},
            "lab": {
                "children": list(GROUPS),
                "vars": {
                    "lab_name": "trading-lab",
                    "lab_public_prefix": PUBLIC,
                    "lab_private_prefix": PRIVATE,
                    "lab_published_port": 8080,
                },
            },
            "_meta": {
                "hostvars": {
                    name: {"ansible_host": f"{PUBLIC}.{number}", "private_address": f"{PRIVATE}.{number}"}
                    for hosts in GROUPS.values()
                    for name, number in hosts.items()
                }
            },
        },
        indent=2,
    )
)
