"""The small files that the release engine keeps on a load balancer: the lock, the journal, notes. Standard library only.

A file is replaced as a whole, so that a reader sees the old text or the new one; the journal is appended to.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

from .lease import Lock, Now, lock_from
from .map_files import read_text, replace_text

LOCK, TOKEN, ROLLOUT, COMMAND, BAD = "lock.json", "token", "rollout.json", "command.json", "bad.json"
JOURNAL, OLDER_JOURNAL = "journal.jsonl", "journal.1.jsonl"
TRAFFIC = "traffic.json"
#: The journal is put aside at so many lines, and the one that was aside before is dropped.
JOURNAL_LINES = 10_000

_FLOCK = ".flock"
_POLL = 0.005


class Busy(OSError):
    """Another command has the state for too long."""


def current_time() -> Now:
    """This moment, by the clocks that a lock goes by."""
    boot = read_text(Path("/proc/sys/kernel/random/boot_id")).strip()
    return Now(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), boot)


def stamp(seconds: float) -> str:
    """``2026-01-31T12:00:00.123Z``."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class StateFiles:
    """The state's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextlib.contextmanager
    def exclusively(self, timeout: float = 5.0) -> Iterator[None]:
        """Alone with the state, among all processes of this machine; raises Busy when that takes too long."""
        handle = os.open(self.directory / _FLOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + timeout
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise Busy(f"another command has had {self.directory} for {timeout:g} s") from None
                    time.sleep(_POLL)
            yield
        finally:
            os.close(handle)

    # values

    def read(self, name: str) -> Optional[dict[str, Any]]:
        """The object that a file holds; None where there is no such file, or nothing that could be read."""
        try:
            value = json.loads(read_text(self.directory / name))
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    def write(self, name: str, value: Mapping[str, Any], *, sync: bool = True) -> None:
        """Replace the object that a file holds."""
        replace_text(self.directory / name, json.dumps(value, separators=(",", ":")) + "\n", 0o600, sync=sync)

    def remove(self, name: str) -> None:
        """Without the file from now on."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.directory / name)

    # the lock

    def lock(self) -> Optional[Lock]:
        """Who holds the load balancer, alive or not."""
        return lock_from(self.read(LOCK))

    def token(self) -> int:
        """The highest fencing number that was ever given here."""
        text = read_text(self.directory / TOKEN).strip()
        held = self.lock()
        return max(int(text) if text.isdecimal() else 0, held.token if held else 0)

    def hold(self, lock: Lock) -> None:
        """Put the lock in place; its token first, so that no number is ever given twice."""
        if lock.token > self.token():
            replace_text(self.directory / TOKEN, f"{lock.token}\n", 0o600)
        # A heartbeat need not survive a power failure: without its lock, a load balancer has nobody on the canary.
        self.write(LOCK, lock.as_dict(), sync=False)

    def fence(self) -> int:
        """Give up the lock and every token so far; the new highest one, which nobody has."""
        token = self.token() + 1
        replace_text(self.directory / TOKEN, f"{token}\n", 0o600)
        self.remove(LOCK)
        return token

    # the journal

    def journal(self, entries: Sequence[Mapping[str, Any]], *, sync: bool = True) -> None:
        """Append the entries, with `sync` on disk when this returns. A line that a crash tore is left behind as it is."""
        path = self.directory / JOURNAL
        data = b"".join(json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in entries)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                data = b"\n" + data
            written = os.write(handle, data)
            if written != len(data):
                raise OSError(f"{path} took {written} bytes of {len(data)}: is the disk full?")
            if sync:
                os.fsync(handle)
        finally:
            os.close(handle)
        # Shorter lines than these do not occur, so most times there is no need to count.
        if size > JOURNAL_LINES * 40 and _lines(path) >= JOURNAL_LINES:
            os.replace(path, self.directory / OLDER_JOURNAL)

    def entries(self, count: int, rollout: Optional[str] = None) -> tuple[list[dict[str, Any]], int]:
        """The last entries, oldest first, of one rollout or of all; and how many lines could not be read."""
        found: list[dict[str, Any]] = []
        torn = 0
        for name in (OLDER_JOURNAL, JOURNAL):
            for line in _bytes(self.directory / name).splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    torn += 1
                    continue
                if isinstance(entry, dict) and (rollout is None or entry.get("rollout") == rollout):
                    found.append(entry)
        return found[-count:] if count else [], torn


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _lines(path: Path) -> int:
    return _bytes(path).count(b"\n")
