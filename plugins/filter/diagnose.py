"""Filters of the role diagnose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DOCUMENTATION = r"""
name: diagnose
short_description: Which ports of which hosts a host needs
description:
  - C(diagnose_reach) makes of a table of services the connections that one host needs.
author:
  - Trading Bot Ops
"""


def diagnose_reach(
    table: Sequence[Mapping[str, Any]], host: str, groups: Mapping[str, Sequence[str]], addresses: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The connections that a host needs: {to, service, address, port, needs, slot, vital}, in the table's order.

    A row of the table has the service, the groups that need it (from), the group or the host that offers it (to), its port,
    whether the fleet is down without it (vital), the service on the other host that it follows from (needs), and its slot if it
    has one.
    """
    found = []
    for row in table:
        if not any(host in groups.get(group, []) for group in row["from"]):
            continue
        for target in groups.get(row["to"], [row["to"]]):
            if target in addresses:
                found.append(
                    {
                        "to": target,
                        "service": row["service"],
                        "address": addresses[target],
                        "port": int(row["port"]),
                        "needs": row.get("needs", row["service"]),
                        "slot": row.get("slot", ""),
                        "vital": bool(row.get("vital", False)),
                    }
                )
    return found


class FilterModule:
    """Filters of the role diagnose."""

    def filters(self) -> dict[str, Any]:
        """Name the filters."""
        return {"diagnose_reach": diagnose_reach}
