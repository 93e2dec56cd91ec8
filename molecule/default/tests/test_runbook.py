"""The runbook's commands run on the fleet, in check mode: each ends well and changes nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise

import pytest
from conftest import ROOT, Fleet

sys.path.insert(0, str(ROOT / "tests" / "policy"))
from commands import Command, commands

#: Variables that name what a fleet at rest does not have, so that the command is refused there, as it should be.
NEEDS = {
    "action": "a rollout in progress",
    "release_force_reason": "a release that is marked bad",
    "release_to": "a release of that name on disk",
    "restore_from": "a backup",
    "order_id": "an order of that name",
    "postmortem_from": "something that happened",
    "hotfix_file": "a signed file",
    "hotfix_version": "a patch release",
}


def variables(words: Sequence[str]) -> dict[str, str]:
    """The variables of a command's `-e`."""
    given = [after for word, after in pairwise(words) if word == "-e"]
    return dict(pair.split("=", 1) for pair in given if "=" in pair)


def chosen() -> list[Command]:
    """One command of the runbook for each playbook and set of variables; where values alone differ, the first."""
    found: dict[tuple[object, ...], Command] = {}
    for command in commands():
        if command.words[0] != "ansible-playbook" or command.named or command.path.parent != ROOT / "docs" / "runbook":
            continue
        names = variables(command.words)
        if not NEEDS.keys() & names.keys():
            playbook = next(word for word in command.words if word.endswith(".yml"))
            found.setdefault((playbook, *sorted(names)), command)
    return list(found.values())


def test_there_is_a_command_for_nearly_every_playbook() -> None:
    run = {word for command in chosen() for word in command.words if word.endswith(".yml")}
    rest = {path.name for path in (ROOT / "playbooks").glob("*.yml")} - run
    assert rest <= {"restore.yml", "order-life.yml", "postmortem.yml", "hotfix.yml"}


@pytest.fixture(scope="module")
def served(fleet: Fleet) -> str:
    return str(fleet.status()["served"]["version"])


@pytest.mark.parametrize("command", chosen(), ids=str)
def test_a_command_of_the_runbook_is_true_in_check_mode(fleet: Fleet, served: str, command: Command) -> None:
    words = list(command.words[1:])
    # The page's inventory is an example; this fleet stands for it, and has a version of its own.
    for option in ("-i", "--ask-vault-pass"):
        while option in words:
            at = words.index(option)
            del words[at : at + (2 if option == "-i" else 1)]
    words = [f"release_version={served}" if word.startswith("release_version=") else word for word in words]
    playbook = words.pop(next(at for at, word in enumerate(words) if word.endswith(".yml")))
    done = fleet.play(playbook, *words, *([] if "--check" in words else ["--check"]))
    assert done.code == 0, done.output
