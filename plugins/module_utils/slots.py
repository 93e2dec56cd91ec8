"""What the tools on an app host print about a slot, and when waiting for it is in vain. Pure, standard library only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Optional

#: Which properties of the unit are asked for, and the names they are told under.
UNIT_PROPERTIES = {
    "LoadState": "load",
    "UnitFileState": "enabled",
    "ActiveState": "active",
    "SubState": "sub",
    "NRestarts": "restarts",
    "Result": "result",
    "ExecMainStatus": "exit_status",
}
CRASH_LOOP_RESTARTS = 2
EXIT_BAD_CONFIG = 78

_SECRETS = (
    re.compile(r"(?P<keep>(?i:bearer|basic)\s+)[^\s\"',]+"),
    re.compile(r"(?P<keep>\w+://[^\s:/@]*:)[^\s@]+(?=@)"),
    re.compile(
        r"(?P<keep>(?i:[\w-]*(?:password|passwd|passphrase|secret|token|api[_-]?key|private[_-]?key))[\"']?\s*[:=]\s*[\"']?)"
        r"(?!\s)[^\s\"',}]+"
    ),
)


def parse_unit(shown: str) -> dict[str, Any]:
    """What ``systemctl show`` printed: load, enabled, active, sub, restarts, result, exit_status."""
    values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    unit: dict[str, Any] = {name: values.get(key, "") for key, name in UNIT_PROPERTIES.items()}
    for name in ("restarts", "exit_status"):
        unit[name] = int(unit[name]) if unit[name].isdecimal() else 0
    return unit


def parse_containers(inspected: str) -> dict[str, dict[str, Any]]:
    """What ``docker container inspect`` printed, by the container's name: image, status, running, restarts, exit_status."""
    found = {}
    for container in json.loads(inspected or "[]"):
        state = container["State"]
        found[container["Name"].lstrip("/")] = {
            "image": container["Image"],
            "status": state["Status"],
            "running": bool(state["Running"]) and not state.get("Restarting"),
            "restarts": int(container.get("RestartCount") or 0),
            "exit_status": int(state.get("ExitCode") or 0),
        }
    return found


def readiness(status: int, body: bytes) -> tuple[bool, str]:
    """Whether an answer of ``/health/ready`` means ready, and if not the reason that its problem document gives."""
    if status == 200:
        return True, ""
    text = body.decode(errors="replace").strip()
    try:
        problem = json.loads(text)
    except ValueError:
        problem = None
    if isinstance(problem, dict):
        reasons = problem.get("reasons")
        named = "; ".join(f"{name}: {why}" for name, why in reasons.items()) if isinstance(reasons, dict) else ""
        text = named or str(problem.get("detail") or problem.get("title") or text)
    return False, masked(f"{status}: {text[:300]}" if text else str(status))


def masked(text: str) -> str:
    """The text without what looks like a password, a token or credentials in an address."""
    for pattern in _SECRETS:
        text = pattern.sub(r"\g<keep>********", text)
    return text


def restarts(state: Mapping[str, Any]) -> int:
    """How often the slot was started again by itself: by systemd and by the container engine."""
    unit, container = state.get("unit") or {}, state.get("container") or {}
    return int(unit.get("restarts") or 0) + int(container.get("restarts") or 0)


def in_vain(state: Mapping[str, Any], restarts_at_start: int) -> Optional[str]:
    """Why this slot will not become ready however long one waits; None while it may."""
    unit, container = state.get("unit") or {}, state.get("container") or {}
    seen = restarts(state) - restarts_at_start
    # A container that was left behind has its exit status still while the unit starts another one.
    stopped = not state.get("running") and unit.get("active") not in ("activating", "active", "reloading")
    if stopped and EXIT_BAD_CONFIG in (container.get("exit_status"), unit.get("exit_status")):
        return f"it refused its configuration (exit status {EXIT_BAD_CONFIG})"
    if seen >= CRASH_LOOP_RESTARTS:
        return f"it crashes again and again ({seen} restarts while waiting)"
    if unit.get("active") == "failed":
        return f"its unit failed ({unit.get('result') or 'unknown result'})"
    if unit.get("load") in ("not-found", "bad-setting", "error", "masked"):
        return f"its unit cannot be started ({unit['load']})"
    return None
