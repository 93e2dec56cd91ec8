"""The walk of a rollout: its decisions, over a real load balancer's agent and NATS, with instances that count as told."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.haproxy import RuntimeSocket
from ansible.module_utils.judge import FAIL, INSUFFICIENT, PASS
from ansible.module_utils.rollout import (
    ABORT,
    AgentError,
    Locked,
    Rollout,
    RolloutError,
    Stage,
    TakenOver,
    compared,
    tell_difference,
)
from ansible.module_utils.run_owner import owner
from plugin_testing import Haproxy, Nats
from test_agent import Balancer, bucket_says

OLD, NEW = "1.0.0-aaaaaaaaaa", "1.1.0-bbbbbbbbbb"
BOUNDS = (0.001, 0.002, 0.004, 0.1)
STAGE = Stage("5%", 500, 10, 300)


class Instance:
    """One slot's instance: it answers what an instance answers, and counts what the test has it count."""

    def __init__(self, slot: str, release: str) -> None:
        self.slot, self.release = slot, release
        self.orders = {"accepted": 0, "refused": 0, "error": 0}
        self.latency = [0, 0, 0, 0, 0]
        self.stops = dict.fromkeys(
            ("duplicated_executions_total", "fenced_writes_total", "ledger_differences", "risk_limit_passed_total"), 0
        )
        self.trial: dict[str, Any] = {"compared": 0, "skipped": {}, "differences": []}
        instance = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(instance.trial) if self.path == "/api/shadow" else instance.metrics()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: Any) -> None:
                """Nobody reads it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"

    def serve(self, accepted: int, *, error: int = 0, slow: int = 0) -> None:
        """So many orders more."""
        self.orders["accepted"] += accepted - error
        self.orders["error"] += error
        self.latency[0] += accepted - slow
        self.latency[4] += slow

    def metrics(self) -> str:
        lines = [f'trading_build_info{{release_id="{self.release}",slot="{self.slot}"}} 1', "process_start_time_seconds 1"]
        lines += [f'trading_orders_total{{path="nats",outcome="{name}"}} {count}' for name, count in self.orders.items()]
        total = 0
        for bound, count in zip([*BOUNDS, "+Inf"], self.latency, strict=True):
            total += count
            lines.append(f'trading_order_duration_seconds_bucket{{path="nats",le="{bound}"}} {total}')
        lines += [f"trading_{name} {count}" for name, count in self.stops.items()]
        return "\n".join(lines) + "\n"


class Fleet:
    """A load balancer with its agent and one host with both slots; the time that the walk sleeps passes at once."""

    def __init__(self, balancer: Balancer, directory: Path) -> None:
        self.balancer = balancer
        balancer.config["status_token"] = "secret"
        self.names: Sequence[str] = ["lb1"]
        self.directory = directory
        self.blue, self.green = Instance("blue", OLD), Instance("green", NEW)
        self.said: list[str] = []
        #: What happens at each look, given how many there were.
        self.each: Callable[[int], object] = self.serves_orders()
        self.looks = 0
        self.playbook_runs = True
        self.spec: dict[str, Any] = {
            "id": "r1",
            "owner": "ann@desk pid 1",
            "started_at": "now",
            "from": {"release_id": OLD, "version": "1.0.0", "slot": "blue"},
            "to": {"release_id": NEW, "version": "1.1.0", "slot": "green"},
            "stages": [vars(STAGE)],
            "hosts": ["app1"],
            "load_balancers": ["lb1"],
            "instances": {"app1": {"blue": self.blue.address, "green": self.green.address}},
            "accounts": 1000,
            "thresholds": {"errors": 0.01, "latency": 0.1, "slow": 0.05},
            "interval": 1,
            "on_insufficient": "rollback",
            "lock_ttl": 15,
            "warm_seconds": 20,
            "probe_accounts": 0,
            "shadow": {"orders": 100, "deadline": 60, "expected": []},
        }

    def serves_orders(self, blue: int = 190, green: int = 10, *, error: int = 0) -> Callable[[int], object]:
        """So many orders on each at every look, and so many errors of the canary's."""

        def each(number: int) -> None:
            self.blue.serve(blue)
            self.green.serve(green, error=error)

        return each

    def ask(self, command: str, payloads: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        if command == "look":
            self.looks += 1
            self.each(self.looks)
        found = {name: self.balancer.run(command, **payload) for name, payload in payloads.items()}
        return {
            name: answer if answer["ok"] else AgentError(answer["code"], answer["error"], answer)
            for name, answer in found.items()
        }

    def serves(self, name: str) -> bool:
        return True

    def walk(self, preempt: bool = False, **changes: Any) -> Rollout:
        """The rollout, begun; the same again is another call of the control node."""
        (self.directory / "rollout.json").write_text(json.dumps({**self.spec, **changes}))
        clock = self.balancer.clock
        walk = Rollout(self.directory, self, self.said.append, lambda: clock.now.wall, clock.pass_by, lambda: self.playbook_runs)
        walk.begin(preempt=preempt)
        return walk

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / name).read_text().splitlines()]


