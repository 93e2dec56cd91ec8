"""The judge, measured: false rollbacks, how many requests until a worse version is caught, and three other judges.

    python bench/judge.py            # default size, about two minutes on one core
    python bench/judge.py --full     # 10,000 rollouts for every figure of the judge
    python bench/judge.py --only same  # that the quick way to ask it after every request is the judge's own
    python bench/judge.py --plot docs/images/judge.svg

Each line: ``<name> <value> <unit> goal <goal> ok|short``; lines without a goal only inform. Seeded: a run repeats
itself.

Argo Rollouts, Flagger and Kayenta are here as their documentation describes their rules; the plugin has none of them:
 - Argo Rollouts, *Analysis & Progressive Delivery*: a measurement every ``interval: 5m`` that misses its
 successCondition
   is a failure, and more failures than ``failureLimit: 3`` roll back;
 - Flagger, *How it works*: a check every ``interval: 1m``, and ``threshold: 10`` failed checks roll back;
 - Kayenta, *How canary judgment works*: Mann and Whitney's test on one point a minute, at least 50 points, at 98%, and
   the whole interval beyond a tolerance of 0.25 times the estimated shift (Hodges and Lehmann's).
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))

from module_utils.judge import (
    FAIL,
    PASS,
    SHORT_LOOK,
    Look,
    Memory,
    Metric,
    Plan,
    Progress,
    Sample,
    Tally,
    judge,
    standard_plan,
    weigh,
    weigh_limit,
)
from module_utils.sequential import Alternative, Law, Wager, divergence, law_by_limit, law_by_share, walds_bound

BASELINE = 0.001
#: A capital below this part of its target cannot reach it at the next look by a rounding alone.
NEAR = 0.999
WORSE = (0.005, 0.01, 0.05)
SHARE = 0.05
#: Requests a second at the load balancer: turns the other judges' minutes into requests.
PER_SECOND = 200
PER_MINUTE = 60 * PER_SECOND
HORIZON = 180
#: Share of the canary in each compared stage, and the requests for which it is held.
STAGES = (("5%", 0.05, 10_000), ("20%", 0.20, 10_000), ("50%", 0.50, 10_000))
#: Equal versions as they usually are, and on the very edge of what still counts as equal.
USUAL = {"errors": 0.001, "rejections": 0.01, "slow": 0.01, "slower": 0.10}


def line(name: str, value: float, unit: str, goal: float | None = None, *, at_least: bool = False) -> None:
    """One figure, and whether it meets its goal."""
    text = f"{name} {value:.4g} {unit}"
    if goal is not None:
        text += f" goal {goal:g} {'ok' if (value >= goal if at_least else value <= goal) else 'short'}"
    print(text, flush=True)


def among(rng: random.Random, n: int, share: float) -> int:
    """How many of n requests go to the canary: n coins of this share, thrown at once, exact to 2**-20."""
    if n <= 0 or share >= 1:
        return n
    flags, bits = 0, round(share * (1 << 20))
    for place in range(20):
        coin = rng.getrandbits(n)
        flags = flags | coin if bits >> place & 1 else flags & coin
    return flags.bit_count()


def gap(rng: random.Random, rate: float) -> int:
    """How many good requests come before the next bad one."""
    return int(math.log(1 - rng.random()) / math.log1p(-rate))


@dataclass(frozen=True)
class Bad:
    """A bad request: how many requests came before it, how many of those to the canary, and where it went itself."""

    before: int
    before_canary: int
    canary: bool


def bad_requests(rng: random.Random, canary_rate: float, baseline_rate: float, share: float) -> Iterator[Bad]:
    """The bad requests of an endless stream of which each request goes to the canary with this share."""
    rate = share * canary_rate + (1 - share) * baseline_rate
    bad_share = share * canary_rate / rate
    good_share = share * (1 - canary_rate) / (1 - rate)
    total = canary = 0
    while True:
        good = gap(rng, rate)
        total, canary = total + good, canary + among(rng, good, good_share)
        on_canary = rng.random() < bad_share
        yield Bad(total, canary, on_canary)
        total, canary = total + 1, canary + on_canary


class Asked:
    """One metric's tests, asked after every request of a stream.

    Good requests leave the evidence against the baseline as it is. So a run of them is laid into one look with the bad
    request that ends it, or, where that would be a long look, into one of its own before it: the same as a look after
    every request (a test of the judge proves it).
    """

    def __init__(self, plan: Plan, metric: Metric) -> None:
        self.plan, self.metric = plan, metric
        self.beside = Progress(Wager.opened(metric.alternatives, plan.reserve))
        self.alone = Progress(Wager.opened(metric.alternatives, plan.reserve))

    def new_stage(self) -> None:
        """Counters at zero, as the judge does it."""
        self.beside = Progress(self.beside.wager.renewed(self.metric.alternatives))
        self.alone = Progress(self.alone.wager.renewed(self.metric.alternatives))

    def failed(self, bad: Bad, share: float) -> bool:
        """Whether the canary has failed once this request has been seen."""
        now = (self.beside.canary, self.beside.baseline)
        canary = Tally(bad.before_canary, now[0].bad)
        baseline = Tally(bad.before - bad.before_canary, now[1].bad)
        if bad.before + 1 - now[0].total - now[1].total >= SHORT_LOOK:
            self.beside = weigh(self.plan, self.metric, self.beside, canary, baseline, share)
        if bad.canary:
            canary = Tally(canary.total + 1, canary.bad + 1)
        else:
            baseline = Tally(baseline.total + 1, baseline.bad + 1)
        self.beside = weigh(self.plan, self.metric, self.beside, canary, baseline, share)
        if self.metric.limit is not None and bad.canary:
            before = replace(canary, total=canary.total - 1, bad=canary.bad - 1)
            self.alone = weigh_limit(self.plan, self.metric, self.metric.limit, self.alone, before)
            self.alone = weigh_limit(self.plan, self.metric, self.metric.limit, self.alone, canary)
        return self.beside.wager.won or self.alone.wager.won


class Stake:
    """One test's capital in plain floats: the operations of ``Wager`` in the same order, without a value for each step."""

    def __init__(self, plan: Plan, metric: Metric, weight: float) -> None:
        self.alternatives = metric.alternatives
        self.odds = [alternative.odds for alternative in metric.alternatives]
        self.target, self.renewal, self.since = plan.target(weight), plan.renewal, 0
        self.take(Wager.opened(metric.alternatives, plan.reserve))

    @property
    def wager(self) -> Wager:
        """The same as the judge keeps it."""
        return Wager(tuple(self.capital), self.reserve, self.won)

    def take(self, wager: Wager) -> None:
        """Go on from this wager."""
        self.capital, self.reserve, self.won = list(wager.capital), wager.reserve, wager.won

    def renew(self) -> None:
        """What a new stage does, and every so many requests."""
        self.take(self.wager.renewed(self.alternatives))
        self.since = 0

    def seen(self, requests: int) -> None:
        """Requests that went by."""
        self.since += requests
        if self.since >= self.renewal:
            self.renew()

    def settle(self, law: Law, on_canary: bool) -> None:
        """One bad request, under the law of where it falls."""
        if self.won:
            return
        chance = math.exp(law.log_mass[1])
        fair = [held / (1 - chance + chance * odds) for held, odds in zip(self.capital, self.odds, strict=True)]
        paid = [held * odds for held, odds in zip(fair, self.odds, strict=True)]
        if sum(paid) + self.reserve < self.target * NEAR:
            self.capital = paid if on_canary else fair
        else:
            # Near the target what a look may pay is cut off, which is the judge's own affair.
            self.take(self.wager.settled(law, int(on_canary), self.alternatives, self.target))

    def settle_good(self, requests: int, limit: float) -> None:
        """A run of good requests of the canary, against its limit."""
        if self.won or not requests:
            return
        if requests == 1:
            self.settle(law_by_limit(1, limit), False)
            return
        ends = tilts(requests, limit, self.alternatives)
        if sum([held * last for held, (_, last) in zip(self.capital, ends, strict=True)]) + self.reserve > self.target * NEAR:
            self.take(self.wager.settled(law_by_limit(requests, limit), 0, self.alternatives, self.target))
        else:
            self.capital = [held * first for held, (first, _) in zip(self.capital, ends, strict=True)]


