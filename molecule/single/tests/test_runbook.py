"""The runbook's commands run on the fleet, in check mode: each ends well and changes nothing."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from conftest import ROOT, Fleet

sys.path.insert(0, str(ROOT / "tests" / "policy"))
from commands import Command, commands
from repository import PLAYBOOKS, contents

#: Playbooks that are refused on a fleet at rest, as they should be, and what they wait for. Tests of their own give them that.
NEEDS = {
    "drill.yml": "a backup",
    "hotfix.yml": "a signing key, or a hotfix in force",
    "order-life.yml": "an order of that name",
    "postmortem.yml": "something that happened",
    "restore.yml": "a backup",
}
GIVEN = contents(ROOT / "molecule" / "single" / "given.yml")["given"]
#: Variables that ask for what this fleet does not have: a rollout in progress, another release, an older backup, a file, a patch.
ELSEWHERE = {"action", "release_to", "release_force_reason", "restore_from", "restore_age_identity"} | {
    "hotfix_file",
    "hotfix_version",
    "hotfix_action",
}


def variables(words: Sequence[str]) -> dict[str, str]:
    """The variables of a command's `-e`."""
    given = [after for word, after in pairwise(words) if word == "-e"]
    return dict(pair.split("=", 1) for pair in given if "=" in pair)


def playbook_of(command: Command) -> str:
    return next(word for word in command.words if word.endswith(".yml"))


def shown() -> list[Command]:
    """The runbook's commands that this fleet can be asked for, once each, the one with the fewest words of a playbook first."""
    found = {
        command.words: command
        for command in commands()
        if command.words[0] == "ansible-playbook"
        and command.path.parent == ROOT / "docs" / "runbook"
        and playbook_of(command) in {path.name for path in PLAYBOOKS}
        and not command.named
        and "new_nodes" not in command.words
        and not ELSEWHERE & variables(command.words).keys()
    }
    return sorted(found.values(), key=lambda one: (playbook_of(one), len(one.words)))


def chosen() -> Iterator[ParameterSet]:
    """All of them; in an ordinary run the first one of each playbook that does not go over every role of the host."""
    before = ""
    for command in shown():
        playbook = playbook_of(command)
        ordinary = playbook not in (before, "site.yml", *NEEDS)
        yield pytest.param(command, id=str(command), marks=[] if ordinary else pytest.mark.long)
        before = playbook


def test_every_playbook_has_a_command_that_is_run_or_has_a_reason_why_not() -> None:
    run = {playbook_of(command) for command in shown()}
    assert {path.name for path in PLAYBOOKS} - run <= NEEDS.keys()


@pytest.fixture(scope="module")
def served(fleet: Fleet) -> str:
    return fleet.served()[0].rpartition("-")[0]


@pytest.mark.parametrize("command", list(chosen()))
def test_a_command_of_the_runbook_is_true_in_check_mode(fleet: Fleet, served: str, command: Command) -> None:
    words = list(command.words[1:])
    # The page's inventory is an example; this fleet stands for it, and has a host and a version of its own.
    for option in ("-i", "--ask-vault-pass"):
        while option in words:
            at = words.index(option)
            del words[at : at + (2 if option == "-i" else 1)]
    words = [f"release_version={served}" if word.startswith("release_version=") else word for word in words]
    words = [re.sub(r"\b(app|data)\d(,(app|data)\d)*\b", "bot1", word) for word in words]
    words.remove(playbook_of(command))
    done = fleet.play(playbook_of(command), *words, *({"--check", "--diff"} - set(words)))
    assert done.code == 0, done.output


@pytest.mark.parametrize("playbook", NEEDS)
def test_a_playbook_whose_command_waits_for_something_says_in_check_mode_what_it_would_do(fleet: Fleet, playbook: str) -> None:
    done = fleet.play(playbook, "--check", "--diff", "-e", json.dumps(GIVEN[playbook]))
    assert done.code == 0, done.output


def test_a_patch_release_walks_in_shorter_stages(fleet: Fleet, source: Callable[..., Path]) -> None:
    words = ("-e", "hotfix_version=0.1.4", "-e", f"release_source={source('0.1.4')}", "--check")
    done = fleet.play("hotfix.yml", *words)
    assert done.code == 0, done.output
    stage = "looked at for 15 s at least and 600 s at most, then rollback"
    assert " ".join(done.output.split()).count(stage) == 3, done.output
