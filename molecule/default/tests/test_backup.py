"""Backups are taken, proved, and restored: what was decided before comes back, what was decided after is told as lost."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import APPS, LAB, ROOT, SCENARIO, STATE, Fleet, on_host
from test_orders import order, post
from test_paper_venue import within

BACKUPS = ROOT / ".backups" / SCENARIO.joinpath("inventory").name
COPIES = "/var/backups/trading-bot/copies"
FIGURES = "/var/lib/trading-bot-metrics/backup-copies.prom"


def backups() -> list[str]:
    return [made["name"] for made in json.loads(on_host("data1", "trading-bot-backup list"))["backups"]]


def sent(fleet: Fleet, name: str, count: int) -> Path:
    """The log of orders that were all answered."""
    load = fleet.load(rate=50, count=count, name=name)
    assert load.finish()["failed"] == 0
    return load.log


def ledger(fleet: Fleet, *more: str) -> dict[str, Any]:
    """What verify-ledger says, from here."""
    done = subprocess.run(
        [
            *("trading-bot", "verify-ledger", "--redis", f"redis://{fleet.private['data1']}:6379/0"),
            *("--redis-username", "trading_bot", "--redis-password-file", str(STATE / "secrets/redis_trading_bot")),
            *more,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return dict(json.loads(done.stdout))


def test_check_mode_takes_no_backup(fleet: Fleet) -> None:
    before = backups()
    for playbook in ("backup.yml", "restore.yml", "drill.yml"):
        run = fleet.play(playbook, "--check", "--diff")
        assert (run.code, set(run.changed.values())) == (0, {0}), run.output
    assert backups() == before


def test_the_timer_is_set() -> None:
    assert on_host("data1", "systemctl is-active trading-bot-backup.timer") == "active"


def taken_by_the_timer() -> str:
    """The name of a backup that the timer's service took, once the other host has it."""
    on_host("data1", "systemctl start trading-bot-backup.service")
    name = backups()[-1]
    taken = datetime.strptime(name[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    figure = f'trading_backup_copied_timestamp_seconds{{of="data1"}} {taken:.0f}'
    within(30, lambda: figure in on_host("mon1", f"cat {FIGURES} || true"), "the other host keeps a copy, and tells of it")
    return name


def test_what_the_timer_takes_is_on_another_host_out_of_its_senders_reach_and_is_proved(fleet: Fleet) -> None:
    sent(fleet, "before-copy", 10)
    name = taken_by_the_timer()
    told = on_host("mon1", f"stat --format='%a %U %n' {COPIES} {COPIES}/{name} {COPIES}/{name}.sha256").splitlines()
    assert told == [f"700 root {COPIES}", f"600 root {COPIES}/{name}", f"600 root {COPIES}/{name}.sha256"]
    assert on_host("mon1", "find /var/lib/trading-bot-copies/data1 -type f") == ""
    digest = on_host("data1", f"sha256sum /var/backups/trading-bot/{name}").split()[0]
    assert on_host("mon1", f"sha256sum {COPIES}/{name}").split()[0] == digest

    ours = "/etc/trading-bot-backup"
    ssh = f"ssh -F /dev/null -i {ours}/id_ed25519 -o BatchMode=yes -o UserKnownHostsFile={ours}/known_hosts"
    who = f"trading-backup@{fleet.private['mon1']}"
    for command, why in (
        ([*ssh.split(), who, "ls /"], "does not run rsync"),
        (["rsync", "--rsh", ssh, f"{who}:{name}", "/tmp/"], "reading from write-only server is not allowed"),
        (["rsync", "--rsh", ssh, "--recursive", "--delete", "/etc/nats/", f"{who}:"], "--delete has been disabled"),
        ([*ssh.split(), "-W", f"{fleet.private['mon1']}:22", who], "administratively prohibited"),
    ):
        refused = subprocess.run(["docker", "exec", f"{LAB}-data1", *command], capture_output=True, text=True, check=False)
        assert refused.returncode != 0, command
        assert why in refused.stderr, refused.stderr

    drill = fleet.play("drill.yml")
    assert drill.code == 0, drill.output
    (BACKUPS / name).unlink()
    assert "verify-ledger is clean" in drill.output


@pytest.mark.long
def test_a_new_data_host_gets_what_the_old_one_had_at_its_backup_and_the_rest_is_told_as_lost(fleet: Fleet) -> None:
    sent(fleet, "before-backup", 100)
    # Nobody has run backup.yml.
    name = taken_by_the_timer()
    venue = f"http://{fleet.private['mon1']}:9200"
    had = ledger(fleet)["orders"]
    sent(fleet, "after-backup", 50)

    refused = fleet.play("restore.yml")
    assert refused.code != 0
    assert "-e restore_confirm=data1" in refused.output
    assert re.search(r"until \S+ is not in the backup: \d+ s", refused.output), refused.output

    # As the runbook has it: no instance may serve from an empty ledger, and the new host takes the old one's place.
    for host in APPS:
        on_host(host, "systemctl stop trading-bot")
    subprocess.run(["docker", "rm", "--force", "--volumes", f"{LAB}-data1"], check=True, capture_output=True)
    subprocess.run(["docker", "volume", "rm", f"{LAB}-data1-docker"], check=True, capture_output=True)
    for playbook in ("lab/create.yml", "site.yml"):
        made = fleet.play(playbook, *(["-l", "data1"] if playbook == "site.yml" else []))
        assert made.code == 0, made.output
    run = fleet.play("restore.yml", "-e", "restore_resume=true")
    assert run.code == 0, run.output
    assert f"{name} (from mon1)" in " ".join(run.output.split())
    assert "verify-ledger is clean" in run.output
    assert re.search(r"Recovery took \d+\.\d s", run.output)
    assert re.search(r"until \S+ is not in the backup: \d+ s", " ".join(run.output.split())), run.output
    assert had <= ledger(fleet)["orders"] < had + 50

    assert ledger(fleet, "--venue", venue)["differences"] > 0, "the venue has what was sent after the backup"
    sent(fleet, "after-backup", 50)
    within(30, lambda: ledger(fleet, "--venue", venue)["ok"], "what is sent again is back, with its executions, once each")
    assert ledger(fleet)["orders"] == had + 50


@pytest.mark.long
def test_what_was_decided_since_a_backup_is_given_up_on_the_same_host_and_trading_stays_halted(fleet: Fleet) -> None:
    sent(fleet, "before-giving-up", 20)
    assert fleet.play("backup.yml", "-l", "data1").code == 0
    had = ledger(fleet)["orders"]
    sent(fleet, "since-backup", 50)
    run = fleet.play("restore.yml", "-e", "restore_confirm=data1")
    assert run.code == 0, run.output
    assert re.search(r"until \S+ is not in the backup: \d+ s", " ".join(run.output.split())), run.output
    assert "Trading is HALTED" in " ".join(run.output.split())
    assert post(fleet, order()).status_code == 503
    assert had <= ledger(fleet)["orders"] < had + 50
    assert fleet.play("halt.yml", "-e", "halt_action=resume", "-e", "halt_reason=compared").code == 0
    sent(fleet, "since-backup", 50)
    venue = f"http://{fleet.private['mon1']}:9200"
    within(30, lambda: ledger(fleet, "--venue", venue)["ok"], "what is sent again is back, with its executions, once each")
    assert ledger(fleet)["orders"] == had + 50


def test_a_damaged_backup_is_refused_before_anything_is_stopped(fleet: Fleet) -> None:
    assert fleet.play("backup.yml", "-l", "data1").code == 0
    path = BACKUPS / backups()[-1]
    data = bytearray(path.read_bytes())
    data[3000] ^= 0xFF
    path.write_bytes(data)
    try:
        run = fleet.play("restore.yml", "-e", "restore_confirm=data1")
    finally:
        path.unlink()
    assert run.code != 0
    assert f"{path.name} is damaged" in run.output, run.output
    assert "Stop the instances" not in run.output
