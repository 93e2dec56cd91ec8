"""The filter that makes Grafana's JSON of a dashboard's short description."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

_COLUMNS = 24
_HEIGHT = 8
_OPTIONS = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
_SOURCE = {"type": "prometheus", "uid": "prometheus"}
#: Marks on the time axis of every plot: what serves, and what a rollout does.
MARKS = {
    "Serves": (
        "(max by (version, slot) (trading_member) == 1) unless (max by (version, slot) (trading_member offset 1m) == 1)",
        "{{version}} in {{slot}} has traffic",
        "green",
    ),
    "Share": (
        "max(trading_canary_cut) / 100 and (max(trading_canary_cut) != max(trading_canary_cut offset 1m))",
        "The canary's share changed",
        "blue",
    ),
    "Stage": (
        "max by (rollout, stage) (trading_rollout_info) unless max by (rollout, stage) (trading_rollout_info offset 1m)",
        "{{rollout}}: {{stage}}",
        "purple",
    ),
}


def dashboard(spec: Mapping[str, Any], name: str, thresholds: Mapping[str, Any]) -> dict[str, Any]:
    """Grafana's JSON of the dashboard ``name``. ``thresholds`` are Prometheus's own, which panels name."""
    try:
        title, rows = spec["title"], spec["rows"]
        panels = list(_laid_out(rows, thresholds))
    except (KeyError, TypeError, AttributeError) as error:
        raise AnsibleFilterError(f"dashboard {name}: {type(error).__name__}: {error}") from None
    return {
        "uid": f"trading-{name}",
        "title": title,
        "tags": ["trading-bot"],
        "editable": False,
        "schemaVersion": 39,
        "version": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "utc",
        "graphTooltip": 1,
        "links": [{"type": "dashboards", "tags": ["trading-bot"], "asDropdown": True, "title": "Others", "keepTime": True}],
        "templating": {"list": [_variable(*each) for each in spec.get("variables", {}).items()]},
        "annotations": {"list": [_mark(*each) for each in MARKS.items()]},
        "panels": panels,
    }


def queries(made: Mapping[str, Any]) -> Iterator[str]:
    """Every PromQL expression in a dashboard's JSON, with Grafana's own variables replaced by values."""
    found = [target["expr"] for panel in made["panels"] for target in panel.get("targets", [])]
    found += [mark["expr"] for mark in made["annotations"]["list"]]
    found += [re.sub(r"label_values\((.*), \w+\)", r"\1", each["query"]) for each in made["templating"]["list"]]
    for expr in found:
        yield re.sub(r"\$__(?:rate_interval|range)", "5m", re.sub(r"\$\w+(?=\")", ".+", expr))


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name, "type": "query", "datasource": _SOURCE, "query": query, "refresh": 2, "multi": True, "includeAll": True,
        "allValue": ".+", "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip


def _mark(name: str, mark: tuple[str, str, str]) -> dict[str, Any]:
    expr, title, color = mark
    return {
        "name": name, "datasource": _SOURCE, "enable": True, "iconColor": color,
        "expr": expr, "step": "60s", "titleFormat": title,
    }  # fmt: skip


def _laid_out(rows: list[dict[str, Any]], thresholds: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The panels of each row beside each other, under the row's name."""
    number, y = 1, 0
    for row in rows:
        yield {
            "id": number, "type": "row", "title": row["title"], "collapsed": False, "panels": [],
            "gridPos": {"h": 1, "w": _COLUMNS, "x": 0, "y": y},
        }  # fmt: skip
        number, y = number + 1, y + 1
        each = max(1, min(3, len(row["panels"])))
        for place, panel in enumerate(row["panels"]):
            line, column = divmod(place, each)
            width = _COLUMNS // each
            spot = {"h": _HEIGHT, "w": width, "x": column * width, "y": y + line * _HEIGHT}
            yield {"id": number, "gridPos": spot, **_panel(panel, thresholds)}
            number += 1
        y += -(-len(row["panels"]) // each) * _HEIGHT


def _panel(panel: Mapping[str, Any], thresholds: Mapping[str, Any]) -> dict[str, Any]:
    kind = panel.get("type", "timeseries")
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if "threshold" in panel:
        named = panel["threshold"]
        steps.append({"color": "red", "value": float(thresholds[named["name"]]) * float(named.get("times", 1))})
    custom = {"thresholdsStyle": {"mode": "line" if len(steps) > 1 else "off"}, "fillOpacity": 8, "showPoints": "never"}
    defaults: dict[str, Any] = {
        "unit": panel["unit"],
        "thresholds": {"mode": "absolute", "steps": steps},
        "min": panel.get("min", 0),
    }
    if kind == "timeseries":
        defaults["custom"] = custom
    if panel.get("min", 0) is not None:
        defaults["min"] = panel.get("min", 0)
    return {
        "type": kind,
        "title": panel["title"],
        "description": panel["description"],
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _OPTIONS if kind == "timeseries" else {},
        "links": [{"title": "Runbook", "url": panel["runbook"], "targetBlank": True}] if "runbook" in panel else [],
        "targets": [
            {"refId": chr(65 + index), "datasource": _SOURCE, "expr": expr, "legendFormat": legend, "instant": kind == "stat"}
            for index, (legend, expr) in enumerate(panel["queries"].items())
        ],
    }  # fmt: skip


class FilterModule:
    """What Ansible asks of a file of filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"grafana_dashboard": dashboard}
