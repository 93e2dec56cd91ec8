#!/usr/bin/python
"""Remove built versions that no inventory's hosts need."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.image_store import ImageError, read
from ansible.module_utils.retention import surplus_versions

DOCUMENTATION = r"""
module: release_store
short_description: Remove built versions that no inventory's hosts need
description:
  - Runs on the control node, whose store is shared by all of its inventories. Writes down which versions the hosts of this
    inventory keep, and removes from the store what none of the inventories has written down, but for the last ones built.
  - What one inventory has written down holds until it writes anew; remove its file below C(kept/) if it is gone for good.
author: Trading Bot Ops (@trading-bot-ops)
options:
  store:
    description: Where built versions are kept.
    type: path
    required: true
  keep:
    description: How many of the versions built last stay in any case.
    type: int
    required: true
  inventory:
    description: The sources of the inventory.
    type: list
    elements: str
    required: true
  versions:
    description: The versions that its hosts keep.
    type: list
    elements: str
    required: true
  docker:
    description: The Docker client, whose images of removed versions go, too.
    type: str
    default: docker
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Keep what was built for the kept releases
  release_store:
    store: "{{ release_store }}"
    keep: 5
    inventory: "{{ ansible_inventory_sources }}"
    versions: [1.3.2, 1.4.0]
  delegate_to: localhost
"""

RETURN = r"""
removed: {description: The versions that were removed, or would be, type: list, returned: always}
needed: {description: By inventory the versions that its hosts keep, type: dict, returned: always}
"""

_RECORD = "release-artifact.json"


def needed_by(directory: Path) -> dict[str, list[str]]:
    """What each inventory has written down; raises ValueError for a file that does not tell."""
    found = {}
    for path in sorted(directory.glob("*.json")):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            found[", ".join(told["inventory"])] = [str(version) for version in told["versions"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} does not tell what is needed ({error!r}), so nothing is removed: remove that file"
            ) from error
    return found


def write_down(directory: Path, inventory: list[str], versions: list[str], check_mode: bool) -> None:
    """Write down what this inventory's hosts keep."""
    path = directory / f"{hashlib.sha256(json.dumps(inventory).encode()).hexdigest()[:16]}.json"
    text = json.dumps({"inventory": inventory, "versions": versions}, indent=2) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    if not check_mode:
        directory.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)


def remove(module: AnsibleModule, path: Path) -> None:
    """Remove a version: its image's name on this machine's engine, and its directory, never there by half."""
    docker = module.get_bin_path(module.params["docker"])
    if docker and (path / "image").is_dir():
        try:
            module.run_command([docker, "image", "rm", f"trading-bot:{read(path / 'image').short}"])
        except ImageError as error:
            module.warn(f"{path}: {error}")
    aside = path.with_name(f".{path.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    shutil.rmtree(aside)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "store": {"type": "path", "required": True},
            "keep": {"type": "int", "required": True},
            "inventory": {"type": "list", "elements": "str", "required": True},
            "versions": {"type": "list", "elements": "str", "required": True},
            "docker": {"type": "str", "default": "docker"},
        },
        supports_check_mode=True,
    )
    asked: dict[str, Any] = module.params
    store = Path(asked["store"]).absolute()
    inventory = sorted(os.path.abspath(source) for source in asked["inventory"])
    versions = sorted(set(asked["versions"]))
    try:
        write_down(store / "kept", inventory, versions, module.check_mode)
        needed = {**needed_by(store / "kept"), ", ".join(inventory): versions}
        built = {record.parent.name: record.stat().st_mtime for record in store.glob(f"[0-9]*/{_RECORD}")}
        gone = surplus_versions(built, needed, asked["keep"])
        for version in () if module.check_mode else gone:
            remove(module, store / version)
    except (OSError, ValueError) as error:
        module.fail_json(msg=str(error))
    # What it writes down for itself, once for each way that an inventory is named, changes nothing that is released.
    module.exit_json(changed=bool(gone), removed=gone, needed=needed)


if __name__ == "__main__":
    main()
