"""What the screen says of rollouts, of what the load balancers' agents know, and of the releases on disk."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.module_utils.fleet_status import status, status_table

NOW = 1_769_860_980.0  # 2026-01-31T12:03:00Z
OLD, NEW = "1.3.2-77ab01c2ff", "1.4.0-3f2a9c01de"
STAGES = [{"name": "5%", "cut": 500, "min_seconds": 60, "deadline": 300}, {"name": "20%", "cut": 2000, "deadline": 300}]


def entry(at: str, event: str, **more: Any) -> dict[str, Any]:
    """A line of the journal."""
    return {"at": f"2026-01-31T{at}Z", "rollout": "r1", "token": 7, "by": "control", "event": event, **more}


def agent(**changes: Any) -> dict[str, Any]:
    """What an agent says in the middle of a rollout's stage of 20%."""
    told = {
        "ok": True,
        "at": NOW,
        "token": 7,
        "lock": {"owner": "desk@control", "token": 7, "rollout": "r1", "live": True, "left": 21.5, "expires_at": NOW + 21.5},
        "rollout": {
            "id": "r1",
            "from": {"release_id": OLD},
            "to": {"release_id": NEW},
            "stages": STAGES,
            "phase": "stage",
            "stage": "20%",
            "cut": 2000,
            "owner": "desk@control",
            "started_at": "2026-01-31T12:00:00.000Z",
            "updated_at": "2026-01-31T12:02:00.000Z",
        },
        "command": None,
        "bad": {},
        "journal": [
            entry("12:00:00.000", "start"),
            entry("12:02:00.000", "stage", stage="20%", cut=2000),
            entry("12:02:00.020", "traffic", phase="done", after={"stable": "blue", "canary": "green", "salt": NEW, "cut": 2000}),
        ],
    }
    return {**told, **changes}


