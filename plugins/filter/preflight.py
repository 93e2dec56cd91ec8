"""The table of found against required: rows of a host, their picture, and the shortfalls of all hosts."""

from __future__ import annotations

import re
from typing import Any

DOCUMENTATION = r"""
name: preflight
short_description: Compare what hosts have with what they must have
description:
  - C(preflight_rows) compares one host, C(preflight_table) draws the rows of all, C(preflight_shortfalls) lists what is short.
author:
  - Trading Bot Ops
"""

Row = dict[str, str]
HEADER: Row = {"host": "host", "what": "requirement", "found": "found", "required": "required", "ok": "ok"}


def _version_key(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def _row(what: str, found: str, required: str, ok: bool | None, on_unknown: str, why: str = "") -> Row:
    """One row; ok is None where the host cannot tell, and on_unknown (fail or accept) then decides."""
    verdict = {True: "yes", False: "no", None: "no" if on_unknown == "fail" else "accepted"}[ok]
    if ok is None:
        why = "the host cannot tell; make sure yourself, then set preflight_on_unknown: accept"
    return {"what": what, "found": found, "required": required, "ok": verdict, "why": why}


def _size(what: str, found: float, required: float, allowance: float, on_unknown: str) -> Row:
    least = required * (1 - allowance / 100)
    return _row(what, f"{found:g} GiB", f"{required:g} GiB", found >= least, on_unknown)


def _distribution(found: Row, minima: dict[str, str], on_unknown: str) -> Row:
    name, version = found["id"], found["version"]
    least = {key.lower(): value for key, value in minima.items()}.get(name.lower())
    ok = least is not None and _version_key(version) >= _version_key(least)
    wanted = " or ".join(f"{key} {value}" for key, value in minima.items())
    return _row("distribution", f"{name} {version}".strip() or "unnamed", wanted, ok, on_unknown)


def _address(address: str, interface: str | None, on_unknown: str) -> Row:
    found = "not defined" if not address else f"{address} on {interface or 'no interface'}"
    return _row("private_address", found, "an address of this host", bool(address and interface), on_unknown)


def _network(mbit: int | None, required: int, on_unknown: str) -> Row:
    ok = True if required == 0 else None if mbit is None else mbit >= required
    found = "unknown" if mbit is None else f"{mbit} Mbit/s"
    return _row("network", found, f"{required} Mbit/s" if required else "any", ok, on_unknown)


def _ssd(ssd: bool | None, required: bool, on_unknown: str) -> Row:
    found = {True: "SSD", False: "turning disk", None: "unknown"}[ssd]
    return _row("kind of disk", found, "SSD" if required else "any", ssd if required else True, on_unknown)


def _software(name: str, found: dict[str, Any], least: str, side_by_side: bool, on_unknown: str) -> Row:
    """What is installed counts; where nothing is, or versions live side by side, what apt would install counts too."""
    installed, candidate = found["installed"], found["candidate"]
    counted = [installed] if installed and not side_by_side else [installed, candidate]
    known = [version for version in counted if version]
    ok = any(_version_key(version) >= _version_key(least) for version in known) if known else None
    parts = [installed] if installed else ["not installed"]
    if candidate and candidate != installed:
        parts.append(f"apt offers {candidate}")
    elif not installed and not candidate:
        parts.append("apt offers none")
    return _row(name, ", ".join(parts), f"{least} or later", ok, on_unknown)


def preflight_rows(measured: dict[str, Any], required: dict[str, Any]) -> list[Row]:
    """Compare one host.

    measured is the result of the module preflight_measure, also where the host was unreachable or the module failed.
    required has cpu_cores, memory_gib, disk_gib, allowance_percent, ssd, network_mbit, distributions, address,
    software (name to side_by_side), versions (name to the oldest that will do) and on_unknown (fail or accept).
    """
    unknown = required["on_unknown"]
    if measured.get("unreachable") or "found" not in measured:
        what = "reachable" if measured.get("unreachable") else "measurable"
        why = " ".join(str(measured.get("msg", "no answer")).removeprefix("Task failed: ").split())
        return [_row(what, "no", "yes", False, unknown, why)]
    found = measured["found"]
    allowance = required["allowance_percent"]
    cores = found["cpu_cores"]
    return [
        _distribution(found["distribution"], required["distributions"], unknown),
        _row("CPU cores", str(cores), str(required["cpu_cores"]), cores >= required["cpu_cores"], unknown),
        _size("memory", found["memory_gib"], required["memory_gib"], allowance, unknown),
        _size("disk", found["disk_gib"], required["disk_gib"], allowance, unknown),
        _ssd(found["ssd"], required["ssd"], unknown),
        _address(required["address"], found["interface"], unknown),
        _network(found["network_mbit"], required["network_mbit"], unknown),
        *(
            _software(name, found["software"][name], required["versions"][name], item.get("side_by_side", False), unknown)
            for name, item in required["software"].items()
        ),
    ]


def preflight_table(rows: dict[str, list[Row]]) -> str:
    """Draw the rows of all hosts, one line each, columns aligned."""
    lines = [HEADER, *({"host": host, **row} for host, items in rows.items() for row in items)]
    widths = {key: max(len(line[key]) for line in lines) for key in HEADER}
    return "\n".join(" | ".join(line[key].ljust(widths[key]) for key in HEADER).rstrip() for line in lines)


def preflight_shortfalls(rows: dict[str, list[Row]]) -> list[str]:
    """One sentence for every row of every host that is not good enough."""
    return [
        f"{host}: {row['what']}: found {row['found']}, required {row['required']}" + (row["why"] and f" ({row['why']})")
        for host, items in rows.items()
        for row in items
        if row["ok"] == "no"
    ]


class FilterModule:
    """Filters of the role preflight."""

    def filters(self) -> dict[str, Any]:
        """Name the filters."""
        return {
            "preflight_rows": preflight_rows,
            "preflight_table": preflight_table,
            "preflight_shortfalls": preflight_shortfalls,
        }