@lru_cache(maxsize=20_000)
def tilts(requests: int, limit: float, alternatives: tuple[Alternative, ...]) -> list[tuple[float, float]]:
    """What each alternative pays where none of the requests is bad, and where all are."""
    law = law_by_limit(requests, limit)
    found = []
    for alternative in alternatives:
        one = Wager((1.0,), 0.0)
        step = math.log(alternative.odds)
        paid = one.settled(law, 0, (alternative,), math.inf).capital[0]
        # Beyond what a float can hold it is more than any target, which is all that is asked of it.
        most = min(requests * step + math.log(paid) if paid else math.inf, 700.0)
        found.append((paid, math.exp(most)))
    return found


class AskedInLine:
    """``Asked``, without making a value for each step: the same capital to the last digit (``--only same`` proves it)."""

    def __init__(self, plan: Plan, metric: Metric) -> None:
        self.plan, self.metric = plan, metric
        self.beside, self.alone = Stake(plan, metric, metric.weight), Stake(plan, metric, metric.limit_weight or 1.0)
        self.canary = self.baseline = self.canary_bad = 0
        self.alone_canary = 0

    def new_stage(self) -> None:
        """Counters at zero, as the judge does it."""
        self.beside.renew()
        self.alone.renew()
        self.canary = self.baseline = self.canary_bad = self.alone_canary = 0

    def failed(self, bad: Bad, share: float) -> bool:
        """Whether the canary has failed once this request has been seen."""
        canary, baseline = bad.before_canary, bad.before - bad.before_canary
        unseen = bad.before - self.canary - self.baseline
        if unseen + 1 >= SHORT_LOOK:
            self.beside.seen(unseen)
            unseen = 0
        accounts = self.plan.accounts
        self.beside.settle(
            law_by_share(accounts * share + canary, accounts * (1 - share) + baseline, 1, self.metric.tolerance), bad.canary
        )
        self.beside.seen(unseen + 1)
        self.canary, self.baseline = canary + bad.canary, baseline + (not bad.canary)
        if self.metric.limit is not None and bad.canary:
            good = canary - self.alone_canary
            self.alone.settle_good(good, self.metric.limit)
            self.alone.seen(good)
            self.alone.settle(law_by_limit(1, self.metric.limit), True)
            self.alone.seen(1)
            self.alone_canary = canary + 1
        return self.beside.won or self.alone.won


