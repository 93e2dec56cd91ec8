#!/usr/bin/python
"""Write down what a built image has been through, and tell what it lacks."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.promotion import PromotionError, already, identity, missing, parse, table

DOCUMENTATION = r"""
module: release_promotion
short_description: Write down what a built image has been through, and tell what it lacks
description:
  - Runs on the control node. The record is C(promotions.jsonl) beside the image in the store, a JSON object a line, so that it
    goes where the image goes and ends when the image ends. A line is written once; it is on the disk when the module answers.
author: Trading Bot Ops (@trading-bot-ops)
options:
  state:
    description: C(present) makes sure that the record has the line; C(read) only tells.
    type: str
    choices: [present, read]
    default: read
  store:
    description: Where built versions are kept.
    type: path
    required: true
  version:
    description: The version.
    type: str
    required: true
  environment:
    description: The environment that it is, or would be, brought out in.
    type: str
    default: ""
  event:
    description: How it came to serve everybody there; or a mark that a person gives it.
    type: str
    choices: [deploy, canary, mark]
  release_id:
    description: The release that served.
    type: str
    default: ""
  mark:
    description: The mark.
    type: str
    default: ""
  by:
    description: Who brought it out, or gave the mark.
    type: str
    default: ""
  requires:
    description: The environments that it must have been through.
    type: list
    elements: str
    default: []
  marks:
    description: The marks that it must have.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Ask what is missing
  release_promotion:
    store: "{{ release_store }}"
    version: 1.4.0
    environment: production
    requires: [test, staging]
    marks: [qa]
  delegate_to: localhost
"""

RETURN = r"""
image: {description: "The digest of the version's image; without an image its wheel's", type: str, returned: always}
lines: {description: "The record, with the line that was asked for", type: list, returned: always}
missing: {description: "What is missing, a sentence each", type: list, returned: always}
table: {description: "What it has been through, for a person", type: list, returned: always}
"""

_ARTIFACT = "release-artifact.json"


def artifact_of(store: Path, version: str) -> dict[str, Any]:
    """The version's own record; raises PromotionError where the store has no such version."""
    try:
        found: dict[str, Any] = json.loads((store / version / _ARTIFACT).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        there = ", ".join(sorted(path.parent.name for path in store.glob(f"[0-9]*/{_ARTIFACT}"))) or "none"
        raise PromotionError(
            f"the store {store} has no version {version}; it has: {there}. What another control node built comes with"
            f" its directory {version}, record and all: copy it into the store"
        ) from error
    return found


def append(path: Path, text: str) -> None:
    """One write at the end of the file, on the disk before it returns."""
    record = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        data = text.encode() + b"\n"
        if os.write(record, data) != len(data):
            raise OSError(f"{path} took a part of the line only")
        os.fsync(record)
    finally:
        os.close(record)


def main() -> None:
    words = ("environment", "release_id", "mark", "by")
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "read"], "default": "read"},
            "store": {"type": "path", "required": True},
            "version": {"type": "str", "required": True},
            "event": {"type": "str", "choices": ["deploy", "canary", "mark"]},
            **{name: {"type": "str", "default": ""} for name in words},
            "requires": {"type": "list", "elements": "str", "default": []},
            "marks": {"type": "list", "elements": "str", "default": []},
        },
        required_if=[("state", "present", ["event", "by"])],
        supports_check_mode=True,
    )
    params = module.params
    path = Path(params["store"]) / params["version"] / "promotions.jsonl"
    changed = False
    try:
        image = identity(artifact_of(Path(params["store"]), params["version"]))
        lines = parse(path.read_text(encoding="utf-8"), str(path)) if path.exists() else []
        if params["state"] == "present":
            at = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
            line = {"at": at, "image": image, "event": params["event"]}
            line.update({name: params[name] for name in words if params[name]})
            if not already(lines, line):
                changed = True
                lines.append(line)
                if not module.check_mode:
                    append(path, json.dumps(line))
    except (OSError, ValueError, KeyError) as error:
        module.fail_json(msg=str(error))
    wanted = (params["requires"], params["marks"])
    module.exit_json(
        changed=changed,
        image=image,
        lines=lines,
        missing=missing(lines, image, params["version"], *wanted, own=params["environment"]),
        table=table(lines, image, params["version"], *wanted),
    )


if __name__ == "__main__":
    main()
