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
        return self._exchange(command)

    def _exchange(self, command: str) -> str:
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
                # The master's socket waits for further commands until the asker has no more to say.
                connection.shutdown(socket.SHUT_WR)
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

    def about(self) -> dict[str, int]:
        """``pid`` and ``uptime`` in seconds of the worker: another pid counts from zero."""
        found = dict(line.split(": ", 1) for line in self.ask("show info").splitlines() if ": " in line)
        return {"pid": int(found["Pid"]), "uptime": int(found["Uptime_sec"])}

    def servers(self) -> list[Server]:
        """Every server of every backend."""
        return parse_servers(self.ask("show stat -1 4 -1"), self.ask("show servers state"))


class OldWorker(RuntimeSocket):
    """A worker that still finishes its connections after a reload; it is asked through the master's socket."""

    def __init__(self, master: str, pid: int, timeout: float = 2.0) -> None:
        super().__init__(master, timeout)
        self.pid = pid

    def ask(self, command: str) -> str:
        """As for any worker; raises HaproxyStopped when it has ended."""
        answer = self._exchange(f"@!{self.pid} {command}")
        if answer.startswith("Can't find the target"):
            raise HaproxyStopped(f"the worker {self.pid} has ended")
        return answer


def old_workers(master: str, timeout: float = 2.0) -> list[OldWorker]:
    """The workers of former configurations that have not ended yet."""
    return [OldWorker(master, pid, timeout) for pid in parse_show_proc(RuntimeSocket(master, timeout).ask("show proc"))]


def parse_show_proc(answer: str) -> list[int]:
    """The pids below ``# old workers`` of what the master's ``show proc`` printed."""
    found: list[int] = []
    section = ""
    for line in answer.splitlines():
        words = line.split()
        if line.startswith("#"):
            section = line.lstrip("# ").strip()
        elif section == "old workers" and len(words) > 1 and words[0].isdecimal() and words[1] == "worker":
            found.append(int(words[0]))
    return found


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
                # HAProxy puts "* " before the last result while it checks anew.
                check=(row["check_status"] or "").lstrip("* "),
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


#: What a proxy or a server counts since its process began, by the column of ``show stat``.
_COUNTERS = {
    "requests": ("req_tot", "stot"),
    "errors": ("hrsp_5xx",),
    "refused": ("hrsp_4xx",),
    "succeeded": ("hrsp_2xx",),
    "retries": ("wretr",),
    "redispatches": ("wredis",),
    "connect_errors": ("econ",),
    "response_errors": ("eresp",),
    "client_aborts": ("cli_abrt",),
}


def parse_slots(stat: str, prefix: str = "slot_") -> dict[str, dict[str, Any]]:
    """By slot what its backend has counted, and under ``by_server`` each of its servers; all since the worker's start."""
    found: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(io.StringIO(stat.lstrip("# "))):
        if not row["pxname"].startswith(prefix):
            continue
        slot = found.setdefault(row["pxname"][len(prefix) :], {"by_server": {}})
        counts = {name: next((int(row[c]) for c in columns if row.get(c)), 0) for name, columns in _COUNTERS.items()}
        if row["svname"] == "BACKEND":
            slot.update(counts)
        elif row["svname"] != "FRONTEND":
            slot["by_server"][row["svname"]] = {**counts, "status": row["status"]}
    return found


def would_leave(servers: list[Server], taken: list[str]) -> list[str]:
    """The servers of a backend that go on serving when these are taken out of rotation."""
    return [server.name for server in servers if server.serves and server.name not in taken]