def same(runs: int) -> None:
    """Rollouts asked both ways: how many steps differ in any digit of any capital, and how much quicker one is."""
    plan = standard_plan()
    differ = steps = 0
    spent = {Asked: 0.0, AskedInLine: 0.0}
    for judged, rates in ((plan, USUAL), on_the_edge(plan)):
        for number in range(runs):
            for metric in judged.metrics:
                ways = (Asked(judged, metric), AskedInLine(judged, metric))
                rng = random.Random(f"same {number} {metric.name}")
                # Some of the canaries are worse, so that what happens near the target is seen, too.
                worse = (1, 1, 2, 8)[number % 4]
                for stage, (_, share, requests) in enumerate(STAGES):
                    for way in ways if stage else ():
                        way.new_stage()
                    rate = rates[metric.name]
                    for bad in bad_requests(rng, min(0.5, worse * rate), rate, share):
                        if bad.before >= requests:
                            break
                        steps += 1
                        answers = []
                        for way in ways:
                            began = time.perf_counter()
                            answers.append(way.failed(bad, share))
                            spent[type(way)] += time.perf_counter() - began
                        slow, quick = ways
                        differ += answers[0] != answers[1] or slow.beside.wager != quick.beside.wager
                        differ += slow.alone.wager != quick.alone.wager
    line("same_steps", steps, "steps")
    line("same_steps_that_differ", differ, "steps", 0)
    line("same_quicker", spent[Asked] / spent[AskedInLine], "x", 1, at_least=True)


