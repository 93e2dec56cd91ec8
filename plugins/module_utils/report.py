"""The report of a rollout: one page that needs nothing else, made of the files that the rollout left on the control node.

The decision comes first, then the pictures, then every number behind them. All parts may be missing or cut off in the
middle: a rollout that was killed leaves a report, too. Whatever a file holds is shown as text and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

from .report_page import SCRIPT, STYLE
from .report_pictures import Frame, pictures, time_axis
from .rollout_record import (
    TESTS,
    UNFIT,
    Parts,
    Seen,
    clock,
    decision,
    escaped,
    event_of,
    journal_of,
    lasting,
    latency,
    listed,
    looks_of,
    many,
    mapping,
    name_of,
    number_of,
    outcome_of,
    part_of,
    percent,
    reaction,
    read,
    reasons_in,
    reasons_of,
    seconds,
    stages_of,
    tests_of,
    totals,
)

#: Rows of the journal that are shown, from its beginning and from its end.
FIRST_ROWS, LAST_ROWS = 100, 300


#: Differences of the shadow that are shown, and examples of each.
DIFFERENCES, EXAMPLES = 100, 3


OUTCOMES = {
    "promoted": ("Promoted", "good"),
    "rolled_back": ("Rolled back", "bad"),
    "aborted": ("Aborted", "bad"),
    "failed": ("Failed", "bad"),
    "cut_off": ("Cut off", "bad"),
    "open": ("Not finished", "hold"),
}


#: What gets a mark on the pictures, and its sign. The order says which goes first where there are too many.
MARKS = {
    "watchdog": "✖",
    "rollback": "▼",
    "taken_over": "⇄",
    "command": "◆",
    "abort": "◆",
    "pause": "‖",
    "resume": "▷",
    "promote": "◆",
    "stage": "▲",
    "verdict": "●",
    "shadow": "○",
    "end": "■",
}


MOST_MARKS = 60


HELP = (
    "<details><summary>How to read the pictures</summary><p>Time runs from left to right, the same in all of them; a touch "
    "or the pointer shows what a look said. The shaded parts are stages. The numbers below the first picture lead into the "
    "journal. Rates and response times are those of the stage so far, which is what the judge is asked about.</p><p>Evidence "
    "is what a bettor would own who began with 1 and bet, at fair odds, on the canary being worse: 125 means 125 to 1. It "
    "may be looked at as often as one likes. A test whose line reaches the dashed one rolls back; one that falls says that "
    "the canary is no worse.</p></details>"
)


UNEXPECTED = '<span class="badge bad"><i aria-hidden="true">✗</i> unexpected</span>'


def write(directory: str, check: bool = False) -> bool:
    """Write ``report.html`` there in one step, unless this is only a check; whether it differs from what was there."""
    text = render(read(directory)).encode("utf-8")
    target = os.path.join(directory, "report.html")
    try:
        with open(target, "rb") as file:
            if file.read() == text:
                return False
    except FileNotFoundError:
        pass
    if not check:
        unfinished = f"{target}.unfinished"
        with open(unfinished, "wb") as file:
            file.write(text)
        os.replace(unfinished, target)
    return True


def _marks(journal: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for row, (at, entry) in enumerate(journal):
        event = event_of(entry)
        if at is None or event not in MARKS or (event == "verdict" and entry.get("outcome") == "insufficient"):
            continue
        if found and found[-1][1] == event and at - found[-1][0] < 0.5:
            # The same transition in the next load balancer's journal.
            continue
        found.append((at, event, row))
    if len(found) > MOST_MARKS:
        order = list(MARKS)
        found = sorted(sorted(found, key=lambda one: order.index(one[1]))[:MOST_MARKS])
    return [(number, at, event, MARKS[event], row) for number, (at, event, row) in enumerate(found, 1)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], name: str, numbers: Sequence[int] = ()) -> str:
    """A table whose cells are HTML already. On a phone each row becomes a block, its cells named by the head."""
    style = [' class="n"' if at in numbers else "" for at in range(len(head))]
    parts = [f'<table class="{name}"><thead><tr>']
    parts += [f'<th scope="col"{style[at]}>{escaped(title)}</th>' for at, title in enumerate(head)]
    parts.append("</tr></thead><tbody>")
    for row in rows:
        identity, cells = "", list(row)
        if len(cells) > len(head):
            identity = f' id="{cells.pop()}"'
        parts.append(f"<tr{identity}>")
        parts += [f'<td{style[at]} data-t="{escaped(title)}">{cell}</td>' for at, (title, cell) in enumerate(zip(head, cells))]
        parts.append("</tr>")
    parts.append("</tbody></table>")
    return "".join(parts)


def _facts(pairs: Iterable[Any]) -> str:
    return "<dl>" + "".join(f"<div><dt>{escaped(name)}</dt><dd>{value}</dd></div>" for name, value in pairs if value) + "</dl>"


def _cards(parts: Parts, looks: Sequence[Seen]) -> str:
    start, end = seconds(parts.rollout.get("started_at")), seconds(parts.rollout.get("ended_at"))
    cards = []
    cuts = [cut for cut in (number_of(look.told.get("cut")) for look in looks) if cut is not None]
    cards.append(("Highest share", f"{max(cuts) / 100:g}%" if cuts else "0%", "of the accounts were on the canary"))
    if start is not None and end is not None:
        cards.append(("Lasted", lasting(end - start), f"{clock(start, '%H:%M:%S')} to {clock(end, '%H:%M:%S')} UTC"))
    canary, baseline = totals(looks, "canary"), totals(looks, "baseline")
    if canary:
        beside = f"baseline {percent(part_of(baseline[1], baseline[0]))} of {baseline[0]:,.0f}" if baseline else ""
        cards.append(("Errors, canary", percent(part_of(canary[1], canary[0])), f"of {canary[0]:,.0f} requests; {beside}"))
    timed = [look for look in looks if look.of("canary", "p99") is not None]
    # With all accounts on the canary there is no baseline left to tell.
    timed = [look for look in timed if look.of("baseline", "p99") is not None] or timed
    if timed:
        cards.append(
            ("P99, canary", latency(timed[-1].of("canary", "p99")), f"baseline {latency(timed[-1].of('baseline', 'p99'))}")
        )
    reacted = reaction(parts)
    if reacted is not None:
        cards.append(("Verdict to 0%", lasting(reacted), "on every load balancer"))
    return (
        '<ul class="cards">'
        + "".join(f"<li><span>{escaped(n)}</span><b>{escaped(v)}</b><small>{escaped(s)}</small></li>" for n, v, s in cards)
        + "</ul>"
    )


def _stage_rows(parts: Parts, looks: Sequence[Seen], journal: Sequence[Any], stages: Sequence[Any]) -> Iterable[list[str]]:
    planned = {str(mapping(stage).get("name")): mapping(stage) for stage in listed(parts.rollout.get("stages"))}
    verdicts = {str(e.get("stage")): e for _, e in journal if event_of(e) == "verdict"}
    spans = {name: (since, until) for name, since, until in stages}
    for name in [*planned, *(name for name in spans if name not in planned)]:
        seen = [look for look in looks if look.stage == name]
        last = seen[-1] if seen else None
        plan = planned.get(name, {})
        cells = [f"<b>{escaped(name, 60)}</b>"]
        if name not in spans:
            yield [*cells, "not reached", "–", "–", "–", "–", "–"]
            continue
        since, until = spans[name]
        deadline = number_of(plan.get("deadline"))
        cells.append(f"{clock(since, '%H:%M:%S')}, {lasting(until - since)}{f' of {lasting(deadline)}' if deadline else ''}")
        for who in ("canary", "baseline"):
            requests, errors = (last.of(who, "requests"), last.of(who, "errors")) if last else (None, None)
            if requests is None:
                cells.append("–")
            else:
                cells.append(f"{errors or 0:,.0f} of {requests:,.0f}<br/><b>{percent(part_of(errors, requests))}</b>")
        cells.append("<br/>".join(latency(last.of(who, "p99")) for who in ("canary", "baseline")) if last else "–")
        cells.append(f"{len(seen):,}")
        verdict = verdicts.get(name)
        outcome = str(verdict.get("outcome")) if verdict else str(last.told.get("outcome") or "–") if last else "–"
        cells.append(_badge(outcome))
        yield cells


def _badge(outcome: str) -> str:
    style = {"pass": "good", "fail": "bad", "promoted": "good", "rolled_back": "bad"}.get(outcome, "hold")
    sign = {"good": "✓", "bad": "✗", "hold": "…"}[style]
    return f'<span class="badge {style}"><i aria-hidden="true">{sign}</i> {escaped(outcome.replace("_", " "), 40)}</span>'


def _findings(looks: Sequence[Seen]) -> str:
    """What each test said at the last look that asked them."""
    look = next((look for look in reversed(looks) if listed(look.told.get("findings"))), None)
    if look is None:
        return ""
    rows = []
    order = {"fail": 0, "insufficient": 1, "pass": 2}
    for finding in sorted(map(mapping, listed(look.told["findings"])), key=lambda told: order.get(str(told.get("outcome")), 1)):
        evidence, target = number_of(finding.get("evidence")), number_of(finding.get("target"))
        name, sentence = str(finding.get("name")), str(finding.get("sentence"))
        kind, meter = TESTS.get(str(finding.get("test")), finding.get("test")), "–"
        if evidence is not None and target is not None and target > 1:
            way = min(1.0, max(0.0, math.log(max(evidence, 1e-9)) / math.log(target)))
            meter = (
                f'{evidence:,.3g} of {target:,.0f}<span class="meter" aria-hidden="true">'
                f'<i style="width:{100 * way:.1f}%"></i></span>'
            )
        rows.append(
            [
                _badge(str(finding.get("outcome"))),
                f"{escaped(name.replace('_', ' '), 80)}<br/><small>{escaped(kind, 80)}</small>",
                escaped(sentence[len(name) + 2 :] if sentence.startswith(f"{name}: ") else sentence),
                meter,
            ]
        )
    head = ["Answer", "Test", "What it says", "Evidence"]
    when = f"At {clock(look.at)} UTC, stage {escaped(look.stage, 60)}."
    return f'<section><h2>What each test said last</h2><p class="quiet">{when}</p>{_table(head, rows, "findings")}</section>'


def _ran(parts: Parts) -> str:
    rollout = parts.rollout
    rows = []
    for name, release in (("From", mapping(rollout.get("from"))), ("To", mapping(rollout.get("to")))):
        identity = release.get("release_id") or release.get("id")
        if identity or release.get("version"):
            slot = f" in the slot {escaped(release['slot'], 40)}" if release.get("slot") else ""
            rows.append(
                (name, f"<b>{escaped(release.get('version') or '?', 80)}</b> <code>{escaped(identity, 120)}</code>{slot}")
            )
    for name, key in (("Hosts", "hosts"), ("Load balancers", "load_balancers")):
        value = rollout.get(key)
        names = list(value) if isinstance(value, Mapping) else listed(value)
        if names:
            shown = ", ".join(escaped(one, 80) for one in names[:60])
            rows.append((name, f"{len(names)}: {shown}{' …' if len(names) > 60 else ''}"))
    if rollout.get("accounts") is not None:
        accounts = number_of(rollout["accounts"])
        rows.append(("Accounts", f"{accounts:,.0f}" if accounts is not None else escaped(rollout["accounts"])))
    for name, key in (("Owner", "owner"), ("Rollout", "id")):
        if rollout.get(key):
            rows.append((name, escaped(rollout[key], 200)))
    for name, key in (("Began", "started_at"), ("Ended", "ended_at")):
        at = seconds(rollout.get(key))
        if at is not None:
            rows.append((name, f"{clock(at)} UTC"))
    thresholds = mapping(rollout.get("thresholds"))
    for name, key, told in (
        ("Errors at most", "errors", percent),
        ("Slow from", "latency", latency),
        ("Slow at most", "slow", percent),
    ):
        limit = number_of(thresholds.get(key))
        if limit is not None:
            rows.append((name, told(limit)))
    return f"<section><h2>What ran</h2>{_facts(rows)}</section>" if rows else ""


def _answer(value: Any) -> str:
    told = mapping(value)
    if told:
        return " ".join(escaped(told[name], 120) for name in ("outcome", "rule") if told.get(name)) or escaped(value, 200)
    return escaped(value, 200)


def _shadow(shadow: Optional[Mapping[str, Any]]) -> str:
    if shadow is None:
        return ""
    skipped = shadow.get("skipped")
    unseen = sum(number_of(value) or 0 for value in skipped.values()) if isinstance(skipped, Mapping) else number_of(skipped) or 0
    counted = [number_of(shadow.get(name)) or 0 for name in ("mirrored", "compared")]
    differences = [mapping(one) for one in listed(shadow.get("differences"))]
    told = f"{counted[0]:,.0f} orders mirrored, {counted[1]:,.0f} decisions compared, {unseen:,.0f} skipped."
    if isinstance(skipped, Mapping) and unseen:
        told += " Skipped: " + ", ".join(f"{key} {number_of(value) or 0:,.0f}" for key, value in sorted(skipped.items())) + "."
    if not differences:
        told += " No difference." if counted[1] else " Nothing was compared."
        return f"<section><h2>Shadow</h2><p>{escaped(told)}</p></section>"
    rows = []
    for one in sorted(differences, key=lambda one: (bool(one.get("expected")), -(number_of(one.get("count")) or 0)))[
        :DIFFERENCES
    ]:
        examples = [mapping(example) for example in listed(one.get("examples"))[:EXAMPLES]]
        both = [tuple(escaped(e.get(name), 200) for name in ("account", "stable", "canary")) for e in examples]
        shown = "".join(
            f"<li><code>{escaped(e.get('order') or e.get('client_order_id'), 80)}</code> of account {account}:"
            f" stable {stable}, canary {canary}</li>"
            for e, (account, stable, canary) in zip(examples, both)
        )
        why = f"<br/><small>{escaped(one['why'], 300)}</small>" if one.get("why") else ""
        rows.append(
            [
                f"{number_of(one.get('count')) or 0:,.0f}",
                " ".join(escaped(one[name], 60) for name in ("type", "side") if one.get(name)) or "–",
                _answer(one.get("stable")),
                _answer(one.get("canary")),
                escaped(one.get("rule"), 120),
                f'<span class="badge hold">expected</span>{why}' if one.get("expected") else UNEXPECTED,
                f"<details><summary>{many(len(examples), 'example')}</summary><ul>{shown}</ul></details>" if shown else "–",
            ]
        )
    hidden = len(differences) - DIFFERENCES
    more = f'<p class="quiet">{hidden:,} more are in shadow.json.</p>' if hidden > 0 else ""
    head = ["Orders", "Kind", "Stable", "Canary", "Rule", "", "Examples"]
    return f"<section><h2>Shadow</h2><p>{escaped(told)}</p>{_table(head, rows, 'shadow', (0,))}{more}</section>"


_SAID = {"on", "at", "event", "by", "rollout", "token", "reasons", "findings"}


def _details(entry: Mapping[str, Any]) -> str:
    """What an entry says beside its name, as short as it can be said."""
    said = []
    before, after = mapping(entry.get("before")), mapping(entry.get("after"))
    changed = sorted(key for key in after if after.get(key) != before.get(key)) if before and after else []
    for key in changed:
        said.append(f"{escaped(key, 60)} {escaped(before.get(key), 120)} → <b>{escaped(after[key], 120)}</b>")
    for key, value in entry.items():
        if key in _SAID or value in (None, "", [], {}) or (key in ("before", "after") and before and after):
            continue
        number = number_of(value)
        shown = f"{number:.3f} s" if key == "seconds" and number is not None else escaped(value, 240)
        said.append(f"{escaped(key, 60)} {shown}")
    said += [escaped(reason, 300) for reason in reasons_in({"reasons": entry.get("reasons")})[:6]]
    return "; ".join(said) or "–"


def _whose(entry: Mapping[str, Any]) -> str:
    """Who wrote an entry, and into whose journal where not all have it."""
    on = ", ".join(name for name in listed(entry.get("on")) if name)
    return " ".join(filter(None, (escaped(entry.get("by") or "", 60), f"<small>{escaped(on, 120)}</small>" if on else ""))) or "–"


def _journal_table(journal: Sequence[Any], marks: Sequence[Any]) -> str:
    if not journal:
        return ""
    numbers = {row: f'<span class="flag {event}">{sign}{number}</span> ' for number, _, event, sign, row in marks}
    shown = list(enumerate(journal))
    left_out = len(shown) - FIRST_ROWS - LAST_ROWS
    if left_out > 0:
        # Rows that a mark links to stay.
        shown = [one for one in shown if one[0] < FIRST_ROWS or one[0] >= len(shown) - LAST_ROWS or one[0] in numbers]
        left_out = len(journal) - len(shown)
    rows = [
        [
            clock(at, "%H:%M:%S.%f")[:-3] if at is not None else "–",
            f"{numbers.get(row, '')}{escaped(event_of(entry).replace('_', ' ') or '–', 60)}",
            _whose(entry),
            _details(entry),
            f"row{row}",
        ]
        for row, (at, entry) in shown
    ]
    more = f"<p class='quiet'>{left_out:,} entries in between are in journal.jsonl.</p>" if left_out > 0 else ""
    return f"<section><h2>Journal</h2>{more}{_table(['UTC', 'Event', 'By', 'What'], rows, 'journal')}</section>"


def _said_at(looks: Sequence[Seen]) -> list[Any]:
    """What the pictures say at a moment, in a line of text: [time, text]."""
    every = max(1, math.ceil(len(looks) / 300))
    rows = []
    for look in looks[::every]:
        told = [f"{clock(look.at, '%H:%M:%S')} UTC", look.stage[:40]]
        share = number_of(look.told.get("share"))
        if share is not None:
            told.append(f"achieved {100 * share:.2f}%")
        if look.rate("canary") is not None:
            told.append(f"errors {percent(look.rate('canary'))} / {percent(look.rate('baseline'))}")
        if look.of("canary", "p99") is not None:
            told.append(f"P99 {latency(look.of('canary', 'p99'))} / {latency(look.of('baseline', 'p99'))}")
        tests = tests_of(look)
        if tests:
            name, (evidence, target) = max(tests.items(), key=lambda one: one[1][0] / one[1][1])
            told.append(f"{name[:60]}: {evidence:,.3g} of {target:,.0f}")
        rows.append([round(look.at, 1), UNFIT.sub("\ufffd", " · ".join(told))])
    return rows


def render(parts: Parts) -> str:
    """The page, in HTML that is well-formed XML, too."""
    looks, journal = looks_of(parts), journal_of(parts)
    times = [look.at for look in looks] + [at for at, _ in journal if at is not None]
    times += [at for at in (seconds(parts.rollout.get("started_at")), seconds(parts.rollout.get("ended_at"))) if at is not None]
    start, end = (min(times), max(times)) if times else (0.0, 1.0)
    end = max(end, start + 1)
    stages = stages_of(looks, journal, end)
    marks = _marks(journal)
    frame = Frame(time_axis(start, end), stages, marks)
    outcome = outcome_of(parts)
    word, style = OUTCOMES.get(outcome, (outcome, "hold"))
    new, old = (name_of(parts.rollout.get(one), parts.rollout.get(other)) for one, other in (("to", "from"), ("from", "to")))
    title = f"{word}: {new}" + (f" after {old}" if parts.rollout.get("from") else "")
    reasons = reasons_of(parts)
    shown = "".join(f"<li>{escaped(reason)}</li>" for reason in reasons[:12])
    notes = "".join(f'<p class="note">{escaped(note)}</p>' for note in parts.notes)
    drawn = "".join(pictures(parts, looks, journal, frame))
    rows = list(_stage_rows(parts, looks, journal, stages))
    head = ["Stage", "Time", "Canary errors", "Baseline errors", "P99 of both", "Looks", "Answer"]
    data = {"from": start, "until": end, "looks": _said_at(looks) if drawn else []}
    embedded = json.dumps(data, ensure_ascii=True).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    when = f"{clock(start)} UTC" if times else ""
    sections = [
        f'<header class="{style}"><span class="badge {style}">{escaped(word, 60)}</span> <small>{when}</small>'
        f"<h1>{escaped(decision(parts))}</h1>{f'<p>Why:</p><ul>{shown}</ul>' if shown else ''}</header>{notes}",
        _cards(parts, looks),
        f"<section><h2>How it went</h2>{drawn}{HELP}</section>"
        if drawn
        else '<p class="note">No look was recorded: no account was on the canary, or the rollout ended before the first one.</p>',
        f"<section><h2>Stages</h2>{_table(head, rows, 'stages', (5,))}</section>" if rows else "",
        _findings(looks),
        _shadow(parts.shadow),
        _ran(parts),
        _journal_table(journal, marks),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en" xmlns="http://www.w3.org/1999/xhtml"><head><meta charset="utf-8"/>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{allowed}'\"/>"
        '<meta name="viewport" content="width=device-width,initial-scale=1"/><meta name="referrer" content="no-referrer"/>'
        f"<title>{escaped(title, 200)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(section for section in sections if section)
        + f'\n</main><div id="at" hidden="hidden" aria-hidden="true"></div>'
        f'<script type="application/json" id="data">{embedded}</script><script>{SCRIPT}</script></body></html>\n'
    )
