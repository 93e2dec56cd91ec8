"""Which slot an account's orders go to. The load balancer computes the same (see the haproxy role)."""

from __future__ import annotations

import msgspec
import xxhash

BUCKETS = 10_000


class Traffic(msgspec.Struct, frozen=True):
    """What the load balancers do now. ``cut`` is in basis points of accounts.

    ``releases`` says which release each slot is to run: an instance that runs another, on a host that
    was taken out of the fleet and left running, has no accounts. A slot that is not named, or whose
    name is empty, may run any: so it is while one release takes the place of another in a slot.
    A slot has a part in traffic while it is the stable one, or the canary with a cut.
    ``shadow`` names the slot that gets copies of the other's orders and decides them without a trace; empty
    for none. Fields that a later version adds are passed over.
    """

    stable: str
    canary: str
    salt: str
    cut: int
    releases: dict[str, str] = {}
    shadow: str = ""


def bucket(account: str, salt: str) -> int:
    """xxh32 of ``<account>:<salt>`` modulo 10,000."""
    return xxhash.xxh32_intdigest(f"{account}:{salt}".encode()) % BUCKETS


def slot_of(account: str, traffic: Traffic) -> str:
    """The canary's slot iff the account's bucket is below the cut; so a growing cut only adds accounts."""
    if traffic.cut > 0 and bucket(account, traffic.salt) < traffic.cut:
        return traffic.canary
    return traffic.stable


class TrafficGate:
    """Whether this instance answers an account's request on a path that reaches both slots.

    Until a map was seen it answers everything, since a single instance without a fleet must work. When
    the map changes, an account that is gained is answered at once and one that is lost for ``overlap``
    seconds longer: answers are idempotent, silence would not be.
    """

    def __init__(self, slot: str, release: str, overlap: float = 1.0) -> None:
        self._slot = slot
        self.release = release
        """Another one after a reload."""
        self._overlap = overlap
        self._current: Traffic | None = None
        self._begun = False
        self._former: list[tuple[float, Traffic | None]] = []

    @property
    def current(self) -> Traffic | None:
        return self._current

    def begin(self, traffic: Traffic | None) -> None:
        """Take the map that was found before the first request; nothing was answered under another."""
        self._current = traffic
        self._begun = True
        self._former.clear()

    def update(self, traffic: Traffic, now: float) -> bool:
        """Take ``traffic`` as the map in force; True if that is a change."""
        if traffic == self._current:
            return False
        self._former = [entry for entry in self._former if entry[0] > now]
        self._former.append((now + self._overlap, self._current))
        self._current = traffic
        return True

    def member(self) -> bool:
        """Whether this instance is one of those that the map in force gives traffic to.

        Only members send orders, read the venue's reports and publish events. One that waits for its cut,
        was rolled back, or runs on a host that left the fleet does none of it; what it holds, it finishes.
        Nor does one that could not look for a map yet. Where there is none, every instance is a member.
        """
        traffic = self._current
        if traffic is None:
            return self._begun
        serves = self._slot == traffic.stable or (self._slot == traffic.canary and traffic.cut > 0)
        return serves and self._runs_what_is_named(traffic)

    def takes(self) -> bool:
        """Whether its slot may give this instance requests: no other release is named for it."""
        return self._current is None or self._runs_what_is_named(self._current)

    def answers(self, account: str, now: float) -> bool:
        if self._gives(self._current, account):
            return True
        return any(until > now and self._gives(traffic, account) for until, traffic in self._former)

    def _gives(self, traffic: Traffic | None, account: str) -> bool:
        if traffic is None:
            return True
        return self._runs_what_is_named(traffic) and slot_of(account, traffic) == self._slot

    def _runs_what_is_named(self, traffic: Traffic) -> bool:
        return (traffic.releases.get(self._slot) or self.release) == self.release
