#!/usr/bin/python3
"""Try a Redis configuration, and bring a running server up to date with it.

check  start a real server with --config or --users FILE, without network, on an empty directory, and stop it again.
       redis-server has no option that only reads its configuration.
apply  compare the running server with redis.conf and users.acl and change what differs in place: CONFIG SET for settings,
       ACL SETUSER and ACL DELUSER for users. ACL LOAD is not used: before Redis 7.2 it disconnects every user, not just
       the changed ones. Prints {"changed": [...], "restart": [...]}; "restart" lists what only a restart can change.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

UNITS = {"": 1, "k": 1000, "kb": 1024, "m": 1000**2, "mb": 1024**2, "g": 1000**3, "gb": 1024**3}
# Not settings of a running server: where it lives and how it was started.
SKIPPED = {"supervised", "daemonize", "pidfile"}


class RedisError(Exception):
    """The server refused a command."""


class Connection:
    """A connection that speaks just enough of the protocol."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._reader = connected.makefile("rb")

    def call(self, *words: str) -> Any:
        """Return the answer to a command. Raises RedisError with the server's own words."""
        parts = [word.encode() for word in words]
        self._socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
        return self._read()

    def _read(self) -> Any:
        line = self._reader.readline()
        if not line.endswith(b"\r\n"):
            raise OSError("the server closed the connection")
        kind, rest = line[:1], line[1:-2].decode()
        if kind == b"-":
            raise RedisError(rest)
        if kind == b"$":
            return None if rest == "-1" else self._reader.read(int(rest) + 2)[:-2].decode()
        if kind == b"*":
            return None if rest == "-1" else [self._read() for _ in range(int(rest))]
        return int(rest) if kind == b":" else rest


def answers(address: Path, timeout: float) -> bool:
    """Tell whether a server serves there. It listens before it has read its users, and ends if they are wrong."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout)
        try:
            client.connect(str(address))
            Connection(client).call("PING")
        except RedisError:
            return True  # it asks who that is
        except OSError:
            return False
    return True


def check(config: Path | None, users: Path | None, timeout: float) -> None:
    """Exit with the server's own words if it does not start."""
    with tempfile.TemporaryDirectory(prefix="redis-config-") as folder:
        place = Path(folder)
        address = place / "socket"
        command = ["redis-server"]
        command += [str(config)] if config else []
        command += ["--port", "0", "--unixsocket", str(address), "--dir", folder, "--save", "", "--appendonly", "no"]
        command += ["--daemonize", "no", "--supervised", "no", "--pidfile", "", "--logfile", "", "--maxclients", "16"]
        command += ["--aclfile", str(users)] if users else []
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
            deadline = time.monotonic() + timeout
            # The socket is there before it listens.
            while not (started := answers(address, timeout)) and server.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            server.terminate()
            try:
                output, _ = server.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                server.kill()
                output, _ = server.communicate()
        if not started:
            sys.exit(f"redis-server does not start with it:\n{output}")


def settings(text: str) -> dict[str, str]:
    """Return the settings of a configuration, as text."""
    pairs = (line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return {name: value.strip().strip('"') for name, value in pairs}


def same(one: str, other: str) -> bool:
    """Tell whether two values mean the same: 1gb is 1073741824."""
    sizes = [re.fullmatch(r"(\d+)([kmg]b?|)", value.lower()) for value in (one, other)]
    if all(sizes):
        return len({int(size[1]) * UNITS[size[2]] for size in sizes if size}) == 1
    return one == other


def connect(wanted: dict[str, str], user: str, password: str, timeout: float) -> Connection:
    """Return a connection as `user`, once the server has read its data.

    Raises RedisError if it refuses the user, OSError if nobody listens where the configuration says.
    """
    begin = time.monotonic()
    while True:
        try:
            connection = Connection(socket.create_connection((wanted["bind"].split()[0], int(wanted["port"])), timeout=10))
            connection.call("AUTH", user, password)
            connection.call("PING")
            return connection
        except RedisError as error:
            if not str(error).startswith("LOADING") or time.monotonic() > begin + timeout:
                raise
        except OSError:
            # The unit counts as started only once the server listens, so this is not the time to be patient.
            if time.monotonic() > begin + 3:
                raise
        time.sleep(0.1)


def rules(connection: Connection) -> dict[str, list[str]]:
    """Return the rules of each user, in an order of their own: Redis 7.0 tells them in that of a table which it may be
    rearranging."""
    return {line.split()[1]: sorted(line.split()) for line in connection.call("ACL", "LIST")}


def apply(config: Path, user: str, password: str, timeout: float) -> dict[str, list[str]]:
    """Return the names of what was changed in place and of what needs a restart."""
    wanted = settings(config.read_text())
    users = [line.split() for line in Path(wanted["aclfile"]).read_text().splitlines() if line.startswith("user ")]
    changed: list[str] = []
    restart: list[str] = []
    try:
        connection = connect(wanted, user, password, timeout)
    except (OSError, RedisError) as error:
        # It listens elsewhere, or has another password for the one user who could change it.
        return {"changed": [], "restart": [f"{wanted['bind']} {wanted['port']}, user {user}: {error}"]}

    for name, value in wanted.items():
        if name in SKIPPED:
            continue
        found = connection.call("CONFIG", "GET", name)
        if not found:
            restart.append(name)
        elif not same(found[1], value):
            try:
                connection.call("CONFIG", "SET", name, value)
                changed.append(name)
            except RedisError:
                restart.append(name)

    before = rules(connection)
    for words in users:
        connection.call("ACL", "SETUSER", words[1], "reset", *words[2:])
    for name in before.keys() - {words[1] for words in users}:
        connection.call("ACL", "DELUSER", name)
    after = rules(connection)
    changed += [f"user {name}" for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    return {"changed": changed, "restart": restart}


def main() -> int:
    """Do what the first argument says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("check", "apply"))
    parser.add_argument("--config", type=Path)
    parser.add_argument("--users", type=Path)
    parser.add_argument("--user", help="who applies; the password is read from standard input")
    parser.add_argument("--timeout", type=float, default=10)
    arguments = parser.parse_args()
    if arguments.command == "check":
        check(arguments.config, arguments.users, arguments.timeout)
    else:
        config = arguments.config or Path("/etc/redis/redis.conf")
        print(json.dumps(apply(config, arguments.user, sys.stdin.readline().rstrip("\n"), arguments.timeout)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
