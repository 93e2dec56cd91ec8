"""The repository as the policy tests read it: its files, plays, tasks and roles, from YAML alone."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml"))
OWN_ACTIONS = {path.stem for folder in ("modules", "action") for path in (ROOT / "plugins" / folder).glob("*.py")}

#: What a task or a play has besides its action.
KEYWORDS = {
    "action", "any_errors_fatal", "args", "async", "become", "become_user", "block", "always", "rescue", "changed_when",
    "check_mode", "connection", "delay", "delegate_facts", "delegate_to", "diff", "environment", "failed_when",
    "ignore_errors", "ignore_unreachable", "listen", "loop", "loop_control", "max_fail_percentage", "name", "no_log",
    "notify", "poll", "register", "retries", "run_once", "tags", "throttle", "timeout", "until", "vars", "when",
}  # fmt: skip


class Lines(yaml.SafeLoader):
    """Keeps for every mapping the lines from which to which it reaches, as `__lines__`."""


def _mapping(loader: Lines, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    value = loader.construct_mapping(node, deep=True)
    value["__lines__"] = (node.start_mark.line, node.end_mark.line)
    return value


Lines.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _scalar(loader: Lines, node: yaml.ScalarNode) -> Any:
    return loader.construct_scalar(node)


for _tag in ("!vault", "!unsafe"):
    Lines.add_constructor(_tag, _scalar)


@dataclass(frozen=True)
class Item:
    """A play or a task with the place where it stands."""

    path: Path
    keys: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.keys['__lines__'][0] + 1} ({self.keys.get('name', 'unnamed')})"

    @property
    def action(self) -> str | None:
        """The module that the task calls; None for a block."""
        names = [key for key in self.keys if key not in KEYWORDS and not key.startswith(("with_", "__"))]
        return names[0] if names else None

    @property
    def comments(self) -> list[str]:
        """The comment lines right above the item and within it."""
        lines = self.path.read_text().splitlines()
        start, end = self.keys["__lines__"]
        while start > 0 and lines[start - 1].lstrip().startswith("#"):
            start -= 1
        # The YAML reader counts what follows up to the next item as part of this one: leave that item's comments to it.
        while end > start and (end > len(lines) or not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
            end -= 1
        return [line.strip() for line in lines[start:end] if line.lstrip().startswith("#") or " # " in line]


@cache
def read(path: Path) -> Any:
    """The contents of a YAML file, every mapping with its `__lines__`."""
    return yaml.load(path.read_text(), Loader=Lines)


def contents(path: Path) -> dict[str, Any]:
    """A YAML file's top-level mapping as it is; empty if there is no such file."""
    return (yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}


@cache
def files(*suffixes: str) -> tuple[Path, ...]:
    """The files of the repository, committed or about to be; those with one of the suffixes, if any are given."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return tuple(path for path in paths if path.is_file() and not path.is_symlink() and (not suffixes or path.suffix in suffixes))


def is_playbook(path: Path) -> bool:
    value = read(path)
    return isinstance(value, list) and any(isinstance(item, dict) and {"hosts", "import_playbook"} & set(item) for item in value)


@cache
def plays() -> tuple[Item, ...]:
    """Every play of every playbook, wherever it lies."""
    found = []
    for path in files(".yml", ".yaml"):
        if "roles" not in path.parts and "app" not in path.parts and is_playbook(path):
            found += [Item(path, play) for play in read(path) if "hosts" in play]
    return tuple(found)


def _flatten(path: Path, items: Any) -> Iterator[Item]:
    for item in items or []:
        yield Item(path, item)
        for part in ("block", "rescue", "always"):
            yield from _flatten(path, item.get(part))


@cache
def tasks() -> tuple[Item, ...]:
    """Every task and handler of plays and roles, those in blocks too."""
    found: list[Item] = []
    for play in plays():
        for part in ("pre_tasks", "tasks", "post_tasks", "handlers"):
            found += _flatten(play.path, play.keys.get(part))
    for role in ROLES:
        for path in sorted([*role.glob("tasks/*.yml"), *role.glob("handlers/*.yml")]):
            found += _flatten(path, read(path))
    return tuple(found)
