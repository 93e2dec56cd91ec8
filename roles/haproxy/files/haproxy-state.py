#!/usr/bin/python3
"""Keep the state of HAProxy's servers over a reload.

HAProxy starts with every server up until a check says otherwise, and forgets who was drained. This writes the state
that the running process knows to a file that the next one loads:

save    write the state file. A server whose address or port is another one in the configuration than in the running
        process, or that is new, is written as down: it gets traffic after its first successful check.
reload  have the master (its pid follows) load the configuration; return when a new worker answers, fail when none does.
loaded  note which configuration the running process has, and drop the state file, which is of no use later on.
stale   exit 0 if a process runs with another configuration than the one on disk, 1 if not.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

VERSION_LINE = "1"
# Check status 1 is "not checked yet"; 0 would be "not to be checked".
DOWN = {
    "srv_op_state": "0",
    "srv_admin_state": "0",
    "srv_uweight": "1",
    "srv_iweight": "1",
    "srv_check_status": "1",
    "srv_check_result": "0",
    "srv_check_health": "0",
    "srv_check_state": "6",
}


def ask(path: str, command: str) -> str:
    """Return what the admin socket answers to one command. Raises OSError when nothing listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        connection.connect(path)
        connection.sendall(f"{command}\n".encode())
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer.decode()


def worker(path: str) -> str:
    """Return the pid of the process that answers, or an empty string."""
    try:
        found = re.search(r"^Pid: (\d+)$", ask(path, "show info"), re.MULTILINE)
    except OSError:
        return ""
    return found.group(1) if found else ""


def configured(text: str) -> list[tuple[str, str, str, str]]:
    """Return (backend, server, address, port) for every server line of a configuration."""
    servers = []
    backend = ""
    for line in text.splitlines():
        words = line.split()
        if words and not line[0].isspace():
            backend = words[1] if words[0] == "backend" else ""
        elif backend and len(words) > 2 and words[0] == "server":
            address, _, port = words[2].rpartition(":")
            servers.append((backend, words[1], address.strip("[]"), port))
    return servers


def merge(running: str, config: str) -> str:
    """Return the state file for `config`, given what `show servers state` printed.

    Known servers keep their line; new ones, and ones that moved, are down until a check succeeds.
    """
    lines = [line for line in running.splitlines() if line.strip()]
    header = next(line[1:].split() for line in lines if line.startswith("#"))
    rows = [dict(zip(header, line.split())) for line in lines if not line.startswith("#") and len(line.split()) == len(header)]
    known = {(row["be_name"], row["srv_name"]): row for row in rows}
    backend_ids = {row["be_name"]: row["be_id"] for row in known.values()}
    result = [VERSION_LINE, "# " + " ".join(header)]
    numbers: dict[str, int] = {}
    for backend, name, address, port in configured(config):
        numbers[backend] = numbers.get(backend, 0) + 1
        row = known.get((backend, name))
        if row is None or (row["srv_addr"], row["srv_port"]) != (address, port):
            row = {field: "-" if field.endswith(("addr", "fqdn", "record")) else "0" for field in header}
            row.update(DOWN, be_id=backend_ids.get(backend, "0"), be_name=backend)
            row.update(srv_id=str(numbers[backend]), srv_name=name, srv_addr=address, srv_port=port)
        result.append(" ".join(row[field] for field in header))
    return "\n".join(result) + "\n"


def write(path: Path, text: str) -> None:
    """Replace a file at once."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    os.replace(fresh, path)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    """Do what the first argument says; the exit code is the answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("/etc/haproxy/haproxy.cfg"))
    parser.add_argument("--socket", default="/run/haproxy/admin.sock")
    parser.add_argument("--state", type=Path, default=Path("/var/lib/haproxy/server-state"))
    parser.add_argument("--mark", type=Path, default=Path("/run/haproxy/loaded.sha256"))
    parser.add_argument("--timeout", type=float, default=15, help="seconds that a reload may take")
    parser.add_argument("command", choices=("save", "reload", "loaded", "stale"))
    parser.add_argument("pid", nargs="?", type=int)
    arguments = parser.parse_args()

    if arguments.command == "save":
        try:
            running = ask(arguments.socket, "show servers state")
        except OSError as error:
            print(f"no state to keep: {arguments.socket}: {error}", file=sys.stderr)
            running = ""
        write(arguments.state, merge(running, arguments.config.read_text()) if running else f"{VERSION_LINE}\n")
    elif arguments.command == "reload":
        before = worker(arguments.socket)
        digest_before = digest(arguments.config)
        os.kill(arguments.pid, signal.SIGUSR2)
        deadline = time.monotonic() + arguments.timeout
        while worker(arguments.socket) in ("", before):
            if time.monotonic() > deadline:
                print("HAProxy did not take the new configuration; the old one goes on serving", file=sys.stderr)
                return 1
            time.sleep(0.05)
        write(arguments.state, f"{VERSION_LINE}\n")
        write(arguments.mark, digest_before)
    elif arguments.command == "loaded":
        write(arguments.state, f"{VERSION_LINE}\n")
        write(arguments.mark, digest(arguments.config))
    elif arguments.command == "stale":
        runs = worker(arguments.socket) != ""
        return 0 if runs and (not arguments.mark.exists() or arguments.mark.read_text() != digest(arguments.config)) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
