"""That every role reads the same: its parts, its inputs, and what it says of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from repository import ROLES, contents, read

CALLS = ("ansible.builtin.import_tasks", "ansible.builtin.include_tasks")
STEPS = ("preflight", "install", "configure", "service")

#: Roles that are no thing on a host, so that some of the steps mean nothing there: what they have instead.
OTHER_STEPS = {
    "preflight": "a check of hosts and inventory; it is a preflight, and installs nothing",
    "release": "the steps of a release, which playbooks call one by one with tasks_from",
    "canary": "the steps of a rollout, which playbooks call one by one with tasks_from",
    "update_config": "the steps of a change of configuration, which its playbook calls one by one with tasks_from",
    "upgrade": "the steps of an upgrade, which its playbook calls one by one with tasks_from",
    "switch": "the steps of an emergency operation, which its playbooks call one by one with tasks_from",
    "postmortem": "the steps of a review, which its playbook calls one by one with tasks_from",
    "order": "what is asked of an order, which its playbook calls with tasks_from",
    "diagnose": "a look at the whole fleet; it installs nothing, and changes nothing",
    "restore": "the steps of a restore, which its playbooks call one by one with tasks_from",
    "operation": "what an operator's playbook does first and last, with tasks_from",
}

#: How many defaults one comment may speak of.
FEW = 4

roles = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


@roles
def test_a_role_has_all_of_its_parts(role: Path) -> None:
    parts = ["README.md", "defaults/main.yml", "meta/main.yml", "meta/argument_specs.yml"]
    if role.name not in OTHER_STEPS:
        parts += ["tasks/main.yml", *(f"tasks/{step}.yml" for step in STEPS)]
    assert [part for part in parts if not (role / part).is_file()] == []


@roles
def test_a_role_takes_its_steps_in_order(role: Path) -> None:
    if role.name in OTHER_STEPS:
        assert not (role / "tasks" / "configure.yml").is_file(), f"{role.name} has steps after all"
        return
    called = [Path(task.get(action, "")).stem for task in read(role / "tasks" / "main.yml") for action in CALLS]
    assert [step for step in called if step in STEPS] == list(STEPS)


def entry_points(role: Path) -> dict[str, Any]:
    specs = contents(role / "meta" / "argument_specs.yml").get("argument_specs", {})
    assert isinstance(specs, dict)
    return specs


def options(role: Path) -> dict[str, Any]:
    """The inputs of all of the role's entry points by name."""
    found: dict[str, Any] = {}
    for entry in entry_points(role).values():
        found |= entry.get("options", {})
    return found


@roles
def test_a_roles_argument_specs_name_just_its_defaults_and_what_must_be_given(role: Path) -> None:
    given = {name for name, option in options(role).items() if option.get("required")}
    assert set(options(role)) - given == set(contents(role / "defaults" / "main.yml"))
    assert given & set(contents(role / "defaults" / "main.yml")) == set(), "required, yet with a default"


@roles
def test_a_roles_argument_specs_give_the_defaults_that_it_has(role: Path) -> None:
    defaults = contents(role / "defaults" / "main.yml")
    for name, option in options(role).items():
        value = defaults.get(name)
        if "default" in option:
            assert option["default"] == value, name
        elif value not in (None, "", [], {}) and "{{" not in str(value):
            pytest.fail(f"{name}: the default {value!r} is missing in meta/argument_specs.yml")


@roles
def test_an_entry_point_of_the_argument_specs_is_a_task_file(role: Path) -> None:
    missing = [name for name in entry_points(role) if not (role / "tasks" / f"{name}.yml").is_file()]
    # Where playbooks call the steps one by one, `main` says what all of them take.
    assert set(missing) <= ({"main"} if role.name in OTHER_STEPS else set())


@roles
def test_every_option_says_what_it_does_and_of_which_type_it_is(role: Path) -> None:
    silent = [name for name, option in options(role).items() if not (option.get("description") and option.get("type"))]
    assert silent == []


@roles
def test_every_default_has_a_comment_for_a_person(role: Path) -> None:
    """Right above it, or above the few of a group that it speaks of together."""
    unexplained = []
    since_comment = FEW + 1
    for line in (role / "defaults" / "main.yml").read_text().splitlines():
        if line.startswith("# "):
            since_comment = 0
        elif not line.strip():
            since_comment = FEW + 1
        elif re.match(r"\w+:", line):
            since_comment += 1
            if since_comment > FEW:
                unexplained.append(line)
    assert unexplained == []


@roles
def test_every_input_begins_with_the_roles_name(role: Path) -> None:
    inputs = contents(role / "defaults" / "main.yml")
    assert [name for name in inputs if not name.startswith(f"{role.name}_")] == []


@roles
def test_every_constant_begins_with_the_roles_name_too(role: Path) -> None:
    for path in role.glob("vars/*.yml"):
        assert [name for name in contents(path) if not name.startswith((f"__{role.name}_", f"{role.name}_"))] == []


@roles
def test_a_readme_names_inputs_that_there_are(role: Path) -> None:
    """Every word of the README that looks like a variable of the role is one."""
    known = "\n".join(path.read_text() for part in ("defaults", "vars", "meta", "tasks") for path in role.glob(f"{part}/*.yml"))
    named = set(re.findall(rf"`({role.name}_\w+)`", (role / "README.md").read_text()))
    assert [name for name in sorted(named) if not re.search(rf"\b{name}\b", known)] == []
