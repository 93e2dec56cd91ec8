"""The pictures of a rollout over time: share, error rate, response times, evidence.

Each is a figure whose lines stretch with the page and whose texts do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional

from .rollout_record import (
    Parts,
    Seen,
    clock,
    cut_of,
    escaped,
    event_of,
    latency,
    mapping,
    number_of,
    percent,
    plain,
    tests_of,
)
from .sequential import confidence_sequence

#: The probability with which the band of the error rate misses the rate even once.
RISK = 0.05


#: Points of a line that are drawn; of more, the extremes are kept.
POINTS = 360


def _rounded(value: float) -> str:
    """A power of ten in few characters."""
    return f"{value / 1e6:,.0f}M" if value >= 1e6 else f"{value / 1e3:.0f}k" if value >= 1e4 else f"{value:,.0f}"


def thinned(points: Sequence[Any], most: int = POINTS) -> list[Any]:
    """At most about so many of these (time, value), with the first, lowest, highest and last of each part kept."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most / 4))
    kept = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        places = {0, len(part) - 1}
        places.add(min(range(len(part)), key=lambda at: part[at][1]))
        places.add(max(range(len(part)), key=lambda at: part[at][1]))
        kept += [part[place] for place in sorted(places)]
    return kept


@dataclass(frozen=True)
class Line:
    """One line of a picture. ``runs``: its points, broken where a stage ends or a value is missing."""

    name: str
    style: str
    runs: Sequence[Sequence[Any]]
    note: str = ""
    step: bool = False
    dots: bool = False

    @property
    def values(self) -> list[float]:
        """Every value of the line."""
        return [value for run in self.runs for _, value in run]


def _runs(looks: Sequence[Seen], value: Callable[[Seen], Optional[float]]) -> list[list[Any]]:
    """The points of a value over the looks, a run for each stage and between gaps; thinned all together."""
    runs: list[list[Any]] = []
    stage: Any = object()
    for look in looks:
        found = value(look)
        if found is None:
            stage = object()
            continue
        if look.stage != stage:
            runs.append([])
            stage = look.stage
        runs[-1].append((look.at, found))
    points = sum(len(run) for run in runs)
    if points <= POINTS:
        return runs
    return [thinned(run, max(8, round(POINTS * len(run) / points))) for run in runs][:POINTS]


def _between(looks: Sequence[Seen], who: str, least: int = 20) -> list[Any]:
    """The error rate of this version between looks that are at least so many requests apart."""
    points = []
    stage, bad_before, before = "", 0.0, 0.0
    for look in looks:
        bad, total = look.of(who, "errors"), look.of(who, "requests")
        if bad is None or total is None:
            continue
        if stage != look.stage or total < before:
            stage, bad_before, before = look.stage, 0.0, 0.0
        if total - before >= least:
            points.append((look.at, min(1.0, max(0.0, (bad - bad_before) / (total - before)))))
            bad_before, before = bad, total
    return thinned(points)


def _band(looks: Sequence[Seen], who: str) -> list[list[Any]]:
    """Where the error rate of this version lies, valid at all looks together: runs of (time, low, high)."""
    runs: list[list[Any]] = []
    stage: Any = object()
    every = max(1, math.ceil(len(looks) / 120))
    for number, look in enumerate(looks):
        last = number + 1 == len(looks) or looks[number + 1].stage != look.stage
        if number % every and not last and look.stage == stage:
            continue
        bad, total = look.of(who, "errors"), look.of(who, "requests")
        if bad is None or total is None or not 0 <= bad <= total or total < 1:
            continue
        if look.stage != stage:
            runs.append([])
            stage = look.stage
        runs[-1].append((look.at, *confidence_sequence(int(bad), int(total), RISK)))
    return runs


@dataclass(frozen=True)
class Axis:
    """A scale from low to high, and its ticks with their labels."""

    low: float
    high: float
    ticks: Sequence[Any]
    log: bool = False

    def place(self, value: float) -> float:
        """Where the value is, 0 at the low end and 1 at the high one; beyond the ends at the end."""
        if self.log:
            value, low, high = math.log(max(value, self.low)), math.log(self.low), math.log(self.high)
        else:
            low, high = self.low, self.high
        return min(1.0, max(0.0, (value - low) / (high - low)))


