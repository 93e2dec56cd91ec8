"""Sequential tests for counts of bad events: evidence that may be looked at as often as one likes.

Everything here rests on one fact. Let a bettor start with a capital of 1 and bet, before each look, on what the next
look will show, at odds that are fair if nothing is wrong. Then the capital is a martingale, and by Ville's inequality
(Ville 1939) the probability that it *ever* reaches ``1/alpha`` is at most ``alpha``, whenever and however often one
looks. The capital is the evidence.

What is bet on is K, how many of a look's bad events fell on the canary. The alternatives are tilts of its distribution:
under odds ratio ``r`` the likelihood ratio against the null is ``r**k / E[r**K]``. One bettor holds a mixture of them.

Sources:
 - mixtures of likelihood ratios as anytime-valid tests and confidence sequences: Robbins (1970), *Statistical methods
   related to the law of the iterated logarithm*; Howard, Ramdas, McAuliffe and Sekhon (2021), *Time-uniform,
   nonparametric, nonasymptotic confidence sequences*, Annals of Statistics 49(2);
 - canary tests of this kind: Lindon, Sanden and Shirikian (2022), *Rapid Regression Detection in Software Deployments
   through Sequential Testing*, KDD; Lindon and Malek (2022), *Anytime-Valid Inference for Multinomial Count Data*,
   NeurIPS;
 - two proportions: Turner, Ly and Grünwald (2024), *Generic E-variables for exact sequential k-sample tests that allow
   for optional stopping*, Journal of Statistical Planning and Inference 230;
 - no overshoot: Fischer and Ramdas (2024), *Improving Wald's (approximate) sequential probability ratio test by
 avoiding
   overshoot*, arXiv 2410.16076.

Pure, standard library only: it may travel to hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import exp, inf, lgamma, log, log1p

#: A capital this close to its target has reached it: what is missing is rounding.
_ROUNDING = 1 - 1e-9
#: The largest exponent that a float can hold, about.
_LARGEST = 700.0
#: The part of the reserve that each renewal brings into play.
_RENEWED = 0.25
#: Beta priors of the confidence sequence: one for rates of any size, one for rates near zero.
_PRIORS = ((0.5, 0.5), (0.5, 50.0))


@dataclass(frozen=True)
class Alternative:
    """A way to be worse: an odds ratio against the null, and the part of the stake put on it."""

    odds: float
    stake: float


@dataclass(frozen=True)
class Law:
    """The distribution of an integer under the null: ``log_mass[i]`` is the log-probability of ``first + i``.

    Logarithms, since an alternative may live where the null's probability is too small for a float.
    """

    first: int
    log_mass: tuple[float, ...]


def _log_sum(weights: Sequence[float]) -> float:
    """The logarithm of the sum of the exponentials."""
    most = max(weights)
    return most + log(sum([exp(weight - most) for weight in weights]))


def _choose(n: int, k: int) -> float:
    """The logarithm of the number of ways to choose k of n."""
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def _normalised(first: int, weights: Sequence[float]) -> Law:
    """The law whose probabilities are proportional to the exponentials of these weights."""
    total = _log_sum(weights)
    return Law(first, tuple(weight - total for weight in weights))


@lru_cache(maxsize=1024)
def law_by_margins(canary: int, baseline: int, bad: int, odds: float = 1.0) -> Law:
    """Bad events on the canary, given how many requests each version had and how many were bad in all.

    Fisher's noncentral hypergeometric distribution. It holds whatever the rates and the traffic share are, as long
    as the
    odds of a bad event on the canary are ``odds`` times those on the baseline during this look: nothing is estimated.
    """
    ks = range(max(0, bad - baseline), min(bad, canary) + 1)
    return _normalised(ks[0], [_choose(canary, k) + _choose(baseline, bad - k) + k * log(odds) for k in ks])


def law_by_share(canary: float, baseline: float, bad: int, odds: float = 1.0) -> Law:
    """Bad events on the canary, given the requests that each version had had before them (counts, a prior's included).

    The Beta-binomial law of Pólya's urn. It is exact where the canary's share is a draw from a Beta distribution around
    the cut (which accounts fall under it is chance) and the order of requests is exchangeable. It is what can be
    said of
    a look that is too short to have margins of its own, down to a single request.
    """
    if bad == 1:
        return Law(0, (log(baseline / (canary * odds + baseline)), log(canary * odds / (canary * odds + baseline))))
    weights = [
        _choose(bad, k) + lgamma(canary + k) - lgamma(canary) + lgamma(baseline + bad - k) - lgamma(baseline) + k * log(odds)
        for k in range(bad + 1)
    ]
    return _normalised(0, weights)


@lru_cache(maxsize=1024)
def law_by_limit(total: int, limit: float) -> Law:
    """Bad events among this many requests whose rate is exactly the limit: the binomial law."""
    return _normalised(0, [_choose(total, k) + k * log(limit) + (total - k) * log1p(-limit) for k in range(total + 1)])


@dataclass(frozen=True)
class Wager:
    """A capital that grows while the canary is worse: what each alternative holds, and what is kept back.

    The reserve is kept back for what goes wrong later. A bettor who has lost nearly everything on hours of good
    behaviour
    would take as long to win it back; a renewal stakes a quarter of the reserve anew. Reserve included, the
    capital stays
    a martingale.
    """

    capital: tuple[float, ...]
    reserve: float
    won: bool = False

    @property
    def evidence(self) -> float:
        """The capital in all: the odds against the null, by a bettor who began with 1."""
        return sum(self.capital) + self.reserve

    @classmethod
    def opened(cls, alternatives: Sequence[Alternative], reserve: float) -> Wager:
        """A wager of 1, the reserve kept back and the rest staked.

        Raises ValueError where a stake is not positive, an odds ratio is not above 1, or the reserve is not in [0, 1).
        """
        if not alternatives or any(a.stake <= 0 or a.odds <= 1 for a in alternatives) or not 0 <= reserve < 1:
            raise ValueError(f"alternatives need stakes above 0 and odds above 1: {alternatives}, reserve {reserve}")
        stakes = sum(a.stake for a in alternatives)
        return cls(tuple((1 - reserve) * a.stake / stakes for a in alternatives), reserve)

    def renewed(self, alternatives: Sequence[Alternative]) -> Wager:
        """The wager with a quarter of its reserve staked anew."""
        stakes = sum(a.stake for a in alternatives)
        fresh = self.reserve * _RENEWED
        capital = tuple(held + fresh * a.stake / stakes for held, a in zip(self.capital, alternatives))
        return replace(self, capital=capital, reserve=self.reserve - fresh)

    def settled(self, law: Law, k: int, alternatives: Sequence[Alternative], target: float) -> Wager:
        """The wager after a look that showed k bad events on the canary, under this law if nothing is wrong.

        Nobody needs more than the target. What a look would pay beyond it is cut off, and the payments for all other
        outcomes are raised by one factor, so that the mean stays what it was: the test wastes nothing on overshoot, and
        its false-alarm probability is alpha rather than somewhat below (Fischer and Ramdas 2024, section 3).
        """
        if self.won or len(law.log_mass) == 1:
            return self
        if len(law.log_mass) == 2:
            return self._settled_once(exp(law.log_mass[1]), k != law.first, alternatives, target)
        steps = [log(a.odds) for a in alternatives]
        means = [law.first * step + _log_sum([m + i * step for i, m in enumerate(law.log_mass)]) for step in steps]

        def paid(outcome: int) -> list[float]:
            bets = zip(self.capital, steps, means)
            return [held * exp(min(outcome * step - mean, _LARGEST)) for held, step, mean in bets]

        capital = paid(k)
        boost = 1.0
        last = law.first + len(law.log_mass) - 1
        if sum(paid(last)) + self.reserve > target:
            payments = [sum(paid(outcome)) for outcome in range(law.first, last + 1)]
            boost = _boost([exp(mass) for mass in law.log_mass], payments, self.reserve, target, self.evidence)
        evidence = boost * sum(capital) + self.reserve
        won = evidence >= target * _ROUNDING
        if won:
            boost *= (target - self.reserve) / (evidence - self.reserve)
        return Wager(tuple(held * boost for held in capital), self.reserve, won)

    def _settled_once(self, chance: float, on_canary: bool, alternatives: Sequence[Alternative], target: float) -> Wager:
        """``settled`` where one bad event is all there is: the same in closed form, for looks after every request."""
        fair = [(held / (1 - chance + chance * a.odds), a.odds) for held, a in zip(self.capital, alternatives)]
        if_canary = sum([held * odds for held, odds in fair])
        if if_canary + self.reserve >= target * _ROUNDING:
            if on_canary:
                part = (target - self.reserve) / if_canary
                return Wager(tuple([held * odds * part for held, odds in fair]), self.reserve, won=True)
            else_ = sum([held for held, _ in fair])
            due = self.evidence - chance * target - (1 - chance) * self.reserve
            boost = max(1.0, due / ((1 - chance) * else_))
            return Wager(tuple([held * boost for held, _ in fair]), self.reserve)
        return Wager(tuple([held * odds if on_canary else held for held, odds in fair]), self.reserve)


def _boost(mass: Sequence[float], payments: Sequence[float], reserve: float, target: float, mean: float) -> float:
    """The factor b with E[min(b * payment + reserve, target)] = mean, found from below by tangents."""
    boost = 1.0
    while True:
        capped = sum(p for p, paid in zip(mass, payments) if boost * paid + reserve >= target)
        open_ = sum(p * paid for p, paid in zip(mass, payments) if boost * paid + reserve < target)
        if open_ <= 0:
            return boost
        better = (mean - capped * target - (1 - capped) * reserve) / open_
        if better <= boost * (1 + 1e-12):
            return boost
        boost = better


def _log_evidence(bad: int, total: int, rate: float) -> float:
    """The logarithm of the evidence of these counts against this rate: a Beta mixture over every other rate."""
    likelihood = (bad * log(rate) if bad else 0.0) + ((total - bad) * log1p(-rate) if total > bad else 0.0)
    mixtures = [
        lgamma(a + bad) + lgamma(b + total - bad) - lgamma(a + b + total) - lgamma(a) - lgamma(b) + lgamma(a + b)
        for a, b in _PRIORS
    ]
    return _log_sum(mixtures) - log(len(mixtures)) - likelihood


def _crossing(inside: float, outside: float, covered: Callable[[float], bool]) -> float:
    """Where between the two rates the interval ends, to 1e-9, never inside of it."""
    while abs(outside - inside) > 1e-9:
        middle = (inside + outside) / 2
        if covered(middle):
            inside = middle
        else:
            outside = middle
    return outside


def confidence_sequence(bad: int, total: int, risk: float) -> tuple[float, float]:
    """The interval of rates that these cumulative counts leave possible, (0, 1) at first.

    Over the whole run of counts the rate leaves the interval even once with a probability of at most ``risk``
    (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon 2021, section 3.2, the beta-binomial mixture).
    Raises ValueError unless 0 <= bad <= total and 0 < risk < 1.
    """
    if not 0 <= bad <= total or not 0 < risk < 1:
        raise ValueError(f"no interval for {bad} of {total} at risk {risk}")
    if total == 0:
        return 0.0, 1.0
    target = log(1 / risk)
    mean = bad / total

    def covered(rate: float) -> bool:
        return _log_evidence(bad, total, rate) < target

    low = _crossing(mean, 0.0, covered) if bad else 0.0
    high = _crossing(mean, 1.0, covered) if bad < total else 1.0
    return low, high


def divergence(p: float, q: float) -> float:
    """Kullback and Leibler's divergence of a coin with rate p from one with rate q, in nats."""
    if not 0 < q < 1:
        return 0.0 if p == q else inf
    return (p * log(p / q) if p else 0.0) + ((1 - p) * log((1 - p) / (1 - q)) if p < 1 else 0.0)


def walds_bound(canary_rate: float, baseline_rate: float, share: float, alpha: float) -> float:
    """Requests in all (both versions) that any test needs on average to tell these two rates from one common rate.

    Wald (1945): a test that raises a false alarm with probability alpha at most, and stops for certain under the fixed
    alternative, needs ``log(1/alpha) / I`` requests. I is the information per request against the common rate
    nearest to
    the alternative, ``q = share * canary_rate + (1 - share) * baseline_rate``, since neither rate is known beforehand.
    """
    q = share * canary_rate + (1 - share) * baseline_rate
    return log(1 / alpha) / (share * divergence(canary_rate, q) + (1 - share) * divergence(baseline_rate, q))
