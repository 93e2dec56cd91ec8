#!/usr/bin/env python3
"""Follow the logs of all hosts at once, each line behind its host's name, until ^C.

    bin/follow_logs.py                          every host of the default inventory
    bin/follow_logs.py -l app --since 10m       some, from what was written ten minutes ago on
    bin/follow_logs.py -i inventories/mine

On each host: the files of /var/log/trading-bot, what the units of the app, the notifier and the paper exchange write to systemd's
journal, and warnings of the services beneath. A host that cannot be reached, or is lost, is named on standard error; the others
go on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
FOLLOWER = ROOT / "plugins" / "module_utils" / "log_follower.py"
ALL_OF = "trading-bot*,paper-venue.service"
WARNINGS_OF = "haproxy.service,redis*,nats*,docker.service,prometheus*"
OPTIONS = ["BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3"]
SETTINGS = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

#: How Ansible reaches a host, as it would do itself; each value may be a template in the inventory.
CONNECTION = """{{ {
  'host': ansible_host | default(inventory_hostname), 'port': ansible_port | default(''),
  'user': ansible_user | default(ansible_ssh_user | default('')),
  'key': ansible_ssh_private_key_file | default(ansible_private_key_file | default('')),
  'arguments': ansible_ssh_common_args | default('') ~ ' ' ~ ansible_ssh_extra_args | default(''),
  'local': ansible_connection | default('ssh') == 'local', 'become': ansible_become | default(false) | bool,
  'directory': base_log_directory | default('/var/log/trading-bot')} | to_json }}"""


class FollowError(Exception):
    """What was asked for cannot be followed; the message is for the operator."""


@dataclass(frozen=True)
class Target:
    """A host, and the command that follows its logs."""

    name: str
    command: Sequence[str]


def seconds(text: str) -> int:
    """``30s``, ``10m``, ``2h``, ``1d`` or a number of seconds."""
    match = re.fullmatch(r"(\d+)([smhd]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration, expected one such as 30s, 10m, 2h or 1d")
    return int(match[1]) * UNITS[match[2] or "s"]


def command_of(connection: Mapping[str, object], follower: Sequence[str]) -> list[str]:
    """The command that runs the follower on a host."""
    words = [*(["sudo", "-n"] if connection["become"] else []), "/usr/bin/python3", "-u", *follower]
    if connection["local"]:
        return words
    command = ["ssh", *(word for option in OPTIONS for word in ("-o", option)), *shlex.split(str(connection["arguments"]))]
    command += ["-p", str(connection["port"])] if connection["port"] else []
    command += ["-i", str(connection["key"])] if connection["key"] else []
    command += ["-l", str(connection["user"])] if connection["user"] else []
    return [*command, str(connection["host"]), shlex.join(words)]


def targets(inventories: Sequence[str], limit: str, since: int) -> list[Target]:
    """The hosts to follow, as Ansible knows them. Raises FollowError where it knows none."""
    beside = Path(sys.executable).parent / "ansible"
    local = ROOT / ".venv" / "bin" / "ansible"
    program = next((str(path) for path in (local, beside) if path.is_file()), shutil.which("ansible"))
    if program is None:
        raise FollowError("ansible is not installed: run make env first")
    sources = [word for inventory in inventories for word in ("-i", inventory)]
    asked = subprocess.run(
        [program, *sources, limit, "-m", "ansible.builtin.debug", "-a", f"msg={CONNECTION!r}"],
        cwd=ROOT,
        env={**os.environ, **SETTINGS, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    found = []
    for match in re.finditer(r"^(\S+) \| SUCCESS => ", asked.stdout, re.MULTILINE):
        connection = json.JSONDecoder().raw_decode(asked.stdout, match.end())[0]["msg"]
        connection = json.loads(connection) if isinstance(connection, str) else connection
        pattern = f"{connection['directory']}/*.log"
        follower = ["-c", FOLLOWER.read_text(encoding="utf-8"), pattern, str(since), ALL_OF, WARNINGS_OF]
        found.append(Target(match[1], command_of(connection, follower)))
    if asked.returncode != 0 or not found:
        raise FollowError((asked.stderr or asked.stdout).strip() or f"the inventory has no host {limit}")
    return sorted(found, key=lambda target: target.name)


class Following:
    """All hosts at once. Every process that it starts is gone when `until_the_end` returns."""

    def __init__(self, hosts: Sequence[Target]) -> None:
        self._hosts = hosts
        self._width = max(len(host.name) for host in hosts)
        self._speaks = threading.Lock()
        self._ending = False
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.lost: list[str] = []

    def until_the_end(self) -> None:
        """Print lines until every host is lost, or somebody calls `end`, at any time."""
        for host in self._hosts:
            # A session of their own: ^C is for this program, which ends them.
            self._processes[host.name] = subprocess.Popen(
                host.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
        if self._ending:
            self.end()
        threads = [threading.Thread(target=self._follow, args=item) for item in self._processes.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def end(self) -> None:
        """Let go of the hosts: what runs there ends with the connection."""
        self._ending = True
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()

    def _say(self, text: str) -> None:
        with self._speaks:
            try:
                print(text, flush=True)
            except BrokenPipeError:
                # Nobody reads any more; what is still in the buffer goes nowhere.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                self.end()

    def _follow(self, name: str, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        said: list[str] = []
        errors = threading.Thread(target=lambda: said.extend(_last_lines(process)))
        errors.start()
        for line in process.stdout:
            self._say(f"{name:{self._width}}  {line.decode(errors='replace').rstrip()}")
        code = process.wait()
        errors.join()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        if not self._ending:
            self.lost.append(name)
            with self._speaks:
                print(f"{name} is not followed: {' '.join(said) or f'it ended with {code}'}", file=sys.stderr, flush=True)


def _last_lines(process: subprocess.Popen[bytes]) -> list[str]:
    """The last words on standard error."""
    assert process.stderr is not None
    return [line.decode(errors="replace").strip() for line in process.stderr][-2:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--inventory", action="append", default=[], help="an inventory; without one, that of ansible.cfg")
    parser.add_argument("-l", "--limit", default="all", help="hosts or groups, as Ansible names them")
    parser.add_argument("--since", type=seconds, default=0, metavar="10m", help="begin with what was written so long ago")
    options = parser.parse_args()
    try:
        following = Following(targets(options.inventory, options.limit, options.since))
    except FollowError as error:
        print(error, file=sys.stderr)
        return 2

    def end(signum: int, frame: FrameType | None) -> None:
        following.end()

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    following.until_the_end()
    return 1 if following.lost else 0


def run() -> NoReturn:
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        # While Ansible is asked for the hosts nothing runs yet that would have to be ended.
        sys.exit(130)


if __name__ == "__main__":
    run()
