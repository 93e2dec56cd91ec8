"""A directory of backups: what is in it, whether one is whole, and what is removed; and what playbooks ask of their names."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError
from plugin_testing import PLUGINS, RunModule, load

FILTERS = load(PLUGINS / "filter" / "backups.py").FilterModule().filters()


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """Four hours of encrypted backups, which only the checksum beside them can be compared with."""
    for hour in range(4):
        path = tmp_path / f"20260101T0{hour}0000Z-data1.tar.age"
        path.write_text(f"backup {hour}")
        path.with_name(f"{path.name}.sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    return tmp_path


def names(*hours: int) -> list[str]:
    return [f"20260101T0{hour}0000Z-data1.tar.age" for hour in hours]


def test_what_is_there_is_told_and_nothing_removed_unless_asked(run_module: RunModule, shelf: Path) -> None:
    found = run_module("backup_store", {"path": str(shelf), "host": "data1", "check": names(3)[0]})
    assert (found["changed"], found["backups"], found["removed"]) == (False, names(0, 1, 2, 3), [])


def test_the_surplus_is_removed_with_its_checksums_and_a_second_run_changes_nothing(run_module: RunModule, shelf: Path) -> None:
    wanted = {"path": str(shelf), "host": "data1", "keep_hourly": 2}
    told = run_module("backup_store", wanted, check=True)
    assert (told["changed"], told["removed"], len(list(shelf.iterdir()))) == (True, names(0, 1), 8)
    assert run_module("backup_store", wanted)["removed"] == names(0, 1)
    assert sorted(path.name for path in shelf.iterdir()) == sorted(names(2, 3) + [f"{name}.sha256" for name in names(2, 3)])
    assert not run_module("backup_store", wanted)["changed"]


def test_one_that_is_damaged_fails(run_module: RunModule, shelf: Path) -> None:
    (shelf / names(3)[0]).write_text("something else")
    told = run_module("backup_store", {"path": str(shelf), "host": "data1", "check": names(3)[0]})
    assert "is damaged: its SHA-256 is" in told["msg"]


def test_a_directory_that_is_missing_has_none(run_module: RunModule, tmp_path: Path) -> None:
    assert run_module("backup_store", {"path": str(tmp_path / "none"), "host": "data1"})["backups"] == []


def test_playbooks_choose_by_name_and_hear_why_not() -> None:
    assert FILTERS["backup_chosen"](names(0, 1), "data1", "newest") == names(1)[0]
    assert FILTERS["backup_taken"](names(1)[0]) == 1_767_229_200_000
    with pytest.raises(AnsibleFilterError, match="no backup of lb1"):
        FILTERS["backup_chosen"](names(0), "lb1", "newest")
    with pytest.raises(AnsibleFilterError, match="expected a name such as"):
        FILTERS["backup_taken"]("backup.tar")


def test_the_last_moment_known_is_that_of_the_ledgers_last_line() -> None:
    assert FILTERS["backup_known_until"]({"ledger": {"until": 7}, "streams": None}) == 7
    assert FILTERS["backup_known_until"]({"ledger": None}) == FILTERS["backup_known_until"]({}) == 0


def test_a_new_backup_is_told_in_a_sentence() -> None:
    made = {
        "name": "x.tar",
        "size": 2_300_000,
        "redis": None,
        "streams": {"TRADING_EVENTS": {"last_seq": 9}},
        "files": ["/etc/nats"],
    }
    assert FILTERS["backup_said"](made) == "x.tar, 2.3 MB: TRADING_EVENTS up to 9, 1 directories"
    assert FILTERS["backup_said"]({"skipped": True, "why": "it is empty"}) == "No backup: it is empty"