def _linear(highest: float, label: Callable[[float], str]) -> Axis:
    """From 0 to a round number at or above this one."""
    highest = highest if highest > 0 else 1.0
    step = 10.0 ** math.floor(math.log10(highest / 4))
    step = next(step * factor for factor in (1, 2, 2.5, 5, 10) if step * factor * 4 >= highest * (1 - 1e-9))
    count = math.ceil(highest / step - 1e-9)
    return Axis(0.0, step * count, [(step * at, label(step * at)) for at in range(count + 1)])


def _logarithmic(values: Sequence[float], label: Callable[[float], str]) -> Axis:
    low, high = min(values), max(values)
    low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high) - 1e-9)
    if high <= low:
        high = low * 10
    decades = round(math.log10(high / low))
    each = (1, 2, 5) if decades <= 2 else (1,)
    every = max(1, math.ceil(decades / 5))
    ticks = [low * 10.0**at * factor for at in range(0, decades + 1, every) for factor in each]
    return Axis(low, high, [(tick, label(tick)) for tick in ticks if tick <= high * 1.001], log=True)


_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)


def time_axis(start: float, end: float) -> Axis:
    step = next((step for step in _STEPS if (end - start) / step <= 7), math.ceil((end - start) / 7 / 86400) * 86400)
    form = "%H:%M:%S" if step < 60 else "%H:%M" if step < 86400 else "%d %b"
    first = math.ceil(start / step)
    ticks = [at * step for at in range(first, math.floor(end / step) + 1)]
    return Axis(start, end, [(tick, clock(tick, form)) for tick in ticks])


WIDTH, HEIGHT = 1000, 500


@dataclass(frozen=True)
class Frame:
    """What all pictures share: the time axis, the stages behind the lines, and the marks."""

    time: Axis
    stages: Sequence[Any]  # (name, from, until)
    marks: Sequence[Any]  # (number, time, event, sign, row)


def _x(frame: Frame, at: float) -> str:
    return f"{WIDTH * frame.time.place(at):.1f}".rstrip("0").rstrip(".")


def _y(axis: Axis, value: float) -> str:
    return f"{HEIGHT * (1 - axis.place(value)):.1f}".rstrip("0").rstrip(".")


def _drawn(frame: Frame, axis: Axis, line: Line) -> str:
    paths = []
    for run in line.runs:
        if line.dots or len(run) == 1:
            paths += [f"M{_x(frame, at)} {_y(axis, value)}h0" for at, value in run]
            continue
        text = ""
        for at, value in run:
            if not text:
                text = f"M{_x(frame, at)} {_y(axis, value)}"
            elif line.step:
                text += f"H{_x(frame, at)}V{_y(axis, value)}"
            else:
                text += f"L{_x(frame, at)} {_y(axis, value)}"
        paths.append(text)
    kind = "dots" if line.dots else "line"
    return f'<path class="{kind} {line.style}" d="{"".join(paths)}"/>' if paths else ""


def _area(frame: Frame, axis: Axis, runs: Sequence[Sequence[Any]]) -> str:
    paths = []
    for run in runs:
        if len(run) >= 2:
            upper = "L".join(f"{_x(frame, at)} {_y(axis, high)}" for at, _, high in run)
            lower = "L".join(f"{_x(frame, at)} {_y(axis, low)}" for at, low, _ in reversed(run))
            paths.append(f"M{upper}L{lower}Z")
    return f'<path class="band" d="{"".join(paths)}"/>' if paths else ""


