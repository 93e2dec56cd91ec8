"""What a load balancer tells Prometheus of the rollout in progress, as a file for the node exporter. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Optional

from .lease import Lock
from .traffic import BUCKETS, Traffic

#: The phases after which nobody has to look after a rollout any more.
ENDED = ("end", "ended", "retired")


def _seconds(text: Any) -> Optional[float]:
    """What `stamp` wrote, as seconds since 1970."""
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def _label(value: Any) -> str:
    return str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def rollout_series(traffic: Optional[Traffic], rollout: Optional[Mapping[str, Any]], lock: Optional[Lock]) -> str:
    """Who gets which share; and while a rollout has not ended, when it began, when it was last heard of, and where it is.

    ``traffic`` is what the load balancer does; None where it does nothing yet.
    """
    cut = traffic.cut if traffic else 0
    lines = [
        "# HELP trading_canary_cut The canary's share of the accounts in basis points.",
        "# TYPE trading_canary_cut gauge",
        f"trading_canary_cut {cut}",
    ]
    if traffic:
        shares = {("stable", traffic.stable): BUCKETS - cut}
        if traffic.canary != traffic.stable:
            shares["canary", traffic.canary] = cut
        lines += [
            "# HELP trading_traffic_share A slot's share of the accounts in basis points, and its part.",
            "# TYPE trading_traffic_share gauge",
            *(f'trading_traffic_share{{role="{role}",slot="{slot}"}} {share}' for (role, slot), share in shares.items()),
        ]
    if not rollout or rollout.get("phase") in ENDED:
        return "\n".join(lines) + "\n"
    name = str(rollout.get("id"))
    heard = _seconds(rollout.get("updated_at"))
    if lock is not None and lock.rollout == name:
        heard = max(lock.renewed_at, heard or 0.0)
    stage = _label(rollout.get("stage") or rollout.get("phase"))
    about = f'rollout="{_label(name)}",stage="{stage}",paused="{int(bool(rollout.get("paused")))}"'
    lines += [
        "# HELP trading_rollout_info The rollout that has not ended, and where it is.",
        "# TYPE trading_rollout_info gauge",
        f"trading_rollout_info{{{about}}} 1",
    ]
    for series, text, moment in (
        ("started", "When it began.", _seconds(rollout.get("started_at"))),
        ("heard", "When whoever walks it was last heard of.", heard),
    ):
        if moment is not None:
            full = f"trading_rollout_{series}_timestamp_seconds"
            lines += [f"# HELP {full} {text}", f"# TYPE {full} gauge", f'{full}{{rollout="{_label(name)}"}} {moment:.3f}']
    return "\n".join(lines) + "\n"
