"""What a host's files and programs say, as data: sockets, firewall rules, certificates, times. Pure, standard library only."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Optional

_LISTENS = "0A"


def listening(table: str) -> list[tuple[str, int]]:
    """Address and port of each socket that listens, from the text of /proc/net/tcp or tcp6, sorted."""
    found = set()
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 3 and words[3] == _LISTENS:
            address, port = words[1].split(":")
            # The kernel writes each group of 32 bits in the machine's own order, which is little-endian.
            groups = b"".join(bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8))
            family = socket.AF_INET if len(groups) == 4 else socket.AF_INET6
            found.add((socket.inet_ntop(family, groups).replace("::ffff:", ""), int(port, 16)))
    return sorted(found)


def listens(sockets: Sequence[Sequence[Any]], address: str, port: int) -> bool:
    """Whether one of these sockets takes connections to the address and port."""
    return any(at in (address, "0.0.0.0", "::") and number == port for at, number in sockets)  # noqa: S104 - compared


def blocking_rules(rules: str, port: int) -> list[str]:
    """The lines of a firewall's rules that turn away what goes to a port: of iptables-save, `nft list ruleset`, `ufw status`."""
    named = re.compile(rf"(?:--dports?\s+|dport\s+(?:\{{[^}}]*\b)?|^)(?:[\d:,]*\b){port}\b", re.MULTILINE)
    verdict = re.compile(r"-j (?:DROP|REJECT)|\b(?:drop|reject)\b|\b(?:DENY|REJECT)\b")
    return [line.strip() for line in rules.splitlines() if verdict.search(line) and named.search(line.strip())]


def sections(config: str) -> dict[str, dict[str, str]]:
    """The scalars of the app's configuration, section by section; of a broken one, what can be read."""
    found: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in config.splitlines():
        top = re.match(r"(\w+):\s*$", line)
        key = re.match(r"\s+(\w+):\s*(\S.*?)\s*$", line)
        if top:
            current = found.setdefault(top[1], {})
        elif key:
            current[key[1]] = key[2].strip("\"'")
    return found


def host_port(url: str, default_port: int) -> tuple[str, int]:
    """Host and port of the first of the addresses in a URL, its user left out; raises ValueError where there is none."""
    first = url.split(",", 1)[0].strip()
    match = re.fullmatch(r"(?:\w+://)?(?:[^@/]*@)?(\[[^\]]+\]|[^:/\[\]]+)(?::(\d+))?(?:/.*)?", first)
    if match is None:
        raise ValueError("no host in the address, expected scheme://host:port")
    return match[1].strip("[]"), int(match[2] or default_port)


def not_after(printed: str) -> Optional[float]:
    """When a certificate ends, from what `openssl x509 -noout -enddate` printed; None if it is not there."""
    match = re.search(r"^notAfter=(.+?)\s*$", printed, re.MULTILINE)
    if match is None:
        return None
    return datetime.strptime(match[1], "%b %d %H:%M:%S %Y GMT").replace(tzinfo=timezone.utc).timestamp()


def named_certificates(config: str) -> list[str]:
    """The certificates that a configuration of HAProxy names, sorted."""
    lines = [line for line in config.splitlines() if not line.lstrip().startswith("#")]
    return sorted({path for line in lines for path in re.findall(r"\bcrt\s+(/\S+)", line)})


def chrony_offset(tracking: str) -> Optional[float]:
    """Seconds that the clock is ahead, from `chronyc -c tracking`; None where chrony has no source."""
    fields = tracking.strip().split(",")
    if len(fields) < 14 or fields[13] == "Not synchronised":
        return None
    # Positive in this form is how far the clock is behind true time.
    return -float(fields[4])


def slow_commands(entries: Sequence[Mapping[str, Any]], since: float) -> list[dict[str, Any]]:
    """Entries of the slow log from a moment on, by command, the most time first: command, count, seconds."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry["at"] >= since:
            item = found.setdefault(entry["command"], {"command": entry["command"], "count": 0, "seconds": 0.0})
            item["count"] += 1
            item["seconds"] = round(item["seconds"] + entry["microseconds"] / 1e6, 6)
    return sorted(found.values(), key=lambda item: -float(item["seconds"]))


def last_errors(log: str, limit: int) -> list[str]:
    """The last lines of a log that speak of an error; else its last lines."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    bad = [line for line in lines if re.search(r"error|fail|fatal|panic|denied|refused|invalid|cannot|oom|killed", line, re.I)]
    return (bad or lines)[-limit:]
