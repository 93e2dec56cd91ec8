"""Backups that hosts send to another one: what is sent, and what that one makes of it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import backup_copies, backup_push
from ansible.module_utils.backups import BackupError, name_of
from plugin_testing import free_port, program

NOW = datetime.now(UTC).replace(microsecond=0)


def name(hours_ago: float) -> str:
    return name_of("data1", NOW - timedelta(hours=hours_ago), encrypted=True)


def put(directory: Path, *names: str) -> None:
    """Archives with their checksums, as a host writes or sends them."""
    for one in names:
        path = directory / one
        path.write_text(f"what is in {one}")
        path.with_name(f"{one}.sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {one}\n")


@pytest.fixture
def receiver(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "incoming" / "data1").mkdir(parents=True)
    (tmp_path / "copies").mkdir()
    return {
        "incoming": str(tmp_path / "incoming"),
        "directory": str(tmp_path / "copies"),
        "keep_hourly": 3,
        "keep_daily": 0,
        "metrics_file": str(tmp_path / "copies.prom"),
    }


@pytest.fixture
def incoming(receiver: dict[str, Any]) -> Path:
    return Path(receiver["incoming"]) / "data1"


@pytest.fixture
def shelf(receiver: dict[str, Any]) -> Path:
    return Path(receiver["directory"])


def listed(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# What is received


def test_what_has_come_is_taken_over_for_its_owner_alone(receiver: dict[str, Any], incoming: Path, shelf: Path) -> None:
    put(incoming, name(2), name(1))
    assert backup_copies.collect(receiver, "data1") == {"kept": [name(2), name(1)], "removed": []}
    assert listed(incoming) == []
    assert listed(shelf) == sorted([name(2), f"{name(2)}.sha256", name(1), f"{name(1)}.sha256"])
    assert {path.stat().st_mode & 0o777 for path in shelf.iterdir()} == {0o600}
    taken = f"{(NOW - timedelta(hours=1)).timestamp():.0f}"
    assert f'trading_backup_copied_timestamp_seconds{{of="data1"}} {taken}' in Path(receiver["metrics_file"]).read_text()


def test_what_is_too_old_goes_with_its_checksum_and_the_newest_never(
    receiver: dict[str, Any], incoming: Path, shelf: Path
) -> None:
    put(shelf, name(90), name(80), name(70))
    put(incoming, name(0))
    assert backup_copies.collect(receiver, "data1")["removed"] == [name(90)]
    assert listed(shelf) == sorted(one for stays in (name(80), name(70), name(0)) for one in (stays, f"{stays}.sha256"))
    assert backup_copies.collect({**receiver, "keep_hourly": 1}, "data1")["removed"] == [name(80), name(70)]


def test_a_copy_that_is_there_is_not_changed_by_one_that_comes_again(
    receiver: dict[str, Any], incoming: Path, shelf: Path
) -> None:
    put(incoming, name(1))
    backup_copies.collect(receiver, "data1")
    (incoming / name(1)).write_text("something else")
    digest = hashlib.sha256(b"something else").hexdigest()
    (incoming / f"{name(1)}.sha256").write_text(digest)
    assert backup_copies.collect(receiver, "data1")["kept"] == []
    assert (shelf / name(1)).read_text() == f"what is in {name(1)}"
    assert listed(incoming) == []


def test_what_is_damaged_or_no_backup_of_its_sender_is_refused_and_the_rest_taken(
    receiver: dict[str, Any], incoming: Path, shelf: Path
) -> None:
    future = name(-2)
    put(incoming, name(3), name(2), name(1), future, name(1).replace("data1", "lb1"), "authorized_keys")
    (incoming / name(2)).write_text("half")
    with pytest.raises(BackupError) as refused:
        backup_copies.collect(receiver, "data1")
    assert f"{name(2)} is damaged" in str(refused.value)
    assert f"{future}: it says that it is of a time to come" in str(refused.value)
    assert str(refused.value).count("no name of a backup of data1") == 2
    assert listed(shelf) == sorted([name(3), f"{name(3)}.sha256", name(1), f"{name(1)}.sha256"])
    assert listed(incoming) == [], "so that systemd does not call for them again and again"


def test_no_link_is_followed_and_no_pipe_waited_for(
    receiver: dict[str, Any], incoming: Path, shelf: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("of root")
    put(incoming, name(4), name(3), name(2))
    (incoming / name(4)).unlink()
    (incoming / name(4)).symlink_to(tmp_path / "secret")
    (incoming / f"{name(3)}.sha256").unlink()
    (incoming / f"{name(3)}.sha256").symlink_to(tmp_path / "secret")
    (incoming / name(2)).unlink()
    os.mkfifo(incoming / name(2))
    (incoming / f"{name(1)}.sha256").mkdir()
    with pytest.raises(BackupError, match=r"plain file"):
        backup_copies.collect(receiver, "data1")
    assert (listed(incoming), listed(shelf)) == ([], [])
    assert (tmp_path / "secret").read_text() == "of root"


def test_what_is_on_its_way_stays_and_what_never_became_whole_goes(receiver: dict[str, Any], incoming: Path) -> None:
    (incoming / f".{name(1)}.aBcDeF").write_text("on its way")
    (incoming / f".{name(30)}.aBcDeF").write_text("cut off")
    os.utime(incoming / f".{name(30)}.aBcDeF", (time.time() - 90000,) * 2)
    backup_copies.collect(receiver, "data1")
    assert listed(incoming) == [f".{name(1)}.aBcDeF"]


def test_what_cannot_be_written_waits_and_calls_for_nobody(receiver: dict[str, Any], incoming: Path, shelf: Path) -> None:
    put(incoming, name(1))
    # In the place where it would be written: as a full disk, an error of the system.
    (shelf / f"{name(1)}.sha256").mkdir()
    with pytest.raises(BackupError, match="Is a directory"):
        backup_copies.collect(receiver, "data1")
    assert listed(incoming) == sorted([name(1), f"{name(1)}.claimed"])
    (shelf / f"{name(1)}.sha256").rmdir()
    assert backup_copies.collect(receiver, "data1")["kept"] == [name(1)]


def test_the_command_prints_json_or_why_not(receiver: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "copies.json"
    settings.write_text(json.dumps(receiver))
    assert backup_copies.main(["collect", "data1"], settings) == 0
    assert json.loads(capsys.readouterr().out) == {"kept": [], "removed": []}
    assert backup_copies.main(["collect", "lb1"], settings) == 1
    assert "trading-bot-copies collect: " in capsys.readouterr().err


# What is sent


@pytest.fixture
def sender(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "backups").mkdir()
    return {
        "host": "data1",
        "directory": str(tmp_path / "backups"),
        "metrics_file": str(tmp_path / "backup.prom"),
        "push": {
            "to": "mon1",
            "address": "127.0.0.1",
            "port": free_port(),
            "user": "trading-backup",
            "from": "127.0.0.1",
            "key": str(tmp_path / "key"),
            "known_hosts": str(tmp_path / "known_hosts"),
        },
    }


def test_an_archive_goes_before_its_checksum_and_never_over_another(sender: dict[str, Any]) -> None:
    command = backup_push.command(sender["push"], Path("/b/x.tar"))
    assert command[-3:] == ["/b/x.tar", "/b/x.tar.sha256", "trading-backup@127.0.0.1:"]
    assert "--ignore-existing" in command
    [shell] = [word for word in command if word.startswith("--rsh=")]
    for option in ("BatchMode=yes", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes"):
        assert f" -o {option}" in shell
    assert backup_push.command({**sender["push"], "address": "fd00::1"}, Path("/b/x.tar"))[-1] == "trading-backup@[fd00::1]:"


def test_a_host_that_does_not_answer_fails_the_run_and_the_figure_says_since_when(sender: dict[str, Any], tmp_path: Path) -> None:
    program("rsync")
    put(tmp_path / "backups", name(5), name(1))
    with pytest.raises(BackupError, match=rf"{name(1)} was not sent to mon1 \(127\.0\.0\.1\): .*Connection refused"):
        backup_push.push(sender)
    oldest = f"{(NOW - timedelta(hours=5)).timestamp():.0f}"
    figures = tmp_path / "backup-pushed.prom"
    assert f"trading_backup_pushed_timestamp_seconds {oldest}\n" in figures.read_text()
    backup_push.forget(sender)
    assert not figures.exists()


def test_a_damaged_archive_is_told_and_keeps_back_no_other(sender: dict[str, Any], tmp_path: Path) -> None:
    put(tmp_path / "backups", name(1))
    (tmp_path / "backups" / name(1)).write_text("half")
    with pytest.raises(BackupError, match=r"not sent to mon1: .* is damaged"):
        backup_push.push(sender)


def test_where_no_other_host_is_named_nothing_is_sent(sender: dict[str, Any]) -> None:
    assert backup_push.push({**sender, "push": None})["skipped"]
    assert backup_push.push(sender) == {"to": "mon1", "pushed": []}
