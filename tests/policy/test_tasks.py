"""What every task keeps to: names, reasons, secrets, checks before a file lands."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from repository import OWN_ACTIONS, ROLES, ROOT, Item, contents, tasks

FREE_FORM = {f"ansible.builtin.{name}" for name in ("command", "shell", "raw", "script")}
TEMPLATES = {"ansible.builtin.template", "ansible.builtin.copy"}

TASKS = tasks()


def with_action(*actions: str) -> list[Item]:
    return [task for task in TASKS if task.action in actions]


def arguments(task: Item) -> dict[str, Any]:
    value = task.keys[task.action] if task.action else None
    return value if isinstance(value, dict) else {}


def test_there_are_tasks_to_check() -> None:
    assert len(TASKS) > 100
    assert with_action(*FREE_FORM)
    assert with_action(*TEMPLATES)


def test_every_task_calls_a_module_by_its_full_name_or_one_of_the_projects_own() -> None:
    short = [task for task in TASKS if task.action and task.action.count(".") < 2]
    assert [f"{task}: {task.action}" for task in short if task.action not in OWN_ACTIONS] == []


@pytest.mark.parametrize("task", with_action(*FREE_FORM), ids=str)
def test_a_task_that_runs_a_command_says_why_and_when_it_changes_something(task: Item) -> None:
    assert task.comments, f"{task}: a comment that says why no module does it"
    assert "changed_when" in task.keys, f"{task}: changed_when"


@pytest.mark.parametrize("task", with_action("ansible.builtin.fetch"), ids=str)
def test_what_is_fetched_is_not_read_as_root(task: Item) -> None:
    """As root, fetch reads a file whole into memory. A task's become does not undo the inventory's."""
    assert (task.keys.get("vars") or {}).get("ansible_become") is False


def test_a_task_that_ignores_errors_asks_a_host_that_may_be_down_and_keeps_what_it_says() -> None:
    ignoring = [task for task in TASKS if task.keys.get("ignore_errors")]
    assert [str(task) for task in ignoring if not (task.keys.get("ignore_unreachable") and task.keys.get("register"))] == []


@pytest.mark.parametrize("task", [task for task in TASKS if task.keys.get("ignore_unreachable")], ids=str)
def test_a_host_that_is_down_and_may_be_stops_no_other(task: Item) -> None:
    """Where any error is fatal, and in a task that runs once, one that is ignored as unreachable is fatal all the same."""
    fatal = task.keys.get("any_errors_fatal") is not False or task.keys.get("run_once")
    assert not fatal or task.keys.get("ignore_errors")


def test_a_task_that_cannot_fail_says_why_beside_it() -> None:
    silent = [task for task in TASKS if task.keys.get("failed_when") is False and not task.comments]
    assert [str(task) for task in silent] == []


# Secrets

#: Where a secret sits: the names of variables and keys that hold one, but not those that name a file or a hash of it.
SECRET = re.compile(r"\b(?:vault_\w+|\w*(?:password|secret|token)s?)\b", re.IGNORECASE)
#: What may be told of a secret variable: the users' names, how many there are, whether it is there.
HARMLESS = re.compile(r"\b\w+ (?:\| map\(attribute='name'\)|\| length|is (?:not )?defined)")
#: What a file of the inventory or of the role takes from a secret it hands on.
VARIABLE_FILES = [
    *sorted((ROOT / "group_vars").rglob("*.yml")),
    *(path for role in ROLES for part in ("defaults", "vars") for path in sorted(role.glob(f"{part}/*.yml"))),
]


def expressions(value: Any) -> Iterator[str]:
    """The templates in a value, where variables are named."""
    if isinstance(value, str):
        yield from (found.group(1) for found in re.finditer(r"\{[{%](.*?)[%}]\}", value, re.DOTALL))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from expressions(item)
    elif isinstance(value, list):
        for item in value:
            yield from expressions(item)


def names(text: str) -> set[str]:
    """The variables that a template's text mentions, without its literals."""
    return set(re.findall(r"\b[A-Za-z_]\w*\b", re.sub(r"'[^']*'|\"[^\"]*\"", "", text)))


def secret_variables() -> set[str]:
    """Variables with a secret in them: by their own name, or because they are made of one that has."""
    mentions: dict[str, set[str]] = {}
    for path in VARIABLE_FILES:
        for name, value in contents(path).items():
            mentions.setdefault(name, set()).update(word for text in expressions(value) for word in names(text))
    secret = {name for words in (mentions, *mentions.values()) for name in words if SECRET.fullmatch(name)}
    while True:
        more = {name for name, words in mentions.items() if words & secret} - secret
        if not more:
            return secret
        secret |= more