def falsely_failed(rng: random.Random, plan: Plan, rates: dict[str, float]) -> bool:
    """Whether a rollout of two equal versions fails by any metric in any stage, asked after every request."""
    for metric in plan.metrics:
        asked = AskedInLine(plan, metric)
        for number, (_, share, requests) in enumerate(STAGES):
            if number:
                asked.new_stage()
            for bad in bad_requests(rng, rates[metric.name], rates[metric.name], share):
                if bad.before >= requests:
                    break
                if asked.failed(bad, share):
                    return True
    return False


def on_the_edge(plan: Plan) -> tuple[Plan, dict[str, float]]:
    """The plan with nothing tolerated, and rates that lie exactly on the limits: no test has any slack."""
    metrics = tuple(replace(metric, tolerance=1.0) for metric in plan.metrics)
    rates = {metric.name: metric.limit or USUAL[metric.name] for metric in metrics}
    return replace(plan, metrics=metrics), rates


def upper(false: int, runs: int) -> float:
    """The rate that a count as low as this leaves possible at 97.5% (Clopper and Pearson)."""
    low, high = false / runs, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        below = math.fsum(
            math.exp(
                math.lgamma(runs + 1)
                - math.lgamma(k + 1)
                - math.lgamma(runs - k + 1)
                + k * math.log(rate)
                + (runs - k) * math.log1p(-rate)
            )
            for k in range(false + 1)
        )
        low, high = (rate, high) if below > 0.025 else (low, rate)
    return high


def false_rollbacks(runs: int) -> None:
    """Goal 1: equal versions, every metric's test counted in, asked after every request."""
    plan = standard_plan()
    edge, edge_rates = on_the_edge(plan)
    for name, judged, rates, count in (
        ("false_rollbacks", plan, USUAL, runs),
        ("false_rollbacks_on_the_edge", edge, edge_rates, runs),
    ):
        false = sum(falsely_failed(random.Random(f"{name} {number}"), judged, rates) for number in range(count))
        line(name, 100 * false / count, "%", 100 * plan.alpha)
        line(f"{name}_at_most", 100 * upper(false, count), "%")
        line(f"{name}_rollouts", count, "rollouts")


def until_caught(rng: random.Random, plan: Plan, metric: Metric, rate: float, share: float = SHARE) -> int:
    """Requests, both versions', until the canary with this rate is failed."""
    asked = AskedInLine(plan, metric)
    for bad in bad_requests(rng, rate, BASELINE, share):
        if asked.failed(bad, share):
            return bad.before + 1
    raise AssertionError("the stream is endless")


def percent(rate: float) -> str:
    """A rate as a part of a figure's name."""
    return f"{rate:.1%}".replace(".", "_").replace("%", "pct")


def caught(runs: int) -> dict[float, list[int]]:
    """Goal 2: requests until 0.1% -> 0.5%, 1%, 5% errors are caught at 5%, beside Wald's bound."""
    plan = standard_plan()
    errors = plan.metrics[0]
    found = {}
    for rate in WORSE:
        rng = random.Random(f"caught {rate}")
        requests = found[rate] = [until_caught(rng, plan, errors, rate) for _ in range(runs)]
        mean, spread = statistics.fmean(requests), statistics.stdev(requests) / math.sqrt(runs)
        bound = walds_bound(rate, BASELINE, SHARE, plan.alpha)
        known = math.log(1 / plan.alpha) / (SHARE * divergence(rate, BASELINE))
        name = f"caught_{percent(rate)}"
        line(f"{name}_requests", mean, "requests")
        line(f"{name}_canary_errors", mean * SHARE * rate, "errors")
        line(f"{name}_walds_bound", bound, "requests")
        line(f"{name}_over_bound", mean / bound, "x", 1.3)
        line(f"{name}_over_bound_standard_error", spread / bound, "x")
        line(f"{name}_over_bound_baseline_known", mean / known, "x")
    return found


