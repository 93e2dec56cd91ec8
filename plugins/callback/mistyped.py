"""Stop before anything is done where a variable or a tag was mistyped."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

import ansible.context as context
import ansible.module_utils
import yaml
from ansible.plugins.callback import CallbackBase

_PLUGINS = Path(__file__).resolve().parents[1]
if str(_PLUGINS / "module_utils") not in ansible.module_utils.__path__:
    # On the control node nobody lays the project's module_utils beside Ansible's own, as it is done for hosts.
    ansible.module_utils.__path__.append(str(_PLUGINS / "module_utils"))

from ansible.module_utils import mistyped

DOCUMENTATION = r"""
name: mistyped
type: aggregate
short_description: Stop before anything is done where a variable or a tag was mistyped
description:
  - A variable of C(--extra-vars) that is neither an input of a role nor of the inventory nor named by the playbook, and a tag of
    C(--tags) or C(--skip-tags) that nothing has, would be ignored without a word. It ends the run instead.
author: Trading Bot Ops (@trading-bot-ops)
"""

#: What ansible-playbook ends with where its command line is wrong.
WRONG_OPTION = 5
ROLES = _PLUGINS.parent / "roles"


class CallbackModule(CallbackBase):
    """Looks once, when the playbook is read and no host was asked for anything."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "mistyped"

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """End the run where something was mistyped; an exception would only be a warning."""
        path = os.path.join(playbook._basedir, os.path.basename(playbook._file_name or ""))
        plays = playbook.get_plays()
        if not plays or not os.path.isfile(path):
            return
        manager = plays[0].get_variable_manager()
        variables = {name for name in manager.extra_vars if not mistyped.FOREIGN.match(name)}
        options = [tag for key in ("tags", "skip_tags") for tag in context.CLIARGS.get(key) or ()]
        tags = {name.strip() for option in options for name in option.split(",")} - mistyped.RESERVED_TAGS
        if not variables and not tags:
            # Most runs give none, and need not wait for the files to be read.
            return
        books = list(_playbooks(path))
        told = mistyped.unknown_variables(variables, mistyped.names_in(books) | _inputs() | _inventory(manager))
        told += mistyped.unknown_tags(tags, mistyped.tags_in([books, [_read(path) for path in ROLES.glob("*/tasks/*.yml")]]))
        if told:
            name = os.path.basename(path)
            self._display.error(f"{name}: {' '.join(told)} Nothing was done.", wrap_text=False)
            sys.exit(WRONG_OPTION)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Takes names and words alone: what Ansible marks as encrypted or unsafe holds none."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _read(path: Union[str, Path]) -> Any:
    """Ansible's own reader keeps the place of each word, which takes ten times as long."""
    return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a safe loader with one more tag


def _playbooks(path: str) -> Iterator[Any]:
    """The contents of a playbook and of those that it imports."""
    content = _read(path) or []
    yield content
    for entry in content:
        imported = entry.get("ansible.builtin.import_playbook", entry.get("import_playbook"))
        if imported and os.path.isfile(os.path.join(os.path.dirname(path), imported)):
            yield from _playbooks(os.path.join(os.path.dirname(path), imported))


def _inputs() -> set[str]:
    """What the roles may be given, and the variables that it is made of."""
    found: set[str] = set()
    for path in [*ROLES.glob("*/defaults/*.yml"), *ROLES.glob("*/vars/*.yml")]:
        content = _read(path) or {}
        found |= set(content) | mistyped.names_in(content)
    for path in ROLES.glob("*/meta/argument_specs.yml"):
        for entry in _read(path)["argument_specs"].values():
            found |= set(entry.get("options") or ())
    return found


def _inventory(manager: Any) -> set[str]:
    """What the inventory says of its hosts, and the variables that it is made of."""
    values: dict[str, Any] = {}
    # What was given is no proof of itself.
    extra, manager._extra_vars = manager.extra_vars, {}
    try:
        for host in manager._inventory.get_hosts(ignore_limits=True):
            values.update(manager.get_vars(host=host, include_hostvars=False))
    finally:
        manager._extra_vars = extra
    own = {name: value for name, value in values.items() if name not in ("groups", "hostvars", "vars")}
    return set(own) | mistyped.names_in(own)