@pytest.fixture
def fleet(haproxy: Haproxy, nats: Nats, tmp_path: Path) -> Iterator[Fleet]:
    directory = tmp_path / "r1"
    directory.mkdir()
    made = Fleet(Balancer(haproxy, tmp_path, nats.where), directory)
    yield made
    for instance in (made.blue, made.green):
        instance.server.shutdown()
        instance.server.server_close()


def test_a_good_version_passes_is_promoted_kept_warm_and_the_lock_given_back(fleet: Fleet, nats: Nats) -> None:
    walk = fleet.walk()
    fleet.green.trial = {"compared": 150, "skipped": {"again": 2}, "differences": []}
    assert walk.shadow().outcome == PASS
    outcome = walk.stage(STAGE)
    assert (outcome.outcome, fleet.balancer.running, fleet.balancer.on_disk) == (PASS, 500, 500)
    assert bucket_says(nats)["cut"] == 500
    walk.promote()
    said = bucket_says(nats)
    assert (said["stable"], said["cut"], said["shadow"], fleet.balancer.running) == ("green", 0, "", 0)
    fleet.each = fleet.serves_orders(0, 200)
    assert walk.warm().outcome == PASS
    walk.end("promoted")
    assert fleet.balancer.run("status")["lock"] is None
    events = [entry["event"] for entry in fleet.lines("journal.jsonl") if entry.get("phase") != "intend"]
    assert events == [
        *("start", "traffic", "shadow", "verdict", "stage", "traffic", "verdict"),
        *("promote", "traffic", "warm", "verdict", "end"),
    ]
    assert fleet.lines("looks.jsonl")[-1]["stage"] == "warm"


def test_a_version_that_fails_requests_is_taken_back_at_once_and_marked(fleet: Fleet, nats: Nats) -> None:
    fleet.each = fleet.serves_orders(error=2)
    outcome = fleet.walk().stage(STAGE)
    assert outcome.outcome == FAIL
    assert "errors" in outcome.reasons[0]
    assert (fleet.balancer.running, fleet.balancer.on_disk, bucket_says(nats)["cut"]) == (0, 0, 0)
    assert bucket_says(nats)["releases"]["green"] == "none"
    assert NEW in fleet.balancer.run("status")["bad"]
    assert fleet.green.orders["error"] < 40


def test_a_hard_stop_needs_no_statistics(fleet: Fleet) -> None:
    def once(number: int) -> None:
        fleet.blue.serve(190)
        fleet.green.serve(10)
        fleet.green.stops["duplicated_executions_total"] = int(number > 3)

    fleet.each = once
    outcome = fleet.walk().stage(STAGE)
    assert (outcome.outcome, fleet.looks) == (FAIL, 4)
    assert "executed more than once" in outcome.reasons[0]


def test_without_enough_orders_the_deadline_takes_it_back_and_does_not_mark_it(fleet: Fleet) -> None:
    fleet.each = fleet.serves_orders(2, 0)
    assert fleet.walk().stage(STAGE).outcome == INSUFFICIENT
    assert fleet.balancer.running == 0
    assert fleet.balancer.run("status")["bad"] == {}


def test_without_enough_orders_an_operator_may_have_chosen_to_go_on(fleet: Fleet) -> None:
    fleet.each = fleet.serves_orders(2, 0)
    assert fleet.walk(on_insufficient="promote").stage(STAGE).outcome == PASS
    assert fleet.balancer.running == 500


def test_an_instance_that_does_not_answer_is_never_fine(fleet: Fleet) -> None:
    fleet.spec["instances"]["app2"] = {"blue": fleet.blue.address, "green": "127.0.0.1:1"}
    assert fleet.walk().stage(STAGE).outcome == INSUFFICIENT


def test_a_pause_holds_a_stage_that_passes_and_a_resume_lets_it_go_on(fleet: Fleet) -> None:
    def operator(number: int) -> None:
        fleet.blue.serve(190)
        fleet.green.serve(10)
        if number == 5:
            fleet.balancer.run("command", action="pause", by="bob")
        if number == 400:
            fleet.balancer.run("command", action="resume", by="bob")

    fleet.each = operator
    assert fleet.walk().stage(STAGE).outcome == PASS
    assert fleet.looks >= 400
    assert any("pause, says bob" in line for line in fleet.said)


