"""What the app's instances are told of the traffic: the key ``traffic`` of a NATS key-value bucket. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from .nats_client import Conflict, Entry, KeyValue
from .traffic import SLOTS, Traffic, TrafficError, traffic_from, wanted

KEY = "traffic"
_ROLES = ("stable", "canary", "salt", "cut")


@dataclass(frozen=True)
class Told:
    """What an entry says; `unreadable` is its text if it is no traffic, which must not stop a good one from replacing it."""

    traffic: Optional[Traffic] = None
    releases: dict[str, str] = field(default_factory=dict)
    #: The slot that decides copies of the orders without carrying them out; empty: none.
    shadow: str = ""
    #: The fencing number of who wrote it; 0 where nobody had one.
    token: int = 0
    unreadable: Optional[str] = None

    def as_bytes(self) -> bytes:
        """The entry's value."""
        assert self.traffic is not None
        more: dict[str, Any] = {"releases": self.releases, "shadow": self.shadow, "token": self.token}
        return json.dumps({**self.traffic.as_dict(), **more}, separators=(",", ":")).encode()

    def same(self, other: Told) -> bool:
        """Whether both tell the instances the same, whoever wrote them."""
        return (self.traffic, self.releases, self.shadow) == (other.traffic, other.releases, other.shadow)


def parse(entry: Optional[Entry]) -> Told:
    """What an entry says; nothing where there is none."""
    if entry is None:
        return Told()
    text = entry.value.decode(errors="replace")
    try:
        value = json.loads(text)
        traffic = traffic_from({name: value.get(name) for name in _ROLES})
        return Told(traffic, dict(value.get("releases") or {}), str(value.get("shadow") or ""), int(value.get("token") or 0))
    except (ValueError, TypeError, AttributeError):
        return Told(unreadable=text[:200])


def change(before: Told, changes: Mapping[str, Any]) -> Told:
    """`before` with the changes that are not None; releases of slots that are left out stay."""
    shadow = changes.get("shadow")
    if shadow not in (None, "", *SLOTS):
        raise TrafficError(f"shadow is {shadow!r}, expected one of: {', '.join(SLOTS)}, or nothing")
    token = changes.get("token")
    return replace(
        before,
        traffic=wanted(before.traffic, {name: changes.get(name) for name in _ROLES}),
        releases={**before.releases, **(changes.get("releases") or {})},
        shadow=before.shadow if shadow is None else shadow,
        token=before.token if token is None else token,
        unreadable=None,
    )


@dataclass(frozen=True)
class Write:
    """What a write found, what it left, and which revision that has."""

    before: Told
    after: Told
    changed: bool
    revision: Optional[int]
    created_bucket: bool


def write(
    bucket: KeyValue,
    changes: Mapping[str, Any],
    *,
    key: str = KEY,
    history: int = 5,
    replicas: int = 1,
    dry: bool = False,
) -> Write:
    """Make the key say what it says now with the changes; the bucket is created where it is missing.

    Compare and set: raises Conflict when another writer came between, unless that one wrote the same.
    """
    there = bucket.exists()
    entry, expected = bucket.get(key) if there else (None, 0)
    before = parse(entry)
    after = change(before, changes)
    changed = not after.same(before)
    revision = entry.revision if entry else None
    created = not there
    if changed and not dry:
        if not there:
            created = bucket.create(history, replicas)
        try:
            revision = bucket.put(key, after.as_bytes(), expected)
        except Conflict:
            entry, _ = bucket.get(key)
            if not parse(entry).same(after):
                raise
            revision, changed = (entry.revision if entry else None), False
    return Write(before, after, changed, revision, created)
