"""What a staged rollout has to do on a fleet as it is, and where the way back leads."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.release import ReleaseError, release_json
from ansible.module_utils.rollout import RolloutError, stages_of
from ansible.module_utils.rollout_plan import canary_plan, expected_differences, rollback_plan, tell_plan

OLD, NEW, THIRD = (
    release_json({"version": version, "image": f"sha256:{digit * 64}", "config_sha256": digit * 64})
    for version, digit in (("1.0.0", "a"), ("1.1.0", "b"), ("0.9.0", "c"))
)
STAGES = [vars(stage) for stage in stages_of([5, 20, 50, 100], 60, 600)]


def slot(release: dict[str, Any] | None, *, runs: bool = True) -> dict[str, Any]:
    if release is None:
        return {"release_id": None, "running": False, "ready": False}
    live = {"release_id": release["id"]} if runs else None
    return {"release_id": release["id"], "release": release, "running": runs, "ready": runs, "status": live}


def fleet(
    blue: dict[str, Any] | None = OLD,
    green: dict[str, Any] | None = None,
    *,
    green_runs: bool = True,
    cut: int = 0,
    stable: str = "blue",
    salt: str = "none",
    previous: str | None = None,
    bad: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    canary = "green" if cut else stable
    balancer = {"traffic": {"stable": stable, "canary": canary, "salt": salt, "cut": cut}, "running_differs": [], "servers": {}}
    host = {
        "slots": {"blue": slot(blue), "green": slot(green, runs=green_runs)},
        "previous": previous,
        "releases": [OLD, NEW, THIRD],
    }
    return {
        "load_balancers": {"lb1": balancer, "lb2": balancer},
        "hosts": {"app1": host, "app2": host},
        "agents": {"lb1": {"bad": bad or {}}, "lb2": {"bad": {}}},
        "target": NEW,
        "requested_version": "1.1.0",
        "limited": False,
        **more,
    }


def test_a_rollout_goes_to_the_idle_slot_in_all_stages() -> None:
    plan = canary_plan(fleet(), STAGES)
    assert (plan["error"], plan["walk"], plan["slot"], plan["prepare"]) == (None, "all", "green", ["app1", "app2"])
    assert [stage["name"] for stage in plan["stages"]] == ["5%", "20%", "50%", "100%"]


def test_a_rollout_that_was_cut_off_goes_on_at_the_stage_that_the_load_balancers_have() -> None:
    plan = canary_plan(fleet(green=NEW, cut=2000, salt=NEW["id"]), STAGES)
    assert (plan["error"], plan["walk"], plan["resumed"], plan["prepare"]) == (None, "all", 2000, [])
    assert [stage["name"] for stage in plan["stages"]] == ["20%", "50%", "100%"]


def test_another_rollout_in_progress_is_named() -> None:
    assert THIRD["id"] in str(canary_plan(fleet(green=THIRD, cut=500, salt=THIRD["id"]), STAGES)["error"])


def test_in_the_middle_of_somebodys_change_he_is_named() -> None:
    between = fleet(green=NEW, cut=500, salt=NEW["id"])
    between["load_balancers"]["lb2"] = fleet()["load_balancers"]["lb2"]
    assert "disagree" in canary_plan(between, STAGES)["error"]
    between["agents"]["lb1"]["lock"] = {"live": True, "kind": "canary", "rollout": "r1", "owner": "ann@desk pid 1"}
    assert canary_plan(between, STAGES)["error"] == "the canary r1 of ann@desk pid 1 holds lb1"


def test_a_rollout_that_was_cut_off_after_its_last_stage_keeps_the_old_release_warm() -> None:
    plan = canary_plan(fleet(green=NEW, stable="green", salt=NEW["id"]), STAGES)
    assert (plan["error"], plan["walk"], plan["idle_active"]) == (None, "warm", ["app1", "app2"])


def test_where_a_rollout_came_from_is_known_also_to_the_run_that_goes_on_after_its_last_stage() -> None:
    old = {"release_id": OLD["id"], "version": OLD["version"], "slot": "blue"}
    assert {key: canary_plan(fleet(), STAGES)["before"][key] for key in old} == old
    warm = fleet(green=NEW, stable="green", salt=NEW["id"], previous=THIRD["id"])
    warm["agents"]["lb2"]["rollout"] = {"from": old, "to": {"release_id": NEW["id"]}}
    assert canary_plan(warm, STAGES)["before"] == old


def test_a_rollout_from_a_release_to_itself_is_no_way_back() -> None:
    ended = fleet(green=NEW, stable="green", previous=OLD["id"])
    ended["agents"]["lb1"]["rollout"] = {"from": {"release_id": NEW["id"]}, "to": {"release_id": NEW["id"]}}
    assert rollback_plan(ended)["to"]["release_id"] == OLD["id"]


def test_there_is_nothing_to_roll_out_where_the_target_serves() -> None:
    assert canary_plan(fleet(blue=None, green=NEW, stable="green"), STAGES)["walk"] == "none"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"limited": True}, "without -l"),
        ({"blue": None}, "deploy.yml"),
        ({"bad": {NEW["id"]: {"why": "errors", "at": "yesterday"}}}, "marked bad since yesterday: errors"),
        ({"load_balancers": {}}, "no load balancer"),
    ],
)
def test_what_stands_in_the_way_of_a_rollout_is_said(given: dict[str, Any], words: str) -> None:
    plan = canary_plan({**fleet(), **fleet(**given)} if "load_balancers" not in given else {**fleet(), **given}, STAGES)
    assert words in plan["error"]
    assert plan["walk"] == "none"


def test_a_release_that_is_marked_bad_is_rolled_out_with_a_reason() -> None:
    marked = {NEW["id"]: {"why": "errors", "at": "yesterday"}}
    assert canary_plan(fleet(bad=marked, force_reason="the venue was down"), STAGES)["error"] is None


def test_the_plan_tells_the_accounts_of_each_stage() -> None:
    settings = {
        "hosts": ["app1", "app2"],
        "load_balancers": ["lb1"],
        "accounts": 1000,
        "shadow_orders": 300,
        "warm_seconds": 600,
        "on_insufficient": "rollback",
    }
    text = tell_plan(canary_plan(fleet(), STAGES), settings)
    assert OLD["id"] in text
    assert NEW["id"] in text
    assert "about 50 of 1,000 accounts" in text
    assert "about 1,000 of 1,000 accounts" in text
    assert "nothing to do" in tell_plan(canary_plan(fleet(blue=None, green=NEW, stable="green"), STAGES), settings)


@pytest.mark.parametrize("cuts", [[], [5, 20], [20, 5, 100], [5, 5, 100], [0, 100], [5, 120]])
def test_stages_that_do_not_grow_to_all_accounts_are_refused(cuts: list[float]) -> None:
    with pytest.raises(RolloutError, match="canary_stages"):
        stages_of(cuts, 60, 600)


def test_in_a_rollout_the_way_back_is_the_stable_release() -> None:
    back = rollback_plan(fleet(green=NEW, cut=500, salt=NEW["id"]))
    assert (back["error"], back["action"]) == (None, "cut")
    assert (back["to"]["release_id"], back["to"]["slot"]) == (OLD["id"], "blue")
    assert (back["bad"]["release_id"], back["bad"]["slot"]) == (NEW["id"], "green")


def agent(rollout_from: dict[str, Any], rollout_to: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What an agent says of the last rollout."""
    return {"bad": {}, "rollout": {"from": {"release_id": rollout_from["id"]}, "to": {"release_id": rollout_to["id"]}}, **more}