def every_few_seconds(runs: int, seconds: int = 5) -> None:
    """What a rollout sees that asks the whole judge every few seconds: until a pass, and until a fail."""
    plan = standard_plan()
    stops = {stop.name: 0 for stop in plan.stops}
    size = seconds * PER_SECOND
    for name, change in (
        ("equal", {}),
        ("errors_2pct", {"errors": 0.02}),
        ("errors_20pct", {"errors": 0.20}),
        ("one_in_fifty_slow", {"slow": 0.03}),
        ("rejects_everything", {"rejections": 1.0}),
        ("p90_moves_to_p75", {"slower": 0.25}),
    ):
        rng = random.Random(f"looks {name}")
        requests, passed, failed = [], 0, 0
        for _ in range(runs):
            memory, totals = Memory(), {metric: [0, 0] for metric in USUAL}
            canary = total = 0
            while total < 40 * 60 * PER_SECOND:
                on_canary = among(rng, size, SHARE)
                total, canary = total + size, canary + on_canary
                samples = {}
                for metric, rate in USUAL.items():
                    totals[metric][0] += among(rng, on_canary, change.get(metric, rate))
                    totals[metric][1] += among(rng, size - on_canary, rate)
                    samples[metric] = Sample(Tally(canary, totals[metric][0]), Tally(total - canary, totals[metric][1]))
                verdict, memory = judge(plan, memory, Look("5%", SHARE, samples, stops))
                if verdict.outcome in (PASS, FAIL):
                    passed, failed = passed + (verdict.outcome == PASS), failed + (verdict.outcome == FAIL)
                    break
            requests.append(total)
        line(f"looks_of_{seconds}s_{name}_seconds", statistics.fmean(requests) / PER_SECOND, "s")
        line(f"looks_of_{seconds}s_{name}_failed", 100 * failed / runs, "%")
        line(f"looks_of_{seconds}s_{name}_passed", 100 * passed / runs, "%")


@dataclass
class Minutes:
    """A stream by the minute: requests and errors of both versions."""

    canary: list[int]
    canary_bad: list[int]
    baseline: list[int]
    baseline_bad: list[int]


def stream(rng: random.Random, plan: Plan, rate: float) -> tuple[Minutes, int]:
    """One stream of three hours by the minute, and the request at which the judge failed it (or its last)."""
    asked = AskedInLine(plan, plan.metrics[0])
    minutes = Minutes([0] * HORIZON, [0] * HORIZON, [0] * HORIZON, [0] * HORIZON)
    end = HORIZON * PER_MINUTE
    caught_at = end
    for bad in bad_requests(rng, rate, BASELINE, SHARE):
        if bad.before >= end:
            break
        minute = bad.before // PER_MINUTE
        (minutes.canary_bad if bad.canary else minutes.baseline_bad)[minute] += 1
        if caught_at == end and asked.failed(bad, SHARE):
            caught_at = bad.before + 1
    minutes.canary = [among(rng, PER_MINUTE, SHARE) for _ in range(HORIZON)]
    minutes.baseline = [PER_MINUTE - canary for canary in minutes.canary]
    return minutes, caught_at


def by_failures(minutes: Minutes, every: int, allowed: float, failures: int) -> int:
    """Requests until this many checks, each over so many minutes, had an error rate above what is allowed."""
    failed = 0
    for start in range(0, HORIZON - every + 1, every):
        requests = sum(minutes.canary[start : start + every])
        failed += sum(minutes.canary_bad[start : start + every]) > allowed * requests
        if failed == failures:
            return (start + every) * PER_MINUTE
    return HORIZON * PER_MINUTE


def equal_false_alarms(every: int, failures: int, alpha: float) -> float:
    """The error rate that this rule may allow so that equal versions fail with alpha at most in the three hours."""
    requests, checks = round(every * PER_MINUTE * SHARE), HORIZON // every
    above, errors = 1.0, 0
    while True:
        fails = math.fsum(math.comb(checks, k) * above**k * (1 - above) ** (checks - k) for k in range(failures, checks + 1))
        if fails <= alpha:
            return (errors - 0.5) / requests
        above -= math.exp(
            math.lgamma(requests + 1)
            - math.lgamma(errors + 1)
            - math.lgamma(requests - errors + 1)
            + errors * math.log(BASELINE)
            + (requests - errors) * math.log1p(-BASELINE)
        )
        errors += 1


