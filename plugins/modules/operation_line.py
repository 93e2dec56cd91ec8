#!/usr/bin/python
"""Leave a line in a host's log of operations."""

from __future__ import annotations

import contextlib
import grp
import json
import os
from datetime import datetime, timezone

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: operation_line
short_description: Leave a line in a host's log of operations
description:
  - Appends one JSON object with C(at), C(id), C(operation), C(event), C(by), C(what) and, at the end, C(result) and C(undo). The
    line is on the disk when the module answers. To say what is done to a host is no change of it, so C(changed) is false.
author: Trading Bot Ops (@trading-bot-ops)
options:
  path:
    description: The log. It and its directory are made where they are missing, readable by the group C(adm).
    type: path
    required: true
  id:
    description: What the lines of one run share.
    type: str
    required: true
  operation:
    description: The playbook, without its suffix.
    type: str
    required: true
  event:
    description: A run that was cut off has a C(begin) and no C(end).
    type: str
    choices: [begin, end]
    required: true
  by:
    description: Who runs it, and where.
    type: str
    required: true
  what:
    description: What it will do, or at the end what it did; sentences without secrets.
    type: list
    elements: str
    default: []
  result:
    description: How it ended.
    type: str
    choices: [changed, nothing, failed]
  undo:
    description: How to take it back.
    type: str
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Say that it begins
  operation_line:
    path: /var/lib/trading-bot/operations.jsonl
    id: 20260131T120000Z-halt
    operation: halt
    event: begin
    by: alice@control
    what: [Nobody trades any more]
"""

RETURN = r"""
line: {description: What was written, type: dict, returned: always}
"""


def append(path: str, text: str) -> None:
    """One write at the end of the file, on the disk before it returns; lines of two runs never mix."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    try:
        if os.geteuid() == 0:
            # On a system without that group root alone reads it.
            with contextlib.suppress(KeyError):
                os.fchown(log, 0, grp.getgrnam("adm").gr_gid)
        os.fchmod(log, 0o640)
        data = text.encode() + b"\n"
        if os.write(log, data) != len(data):
            raise OSError(f"{path} took a part of the line only")
        os.fsync(log)
    finally:
        os.close(log)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "id": {"type": "str", "required": True},
            "operation": {"type": "str", "required": True},
            "event": {"type": "str", "choices": ["begin", "end"], "required": True},
            "by": {"type": "str", "required": True},
            "what": {"type": "list", "elements": "str", "default": []},
            "result": {"type": "str", "choices": ["changed", "nothing", "failed"]},
            "undo": {"type": "str"},
        },
        required_if=[("event", "end", ["result"])],
        supports_check_mode=True,
    )
    path = module.params["path"]
    at = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = {"at": at, **{key: value for key, value in module.params.items() if key != "path" and value is not None}}
    if not module.check_mode:
        try:
            append(path, json.dumps(line, ensure_ascii=False))
        except OSError as error:
            module.fail_json(msg=f"the line could not be written to {path}: {error}", line=line)
    module.exit_json(changed=False, line=line)


if __name__ == "__main__":
    main()
