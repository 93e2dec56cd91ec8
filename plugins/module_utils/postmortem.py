"""What happened in a span of time, put together from what hosts wrote down, as a page for the people who review it.

Pure: lines and answers in, events and Markdown out. An event is ``{at, step, source, text}``, with ``hosts`` once it is merged:
`at` is Unix seconds, `step` the part of a recovery that it belongs to: ``found``, ``located`` or ``solved``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

from .rollout_record import clock, many, mapping, number_of, reasons_in, seconds

#: Seconds within which the same words on several hosts are one event: a run reaches them one after the other.
SAME = 30.0
#: Points that Prometheus is asked for at most, and seconds between two of them at least.
POINTS, STEP = 5000, 15
#: Characters of one text.
LONGEST = 300

_AGO = re.compile(r"(\d+)([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LOCAL = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d)(:\d\d)?")
_CREDENTIALS = re.compile(r"://[^@/\s]+@")

#: What the app logs of its daily work, by the event; where an outcome is worth telling, it is named.
_ROUTINE: Mapping[str, Sequence[str]] = {
    "order": (),
    "cancel": (),
    "http": (),
    "stream": (),
    "drain": (),
    "reconcile": (),
    "dispatch": ("left", "strange"),
    "venue": ("pause", "clock"),
    "audit": ("not trimmed",),
    "verify": ("ledger.difference", "limit.passed"),
}
_DAILY = re.compile(r'\{"at":"[^"]+","event":"(?:' + "|".join(event for event, told in _ROUTINE.items() if not told) + r')"')
#: Who speaks and about whom, in a line of the app's log.
_WHO = frozenset(["at", "event", "instance", "version", "release", "slot", "request", "trace", "account", "order"])


class PostmortemError(ValueError):
    """What was asked for is no span of time; the message is one sentence for the operator."""


def moment(text: Any, now: float) -> float:
    """Unix seconds of ``2026-01-31T12:00:00Z``, of ``2026-01-31 12:00`` (UTC), or of ``2h``, so long ago. Empty: now."""
    words = str(text or "").strip()
    if not words:
        return now
    ago = _AGO.fullmatch(words)
    if ago:
        return now - int(ago[1]) * _UNITS[ago[2]]
    short = _LOCAL.fullmatch(words)
    found = seconds(f"{short[1]}T{short[2]}{short[3] or ':00'}Z" if short else words)
    if found is None:
        raise PostmortemError(
            f"{words!r} is no time, expected one such as 2026-01-31T12:00:00Z, 2026-01-31 12:00 (UTC), or 2h for so long ago"
        )
    return found


def span(first: Any, last: Any, now: float) -> dict[str, float]:
    """``{since, until}``; raises PostmortemError where that is no span of time that has begun."""
    if not str(first or "").strip():
        raise PostmortemError("from when? -e postmortem_from=2h, or -e 'postmortem_from=2026-01-31 12:00' (UTC)")
    since, until = moment(first, now), min(moment(last, now), now)
    if since >= until:
        raise PostmortemError(f"the span from {clock(since)} to {clock(until)} UTC is empty")
    return {"since": since, "until": until}


def file_name(since: float) -> str:
    """The name of the page of a span."""
    return f"{clock(since, '%Y-%m-%dT%H-%M-%SZ')}.md"


def _event(at: float, step: str, source: str, text: str) -> dict[str, Any]:
    plain = _CREDENTIALS.sub("://…@", " ".join(text.split()))
    return {"at": at, "step": step, "source": source, "text": plain if len(plain) <= LONGEST else plain[: LONGEST - 1] + "…"}


def objects(lines: Iterable[str]) -> Iterable[Mapping[str, Any]]:
    """The JSON objects among lines; what is none is left out."""
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def _within(lines: Iterable[str], since: float, until: float) -> Iterable[tuple[float, Mapping[str, Any]]]:
    for entry in objects(lines):
        at = seconds(entry.get("at"))
        if at is not None and since <= at <= until:
            yield at, entry


def operations(lines: Iterable[str], since: float, until: float) -> list[dict[str, Any]]:
    """What operators' playbooks said in the log of operations."""
    found = []
    for at, entry in _within(lines, since, until):
        what = "; ".join(str(word) for word in entry.get("what") or ())
        if entry.get("event") == "begin":
            text = f"{entry.get('by')} began {entry.get('operation')}: {what}"
        else:
            # The log is never rotated, and older lines name a way back of what failed, too.
            undo = f". To take it back: {entry['undo']}" if entry.get("undo") and entry.get("result") == "changed" else ""
            text = f"{entry.get('operation')} ended, {entry.get('result')}: {what or 'nothing changed'}{undo}"
        found.append(_event(at, "solved", "operation", text))
    return found


