"""What the page shows now, put together from what Prometheus and Alertmanager answer."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from trading_bot.errors import Unavailable
from trading_bot.page import plots
from trading_bot.page.sources import Alertmanager, Prometheus, Series

REPORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}\.html")
FRESH, REPORTS = 3.0, 50
_SEVERITIES = {"critical": 0, "warning": 1, "info": 2}
_INSTANCE = "max by (host, slot, version)"
#: What is asked anew each time.
_NOW = {
    "up": "up",
    "ready": f"{_INSTANCE} (trading_ready)",
    "member": f"{_INSTANCE} (trading_member)",
    "build": "max by (host, slot, version, release_id, image, config_hash) (trading_build_info)",
    "share": "max by (role, slot) (trading_traffic_share)",
    "cut": "max(trading_canary_cut)",
    "rollout": "max by (rollout, stage, paused) (trading_rollout_info)",
    "started": "min by (rollout) (trading_rollout_started_timestamp_seconds)",
    "heard": "max by (rollout) (trading_rollout_heard_timestamp_seconds)",
    "halted": "max(trading_halted)",
    "degraded": "max(trading_degraded)",
    "newest": "max(timestamp(up))",
    "waiting": "max(notifier_oldest_waiting_seconds)",
    "channels": "max(notifier_channels)",
    "unacknowledged": "max(notifier_unacknowledged)",
    **{
        name: plots.with_range(query, 60)
        for name, query in {
            "rate": plots.RATE,
            "errors": plots.ERRORS,
            "rejections": plots.REJECTIONS,
            "p50": plots.P50,
            "p99": plots.P99,
        }.items()
    },
}


class View:
    """Asks once for all who look at the same moment, and keeps the last answer for when none comes."""

    def __init__(
        self,
        prometheus: Prometheus,
        alertmanager: Alertmanager | None,
        slots: dict[str, int],
        reports: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._prometheus = prometheus
        self._alertmanager = alertmanager
        self._slots = {str(port): slot for slot, port in slots.items()}
        self._reports = Path(reports) if reports else None
        self._clock = clock
        self._kept: dict[str, tuple[float, dict[str, Any]]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self.trouble = ""

    async def of(self, span: str) -> dict[str, Any]:
        """All of the page. ``trouble`` says why it is old, or is empty; ``at`` is when it was true."""
        now, plotted = await asyncio.gather(
            self._fresh("now", FRESH, self._now),
            self._fresh(
                span, max(FRESH, plots.times(0, plots.SPANS[span])[2] / 2), lambda: self._plots(span)
            ),
        )
        self.trouble = now["trouble"] or plotted["trouble"]
        return {
            **plotted,
            **now,
            "span": span,
            "served": self._clock(),
            "trouble": self.trouble,
            "reports": await asyncio.to_thread(self._listed),
        }

    async def _fresh(self, name: str, age: float, ask: Callable[[], Any]) -> dict[str, Any]:
        async with self._locks.setdefault(name, asyncio.Lock()):
            at, kept = self._kept.get(name, (0.0, {}))
            if self._clock() - at < age:
                return kept
            try:
                found = {**await ask(), "trouble": ""}
            except Unavailable as error:
                # What was known stays on the page, and the page says how old it is.
                found = {**kept, "trouble": str(error)}
            self._kept[name] = (self._clock(), found)
            return found

    async def _now(self) -> dict[str, Any]:
        answers = await asyncio.gather(
            self._prometheus.alerts(), self._quiet(), *map(self._prometheus.instant, _NOW.values())
        )
        alerts, (quiet, problem) = answers[0], answers[1]
        found = dict(zip(_NOW, answers[2:], strict=True))
        role = {each["metric"].get("slot", "?"): each["metric"].get("role", "?") for each in found["share"]}
        rollouts = self._rollout(found)
        return {
            "at": self._clock(),
            "newest": _one(found["newest"]),
            "cut": _one(found["cut"]),
            "halted": _one(found["halted"]) == 1,
            "degraded": _one(found["degraded"]) == 1,
            "instances": self._instances(found, role),
            "others": list(_others(found["up"])),
            "releases": list(_releases(found, role)),
            "rollout": rollouts,
            "alerts": sorted(
                _alerts(alerts, quiet),
                key=lambda alert: (alert["quiet"], _SEVERITIES.get(alert["severity"], 3), alert["since"]),
            ),
            "pending": sum(each.get("state") == "pending" for each in alerts),
            "watched": any(_labels(each).get("alertname") == "Watchdog" for each in alerts),
            "silences": problem,
            "notifier": {name: _one(found[name]) for name in ("waiting", "channels", "unacknowledged")},
        }

    async def _quiet(self) -> tuple[list[dict[str, str]], str]:
        """Without Alertmanager alerts are shown nonetheless, as if none were silenced."""
        try:
            return (await self._alertmanager.quiet() if self._alertmanager else []), ""
        except Unavailable as error:
            return [], str(error)

    def _instances(self, found: dict[str, Series], role: dict[str, str]) -> list[dict[str, Any]]:
        ready, member, build = (
            {_at(each): each for each in found[name]} for name in ("ready", "member", "build")
        )
        made = {}
        for each in found["up"]:
            labels = _labels(each)
            if labels.get("job") != "app":
                continue
            port = str(labels.get("instance", "")).rpartition(":")[2]
            slot = self._slots.get(port, port)
            at = (labels.get("host", "?"), slot)
            about = _labels(build.get(at, {}))
            made[at] = {
                "host": at[0],
                "slot": slot,
                "role": role.get(slot, ""),
                "up": _value(each) == 1,
                "ready": _value(ready.get(at)) == 1,
                "member": _value(member.get(at)) == 1,
                "version": about.get("version", ""),
                "release": about.get("release_id", ""),
            }
        return [made[at] for at in sorted(made)]

    def _rollout(self, found: dict[str, Series]) -> dict[str, Any] | None:
        if not found["rollout"]:
            return None
        labels = _labels(found["rollout"][0])
        times = {
            name: next(
                (
                    _value(each)
                    for each in found[name]
                    if _labels(each).get("rollout") == labels.get("rollout")
                ),
                None,
            )
            for name in ("started", "heard")
        }
        stages = sorted({str(_labels(each).get("stage")) for each in found["rollout"]})
        return {
            "id": labels.get("rollout", "?"),
            "stage": " / ".join(stages),
            "paused": labels.get("paused") == "1",
            **times,
        }

    async def _plots(self, span: str) -> dict[str, Any]:
        times = first, last, step = plots.times(self._clock(), plots.SPANS[span])

        async def over(query: str) -> Series:
            return await self._prometheus.over(plots.with_range(query, step), times) if query else []

        async def plot(of: plots.Plot) -> dict[str, Any]:
            limit, *found = await asyncio.gather(over(of.limit), *(over(query) for _, query in of.lines))
            drawn = [
                line
                for (text, _), each in zip(of.lines, found, strict=True)
                for line in plots.lines(text, each)
            ]
            limits = plots.lines("limit", limit)
            return {
                "name": of.name,
                "title": of.title,
                "unit": of.unit,
                "lines": drawn,
                "limit": limits[0]["points"] if limits else [],
            }

        made = await asyncio.gather(*map(plot, plots.PLOTS))
        *begun, ended = await asyncio.gather(*(over(query) for *_, query in (*plots.MARKS, plots.ROLLOUT)))
        marks: list[dict[str, Any]] = []
        for (kind, text, _), each in zip(plots.MARKS, begun, strict=True):
            marks += plots.appearances(kind, text, each, first, step)
        marks += plots.endings(*plots.ROLLOUT[:2], ended, last, step)
        return {
            "plots": made,
            "marks": sorted(marks, key=lambda mark: (mark["at"], mark["text"])),
            "times": {"first": first, "last": last, "step": step},
        }

    def _listed(self) -> list[dict[str, Any]]:
        """The newest reports first."""
        try:
            there = [path for path in self._reports.iterdir() if _is_report(path)] if self._reports else []
            timed = sorted(((path.stat().st_mtime, path.stem) for path in there), reverse=True)
        except OSError:
            return []
        return [{"id": name, "at": at} for at, name in timed[:REPORTS]]

    def report(self, name: str) -> bytes | None:
        """The report of that file name; None where there is none."""
        try:
            path = self._reports / name if self._reports else None
            return path.read_bytes() if path and _is_report(path) and path.name == name else None
        except OSError:
            return None


def _is_report(path: Path) -> bool:
    return bool(REPORT.fullmatch(path.name)) and path.is_file() and not path.is_symlink()


def _releases(found: dict[str, Series], role: dict[str, str]) -> Iterable[dict[str, Any]]:
    figures = {
        name: {_release(each): _value(each) for each in found[name]}
        for name in ("rate", "errors", "rejections", "p50", "p99")
    }
    ready = {_at(each) for each in found["ready"] if _value(each) == 1}
    made: dict[tuple[str, ...], dict[str, Any]] = {}
    for each in found["build"]:
        labels = _labels(each)
        key = tuple(
            labels.get(name, "?") for name in ("slot", "version", "release_id", "image", "config_hash")
        )
        slot, version, release, image, config = key
        one = made.setdefault(
            key,
            {
                "slot": slot,
                "version": version,
                "release": release,
                "image": image,
                "config": config,
                "role": role.get(slot, ""),
                "hosts": 0,
                "ready": 0,
                **{name: of.get((version, slot)) for name, of in figures.items()},
            },
        )
        one["hosts"] += 1
        one["ready"] += _at(each) in ready
    order = {"stable": 0, "canary": 1}
    return sorted(made.values(), key=lambda one: (order.get(one["role"], 2), one["slot"], one["release"]))


def _others(found: Series) -> Iterable[dict[str, Any]]:
    """What else is asked for its figures, by host."""
    hosts: dict[str, dict[str, bool]] = {}
    for each in found:
        labels = _labels(each)
        if labels.get("job") != "app":
            jobs = hosts.setdefault(labels.get("host", "?"), {})
            job = labels.get("job", "?")
            jobs[job] = jobs.get(job, True) and _value(each) == 1
    return [{"host": host, "jobs": dict(sorted(jobs.items()))} for host, jobs in sorted(hosts.items())]


def _alerts(found: list[dict[str, Any]], quiet: list[dict[str, str]]) -> Iterable[dict[str, Any]]:
    """Those that fire, but for the one that always does."""
    for each in found:
        labels, notes = _labels(each), each.get("annotations") or {}
        if each.get("state") != "firing" or labels.get("alertname") == "Watchdog":
            continue
        shown = {name: value for name, value in labels.items() if name not in ("alertname", "severity")}
        yield {
            "name": labels.get("alertname", "?"),
            "severity": labels.get("severity", "?"),
            "summary": notes.get("summary", ""),
            "value": notes.get("value", each.get("value", "")),
            "threshold": notes.get("threshold", ""),
            "runbook": notes.get("runbook_url", ""),
            "since": each.get("activeAt", ""),
            "labels": shown,
            "quiet": labels in quiet,
        }


def _labels(each: dict[str, Any]) -> dict[str, str]:
    return each.get("labels") or each.get("metric") or {}


def _value(each: dict[str, Any] | None) -> float | None:
    return plots.number(each["value"][1]) if each and "value" in each else None


def _one(found: Series) -> float | None:
    return _value(found[0]) if found else None


def _at(each: dict[str, Any]) -> tuple[str, str]:
    return _labels(each).get("host", "?"), _labels(each).get("slot", "?")


def _release(each: dict[str, Any]) -> tuple[str, str]:
    return _labels(each).get("version", "?"), _labels(each).get("slot", "?")
