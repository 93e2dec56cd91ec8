"""The check before anything is changed, against the fleet itself."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def preflight(inventory: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the playbook as a person would."""
    return subprocess.run(
        ["ansible-playbook", "-i", inventory, "preflight.yml", *arguments],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def inventory(request: pytest.FixtureRequest) -> str:
    """The inventory that the whole run is about."""
    return str(Path(request.config.getoption("--ansible-inventory")).resolve())


def hosts(inventory: str) -> set[str]:
    """Every host of an inventory."""
    command = ["ansible", "-i", inventory, "all", "--list-hosts"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return set(listed.split()[2:])


def test_the_fleet_meets_its_requirements_and_nothing_changes(inventory: str) -> None:
    """Every host is in the table, no row says no, and no task changed anything."""
    run = preflight(inventory)
    assert run.returncode == 0, run.stdout
    rows = [[cell.strip() for cell in line.split("|")] for line in run.stdout.splitlines() if line.count(" | ") == 4]
    assert {row[0] for row in rows[1:]} == hosts(inventory)
    assert {row[4] for row in rows[1:]} <= {"yes", "accepted"}
    assert set(re.findall(r"changed=(\d+)", run.stdout)) == {"0"}


def test_every_shortfall_of_every_host_comes_at_once(inventory: str) -> None:
    """Two requirements that no host can meet give one message with two lines for each host."""
    run = preflight(inventory, "-e", "preflight_min_cpu_cores=1000 preflight_min_memory_gib=100000")
    assert run.returncode != 0
    message = run.stdout[run.stdout.index("msg: |-", run.stdout.index("FAILED!")) :]
    short = re.findall(r"^\s+(\S+): (CPU cores|memory): found", message, re.MULTILINE)
    assert sorted(short) == sorted((host, what) for host in hosts(inventory) for what in ("CPU cores", "memory"))


def test_an_unreachable_host_is_named_beside_the_others(inventory: str, tmp_path: Path) -> None:
    """A host that does not answer is a row of the table, and the others are measured all the same."""
    extra = tmp_path / "extra.yml"
    extra.write_text(
        "all: {hosts: {gone1: {ansible_connection: ssh, ansible_host: 127.0.0.1, ansible_port: 1, private_address: 192.0.2.1}}}\n"
    )
    run = preflight(inventory, "-i", str(extra))
    assert run.returncode != 0
    assert re.search(r"^\s+gone1: reachable: found no, required yes", run.stdout, re.MULTILINE)
    assert all(re.search(rf"^\s+{host}\s+\| memory", run.stdout, re.MULTILINE) for host in hosts(inventory))


def test_an_empty_group_is_an_error_and_not_a_run_that_does_nothing(tmp_path: Path) -> None:
    """An inventory without app hosts is refused before any host is asked."""
    empty = tmp_path / "hosts.yml"
    empty.write_text(
        "all: {children: {app: {hosts: {}}, lb: {hosts: {lb1: {}}}, redis: {hosts: {data1: {}}}, nats: {hosts: {data1: {}}}}}\n"
    )
    run = preflight(str(empty))
    assert run.returncode != 0
    assert "The inventory has no host in: app." in run.stdout + run.stderr
