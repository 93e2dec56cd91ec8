#!/usr/bin/python
"""Watch the app's instances for a while, and tell whether they do worse than before."""

from __future__ import annotations

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.instances import get, scrape_all
from ansible.module_utils.watching import ended, fractions, worse

DOCUMENTATION = r"""
module: release_watch
short_description: Watch the app's instances for a while, and tell whether they do worse than before
description:
  - Reads C(/metrics) and C(/health/ready) of every instance each second, from a host that reaches them all.
  - With I(baseline) it fails as soon as errors or refusals are above what may be, or an instance is not ready at three
    looks in a row. Without one it tells what it saw, for a baseline.
author: Trading Bot Ops (@trading-bot-ops)
options:
  instances:
    description: The address and port of each instance, by its host's name.
    type: dict
    required: true
  seconds:
    description: How long to watch.
    type: float
    required: true
  baseline:
    description: What an earlier watch returned as RV(seen).
    type: dict
  errors:
    description: The highest fraction of orders that may end in an error.
    type: float
    default: 0.01
  refusals:
    description: By how much the fraction of refused orders may rise above the baseline's.
    type: float
    default: 0.05
attributes:
  check_mode:
    support: full
    details: It does not watch in check mode, as nothing was changed.
"""

EXAMPLES = r"""
- name: Watch what the new configuration does
  release_watch:
    instances: {app1: "10.0.0.11:18080"}
    seconds: 60
    baseline: "{{ __before.seen }}"
"""

RETURN = r"""
seen: {description: The number of orders, and the fractions of errors and refusals, type: dict, returned: always}
watched: {description: Seconds watched, type: float, returned: always}
"""

_INTERVAL = 1.0


def _look(instances: dict[str, str]) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """What each instance says, and those that are ready."""
    found = {name: slots["it"] for name, slots in scrape_all({n: {"it": a} for n, a in instances.items()}).items()}
    ready = set()
    for name, address in instances.items():
        try:
            if found[name]["up"] and get(address, "/health/ready", 1.0)[0] == 200:
                ready.add(name)
        except (OSError, ValueError):
            continue
    return found, ready


def watch(params: dict[str, Any]) -> tuple[dict[str, float], list[str], float]:
    """What was seen, why it is worse (empty if it is not), and the seconds that it took."""
    started = time.monotonic()
    latest, _ = _look(params["instances"])
    missed = dict.fromkeys(latest, 0)
    counts: dict[str, int] = {}
    reasons: list[str] = []
    while not reasons and time.monotonic() - started < params["seconds"]:
        time.sleep(_INTERVAL)
        now, ready = _look(params["instances"])
        # From one look at an instance to the next that it answered: one that began anew in between loses nothing.
        answered = {name: seen for name, seen in now.items() if seen["up"]}
        for outcome, count in ended({name: latest[name] for name in answered}, answered).items():
            counts[outcome] = counts.get(outcome, 0) + count
        latest.update(answered)
        missed = {name: 0 if name in ready else missed[name] + 1 for name in missed}
        if params["baseline"] is not None:
            reasons = worse(counts, missed, params["baseline"], params["errors"], params["refusals"])
    return fractions(counts), reasons, round(time.monotonic() - started, 1)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "instances": {"type": "dict", "required": True},
            "seconds": {"type": "float", "required": True},
            "baseline": {"type": "dict"},
            "errors": {"type": "float", "default": 0.01},
            "refusals": {"type": "float", "default": 0.05},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False, seen={"orders": 0, "errors": 0.0, "refusals": 0.0}, watched=0.0)
    seen, reasons, watched = watch(module.params)
    if reasons:
        module.fail_json(msg=f"Worse after {watched:g} s: {'; '.join(reasons)}", seen=seen, watched=watched)
    module.exit_json(changed=False, seen=seen, watched=watched)


if __name__ == "__main__":
    main()
