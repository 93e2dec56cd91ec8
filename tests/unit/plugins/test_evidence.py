"""From counters to what the judge is asked: over restarts, with instances missing, and what people are shown."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import Any

import pytest
from ansible.module_utils.evidence import Counters, StageEvidence, above, quantile, yardstick
from ansible.module_utils.judge import FAIL, Memory, Tally, judge, standard_plan

BOUNDS = [0.001, 0.002, 0.004, 0.1]
STOPS = ("duplicated_executions", "ledger_differences", "fenced_writes", "risk_limit_passed")


def instance(
    started: float = 1.0,
    accepted: int = 0,
    refused: int = 0,
    error: int = 0,
    latency: tuple[int, ...] = (0, 0, 0, 0, 0),
    stops: dict[str, int] | None = None,
    path: str = "http",
) -> dict[str, Any]:
    return {
        "up": True,
        "release_id": "1.1.0-aaaaaaaaaa",
        "started": started,
        "orders": {path: {"accepted": accepted, "refused": refused, "error": error}},
        "latency": {"bounds": [*BOUNDS, None], "counts": list(accumulate(latency))},
        "stops": {**dict.fromkeys(STOPS, 0), **(stops or {})},
    }


def look(haproxy: dict[str, tuple[int, int, int]] | None = None, **hosts: dict[str, Any]) -> dict[str, Any]:
    """One load balancer's look: {slot: (requests, errors, retries)}, and the slots of each host."""
    return {
        "lb1": {
            "haproxy": {
                slot: {"requests": requests, "errors": errors, "retries": retries}
                for slot, (requests, errors, retries) in (haproxy or {"blue": (0, 0, 0), "green": (0, 0, 0)}).items()
            },
            "instances": hosts,
        }
    }


def counted(*looks: dict[str, Any]) -> Counters:
    counters = Counters(("blue", "green"))
    for one in looks:
        counters.add(one)
    return counters


def test_what_was_counted_before_the_first_look_is_not_counted() -> None:
    first = look({"blue": (100, 9, 0), "green": (50, 5, 5)}, app1={"green": instance(accepted=70, error=7)})
    assert counted(first).attempts("green") == Tally(0, 0)
    assert counted(first).orders("green") == 0


def test_differences_between_looks_are_summed_over_hosts_and_load_balancers() -> None:
    before = look({"blue": (10, 0, 0), "green": (5, 0, 0)}, app1={"green": instance(accepted=5)}, app2={"green": instance()})
    after = look(
        {"blue": (30, 1, 0), "green": (9, 1, 2)},
        app1={"green": instance(accepted=8, refused=1)},
        app2={"green": instance(accepted=2)},
    )
    second = {"lb2": {**before["lb1"], "instances": {}}, **before}
    third = {"lb2": {**after["lb1"], "instances": {}}, **after}
    counters = counted(second, third)
    assert counters.attempts("green") == Tally(2 * (4 + 2), 2 * (1 + 2))
    assert counters.attempts("blue") == Tally(40, 2)
    assert counters.rejections("green") == Tally(6, 1)


def test_an_instance_that_began_anew_is_counted_from_zero_and_as_a_crash() -> None:
    counters = counted(
        look(app1={"green": instance(started=1, accepted=100)}),
        look(app1={"green": instance(started=1, accepted=110)}),
        look(app1={"green": instance(started=2, accepted=4)}),
    )
    assert counters.orders("green") == 14
    assert counters.crashes == {"blue": 0, "green": 1}


def test_an_instance_that_goes_away_and_comes_back_crashed_once() -> None:
    counters = counted(
        look(app1={"green": instance(started=1)}),
        look(app1={"green": {"up": False}}),
        look(app1={"green": {"up": False}}),
        look(app1={"green": instance(started=2, accepted=3)}),
    )
    assert counters.crashes["green"] == 1
    assert counters.missing["green"] == []


def test_a_load_balancer_that_was_reloaded_is_counted_from_zero() -> None:
    counters = counted(look({"green": (100, 2, 0), "blue": (0, 0, 0)}), look({"green": (7, 1, 0), "blue": (0, 0, 0)}))
    assert counters.attempts("green") == Tally(7, 1)


def test_what_is_refused_because_trading_is_halted_is_no_failure() -> None:
    before = look(app1={"green": instance()})
    after = look({"green": (40, 10, 30), "blue": (0, 0, 0)}, app1={"green": instance()})
    after["lb1"]["instances"]["app1"]["green"]["orders"]["http"]["halted"] = 40
    before["lb1"]["instances"]["app1"]["green"]["orders"]["http"]["halted"] = 0
    assert counted(before, after).attempts("green").bad == 0


def test_an_attempt_that_failed_and_was_sent_again_counts_although_no_client_saw_it() -> None:
    counters = counted(look(), look({"green": (100, 0, 3), "blue": (0, 0, 0)}))
    assert counters.attempts("green") == Tally(103, 3)


def test_a_stop_that_an_instance_does_not_report_is_unknown() -> None:
    silent = instance()
    silent["stops"]["fenced_writes"] = None
    counters = counted(*[look(app1={"green": instance()}, app2={"green": silent})] * 2)
    assert counters.stop("fenced_write", ("green",)) is None
    assert counters.stop("duplicated_execution", ("green",)) == 0


def test_only_what_a_stop_gained_counts() -> None:
    counters = counted(
        look(app1={"green": instance(stops={"ledger_differences": 4})}),
        look(app1={"green": instance(stops={"ledger_differences": 4})}),
        look(app1={"green": instance(stops={"ledger_differences": 6})}),
    )
    assert counters.stop("ledger_difference", ("green",)) == 2