def journal(lines: Iterable[str], since: float, until: float) -> list[dict[str, Any]]:
    """What the journal of a load balancer says; a change that was carried out is told once, not as an intention too."""
    found = []
    for at, entry in _within(lines, since, until):
        if entry.get("phase") == "intend":
            continue
        event = str(entry.get("event"))
        after = mapping(entry.get("after")) or entry
        told = [f"{name} {after[name]}" for name in ("stable", "canary") if after.get(name)]
        cut = number_of(after.get("cut"))
        told += [f"{cut / 100:g}% on the canary"] if cut is not None else []
        told += [f"{name} {entry[name]}" for name in ("stage", "outcome", "command", "phase") if entry.get(name)]
        told += reasons_in(entry)
        rollout = f" of {entry['rollout']}" if entry.get("rollout") else ""
        back = event in ("rollback", "settled", "sync") or entry.get("by") == "watchdog" or entry.get("outcome") == "fail"
        text = f"{event}{rollout} by {entry.get('by') or 'the control node'}" + (f": {', '.join(told)}" if told else "")
        found.append(_event(at, "solved" if back else "located", "release", text))
    return found


def _once(source: str, said: Iterable[tuple[float, str]]) -> list[dict[str, Any]]:
    """What was said; the same words again, numbers apart, are one event, with how often and until when."""
    kept: dict[str, tuple[float, float, int, str]] = {}
    for at, text in said:
        key = re.sub(r"\d+", "0", text)
        first, last, count, words = kept.get(key, (at, at, 0, text))
        kept[key] = (min(first, at), max(last, at), count + 1, words)
    return [
        _event(first, "located", source, text + (f"; {count} times, the last at {clock(last, '%H:%M:%S')}" if count > 1 else ""))
        for first, last, count, text in kept.values()
    ]


def app_log(lines: Iterable[str], since: float, until: float) -> list[dict[str, Any]]:
    """What the app logged beside its daily work."""
    # A busy day is millions of lines: those that are daily work at first sight are not parsed.
    lines = (line for line in lines if not _DAILY.match(line))
    return _once("app", ((at, _said(entry)) for at, entry in _within(lines, since, until) if not _routine(entry)))


def _routine(entry: Mapping[str, Any]) -> bool:
    event = str(entry.get("event"))
    return event in _ROUTINE and entry.get("outcome") not in _ROUTINE[event]


def _said(entry: Mapping[str, Any]) -> str:
    """What a line of the app's log says, without whom it is about: that would make each a line of its own."""
    told = [f"{name} {_short(value)}" for name, value in entry.items() if name not in _WHO and value not in (None, "", [], {})]
    event, slot = str(entry.get("event")), f" ({entry['slot']})" if entry.get("slot") else ""
    return (f"{event}: {', '.join(told)}" if told else event) + slot


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:119] + "…"


def unit_log(lines: Iterable[str], since: float, until: float) -> list[dict[str, Any]]:
    """Warnings and errors of services in systemd's journal, as ``journalctl --output=json`` gives them."""
    said = []
    for entry in objects(lines):
        micro, message = str(entry.get("__REALTIME_TIMESTAMP", "")), entry.get("MESSAGE")
        if not micro.isdigit() or not isinstance(message, str) or not since <= int(micro) / 1e6 <= until:
            continue
        unit = str(entry.get("UNIT") or entry.get("_SYSTEMD_UNIT") or entry.get("SYSLOG_IDENTIFIER") or "a service")
        said.append((int(micro) / 1e6, f"{re.sub(r'[.]service$', '', unit)}: {message}"))
    return _once("service", said)


def releases(
    found: Iterable[Mapping[str, Any]], slots: Mapping[str, tuple[str, float]], since: float, until: float
) -> list[dict[str, Any]]:
    """What came onto a host's disk, and since when its slots lead where they do. Releases are release.json with ``placed_at``."""
    events = []
    for release in found:
        at = number_of(release.get("placed_at"))
        if at is not None and since <= at <= until:
            config = str(release.get("config_sha256") or "")[:12]
            events.append(_event(at, "located", "config", f"{release.get('id')} came onto the disk, configuration {config}"))
    for slot, (target, at) in slots.items():
        if since <= at <= until:
            events.append(_event(at, "located", "config", f"the slot {slot} has led to {target} since then"))
    return events


def alert_step(since: float, until: float) -> int:
    """Seconds between two points that Prometheus is asked for."""
    return max(STEP, int((until - since) / POINTS) + 1)


def alerts(answer: Any, since: float, until: float) -> list[dict[str, Any]]:
    """When alerts fired and stopped, from Prometheus's answer on ``ALERTS{alertstate="firing"}``. One that watches the way itself
    always fires, and is left out."""
    step = alert_step(since, until)
    found = []
    for series in mapping(mapping(answer).get("data")).get("result") or ():
        labels = mapping(series.get("metric"))
        if labels.get("alertname") == "Watchdog":
            continue
        about = [
            f"{name} {value}"
            for name, value in sorted(labels.items())
            if name not in ("__name__", "alertname", "alertstate", "severity")
        ]
        name = f"{labels.get('alertname')} ({labels.get('severity', 'no severity')})" + (
            f" of {', '.join(about)}" if about else ""
        )
        times = [float(point[0]) for point in series.get("values") or ()]
        for first, last in _runs(times, step):
            before = " already" if first - since < step else ""
            found.append(_event(first, "found", "alert", f"{name} fires{before}"))
            if until - last > step:
                found.append(_event(last + step, "solved", "alert", f"{name} has stopped"))
    return found