def _picture(
    name: str,
    title: str,
    told: str,
    frame: Frame,
    axis: Axis,
    lines: Sequence[Line],
    *,
    rules: Sequence[Any] = (),
    band: Sequence[Sequence[Any]] = (),
    flags: bool = False,
) -> str:
    """A figure. Its lines stretch with the page and its texts do not: those are HTML, laid over by percentages."""
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-labelledby="{name}-t {name}-d">',
        f'<title id="{name}-t">{escaped(title)}</title><desc id="{name}-d">{escaped(told)}</desc>',
    ]
    for number, (_, since, until) in enumerate(frame.stages):
        if number % 2 == 0:
            width = WIDTH * (frame.time.place(until) - frame.time.place(since))
            parts.append(f'<rect class="stage" x="{_x(frame, since)}" y="0" width="{width:.1f}" height="{HEIGHT}"/>')
    parts += [f'<path class="grid" d="M0 {_y(axis, tick)}H{WIDTH}"/>' for tick, _ in axis.ticks]
    parts += [f'<path class="mark {event}" d="M{_x(frame, at)} 0V{HEIGHT}"/>' for _, at, event, _, _ in frame.marks]
    parts.append(_area(frame, axis, band))
    parts += [f'<path class="rule" d="M0 {_y(axis, value)}H{WIDTH}"/>' for value, _ in rules]
    parts += [_drawn(frame, axis, line) for line in lines]
    parts.append("</svg>")
    for value, text in axis.ticks:
        parts.append(f'<span class="y" style="top:{100 * (1 - axis.place(value)):.2f}%">{escaped(text)}</span>')
    for number, (value, text) in enumerate(frame.time.ticks):
        style = f"left:{100 * frame.time.place(value):.2f}%"
        parts.append(f'<span class="x{" odd" if number % 2 else ""}" style="{style}">{text}</span>')
    for value, text in rules:
        parts.append(f'<span class="ruled" style="top:{100 * (1 - axis.place(value)):.2f}%">{escaped(text)}</span>')
    for label, since, until in frame.stages:
        wide = frame.time.place(until) - frame.time.place(since)
        if flags and wide > 0.04:
            left = 100 * frame.time.place(since)
            parts.append(f'<span class="named" style="left:{left:.2f}%;max-width:{100 * wide:.2f}%">{escaped(label, 30)}</span>')
    plot = f'<div class="plot">{"".join(parts)}</div>'
    keys = "".join(
        f'<li><svg class="key" viewBox="0 0 30 10" aria-hidden="true"><path class="{"dots" if line.dots else "line"} '
        f'{line.style}" d="{"M15 5h0" if line.dots else "M1 5H29"}"/></svg>{escaped(line.name)}'
        f"{f' <b>{escaped(line.note)}</b>' if line.note else ''}</li>"
        for line in lines
    )
    if band:
        keys += (
            '<li><svg class="key" viewBox="0 0 30 10" aria-hidden="true"><path class="band" d="M1 0H29V10H1Z"/></svg>'
            f"where the canary’s rate can lie ({100 - 100 * RISK:g}%, at all looks together)</li>"
        )
    lanes = _lanes(frame) if flags else ""
    caption = f'<figcaption><h3>{escaped(title)}</h3><ul class="keys">{keys}</ul></figcaption>'
    return f'<figure id="{name}">{caption}{plot}{lanes}</figure>'


def _lanes(frame: Frame) -> str:
    """The marks as links into the journal, below one another where they are close."""
    ends: list[float] = []
    links = []
    for number, at, event, sign, row in frame.marks:
        place = 100 * frame.time.place(at)
        lane = next((lane for lane, end in enumerate(ends) if place >= end), len(ends))
        if lane == len(ends):
            ends.append(0.0)
        ends[lane] = place + 6
        if lane < 5:
            title = f"{number}: {event.replace('_', ' ')} at {clock(at, '%H:%M:%S')}"
            links.append(
                f'<a class="flag {event}" href="#row{row}" style="left:{min(place, 97):.2f}%;top:{1.5 * lane:.1f}rem" '
                f'title="{escaped(title)}" aria-label="{escaped(title)}">{sign}{number}</a>'
            )
    if not links:
        return ""
    return f'<div class="lanes" style="height:{1.5 * min(5, len(ends)):.1f}rem">{"".join(links)}</div>'


def _targets(parts: Parts, looks: Sequence[Seen], journal: Sequence[Any]) -> list[Any]:
    """(time, percent) where the share was set to another: by the journal, and where it does not tell, by the looks."""
    told = [
        (at, cut)
        for at, entry in journal
        if at is not None
        and event_of(entry) == "traffic"
        and entry.get("phase") == "done"
        and (cut := cut_of(entry, parts)) is not None
    ]
    told = told or [(look.at, cut) for look in looks if (cut := number_of(look.told.get("cut"))) is not None]
    return [(at, cut / 100) for place, (at, cut) in enumerate(told) if not place or cut != told[place - 1][1]]


