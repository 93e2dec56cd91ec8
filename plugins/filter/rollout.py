"""Filters that bring the plans of rollouts, and of the way back, into playbooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ansible.module_utils
import yaml
from ansible.errors import AnsibleFilterError

_MODULE_UTILS = str(Path(__file__).resolve().parents[1] / "module_utils")
if _MODULE_UTILS not in ansible.module_utils.__path__:
    # On the control node nobody lays the project's module_utils beside Ansible's own, as it is done for hosts.
    ansible.module_utils.__path__.append(_MODULE_UTILS)

from ansible.module_utils import rollout, rollout_plan
from ansible.module_utils.release import ReleaseError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(value: Any) -> float:
    """A duration as the app's config writes it (``10s``, ``1m``, ``24h``), or a number of seconds."""
    text = str(value).strip()
    for unit in ("ms", "s", "m", "h"):
        number = text[: -len(unit)]
        if text.endswith(unit) and number.replace(".", "", 1).isdigit():
            return float(number) * _UNITS[unit]
    try:
        return float(text)
    except ValueError:
        raise AnsibleFilterError(f"{value!r} is no duration, expected one such as 30s, 10m or 1h") from None


def stages(cuts: Sequence[float], min_time: Any, deadline: Any) -> list[dict[str, Any]]:
    """The stages of a rollout: ``{name, cut, min_seconds, deadline}``."""
    try:
        return [asdict(stage) for stage in rollout.stages_of(cuts, seconds(min_time), seconds(deadline))]
    except (rollout.RolloutError, TypeError, ValueError) as error:
        raise AnsibleFilterError(str(error)) from error


def notes(text: str, path: str) -> list[dict[str, str]]:
    """The differences that a release's notes declare as meant; the text is empty where there are no notes."""
    try:
        return rollout_plan.expected_differences(yaml.safe_load(text), path)
    except (ReleaseError, yaml.YAMLError) as error:
        raise AnsibleFilterError(f"{path}: {error}" if isinstance(error, yaml.YAMLError) else str(error)) from error


class FilterModule:
    """The filters' names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Each filter by its name."""
        return {
            "release_notes": notes,
            "release_seconds": seconds,
            "release_stages": stages,
            "release_canary_plan": rollout_plan.canary_plan,
            "release_canary_text": rollout_plan.tell_plan,
            "release_rollback_plan": rollout_plan.rollback_plan,
        }
