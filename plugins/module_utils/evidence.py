"""From what the load balancers and the instances count to what the judge wants to know.

Counters start again when a process does, and a load balancer's with its configuration: so what is kept are differences
between two looks, summed up. Pure: looks (as the agent on a load balancer gives them) in, tallies out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from .judge import Look, Sample, Tally

#: Answers of the baseline that must have been timed before its P90 is a yardstick.
YARDSTICK = 500

_FAILED = ("error", "unavailable")
#: The judge's stops by the name that an agent's look has for their counter.
_STOPS = {
    "duplicated_execution": "duplicated_executions",
    "ledger_difference": "ledger_differences",
    "fenced_write": "fenced_writes",
    "risk_limit_passed": "risk_limit_passed",
}


class Counters:
    """Sums since ``Counters()``, by slot, over restarts of instances and of HAProxy.

    ``add`` takes the looks of one moment, by load balancer. An instance or a load balancer that was not seen before is
    counted from its second look on, one that began anew from zero.
    """

    def __init__(self, slots: Sequence[str]) -> None:
        self.slots = tuple(slots)
        self._last: dict[str, dict[str, Any]] = {}
        self._sums: dict[str, dict[str, float]] = {slot: {} for slot in slots}
        self._latency: dict[str, list[int]] = {slot: [] for slot in slots}
        self.bounds: list[float] = []
        self.crashes: dict[str, int] = dict.fromkeys(slots, 0)
        self.missing: dict[str, list[str]] = {slot: [] for slot in slots}
        self.blind: list[str] = []
        self._unreported: dict[str, set[str]] = {slot: set() for slot in slots}

    def add(self, looks: Mapping[str, Mapping[str, Any]]) -> None:
        """Take what the load balancers saw at one moment; one that does not answer has no look."""
        self.blind = [name for name, look in looks.items() if not look.get("haproxy")]
        for name, look in looks.items():
            for slot, counts in (look.get("haproxy") or {}).items():
                if slot in self._sums:
                    found = {"requests": counts["requests"], "failed": counts["errors"], "retries": counts["retries"]}
                    self._count(f"{name}|{slot}", slot, None, found)
        instances: dict[str, Mapping[str, Any]] = {}
        for look in looks.values():
            for host, by_slot in (look.get("instances") or {}).items():
                known = instances.setdefault(host, {})
                instances[host] = {**known, **{s: i for s, i in by_slot.items() if i["up"] or s not in known}}
        for slot in self.slots:
            there = {host: by_slot[slot] for host, by_slot in instances.items() if slot in by_slot}
            self._unreported[slot] = set()
            self.missing[slot] = sorted(host for host, instance in there.items() if not instance["up"])
            for host, instance in there.items():
                self._instance(f"{host}|{slot}|app", slot, instance)

    def resume(self) -> None:
        """After a time that nobody looked: go on from what the next look finds, with what was counted before."""
        self._last = {}

    def _instance(self, source: str, slot: str, instance: Mapping[str, Any]) -> None:
        last = self._last.get(source)
        if not instance["up"]:
            if last is not None and last.get("up"):
                last["up"] = False
                self.crashes[slot] += 1
            return
        if last is not None and last["up"] and last["generation"] != instance["started"]:
            self.crashes[slot] += 1
        found: dict[str, float] = {}
        for path, outcomes in instance["orders"].items():
            for outcome, count in outcomes.items():
                found[f"{path}:{outcome}"] = count
        for name, counter in _STOPS.items():
            count = instance["stops"].get(counter)
            if count is None:
                self._unreported[slot].add(name)
            else:
                found[f"stop:{name}"] = count
        cumulative = instance["latency"]["counts"]
        if not self.bounds:
            self.bounds = [bound for bound in instance["latency"]["bounds"] if bound is not None]
            self._latency = {name: [0] * len(cumulative) for name in self.slots}
        for at, count in enumerate(cumulative):
            found[f"latency:{at}"] = count - (cumulative[at - 1] if at else 0)
        self._count(source, slot, instance["started"], found)

    def _count(self, source: str, slot: str, generation: Optional[float], found: Mapping[str, float]) -> None:
        last = self._last.get(source)
        self._last[source] = {"up": True, "generation": generation, "counts": dict(found)}
        if last is None:
            return
        before = last["counts"] if last["generation"] == generation else {}
        if any(value < before.get(name, 0) for name, value in found.items() if not name.startswith("stop:")):
            before = {}
        sums = self._sums[slot]
        for name, value in found.items():
            gained = max(value - before.get(name, 0), 0)
            kind, _, at = name.partition(":")
            if kind == "latency":
                if int(at) < len(self._latency[slot]):
                    self._latency[slot][int(at)] += int(gained)
            else:
                sums[name] = sums.get(name, 0) + gained

    def orders(self, slot: str, *outcomes: str, path: str = "") -> int:
        """Orders that ended like this, all of them without an outcome; on one path or both."""
        found = 0
        for name, count in self._sums[slot].items():
            by, _, outcome = name.partition(":")
            if by in ("http", "nats") and (not path or by == path) and (not outcomes or outcome in outcomes):
                found += int(count)
        return found

    def requests(self, slot: str) -> int:
        """Requests that reached the slot: HTTP as the load balancers see it, and orders on NATS."""
        return int(self._sums[slot].get("requests", 0)) + self.orders(slot, path="nats")

    def attempts(self, slot: str) -> Tally:
        """Every attempt to have a request answered, and how many failed.

        An attempt that failed and was sent again to another instance counts, although its client never saw it. What was
        refused because trading is halted is no failure of a version.
        """
        sums = self._sums[slot]
        retries = int(sums.get("retries", 0))
        failed = int(sums.get("failed", 0)) + retries - self.orders(slot, "halted", path="http")
        failed = max(failed, 0) + self.orders(slot, *_FAILED, path="nats")
        total = self.requests(slot) + retries
        return Tally(max(total, failed), failed)

    def rejections(self, slot: str) -> Tally:
        """Orders that were decided, and how many of them were refused by a check or as malformed."""
        refused = self.orders(slot, "refused", "malformed")
        return Tally(self.orders(slot, "accepted") + refused, refused)

    def latency(self, slot: str) -> list[int]:
        """Answers by bucket of ``bounds``, the last one above them all."""
        return list(self._latency[slot])

    def stop(self, name: str, slots: Sequence[str]) -> Optional[int]:
        """How often it occurred in these slots; None where an instance does not report it."""
        if any(name in self._unreported[slot] for slot in slots):
            return None
        if not any(f"stop:{name}" in self._sums[slot] for slot in slots):
            return None
        return int(sum(self._sums[slot].get(f"stop:{name}", 0) for slot in slots))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {
            "slots": list(self.slots),
            "last": self._last,
            "sums": self._sums,
            "latency": self._latency,
            "bounds": self.bounds,
            "crashes": self.crashes,
            "unreported": {slot: sorted(names) for slot, names in self._unreported.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Counters:
        """What ``to_dict`` wrote."""
        found = cls(values["slots"])
        found._last, found._sums, found._latency = values["last"], values["sums"], values["latency"]
        found.bounds, found.crashes = values["bounds"], values["crashes"]
        found._unreported = {slot: set(names) for slot, names in values["unreported"].items()}
        return found


def quantile(bounds: Sequence[float], counts: Sequence[int], part: float) -> Optional[float]:
    """The value below which that part of the counted ones lies, linear within its bucket; None where nothing was counted.

    ``counts`` has one more entry than ``bounds``: what lies above them all is told as the last bound.
    """
    total = sum(counts)
    if not total:
        return None
    wanted, seen = part * total, 0
    for at, bound in enumerate(bounds):
        if seen + counts[at] >= wanted:
            low = bounds[at - 1] if at else 0.0
            return low + (bound - low) * ((wanted - seen) / counts[at] if counts[at] else 1.0)
        seen += counts[at]
    return bounds[-1]


def above(counts: Sequence[int], at: int) -> Tally:
    """All that was counted, and how many lie above the bound of that number."""
    return Tally(sum(counts), sum(counts[at + 1 :]))


def _less(now: Sequence[int], then: Sequence[int]) -> list[int]:
    """What was gained by bucket; before the first answers there are no buckets."""
    return [more - less for more, less in zip(now, then or [0] * len(now))]


def yardstick(bounds: Sequence[float], counts: Sequence[float]) -> Optional[int]:
    """The number of the bound that is nearest to the P90 of these counts; None for fewer than ``YARDSTICK`` of them."""
    total = sum(counts)
    if total < YARDSTICK:
        return None
    parts, seen = [], 0.0
    for at in range(len(bounds)):
        seen += counts[at]
        parts.append(abs(seen / total - 0.90))
    return parts.index(min(parts))


class StageEvidence:
    """What one stage has shown so far: the judge's look, and the numbers for people.

    ``slow_seconds``: ``versioning.latency_threshold``. What is slower is told by the P90 of the baseline's latest answers,
    those before the look that is counted: it follows the load, and no answer has a part in the yardstick that it is held to.
    """

    def __init__(self, name: str, cut: int, stable: str, canary: str, slow_seconds: float) -> None:
        self.name = name
        self.cut = cut
        self.stable = stable
        self.canary = canary
        self.slow_seconds = slow_seconds
        self.counters = Counters((stable, canary))
        self._latest: list[float] = []
        self._slower = {slot: Tally(0, 0) for slot in (stable, canary)}

    def add(self, looks: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the looks of one moment."""
        before = {slot: self.counters.latency(slot) for slot in self._slower}
        self.counters.add(looks)
        gained = {slot: _less(self.counters.latency(slot), then) for slot, then in before.items()}
        mark = yardstick(self.counters.bounds, self._latest)
        if mark is not None:
            for slot, counts in gained.items():
                was, more = self._slower[slot], above(counts, mark)
                self._slower[slot] = Tally(was.total + more.total, was.bad + more.bad)
        self._latest = [was + more for was, more in zip(self._latest or [0.0] * len(gained[self.stable]), gained[self.stable])]
        if sum(self._latest) > 2 * YARDSTICK:
            self._latest = [count / 2 for count in self._latest]

    @property
    def exposure(self) -> float:
        """The part of the accounts that the canary has."""
        return self.cut / 10_000

    def look(self, history: Counters) -> Look:
        """What the judge is asked about."""
        counters = self.counters
        pairs: dict[str, list[Optional[Tally]]] = {name: [] for name in ("errors", "rejections", "slow", "slower")}
        for slot in (self.canary, self.stable):
            reports = not counters.missing[slot] if slot == self.canary else True
            there = reports and bool(counters.bounds)
            pairs["errors"].append(counters.attempts(slot) if there and not counters.blind else None)
            pairs["rejections"].append(counters.rejections(slot) if there else None)
            latency = counters.latency(slot)
            pairs["slow"].append(above(latency, self._slow_mark()) if there else None)
            pairs["slower"].append(self._slower[slot] if there else None)
        alone = self.cut >= 10_000
        samples = {name: Sample(canary, None if alone else baseline) for name, (canary, baseline) in pairs.items()}
        stops = {name: history.stop(name, (self.canary,)) for name in _STOPS}
        # The ledger is one, whoever verifies it.
        stops["ledger_difference"] = history.stop("ledger_difference", (self.canary, self.stable))
        return Look(self.name, self.exposure, samples, {**stops, "crash_loop": history.crashes[self.canary]})

    def _slow_mark(self) -> int:
        bounds = self.counters.bounds
        return min(bisect_left(bounds, self.slow_seconds), len(bounds) - 1)

    def numbers(self, slot: str) -> dict[str, Any]:
        """For people: requests, errors, rejections, slow and slower answers, and the latency's quantiles in seconds."""
        counters, latency = self.counters, self.counters.latency(slot)
        tried = counters.attempts(slot)
        return {
            "requests": counters.requests(slot),
            "errors": tried.bad,
            "rejections": counters.rejections(slot).bad,
            "slow": above(latency, self._slow_mark()).bad if latency else 0,
            "slower": self._slower[slot].bad,
            **{f"p{part}": quantile(counters.bounds, latency, part / 100) for part in (50, 90, 99)},
        }

    def share(self) -> Optional[float]:
        """The canary's part of all requests in the stage; None without a request."""
        canary, stable = self.counters.requests(self.canary), self.counters.requests(self.stable)
        return canary / (canary + stable) if canary + stable else None
