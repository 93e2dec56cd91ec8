"""The judge of a release: what it answers, why, and what it remembers."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest
from ansible.module_utils.judge import (
    FAIL,
    INSUFFICIENT,
    PASS,
    STOPS,
    JudgeInputError,
    Look,
    Memory,
    Metric,
    Plan,
    Sample,
    Tally,
    judge,
    replay,
    standard_plan,
)
from ansible.module_utils.sequential import Alternative
from hypothesis import given, settings
from hypothesis import strategies as st

QUIET = {stop.name: 0 for stop in STOPS}
ERRORS = Plan((Metric("errors", "failed", 0.9, 0.01, limit=0.02, limit_weight=0.1),))
BESIDE, ALONE = 5, 6  # after the five stops: errors against the baseline, errors against the limit


def look(
    canary: tuple[int, int] | None,
    baseline: tuple[int, int] | None,
    *,
    stage: str = "5%",
    exposure: float = 0.05,
    stops: dict[str, int | None] | None = None,
) -> Look:
    """A look at errors alone: (requests, bad) of each version."""
    sample = Sample(canary and Tally(*canary), baseline and Tally(*baseline))
    return Look(stage, exposure, {"errors": sample}, {**QUIET, **(stops or {})})


def evidence(plan: Plan, at: Look) -> float:
    """The evidence against the baseline after this one look."""
    found = judge(plan, Memory(), at)[0].findings[BESIDE].evidence
    assert found is not None
    return found


GOOD = look((2000, 2), (38000, 38))
BAD = look((400, 60), (7600, 8))


def test_a_canary_shown_to_be_as_good_as_its_baseline_passes() -> None:
    verdict, _ = judge(ERRORS, Memory(), GOOD)
    assert verdict.outcome == PASS
    assert "2 of 2,000 (0.10%) failed on the canary, 38 of 38,000 (0.10%) on the baseline" in verdict.reasons[BESIDE]
    assert "the rate is at most" in verdict.reasons[ALONE]


def test_a_canary_that_is_worse_than_its_baseline_fails_with_the_numbers_in_a_sentence() -> None:
    verdict, _ = judge(ERRORS, Memory(), BAD)
    assert verdict.outcome == FAIL
    assert any(
        reason.startswith("errors: 60 of 400 (15.00%) failed on the canary, 8 of 7,600 (0.11%) on the baseline")
        for reason in verdict.reasons
    )
    beside = verdict.findings[BESIDE]
    assert beside.evidence is not None
    assert beside.target == pytest.approx(1 / (0.9 * 0.01))
    assert beside.evidence == pytest.approx(beside.target)


def test_what_the_whole_fleet_suffers_is_held_against_no_version_and_lets_none_pass() -> None:
    verdict, memory = judge(ERRORS, Memory(), look((2000, 200), (38000, 3800)))
    assert verdict.outcome == INSUFFICIENT
    assert "the rate may still be" in verdict.reasons[-1]
    later, _ = judge(ERRORS, memory, look((2400, 260), (46000, 3800)))
    assert [finding.test for finding in later.findings if finding.outcome == FAIL] == ["baseline", "limit"]


def test_a_canary_past_its_limit_fails_even_where_it_is_not_shown_to_be_worse_than_the_baseline() -> None:
    verdict, memory = judge(ERRORS, Memory(), look((38000, 1000), (1000, 19), exposure=0.97))
    assert verdict.outcome == FAIL
    assert [finding.test for finding in verdict.findings if finding.outcome == FAIL] == ["limit"]
    assert "the limit is 2.00%; it is past the limit" in verdict.reasons[0]
    assert judge(ERRORS, memory, look(None, None))[0].outcome == FAIL


def test_a_handful_of_requests_is_insufficient_however_good_they_are() -> None:
    verdict, _ = judge(ERRORS, Memory(), look((20, 0), (380, 0)))
    assert verdict.outcome == INSUFFICIENT
    assert "20 requests on the canary, a pass needs 300" in verdict.reasons[0]


def test_a_baseline_with_too_few_requests_is_insufficient() -> None:
    verdict, _ = judge(ERRORS, Memory(), look((3000, 0), (100, 0), exposure=0.5))
    assert verdict.outcome == INSUFFICIENT
    assert "100 requests on the baseline, a pass needs 300" in verdict.reasons[0]


def test_enough_requests_that_still_allow_a_rate_above_the_margin_or_the_limit_are_insufficient() -> None:
    verdict, _ = judge(ERRORS, Memory(), look((310, 2), (5890, 6)))
    assert verdict.outcome == INSUFFICIENT
    assert "the canary may still be" in verdict.reasons[0]
    assert "the rate may still be" in verdict.reasons[1]


@pytest.mark.parametrize(
    ("canary", "baseline", "missing"),
    [(None, (380, 0), "the canary"), ((20, 0), None, "the baseline"), (None, None, "the canary and baseline")],
)
def test_a_source_that_is_missing_is_insufficient_never_fine(
    canary: tuple[int, int] | None, baseline: tuple[int, int] | None, missing: str
) -> None:
    verdict, _ = judge(ERRORS, Memory(), look(canary, baseline))
    assert verdict.outcome == INSUFFICIENT
    assert f"errors: nothing comes from {missing}" in verdict.reasons


def test_a_metric_that_no_sample_names_is_insufficient() -> None:
    verdict, _ = judge(ERRORS, Memory(), Look("5%", 0.05, {}, QUIET))
    assert verdict.outcome == INSUFFICIENT


@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: str(stop.name))
def test_a_hard_stop_needs_no_statistics(stop: Any) -> None:
    below, _ = judge(ERRORS, Memory(), replace(GOOD, stops={**QUIET, stop.name: stop.limit - 1}))
    at, _ = judge(ERRORS, Memory(), replace(GOOD, stops={**QUIET, stop.name: stop.limit}))
    assert below.outcome == PASS
    assert at.outcome == FAIL
    assert stop.sentence in at.reasons[0]


def test_a_hard_stop_of_which_nothing_is_known_is_insufficient() -> None:
    for stops in ({**QUIET, "fenced_write": None}, {k: v for k, v in QUIET.items() if k != "fenced_write"}):
        verdict, _ = judge(ERRORS, Memory(), replace(GOOD, stops=stops))
        assert verdict.outcome == INSUFFICIENT
        assert verdict.reasons[0].startswith("fenced_write: nothing reports whether")


def test_a_failed_test_stays_failed_for_the_rest_of_the_rollout() -> None:
    _, memory = judge(ERRORS, Memory(), BAD)
    for later in (
        look((9000, 60), (170000, 170)),
        look(None, (1, 0)),
        look((1, 0), (1, 0)),
        look((4000, 0), (4000, 0), stage="50%", exposure=0.5),
        look((4000, 0), None, stage="100%", exposure=1.0),
    ):
        assert judge(ERRORS, memory, later)[0].outcome == FAIL


def test_a_counter_that_went_back_is_insufficient_once_and_counted_from_there() -> None:
    _, memory = judge(ERRORS, Memory(), look((2000, 2), (38000, 38)))
    verdict, memory = judge(ERRORS, memory, look((100, 0), (38100, 38)))
    assert verdict.outcome == INSUFFICIENT
    assert any("a counter went back (canary 2 of 2,000 (0.10%) before, 0 of 100 (0.00%) now)" in r for r in verdict.reasons)
    verdict, _ = judge(ERRORS, memory, look((2100, 2), (76100, 76)))
    assert verdict.outcome == PASS


def test_a_look_without_a_new_request_changes_nothing() -> None:
    once, memory = judge(ERRORS, Memory(), GOOD)
    assert judge(ERRORS, memory, GOOD) == (once, memory)


def test_a_new_stage_starts_its_counters_at_zero_and_keeps_the_evidence() -> None:
    verdict, memory = judge(ERRORS, Memory(), look((100, 1), (1900, 2)))
    before = verdict.findings[BESIDE].evidence
    verdict, memory = judge(ERRORS, memory, look((5, 0), (20, 0), stage="20%", exposure=0.2))
    assert verdict.findings[BESIDE].evidence == pytest.approx(before)
    assert memory.tests["errors:baseline"].wager.reserve == pytest.approx(ERRORS.reserve * 0.75)
    assert memory.tests["errors:baseline"].canary == Tally(5, 0)


def test_the_reserve_is_staked_anew_after_every_renewal() -> None:
    plan = replace(ERRORS, renewal=10_000)
    _, memory = judge(plan, Memory(), look((500, 0), (9400, 0)))
    assert memory.tests["errors:baseline"].wager.reserve == pytest.approx(plan.reserve)
    _, memory = judge(plan, memory, look((505, 0), (9495, 0)))
    assert memory.tests["errors:baseline"].wager.reserve == pytest.approx(plan.reserve * 0.75)
    assert memory.tests["errors:baseline"].since_renewal == 0


def test_at_full_exposure_only_limits_and_stops_are_left() -> None:
    good, _ = judge(ERRORS, Memory(), look((2000, 2), None, stage="100%", exposure=1.0))
    assert good.outcome == PASS
    assert "nothing to compare with" in good.reasons[BESIDE]
    past, _ = judge(ERRORS, Memory(), look((2000, 200), None, stage="100%", exposure=1.0))
    assert past.outcome == FAIL
    unknown, _ = judge(ERRORS, Memory(), look(None, None, stage="100%", exposure=1.0))
    assert unknown.outcome == INSUFFICIENT
    assert unknown.findings[BESIDE].outcome == INSUFFICIENT


def test_the_memory_goes_through_json_without_losing_a_digit() -> None:
    _, memory = judge(standard_plan(), Memory(), look((400, 3), (7600, 8)))
    again = Memory.from_dict(json.loads(json.dumps(memory.to_dict())))
    assert again == memory
    assert judge(standard_plan(), again, BAD) == judge(standard_plan(), memory, BAD)


@pytest.mark.parametrize("values", [{}, {"stage": "5%", "tests": []}, {"stage": "5%", "tests": {"errors:limit": {"wager": 1}}}])
def test_what_is_not_a_memory_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(JudgeInputError, match="not a judge's memory"):
        Memory.from_dict(values)


def test_a_verdict_goes_into_the_journal_as_json() -> None:
    verdict, _ = judge(ERRORS, Memory(), BAD)
    written = json.loads(json.dumps(verdict.to_dict()))
    assert written["outcome"] == FAIL
    assert written["reasons"] == list(verdict.reasons)
    assert written["findings"][BESIDE]["test"] == "baseline"


def test_a_replay_of_recorded_looks_gives_the_same_verdict_and_memory() -> None:
    looks = [look((100 * n, n // 3), (1900 * n, 2 * n)) for n in range(1, 20)]
    memory, verdict = Memory(), None
    for one in looks:
        verdict, memory = judge(ERRORS, memory, one)
    assert replay(ERRORS, looks) == (verdict, memory)
    assert replay(ERRORS, []) == (None, Memory())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=1, max_size=150))
def test_asking_after_every_request_is_the_same_as_asking_after_every_bad_one(
    requests: list[tuple[bool, int]],
) -> None:
    every, after_bad = Memory(), Memory()
    plan = Plan((Metric("errors", "failed", 1.0, 0.01),))
    counts = {True: [0, 0], False: [0, 0]}

    def now() -> Look:
        return look((counts[True][0], counts[True][1]), (counts[False][0], counts[False][1]), exposure=0.3)

    for on_canary, digit in requests:
        bad = digit == 0
        counts[on_canary][0] += 1
        counts[on_canary][1] += bad
        _, every = judge(plan, every, now())
        if bad:
            _, after_bad = judge(plan, after_bad, now())
    one, other = every.tests["errors:baseline"].wager, after_bad.tests.get("errors:baseline")
    if other is not None:
        assert one.evidence == pytest.approx(other.wager.evidence)


def test_a_long_look_is_judged_by_its_own_share_whatever_the_cut_says() -> None:
    assert evidence(ERRORS, look((10_000, 100), (10_000, 100), exposure=0.05)) < 2


def test_what_is_tolerated_is_no_evidence() -> None:
    metric = Metric("errors", "failed", 1.0, 0.01, (Alternative(2, 1.0),))
    slightly_worse = look((500, 60), (9500, 900))
    tolerant = Plan((replace(metric, tolerance=1.5),))
    assert evidence(tolerant, slightly_worse) < evidence(Plan((metric,)), slightly_worse)


def test_the_parts_of_alpha_of_all_tests_add_up_to_alpha() -> None:
    plan = standard_plan(alpha=0.02)
    weights = [w for metric in plan.metrics for w in (metric.weight, metric.limit_weight) if w]
    assert sum(1 / plan.target(weight) for weight in weights) == pytest.approx(0.02)
    assert {metric.name for metric in plan.metrics} == {"errors", "rejections", "slow", "slower"}
    assert plan.metrics[0].limit == 0.01


def test_equal_versions_are_rolled_back_with_the_probability_alpha_at_most() -> None:
    rng = random.Random(4)
    plan = Plan((Metric("errors", "failed", 0.9, 0.05, limit=0.1, limit_weight=0.1),), alpha=0.1)
    runs, false = 150, 0
    for _ in range(runs):
        memory, canary, baseline = Memory(), [0, 0], [0, 0]
        for _ in range(15):
            for counts, size in ((canary, 12), (baseline, 24)):
                counts[0] += size
                counts[1] += sum(rng.random() < 0.1 for _ in range(size))
            sample = look((canary[0], canary[1]), (baseline[0], baseline[1]), exposure=1 / 3)
            verdict, memory = judge(plan, memory, sample)
            if verdict.outcome == FAIL:
                false += 1
                break
    assert false / runs <= 0.1 + 3 * math.sqrt(0.09 / runs)


@pytest.mark.parametrize(("total", "bad"), [(1, 2), (1, -1), (-1, -1)])
def test_counts_that_make_no_sense_are_refused(total: int, bad: int) -> None:
    with pytest.raises(JudgeInputError, match="bad events of"):
        Tally(total, bad)


def test_a_tally_without_requests_has_the_rate_zero() -> None:
    assert Tally(0, 0).rate == 0.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (replace(GOOD, exposure=0.0), "out of"),
        (replace(GOOD, exposure=1.1), "out of"),
        (replace(GOOD, samples={"erors": Sample(None, None)}), "does not know erors"),
        (replace(GOOD, stops={"crash": 0}), "does not know crash"),
    ],
)
def test_a_look_that_the_plan_does_not_know_is_refused(changed: Look, message: str) -> None:
    with pytest.raises(JudgeInputError, match=message):
        judge(ERRORS, Memory(), changed)


@pytest.mark.parametrize(
    "wrong",
    [
        {"metrics": ()},
        {"metrics": ERRORS.metrics * 2},
        {"alpha": 0.0},
        {"beta": 1.0},
        {"reserve": 1.0},
        {"min_requests": 0},
        {"accounts": 0},
        {"renewal": 0},
    ],
)
def test_a_plan_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(JudgeInputError):
        replace(ERRORS, **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight": 0.0},
        {"margin": 0.0},
        {"tolerance": 0.9},
        {"limit_weight": -1.0},
        {"limit": 0.0},
        {"limit": 0.5, "limit_weight": 0.0},
    ],
)
def test_a_metric_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(JudgeInputError, match="out of range"):
        replace(ERRORS.metrics[0], **wrong)
