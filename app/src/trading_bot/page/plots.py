"""What is plotted over time, and the marks on it: queries, and the pictures' points made of their answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trading_bot.page.sources import Series

SPANS = {"15m": 900, "1h": 3600, "6h": 6 * 3600, "24h": 24 * 3600}
POINTS = 180
_ORDERS = "sum by (version, slot) (rate(trading_orders_total%s[$range]))"
_SHARE = f"100 * {_ORDERS} / ({_ORDERS % ''} > 0)"
_SLOWEST = (
    "1000 * histogram_quantile(%s, sum by (version, slot, le)"
    " (rate(trading_order_duration_seconds_bucket[$range])))"
)
_FULL = "1 - node_filesystem_avail_bytes / (node_filesystem_size_bytes > 0)"
ERRORS = _SHARE % '{outcome=~"error|unavailable"}'
REJECTIONS = _SHARE % '{outcome="refused"}'
RATE = _ORDERS % ""
P50, P99 = _SLOWEST % "0.5", _SLOWEST % "0.99"


@dataclass(frozen=True)
class Plot:
    """``lines``: what each is called, with labels in braces, and its query. ``limit``: one to stay within."""

    name: str
    title: str
    unit: str
    lines: Sequence[tuple[str, str]]
    limit: str = ""


def _worst(name: str, title: str, unit: str, by: str, limit: str, percent: bool = False) -> Plot:
    times = "100 * " if percent else ""
    return Plot(
        name,
        title,
        unit,
        [("worst account", f"{times}{by}(trading_risk_worst_{name})")],
        f'{times}max(trading_limit{{limit="{limit}"}})',
    )


_BY_HOST = "{host}"
_RELEASE = "{version} {slot}"
PLOTS = (
    Plot("orders", "Orders", "orders/s", [(_RELEASE, RATE)]),
    Plot("errors", "Orders that end in an error", "%", [(_RELEASE, ERRORS)]),
    Plot("rejections", "Orders refused by risk checks", "%", [(_RELEASE, REJECTIONS)]),
    Plot("latency", "Time to decide an order", "ms", [(f"{_RELEASE} P50", P50), (f"{_RELEASE} P99", P99)]),
    Plot("share", "Accounts on the canary", "%", [("canary", "max(trading_canary_cut) / 100")]),
    Plot("outbox", "Events waiting for NATS", "events", [("outbox", "max(trading_outbox_pending)")]),
    _worst("leverage", "Leverage", "×", "max", "max_leverage"),
    _worst("margin_level", "Margin level", "×", "min", "min_margin_level"),
    _worst("drawdown", "Drawdown", "%", "max", "max_drawdown", percent=True),
    Plot(
        "cpu",
        "Processors busy",
        "%",
        [(_BY_HOST, '100 * (1 - avg by (host) (rate(node_cpu_seconds_total{mode="idle"}[$range])))')],
    ),
    Plot(
        "memory",
        "Memory used",
        "%",
        [
            (
                _BY_HOST,
                "100 * (1 - max by (host) (node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes))",
            )
        ],
    ),
    Plot("disk", "Fullest file system", "%", [(_BY_HOST, f"100 * max by (host) ({_FULL})")]),
)

#: What becomes a mark when it first appears: its kind, its text with labels in braces, and its query.
MARKS = (
    ("release", "{release_id} starts in {slot}", "max by (release_id, slot) (trading_build_info)"),
    (
        "release",
        "{version} in {slot} is stable",
        "max by (version, slot) (trading_build_info) * on (slot) group_left"
        ' clamp(max by (slot) (trading_traffic_share{role="stable"}), 1, 1)',
    ),
    ("rollout", "Rollout {stage}", "max by (rollout, stage) (trading_rollout_info)"),
)
ROLLOUT = ("rollout", "Rollout ended", "max by (rollout) (trading_rollout_info)")


def times(now: float, span: int) -> tuple[int, int, int]:
    """First, last and step, on whole steps, so that the picture stands still between two of them."""
    step = max(5, span // POINTS)
    last = int(now) // step * step
    return last - span, last, step


def with_range(query: str, step: int) -> str:
    """A rate looks back over four scrapes at least, and over all that lies between two points."""
    return query.replace("$range", f"{max(60, 2 * step)}s")


def filled(text: str, labels: dict[str, Any]) -> str:
    for name in ("version", "slot", "host", "release_id", "stage"):
        text = text.replace(f"{{{name}}}", str(labels.get(name, "?")))
    return text


def number(value: Any) -> float | None:
    """What Prometheus writes as text; None for what is no number, or endless."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def lines(text: str, found: Series) -> list[dict[str, Any]]:
    """Points of each series as [time, value], shortened to six digits; without those that are no number."""
    made = []
    for each in found:
        points = [(int(at), number(value)) for at, value in each.get("values", [])]
        kept = [(at, float(f"{value:.6g}")) for at, value in points if value is not None]
        if kept:
            made.append({"name": filled(text, each.get("metric", {})), "points": kept})
    return sorted(made, key=lambda line: line["name"])


def appearances(kind: str, text: str, found: Series, first: int, step: int) -> Iterable[dict[str, Any]]:
    """A mark for each series that was not there at the beginning."""
    for each in found:
        begins = int(each["values"][0][0]) if each.get("values") else first
        if begins > first + step:
            yield {"at": begins, "kind": kind, "text": filled(text, each.get("metric", {}))}


def endings(kind: str, text: str, found: Series, last: int, step: int) -> Iterable[dict[str, Any]]:
    """A mark for each series that is not there at the end any more."""
    for each in found:
        ends = int(each["values"][-1][0]) if each.get("values") else last
        if ends < last - step:
            yield {"at": ends + step, "kind": kind, "text": text}
