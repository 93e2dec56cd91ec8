#!/usr/bin/python
"""Read what a host wrote down in a span of time."""

from __future__ import annotations

import glob
import gzip
import json
import os
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.postmortem import alert_step, alerts, app_log, journal, operations, releases, unit_log
from ansible.module_utils.urls import open_url

DOCUMENTATION = r"""
module: postmortem_read
short_description: Read what a host wrote down in a span of time
description:
  - Reads the log of operations, the journal of a load balancer's releases, the app's log files, those that were rotated too, the
    warnings of services in systemd's journal, which releases came onto the disk, and the alerts that Prometheus knows of.
  - Changes nothing. What is not on this host has nothing to say; what is there and cannot be read is in RV(notes).
author: Trading Bot Ops (@trading-bot-ops)
options:
  since:
    description: From when, in Unix seconds.
    type: float
    required: true
  until:
    description: Until when, in Unix seconds.
    type: float
    required: true
  operations:
    description: The log of operations.
    type: path
    required: true
  journal:
    description: The directory of a load balancer's release agent.
    type: path
    required: true
  logs:
    description: The directory of the app's log files.
    type: path
    required: true
  root:
    description: The directory with the app's releases and slots.
    type: path
    required: true
  units:
    description: The services whose warnings are read; patterns are allowed.
    type: list
    elements: str
    default: []
  prometheus:
    description: The URL of the Prometheus to ask for alerts. Empty for none.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Read what was written down
  postmortem_read:
    since: 1769860800
    until: 1769864400
    operations: /var/lib/trading-bot/operations.jsonl
    journal: /var/lib/trading-bot-release
    logs: /var/log/trading-bot
    root: /opt/trading-bot
"""

RETURN = r"""
events: {description: "What happened: at, step, source and text", type: list, elements: dict, returned: always}
notes: {description: What could not be read, type: list, elements: str, returned: always}
"""

#: Seconds for Prometheus's answer, and for journalctl's.
TIMEOUT = 30
#: Warnings that are read at most.
MOST = 5000


def lines_of(path: str) -> Iterator[str]:
    """The lines of a file, compressed or not; none if there is no such file."""
    opener: Callable[..., Any] = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8", errors="replace") as file:
            yield from file
    except FileNotFoundError:
        return


def log_files(directory: str, since: float) -> list[str]:
    """The app's log files that were written to since then, with those that were rotated."""
    found = glob.glob(os.path.join(glob.escape(directory), "trading-bot-*.log*"))
    return sorted(path for path in found if os.path.getmtime(path) >= since)


def app_events(directory: str, since: float, until: float) -> list[dict[str, Any]]:
    """Of all files of a slot together, so that what was said before and after a rotation is told once."""

    def lines() -> Iterator[str]:
        for path in log_files(directory, since):
            yield from lines_of(path)

    return app_log(lines(), since, until)


def unit_events(units: list[str], since: float, until: float) -> list[dict[str, Any]]:
    """Raises OSError where journalctl does not answer."""
    if not units:
        return []
    command = ["journalctl", "--quiet", "--no-pager", "--output=json", "--priority=warning", f"--lines={MOST}"]
    command += [f"--since=@{since:.0f}", f"--until=@{until:.0f}", *(f"--unit={unit}" for unit in units)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise OSError(f"journalctl did not answer in {TIMEOUT} s") from None
    if done.returncode != 0 and done.stderr.strip():
        raise OSError(done.stderr.strip())
    return unit_log(done.stdout.splitlines(), since, until)


def release_events(root: str, since: float, until: float) -> list[dict[str, Any]]:
    """Raises OSError or ValueError where a release's description cannot be read."""
    found = []
    for path in sorted(glob.glob(os.path.join(glob.escape(root), "releases", "*", "release.json"))):
        with open(path, encoding="utf-8") as file:
            found.append({**json.load(file), "placed_at": os.stat(path).st_mtime})
    slots = {}
    for link in sorted(glob.glob(os.path.join(glob.escape(root), "slots", "*"))):
        if os.path.islink(link):
            slots[os.path.basename(link)] = (os.path.basename(os.readlink(link)), os.lstat(link).st_mtime)
    return releases(found, slots, since, until)


def alert_events(url: str, since: float, until: float) -> list[dict[str, Any]]:
    """Raises OSError or ValueError where Prometheus does not answer with data."""
    if not url:
        return []
    query = {"query": 'ALERTS{alertstate="firing"}', "start": f"{since:.0f}", "end": f"{until:.0f}"}
    query["step"] = str(alert_step(since, until))
    with open_url(f"{url}/api/v1/query_range?{urllib.parse.urlencode(query)}", timeout=TIMEOUT) as answer:
        return alerts(json.load(answer), since, until)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "since": {"type": "float", "required": True},
            "until": {"type": "float", "required": True},
            "operations": {"type": "path", "required": True},
            "journal": {"type": "path", "required": True},
            "logs": {"type": "path", "required": True},
            "root": {"type": "path", "required": True},
            "units": {"type": "list", "elements": "str", "default": []},
            "prometheus": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    given = module.params
    since, until = given["since"], given["until"]

    def journals() -> list[dict[str, Any]]:
        names = ("journal.1.jsonl", "journal.jsonl")
        return [e for name in names for e in journal(lines_of(os.path.join(given["journal"], name)), since, until)]

    sources: dict[str, Callable[[], list[dict[str, Any]]]] = {
        given["operations"]: lambda: operations(lines_of(given["operations"]), since, until),
        given["journal"]: journals,
        given["logs"]: lambda: app_events(given["logs"], since, until),
        "systemd's journal": lambda: unit_events(given["units"], since, until),
        given["root"]: lambda: release_events(given["root"], since, until),
        given["prometheus"]: lambda: alert_events(given["prometheus"], since, until),
    }
    events, notes = [], []
    for name, read in sources.items():
        try:
            events += read()
        except (OSError, ValueError) as error:
            notes.append(f"{name}: {error}")
    module.exit_json(changed=False, events=events, notes=notes)


if __name__ == "__main__":
    main()