def test_an_operator_ends_it_or_hurries_it(fleet: Fleet) -> None:
    def operator(action: str) -> Any:
        return lambda number: number == 3 and fleet.balancer.run("command", action=action, by="bob")

    walk = fleet.walk()
    fleet.each, fleet.looks = operator("promote"), 0
    assert walk.stage(STAGE).outcome == PASS
    assert fleet.looks == 3
    fleet.each, fleet.looks = operator("abort"), 0
    assert walk.stage(Stage("20%", 2000, 10, 300)).outcome == ABORT
    assert (fleet.looks, fleet.balancer.running) == (3, 0)


def test_a_command_that_a_second_load_balancer_has_a_look_later_is_taken_once(fleet: Fleet) -> None:
    def twice(number: int) -> None:
        if number in (3, 4):
            fleet.balancer.run("command", action="promote", by="bob@desk pid 7")

    walk = fleet.walk()
    fleet.each = twice
    assert walk.stage(STAGE).outcome == PASS
    assert walk.stage(Stage("20%", 2000, 10, 30)).outcome == INSUFFICIENT


def test_the_way_back_does_not_wait_for_a_load_balancer_that_cannot_be_steered(fleet: Fleet) -> None:
    fleet.walk().stage(STAGE)
    fleet.names = ["lb1", "lb2"]
    steered = fleet.ask
    fleet.ask = lambda command, payloads: {  # type: ignore[method-assign]  # one more load balancer, which is out of reach
        **steered(command, {name: payload for name, payload in payloads.items() if name == "lb1"}),
        **({"lb2": AgentError("unreachable", "no route")} if "lb2" in payloads else {}),
    }
    with pytest.raises(RolloutError, match="lb2 cannot be steered"):
        fleet.walk(id="r2")
    back = fleet.walk(owner="bob", id="r3", preempt=True)
    with pytest.raises(RolloutError, match="lb2 could not be turned back"):
        back.roll_back(["bob says so"], mark=False)
    assert fleet.balancer.running == 0


def test_the_way_back_to_what_was_just_started_gives_haproxy_time_to_find_it_and_goes_in_any_case(fleet: Fleet) -> None:
    runtime = RuntimeSocket(str(fleet.balancer.haproxy.socket))

    def put(slot: str, state: str) -> None:
        for name in ("app1", "app2"):
            runtime.do(f"set server slot_{slot}/{name} state {state}")

    def moved() -> dict[str, Any]:
        entries: list[dict[str, Any]] = fleet.balancer.run("status")["journal"]
        return [entry for entry in entries if entry.get("phase") == "done"][-1]

    old, new = fleet.spec["from"], fleet.spec["to"]
    walk = fleet.walk(**{"from": new, "to": old})
    put("green", "maint")
    found_up = threading.Timer(0.5, put, ["green", "ready"])
    began = time.monotonic()
    found_up.start()
    # For as long the release may have been waited for.
    fleet.balancer.clock.pass_by(100)
    walk.renew()
    walk.roll_back(["bob says so"], mark=False, started=2)
    assert time.monotonic() - began >= 0.5
    found_up.join()
    assert moved()["after"]["stable"] == "green"

    put("blue", "maint")
    fleet.walk(id="r2", preempt=True).roll_back(["bob says so"], mark=False, started=2)
    assert moved()["after"]["stable"] == "blue"


def test_a_second_rollout_is_told_whose_the_first_is(fleet: Fleet) -> None:
    fleet.walk()
    with pytest.raises(Locked, match="ann@desk pid 1") as refused:
        fleet.walk(owner="bob@desk pid 2", id="r2")
    assert refused.value.lock["owner"] == "ann@desk pid 1"


@pytest.mark.parametrize(("kind", "waits"), [("deploy", False), ("canary", True)])
def test_the_lock_of_a_run_of_this_machine_that_is_over_is_in_nobodys_way(fleet: Fleet, kind: str, waits: bool) -> None:
    over = subprocess.Popen(["true"])
    over.wait()
    dead = f"{owner().partition(' pid ')[0]} pid {over.pid}"
    assert fleet.balancer.run("acquire", owner=dead, rollout="r0", kind=kind, ttl=12)["ok"]
    began = fleet.balancer.clock.now.wall
    fleet.walk()
    assert fleet.balancer.run("status")["lock"]["rollout"] == "r1"
    waited = fleet.balancer.clock.now.wall - began
    # Where accounts may be on trial, the watchdog has to look first.
    assert waited >= 12 if waits else waited < 1
    assert [line for line in fleet.said if "is gone" in line] == fleet.said
    assert bool(fleet.said) == waits


