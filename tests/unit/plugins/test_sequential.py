"""The sequential tests, each against a closed form, an enumeration or a simulation."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from ansible.module_utils.sequential import (
    Alternative,
    Law,
    Wager,
    _boost,
    confidence_sequence,
    divergence,
    law_by_limit,
    law_by_margins,
    law_by_share,
    walds_bound,
)
from hypothesis import given, settings
from hypothesis import strategies as st

ALTERNATIVES = (Alternative(2, 0.3), Alternative(8, 0.3), Alternative(60, 0.4))

laws = st.one_of(
    st.builds(law_by_share, st.floats(0.5, 500), st.floats(0.5, 5000), st.integers(1, 5), st.sampled_from([1.0, 1.25])),
    st.builds(law_by_margins, st.integers(1, 30), st.integers(20, 400), st.integers(1, 20), st.sampled_from([1.0, 2.0])),
    st.builds(law_by_limit, st.integers(1, 60), st.sampled_from([0.01, 0.3])),
)


def mass(law: Law) -> list[float]:
    return [math.exp(weight) for weight in law.log_mass]


def test_bad_events_given_the_margins_are_hypergeometric_when_versions_are_equal() -> None:
    law = law_by_margins(4, 6, 3)
    exact = [Fraction(math.comb(4, k) * math.comb(6, 3 - k), math.comb(10, 3)) for k in range(4)]
    assert law.first == 0
    assert mass(law) == pytest.approx([float(p) for p in exact])


def test_bad_events_given_the_margins_follow_fishers_law_at_another_odds_ratio() -> None:
    weights = [math.comb(4, k) * math.comb(2, 5 - k) * 3.0**k for k in (3, 4)]
    law = law_by_margins(4, 2, 5, odds=3.0)
    assert law.first == 3
    assert mass(law) == pytest.approx([weight / sum(weights) for weight in weights])


def test_the_law_given_the_margins_is_that_of_two_binomials_of_any_common_rate() -> None:
    rate, canary, baseline, bad = 0.07, 5, 8, 4

    def binomial(n: int, k: int) -> float:
        return math.comb(n, k) * rate**k * (1 - rate) ** (n - k)

    joint = [binomial(canary, k) * binomial(baseline, bad - k) for k in range(bad + 1)]
    assert mass(law_by_margins(canary, baseline, bad)) == pytest.approx([p / sum(joint) for p in joint])


def test_bad_events_on_a_share_follow_polyas_urn() -> None:
    exact = [Fraction(7 * 8, 10 * 11), Fraction(2 * 3 * 7, 10 * 11), Fraction(3 * 4, 10 * 11)]
    assert mass(law_by_share(3, 7, 2)) == pytest.approx([float(p) for p in exact])


@given(st.floats(0.5, 500), st.floats(0.5, 5000), st.floats(1, 3))
def test_a_single_bad_event_on_a_share_is_one_coin(canary: float, baseline: float, odds: float) -> None:
    one = mass(law_by_share(canary, baseline, 1, odds))[1]
    assert one == pytest.approx(odds * canary / (odds * canary + baseline))


def test_bad_events_at_the_limit_are_binomial() -> None:
    assert mass(law_by_limit(3, 0.25)) == pytest.approx([27 / 64, 27 / 64, 9 / 64, 1 / 64])


@settings(max_examples=120, deadline=None)
@given(laws, st.floats(0.001, 0.98), st.floats(3, 5000), st.sampled_from([0.0, 0.03, 0.5]))
def test_a_wager_is_fair_when_nothing_is_wrong_and_never_pays_more_than_the_target(
    law: Law, part: float, target: float, reserve: float
) -> None:
    opened = Wager.opened(ALTERNATIVES, reserve)
    scale = part * target
    wager = Wager(tuple(held * scale for held in opened.capital), min(opened.reserve, part))
    settled = [wager.settled(law, law.first + i, ALTERNATIVES, target) for i in range(len(law.log_mass))]
    mean = sum(p * after.evidence for p, after in zip(mass(law), settled, strict=True))
    assert mean == pytest.approx(wager.evidence, rel=1e-9)
    assert all(after.evidence <= target * (1 + 1e-9) for after in settled)
    assert all(after.won == (after.evidence >= target * (1 - 1e-8)) for after in settled)


@settings(max_examples=50, deadline=None)
@given(laws, st.floats(1.0, 3.0))
def test_a_canary_that_is_better_than_the_null_only_loses_the_wager(law: Law, better: float) -> None:
    wager = Wager.opened(ALTERNATIVES, 0.1)
    weights = [p * better**-i for i, p in enumerate(mass(law))]
    mean = sum(p / sum(weights) * wager.settled(law, law.first + i, ALTERNATIVES, 100.0).evidence for i, p in enumerate(weights))
    assert mean <= 1 + 1e-9


def test_without_a_target_in_reach_the_wager_is_the_mixture_of_likelihood_ratios() -> None:
    law = law_by_margins(10, 90, 3)
    wager = Wager.opened(ALTERNATIVES, 0.0).settled(law, 1, ALTERNATIVES, 1e9)
    ratios = [sum(p * a.odds**k for k, p in enumerate(mass(law))) for a in ALTERNATIVES]
    expected = sum(a.stake * a.odds / mean for a, mean in zip(ALTERNATIVES, ratios, strict=True))
    assert wager.evidence == pytest.approx(expected)


def test_an_alternative_where_the_null_has_no_mass_in_floats_is_still_weighed_fairly() -> None:
    law = law_by_limit(150, 0.001)
    wager = Wager.opened((Alternative(60, 1.0),), 0.0)
    assert math.exp(law.log_mass[-1]) == 0
    assert wager.settled(law, 9, (Alternative(60, 1.0),), 1e300).evidence == pytest.approx(
        math.exp(9 * math.log(60) - 150 * math.log(0.999 + 0.001 * 60)), rel=1e-6
    )


def test_where_nothing_can_be_raised_the_payments_stay_as_they_are() -> None:
    assert _boost([0.5, 0.5], [0.0, 200.0], 0.0, 100.0, 60.0) == 1.0


def test_a_won_wager_stays_won_and_a_look_with_one_possible_outcome_changes_nothing() -> None:
    won = Wager((100.0,), 0.0, won=True)
    assert won.settled(law_by_share(5, 95, 1), 0, ALTERNATIVES[:1], 100.0) is won
    opened = Wager.opened(ALTERNATIVES, 0.1)
    assert opened.settled(law_by_margins(0, 50, 3), 0, ALTERNATIVES, 100.0) is opened


def test_a_renewal_moves_a_quarter_of_the_reserve_and_keeps_the_capital() -> None:
    wager = Wager.opened(ALTERNATIVES, 0.2)
    renewed = wager.renewed(ALTERNATIVES)
    assert renewed.reserve == pytest.approx(0.15)
    assert renewed.evidence == pytest.approx(1.0)


def test_what_a_renewal_staked_is_not_lost_by_what_was_good_before() -> None:
    law, target = law_by_share(50, 950, 1), 125.0

    def bad_ones_until_won(wager: Wager) -> int:
        count = 0
        while not wager.won:
            wager, count = wager.settled(law, 1, ALTERNATIVES, target), count + 1
        return count

    wager = Wager.opened(ALTERNATIVES, 0.1)
    for _ in range(300):
        wager = wager.settled(law, 0, ALTERNATIVES, target)
    assert bad_ones_until_won(wager.renewed(ALTERNATIVES)) < bad_ones_until_won(Wager(wager.capital, 0.0).renewed(ALTERNATIVES))


@pytest.mark.parametrize(
    ("alternatives", "reserve"),
    [((), 0.0), ((Alternative(1, 1),), 0.0), ((Alternative(2, 0),), 0.0), (ALTERNATIVES, 1.0), (ALTERNATIVES, -0.1)],
)
def test_a_wager_needs_stakes_and_alternatives_that_are_worse(alternatives: tuple[Alternative, ...], reserve: float) -> None:
    with pytest.raises(ValueError, match="alternatives need"):
        Wager.opened(alternatives, reserve)


def test_equal_versions_reach_the_target_with_the_probability_alpha_at_most_however_long_one_looks() -> None:
    rng = random.Random(1)
    alpha, runs, law = 0.05, 600, law_by_share(5e6, 95e6, 1)
    won = 0
    for _ in range(runs):
        wager = Wager.opened(ALTERNATIVES, 0.0)
        for _ in range(100):
            wager = wager.settled(law, int(rng.random() < 0.05), ALTERNATIVES, 1 / alpha)
            if wager.won:
                won += 1
                break
    assert won / runs <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
    assert won / runs >= alpha / 2  # and nothing is wasted on overshoot


def test_a_confidence_sequence_covers_the_rate_over_a_whole_run() -> None:
    rng = random.Random(2)
    missed = 0
    for _ in range(200):
        bad = 0
        for total in range(1, 301):
            bad += rng.random() < 0.1
            if total % 30 == 0:
                low, high = confidence_sequence(bad, total, 0.1)
                if not low <= 0.1 <= high:
                    missed += 1
                    break
    assert missed / 200 <= 0.1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 3000), st.sampled_from([0.01, 0.05, 0.5]))
def test_a_confidence_sequence_holds_the_mean_and_narrows_with_the_risk_allowed(a: int, b: int, risk: float) -> None:
    bad, total = min(a, b), max(a, b)
    low, high = confidence_sequence(bad, total, risk)
    wide_low, wide_high = confidence_sequence(bad, total, risk / 10)
    assert 0 <= wide_low <= low <= high <= wide_high <= 1
    if total:
        assert low <= bad / total <= high


def test_without_a_request_every_rate_is_possible() -> None:
    assert confidence_sequence(0, 0, 0.05) == (0.0, 1.0)


def test_all_good_and_all_bad_leave_one_end_open() -> None:
    assert confidence_sequence(0, 50, 0.05)[0] == 0.0
    assert confidence_sequence(50, 50, 0.05)[1] == 1.0


@pytest.mark.parametrize(("bad", "total", "risk"), [(2, 1, 0.05), (-1, 1, 0.05), (0, 1, 0.0), (0, 1, 1.0)])
def test_a_confidence_sequence_refuses_what_is_no_count_or_no_risk(bad: int, total: int, risk: float) -> None:
    with pytest.raises(ValueError, match="no interval"):
        confidence_sequence(bad, total, risk)


def test_the_divergence_of_coins_is_kullbacks() -> None:
    assert divergence(0.5, 0.25) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert divergence(0.0, 0.25) == pytest.approx(-math.log(0.75))
    assert divergence(1.0, 0.25) == pytest.approx(math.log(4))
    assert divergence(0.0, 0.0) == 0.0
    assert divergence(0.1, 1.0) == math.inf


def test_walds_bound_is_the_log_of_one_over_alpha_by_the_information_of_a_request() -> None:
    share, rate, base = 0.05, 0.05, 0.001
    common = share * rate + (1 - share) * base
    information = share * divergence(rate, common) + (1 - share) * divergence(base, common)
    assert walds_bound(rate, base, share, 0.01) == pytest.approx(math.log(100) / information)
    assert walds_bound(rate, base, share, 0.01) == pytest.approx(827.4, abs=0.1)