def mann_whitney_z(experiment: Sequence[float], control: Sequence[float], shift: float) -> float:
    """The standardised rank sum of the experiment moved down by shift, with ties and continuity corrected."""
    moved = [(round(value - shift, 12), True) for value in experiment] + [(round(v, 12), False) for v in control]
    moved.sort()
    n, m = len(experiment), len(control)
    ranks, ties, start = 0.0, 0.0, 0
    while start < len(moved):
        end = start
        while end < len(moved) and moved[end][0] == moved[start][0]:
            end += 1
        size = end - start
        ranks += sum(mine for _, mine in moved[start:end]) * (start + end + 1) / 2
        ties += size**3 - size
        start = end
    z = ranks - n * (n + 1) / 2 - n * m / 2
    sigma = math.sqrt(n * m / 12 * (n + m + 1 - ties / ((n + m) * (n + m - 1))))
    return (z - math.copysign(0.5, z) * (z != 0)) / sigma if sigma else 0.0


def by_mann_whitney(minutes: Minutes, confidence: float, looks: Sequence[int], tolerance: float = 0.25) -> int:
    """Requests until the metric is High: the interval's lower end is above tolerance times the estimated shift."""
    z = statistics.NormalDist().inv_cdf(1 - (1 - confidence) / 2)
    for end in looks:
        experiment = [b / n for b, n in zip(minutes.canary_bad[:end], minutes.canary[:end], strict=True)]
        control = [b / n for b, n in zip(minutes.baseline_bad[:end], minutes.baseline[:end], strict=True)]
        estimate = abs(statistics.median(x - y for x in experiment for y in control))
        if mann_whitney_z(experiment, control, tolerance * estimate) > z:
            return end * PER_MINUTE
    return HORIZON * PER_MINUTE


def beside_others(runs: int) -> dict[str, dict[float, float]]:
    """Goal 3: the same streams, each rule at the judge's false-alarm rate or above it, over three hours at 5%."""
    plan = standard_plan()
    alpha = plan.alpha
    hours = (60, 120, 180)
    argo, flagger = equal_false_alarms(5, 4, alpha), equal_false_alarms(1, 10, alpha)
    rules: dict[str, Callable[[Minutes], int]] = {
        "argo_as_documented": lambda m: by_failures(m, 5, 0.05, 4),
        "flagger_as_documented": lambda m: by_failures(m, 1, 0.01, 10),
        "argo": lambda m: by_failures(m, 5, argo, 4),
        "flagger": lambda m: by_failures(m, 1, flagger, 10),
        "kayenta": lambda m: by_mann_whitney(m, 0.98, hours),
    }
    line("argo_allows_errors", 100 * argo, "%")
    line("flagger_allows_errors", 100 * flagger, "%")
    means: dict[str, dict[float, float]] = {name: {} for name in ("judge", *rules)}
    end = HORIZON * PER_MINUTE
    for rate in (BASELINE, *WORSE):
        rng = random.Random(f"others {rate}")
        streams = [stream(rng, plan, rate) for _ in range(runs)]
        at = {"judge": [caught_at for _, caught_at in streams]}
        at.update({name: [rule(minutes) for minutes, _ in streams] for name, rule in rules.items()})
        for name, requests in at.items():
            means[name][rate] = statistics.fmean(requests)
            if rate == BASELINE:
                line(f"{name}_false_alarms", 100 * sum(r < end for r in requests) / runs, "%")
            else:
                line(f"{name}_{percent(rate)}_requests", means[name][rate], "requests")
                line(f"{name}_{percent(rate)}_caught", 100 * sum(r < end for r in requests) / runs, "%")
    for rate in WORSE:
        for name in rules:
            ahead = means[name][rate] / means["judge"][rate]
            line(f"ahead_of_{name}_{percent(rate)}", ahead, "x", 1, at_least=True)
    return means


