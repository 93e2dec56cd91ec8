"""The judge of a progressive release: is the canary worse than the baseline that runs beside it?

A rollout asks it every few seconds, or after every request, with the counters of the stage so far. It answers ``fail``
(roll back now), ``pass`` (promote) or ``insufficient`` (go on looking), each with its reasons in sentences and numbers.

 - ``fail``: a hard stop, or the evidence of one of the sequential tests has reached its target. Over all metrics, all
   stages and all looks of a rollout, a canary that is no worse than its baseline and within its limits fails with a
   probability of at most ``Plan.alpha``.
 - ``pass``: every source reported, the stage has its minimal sample, and for every metric it is *shown* that the
 canary's
   rate is not above the baseline's by more than a margin, and below the limit. For each metric, what is shown is wrong
   with a probability of at most ``Plan.beta`` in a stage.
 - ``insufficient``: neither. A source that is missing is never fine.

State is a small value, :class:`Memory`, that goes through JSON; ``judge`` itself is a pure function of it and of a
look.
Pure, standard library only: it may travel to hosts. The statistics are in ``sequential.py``, with their sources.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Optional

from .sequential import Alternative, Wager, confidence_sequence, law_by_limit, law_by_margins, law_by_share

PASS = "pass"  # noqa: S105 - a verdict, not a password
FAIL = "fail"
INSUFFICIENT = "insufficient"

#: Ways to be worse where bad events are rare: stakes chosen so that 5, 10 and 50 times the rate are all caught
#: within 1.3
#: times Wald's bound at a share of 5% (``bench/judge.py`` measures it).
RARE = (Alternative(2, 0.03), Alternative(5, 0.27), Alternative(10, 0.14), Alternative(25, 0.06), Alternative(80, 0.50))
#: Ways to be worse where they are common.
COMMON = (Alternative(1.5, 0.2), Alternative(2, 0.2), Alternative(3, 0.2), Alternative(6, 0.2), Alternative(20, 0.2))

#: Looks with fewer requests than this are laid on the stage's share so far; longer ones have margins of their own.
SHORT_LOOK = 200


class JudgeInputError(ValueError):
    """A plan or a look that makes no sense: counts below zero, more bad events than requests, an unknown name."""


@dataclass(frozen=True)
class Stop:
    """What ends a rollout without statistics: from ``limit`` occurrences on."""

    name: str
    sentence: str
    limit: int = 1


STOPS = (
    Stop("crash_loop", "instances of the canary crashed or stopped answering", 3),
    Stop("duplicated_execution", "orders were executed more than once"),
    Stop("ledger_difference", "positions differ between the ledger and the fills"),
    Stop("fenced_write", "writes of the canary were refused because it had lost its fence"),
    Stop("risk_limit_passed", "orders passed a risk limit"),
)


@dataclass(frozen=True)
class Metric:
    """A rate of bad events, and what counts as worse.

    ``weight`` and ``limit_weight``: the part of alpha that its two tests get, relative to all others.
    ``margin``: to pass, the canary's rate must be shown to be less than this above the baseline's (a fraction: 0.005 is
    half a percentage point).
    ``tolerance``: odds ratios up to this are not worse.
    ``limit``: the absolute limit of the canary's rate, or None.
    """

    name: str
    bad: str
    weight: float
    margin: float
    alternatives: tuple[Alternative, ...] = RARE
    tolerance: float = 1.0
    limit: Optional[float] = None
    limit_weight: float = 0.0

    def __post_init__(self) -> None:
        wrong = not (self.weight > 0 and 0 < self.margin < 1 and self.tolerance >= 1 and self.limit_weight >= 0)
        if wrong or (self.limit is not None and not (0 < self.limit < 1 and self.limit_weight > 0)):
            raise JudgeInputError(f"metric {self.name!r} has a weight, margin, tolerance or limit out of range: {self}")


@dataclass(frozen=True)
class Plan:
    """What a rollout is judged by. It must not change while a rollout is in progress.

    ``alpha``: the probability of a false rollback, for the whole rollout. ``beta``: see the module.
    ``min_requests``: requests of the canary (and of the baseline, while there is one) that a stage needs to pass.
    ``accounts``: how many accounts the split divides. By chance the canary's share of requests lies off the cut by
    as much
    as that many equal accounts would make it.
    ``reserve``: the part of each test's capital kept back for what goes wrong later; a quarter of what is left is
    staked
    at each new stage and after every ``renewal`` requests.
    """

    metrics: tuple[Metric, ...]
    stops: tuple[Stop, ...] = STOPS
    alpha: float = 0.01
    beta: float = 0.05
    min_requests: int = 300
    accounts: int = 1000
    reserve: float = 0.03
    renewal: int = 20_000

    def __post_init__(self) -> None:
        names = [metric.name for metric in self.metrics]
        if not names or len(set(names)) != len(names):
            raise JudgeInputError(f"a plan needs metrics, each with a name of its own: {names}")
        if not (0 < self.alpha < 1 and 0 < self.beta < 1 and 0 <= self.reserve < 1):
            raise JudgeInputError(f"alpha {self.alpha}, beta {self.beta} and reserve {self.reserve} are probabilities")
        if self.min_requests < 1 or self.accounts < 1 or self.renewal < 1:
            raise JudgeInputError("min_requests, accounts and renewal are at least 1")

    def target(self, weight: float) -> float:
        """The evidence that a test of this weight needs to fail the canary: one over its part of alpha."""
        return sum(metric.weight + metric.limit_weight for metric in self.metrics) / (weight * self.alpha)


def standard_plan(error_limit: float = 0.01, slow_limit: float = 0.05, **changes: Any) -> Plan:
    """The plan of a rollout: errors, rejections, slow answers, and answers slower than the baseline's own P90.

    ``error_limit`` is ``versioning.error_threshold``. ``slow`` counts answers slower than
    ``versioning.latency_threshold``
    and ``slow_limit`` is how many of them there may be. ``changes`` are further fields of :class:`Plan`.
    """
    metrics = (
        Metric("errors", "failed", 0.80, 0.01, limit=error_limit, limit_weight=0.02),
        Metric("rejections", "were rejected", 0.06, 0.02),
        Metric("slow", "were slow", 0.06, 0.02, limit=slow_limit, limit_weight=0.01),
        Metric("slower", "were slower than the baseline's P90", 0.05, 0.05, COMMON, tolerance=1.25),
    )
    return Plan(metrics, **changes)


@dataclass(frozen=True)
class Tally:
    """Requests of one version since the stage began, and how many of them were bad."""

    total: int
    bad: int

    def __post_init__(self) -> None:
        if not 0 <= self.bad <= self.total:
            raise JudgeInputError(f"{self.bad} bad events of {self.total} requests")

    @property
    def rate(self) -> float:
        """The part that was bad; 0 without a request."""
        return self.bad / self.total if self.total else 0.0

    def __str__(self) -> str:
        return f"{self.bad:,} of {self.total:,} ({self.rate:.2%})"


NOTHING = Tally(0, 0)


@dataclass(frozen=True)
class Sample:
    """One metric of both versions in the same time; None where the source is missing."""

    canary: Optional[Tally]
    baseline: Optional[Tally]


@dataclass(frozen=True)
class Look:
    """What is known at this moment of the stage.

    ``stage``: its name; another name than at the last look begins a new stage, whose counters start at zero.
    ``exposure``: the canary's cut, in (0, 1]. At 1 there is no baseline, and only limits and stops are left.
    ``samples``: by metric. ``stops``: by stop, how often it occurred since the rollout began; None where the source is
    missing.
    """

    stage: str
    exposure: float
    samples: Mapping[str, Sample]
    stops: Mapping[str, Optional[int]]


@dataclass(frozen=True)
class Finding:
    """What one test says. ``evidence`` grows from 1 towards ``target``, where the test fails the canary.

    ``test`` is ``stop``, ``baseline`` (against the version beside it) or ``limit``. Both numbers are None where
    the test
    has none.
    """

    name: str
    test: str
    outcome: str
    sentence: str
    evidence: Optional[float] = None
    target: Optional[float] = None


@dataclass(frozen=True)
class Verdict:
    """The answer: the outcome, and every test's finding."""

    outcome: str
    findings: tuple[Finding, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """The sentences of the findings that made the outcome."""
        return tuple(finding.sentence for finding in self.findings if finding.outcome == self.outcome)

    def to_dict(self) -> dict[str, Any]:
        """For a journal or a report: plain values that JSON can hold."""
        return {**asdict(self), "findings": [asdict(f) for f in self.findings], "reasons": list(self.reasons)}


@dataclass(frozen=True)
class Progress:
    """How far one test is: its wager, the counters at its last look, and the requests since its last renewal."""

    wager: Wager
    canary: Tally = NOTHING
    baseline: Tally = NOTHING
    since_renewal: int = 0


@dataclass(frozen=True)
class Memory:
    """What the judge keeps between two looks of a rollout. Begin with ``Memory()``."""

    stage: Optional[str] = None
    tests: Mapping[str, Progress] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; no number loses a digit."""
        return {"stage": self.stage, "tests": {name: asdict(progress) for name, progress in self.tests.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Memory:
        """The memory that ``to_dict`` wrote. Raises JudgeInputError where it is not one."""
        try:
            return cls(
                values["stage"],
                {
                    name: Progress(
                        Wager(tuple(test["wager"]["capital"]), test["wager"]["reserve"], test["wager"]["won"]),
                        Tally(**test["canary"]),
                        Tally(**test["baseline"]),
                        test["since_renewal"],
                    )
                    for name, test in values["tests"].items()
                },
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise JudgeInputError(f"not a judge's memory: {error!r}") from error


def judge(plan: Plan, memory: Memory, look: Look) -> tuple[Verdict, Memory]:
    """The verdict at this look, and what to remember for the next one.

    Ask as often as you like. A failed test stays failed for the rest of the rollout. Raises JudgeInputError where the
    look names a metric or a stop that the plan does not know, or its exposure is out of (0, 1].
    """
    _check(plan, look)
    if memory.stage != look.stage:
        memory = _new_stage(plan, memory, look.stage)
    tests = dict(memory.tests)
    findings = [_stop(stop, look.stops.get(stop.name)) for stop in plan.stops]
    for metric in plan.metrics:
        sample = look.samples.get(metric.name, Sample(None, None))
        name = f"{metric.name}:baseline"
        finding, tests[name] = _against_baseline(plan, metric, sample, look, _progress(plan, metric, tests, name))
        findings.append(finding)
        if metric.limit is not None:
            name = f"{metric.name}:limit"
            finding, tests[name] = _against_limit(plan, metric, metric.limit, sample, _progress(plan, metric, tests, name))
            findings.append(finding)
    outcomes = {finding.outcome for finding in findings}
    outcome = next(outcome for outcome in (FAIL, INSUFFICIENT, PASS) if outcome in outcomes)
    return Verdict(outcome, tuple(findings)), Memory(look.stage, tests)


def replay(plan: Plan, looks: Iterable[Look]) -> tuple[Optional[Verdict], Memory]:
    """The last verdict over recorded looks, from the beginning; None without a look."""
    verdict: Optional[Verdict] = None
    memory = Memory()
    for look in looks:
        verdict, memory = judge(plan, memory, look)
    return verdict, memory


def _check(plan: Plan, look: Look) -> None:
    unknown = set(look.samples) - {metric.name for metric in plan.metrics}
    unknown |= set(look.stops) - {stop.name for stop in plan.stops}
    if unknown:
        raise JudgeInputError(f"the plan does not know {', '.join(sorted(unknown))}")
    if not 0 < look.exposure <= 1:
        raise JudgeInputError(f"an exposure of {look.exposure} is out of (0, 1]")


def _new_stage(plan: Plan, memory: Memory, stage: str) -> Memory:
    """Counters start at zero, the evidence stays, and each test stakes a part of its reserve anew."""
    alternatives = {f"{metric.name}:{test}": metric.alternatives for metric in plan.metrics for test in ("baseline", "limit")}
    return Memory(
        stage,
        {name: Progress(progress.wager.renewed(alternatives[name])) for name, progress in memory.tests.items()},
    )


def _progress(plan: Plan, metric: Metric, tests: Mapping[str, Progress], name: str) -> Progress:
    """Where the test is; at the rollout's first look, at its beginning."""
    return tests.get(name) or Progress(Wager.opened(metric.alternatives, plan.reserve))


def _stop(stop: Stop, occurred: Optional[int]) -> Finding:
    if occurred is None:
        return Finding(stop.name, "stop", INSUFFICIENT, f"{stop.name}: nothing reports whether {stop.sentence}")
    if occurred >= stop.limit:
        return Finding(stop.name, "stop", FAIL, f"{stop.name}: {stop.sentence}, {occurred:,} times (limit {stop.limit:,})")
    return Finding(stop.name, "stop", PASS, f"{stop.name}: {occurred:,} times, below the limit of {stop.limit:,}")


def weigh(plan: Plan, metric: Metric, progress: Progress, canary: Tally, baseline: Tally, exposure: float) -> Progress:
    """The evidence against the canary beside its baseline, after counters that did not go back.

    A long look is laid on its own margins, whatever the traffic did; a short one, down to a single request, on the
    stage's share so far, which begins as the cut give or take what ``plan.accounts`` equal accounts would make of it.
    """
    wager = progress.wager
    bad = canary.bad - progress.canary.bad
    both = bad + baseline.bad - progress.baseline.bad
    on_canary, on_baseline = canary.total - progress.canary.total, baseline.total - progress.baseline.total
    if both and on_canary + on_baseline < SHORT_LOOK:
        share = plan.accounts * exposure + canary.total - bad
        rest = plan.accounts * (1 - exposure) + baseline.total - (both - bad)
        law = law_by_share(share, rest, both, metric.tolerance)
        wager = wager.settled(law, bad, metric.alternatives, plan.target(metric.weight))
    elif both:
        law = law_by_margins(on_canary, on_baseline, both, metric.tolerance)
        wager = wager.settled(law, bad, metric.alternatives, plan.target(metric.weight))
    return _seen(plan, metric, progress, wager, canary, baseline)


def weigh_limit(plan: Plan, metric: Metric, limit: float, progress: Progress, canary: Tally) -> Progress:
    """The evidence that the canary's rate is above its limit, after counters that did not go back."""
    wager = progress.wager
    total, bad = canary.total - progress.canary.total, canary.bad - progress.canary.bad
    if total:
        law = law_by_limit(total, limit)
        wager = wager.settled(law, bad, metric.alternatives, plan.target(metric.limit_weight))
    return _seen(plan, metric, progress, wager, canary, NOTHING)


def _seen(plan: Plan, metric: Metric, progress: Progress, wager: Wager, canary: Tally, baseline: Tally) -> Progress:
    """The progress after a look, its wager renewed when it is time."""
    requests = canary.total + baseline.total - progress.canary.total - progress.baseline.total
    since = progress.since_renewal + requests
    if since >= plan.renewal:
        wager, since = wager.renewed(metric.alternatives), 0
    return Progress(wager, canary, baseline, since)


def _past(limit: float, now: Tally, before: Tally) -> bool:
    """Whether the rate since the last look is above the limit."""
    return now.bad - before.bad > limit * (now.total - before.total) >= 0


def _went_back(now: Tally, before: Tally) -> bool:
    """Whether a counter is lower than it was, or grew by more bad events than requests: a source began anew."""
    return now.bad < before.bad or now.total - before.total < now.bad - before.bad


def _against_baseline(plan: Plan, metric: Metric, sample: Sample, look: Look, progress: Progress) -> tuple[Finding, Progress]:
    """The canary beside the version that runs at the same time."""
    target = plan.target(metric.weight)

    def says(outcome: str, sentence: str) -> Finding:
        return Finding(metric.name, "baseline", outcome, f"{metric.name}: {sentence}", progress.wager.evidence, target)

    canary, baseline = sample.canary, sample.baseline
    if look.exposure == 1 and canary is not None and not progress.wager.won:
        return says(PASS, "no baseline is left beside the canary, nothing to compare with"), progress
    if canary is None or baseline is None:
        missing = " and ".join(n for n, tally in (("canary", canary), ("baseline", baseline)) if tally is None)
        if progress.wager.won:
            return says(FAIL, f"the canary was worse at an earlier look (nothing comes from the {missing} now)"), progress
        return says(INSUFFICIENT, f"nothing comes from the {missing}"), progress
    if _went_back(canary, progress.canary) or _went_back(baseline, progress.baseline):
        outcome = FAIL if progress.wager.won else INSUFFICIENT
        finding = says(outcome, f"a counter went back (canary {progress.canary} before, {canary} now), counting from here")
        return finding, replace(progress, canary=canary, baseline=baseline)

    progress = weigh(plan, metric, progress, canary, baseline, look.exposure)

    counts = f"{canary} {metric.bad} on the canary, {baseline} on the baseline"
    if progress.wager.won:
        return says(FAIL, f"{counts}; the canary is worse, the evidence of {target:,.0f} to 1 is there"), progress
    short = _short_of_requests(plan, canary, baseline)
    if short:
        return says(INSUFFICIENT, f"{counts}; {short}"), progress
    above = confidence_sequence(canary.bad, canary.total, plan.beta / 2)[1]
    above -= confidence_sequence(baseline.bad, baseline.total, plan.beta / 2)[0]
    if above > metric.margin:
        return says(
            INSUFFICIENT, f"{counts}; the canary may still be {above:.2%} above, {metric.margin:.2%} is allowed"
        ), progress
    return says(PASS, f"{counts}; the canary is at most {above:.2%} above, {metric.margin:.2%} is allowed"), progress


def _against_limit(plan: Plan, metric: Metric, limit: float, sample: Sample, progress: Progress) -> tuple[Finding, Progress]:
    """The canary alone, against the absolute limit."""
    target = plan.target(metric.limit_weight)

    def says(outcome: str, sentence: str) -> Finding:
        return Finding(metric.name, "limit", outcome, f"{metric.name}: {sentence}", progress.wager.evidence, target)

    canary = sample.canary
    if canary is None:
        outcome = FAIL if progress.wager.won else INSUFFICIENT
        return says(outcome, f"nothing comes from the canary to hold against the limit of {limit:.2%}"), progress
    if _went_back(canary, progress.canary):
        outcome = FAIL if progress.wager.won else INSUFFICIENT
        finding = says(outcome, f"a counter went back (canary {progress.canary} before, {canary} now), counting from here")
        return finding, replace(progress, canary=canary)

    baseline = sample.baseline or NOTHING
    if _past(limit, baseline, progress.baseline):
        # What the whole fleet suffers at the moment, as when Redis stalls, says nothing of this version.
        progress = replace(progress, canary=canary, baseline=baseline)
    else:
        progress = weigh_limit(plan, metric, limit, replace(progress, baseline=NOTHING), canary)
        progress = replace(progress, baseline=baseline)

    counts = f"{canary} {metric.bad} on the canary, the limit is {limit:.2%}"
    if progress.wager.won:
        return says(FAIL, f"{counts}; it is past the limit, the evidence of {target:,.0f} to 1 is there"), progress
    short = _short_of_requests(plan, canary, None)
    if short:
        return says(INSUFFICIENT, f"{counts}; {short}"), progress
    high = confidence_sequence(canary.bad, canary.total, plan.beta)[1]
    if high > limit:
        return says(INSUFFICIENT, f"{counts}; the rate may still be {high:.2%}"), progress
    return says(PASS, f"{counts}; the rate is at most {high:.2%}"), progress


def _short_of_requests(plan: Plan, canary: Tally, baseline: Optional[Tally]) -> str:
    """Which version has too few requests for a pass, or nothing."""
    for name, tally in (("canary", canary), ("baseline", baseline)):
        if tally is not None and tally.total < plan.min_requests:
            return f"{tally.total:,} requests on the {name}, a pass needs {plan.min_requests:,}"
    return ""
