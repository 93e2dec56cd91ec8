"""What every play keeps to, and that the links at the root are the playbooks themselves."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from repository import PLAYBOOKS, ROOT, Item, contents, files, plays

#: Of the environment that runs the tests.
ANSIBLE_PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"


@pytest.mark.parametrize("play", plays(), ids=str)
def test_a_play_stops_for_all_hosts_at_the_first_failure(play: Item) -> None:
    assert play.keys.get("any_errors_fatal") is True, f"{play}: any_errors_fatal: true"
    assert play.keys.get("max_fail_percentage") == 0, f"{play}: max_fail_percentage: 0"


def test_there_are_plays_to_check() -> None:
    assert {path.name for path in PLAYBOOKS} >= {"site.yml", "preflight.yml", "deploy.yml", "update-lb.yml", "release-status.yml"}
    assert len(plays()) > len(PLAYBOOKS)


def test_every_playbook_has_its_link_at_the_root_and_every_link_its_playbook() -> None:
    links = {path.name: path for path in ROOT.glob("*.yml") if path.is_symlink()}
    assert set(links) == {path.name for path in PLAYBOOKS}
    assert {name: str(link.readlink()) for name, link in links.items()} == {name: f"playbooks/{name}" for name in links}


def test_no_playbook_lies_at_the_root_itself() -> None:
    assert [path.name for path in ROOT.glob("*.yml") if not path.is_symlink() and not path.name.startswith(".")] == []


def listed_tasks(*playbooks: str) -> str:
    """What ansible-playbook would do for each, as it lists it, whatever path it was called by."""
    ran = subprocess.run(
        [str(ANSIBLE_PLAYBOOK), "--list-tasks", *playbooks], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return re.sub(r"^playbook: (?:playbooks/)?", "playbook: ", ran.stdout, flags=re.MULTILINE)


def test_a_playbook_has_the_same_plays_and_tasks_from_the_root_as_from_playbooks() -> None:
    names = [path.name for path in PLAYBOOKS]
    from_root = listed_tasks(*names)
    assert from_root.count("TAGS:") > len(names)
    assert from_root == listed_tasks(*(f"playbooks/{name}" for name in names))


PROBE = """
- name: Write down every variable's name, and the values of those that need no template
  hosts: all
  connection: local
  gather_facts: false
  tasks:
    - name: Write it down
      ansible.builtin.copy:
        content: "{{ {'names': query('ansible.builtin.varnames', '.+') | sort,
                      'values': dict(literals | zip(query('ansible.builtin.vars', *literals))),
                      'template': lookup('ansible.builtin.first_found', 'config.yaml.j2', paths=['templates'])} | to_json }}"
        dest: "{{ answers }}/{{ inventory_hostname }}.json"
        mode: "0600"
"""


def literal_names() -> Iterator[str]:
    """The variables shared by every inventory whose values are no templates."""
    for path in sorted((ROOT / "group_vars" / "all").glob("*.yml")):
        for name, value in contents(path).items():
            if "{{" not in json.dumps(value):
                yield name


def seen_by_a_play(tree: Path, playbook: str, answers: Path, literals: list[str]) -> dict[str, Any]:
    """What the probe finds on each host when it is called by this path."""
    answers.mkdir()
    extra = json.dumps({"answers": str(answers), "literals": literals, "ansible_python_interpreter": sys.executable})
    ran = subprocess.run(
        [str(ANSIBLE_PLAYBOOK), playbook, "--extra-vars", extra],
        cwd=tree,
        env={**os.environ, "ANSIBLE_CONFIG": str(tree / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return {path.stem: json.loads(path.read_text()) for path in answers.glob("*.json")}


def test_a_playbook_sees_the_same_variables_and_templates_from_the_root_as_from_playbooks(tmp_path: Path) -> None:
    """The repository, with one more playbook: linked at the root as every other, and run by both paths."""
    tree = tmp_path / "repository"
    (tree / "playbooks").mkdir(parents=True)
    for path in ROOT.iterdir():
        if path.name in {"ansible.cfg", "group_vars", "inventories", "plugins", "roles", "templates"}:
            (tree / path.name).symlink_to(path)
    for path in (ROOT / "playbooks").iterdir():
        if path.is_symlink():
            shutil.copy(path, tree / "playbooks" / path.name, follow_symlinks=False)
    (tree / "playbooks" / "probe.yml").write_text(PROBE)
    (tree / "probe.yml").symlink_to("playbooks/probe.yml")

    literals = list(literal_names())
    from_root = seen_by_a_play(tree, "probe.yml", tmp_path / "root", literals)
    from_playbooks = seen_by_a_play(tree, "playbooks/probe.yml", tmp_path / "playbooks", literals)

    assert "redis_port" in literals
    assert set(from_root) >= {"lb1", "app1", "data1", "mon1"}
    for host, seen in from_root.items():
        assert set(seen["values"]) == set(literals), host
        assert Path(seen.pop("template")).resolve() == ROOT / "templates" / "config.yaml.j2"
        assert Path(from_playbooks[host].pop("template")).resolve() == ROOT / "templates" / "config.yaml.j2"
    assert from_root == from_playbooks


LAB = re.compile(r"\blab(?:_\w+)?\b", re.IGNORECASE)


def code_of(path: Path) -> Iterator[tuple[int, str]]:
    """A file's lines without their comments."""
    comment = re.compile(r"\{#.*?#\}|(?:^|\s)#.*$")
    for number, line in enumerate(path.read_text().splitlines(), 1):
        yield number, comment.sub("", line)


def test_no_play_role_or_plugin_knows_that_it_runs_in_the_lab() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files(".yml", ".j2", ".py", ".cfg")
        if path.relative_to(ROOT).parts[0] in {"roles", "playbooks", "plugins", "group_vars", "templates"}
        for number, line in code_of(path)
        if LAB.search(line)
    ]
    assert found == []
