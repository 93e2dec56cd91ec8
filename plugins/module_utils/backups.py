"""What a backup is called, which ones stay, which one is meant, and what a restore would lose.

Pure: names and figures in, a decision out. Standard library only, as it travels to hosts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Optional

SCHEMA = 1
#: Seconds that the clocks of two hosts may differ by.
SKEW = 300
_NAME = re.compile(r"^(\d{8}T\d{6}Z)-([A-Za-z0-9][A-Za-z0-9._-]*?)\.tar(\.age)?$")
_FORMAT = "%Y%m%dT%H%M%SZ"


class BackupError(RuntimeError):
    """A backup cannot be made, is not what it says, or cannot be put back; one sentence for the operator."""


@dataclass(frozen=True)
class Backup:
    """A backup by its name: ``20260131T120000Z-data1.tar``, with ``.age`` where it is encrypted."""

    name: str
    stamp: str
    host: str
    encrypted: bool

    @property
    def taken(self) -> datetime:
        """When it was taken, to the second."""
        return datetime.strptime(self.stamp, _FORMAT).replace(tzinfo=timezone.utc)


def name_of(host: str, taken: datetime, encrypted: bool) -> str:
    """The name of a host's backup."""
    name = f"{taken.astimezone(timezone.utc).strftime(_FORMAT)}-{host}.tar{'.age' if encrypted else ''}"
    if parse(name) is None:
        raise BackupError(f"{host!r} is no host name that a backup can have: letters, digits, ., _ and - are")
    return name


def parse(name: str) -> Optional[Backup]:
    """The backup of this name; None where it is no backup's name."""
    found = _NAME.match(name)
    if found is None:
        return None
    backup = Backup(name, found.group(1), found.group(2), bool(found.group(3)))
    try:
        _ = backup.taken
    except ValueError:
        return None
    return backup


def of_host(names: Iterable[str], host: str) -> list[Backup]:
    """A host's backups among these names, the oldest first."""
    found = [backup for backup in map(parse, names) if backup is not None and backup.host == host]
    return sorted(found, key=lambda backup: backup.name)


def choose(names: Iterable[str], host: str, wanted: str) -> Backup:
    """The backup of a host that ``wanted`` means: ``newest``, its stamp, or its name. Raises BackupError."""
    found = of_host(names, host)
    if not found:
        raise BackupError(f"there is no backup of {host}: ansible-playbook backup.yml makes one")
    if wanted == "newest":
        return found[-1]
    for backup in reversed(found):
        if wanted in (backup.stamp, backup.name):
            return backup
    stamps = ", ".join(backup.stamp for backup in found[-5:])
    raise BackupError(f"there is no backup {wanted} of {host}; expected newest or a stamp, the last ones are: {stamps}")


def surplus(names: Iterable[str], host: str, hourly: int, daily: int) -> list[str]:
    """The backups of a host that may go, the oldest first.

    What stays: the newest of each of the last ``hourly`` hours and of the last ``daily`` days that have one. The newest is always
    among them, however old it is: hours and days are counted as backups have them, not by a clock.
    """
    if hourly < 1 or daily < 0:
        raise BackupError(f"{hourly} hourly and {daily} daily backups to keep: expected 1 or more, and 0 or more")
    newest_first = list(reversed(of_host(names, host)))
    kept = _newest_of_each(newest_first, hourly, lambda backup: backup.stamp[:11])
    kept |= _newest_of_each(newest_first, daily, lambda backup: backup.stamp[:8])
    return [backup.name for backup in reversed(newest_first) if backup.name not in kept]


def _newest_of_each(newest_first: Sequence[Backup], count: int, span: Callable[[Backup], str]) -> set[str]:
    kept: dict[str, str] = {}
    for backup in newest_first:
        if span(backup) not in kept and len(kept) < count:
            kept[span(backup)] = backup.name
    return set(kept.values())


def unsent(names: Iterable[str], host: str, sent: Optional[str]) -> list[Backup]:
    """The backups of a host that another one has still to get, the oldest first: those after the last that was sent to it.

    One that has got none yet gets the newest.
    """
    found = of_host(names, host)
    return found[-1:] if sent is None else [backup for backup in found if backup.name > sent]


def unwelcome(name: str, host: str, there: Iterable[str], now: datetime) -> str:
    """Why a host's backup is not kept beside those of it that are there; empty where it is.

    What is kept grows at its end only, and no faster than time: else a host that was broken into could have those that are there
    rotated away, with backups of years to come.
    """
    backup = parse(name)
    if backup is None or backup.host != host:
        return f"it is no name of a backup of {host}"
    if (backup.taken - now).total_seconds() > SKEW:
        return "it says that it is of a time to come"
    newest = of_host(there, host)[-1:]
    if newest and name == newest[0].name:
        return "it is there already"
    if newest and name < newest[0].name:
        return f"it is older than {newest[0].name}, which is there"
    return ""


def instant(milliseconds: int) -> str:
    """``2026-01-31T12:00:00.123Z``."""
    moment = datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def milliseconds_of(entry: str) -> int:
    """When an entry of a Redis stream was written, by its id; 0 where there is none."""
    return int(entry.partition("-")[0] or 0)


def loss(taken_at: int, known_until: int) -> str:
    """What is lost, in a sentence: what was decided after the backup, until the last moment that is known of. Milliseconds."""
    seconds = max(0, -(-(known_until - taken_at) // 1000))
    if seconds == 0:
        return f"Nothing is known of after {instant(taken_at)}, when the backup was taken"
    return f"What was decided after {instant(taken_at)} until {instant(known_until)} is not in the backup: {seconds} s"


def check_manifest(manifest: Any) -> dict[str, Any]:
    """The manifest itself; raises BackupError if this is none that can be read."""
    if not isinstance(manifest, Mapping) or not isinstance(manifest.get("parts"), Mapping):
        raise BackupError("its manifest.json is no manifest of a backup")
    if manifest.get("schema") != SCHEMA:
        raise BackupError(f"it has the schema {manifest.get('schema')!r}, and {SCHEMA} can be read: use the version that made it")
    return dict(manifest)


def missing(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What the loaded ledger lacks of what was counted when the backup began; figures of what only grows."""
    return [
        f"{name}: {found.get(name, 0)} loaded, {count} were there when the backup began"
        for name, count in expected.items()
        if int(found.get(name, 0)) < int(count)
    ]


def stream_decision(name: str, saved: Mapping[str, Any], present: Optional[Mapping[str, Any]]) -> str:
    """What becomes of a stream: ``restore``, ``replace``, ``keep`` or ``told anew``, by its saved and its present state.

    A bucket is left to who writes it: what a key said then need not be true now. A stream that has come as far as the
    backup's has all of it; one that has not was begun anew after a loss, and the backup's takes its place.
    """
    if name.startswith("KV_"):
        return "told anew"
    if present is None:
        return "restore"
    return "keep" if int(present["last_seq"]) >= int(saved["last_seq"]) else "replace"