def fleet(cut: int = 2000, agents: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A fleet of two load balancers and two app hosts, of which both slots serve."""
    traffic = {"stable": "blue", "canary": "green", "salt": NEW, "cut": cut}
    slots = {
        slot: {
            "release_id": release,
            "version": release.split("-")[0],
            "running": True,
            "ready": True,
            "status": {"release_id": release, "mode": "normal", "started_at": "2026-01-31T11:00:00Z"},
        }
        for slot, release in (("blue", OLD), ("green", NEW))
    }
    disk = [{"id": OLD, "created_at": "2026-01-01T00:00:00Z"}, {"id": NEW, "created_at": "2026-01-30T00:00:00Z"}]
    host = {"slots": slots, "previous": OLD, "releases": disk}
    balancer = {"haproxy": "running", "traffic": traffic, "running_differs": [], "servers": {}}
    return {
        "load_balancers": {"lb1": balancer, "lb2": balancer},
        "hosts": {"app1": host, "app2": host},
        "agents": {"lb1": agent(), "lb2": agent()} if agents is None else agents,
        **changes,
    }


def test_a_rollout_in_progress_is_told_with_its_stage_time_owner_and_lock() -> None:
    told = status(fleet())
    assert told["problems"] == []
    rollout = told["rollout"]
    assert (rollout["from"], rollout["to"], rollout["stage"], rollout["cut"]) == (OLD, NEW, "20%", 2000)
    assert (rollout["in_progress"], rollout["paused"], rollout["left"]) == (True, False, 240)
    assert json.loads(json.dumps(told)) == told
    lines = status_table(fleet()).splitlines()
    assert lines[2] == f"Rollout  {OLD} -> {NEW}: stage 20% of 5%, 20%, 4 min left"
    assert lines[3] == "         r1, desk@control, lock for 22 s more"


def test_another_run_that_has_the_lock_is_told_with_its_owner_and_what_it_holds() -> None:
    assert status(fleet())["held"] == []
    lock = {**agent()["lock"], "kind": "deploy", "rollout": "20260131T120000Z-deploy", "owner": "ann@desk", "left": 1680}
    held = agent(lock=lock)
    told = status(fleet(agents={"lb1": held, "lb2": held, "lb3": agent(lock={**lock, "live": False})}))
    assert told["held"] == ["deploy 20260131T120000Z-deploy of ann@desk holds lb1, lb2 for 28 min more"]
    assert f"Lock     {told['held'][0]}" in status_table(fleet(agents={"lb1": held, "lb2": held})).splitlines()


def test_a_paused_rollout_is_told_as_such_and_has_no_time_left() -> None:
    paused = agent(journal=[*agent()["journal"], entry("12:02:30.000", "pause", by="operator")], command={"action": "promote"})
    paused["rollout"] = {**paused["rollout"], "phase": "paused", "stage": None}
    told = status(fleet(agents={"lb1": paused, "lb2": paused}))["rollout"]
    assert (told["paused"], told["stage"], told["left"]) == (True, "20%", None)
    text = status_table(fleet(agents={"lb1": paused, "lb2": paused}))
    assert f"Rollout  {OLD} -> {NEW}: paused 20%" in text
    assert "asked to promote" in text


def test_a_rollout_that_nobody_looks_after_is_a_problem_that_says_what_to_do() -> None:
    left = agent(lock={**agent()["lock"], "live": False, "left": 0})
    told = status(fleet(agents={"lb1": left, "lb2": left}))
    assert told["problems"] == [
        "the rollout r1 is not looked after: its lock has expired; canary.yml resumes it, rollback.yml ends it"
    ]
    assert "lock expired" in status_table(fleet(agents={"lb1": left, "lb2": left}))


def test_a_rollout_that_is_over_is_told_in_one_line() -> None:
    over = agent(lock=None)
    over["rollout"] = {**over["rollout"], "phase": "end", "outcome": "rolled_back", "updated_at": "2026-01-31T12:05:00.000Z"}
    told = status(fleet(cut=0, agents={"lb1": over, "lb2": over}))
    assert told["rollout"]["in_progress"] is False
    assert told["problems"] == []
    text = status_table(fleet(cut=0, agents={"lb1": over, "lb2": over}))
    assert f"Last     {OLD} -> {NEW}: rolled back at 2026-01-31T12:05:00.000Z (r1)" in text
    assert "Rollout" not in text.splitlines()[2]


def test_a_load_balancer_that_was_away_does_not_hide_the_latest_rollout() -> None:
    stale = agent(token=3, lock=None)
    stale["rollout"] = {**stale["rollout"], "id": "r0", "phase": "end"}
    assert status(fleet(agents={"lb1": stale, "lb2": agent()}))["rollout"]["id"] == "r1"


def test_a_load_balancer_without_an_agent_is_told_as_such() -> None:
    told = status(fleet(cut=0, agents={"lb1": agent()}))
    assert "lb2: nothing is known of rollouts there, it has no agent yet (site.yml brings it)" in told["problems"]
    assert (told["load_balancers"]["lb1"]["agent"], told["load_balancers"]["lb2"]["agent"]) == ("ok", "none")
    rows = [line.split()[:3] for line in status_table(fleet(cut=0, agents={"lb1": agent()})).splitlines()]
    assert ["lb2", "running", "none"] in rows


def test_an_agent_that_fails_is_told_with_its_own_words() -> None:
    refuses = {"ok": False, "code": "failed", "error": "agent.json is no JSON"}
    told = status(fleet(cut=0, agents={"lb1": agent(), "lb2": refuses}))
    assert told["problems"] == ["lb2: its agent says: agent.json is no JSON"]
    assert told["load_balancers"]["lb2"]["agent"] == "agent.json is no JSON"


def test_a_load_balancer_that_is_down_cannot_be_asked() -> None:
    given = fleet(cut=0, agents={})
    given["load_balancers"] = {"lb1": {"unreachable": True}}
    assert "lb1: nothing is known of rollouts there, it cannot be asked" in status(given)["problems"]


def test_a_fleet_that_was_not_asked_for_its_agents_says_nothing_of_them() -> None:
    given = fleet(cut=0)
    del given["agents"]
    told = status(given)
    assert (told["problems"], told["rollout"], told["journal"]) == ([], None, [])
    assert "AGENT" not in status_table(given)


def test_releases_on_disk_are_told_with_what_is_previous_and_what_is_marked_bad() -> None:
    marked = agent(bad={NEW: {"why": "errors: 9 of 210 failed", "at": "2026-01-31T12:01:00Z", "rollout": "r1"}})
    given = fleet(agents={"lb1": marked, "lb2": agent()})
    told = status(given)
    assert told["hosts"]["app1"]["releases"] == [NEW, OLD]
    assert told["bad"][NEW]["why"] == "errors: 9 of 210 failed"
    assert f"app1: green gets traffic and runs {NEW}, which is marked bad" in told["problems"]
    lines = status_table(given).splitlines()
    assert f"Bad      {NEW}: errors: 9 of 210 failed" in lines
    assert f"app1, app2  {NEW} (bad), {OLD} (previous)" in lines


def test_the_journals_are_one_with_each_entry_once() -> None:
    """One entry on both load balancers, whose clocks differ by some milliseconds; and one that only one of them has."""
    later = [{**e, "at": e["at"].replace("00.0", "00.1")} for e in agent()["journal"]]
    watchdog = entry("12:02:50.000", "watchdog", by="watchdog", why="nobody looks after the canary")
    told = status(fleet(agents={"lb1": agent(), "lb2": agent(journal=[*later, watchdog])}))
    assert [(e["event"], e["on"]) for e in told["journal"]] == [
        ("start", ["lb1", "lb2"]),
        ("stage", ["lb1", "lb2"]),
        ("traffic", ["lb1", "lb2"]),
        ("watchdog", ["lb2"]),
    ]
    text = status_table(fleet(agents={"lb1": agent(), "lb2": agent(journal=[*later, watchdog])}))
    assert "2026-01-31 12:02:50  r1       watchdog  watchdog nobody looks after the canary" in text
    assert "traffic done 20% of accounts on green" in text


@pytest.mark.parametrize("value", [None, 7, "x", [], {}, [None], {"a": []}])
@pytest.mark.parametrize("place", ["lock", "rollout", "command", "bad", "journal", "at", "token"])
def test_an_agent_may_say_anything_anywhere(place: str, value: Any) -> None:
    given = fleet(agents={"lb1": agent(**{place: value}), "lb2": agent(rollout={**agent()["rollout"], "stages": value})})
    json.dumps(status(given))
    status_table(given)


def test_what_a_journal_says_cannot_move_the_terminals_cursor() -> None:
    nasty = agent(journal=[entry("12:00:00.000", "command", why="\x1b[2J\x9b2J\u202eevil\nsecond line")])
    text = status_table(fleet(agents={"lb1": nasty, "lb2": nasty}))
    assert not set("\x1b\x9b\u202e") & set(text)
    assert any("evil second line" in line for line in text.splitlines())


def test_what_does_not_answer_is_named_and_not_shown_as_empty() -> None:
    gone = {"unreachable": True, "changed": False, "msg": "ssh: connect to host 10.0.0.1 port 22: No route to host"}
    known = fleet(cut=0)
    known["hosts"]["app2"] = known["load_balancers"]["lb2"] = gone
    told = status(known)
    assert {"app2 does not answer", "lb2 does not answer"} <= set(told["problems"])
    assert [problem for problem in told["problems"] if problem.startswith(("app2: ", "lb2: HAProxy"))] == []
    assert (told["hosts"]["app1"]["answers"], told["hosts"]["app2"]["answers"]) == (True, False)
    row = next(line for line in status_table(known).splitlines() if line.startswith("app2 ") and "answer" in line)
    assert row.split() == ["app2", "-", "-", "no", "answer", "-", "-"]
