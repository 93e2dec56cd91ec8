"""The life of one order, put together from what the ledger, the instances and the venue say of it.

Pure: lines and answers in, events and text out. An event is ``{at, source, text}``, with `at` in Unix seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation
from typing import Any, Optional

from .rollout_record import number_of, seconds

#: What ends an order; `order.refused` is a decision without an order after it.
ENDS = frozenset({"order.refused", "order.filled", "order.cancelled", "order.rejected", "order.expired"})
#: Milliseconds after its end for which the audit is still read: what was found out later.
AFTER_END = 60_000
#: Fields of the ledger and of the audit that are integers scaled by 10^8.
_SCALED = frozenset({"quantity", "price", "fee", "cash", "left", "reserved", "reference", "filled", "total"})
_ACCOUNT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_FINGERPRINT = ("symbol", "side", "type", "quantity", "price", "stop_price", "time_in_force", "reduce_only")


class OrderLifeError(ValueError):
    """What was given names no order; the message is one sentence for the operator."""


def check(account: Any, order: Any) -> None:
    """Raises OrderLifeError where the two cannot name an order."""
    if not _ACCOUNT.fullmatch(str(account or "")):
        raise OrderLifeError(f"order_account is {account!r}, expected the account's name: 1 to 64 of A-Z a-z 0-9 _ -")
    if not _ID.fullmatch(str(order or "")) or order == "stream":
        raise OrderLifeError(f"order_id is {order!r}, expected the client order id: 1 to 64 of A-Z a-z 0-9 _ . -")


def amount(text: Any) -> str:
    """An integer scaled by 10^8 as a decimal number; what is none stays as it is."""
    try:
        value = Decimal(str(text)) / 10**8
    except InvalidOperation:
        return str(text)
    return f"{value.normalize():f}" if value else "0"


def asked(fingerprint: str) -> str:
    """What the order asked for: ``buy 0.001 BTC-USDT limit at 50000, GTC``."""
    given = dict(zip(_FINGERPRINT, fingerprint.split("|")))
    if len(given) < len(_FINGERPRINT):
        return fingerprint
    text = f"{given['side']} {amount(given['quantity'])} {given['symbol']} {given['type']}"
    text += f" at {amount(given['price'])}" if given["price"] else ""
    text += f", stop at {amount(given['stop_price'])}" if given["stop_price"] else ""
    text += f", {given['time_in_force']}" + (", reduce only" if given["reduce_only"] == "1" else "")
    return text


def _told(fields: Mapping[str, Any], hidden: Sequence[str], *, scaled: bool = False) -> str:
    words = []
    for name, value in fields.items():
        if name in hidden or value in (None, "", [], {}):
            continue
        if name == "fp":
            words.append(asked(str(value)))
        else:
            text = (
                amount(value)
                if scaled and name in _SCALED
                else value
                if isinstance(value, str)
                else json.dumps(value, ensure_ascii=False)
            )
            words.append(f"{name} {text}")
    return ", ".join(words)


def pairs(flat: Sequence[str]) -> dict[str, str]:
    """The fields of a hash or of a stream's entry, which Redis gives as names and values in turn."""
    return dict(zip(flat[::2], flat[1::2]))


def is_of(fields: Mapping[str, Any], account: str, order: str) -> bool:
    """Whether a line of the audit or of the outbox is about the order, or about the one that takes its place."""
    return fields.get("account") == account and order in (fields.get("order"), fields.get("replaces"), fields.get("replaced_by"))


def stream_time(entry: str) -> Optional[float]:
    """Unix seconds of a stream's id, as 1769860800123-0."""
    first = entry.partition("-")[0]
    return int(first) / 1000 if first.isdigit() else None


def audit_event(entry: str, fields: Mapping[str, str], source: str = "audit") -> dict[str, Any]:
    """A line of a stream of the ledger as an event."""
    told = _told(fields, ("e", "account", "order", "at", "limits", "marks", "cash"), scaled=True)
    return {
        "at": stream_time(entry) or 0.0,
        "source": source,
        "text": f"{fields.get('e')}: {told}" if told else str(fields.get("e")),
    }


def log_events(lines: Iterable[str], account: str, order: str) -> list[dict[str, Any]]:
    """The lines of an instance's log that name the order."""
    found = []
    needle = json.dumps(order)
    for line in lines:
        if needle not in line:
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        at = seconds(entry.get("at")) if isinstance(entry, dict) else None
        if at is None or entry.get("account") != account:
            continue
        told = _told(entry, ("at", "event", "account", "order", "instance", "slot"))
        found.append({"at": at, "source": f"log {entry.get('slot') or ''}".strip(), "text": f"{entry.get('event')}: {told}"})
    return found


def venue_events(answer: Any) -> list[dict[str, Any]]:
    """The executions in the venue's answer on an order."""
    found = []
    for fill in answer.get("fills") or () if isinstance(answer, Mapping) else ():
        at = number_of(fill.get("at"))
        if at is not None:
            text = f"executed {fill.get('quantity')} at {fill.get('price')}, fee {fill.get('fee')}, trade {fill.get('trade')}"
            found.append({"at": at / 1000, "source": "venue", "text": text})
    return found


def ledger_state(fields: Mapping[str, str]) -> str:
    """What the ledger holds of the order now."""
    shown = {
        name: value
        for name, value in fields.items()
        if not name.startswith("t:") and name not in ("decision", "fence", "at", "sent")
    }
    shown["state"] = shown.pop("st", "?")
    return _told(shown, (), scaled=True)


def api_state(answer: Any) -> str:
    """What the API says of the order now."""
    return _told(answer, ("account_id", "client_order_id", "accepted_at")) if isinstance(answer, Mapping) else str(answer)


def venue_state(answer: Any) -> str:
    """What the venue says of the order now."""
    return _told(answer, ("id", "fills")) if isinstance(answer, Mapping) else str(answer)


def clock(at: float) -> str:
    """``2026-01-31 12:00:00.123``, UTC."""
    return datetime.fromtimestamp(round(at, 3), timezone.utc).isoformat(sep=" ", timespec="milliseconds")[:23]


def story(account: str, order: str, by_host: Mapping[str, Mapping[str, Any]], silent: Mapping[str, str]) -> list[str]:
    """The lines to show: events of all hosts in the order of time, what each says now, and what could not be asked."""
    events = [(float(event["at"]), host, event) for host, told in by_host.items() for event in told.get("events") or ()]
    booked: set[float] = set()

    def turn(one: tuple[float, str, Mapping[str, Any]]) -> tuple[float, int]:
        """Within a millisecond: what the ledger decided, what the venue executed, what the ledger booked of it, the logs."""
        at, event = round(one[0], 3), one[2]
        if event["source"] == "audit":
            if event["text"].startswith("order.fill:"):
                booked.add(at)
            return at, 2 if at in booked else 0
        return at, 1 if event["source"] == "venue" else 3

    events.sort(key=turn)
    width = max((len(host) + len(event["source"]) + 1 for _, host, event in events), default=0)
    lines = [f"{clock(at)}  {host + ' ' + event['source']:{width}}  {event['text']}" for at, host, event in events]
    if not events:
        lines.append(f"Nobody has written anything of the order {order} of {account}: is it the right account?")
    for host, told in sorted(by_host.items()):
        lines += [f"now, {host} {source}: {text}" for source, text in (told.get("now") or {}).items()]
    notes = [f"{host}: {note}" for host, told in sorted(by_host.items()) for note in told.get("notes") or ()]
    notes += [f"{host}: {why}" for host, why in sorted(silent.items())]
    return lines + [f"not read, {note}" for note in notes]
