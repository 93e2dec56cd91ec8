"""Filters that bring what is wanted of the app's switches, and what came of it, into playbooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ansible.module_utils

_MODULE_UTILS = str(Path(__file__).resolve().parents[1] / "module_utils")
if _MODULE_UTILS not in ansible.module_utils.__path__:
    # On the control node nobody lays the project's module_utils beside Ansible's own, as it is done for hosts.
    ansible.module_utils.__path__.append(_MODULE_UTILS)

from ansible.module_utils import switching


def switch_request(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What is wanted, from the inputs of the role by their names without `switch_`."""
    return switching.request(**inputs)


class FilterModule:
    """The filters' names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Each filter by its name."""
        return {
            "switch_request": switch_request,
            "switch_plan": switching.plan,
            "switch_outcome": switching.outcome,
        }
