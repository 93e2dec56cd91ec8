"""What somebody is to be told: from Alertmanager's webhook, from the ledger's own alerts, from the release
engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from trading_bot.errors import Malformed

SEVERITIES = ("info", "warning", "critical")
FIRING, RESOLVED, EVENT = "firing", "resolved", "event"
_LONGEST = 500
_MOST = 10_000
Shape = TypeVar("Shape")


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to tell. ``key`` names the alert, so that it is known again; ``at`` is in seconds since
    1970."""

    key: str
    state: str
    severity: str
    title: str
    source: str
    rule: str
    at: float
    where: str = ""
    value: str = ""
    threshold: str = ""
    details: tuple[tuple[str, str], ...] = ()
    labels: dict[str, str] = {}
    runbook: str = ""
    plot: str = ""


class _Alert(msgspec.Struct):
    status: str
    labels: dict[str, str]
    annotations: dict[str, str] = {}
    startsAt: datetime | None = None
    endsAt: datetime | None = None
    generatorURL: str = ""
    fingerprint: str = ""


class _Webhook(msgspec.Struct):
    alerts: list[_Alert]
    version: str = "4"


class _Risk(msgspec.Struct):
    rule: str
    severity: str
    message: str
    at: int
    schema: int
    account: str = ""
    limit_name: str = ""
    limit: str | None = None
    value: str | None = None
    by: str = ""
    reason: str = ""
    order: str = ""
    instance: str = ""
    version: str = ""
    slot: str = ""


class _Release(msgspec.Struct, forbid_unknown_fields=True):
    event: str
    rollout: str = ""
    from_: str = msgspec.field(default="", name="from")
    to: str = ""
    stage: str = ""
    summary: str = ""
    reasons: list[str] = []
    report: str = ""
    at: datetime | None = None
    by: str = ""


_EVENTS = {"start": "info", "stage": "info", "end": "info", "fail": "critical", "rollback": "critical"}


def from_alertmanager(body: bytes) -> list[Notice]:
    """The alerts of a webhook of version 4. Raises Malformed."""
    hook = _decode(body, _Webhook)
    if hook.version != "4":
        raise Malformed({"version": f"4, found {_cut(hook.version)!r}"})
    if len(hook.alerts) > _MOST:
        raise Malformed({"alerts": f"at most {_MOST}, found {len(hook.alerts)}"})
    return [_from_alert(number, alert) for number, alert in enumerate(hook.alerts)]


def _from_alert(number: int, alert: _Alert) -> Notice:
    if alert.status not in (FIRING, RESOLVED):
        raise Malformed({f"alerts[{number}].status": f"firing or resolved, found {_cut(alert.status)!r}"})
    labels = {_cut(name): _cut(value) for name, value in alert.labels.items()}
    name = labels.get("alertname", "")
    if not name:
        raise Malformed({f"alerts[{number}].labels.alertname": "a name"})
    about = alert.annotations
    ends = alert.endsAt if alert.status == RESOLVED else None
    at = ends or alert.startsAt or datetime.now(UTC)
    # Alertmanager's own fingerprint is a hash of the labels too; without one, the labels themselves.
    identity = alert.fingerprint or ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
    return Notice(
        key=f"alert:{_cut(identity)}:{_seconds(alert.startsAt):.0f}",
        state=alert.status,
        severity=_severity(labels.get("severity", "")),
        title=_cut(about.get("summary") or name),
        source="Prometheus",
        rule=name,
        at=_seconds(at),
        where=labels.get("host") or labels.get("account") or labels.get("instance", ""),
        value=_cut(about.get("value", "")),
        threshold=_cut(about.get("threshold", "")),
        details=tuple(
            (name, value)
            for name, value in sorted(labels.items())
            if name not in ("alertname", "severity", "host", "job", "instance")
        ),
        labels=labels,
        runbook=_link(about.get("runbook_url", "")),
        plot=_link(alert.generatorURL),
    )


def from_ledger(id: str, line: bytes) -> Notice:
    """An entry of the stream of ``trading:alerts``; ``id`` is the entry's own. Raises Malformed."""
    risk = _decode(line, _Risk)
    if risk.schema != 1:
        raise Malformed({"schema": f"1, found {risk.schema}"})
    told = (("limit", risk.limit_name), ("order", risk.order), ("by", risk.by), ("reason", risk.reason),
            ("instance", risk.instance), ("version", risk.version))  # fmt: skip
    labels = {"rule": risk.rule, "account": risk.account, "severity": risk.severity}
    return Notice(
        key=f"ledger:{id}",
        state=EVENT,
        severity=_severity(risk.severity),
        title=_cut(risk.message),
        source="ledger",
        rule=_cut(risk.rule),
        at=risk.at / 1000,
        where=_cut(risk.account),
        value=_cut(risk.value or ""),
        threshold=_cut(risk.limit or ""),
        details=tuple((name, _cut(value)) for name, value in told if value),
        labels={name: _cut(value) for name, value in labels.items() if value},
    )


def from_release(body: bytes) -> Notice:
    """What happened to a release. Raises Malformed."""
    told = _decode(body, _Release)
    if told.event not in _EVENTS:
        raise Malformed({"event": f"one of {', '.join(_EVENTS)}, found {_cut(told.event)!r}"})
    at = _seconds(told.at or datetime.now(UTC))
    details = (
        ("from", told.from_),
        ("to", told.to),
        ("stage", told.stage),
        ("rollout", told.rollout),
        ("by", told.by),
        ("report", told.report),
        *(("reason", reason) for reason in told.reasons[:20]),
    )
    return Notice(
        key=f"release:{_cut(told.rollout)}:{told.event}:{_cut(told.stage)}:{at:.3f}",
        state=EVENT,
        severity=_EVENTS[told.event],
        title=_cut(told.summary or f"{told.event} {told.to}".strip()),
        source="release",
        rule=f"release_{told.event}",
        at=at,
        where=_cut(told.to),
        details=tuple((name, _cut(value)) for name, value in details if value),
        labels={"rule": f"release_{told.event}", "severity": _EVENTS[told.event]},
    )


def matches(matchers: Sequence[Mapping[str, str]], notice: Notice) -> bool:
    """Whether a notice has all of these labels, of which ``rule`` and ``source`` are the notice's own."""
    labels = {**notice.labels, "alertname": notice.rule, "rule": notice.rule, "source": notice.source}
    return all(labels.get(matcher["name"], "") == matcher["value"] for matcher in matchers)


def _decode(body: bytes, shape: type[Shape]) -> Shape:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed({"body": _cut(str(error))}) from None


def _severity(found: str) -> str:
    # An alert whose severity nobody knows is not one to be missed.
    return found if found in SEVERITIES else "critical"


def _cut(text: str) -> str:
    """One line of text, of a length that a person reads."""
    line = " ".join("".join(" " if ord(c) < 32 or ord(c) == 127 else c for c in text).split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def _link(found: str) -> str:
    """A link that is one, or a path of the repository's documents; else nothing."""
    link = found if found.isprintable() and " " not in found and len(found) <= 2000 else ""
    return link if link.startswith(("https://", "http://", "docs/")) else ""


def _seconds(at: datetime | None) -> float:
    try:
        return at.timestamp() if at is not None else 0.0
    except (OverflowError, ValueError, OSError):
        return 0.0
