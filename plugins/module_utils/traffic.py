"""Who gets which slot: the split by account, the map files that hold it, and how to change it safely.

Pure: text and values in, text and values out. The same split is computed by HAProxy (``xxh32,mod(10000)`` over
``<account>:<salt>``) and by the app on its NATS path.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Optional, Union

BUCKETS = 10_000
SLOTS = ("blue", "green")
NO_SALT = "none"

RELEASE_MAP = "release.map"
CUT_MAP = "cut.map"

#: Which map file holds which key. Integers have a file of their own: an integer map may hold nothing else.
MAP_OF_KEY = {"stable": RELEASE_MAP, "canary": RELEASE_MAP, "salt": RELEASE_MAP, "cut": CUT_MAP}
#: The key as the map file has it: ``cut.map`` says how much the canary gets.
KEY_IN_MAP = {"stable": "stable", "canary": "canary", "salt": "salt", "cut": "canary"}
#: What HAProxy takes where a map lacks the key (the defaults in its configuration).
HAPROXY_DEFAULTS: dict[str, Union[str, int]] = {"stable": "blue", "canary": "blue", "salt": NO_SALT, "cut": 0}

_SALT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_MASK = 0xFFFFFFFF
_PRIMES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)


class TrafficError(ValueError):
    """A map or a wanted traffic that cannot be; the message is one sentence for the operator."""


class UnsafeChange(TrafficError):
    """No order of single changes keeps every account on its old or its new slot."""


def _rotl(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & _MASK


def _round(lane: int, word: bytes) -> int:
    return _rotl((lane + int.from_bytes(word, "little") * _PRIMES[1]) & _MASK, 13) * _PRIMES[0] & _MASK


def xxh32(data: bytes, seed: int = 0) -> int:
    """The 32-bit xxHash of `data`, after the algorithm's specification (xxHash fast digest algorithm, XXH32)."""
    p1, p2, p3, p4, p5 = _PRIMES
    size, at = len(data), 0
    if size >= 16:
        lanes = [(seed + p1 + p2) & _MASK, (seed + p2) & _MASK, seed, (seed - p1) & _MASK]
        while at + 16 <= size:
            lanes = [_round(lane, data[at + 4 * i : at + 4 * i + 4]) for i, lane in enumerate(lanes)]
            at += 16
        acc = sum(_rotl(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18)))
    else:
        acc = seed + p5
    acc = (acc + size) & _MASK
    while at + 4 <= size:
        acc = _rotl((acc + int.from_bytes(data[at : at + 4], "little") * p3) & _MASK, 17) * p4 & _MASK
        at += 4
    for byte in data[at:]:
        acc = _rotl((acc + byte * p5) & _MASK, 11) * p1 & _MASK
    acc = (acc ^ (acc >> 15)) * p2 & _MASK
    acc = (acc ^ (acc >> 13)) * p3 & _MASK
    return acc ^ (acc >> 16)


def bucket(account: str, salt: str) -> int:
    """The account's place among 0..9999; it is on the canary iff this is below the cut."""
    return xxh32(f"{account}:{salt}".encode()) % BUCKETS


@dataclass(frozen=True)
class Traffic:
    """What the load balancers do: which slot is stable, which is canary, and how many basis points it gets."""

    stable: str
    canary: str
    salt: str = NO_SALT
    cut: int = 0

    def __post_init__(self) -> None:
        for role in ("stable", "canary"):
            if getattr(self, role) not in SLOTS:
                raise TrafficError(f"{role} is {getattr(self, role)!r}, expected one of: {', '.join(SLOTS)}")
        if not _SALT.fullmatch(self.salt):
            raise TrafficError(f"salt is {self.salt!r}, expected a release id (letters, digits, . _ + -) or {NO_SALT}")
        if isinstance(self.cut, bool) or not isinstance(self.cut, int) or not 0 <= self.cut <= BUCKETS:
            raise TrafficError(f"cut is {self.cut!r}, expected whole basis points from 0 to {BUCKETS}")

    def slot_of_bucket(self, number: int) -> str:
        """The slot that serves a bucket."""
        return self.canary if number < self.cut else self.stable

    def slot_of(self, account: str) -> str:
        """The slot that serves an account."""
        return self.slot_of_bucket(bucket(account, self.salt))

    def shares(self) -> dict[str, int]:
        """How many basis points of accounts each slot serves; slots that serve none are left out."""
        found: dict[str, int] = {}
        for slot, share in ((self.canary, self.cut), (self.stable, BUCKETS - self.cut)):
            if share:
                found[slot] = found.get(slot, 0) + share
        return found

    def as_dict(self) -> dict[str, Any]:
        """The four keys, as the module returns them and as the key-value bucket holds them."""
        return asdict(self)


def other_slot(slot: str) -> str:
    """The slot that is not this one."""
    return SLOTS[1] if slot == SLOTS[0] else SLOTS[0]


def traffic_from(values: Mapping[str, Any]) -> Traffic:
    """A traffic of a mapping that has its four keys; other keys are refused.

    Raises TrafficError where one is missing, unknown or cannot be.
    """
    names = [field.name for field in fields(Traffic)]
    missing = [name for name in names if values.get(name) is None]
    unknown = sorted(set(values) - set(names))
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has unknown {', '.join(unknown)}"] if unknown else []
        raise TrafficError(f"the traffic {' and '.join(parts)}")
    cut = values["cut"]
    if isinstance(cut, str):
        if not cut.isdecimal():
            raise TrafficError(f"cut is {cut!r}, expected whole basis points from 0 to {BUCKETS}")
        cut = int(cut)
    return Traffic(str(values["stable"]), str(values["canary"]), str(values["salt"]), cut)


