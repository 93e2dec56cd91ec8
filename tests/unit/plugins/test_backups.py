"""What a backup is called, which ones stay, which one is meant, and what a restore would lose."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from ansible.module_utils.backups import (
    BackupError,
    check_manifest,
    choose,
    loss,
    milliseconds_of,
    missing,
    name_of,
    parse,
    stream_decision,
    surplus,
    unsent,
    unwelcome,
)

TAKEN = datetime(2026, 1, 31, 12, 0, 0, 999, tzinfo=UTC)


def hours(count: int, host: str = "data1") -> list[str]:
    """A backup each hour, from the first day of the month on."""
    return [f"202601{1 + hour // 24:02d}T{hour % 24:02d}0000Z-{host}.tar" for hour in range(count)]


def test_a_name_tells_when_it_was_taken_and_where() -> None:
    assert name_of("data1", TAKEN, encrypted=False) == "20260131T120000Z-data1.tar"
    backup = parse(name_of("data-1.example", TAKEN, encrypted=True))
    assert backup is not None
    assert (backup.stamp, backup.host, backup.encrypted) == ("20260131T120000Z", "data-1.example", True)
    assert backup.taken == TAKEN.replace(microsecond=0)


@pytest.mark.parametrize(
    "name", ["x.tar", "20260131T120000Z-data1.tar.sha256", "20260131T120000Z-data1.tar.part", "20261331T120000Z-a.tar"]
)
def test_what_is_no_backup_is_not_taken_for_one(name: str) -> None:
    assert parse(name) is None


def test_a_host_whose_name_no_backup_can_have_is_refused() -> None:
    with pytest.raises(BackupError, match="no host name"):
        name_of("../etc", TAKEN, encrypted=False)


def test_the_newest_or_the_named_one_of_the_host_is_chosen() -> None:
    names = [*hours(5), *hours(9, "lb1")]
    assert choose(names, "data1", "newest").name == names[4]
    assert choose(names, "data1", "20260101T020000Z").name == names[2]
    assert choose(names, "data1", names[1]).name == names[1]


def test_a_backup_that_is_not_there_is_refused_with_the_last_ones() -> None:
    with pytest.raises(BackupError, match=r"expected newest or a stamp, the last ones are: 20260101T000000Z, 20260101T010000Z"):
        choose(hours(2), "data1", "yesterday")
    with pytest.raises(BackupError, match="no backup of data2"):
        choose(hours(2), "data2", "newest")


def test_the_newest_of_each_hour_and_of_each_day_stay() -> None:
    names = hours(72)
    gone = surplus(names, "data1", hourly=2, daily=2)
    # Days 2 and 3 by their last, which for day 3 is one of the two hours.
    assert [name for name in names if name not in gone] == [names[47], names[70], names[71]]


def test_of_several_in_an_hour_the_newest_stays() -> None:
    names = ["20260101T000000Z-data1.tar", "20260101T003000Z-data1.tar", "20260101T010000Z-data1.tar.age"]
    assert surplus(names, "data1", hourly=2, daily=0) == [names[0]]


def test_the_newest_is_never_removed_however_old_it_is() -> None:
    assert surplus(["19990101T000000Z-data1.tar"], "data1", hourly=1, daily=0) == []


def test_other_hosts_backups_and_other_files_are_never_removed() -> None:
    assert surplus([*hours(9, "lb1"), "notes.txt", *hours(1)], "data1", hourly=1, daily=0) == []


def test_to_keep_nothing_is_refused() -> None:
    with pytest.raises(BackupError, match="expected 1 or more"):
        surplus([], "data1", hourly=0, daily=3)


def test_a_loss_is_told_to_the_second_and_never_less_than_it_is() -> None:
    assert loss(1_769_860_800_000, 1_769_860_861_001) == (
        "What was decided after 2026-01-31T12:00:00.000Z until 2026-01-31T12:01:01.001Z is not in the backup: 62 s"
    )
    assert loss(1_769_860_800_000, 1_769_860_799_000).startswith("Nothing is known of after 2026-01-31T12:00:00.000Z")


def test_the_id_of_an_entry_tells_when_it_was_written() -> None:
    assert milliseconds_of("1769860800000-3") == 1_769_860_800_000
    assert milliseconds_of("") == 0


def test_a_manifest_of_another_schema_is_refused() -> None:
    assert check_manifest({"schema": 1, "parts": {}}) == {"schema": 1, "parts": {}}
    with pytest.raises(BackupError, match="schema 2, and 1 can be read"):
        check_manifest({"schema": 2, "parts": {}})
    with pytest.raises(BackupError, match="no manifest"):
        check_manifest(["schema"])


def test_a_ledger_that_holds_less_than_was_counted_is_not_whole() -> None:
    assert missing({"fills": 3, "audit": 9}, {"fills": 4, "audit": 9}) == []
    assert missing({"fills": 3}, {}) == ["fills: 0 loaded, 3 were there when the backup began"]


@pytest.mark.parametrize(
    ("name", "present", "decision"),
    [
        ("TRADING_EVENTS", None, "restore"),
        ("TRADING_EVENTS", {"last_seq": 7}, "replace"),
        ("TRADING_EVENTS", {"last_seq": 8}, "keep"),
        ("KV_release", None, "told anew"),
        ("KV_release", {"last_seq": 1}, "told anew"),
    ],
)
def test_a_stream_is_restored_only_where_the_present_one_has_less(
    name: str, present: dict[str, int] | None, decision: str
) -> None:
    assert stream_decision(name, {"last_seq": 8}, present) == decision


def test_what_another_host_has_not_got_is_sent_in_order_and_to_a_new_one_the_newest_alone() -> None:
    names = [*hours(4), *hours(9, "lb1"), "sent.json"]
    assert [backup.name for backup in unsent(names, "data1", names[1])] == names[2:4]
    assert unsent(names, "data1", names[3]) == []
    assert [backup.name for backup in unsent(names, "data1", None)] == [names[3]]
    assert unsent([], "data1", None) == []


def test_a_copy_is_kept_where_it_is_newer_than_those_that_are_there_and_not_of_a_time_to_come() -> None:
    there = [*hours(3), *hours(9, "lb1")]
    now = datetime(2026, 1, 1, 4, 0, tzinfo=UTC)
    newer = name_of("data1", now - timedelta(minutes=1), encrypted=False)
    assert unwelcome(newer, "data1", there, now) == unwelcome(newer, "data1", [], now) == ""
    assert unwelcome(name_of("data1", now + timedelta(minutes=4), encrypted=True), "data1", there, now) == ""
    assert "a time to come" in unwelcome(name_of("data1", now + timedelta(minutes=6), encrypted=False), "data1", there, now)
    assert f"older than {there[2]}" in unwelcome(there[1], "data1", there, now)
    assert "there already" in unwelcome(there[2], "data1", there, now)
    for name in (newer.replace("data1", "lb1"), "../authorized_keys", "copies.json"):
        assert "no name of a backup of data1" in unwelcome(name, "data1", there, now)
