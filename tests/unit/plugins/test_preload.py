"""Filters are loaded once for a run, not in each process of a task."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

FILTER = """
import os
with open(os.environ["LOADED"], "a") as file:
    file.write("x")


class FilterModule:
    def filters(self):
        return {"twice": lambda value: value * 2}
"""

PLAYBOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - {name: First, ansible.builtin.assert: {that: 2 | twice == 4}}
    - {name: Second, ansible.builtin.assert: {that: 3 | twice == 6}}
"""


def test_a_filter_is_loaded_once_for_all_tasks_and_hosts(tmp_path: Path) -> None:
    (tmp_path / "filters").mkdir()
    (tmp_path / "filters" / "own.py").write_text(FILTER)
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_FILTER_PLUGINS": str(tmp_path / "filters"),
        "LOADED": str(tmp_path / "loaded"),
    }
    done = subprocess.run(
        ["ansible-playbook", "-i", "a,b,c,", str(tmp_path / "play.yml")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok=2") == 3
    assert (tmp_path / "loaded").read_text() == "x"