def wanted(current: Optional[Traffic], changes: Mapping[str, Any]) -> Traffic:
    """`current` with the changes that are not None.

    Without a current traffic `stable` must be among the changes; the canary is then the other slot, the salt `none`
    and the cut 0, unless given.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    if current is not None:
        return replace(current, **given)
    if "stable" not in given:
        raise TrafficError("there is no traffic yet and no stable slot was given: say which slot is stable")
    return traffic_from({"canary": other_slot(given["stable"]), "salt": NO_SALT, "cut": 0, **given})


# --- map files ---------------------------------------------------------------------------------------------------


def parse_map(text: str) -> dict[str, str]:
    """Key and value of each line as HAProxy reads it: the first word, then the rest; `#` starts a comment line.

    Raises TrafficError on a line without a value and on a key that comes twice (HAProxy would take the first).
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip().split(None, 1)
        if not words or words[0].startswith("#"):
            continue
        if len(words) == 1:
            raise TrafficError(f"line {number} has the key {words[0]!r} without a value")
        if words[0] in found:
            raise TrafficError(f"line {number} repeats the key {words[0]!r}")
        found[words[0]] = words[1].strip()
    return found


def with_value(text: str, key: str, value: str) -> str:
    """The map's text with that key set; every other line stays as it is, a new key goes to the end."""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        if line.split(None, 1)[:1] == [key]:
            lines[at] = f"{key} {value}"
            break
    else:
        lines.append(f"{key} {value}")
    return "".join(f"{line}\n" for line in lines)


def traffic_of_maps(maps: Mapping[str, Mapping[str, str]], defaults: bool = False) -> Optional[Traffic]:
    """The traffic that parsed maps say, None if they say nothing at all.

    With `defaults` a missing key is what HAProxy takes for it; without, it raises TrafficError.
    """
    values: dict[str, Any] = {}
    for name, file in MAP_OF_KEY.items():
        found = maps.get(file, {}).get(KEY_IN_MAP[name])
        if found is not None:
            values[name] = found
    if not values and not defaults:
        return None
    return traffic_from({**HAPROXY_DEFAULTS, **values} if defaults else values)


# --- a change, step by step --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One single change: this key of this map gets this value."""

    map: str
    key: str
    value: str


def _step(name: str, traffic: Traffic) -> Step:
    return Step(MAP_OF_KEY[name], KEY_IN_MAP[name], str(getattr(traffic, name)))


def _account_classes(before: Traffic, after: Traffic) -> list[tuple[int, int]]:
    """One (bucket under the old salt, bucket under the new) for each set of accounts that no cut tells apart."""
    edges = sorted({0, before.cut, after.cut} - {BUCKETS})
    if before.salt == after.salt:
        return [(edge, edge) for edge in edges]
    return [(old, new) for old in edges for new in edges]


def plan_steps(before: Traffic, after: Traffic) -> tuple[Step, ...]:
    """The shortest list of single changes that leads from one traffic to the other without a detour for anybody.

    After each step every account is on its old or its new slot, and one that reached its new slot stays there.
    Raises UnsafeChange where no such list exists, which is only when the cut, or the roles, change together with
    something else while the canary serves; a change to cut 0 alone is always possible.
    """
    classes = _account_classes(before, after)

    def slots(state: Traffic) -> tuple[str, ...]:
        column = 0 if state.salt == before.salt else 1
        return tuple(state.slot_of_bucket(pair[column]) for pair in classes)

    old, new = slots(before), slots(after)

    def allowed(here: tuple[str, ...], there: tuple[str, ...]) -> bool:
        return all(
            next_slot == target or (next_slot == source and slot == source)
            for slot, next_slot, source, target in zip(here, there, old, new)
        )

    queue = deque([before])
    came: dict[Traffic, Optional[tuple[Traffic, str]]] = {before: None}
    while queue:
        state = queue.popleft()
        if state == after:
            break
        here = slots(state)
        moves = [(name, getattr(after, name)) for name in ("stable", "salt", "cut", "canary")]
        for name, value in [*moves, ("cut", 0), ("cut", BUCKETS)]:
            reached = replace(state, **{name: value})
            if reached not in came and allowed(here, slots(reached)):
                came[reached] = (state, name)
                queue.append(reached)
    else:
        raise UnsafeChange(
            f"no order of single changes leads from {describe(before)} to {describe(after)} without sending some"
            " accounts to a slot that is neither their old nor their new one; set the cut to 0 first"
        )
    steps: list[Step] = []
    origin = came[after]
    state = after
    while origin is not None:
        steps.append(_step(origin[1], state))
        state = origin[0]
        origin = came[state]
    return tuple(reversed(steps))


def gaining(before: Traffic, after: Traffic) -> list[str]:
    """The slots that serve more accounts afterwards than before."""
    had = before.shares()
    return sorted(slot for slot, share in after.shares().items() if share > had.get(slot, 0))


def describe(traffic: Traffic) -> str:
    """One line for a person: ``stable blue, canary green 5% (salt 1.4.0-3f2a9c01de)``."""
    return f"stable {traffic.stable}, canary {traffic.canary} {traffic.cut / 100:g}% (salt {traffic.salt})"


def differences(disk: Mapping[str, Mapping[str, str]], running: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """Each of the four keys whose running value is not the one on disk: ``{map, key, disk, running}``."""
    found = []
    for name, file in MAP_OF_KEY.items():
        key = KEY_IN_MAP[name]
        on_disk, live = disk.get(file, {}).get(key), running.get(file, {}).get(key)
        if on_disk != live:
            found.append({"map": file, "key": key, "disk": on_disk, "running": live})
    return found