def _runs(times: Sequence[float], step: float) -> list[tuple[float, float]]:
    """First and last of each row of times without a gap."""
    runs: list[tuple[float, float]] = []
    for at in times:
        if runs and at - runs[-1][1] <= 1.5 * step:
            runs[-1] = (runs[-1][0], at)
        else:
            runs.append((at, at))
    return runs


def merged(by_host: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """All hosts' events in the order of time; what several hosts say in the same words at about the same time is one."""
    found: list[dict[str, Any]] = []
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    each = sorted(
        ((float(event["at"]), host, event) for host, events in by_host.items() for event in events), key=lambda one: one[:2]
    )
    for at, host, event in each:
        key = (str(event["source"]), str(event["text"]))
        same = latest.get(key)
        if same is not None and host not in same["hosts"] and at - same["at"] <= SAME:
            same["hosts"].append(host)
        else:
            latest[key] = {**event, "hosts": [host]}
            found.append(latest[key])
    return found


_QUESTIONS = {
    "Found": [
        "Who noticed first: an alert, a user, or somebody who looked? Could an alert have been earlier?",
        "Who was affected, from when to when, and by how much?",
    ],
    "Located": [
        "What was the cause, and what shows that it was? Can it be reproduced?",
        "What led astray, or was missing, while it was looked for?",
    ],
    "Solved": [
        "Why was this way chosen, and which risks were weighed?",
        "What shows that it is over: which figure, which check?",
    ],
    "Reviewed": [
        "Why could it happen, and why was it not caught before?",
        "What will be different: in code, alerts, limits, playbooks? Who does it, by when?",
        "Which pages of the runbook have to change?",
    ],
}
_SAID = {
    "Found": "No alert fired in this time.",
    "Located": "No release, change of configuration or error was written down in this time.",
    "Solved": "No operation was run and no alert stopped in this time.",
}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _table(events: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        f"| {clock(event['at'])} | {event['source']} | {', '.join(sorted(event['hosts']))} | {_cell(event['text'])} |"
        for event in events
    ]
    return ["| UTC | from | hosts | what |", "|---|---|---|---|", *rows, ""]


def _lasted(total: float) -> str:
    return many(round(total / 60), "minute") if total >= 120 else many(round(total), "second")


def _reviewed(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """The durations that can be known."""
    fired = next((event["at"] for event in events if event["step"] == "found"), None)
    acted = next((e["at"] for e in events if e["source"] == "operation" and (fired is None or e["at"] >= fired)), None)
    stopped = max((event["at"] for event in events if event["source"] == "alert" and event["step"] == "solved"), default=None)
    changed = max(
        (e["at"] for e in events if e["source"] in ("config", "release") and (fired is None or e["at"] <= fired)), default=None
    )

    def between(what: str, first: Optional[float], last: Optional[float]) -> list[str]:
        return [f"- {what}: {_lasted(last - first)}"] if first is not None and last is not None and last >= first else []

    return [
        *between("From the last change to the first alert", changed, fired),
        *between("From the first alert to the first operation", fired, acted),
        *between("From the first alert to the last that stopped", fired, stopped),
    ]


def page(since: float, until: float, by_host: Mapping[str, Sequence[Mapping[str, Any]]], notes: Sequence[str] = ()) -> str:
    """The page in Markdown: found, located, solved, reviewed, each with what is known and what people have to answer; then all
    of it in the order of time, and what could not be read."""
    events = merged(by_host)
    lines = [f"# {clock(since, '%Y-%m-%d %H:%M')} to {clock(until, '%Y-%m-%d %H:%M')} UTC", ""]
    counts = [
        many(sum(e["source"] == "alert" and e["step"] == "found" for e in events), "alert"),
        many(sum(e["source"] in ("config", "release") for e in events), "change"),
        many(sum(e["source"] in ("app", "service") for e in events), "message"),
        many(sum(e["source"] == "operation" for e in events), "line") + " of the log of operations",
    ]
    lines += [f"{', '.join(counts)}; {many(len(by_host), 'host')} read.", ""]
    for title, questions in _QUESTIONS.items():
        lines += [f"## {title}", ""]
        if title == "Reviewed":
            known = _reviewed(events)
            lines += [*known, ""] if known else []
        else:
            own = [event for event in events if event["step"] == title.lower()]
            lines += _table(own) if own else [_SAID[title], ""]
        lines += [*(f"- [ ] {question}" for question in questions), ""]
    lines += ["## In the order of time", "", *(_table(events) if events else ["Nothing was written down.", ""])]
    if notes:
        lines += ["## Not read", "", *(f"- {_cell(note)}" for note in notes), ""]
    return "\n".join(lines)
