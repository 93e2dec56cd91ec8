"""All hosts' logs are followed at once: from a moment on, over rotations, until nobody reads, and nothing is left running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible.module_utils.log_follower import CHUNK, File, follow
from plugin_testing import ROOT, wait_until

SINCE = "2026-01-31T12:00:00"
PROGRAM = ROOT / "bin" / "follow_logs.py"


def line(minute: int, event: str = "x") -> bytes:
    return json.dumps(
        {"at": f"2026-01-31T{11 + minute // 60:02}:{minute % 60:02}:00.000Z", "event": event}, separators=(",", ":")
    ).encode()


def write(path: Path, *lines: bytes) -> None:
    with path.open("ab") as file:
        file.write(b"".join(one + b"\n" for one in lines))


def test_a_file_is_read_from_the_moment_on_and_then_what_is_added(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    write(log, line(58), line(59), line(60), b"  a traceback")
    file = File(str(log), SINCE)
    assert file.lines() == [line(60), b"  a traceback"]
    write(log, line(61))
    with log.open("ab") as half:
        half.write(line(62)[:10])
    assert file.lines() == [line(61)]
    with log.open("ab") as half:
        half.write(line(62)[10:] + b"\n")
    assert file.lines() == [line(62)]


def test_what_is_old_is_not_read_however_long_the_file_is(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    old = line(1, "o" * 1000)
    with log.open("wb") as file:
        file.write((old + b"\n") * (3 * CHUNK // len(old)))
        file.write(line(61) + b"\n")
    followed = File(str(log), SINCE)
    assert followed.lines() == [line(61)]
    with log.open("rb") as file:
        assert followed._begin(file, log.stat().st_size) > CHUNK


def test_a_file_without_times_begins_with_what_is_added(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    write(log, b"before")
    file = File(str(log), SINCE)
    assert file.lines() == []
    write(log, b"after")
    assert file.lines() == [b"after"]


def test_a_file_that_is_cut_or_replaced_or_comes_later_is_followed_on(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    file = File(str(log), SINCE)
    assert file.lines() == []
    write(log, line(61), line(61))
    assert len(file.lines()) == 2
    log.write_bytes(line(62) + b"\n")
    assert file.lines() == [line(62)]
    log.rename(tmp_path / "a.log.1")
    write(log, line(63))
    assert file.lines() == [line(63)]


def test_files_and_commands_are_followed_together_and_the_commands_end_with_it(tmp_path: Path) -> None:
    write(tmp_path / "a.log", line(61))
    said: list[bytes] = []
    command = ["sh", "-c", f"echo $$ > {tmp_path}/pid; echo from the journal; exec sleep 600"]
    follow(str(tmp_path / "*.log"), SINCE, [command], said.append, lambda wait: len(said) >= 2)
    assert sorted(said) == sorted([line(61), b"from the journal"])
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


Started = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """A host that is this machine, and one that nobody can reach."""
    (tmp_path / "logs").mkdir()
    hosts = {
        "here": {"ansible_connection": "local", "base_log_directory": "{{ inventory_dir }}/logs"},
        "gone": {"ansible_host": "127.0.0.1", "ansible_port": 9},
    }
    path = tmp_path / "hosts.yml"
    path.write_text(json.dumps({"all": {"hosts": hosts}}))
    return path


@pytest.fixture
def started(inventory: Path) -> Iterator[Started]:
    """Starts the program; what it prints goes to files beside the inventory."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        with (inventory.parent / "out").open("wb") as out, (inventory.parent / "err").open("wb") as err:
            process = subprocess.Popen([sys.executable, str(PROGRAM), "-i", str(inventory), *arguments], stdout=out, stderr=err)
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def followers(directory: Path) -> int:
    """How many processes follow the logs of this directory."""
    pattern = str(directory / "logs" / "*.log").encode()
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += pattern in path.read_bytes().split(b"\0")
    return found


def test_hosts_are_followed_with_their_names_and_one_that_is_gone_is_named(started: Started, inventory: Path) -> None:
    process = started("--since", "1d")
    log = inventory.parent / "logs" / "trading-bot-blue.log"
    out, err = inventory.parent / "out", inventory.parent / "err"
    wait_until(lambda: followers(inventory.parent) > 0, "the follower running", process)
    write(log, b'{"at":"2999-01-31T12:00:00.000Z","event":"hello"}')
    wait_until(lambda: b"hello" in out.read_bytes(), "the line", process)
    wait_until(lambda: b"gone is not followed" in err.read_bytes(), "the host that is gone", process)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 1
    assert b'here  {"at":"2999' in out.read_bytes()
    assert b"Connection refused" in err.read_bytes()
    wait_until(lambda: followers(inventory.parent) == 0, "the follower's end")


def test_an_interrupt_is_no_error_and_leaves_nothing_running(started: Started, inventory: Path) -> None:
    process = started("-l", "here")
    wait_until(lambda: followers(inventory.parent) > 0, "the follower running", process)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert (inventory.parent / "err").read_bytes() == b""
    wait_until(lambda: followers(inventory.parent) == 0, "the follower's end")


@pytest.mark.parametrize(
    ("arguments", "said"), [(("-l", "nobody"), b"nobody"), (("--since", "3x"), b"expected one such as 30s, 10m")]
)
def test_what_cannot_be_followed_is_said(started: Started, inventory: Path, arguments: tuple[str, ...], said: bytes) -> None:
    assert started(*arguments).wait(30) == 2
    assert said in (inventory.parent / "err").read_bytes()