SECRETS = secret_variables()


def masked_arguments(module: str) -> set[str]:
    """The arguments that one of the project's modules never shows: those with no_log in its argument_spec."""
    path = ROOT / "plugins" / "modules" / f"{module}.py"
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())) if path.is_file() else ():
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Dict):
                    options = {k.value: v for k, v in zip(value.keys, value.values, strict=True) if isinstance(k, ast.Constant)}
                    no_log = options.get("no_log")
                    if isinstance(no_log, ast.Constant) and no_log.value is True:
                        found.add(str(key.value))
    return found


def shows(task: Item) -> set[str]:
    """The secret variables whose value the task's result could show."""
    value = task.keys[task.action] if task.action else None
    shown: Any = [value, task.keys.get("loop")]
    if isinstance(value, dict) and task.action in OWN_ACTIONS:
        masked = masked_arguments(task.action)
        shown = [{key: item for key, item in value.items() if key not in masked}, task.keys.get("loop")]
    if task.action == "ansible.builtin.assert" and isinstance(value, dict):
        # A condition that does not hold is shown as it is written; its messages are templates like any other.
        shown = [value.get("fail_msg"), value.get("success_msg")]
    texts = [HARMLESS.sub("", text) for text in expressions(shown)]
    return {word for text in texts for word in names(text)} & SECRETS


def hidden(task: Item) -> bool:
    """no_log, for good or until somebody debugs with -vvvv."""
    return task.keys.get("no_log") in (True, "{{ ansible_verbosity < 4 }}")


def test_a_task_that_handles_a_secret_does_not_log_it() -> None:
    """Its arguments, its loop, and what a template of it says.

    Environment variables are left out: no result shows them, and no_log would hide why a command failed.
    """
    assert {"vault_redis_operator_password", "redis_users", "nats_users", "release_secrets", "trading_bot_secrets"} <= SECRETS
    assert [f"{task}: {', '.join(sorted(shows(task)))}" for task in TASKS if shows(task) and not hidden(task)] == []


def test_a_template_with_a_secret_in_it_never_shows_as_a_difference() -> None:
    """Whichever variables the task itself mentions: what matters is what the template does."""
    checked = 0
    for task in with_action("ansible.builtin.template"):
        role = next((path for path in ROLES if path in task.path.parents), None)
        source = role / "templates" / str(arguments(task)["src"]) if role else None
        if source is None or not source.is_file():
            continue
        mentioned = {word for text in expressions(source.read_text()) for word in names(text)} & SECRETS
        if mentioned:
            checked += 1
            assert task.keys.get("diff") is False or task.keys.get("no_log") is True, f"{task}: {', '.join(sorted(mentioned))}"
    assert checked > 0


# Files land valid

#: Files that no program can check before they land, by where they go.
NO_VALIDATOR = {
    r"^/etc/systemd/.*\.d/": "a drop-in: systemd-analyze wants the whole unit, and reports what the service step would find",
    r"^/etc/security/limits\.d/": "read by PAM at a login; it has no check",
    r"^/etc/sysctl\.d/": "the handler that applies it fails on a wrong key",
    r"^\{\{ __base_time_sync_files": "read by the time service at its start, which the handler restarts",
    r"^/etc/apt/sources\.list\.d/": "apt reads it in the very next task",
    r"_password$|token_file \}\}$": "a line with a secret; what reads it says so if that is wrong",
    r"secrets_dir \}\}/\{\{ item\.key \}\}$": "a line with a secret; what reads it says so if that is wrong",
    r"\.(env|map)$": "plain keys and values",
    r"^\{\{ __postmortem_file \}\}$": "a page for people",
    r"^\{\{ item\.dest \}\}$": "Grafana's settings, which it alone reads; the service step asks whether it is healthy",
    r"__restore_data \}\}/redis\.conf$": "of a scratch server, which the next task starts with it",
    r"/\{\{ item\.name \}\}$": "plain keys and values",
}


def test_a_file_that_a_program_can_check_is_checked_before_it_lands() -> None:
    unchecked = [
        task
        for task in with_action(*TEMPLATES)
        if "roles" in task.path.parts
        and ("template" in str(task.action) or "content" in arguments(task))
        and "validate" not in arguments(task)
        and task.keys.get("check_mode") is not True  # shows a difference and writes nothing
        and not any(re.search(pattern, str(arguments(task)["dest"])) for pattern in NO_VALIDATOR)
    ]
    assert [str(task) for task in unchecked] == []
