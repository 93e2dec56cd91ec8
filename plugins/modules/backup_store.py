#!/usr/bin/python
"""Keep a directory of backups."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ansible.module_utils.backup_agent import check
from ansible.module_utils.backups import BackupError, of_host, surplus
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: backup_store
short_description: Keep a directory of backups
description:
  - Tells which backups of a host are in a directory, checks one of them against the checksum beside it, and removes the ones
    that are too many. The newest is never removed.
author: Trading Bot Ops (@trading-bot-ops)
options:
  path:
    description: The directory. One that is missing has no backups.
    type: path
    required: true
  host:
    description: Whose backups.
    type: str
    required: true
  check:
    description: A backup that has to be there and whole; empty, none.
    type: str
    default: ""
  keep_hourly:
    description: How many hours keep their newest backup. 0 removes nothing.
    type: int
    default: 0
  keep_daily:
    description: How many days do.
    type: int
    default: 0
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Keep what was fetched
  backup_store:
    path: /var/backups/trading-bot
    host: data1
    check: 20260131T120000Z-data1.tar
    keep_hourly: 48
    keep_daily: 14
"""

RETURN = r"""
backups: {description: "The names, the oldest first.", type: list, returned: success}
removed: {description: "Which were removed, or would be.", type: list, returned: success}
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "host": {"type": "str", "required": True},
            "check": {"type": "str", "default": ""},
            "keep_hourly": {"type": "int", "default": 0},
            "keep_daily": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    directory, host, keep = Path(module.params["path"]), module.params["host"], module.params["keep_hourly"]
    try:
        names = os.listdir(directory) if directory.is_dir() else []
        if module.params["check"]:
            check(directory / module.params["check"])
        removed = surplus(names, host, keep, module.params["keep_daily"]) if keep else []
        if not module.check_mode:
            for name in removed:
                (directory / name).unlink()
                with contextlib.suppress(FileNotFoundError):
                    (directory / f"{name}.sha256").unlink()
    except (BackupError, OSError) as error:
        module.fail_json(msg=f"{directory}: {error}")
    left = [backup.name for backup in of_host(names, host) if backup.name not in removed]
    module.exit_json(changed=bool(removed), backups=left, removed=removed)


if __name__ == "__main__":
    main()
