"""What the timer's service does where there is another host for copies, and where there is none."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from real_servers import program
from rendering import render

FLEET: dict[str, Any] = {
    "inventory_hostname": "data1",
    "private_address": "10.0.0.61",
    "groups": {"redis": ["data1"], "nats": ["data1"]},
    "hostvars": {"data1": {"private_address": "10.0.0.61"}, "mon1": {"private_address": "10.0.0.71"}},
    "backup_redis_password": "password-of-the-backup",
    "backup_nats_password": "password-of-the-backup",
    "backup_nats_servers": ["10.0.0.61:4222"],
}


def commands(to: str) -> list[str]:
    """What the service runs, one after the other."""
    unit = render("backup", "backup.service.j2", backup_push_to=to, **FLEET)
    return [line.split("/")[-1] for line in unit.splitlines() if line.startswith("ExecStart=")]


def test_a_backup_is_sent_right_after_it_was_taken() -> None:
    assert commands("mon1") == ["trading-bot-backup create", "trading-bot-backup push"]
    told = json.loads(render("backup", "backup.json.j2", backup_push_to="mon1", **FLEET))["push"]
    assert (told["to"], told["address"], told["from"], told["port"]) == ("mon1", "10.0.0.71", "10.0.0.61", 22)


@pytest.mark.parametrize("to", ["", "data1"])
def test_nothing_is_sent_where_there_is_no_other_host(to: str) -> None:
    assert commands(to) == ["trading-bot-backup create"]
    assert json.loads(render("backup", "backup.json.j2", backup_push_to=to, **FLEET))["push"] is None


def test_what_waits_for_copies_is_a_unit_that_systemd_reads(tmp_path: Path) -> None:
    unit = tmp_path / "trading-bot-copies@data1.path"
    unit.write_text(render("backup_copies", "copies.path.j2"))
    command = [program("systemd-analyze"), "verify", "--man=no", "--recursive-errors=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_rules_for_who_sends_copies_are_for_that_user_alone() -> None:
    """Outside of its block a line would be for everybody."""
    lines = [line for line in render("backup_copies", "sshd.conf.j2").splitlines() if line and not line.startswith("#")]
    assert lines[0] == "Match User trading-backup"
    assert all(line.startswith("    ") for line in lines[1:])
