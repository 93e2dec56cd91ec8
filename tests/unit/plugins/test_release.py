"""What a release is, what a fleet serves, and what a deploy has to do."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible.module_utils.fleet_status import status, status_table
from ansible.module_utils.release import (
    ReleaseError,
    attest,
    plan,
    release_id,
    release_json,
    served,
)
from plugin_testing import PLUGINS, load

IMAGE, OTHER_IMAGE, MANIFEST = (f"sha256:{digit * 64}" for digit in "abc")
CONFIG, OTHER_CONFIG = "1" * 64, "2" * 64
OLD = release_json({"version": "1.0.0", "image": IMAGE, "config_sha256": CONFIG})
NEW = release_json({"version": "1.1.0", "image": OTHER_IMAGE, "config_sha256": CONFIG})
NEW_CONFIG = release_json({"version": "1.0.0", "image": IMAGE, "config_sha256": OTHER_CONFIG})


def running(release: dict[str, Any], slot: str) -> dict[str, Any]:
    """The state of a slot that runs this release."""
    return {
        "slot": slot,
        "release_id": release["id"],
        "version": release["version"],
        "release": release,
        "config_sha256": release["config_sha256"],
        "image": release["image"],
        "unit": {"active": "active", "restarts": 0},
        "running": True,
        "live": True,
        "ready": True,
        "ready_reason": "",
        "status": {
            "version": release["version"],
            "release_id": release["id"],
            "slot": slot,
            "image": release["image"],
            "config_hash": release["config_sha256"],
            "mode": "normal",
            "started_at": "2026-01-31T12:00:00Z",
        },
        "reasons": [],
    }


def stopped(release: dict[str, Any], slot: str) -> dict[str, Any]:
    """The state of a slot that has this release on disk and runs nothing."""
    return {**running(release, slot), "running": False, "live": False, "ready": False, "ready_reason": "off", "status": None}


EMPTY: dict[str, Any] = {"release_id": None, "running": False, "ready": False, "ready_reason": "no answer", "status": None}


def balancer(stable: str = "blue", cut: int = 0, **more: Any) -> dict[str, Any]:
    canary = "green" if stable == "blue" else "blue"
    return {"haproxy": "running", "traffic": {"stable": stable, "canary": canary, "salt": "none", "cut": cut}, **more}


def host(blue: dict[str, Any] = EMPTY, green: dict[str, Any] = EMPTY) -> dict[str, Any]:
    return {"slots": {"blue": blue, "green": green}, "previous": None}


def fleet(target: dict[str, Any] | None, hosts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "load_balancers": {"lb1": balancer()},
        "hosts": hosts,
        "target": target,
        "requested_version": None,
        "limited": False,
        **more,
    }


def serving(release: dict[str, Any], count: int = 2) -> dict[str, Any]:
    return {f"app{n}": host(blue=running(release, "blue")) for n in range(1, count + 1)}


# --- the release ---


def test_the_id_is_the_version_and_ten_digits_of_image_and_config() -> None:
    expected = hashlib.sha256(f"{IMAGE}:{CONFIG}".encode()).hexdigest()[:10]
    assert release_id(IMAGE, "1.0.0", CONFIG) == OLD["id"] == f"1.0.0-{expected}"


def test_another_config_is_another_release_of_the_same_version() -> None:
    assert NEW_CONFIG["id"] != OLD["id"]
    assert NEW_CONFIG["version"] == OLD["version"]


def test_release_json_survives_its_own_parser() -> None:
    full = release_json({**OLD, "image_manifest": MANIFEST, "wheel_sha256": "3" * 64, "created_at": "2026-01-31T12:00:00Z"})
    assert release_json(json.loads(json.dumps(full))) == full


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": None}, "lacks version"),
        ({"image": "trading-bot:latest"}, "has image 'trading-bot:latest', expected sha256: and 64 hex digits"),
        ({"config_sha256": "xyz"}, "has config_sha256 'xyz', expected 64 hex digits"),
        ({"version": "../etc"}, "expected a version such as 1.4.0"),
        ({"created_at": "yesterday"}, "expected a time such as"),
        ({"colour": "red"}, "has unknown colour"),
        ({"id": "1.0.0-0000000000"}, "has id '1.0.0-0000000000', but its contents are 1.0.0-"),
    ],
)
def test_a_malformed_release_is_refused_with_field_found_and_expected(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ReleaseError, match=says.replace(".", r"\.")):
        release_json({**OLD, **change})


def test_check_mode_can_plan_for_a_release_that_is_not_built_yet() -> None:
    unbuilt = release_json({"version": "1.1.0", "image": None, "config_sha256": CONFIG}, unbuilt=True)
    assert (unbuilt["id"], unbuilt["image"]) == ("1.1.0-unbuilt", None)
    decided = plan(fleet(unbuilt, serving(OLD), requested_version="1.1.0"))
    assert (decided["action"], decided["error"], decided["prepare"]) == ("switch", None, ["app1", "app2"])
    assert release_json(OLD, unbuilt=True) == OLD
    with pytest.raises(ReleaseError, match="lacks image"):
        release_json({"version": "1.1.0", "image": None, "config_sha256": CONFIG})


# --- what is served ---


def test_a_new_fleet_serves_nothing() -> None:
    assert served(fleet(None, {"app1": host()})) is None


def test_the_fleet_serves_what_is_ready_in_the_stable_slot() -> None:
    hosts = {"app1": host(blue=running(OLD, "blue"), green=running(NEW, "green")), "app2": host()}
    told = served(fleet(None, hosts))
    assert told is not None
    assert (told["release_id"], told["version"], told["slot"], told["hosts"]) == (OLD["id"], "1.0.0", "blue", ["app1"])
    assert told["release"] == OLD


def test_a_fleet_that_is_down_serves_what_is_on_disk() -> None:
    told = served(fleet(None, {"app1": host(blue=stopped(OLD, "blue"))}))
    assert told is not None
    assert (told["release_id"], told["ready"]) == (OLD["id"], False)


def test_what_a_returning_host_still_runs_out_of_rotation_does_not_count() -> None:
    up = {"up": True, "admin": "ready"}
    balancers = {"lb1": balancer(servers={"blue": {"app1": up, "app3": {"up": True, "admin": "drain"}}})}
    hosts = {**serving(NEW, 1), "app3": host(blue=running(OLD, "blue"))}
    told = served(fleet(None, hosts, load_balancers=balancers))
    assert told is not None
    assert told["release_id"] == NEW["id"]
    decided = plan(fleet(NEW, hosts, load_balancers=balancers, limited=True, limit=["app3"]))
    assert (decided["action"], decided["prepare"]) == ("start", ["app3"])


def test_hosts_that_serve_different_releases_are_named() -> None:
    hosts = {"app1": host(blue=running(OLD, "blue")), "app2": host(blue=running(NEW, "blue"))}
    with pytest.raises(ReleaseError, match=f"app1: {OLD['id']}, app2: {NEW['id']}"):
        served(fleet(None, hosts))


# --- the plan ---


def test_nothing_to_do_when_all_hosts_run_the_target_in_the_stable_slot() -> None:
    decided = plan(fleet(OLD, serving(OLD)))
    assert (decided["action"], decided["slot"], decided["prepare"], decided["error"]) == ("none", "blue", [], None)


def test_a_new_fleet_starts_in_the_stable_slot() -> None:
    decided = plan(fleet(OLD, {"app1": host(), "app2": host()}, requested_version="1.0.0"))
    assert (decided["action"], decided["slot"], decided["old_slot"]) == ("first", "blue", None)
    assert decided["prepare"] == ["app1", "app2"]


def test_a_new_version_goes_to_the_idle_slot_of_all() -> None:
    decided = plan(fleet(NEW, serving(OLD), requested_version="1.1.0"))
    assert (decided["action"], decided["slot"], decided["old_slot"]) == ("switch", "green", "blue")
    assert decided["prepare"] == ["app1", "app2"]
    assert (decided["served"]["release_id"], decided["served"]["ready"]) == (OLD["id"], True)


def test_a_changed_config_goes_to_the_idle_slot_too() -> None:
    decided = plan(fleet(NEW_CONFIG, serving(OLD)))
    assert (decided["action"], decided["slot"]) == ("switch", "green")


def test_a_slot_that_runs_the_target_already_is_reused() -> None:
    hosts = serving(OLD)
    hosts["app1"]["slots"]["green"] = running(NEW, "green")
    decided = plan(fleet(NEW, hosts, requested_version="1.1.0"))
    assert decided["prepare"] == ["app2"]
    assert "green runs it already on app1" in decided["reasons"]


def test_a_slot_whose_link_changed_under_the_instance_is_not_reused() -> None:
    hosts = serving(OLD, 1)
    hosts["app1"]["slots"]["green"] = {**running(NEW, "green"), "status": running(OLD, "green")["status"]}
    assert plan(fleet(NEW, hosts))["prepare"] == ["app1"]


def test_a_host_that_lacks_what_is_served_gets_it_in_the_same_slot() -> None:
    decided = plan(fleet(OLD, {**serving(OLD), "app3": host()}))
    assert (decided["action"], decided["slot"], decided["prepare"]) == ("start", "blue", ["app3"])


def test_a_new_host_alone_may_get_what_is_served() -> None:
    hosts = {**serving(OLD), "app3": host(), "app4": host()}
    decided = plan(fleet(OLD, hosts, limited=True, limit=["app3"]))
    assert (decided["action"], decided["slot"], decided["prepare"]) == ("start", "blue", ["app3"])


def test_another_version_for_a_part_of_the_fleet_is_refused() -> None:
    decided = plan(fleet(NEW, {**serving(OLD), "app3": host()}, limited=True, limit=["app3"], requested_version="1.1.0"))
    assert decided["action"] is None
    assert decided["error"].startswith(f"the fleet serves {OLD['id']}, and {NEW['id']} would go to app3 only")


def test_the_first_release_for_a_part_of_the_fleet_is_refused() -> None:
    decided = plan(fleet(OLD, {"app1": host(), "app2": host()}, limited=True, limit=["app1"]))
    assert "the fleet serves nothing yet" in decided["error"]


def test_a_version_for_all_puts_an_end_to_a_disagreement_of_hosts() -> None:
    hosts = {"app1": host(blue=running(OLD, "blue")), "app2": host(blue=running(NEW_CONFIG, "blue"))}
    assert "serve different releases" in plan(fleet(NEW, hosts))["error"]
    decided = plan(fleet(NEW, hosts, requested_version="1.1.0"))
    assert (decided["action"], decided["prepare"]) == ("switch", ["app1", "app2"])
    assert decided["served"]["release_id"] in (OLD["id"], NEW_CONFIG["id"])
    assert "serve different releases" in plan(fleet(NEW, hosts, requested_version="1.1.0", limited=True, limit=["app1"]))["error"]


def test_hosts_that_differ_get_the_version_in_the_idle_slot_even_if_some_serve_it_already() -> None:
    hosts = {"app1": host(blue=running(OLD, "blue")), "app2": host(blue=running(NEW, "blue"))}
    assert plan(fleet(NEW, hosts, requested_version="1.1.0"))["action"] == "switch"


def test_an_old_release_that_still_runs_beside_is_told() -> None:
    hosts = {"app1": host(blue=running(OLD, "blue"), green=running(NEW, "green"))}
    assert plan(fleet(OLD, hosts))["idle_active"] == ["app1"]


def test_a_rollout_in_progress_is_left_alone() -> None:
    decided = plan(fleet(NEW, serving(OLD), load_balancers={"lb1": balancer(cut=500)}))
    assert "a rollout is in progress: stable blue, canary green 5%" in decided["error"]


def test_load_balancers_that_disagree_are_named_with_what_they_do() -> None:
    balancers = {"lb1": balancer(), "lb2": balancer("green")}
    error = plan(fleet(NEW, serving(OLD), load_balancers=balancers))["error"]
    assert "lb1: stable blue" in error
    assert "lb2: stable green" in error


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hosts": {}}, "the group app has no hosts"),
        ({"limited": True, "limit": ["lb1"]}, "none is in the group app"),
        ({"load_balancers": {}}, "has no load balancer"),
        ({"load_balancers": {"lb1": None}}, "lb1 has no traffic maps yet"),
        ({"load_balancers": {"lb1": {"traffic": None}}}, "lb1 has no traffic maps yet"),
        ({"target": None}, "the release to deploy is not known"),
        ({"requested_version": "9.9.9"}, "version 9.9.9 was asked for, but what was built is 1.1.0"),
        (
            {"load_balancers": {"lb1": balancer(running_differs=[{"key": "canary", "disk": "0", "running": "700"}])}},
            "lb1 runs with other maps than its files say \\(canary 700 instead of 0\\)",
        ),
    ],
)
def test_what_stands_in_the_way_is_one_sentence(change: dict[str, Any], says: str) -> None:
    decided = plan({**fleet(NEW, serving(OLD)), **change})
    assert decided["action"] is None
    with pytest.raises(ReleaseError, match=says):
        raise ReleaseError(decided["error"])


# --- attest ---


def test_hosts_that_run_the_release_attest_without_difference() -> None:
    states = {name: running(NEW, "green") for name in ("app1", "app2")}
    assert attest(states, {**NEW, "slot": "green"}) == []


def test_an_engine_may_know_the_image_by_its_manifest() -> None:
    known = release_json({**{k: v for k, v in NEW.items() if k != "id"}, "image_manifest": MANIFEST})
    states = {"app1": {**running(known, "green"), "image": MANIFEST}}
    assert attest(states, known) == []


@pytest.mark.parametrize("prefix", ["", "sha256:"])
def test_a_host_without_an_engine_runs_the_wheel(prefix: str) -> None:
    known = release_json({**{k: v for k, v in NEW.items() if k != "id"}, "wheel_sha256": "3" * 64})
    state = {**running(known, "green"), "image": f"sha256:{'3' * 64}"}
    state["status"] = {**state["status"], "image": f"{prefix}{'3' * 64}"}
    assert attest({"app1": state}, known) == []


@pytest.mark.parametrize(
    ("change", "what", "found"),
    [
        ({"release_id": OLD["id"]}, "release on disk", OLD["id"]),
        ({"config_sha256": OTHER_CONFIG}, "config on disk", OTHER_CONFIG),
        ({"image": IMAGE}, "image", IMAGE),
        ({"image": None}, "image", None),
        ({"running": False}, "running", False),
        ({"ready": False, "ready_reason": "503: redis is away"}, "ready", "503: redis is away"),
        ({"ready": False, "ready_reason": ""}, "ready", False),
    ],
)
def test_each_difference_names_host_what_expected_and_found(change: dict[str, Any], what: str, found: object) -> None:
    differences = attest({"app1": running(NEW, "green"), "app2": {**running(NEW, "green"), **change}}, NEW)
    assert [(d["host"], d["what"], d["found"]) for d in differences] == [("app2", what, found)]


def test_what_the_instance_says_of_itself_is_attested() -> None:
    state = running(NEW, "green")
    state["status"] = running(OLD, "blue")["status"]
    differences = attest({"app1": state}, {**NEW, "slot": "green"})
    assert {d["what"] for d in differences} == {"live version", "live release", "live image", "live slot"}


def test_an_instance_that_says_nothing_attests_nothing() -> None:
    differences = attest({"app1": EMPTY}, NEW)
    assert {d["what"] for d in differences} >= {"release on disk", "running", "ready", "live version", "image"}


def test_no_host_attests_nothing() -> None:
    assert attest({}, NEW) == [{"host": None, "what": "hosts", "expected": "at least one", "found": "none"}]


# --- the screen ---


def test_the_status_is_json_and_names_the_problems() -> None:
    servers = {"blue": {"app1": {"up": True, "admin": "ready"}, "app2": {"up": False, "admin": "ready"}}, "green": {}}
    hosts = {"app1": host(blue=running(OLD, "blue")), "app2": host(blue=stopped(OLD, "blue"))}
    balancers = {"lb1": balancer(servers=servers), "lb2": {**balancer(), "haproxy": "stopped"}}
    told = status(fleet(None, hosts, load_balancers=balancers))
    assert json.loads(json.dumps(told)) == told
    assert told["problems"] == ["app2: blue gets traffic and is not ready: off", "lb2: HAProxy does not run"]


def test_the_screen_shows_who_serves_what_to_whom() -> None:
    servers = {"blue": {"app1": {"up": True, "admin": "ready"}, "app2": {"up": True, "admin": "drain"}}}
    told = fleet(None, {"app1": host(blue=running(OLD, "blue"))}, load_balancers={"lb1": balancer(servers=servers)})
    lines = status_table(told).splitlines()
    assert lines[0] == f"Serving  {OLD['id']} in blue"
    assert lines[1] == "Traffic  all accounts on blue"
    assert "blue 1/2" in lines[4]
    assert lines[7].split() == ["app1", "blue", OLD["id"], "ready", "0", "2026-01-31T12:00:00Z"]
    assert len(lines) == 8


def test_the_screen_of_a_fleet_that_has_nothing_yet() -> None:
    text = status_table({"load_balancers": {"lb1": None}, "hosts": {"app1": None}})
    assert text.startswith("Serving  nothing\n")
    assert "app1  green  -        empty" in text
    assert "lb1 has no traffic maps yet" in text


@pytest.mark.parametrize(
    ("cut", "says"),
    [
        (500, "Traffic  5% of accounts on green (canary none), the others on blue"),
        (10000, "Traffic  100% of accounts on green (canary none)"),
    ],
)
def test_the_screen_shows_a_rollouts_shares(cut: int, says: str) -> None:
    told = fleet(None, {"app1": host(blue=running(OLD, "blue"))}, load_balancers={"lb1": balancer(cut=cut)})
    assert says in status_table(told).splitlines()


def test_both_slots_of_a_rollout_must_be_ready() -> None:
    hosts = {"app1": host(blue=running(OLD, "blue"), green={**running(NEW, "green"), "ready": False, "ready_reason": "r"})}
    told = status(fleet(None, hosts, load_balancers={"lb1": balancer(cut=500)}))
    assert told["problems"] == ["app1: green gets traffic and is not ready: r"]
    assert "not ready" in status_table(fleet(None, hosts, load_balancers={"lb1": balancer(cut=500)}))


def test_at_one_hundred_percent_the_stable_slot_need_not_be_ready() -> None:
    hosts = {"app1": host(blue=stopped(OLD, "blue"), green=running(NEW, "green"))}
    assert status(fleet(None, hosts, load_balancers={"lb1": balancer(cut=10000)}))["problems"] == []


# --- the filters ---


def test_the_filters_give_the_same_answers() -> None:
    filters = load(PLUGINS / "filter" / "release.py").FilterModule().filters()
    told = fleet(NEW, serving(OLD))
    assert filters["release_plan"](told) == plan(told)
    assert filters["release_id"](IMAGE, "1.0.0", CONFIG) == OLD["id"]
    assert filters["release_attest"]({"app1": running(NEW, "green")}, NEW, slot="green") == []
    assert filters["release_attest"]({"app1": running(NEW, "green")}, NEW, slot="blue")[0]["what"] == "live slot"
    assert filters["release_attest"]({"app1": running(NEW, "green")}, NEW) == []
    with pytest.raises(AnsibleFilterError, match="lacks version"):
        filters["release_json"]({})


def test_a_plan_changes_nothing_that_it_was_given() -> None:
    given = fleet(NEW, serving(OLD))
    before = copy.deepcopy(given)
    plan(given)
    assert given == before
