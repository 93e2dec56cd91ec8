"""What a rollout left on the control node, and what became of it, told in numbers and sentences.

Every part may be missing, cut off in the middle, or hold what nobody expects there. Pure, but for ``read``.
"""

from __future__ import annotations

import json
import math
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from typing import Any, Optional

#: Characters of one text; the files have the rest.
LONGEST = 600


# What XML cannot hold, and marks that turn the direction of the text after them.
UNFIT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\u202a-\u202e\u2066-\u2069]")


TESTS = {"baseline": "beside the baseline", "limit": "against the limit", "stop": "hard stop"}


@dataclass(frozen=True)
class Parts:
    """What a rollout left: its own description, looks, journal, what the shadow found, and what could not be read."""

    rollout: Mapping[str, Any] = field(default_factory=dict)
    looks: Sequence[Mapping[str, Any]] = ()
    journal: Sequence[Mapping[str, Any]] = ()
    shadow: Optional[Mapping[str, Any]] = None
    notes: Sequence[str] = ()

    @cached_property
    def in_order(self) -> list[Any]:
        """What ``journal_of`` tells: long journals are put together once."""
        entries = merged((str(entry.get("load_balancer") or ""), entry) for entry in self.journal)
        return [(seconds(entry.get("at")), entry) for entry in entries]


def read(directory: str) -> Parts:
    """The parts that are there. A line or a file that is no JSON object is left out, and said."""
    notes: list[str] = []
    return Parts(
        _object(directory, "rollout.json", notes) or {},
        _lines(directory, "looks.jsonl", notes),
        _lines(directory, "journal.jsonl", notes),
        _object(directory, "shadow.json", notes),
        notes,
    )


def _text_of(directory: str, name: str, notes: list[str]) -> Optional[str]:
    try:
        with open(os.path.join(directory, name), encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        notes.append(f"{name} could not be read: {error.strerror}")
        return None


def _object(directory: str, name: str, notes: list[str]) -> Optional[dict[str, Any]]:
    text = _text_of(directory, name, notes)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    notes.append(f"{name} is no JSON object")
    return None


def _lines(directory: str, name: str, notes: list[str]) -> list[dict[str, Any]]:
    found, lost = [], 0
    for line in (_text_of(directory, name, notes) or "").split("\n"):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict):
            found.append(entry)
        else:
            lost += 1
    if lost:
        notes.append(f"{many(lost, 'line')} of {name} could not be read")
    return found


def number_of(value: Any) -> Optional[float]:
    """The value if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def seconds(value: Any) -> Optional[float]:
    """Unix seconds of a time: a number, or text such as 2026-01-31T12:00:00.123Z."""
    number = number_of(value)
    if number is not None:
        return number if 0 < number < 4e9 else None
    if not isinstance(value, str):
        return None
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)?", value)
    if not match:
        return None
    try:
        zone = match.group(3) if match.group(3) not in (None, "Z") else "+00:00"
        whole = datetime.fromisoformat(f"{match.group(1)}{zone}").timestamp()
    except (ValueError, OverflowError):
        return None
    return whole + float(match.group(2) or 0)


def clock(at: Optional[float], form: str = "%Y-%m-%d %H:%M:%S") -> str:
    return "–" if at is None else datetime.fromtimestamp(at, timezone.utc).strftime(form)


def many(count: float, what: str) -> str:
    return f"{count:,.0f} {what}{'' if count == 1 else 's'}"


def lasting(value: Optional[float]) -> str:
    if value is None:
        return "–"
    if value < 10:
        return f"{value:.3g} s"
    left = round(value)
    parts = []
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        if left >= size:
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(parts[:2])


def percent(value: Optional[float]) -> str:
    """A part of one as a percentage with as many digits as tell something."""
    if value is None:
        return "–"
    value *= 100
    return f"{value:.3f}%" if 0 < value < 0.1 else f"{value:.2f}%" if value < 10 else f"{value:.1f}%"


def plain(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def latency(value: Optional[float]) -> str:
    if value is None:
        return "–"
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def escaped(value: Any, longest: int = LONGEST) -> str:
    """Any value as text that can stand anywhere in the page."""
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, default=str) if value is not None else "–"
    if len(value) > longest:
        value = f"{value[:longest]}…"
    return (
        UNFIT.sub("\ufffd", value)
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace('"', "&quot;")
        .replace("'", "&#39;")
    )


def escaped_line(value: str) -> str:
    """Text for a terminal, in one line: what could move its cursor or turn its direction is made harmless."""
    return re.sub("[\x7f-\x9f]", "\ufffd", UNFIT.sub("\ufffd", re.sub(r"[\t\r\n]+", " ", value)))


def part_of(bad: Any, total: Any) -> Optional[float]:
    """The rate of bad among all; None without a request."""
    bad, total = number_of(bad), number_of(total)
    return min(1.0, bad / total) if bad is not None and total and total > 0 and bad >= 0 else None


@dataclass(frozen=True)
class Seen:
    """A look with its time as seconds."""

    at: float
    stage: str
    told: Mapping[str, Any]

    def of(self, who: str, what: str) -> Optional[float]:
        """A number of one version."""
        return number_of(mapping(self.told.get(who)).get(what))

    def latency(self, who: str, what: str) -> Optional[float]:
        """A response time of one version; a logarithmic axis has no place for 0."""
        value = self.of(who, what)
        return value if value and value > 0 else None

    def rate(self, who: str, what: str = "errors") -> Optional[float]:
        """A rate of one version in the stage so far."""
        side = mapping(self.told.get(who))
        return part_of(side.get(what), side.get("requests"))


def looks_of(parts: Parts) -> list[Seen]:
    found = []
    for look in parts.looks:
        at = seconds(look.get("at"))
        if at is not None:
            found.append(Seen(at, str(look.get("stage") or ""), look))
    return sorted(found, key=lambda look: look.at)


def tests_of(look: Seen) -> dict[str, Any]:
    """The tests of a look that have evidence, by name: (evidence, target)."""
    found = {}
    for finding in listed(look.told.get("findings")):
        told = mapping(finding)
        evidence, target = number_of(told.get("evidence")), number_of(told.get("target"))
        if evidence is not None and target and target > 0 and evidence >= 0:
            found[f"{told.get('name')}, {TESTS.get(str(told.get('test')), told.get('test'))}"] = (evidence, target)
    return found


def event_of(entry: Mapping[str, Any]) -> str:
    """What happened; a change of the traffic that no control node asked for is the watchdog's."""
    event = str(entry.get("event") or "")
    return "watchdog" if event == "traffic" and entry.get("by") == "watchdog" else event


