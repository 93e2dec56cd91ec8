"""Every command that a page or a playbook shows can be typed as it stands: programs, playbooks, variables, hosts, options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import PROGRAMS, Command, commands, complaint, leads_nowhere, split
from repository import ROOT, files


@pytest.mark.parametrize("command", commands(), ids=str)
def test_a_command_that_is_shown_can_be_typed(command: Command) -> None:
    assert complaint(command) == ""


@pytest.mark.parametrize("page", files(".md"), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_path_that_a_page_names_is_there(page: Path) -> None:
    spans = re.findall(r"`([\w./-]+/[\w./-]+)`", page.read_text())
    assert [span for span in spans if leads_nowhere(span)] == []


def test_there_are_commands_of_each_program_to_check() -> None:
    assert {command.words[0] for command in commands()} >= set(PROGRAMS)
    assert len(commands()) > 100


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("ansible-playbook deploi.yml", "there is no playbook deploi.yml"),
        ("ansible-playbook deploy.yml -e release_versoin=1.2.0", "deploy.yml knows no variable release_versoin"),
        ("ansible-playbook restart-service.yml -e canary_stage_min=1m", "restart-service.yml knows no variable canary_stage_min"),
        (
            "ansible-playbook release-status.yml -e release_status_format=yaml",
            "release_status_format is one of table, json, not yaml",
        ),
        ("ansible-playbook deploy.yml -l new_node", "-l new_node: there is neither a group nor a host new_node"),
        ("ansible-playbook -i inventories/stage deploy.yml", "there is no inventories/stage"),
        ("ansible-playbook deploy.yml -t traffic", "no task has the tag traffic"),
        ("ansible-playbook deploy.yml --chek", "unrecognized arguments: --chek"),
        ("ansible-playbook rollback.yml -e release_force_reason='a mistake'", "is no name=value"),
        ("make tests", "the Makefile has no target tests"),
        ("make bench NAME=order", "there is no benchmark order"),
        ("trading-bot verify", "invalid choice: 'verify'"),
        ("trading-bot load --rates 5", "trading-bot has no --rates there"),
    ],
)
def test_a_command_that_cannot_be_typed_is_told_with_the_reason(line: str, why: str) -> None:
    [words] = split(line)
    assert why in complaint(Command(ROOT / "README.md", 1, tuple(words)))


def test_a_line_of_shell_is_split_into_its_commands() -> None:
    assert split("cd app && LAB_APP_HOSTS=4 make lab  # a container") == [["cd", "app"], ["make", "lab"]]
    assert split("trading-bot load --rate 200 &") == [["trading-bot", "load", "--rate", "200"]]
