"""What a host tells about itself, read from the text of its files and programs."""

from __future__ import annotations

import re


def os_release(text: str) -> dict[str, str]:
    """The id and version of the distribution from the text of /etc/os-release, empty where it does not say."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    fields = {key.strip(): value.strip().strip("\"'") for key, value in pairs}
    return {"id": fields.get("ID", ""), "version": fields.get("VERSION_ID", "")}


def memory_gib(meminfo: str) -> float:
    """The memory that the kernel manages, in GiB, from the text of /proc/meminfo; raises ValueError without it."""
    match = re.search(r"^MemTotal:\s+(\d+) kB$", meminfo, re.MULTILINE)
    if match is None:
        raise ValueError("no MemTotal in /proc/meminfo")
    return int(match.group(1)) / 1024**2


def version(text: str) -> str | None:
    """The first dotted number in what a program or apt says of a version, None if there is none."""
    match = re.search(r"\d+(?:\.\d+)+", text)
    return match.group() if match else None


def newest(versions: list[str | None]) -> str | None:
    """The highest of some dotted versions, None if none is known."""
    known = [item for item in versions if item is not None]
    return max(known, key=lambda item: [int(part) for part in item.split(".")]) if known else None


def candidates(policy: str) -> dict[str, str | None]:
    """Package to the version that apt would install, from the text of `apt-cache policy`; None where there is none."""
    found: dict[str, str | None] = {}
    package = ""
    for line in policy.splitlines():
        if line and not line[0].isspace() and line.endswith(":"):
            package = line[:-1]
        elif package and line.strip().startswith("Candidate:"):
            found[package] = version(line.split(":", 1)[1].strip())
    return found


def interface(addresses: list[dict[str, object]], address: str) -> str | None:
    """The name of the interface that holds an address, from the output of `ip -json address`; None if none does."""
    for link in addresses:
        held = link.get("addr_info")
        if isinstance(held, list) and any(item.get("local") == address for item in held):
            return str(link.get("ifname"))
    return None


def block_device(mountinfo: str, path: str) -> str | None:
    """What the file system that holds an absolute path was mounted from, from the text of /proc/self/mountinfo."""
    best, device = "", None
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        point, source = fields[4], fields[fields.index("-") + 2]
        holds = path == point or path.startswith(point.rstrip("/") + "/")
        if holds and len(point) >= len(best):
            best, device = point, source
    return device
