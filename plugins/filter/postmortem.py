"""Filters that bring the review of a span of time into its playbook."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleFilterError

_MODULE_UTILS = str(Path(__file__).resolve().parents[1] / "module_utils")
if _MODULE_UTILS not in ansible.module_utils.__path__:
    # On the control node nobody lays the project's module_utils beside Ansible's own, as it is done for hosts.
    ansible.module_utils.__path__.append(_MODULE_UTILS)

from ansible.module_utils import postmortem


def span(first: Any, last: Any = "") -> dict[str, float]:
    """``{since, until}`` in Unix seconds."""
    try:
        return postmortem.span(first, last, time.time())
    except postmortem.PostmortemError as error:
        raise AnsibleFilterError(str(error)) from error


def page(results: Mapping[str, Any], asked: Mapping[str, float]) -> str:
    """The page of what `postmortem_read` found, by host; a host that gave nothing is a note."""
    events, notes = {}, []
    for host, result in results.items():
        if "events" in (result or {}):
            events[host] = result["events"]
            notes += [f"{host}: {note}" for note in result["notes"]]
        else:
            notes.append(f"{host}: {(result or {}).get('msg') or 'it did not answer'}")
    return postmortem.page(asked["since"], asked["until"], events, notes)


class FilterModule:
    """The filters' names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Each filter by its name."""
        return {"postmortem_span": span, "postmortem_page": page, "postmortem_file_name": postmortem.file_name}