def test_one_who_was_overtaken_changes_nothing_any_more(fleet: Fleet) -> None:
    walk = fleet.walk()

    def overtake(number: int) -> None:
        if number == 3:
            fleet.balancer.run("acquire", owner="bob", rollout="r2", ttl=15, preempt=True)

    fleet.each = overtake
    with pytest.raises(TakenOver):
        walk.stage(STAGE)
    assert fleet.balancer.running == 500
    with pytest.raises(TakenOver):
        walk.roll_back(["late"], mark=True)
    assert fleet.balancer.running == 500
    assert fleet.balancer.run("status")["bad"] == {}


def test_a_load_balancer_that_does_otherwise_ends_the_rollout(fleet: Fleet) -> None:
    def meddle(number: int) -> None:
        fleet.blue.serve(190)
        fleet.green.serve(10)
        if number == 3:
            (fleet.balancer.haproxy.maps / "cut.map").write_text("canary 700\n")

    fleet.each = meddle
    outcome = fleet.walk().stage(STAGE)
    assert outcome.outcome == FAIL
    assert "lb1 gives the canary 7% instead of 5%" in outcome.reasons


def test_another_release_in_the_canarys_slot_ends_the_rollout(fleet: Fleet) -> None:
    fleet.green.release = "0.9.0-cccccccccc"
    assert fleet.walk().stage(STAGE).reasons == ("app1 runs 0.9.0-cccccccccc in green",)


def test_a_step_whose_playbook_was_killed_gives_no_sign_of_life_any_more(fleet: Fleet) -> None:
    def kill(number: int) -> None:
        fleet.playbook_runs = number < 3

    fleet.each = kill
    walk = fleet.walk()
    with pytest.raises(RolloutError, match="was killed"):
        walk.stage(STAGE)
    assert (fleet.looks, fleet.balancer.running) == (3, 500)
    fleet.balancer.clock.pass_by(16)
    assert "cut" in fleet.balancer.run("watchdog")["did"]
    assert fleet.balancer.running == 0


def difference(count: int) -> dict[str, Any]:
    sides = {"stable": {"outcome": "accepted", "rule": ""}, "canary": {"outcome": "refused", "rule": "tick_size"}}
    example = {"account": "a1", "client_order_id": "o1", **sides}
    return {"type": "stop_limit", "side": "buy", **sides, "count": count, "examples": [example]}


def test_a_difference_in_the_shadow_ends_it_with_no_account_moved(fleet: Fleet) -> None:
    fleet.green.trial = {"compared": 50, "skipped": {}, "differences": [difference(3)]}
    outcome = fleet.walk().shadow()
    assert outcome.outcome == FAIL
    assert outcome.reasons == ("3 stop_limit orders (buy): stable accepted, canary refused by tick_size, for instance o1 of a1",)
    assert "cut" not in [entry["stage"] for entry in fleet.balancer.run("status", entries=100)["journal"] if "stage" in entry]


def test_a_difference_that_the_notes_declare_is_listed_and_passes(fleet: Fleet) -> None:
    fleet.green.trial = {"compared": 150, "skipped": {}, "differences": [difference(3)]}
    declared = {"type": "stop_limit", "canary": "refused by tick_size", "why": "ticks are checked now"}
    walk = fleet.walk(shadow={"orders": 100, "deadline": 60, "expected": [declared]})
    assert walk.shadow().outcome == PASS
    found = json.loads((fleet.directory / "shadow.json").read_text())["differences"][0]
    assert (found["expected"], found["why"]) == (True, "ticks are checked now")


def test_the_shadow_without_orders_is_insufficient(fleet: Fleet) -> None:
    fleet.green.trial = {"compared": 5, "skipped": {"again": 7}, "differences": []}
    outcome = fleet.walk().shadow()
    assert (outcome.outcome, outcome.reasons) == (INSUFFICIENT, ("only 5 of 100 orders were compared (skipped: 7 again)",))


def test_differences_of_several_instances_are_added_up() -> None:
    trial = {"compared": 10, "skipped": {"again": 1}, "differences": [difference(3)]}
    look = {"instances": {host: {"green": {"up": True, "trial": trial}} for host in ("app1", "app2")}}
    found = compared({"lb1": look, "lb2": look}, "green", [])
    assert (found["compared"], found["skipped"], found["mirrored"]) == (20, {"again": 2}, 22)
    assert found["differences"][0]["count"] == 6
    assert tell_difference(found["differences"][0]).startswith("6 stop_limit orders")


def test_a_second_call_of_the_control_node_goes_on_with_the_same_evidence(fleet: Fleet) -> None:
    first = fleet.walk()
    first.stage(STAGE)
    again = fleet.walk()
    assert again._memory.tests.keys() == first._memory.tests.keys()
    assert again.stage(Stage("20%", 2000, 10, 300)).outcome == PASS