def evidence_over(rng: random.Random, plan: Plan, rate: float, until: int) -> list[tuple[int, float]]:
    """The evidence of one stream at 5%: (requests, part of the way to the target on a log scale)."""
    asked = Asked(plan, plan.metrics[0])
    target = plan.target(plan.metrics[0].weight)
    points = [(0, 0.0)]
    for bad in bad_requests(rng, rate, BASELINE, SHARE):
        if bad.before >= until:
            return [*points, (until, points[-1][1])]
        failed = asked.failed(bad, SHARE)
        points.append((bad.before + 1, math.log(asked.beside.wager.evidence) / math.log(target)))
        if failed:
            return points
    raise AssertionError("the stream is endless")


def plot(path: Path) -> None:
    """Draw the evidence of a few streams, and how many requests each judge needs (log scale), as one SVG."""
    plan = standard_plan()
    means = beside_others(40)
    width, height, until = 860, 410, 40_000
    colours = {0.001: "#2f7d32", 0.005: "#c77700", 0.01: "#c2410c", 0.05: "#a21caf"}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        '<text x="50" y="24" font-size="14">Evidence that the canary is worse (5% share)</text>',
        '<line x1="50" y1="60" x2="400" y2="60" stroke="#b91c1c" stroke-dasharray="5 3"/>',
        '<text x="56" y="54" fill="#b91c1c">roll back</text>',
        '<line x1="50" y1="340" x2="400" y2="340" stroke="#333"/>',
        '<line x1="50" y1="50" x2="50" y2="340" stroke="#333"/>',
        '<text x="225" y="362" text-anchor="middle">requests in all, up to 40,000</text>',
    ]
    for place, (rate, colour) in enumerate(colours.items()):
        for number in range(3):
            points = evidence_over(random.Random(f"plot {rate} {number}"), plan, rate, until)
            path_ = " ".join(f"{50 + 350 * x / until:.1f},{min(340.0, 220 - 160 * max(y, -0.75)):.1f}" for x, y in points)
            parts.append(f'<polyline points="{path_}" fill="none" stroke="{colour}" stroke-width="1.4" opacity="0.8"/>')
        text = "equal (0.1%)" if rate == BASELINE else f"{rate:.1%} errors"
        parts.append(f'<text x="{50 + 92 * place}" y="396" fill="{colour}">{text}</text>')
    parts.append('<text x="470" y="24" font-size="14">Requests until it is caught (log scale)</text>')
    y = 52
    for rate in WORSE:
        parts.append(f'<text x="470" y="{y}" fill="{colours[rate]}">0.1% against {rate:.1%} errors</text>')
        for name in ("judge", "flagger", "argo", "kayenta"):
            long = 230 * math.log10(means[name][rate] / 100) / 4.4
            parts.append(f'<text x="470" y="{y + 20}">{name}</text>')
            parts.append(f'<rect x="530" y="{y + 9}" width="{long:.0f}" height="14" fill="{colours[rate]}" opacity="0.75"/>')
            parts.append(f'<text x="{536 + long:.0f}" y="{y + 20}">{means[name][rate]:,.0f}</text>')
            y += 20
        y += 34
    parts.append("</svg>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    """Print the figures that were asked for."""
    parts: dict[str, Callable[[bool], object]] = {
        "same": lambda full: same(40 if full else 4),
        "caught": lambda full: caught(10_000 if full else 2_500),
        "others": lambda full: beside_others(400 if full else 40),
        "looks": lambda full: every_few_seconds(100 if full else 8),
        "false_rollbacks": lambda full: false_rollbacks(10_000 if full else 150),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="10,000 rollouts for every figure of the judge")
    parser.add_argument("--only", choices=parts, action="append", help="only this part; may be given again")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the picture of the documentation, as SVG")
    options = parser.parse_args(arguments)
    for name in options.only or parts:
        parts[name](options.full)
    if options.plot:
        plot(options.plot)


if __name__ == "__main__":
    main(sys.argv[1:])
