"""A name that nothing reads ends the run before it begins, with the names that were perhaps meant."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.module_utils.mistyped import names_in, tags_in, unknown_tags, unknown_variables
from plugin_testing import ROOT

PLAY = {
    "hosts": "app",
    "serial": "{{ batch | default(1) }}",
    "vars": {"spare": 2},
    "tasks": [
        {
            "name": "Say it",
            "debug": {"msg": "{{ said.text }} {{ 'a literal' }}{% if loud is defined %}!{% endif %}"},
            "tags": "a, b",
        },
        {"block": [{"meta": "end_play", "when": ["not (canary | default(false) | bool)"], "tags": ["c"]}]},
    ],
}


def test_a_playbook_names_what_it_sets_and_what_its_templates_and_conditions_read() -> None:
    assert names_in([PLAY]) == {"batch", "spare", "said", "loud", "canary"}


def test_tags_are_those_of_tasks_at_any_depth() -> None:
    assert tags_in([PLAY]) == {"a", "b", "c"}


def test_an_unknown_variable_is_told_with_those_that_are_near_and_internal_ones_are_not_offered() -> None:
    known = {"release_version", "__relase_version", "redis_port"}
    (told,) = unknown_variables(["relase_version", "redis_port"], known)
    assert told == "There is no variable relase_version, did you mean release_version?"
    assert unknown_variables(["xyzzy"], known) == ["There is no variable xyzzy."]


def test_what_ansible_and_molecule_give_is_not_ours_to_judge() -> None:
    assert unknown_variables(["ansible_user", "molecule_yml"], set()) == []
    assert unknown_tags(["always", "notest", "molecule-notest", "molecule-idempotence-notest"], set()) == []


INVENTORY = """
all:
  vars: {own_switch: "{{ vault_own | default('') }}"}
  children: {app: {hosts: {app1: {ansible_connection: local}}}}
"""
PLAYBOOK = """
- hosts: app
  gather_facts: false
  any_errors_fatal: true
  max_fail_percentage: 0
  tasks:
    - name: Say it
      ansible.builtin.debug: {msg: "said {{ how_loud | default(1) }}"}
      tags: speaking
- import_playbook: more.yml
  when: more_of_it | default(false) | bool
"""
MORE = """
- hosts: app
  gather_facts: false
  tasks:
    - ansible.builtin.debug: {msg: "{{ even_more | default('') }}"}
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A playbook that is run with the project's settings, on a host that is this machine."""
    (tmp_path / "hosts.yml").write_text(INVENTORY)
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    (tmp_path / "more.yml").write_text(MORE)
    return tmp_path


def run(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).parent / "ansible-playbook")
    return subprocess.run(
        [program, "-i", str(tree / "hosts.yml"), str(tree / "play.yml"), *arguments],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_with_a_mistyped_variable_ends_before_its_first_task(tree: Path) -> None:
    ran = run(tree, "-e", "how_luod=2", "-e", '{"relase_version": "1"}', "--tags", "speeking")
    assert ran.returncode == 5
    assert "There is no variable how_luod, did you mean how_loud?" in ran.stderr
    assert "There is no variable relase_version, did you mean release_version" in ran.stderr
    assert "There is no tag speeking, did you mean speaking?" in ran.stderr
    assert "TASK" not in ran.stdout


def test_what_the_inventory_the_roles_and_imported_playbooks_know_may_be_given(tree: Path) -> None:
    known = "own_switch=a vault_own=b redis_port=1 more_of_it=false even_more=c ansible_verbosity=0 how_loud=7"
    ran = run(tree, "-e", known, "--tags", "speaking", "--skip-tags", "molecule-notest,notest")
    assert ran.returncode == 0, ran.stderr
    assert "said 7" in ran.stdout
