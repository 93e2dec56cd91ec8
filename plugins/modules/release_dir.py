#!/usr/bin/python
# Copyright: Trading Bot Ops
# MIT License
"""Put a release's directory on a host: complete, checked and never changed afterwards."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_dir
short_description: Put a release's directory on a host, complete or not at all
description:
  - Writes all files of a release into a directory beside its place, has the release's own config checked there,
    and renames it into place. A release on disk is therefore always complete.
  - A release is immutable. One that is there with the same files is left alone; one that differs is an error.
author: Trading Bot Ops
options:
  path:
    description: The directory of all releases.
    type: path
    default: /opt/trading-bot/releases
  id:
    description: The release's id, the name of its directory.
    type: str
    required: true
  files:
    description: The text of each file, by its name below the release's directory. Never shown.
    type: dict
    required: true
  links:
    description: Symbolic links by name, with what they point at.
    type: dict
    default: {}
  owner:
    description: The user that owns the files.
    type: str
    default: root
  group:
    description: The group that may read them; nobody else may.
    type: str
    required: true
  validate:
    description: A command that checks the release before it lands; C(%s) stands for its directory.
    type: list
    elements: str
    default: []
  min_free_mib:
    description: MiB that must be free on the file system, or nothing is written.
    type: int
    default: 0
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
"""

EXAMPLES = r"""
- name: Put the release on the host
  release_dir:
    id: 1.4.0-3f2a9c01de
    group: trading-bot
    files:
      release.json: "{{ release | to_json }}"
      config.yaml: "{{ config }}"
    validate: [trading-bot, check-config, "%s/config.yaml"]
"""

RETURN = r"""
path:
  description: The release's directory.
  type: str
  returned: always
"""

import grp
import os
import pwd
import shutil

from ansible.module_utils.basic import AnsibleModule


def differing(directory: str, files: dict[str, str], links: dict[str, str]) -> list[str]:
    """Names below `directory` whose file or link is not as asked, sorted; empty when all are equal."""
    wrong = []
    for name, text in files.items():
        try:
            with open(os.path.join(directory, name), encoding="utf-8") as file:
                if file.read() != text:
                    wrong.append(name)
        except (OSError, UnicodeDecodeError):
            wrong.append(name)
    for name, target in links.items():
        path = os.path.join(directory, name)
        if not os.path.islink(path) or os.readlink(path) != target:
            wrong.append(name)
    return sorted(wrong)


def write(directory: str, files: dict[str, str], links: dict[str, str], uid: int, gid: int) -> None:
    """Write all of it durably below `directory`, which must not exist. Raises OSError."""
    os.mkdir(directory, 0o750)
    os.chown(directory, uid, gid)
    for name, text in files.items():
        path = os.path.join(directory, name)
        parent = os.path.dirname(path)
        if not os.path.isdir(parent):
            os.mkdir(parent, 0o750)
            os.chown(parent, uid, gid)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchown(file.fileno(), uid, gid)
            os.fchmod(file.fileno(), 0o640)
            os.fsync(file.fileno())
    for name, target in links.items():
        os.symlink(target, os.path.join(directory, name))
    os.chmod(directory, 0o750)  # noqa: S103 - its group is the app's, which reads it


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/opt/trading-bot/releases"},
            "id": {"type": "str", "required": True},
            "files": {"type": "dict", "required": True, "no_log": True},
            "links": {"type": "dict", "default": {}},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "required": True},
            "validate": {"type": "list", "elements": "str", "default": []},
            "min_free_mib": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    asked = module.params
    home = os.path.join(asked["path"], asked["id"])

    if os.path.isdir(home):
        wrong = differing(home, asked["files"], asked["links"])
        if wrong:
            module.fail_json(
                msg=f"Release {asked['id']} is on disk with other contents in {', '.join(wrong)}, and a release is "
                f"never changed. If somebody edited {home} by hand, remove that directory and run again."
            )
        module.exit_json(changed=False, path=home)
    if module.check_mode:
        module.exit_json(changed=True, path=home)

    unfinished = os.path.join(asked["path"], f".{asked['id']}.unfinished")
    try:
        space = os.statvfs(asked["path"])
        free_mib = space.f_bavail * space.f_frsize // 2**20
        if free_mib < asked["min_free_mib"]:
            module.fail_json(
                msg=f"{asked['path']} has {free_mib} MiB free and {asked['min_free_mib']} are asked for "
                f"(trading_bot_min_free_mib): make room on this host, nothing was changed."
            )
        shutil.rmtree(unfinished, ignore_errors=True)
        write(
            unfinished, asked["files"], asked["links"], pwd.getpwnam(asked["owner"]).pw_uid, grp.getgrnam(asked["group"]).gr_gid
        )
        if asked["validate"]:
            code, out, error = module.run_command([word.replace("%s", unfinished) for word in asked["validate"]])
            if code != 0:
                module.fail_json(msg=f"Release {asked['id']} refuses its own config: {(error or out).strip()}", rc=code)
        os.rename(unfinished, home)
    except (OSError, KeyError) as error:
        module.fail_json(msg=f"Release {asked['id']} could not be written below {asked['path']}: {error}")
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    module.exit_json(changed=True, path=home)


if __name__ == "__main__":
    main()