def test_counters_go_through_json_and_on() -> None:
    first, second = look(app1={"green": instance(accepted=3)}), look(app1={"green": instance(accepted=9)})
    third = look(app1={"green": instance(accepted=12)})
    counters = Counters.from_dict(json.loads(json.dumps(counted(first, second).to_dict())))
    counters.add(third)
    assert counters.orders("green") == counted(first, second, third).orders("green") == 9


def test_after_a_time_without_looks_nothing_of_that_time_is_counted() -> None:
    counters = counted(look(app1={"green": instance(accepted=1)}), look(app1={"green": instance(accepted=3)}))
    counters.resume()
    counters.add(look(app1={"green": instance(started=2, accepted=500)}))
    counters.add(look(app1={"green": instance(started=2, accepted=501)}))
    assert counters.orders("green") == 3
    assert counters.crashes["green"] == 0


@pytest.mark.parametrize(("part", "value"), [(0.5, 0.0015), (0.25, 0.001), (1.0, 0.1)])
def test_a_quantile_is_linear_within_its_bucket(part: float, value: float) -> None:
    assert quantile(BOUNDS, [1, 2, 0, 1, 0], part) == pytest.approx(value)


def test_there_is_no_quantile_of_nothing_and_what_is_above_all_bounds_is_told_as_the_last() -> None:
    assert quantile(BOUNDS, [0] * 5, 0.5) is None
    assert quantile(BOUNDS, [0, 0, 0, 0, 3], 0.5) == 0.1


def test_the_yardstick_is_the_bound_nearest_to_the_p90_and_needs_enough_answers() -> None:
    assert yardstick(BOUNDS, [100, 100, 0, 0, 0]) is None
    assert yardstick(BOUNDS, [500, 380, 100, 20, 0]) == 1
    assert above([500, 380, 100, 20, 0], 1) == Tally(1000, 120)


def stage_of(cut: int, *looks: dict[str, Any]) -> tuple[StageEvidence, Counters]:
    history = Counters(("blue", "green"))
    evidence = StageEvidence("5%", cut, "blue", "green", 0.1)
    for one in looks:
        history.add(one)
        evidence.add(one)
    return evidence, history


def test_a_canary_instance_that_does_not_answer_leaves_its_source_missing() -> None:
    up = {"blue": instance(), "green": instance()}
    evidence, history = stage_of(500, look(app1=up, app2=up), look(app1=up, app2={"blue": instance(), "green": {"up": False}}))
    samples = evidence.look(history).samples
    assert samples["rejections"].canary is None
    assert samples["rejections"].baseline is not None
    assert evidence.look(history).stops["crash_loop"] == 1


def test_without_a_load_balancers_counters_nothing_is_known_of_errors() -> None:
    up = {"blue": instance(), "green": instance()}
    blind = look(app1=up)
    blind["lb1"]["haproxy"] = None
    evidence, history = stage_of(500, look(app1=up), blind)
    assert evidence.look(history).samples["errors"].canary is None


def test_at_all_accounts_there_is_no_baseline() -> None:
    up = {"blue": instance(), "green": instance()}
    evidence, history = stage_of(10_000, look(app1=up), look(app1=up))
    assert all(sample.baseline is None for sample in evidence.look(history).samples.values())


def test_slower_is_told_by_what_the_baseline_did_just_before_and_follows_the_load() -> None:
    seen = [
        {"blue": instance(latency=(0, 0, 0, 0, 900)), "green": instance()},
        {"blue": instance(latency=(400, 40, 10, 0, 900)), "green": instance(latency=(0, 0, 5, 0, 0))},
        {"blue": instance(latency=(500, 400, 100, 0, 900)), "green": instance(latency=(0, 0, 50, 0, 0))},
        {"blue": instance(latency=(550, 440, 110, 0, 900)), "green": instance(latency=(10, 10, 60, 0, 0))},
        # Everything is slower now: what is above the old yardstick counts once, and a new one stands.
        {"blue": instance(latency=(550, 440, 8110, 1000, 900)), "green": instance(latency=(10, 10, 100, 0, 0))},
        {"blue": instance(latency=(550, 440, 8200, 1010, 900)), "green": instance(latency=(10, 10, 140, 20, 0))},
    ]
    history, evidence = Counters(("blue", "green")), StageEvidence("5%", 500, "blue", "green", 0.1)
    samples = []
    for instances in seen:
        one = look(app1=instances)
        history.add(one)
        evidence.add(one)
        samples.append(evidence.look(history).samples["slower"])
    assert [sample.canary for sample in samples] == [
        *[Tally(0, 0)] * 3, Tally(30, 10), Tally(70, 50), Tally(130, 70),
    ]  # fmt: skip
    assert [sample.baseline for sample in samples[3:]] == [Tally(100, 10), Tally(9100, 9010), Tally(9200, 9020)]


def test_the_judge_fails_a_canary_whose_requests_fail() -> None:
    plan, memory = standard_plan(), Memory()
    history, evidence = Counters(("blue", "green")), StageEvidence("5%", 500, "blue", "green", 0.1)
    outcome = ""
    for at in range(1, 40):
        one = look(
            {"blue": (950 * at, 0, 0), "green": (50 * at, 5 * at, 0)},
            app1={"blue": instance(accepted=950 * at), "green": instance(accepted=50 * at)},
        )
        history.add(one)
        evidence.add(one)
        verdict, memory = judge(plan, memory, evidence.look(history))
        outcome = verdict.outcome
        if outcome == FAIL:
            break
    assert outcome == FAIL
    assert evidence.numbers("green")["errors"] < 60
    assert evidence.share() == pytest.approx(0.05)
