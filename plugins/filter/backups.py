"""Which backup is meant, and what a restore of it would lose, for playbooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleFilterError

_MODULE_UTILS = str(Path(__file__).resolve().parents[1] / "module_utils")
if _MODULE_UTILS not in ansible.module_utils.__path__:
    # On the control node nobody lays the project's module_utils beside Ansible's own, as it is done for hosts.
    ansible.module_utils.__path__.append(_MODULE_UTILS)

from ansible.module_utils.backups import BackupError, choose, instant, loss, parse

DOCUMENTATION = r"""
name: backups
short_description: Choose a backup, and tell what restoring it loses
description:
  - C(backup_chosen) is the name of the backup that is meant, C(backup_taken) when a backup was taken in milliseconds,
    C(backup_known_until) the last moment that ledger or streams know of, C(backup_loss) what is lost, in a sentence,
    C(backup_instant) a moment in words, C(backup_said) what a new backup holds.
author:
  - Trading Bot Ops
"""


def chosen(names: Sequence[str], host: str, wanted: str) -> str:
    """The name of the host's backup that ``wanted`` means."""
    try:
        return choose(names, host, wanted).name
    except BackupError as error:
        raise AnsibleFilterError(str(error)) from error


def taken(name: str) -> int:
    """When it was taken, in milliseconds, to the second."""
    backup = parse(name)
    if backup is None:
        raise AnsibleFilterError(f"{name!r} is no backup, expected a name such as 20260131T120000Z-data1.tar")
    return int(backup.taken.timestamp()) * 1000


def known_until(now: Mapping[str, Any]) -> int:
    """The last moment that the present ledger has a line of, in milliseconds; 0 where there is none."""
    return int((now.get("ledger") or {}).get("until") or 0)


def lost(taken_at: int, until: int) -> str:
    """What is decided between the two moments, and so lost, in a sentence."""
    return loss(int(taken_at), int(until))


def said(made: Mapping[str, Any]) -> str:
    """What a new backup holds, in a sentence."""
    if made.get("skipped"):
        return f"No backup: {made['why']}"
    what = []
    if made["redis"]:
        what.append(f"the ledger as of {instant(made['redis']['at'])}, {made['redis']['counted'].get('fills', 0)} executions")
    what += [f"{name} up to {state['last_seq']}" for name, state in made["streams"].items()]
    what.append(f"{len(made['files'])} directories")
    return f"{made['name']}, {made['size'] / 1e6:.1f} MB: {', '.join(what)}"


class FilterModule:
    """The filters by name."""

    def filters(self) -> dict[str, Any]:
        return {
            "backup_chosen": chosen,
            "backup_taken": taken,
            "backup_known_until": known_until,
            "backup_loss": lost,
            "backup_instant": instant,
            "backup_said": said,
        }