def _achieved(look: Seen) -> Optional[float]:
    """The canary's share of the requests, in percent."""
    share = number_of(look.told.get("share"))
    return None if share is None else 100 * share


def pictures(parts: Parts, looks: Sequence[Seen], journal: Sequence[Any], frame: Frame) -> list[str]:
    found = []
    targets = _targets(parts, looks, journal)
    if targets:
        steps = [(frame.time.low, 0.0), *targets, (frame.time.high, targets[-1][1])]
        achieved = _runs(looks, _achieved)
        lines = [Line("target", "target", [steps], step=True)]
        if achieved:
            lines.append(Line("achieved", "canary", achieved, f"{achieved[-1][-1][1]:.2f}%"))
        highest = max(value for line in lines for value in line.values)
        told = f"The share goes up to {highest:.1f}% and ends at {targets[-1][1]:g}%."
        axis = _linear(min(100.0, highest * 1.1), lambda value: f"{plain(value)}%")
        found.append(_picture("share", "Share of the accounts on the canary", told, frame, axis, lines, flags=True))
    rates = {who: _runs(looks, partial(Seen.rate, who=who)) for who in ("canary", "baseline")}
    if rates["canary"] or rates["baseline"]:
        band = _band(looks, "canary")
        lines = [Line("canary, between looks", "canary", [_between(looks, "canary")], dots=True)]
        lines += [Line(f"{who}, in the stage so far", who, runs, percent(runs[-1][-1][1])) for who, runs in rates.items() if runs]
        limit = number_of(mapping(parts.rollout.get("thresholds")).get("errors"))
        highest = max([value for line in lines for value in line.values] + [1.2 * limit if limit else 0.0])
        axis = _linear(min(1.0, highest), lambda value: f"{plain(100 * value)}%")
        told = "; ".join(f"{line.name} {line.note}" for line in lines if line.note)
        rules = [(limit, f"limit {percent(limit)}")] if limit else []
        found.append(_picture("errors", "Error rate", f"At the end: {told}.", frame, axis, lines, rules=rules, band=band))
    lines = []
    for who in ("canary", "baseline"):
        for what in ("p50", "p99"):
            runs = _runs(looks, partial(Seen.latency, who=who, what=what))
            if runs:
                lines.append(Line(f"{who} {what.upper()}", f"{who} {what}", runs, latency(runs[-1][-1][1])))
    if lines:
        limit = number_of(mapping(parts.rollout.get("thresholds")).get("latency"))
        values = [value for line in lines for value in line.values]
        axis = _logarithmic([*values, *([limit] if limit else [])], latency)
        told = "At the end: " + ", ".join(f"{line.name} {line.note}" for line in lines) + "."
        rules = [(limit, f"threshold {latency(limit)}")] if limit else []
        found.append(_picture("latency", "Response time (log scale)", told, frame, axis, lines, rules=rules))
    found += _evidence(looks, frame)
    return found


def _evidence(looks: Sequence[Seen], frame: Frame) -> list[str]:
    """How far each test is from rolling back; the evidence goes on from stage to stage, so its lines do too."""
    series: dict[str, list[Any]] = {}
    ends: dict[str, Any] = {}
    for look in looks:
        for name, (evidence, target) in tests_of(look).items():
            series.setdefault(name, []).append((look.at, max(1e-7, evidence / target)))
            ends[name] = (evidence, target)
    if not series:
        return []
    # Those that came nearest get the strongest lines.
    names = sorted(series, key=lambda name: -max(value for _, value in series[name]))[:8]
    lines = [
        Line(name, f"test t{place}", [thinned(series[name])], f"{ends[name][0]:,.3g} of {ends[name][1]:,.0f}")
        for place, name in enumerate(names)
    ]
    lowest = min(value for line in lines for value in line.values)
    axis = _logarithmic([max(1e-6, lowest), 1.0], lambda value: "all" if value > 0.999 else f"1/{_rounded(1 / value)}")
    axis = Axis(axis.low, 3.0, axis.ticks, log=True)
    told = f"Nearest to a rollback: {names[0]}, at the end {lines[0].note}."
    title = "Evidence against the canary, as a part of what rolls it back (log scale)"
    return [_picture("evidence", title, told, frame, axis, lines, rules=[(1.0, "rolls back")])]
