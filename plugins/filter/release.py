"""Filters that bring the release engine's decisions into playbooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Optional

import ansible.module_utils
from ansible.errors import AnsibleFilterError

_MODULE_UTILS = str(Path(__file__).resolve().parents[1] / "module_utils")
if _MODULE_UTILS not in ansible.module_utils.__path__:
    # On the control node nobody lays the project's module_utils beside Ansible's own, as it is done for hosts.
    ansible.module_utils.__path__.append(_MODULE_UTILS)

from ansible.module_utils import fleet_status, release, run_owner


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its ReleaseError told the way Ansible shows a filter's error."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except release.ReleaseError as error:
            raise AnsibleFilterError(str(error)) from error

    return run


def _attest(states: Mapping[str, Any], expected: Mapping[str, Any], slot: Optional[str] = None) -> Any:
    return release.attest(states, {**expected, "slot": slot} if slot else expected)


class FilterModule:
    """The filters' names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Each filter by its name."""
        return {
            "release_id": _plain(release.release_id),
            "release_json": _plain(release.release_json),
            "release_served": _plain(release.served),
            "release_plan": _plain(release.plan),
            "release_attest": _plain(_attest),
            "release_run_of": lambda _: run_owner.owner(),
            "release_run_is_over": run_owner.gone,
            "release_status": _plain(fleet_status.status),
            "release_status_table": _plain(fleet_status.status_table),
        }
