"""Filters that bring the life of an order into its playbook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleFilterError

_MODULE_UTILS = str(Path(__file__).resolve().parents[1] / "module_utils")
if _MODULE_UTILS not in ansible.module_utils.__path__:
    # On the control node nobody lays the project's module_utils beside Ansible's own, as it is done for hosts.
    ansible.module_utils.__path__.append(_MODULE_UTILS)

from ansible.module_utils import order_life


def story(results: Mapping[str, Any], account: str, order: str) -> list[str]:
    """The lines to show of what `order_life_read` found, by host; a host that gave nothing is named."""
    try:
        order_life.check(account, order)
    except order_life.OrderLifeError as error:
        raise AnsibleFilterError(str(error)) from error
    told = {host: result for host, result in results.items() if "events" in (result or {})}
    silent = {host: str((result or {}).get("msg") or "it did not answer") for host, result in results.items() if host not in told}
    return order_life.story(account, order, told, silent)


class FilterModule:
    """The filters' names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Each filter by its name."""
        return {"order_life": story}