@pytest.mark.parametrize("more", [{"traffic": {"shadow": "green"}}, {"lock": {"live": True, "kind": "canary"}}])
def test_a_release_on_trial_without_an_account_is_taken_back_and_nothing_else_is_touched(more: dict[str, Any]) -> None:
    trial = fleet(green=NEW, previous=THIRD["id"])
    trial["agents"] = {"lb1": agent(OLD, NEW, **more)}
    back = rollback_plan(trial)
    assert (back["action"], back["to"]["release_id"], back["bad"]["release_id"]) == ("cut", OLD["id"], NEW["id"])


def test_what_a_rollout_that_was_cut_off_left_running_is_no_way_back() -> None:
    left = fleet(green=NEW, previous=THIRD["id"])
    left["agents"] = {"lb1": agent(OLD, NEW)}
    assert rollback_plan(left)["to"]["release_id"] == THIRD["id"]


def test_a_release_that_is_kept_warm_is_the_way_back_and_needs_no_start() -> None:
    warm = fleet(green=NEW, stable="green", previous=THIRD["id"])
    warm["agents"] = {"lb1": agent(OLD, NEW, lock={"live": True, "kind": "canary"})}
    back = rollback_plan(warm)
    assert (back["action"], back["to"]["release_id"], back["running"], back["start"]) == (
        "switch",
        OLD["id"],
        ["app1", "app2"],
        [],
    )