#: Seconds that the clocks of two load balancers may differ by.
SAME = 2.0


def merged(entries: Iterable[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """(load balancer, entry) of several journals as one, each entry once, with the load balancers that have it as ``on``.

    The control node writes one entry to all of them, each with the time of its own clock. In the order of time.
    """
    found: dict[str, tuple[list[float], list[dict[str, Any]]]] = {}
    own = ("at", "seconds", "load_balancer")
    for name, entry in entries:
        text = json.dumps({key: value for key, value in entry.items() if key not in own}, sort_keys=True, default=str)
        times, alike = found.setdefault(text, ([], []))
        at = seconds(entry.get("at")) or 0.0
        near = alike[bisect_left(times, at - SAME) : bisect_right(times, at + SAME)]
        same = next((one for one in near if name not in one["on"]), None)
        if same:
            same["on"].append(name)
        else:
            place = bisect_right(times, at)
            times.insert(place, at)
            alike.insert(place, {**{key: value for key, value in entry.items() if key != "load_balancer"}, "on": [name]})
    return sorted((entry for _, alike in found.values() for entry in alike), key=lambda entry: seconds(entry.get("at")) or 0.0)


def journal_of(parts: Parts) -> list[Any]:
    """(time, entry) of the load balancers' journals as one; entries without a time come first."""
    return parts.in_order


def reasons_in(entry: Mapping[str, Any]) -> list[str]:
    """The reasons that an entry gives, in any of its forms."""
    reasons = entry.get("reasons")
    if isinstance(reasons, str):
        return [reasons]
    if listed(reasons):
        return [reason if isinstance(reason, str) else json.dumps(reason, default=str) for reason in listed(reasons)]
    for name in ("reason", "why", "error", "summary"):
        if entry.get(name):
            return [str(entry[name])]
    return []


def _last(journal: Sequence[Any], *events: str) -> Mapping[str, Any]:
    return next((entry for _, entry in reversed(journal) if event_of(entry) in events), {})


def outcome_of(parts: Parts) -> str:
    """promoted, rolled_back, aborted, failed; ``cut_off`` where a watchdog ended it, and ``open`` where nothing did."""
    outcome = str(parts.rollout.get("outcome") or _last(journal_of(parts), "end").get("outcome") or "")
    if outcome:
        return outcome
    return (
        "cut_off" if any(event_of(entry) == "watchdog" and entry.get("phase") != "intend" for entry in parts.journal) else "open"
    )


def reasons_of(parts: Parts) -> list[str]:
    """Why it ended as it did: what the rollout says itself, else the journal, else the last look that decided."""
    own = reasons_in({name: parts.rollout.get(name) for name in ("reasons", "reason", "why", "error")})
    if own:
        return own
    journal = journal_of(parts)
    outcome = outcome_of(parts)
    asked = {
        "promoted": ("promote", "end"),
        "cut_off": ("watchdog",),
        "aborted": ("command", "rollback", "end"),
    }.get(outcome, ("rollback", "end"))
    if outcome not in ("promoted", "cut_off", "aborted", "open"):
        failed: Mapping[str, Any] = next(
            (e for _, e in reversed(journal) if event_of(e) == "verdict" and e.get("outcome") != "pass"), {}
        )
        if reasons_in(failed):
            return reasons_in(failed)
    for event in asked:
        found = reasons_in(_last(journal, event))
        if found:
            return found
    looks = looks_of(parts)
    if looks and outcome != "promoted":
        return reasons_in({"reasons": looks[-1].told.get("reasons")})
    return []


def name_of(release: Any, other: Any) -> str:
    """A release as people call it: by its version, or by its id where the other has the same version."""
    told, beside = mapping(release), mapping(other)
    version, identity = told.get("version"), told.get("release_id") or told.get("id")
    if version and (version != beside.get("version") or not identity):
        return str(version)
    return str(identity or version or "an unknown release")


def totals(looks: Sequence[Seen], who: str) -> Any:
    """Requests and errors of one version over all stages; None where no look tells them."""
    last: dict[str, Seen] = {}
    for look in looks:
        if look.of(who, "requests") is not None:
            last[look.stage] = look
    if not last:
        return None
    return tuple(sum(look.of(who, what) or 0 for look in last.values()) for what in ("requests", "errors"))


def _beside(looks: Sequence[Seen]) -> str:
    """The errors of both versions in a sentence."""
    told = []
    for who in ("canary", "baseline"):
        found = totals(looks, who)
        if found:
            told.append(f"{found[1]:,.0f} of {found[0]:,.0f} ({percent(part_of(found[1], found[0]))}) on the {who}")
    return f"Errors: {', '.join(told)}." if told else ""


def decision(parts: Parts) -> str:
    """The whole rollout in one or two sentences."""
    looks = looks_of(parts)
    outcome = outcome_of(parts)
    new = name_of(parts.rollout.get("to"), parts.rollout.get("from"))
    old = name_of(parts.rollout.get("from"), parts.rollout.get("to"))
    start, end = seconds(parts.rollout.get("started_at")), seconds(parts.rollout.get("ended_at"))
    lasted = f" after {lasting(end - start)}" if start is not None and end is not None and end >= start else ""
    stage = f" at {looks[-1].stage}" if looks else " before any account was moved"
    if parts.rollout.get("kind") == "rollback" or _last(journal_of(parts), "start").get("kind") == "rollback":
        done = "is" if outcome == "rolled_back" else "was to be"
        return f"{new} {done} taken out of the traffic by rollback.yml{lasted}, {old} serves all accounts in its place."
    if outcome == "promoted":
        return f"{new} serves all accounts{lasted}. {_beside(looks)}".strip()
    if outcome == "rolled_back":
        return f"{new} was rolled back{stage}{lasted}; {old} serves all accounts. {_beside(looks)}".strip()
    if outcome == "aborted":
        return f"{new} was aborted by an operator{stage}{lasted}. {_beside(looks)}".strip()
    if outcome == "failed":
        return f"The rollout of {new} failed{stage}{lasted}. {_beside(looks)}".strip()
    if outcome == "cut_off":
        return f"The control node fell silent{stage}, so the load balancers’ watchdog took {new} out of the traffic by itself."
    if outcome == "open":
        seen = f" The last look was at {clock(looks[-1].at)} UTC." if looks else ""
        return f"The rollout of {new} has no end yet: it is in progress or was cut off{stage}.{seen}"
    return f"The rollout of {new} ended{stage}{lasted}: {outcome}. {_beside(looks)}".strip()


def reaction(parts: Parts) -> Optional[float]:
    """Seconds from the decision to go back to the last load balancer at 0%, as measured by the one who decided."""
    return number_of(_last(journal_of(parts), "rollback").get("seconds"))


def cut_of(entry: Mapping[str, Any], parts: Parts) -> Optional[float]:
    """The new release's share after this change of the traffic, in basis points: all of it where its slot is the stable one."""
    after, slot = mapping(entry.get("after")), mapping(parts.rollout.get("to")).get("slot")
    if slot and after.get("stable") == slot:
        return 10_000
    cut = number_of(after.get("cut"))
    return cut if cut is not None else number_of(entry.get("cut"))


def stages_of(looks: Sequence[Seen], journal: Sequence[Any], end: float) -> list[Any]:
    """(name, from, until) of each stage, by the journal where it says when they began, else by the looks."""
    began: list[Any] = []
    for at, entry in journal:
        name = entry.get("stage")
        if isinstance(name, Mapping):
            name = name.get("name")
        if event_of(entry) == "stage" and at is not None and name and (not began or began[-1][0] != str(name)):
            began.append((str(name), at))
    for look in looks:
        if look.stage and look.stage not in {name for name, _ in began}:
            began.append((look.stage, look.at))
    began.sort(key=lambda one: one[1])
    ends = [at for _, at in began[1:]] + [end]
    return [(name, at, max(at, until)) for (name, at), until in zip(began, ends)]
