"""Takes the backups that other hosts have sent out of their reach. Standard library only.

    collect HOST         what HOST has sent: checked, kept for root alone, and what is too old removed

A host that sends writes into a directory of its own there, as a user that has nothing else. What it may have put there besides
archives is not followed, and what was taken over can no more be changed by it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from .backup_files import sync_directory, write_figures
from .backups import BackupError, of_host, parse, surplus, unwelcome

CONFIG = Path("/etc/trading-bot-copies/copies.json")
_BESIDE = ".sha256"
#: A checksum that is being looked at. systemd calls for each one that has come, and must not for one that could not be taken.
_CLAIMED = ".claimed"
_PART = ".part"
#: Seconds after which what never became whole is removed.
_STALE = 86400


def collect(config: Mapping[str, Any], host: str) -> dict[str, Any]:
    """Take over what a host has sent. Raises BackupError where something was refused, once the rest was taken."""
    incoming, shelf = Path(config["incoming"]) / host, Path(config["directory"])
    kept: list[str] = []
    wrong: list[str] = []
    for path in [*incoming.glob(f"*{_BESIDE}")]:
        claimed = path.with_name(f"{path.name[: -len(_BESIDE)]}{_CLAIMED}")
        _discard(claimed)
        path.rename(claimed)
    with _alone(shelf):
        for claimed in sorted(incoming.glob(f"*{_CLAIMED}")):
            name = claimed.name[: -len(_CLAIMED)]
            there = [path.name for path in shelf.iterdir()]
            try:
                why = unwelcome(name, host, there, datetime.now(timezone.utc))
                if not why:
                    _take(incoming / name, claimed, shelf)
                    kept.append(name)
                elif name not in there:
                    raise BackupError(f"{name}: {why}")
            except BackupError as error:
                wrong.append(str(error))
            except OSError as error:
                # The disk is full: it stays, and is looked at again when the next one has come.
                wrong.append(f"{name}: {error}")
                continue
            _discard(incoming / name)
            _discard(claimed)
        _remove_stale(incoming)
        removed = surplus((path.name for path in shelf.iterdir()), host, int(config["keep_hourly"]), int(config["keep_daily"]))
        for name in removed:
            _discard(shelf / name)
            _discard(shelf / f"{name}{_BESIDE}")
        _tell(config, shelf)
    if wrong:
        raise BackupError(f"from {host}: {'; '.join(wrong)}")
    return {"kept": kept, "removed": removed}


@contextlib.contextmanager
def _alone(shelf: Path) -> Iterator[None]:
    handle = os.open(shelf, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for left in shelf.glob(f".*{_PART}"):
            left.unlink()
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A plain file, without following a link or waiting for what writes into a pipe."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise BackupError(f"{path.name} is no plain file")
        yield file


def _take(path: Path, beside: Path, shelf: Path) -> None:
    """Copy an archive to the shelf: whoever holds the file that was sent open can write to that one only."""
    if path.is_symlink() or beside.is_symlink() or not path.exists():
        raise BackupError(f"{path.name}: it did not come as a plain file")
    with _opened(beside) as file:
        words = file.read(200).decode(errors="replace").split()
    part = shelf / f".{path.name}{_PART}"
    digest = hashlib.sha256()
    try:
        with _opened(path) as source, _created(part) as target:
            while True:
                chunk = source.read(1 << 20)
                if not chunk:
                    break
                digest.update(chunk)
                target.write(chunk)
        if words[:1] != [digest.hexdigest()]:
            raise BackupError(f"{path.name} is damaged: its SHA-256 is {digest.hexdigest()}, not what came with it")
        with _created(shelf / f"{path.name}{_BESIDE}") as target:
            target.write(f"{digest.hexdigest()}  {path.name}\n".encode())
        part.rename(shelf / path.name)
        sync_directory(shelf)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


@contextlib.contextmanager
def _created(path: Path) -> Iterator[IO[bytes]]:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
        return
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _remove_stale(incoming: Path) -> None:
    for path in incoming.iterdir():
        if path.lstat().st_mtime < time.time() - _STALE:
            _discard(path)


def _tell(config: Mapping[str, Any], shelf: Path) -> None:
    """Leave for the node exporter of when the newest copy of each host is."""
    names = [path.name for path in shelf.iterdir()]
    hosts = sorted({backup.host for backup in map(parse, names) if backup is not None})
    write_figures(
        Path(config["metrics_file"]),
        [
            (
                f'trading_backup_copied_timestamp_seconds{{of="{host}"}}',
                f"{of_host(names, host)[-1].taken.timestamp():.0f}",
                "When the last backup of a host was taken that this one has a copy of.",
            )
            for host in hosts
        ],
    )


def main(words: list[str], config_file: Path = CONFIG) -> int:
    """Carry out one command; the exit status is 0 where it was, and 1 where it was not, with why on standard error."""
    parser = argparse.ArgumentParser(
        prog="trading-bot-copies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["collect"])
    parser.add_argument("host")
    arguments = parser.parse_args(words)
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        print(json.dumps(collect(config, arguments.host)))
    except (BackupError, OSError, ValueError, KeyError) as error:
        print(f"trading-bot-copies {arguments.command}: {error}", file=sys.stderr)
        return 1
    return 0