def test_later_the_way_back_is_what_the_hosts_remember_and_it_is_started_first() -> None:
    back = rollback_plan(fleet(green=OLD, green_runs=False, previous=THIRD["id"]))
    assert (back["to"]["release_id"], back["to"]["slot"], back["start"]) == (THIRD["id"], "green", ["app1", "app2"])


def test_a_named_release_must_be_on_disk() -> None:
    back = rollback_plan({**fleet(), "release_to": "0.1.0-ffffffffff"})
    assert "0.1.0-ffffffffff is on no host's disk" in back["error"]
    assert THIRD["id"] in back["error"]
    assert rollback_plan({**fleet(), "release_to": THIRD["id"]})["to"]["release_id"] == THIRD["id"]


def test_a_canarys_leftovers_are_never_started_again() -> None:
    marked = {NEW["id"]: {"why": "errors", "at": "yesterday"}}
    back = rollback_plan(fleet(green=NEW, previous=THIRD["id"], bad=marked))
    assert back["to"]["release_id"] == THIRD["id"]


def test_a_release_that_is_marked_bad_is_gone_back_to_with_a_reason_only() -> None:
    marked = {THIRD["id"]: {"why": "errors", "at": "yesterday"}}
    assert "marked bad" in rollback_plan(fleet(previous=THIRD["id"], bad=marked))["error"]
    assert rollback_plan(fleet(previous=THIRD["id"], bad=marked, force_reason="it was the venue"))["action"] == "switch"


def test_going_back_works_with_a_load_balancer_and_a_host_that_do_not_answer() -> None:
    half = fleet(green=NEW, cut=500, salt=NEW["id"])
    half["load_balancers"]["lb2"] = {"unreachable": True}
    half["hosts"]["app2"] = {"unreachable": True}
    assert rollback_plan(half)["action"] == "cut"


@pytest.mark.parametrize(
    ("given", "words"),
    [({"load_balancers": {}}, "no load balancer"), ({"hosts": {}}, "no app host"), ({}, "no release before")],
)
def test_where_there_is_no_way_back_it_is_said(given: dict[str, Any], words: str) -> None:
    assert words in rollback_plan({**fleet(), **given})["error"]


def test_notes_without_a_reason_for_a_difference_are_refused() -> None:
    good = {"expected_differences": [{"type": "stop", "canary": "refused by tick_size", "why": "stops are checked, too"}]}
    assert expected_differences(good, "notes/1.1.0.yml") == good["expected_differences"]
    assert expected_differences(None, "notes/1.1.0.yml") == []
    for wrong in ([{"type": "stop"}], [{"why": "x"}], [{"why": "x", "sdie": "buy", "type": "stop"}], ["stop"], "stop"):
        with pytest.raises(ReleaseError, match=r"notes/1\.1\.0\.yml: expected_differences, entry 1"):
            expected_differences({"expected_differences": wrong}, "notes/1.1.0.yml")
    with pytest.raises(ReleaseError, match="expected a mapping"):
        expected_differences(["x"], "notes/1.1.0.yml")
