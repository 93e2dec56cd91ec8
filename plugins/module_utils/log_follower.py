"""Follows a host's logs: what was written since a moment, then what is written. Runs on the host, until its standard input ends.

It is sent as a program of its own, so it imports the standard library only.
"""

from __future__ import annotations

import glob
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO, Optional

#: Seconds between two looks at files, and bytes that are read at a time.
PAUSE, CHUNK = 0.2, 1 << 20
#: A line of the app begins so.
STAMP = b'{"at":"'


class File:
    """One file, from the first line that is not older than `since`; when it is cut it begins anew, when it is replaced too."""

    def __init__(self, path: str, since: str) -> None:
        self.path = path
        self._since = since.encode()
        self._inode = self._place = 0
        self._rest = b""

    def lines(self) -> list[bytes]:
        """The whole lines that were written since the last look."""
        found: list[bytes] = []
        try:
            with open(self.path, "rb") as file:
                state = os.fstat(file.fileno())
                if self._inode == 0:
                    self._place = self._begin(file, state.st_size)
                elif state.st_ino != self._inode or state.st_size < self._place:
                    self._place, self._rest = 0, b""
                self._inode = state.st_ino
                file.seek(self._place)
                for data in iter(lambda: file.read(CHUNK), b""):
                    self._place += len(data)
                    *whole, self._rest = (self._rest + data).split(b"\n")
                    found += [line for line in whole if self._wanted(line)]
        except OSError:
            # Not there, or not any more; it is looked for again.
            pass
        return found

    def _stamp(self, line: bytes) -> bytes:
        """When the line was written, as far as it is compared; empty where it does not say."""
        return line[len(STAMP) : len(STAMP) + len(self._since)] if line.startswith(STAMP) else b""

    def _wanted(self, line: bytes) -> bool:
        return not line.startswith(STAMP) or self._stamp(line) >= self._since

    def _begin(self, file: BinaryIO, size: int) -> int:
        """Where to begin: at a line before all that is wanted, found from the end; at the end where no line has a time."""
        place, stamped = size, False
        while place > 0:
            place = max(0, place - CHUNK)
            file.seek(place)
            head = file.read(CHUNK)
            start = head.find(b"\n") + 1 if place else 0
            stamps = [stamp for stamp in map(self._stamp, head[start:].split(b"\n")) if stamp]
            stamped = stamped or bool(stamps)
            if not stamped:
                return size
            if stamps and stamps[0] < self._since:
                return place + start
        return 0


def follow(
    pattern: str, since: str, journals: Sequence[Sequence[str]], write: Callable[[bytes], None], ends: Callable[[float], bool]
) -> None:
    """Write the lines of the files of `pattern` and of the commands `journals`, until `ends` is true, which waits for so long."""
    files: dict[str, File] = {}
    commands = [subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) for command in journals]
    rests = {command.stdout: b"" for command in commands if command.stdout is not None}
    try:
        while not ends(PAUSE):
            for path in sorted(glob.glob(pattern)):
                for line in files.setdefault(path, File(path, since)).lines():
                    write(line)
            ready, _, _ = select.select(list(rests), [], [], 0)
            for pipe in ready:
                data = os.read(pipe.fileno(), CHUNK)
                if not data:
                    del rests[pipe]
                    continue
                *whole, rests[pipe] = (rests[pipe] + data).split(b"\n")
                for line in whole:
                    write(line)
    finally:
        for command in commands:
            command.terminate()
        for command in commands:
            command.wait()
            if command.stdout is not None:
                command.stdout.close()


def _to_stdout(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def _stdin_ended(wait: float) -> bool:
    """Whether whoever started this has gone; a terminal or a connection that is lost ends it."""
    ready, _, _ = select.select([sys.stdin], [], [], wait)
    return bool(ready) and not os.read(sys.stdin.fileno(), 4096)


def journal(units: Sequence[str], priority: str, since: float) -> list[str]:
    """The command that follows the units in systemd's journal."""
    command = ["journalctl", "--quiet", "--no-pager", "--follow", "--no-hostname", "--output=short-iso", f"--since=@{since:.0f}"]
    return [*command, f"--priority={priority}", *(f"--unit={unit}" for unit in units)]


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """``<pattern of files> <seconds ago> <units, all of them> <units, warnings alone>``; units are separated by commas."""
    pattern, ago, all_of, warnings_of = sys.argv[1:] if arguments is None else arguments
    since = time.time() - float(ago)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since))
    journals = [
        journal(units.split(","), priority, since) for units, priority in ((all_of, "debug"), (warnings_of, "warning")) if units
    ]
    terminated: list[int] = []
    # Noted, not raised: what was started has to be ended, too.
    signal.signal(signal.SIGTERM, lambda signum, _: terminated.append(signum))
    try:
        follow(pattern, stamp, journals, _to_stdout, lambda wait: bool(terminated) or _stdin_ended(wait))
    except (BrokenPipeError, KeyboardInterrupt):
        # Nobody reads any more.
        os._exit(0)


if __name__ == "__main__":
    main()
