"""HAProxy's runtime socket: commands over it, and what its tables say. Standard library only."""

from __future__ import annotations

import csv
import io
import socket
import time
from dataclasses import asdict, dataclass
from typing import Any

_FORCED_MAINTENANCE, _INHERITED_MAINTENANCE, _CONFIG_MAINTENANCE = 0x01, 0x02, 0x04
_FORCED_DRAIN, _INHERITED_DRAIN, _RESOLUTION_MAINTENANCE = 0x08, 0x10, 0x20
_MAINTENANCE = _FORCED_MAINTENANCE | _INHERITED_MAINTENANCE | _CONFIG_MAINTENANCE | _RESOLUTION_MAINTENANCE
_DRAIN = _FORCED_DRAIN | _INHERITED_DRAIN


class HaproxyError(RuntimeError):
    """The socket gave no answer, or one that says no; the message is one sentence for the operator."""


class HaproxyStopped(HaproxyError):
    """Nobody listens on the socket."""


class RuntimeSocket:
    """The admin socket of a HAProxy worker; one connection for each command, as the socket closes after an answer."""

    def __init__(self, path: str, timeout: float = 2.0) -> None:
        self.path = path
        self.timeout = timeout

    def ask(self, command: str) -> str:
        """The answer to one command, without the blank line that ends it.

        Raises HaproxyStopped when nobody listens, HaproxyError when the answer does not come within the timeout.
        """
        deadline = time.monotonic() + self.timeout
        answer = bytearray()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(self.timeout)
            try:
                connection.connect(self.path)
            except (FileNotFoundError, ConnectionRefusedError) as error:
                raise HaproxyStopped(f"no HAProxy answers on {self.path}: {error.strerror}") from error
            except OSError as error:
                raise HaproxyError(f"cannot use the socket {self.path}: {error}") from error
            try:
                connection.sendall(command.encode() + b"\n")
                while chunk := connection.recv(65536):
                    answer += chunk
                    connection.settimeout(max(deadline - time.monotonic(), 0.001))
            except OSError as error:
                raise HaproxyError(f"HAProxy did not answer {command!r} within {self.timeout:g} s: {error}") from error
        return answer.decode(errors="replace").strip("\n")

    def do(self, command: str) -> None:
        """A command that answers nothing when it worked; raises HaproxyError with what it says otherwise."""
        answer = self.ask(command).strip()
        if answer:
            raise HaproxyError(f"HAProxy refused {command!r}: {answer}")

    def read_map(self, path: str) -> dict[str, str]:
        """The running map that was loaded from this file; raises HaproxyError when the configuration uses no such map."""
        return parse_show_map(path, self.ask(f"show map {path}"))

    def set_map(self, path: str, key: str, value: str) -> None:
        """Set the key in the running map, adding it where it lacks."""
        verb = "set" if key in self.read_map(path) else "add"
        self.do(f"{verb} map {path} {key} {value}")

    def servers(self) -> list[Server]:
        """Every server of every backend."""
        return parse_servers(self.ask("show stat -1 4 -1"), self.ask("show servers state"))


def parse_show_map(path: str, answer: str) -> dict[str, str]:
    """What ``show map FILE`` printed: ``0x55… key value`` lines; the first of a repeated key counts, as in HAProxy."""
    found: dict[str, str] = {}
    for line in answer.splitlines():
        words = line.split(None, 2)
        if len(words) < 2 or not words[0].startswith("0x"):
            raise HaproxyError(f"HAProxy has no map {path}: {answer.strip()}")
        found.setdefault(words[1], words[2] if len(words) == 3 else "")
    return found


@dataclass(frozen=True)
class Server:
    """A server of a backend as HAProxy sees it now."""

    backend: str
    name: str
    address: str
    status: str
    admin: str
    up: bool
    sessions: int
    queue: int
    check: str

    @property
    def serves(self) -> bool:
        """It takes new requests: up, and neither draining nor in maintenance."""
        return self.up and self.admin == "ready"

    def as_dict(self) -> dict[str, Any]:
        """Everything but the names, for a table keyed by them."""
        return {key: value for key, value in asdict(self).items() if key not in ("backend", "name")}


def _admin(bits: int) -> str:
    if bits & _MAINTENANCE:
        return "maint"
    return "drain" if bits & _DRAIN else "ready"


def parse_servers(stat: str, state: str) -> list[Server]:
    """The servers that ``show stat`` and ``show servers state`` tell of together."""
    admin: dict[tuple[str, str], str] = {}
    up: dict[tuple[str, str], bool] = {}
    columns: list[str] = []
    for line in state.splitlines():
        if line.startswith("# "):
            columns = line[2:].split()
        elif columns and line:
            row = dict(zip(columns, line.split()))
            key = (row["be_name"], row["srv_name"])
            admin[key] = _admin(int(row["srv_admin_state"]))
            up[key] = row["srv_op_state"] != "0"
    found = []
    for row in csv.DictReader(io.StringIO(stat.lstrip("# "))):
        key = (row["pxname"], row["svname"])
        if key not in admin:
            continue
        found.append(
            Server(
                backend=key[0],
                name=key[1],
                address=row.get("addr") or "",
                status=row["status"],
                admin=admin[key],
                up=up[key] and admin[key] != "maint",
                sessions=int(row["scur"] or 0),
                queue=int(row["qcur"] or 0),
                check=row["check_status"] or "",
            )
        )
    return found


def by_slot(servers: list[Server], prefix: str = "slot_") -> dict[str, dict[str, dict[str, Any]]]:
    """``{slot: {server: {...}}}`` of the backends whose name is the prefix and a slot."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for server in servers:
        if server.backend.startswith(prefix):
            found.setdefault(server.backend[len(prefix) :], {})[server.name] = server.as_dict()
    return found


def would_leave(servers: list[Server], taken: list[str]) -> list[str]:
    """The servers of a backend that go on serving when these are taken out of rotation."""
    return [server.name for server in servers if server.serves and server.name not in taken]
