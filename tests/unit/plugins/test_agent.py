"""The release agent of a load balancer, as it is installed, against a real HAProxy and a real NATS server."""

from __future__ import annotations

import dataclasses
import http.client
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.agent import COMMANDS, answer
from ansible.module_utils.haproxy import RuntimeSocket
from ansible.module_utils.lease import Now
from ansible.module_utils.nats_client import KeyValue, connect
from ansible.module_utils.state_files import JOURNAL_LINES, StateFiles, current_time
from ansible.module_utils.traffic import Traffic
from plugin_testing import PLUGINS, ROOT, Haproxy, Nats, RunModule, free_port

SALT = "1.1.0-bbbbbbbbbb"
WALK = {"canary": "green", "salt": SALT}


class Clock:
    """The machine's clocks, which the test moves on by itself."""

    def __init__(self) -> None:
        self.now = current_time()

    def __call__(self) -> Now:
        return self.now

    def pass_by(self, seconds: float, step: float = 0.0) -> None:
        """So much time goes by; the wall's clock is moved by `step` besides."""
        wall, uptime = self.now.wall + seconds + step, self.now.uptime + seconds
        self.now = dataclasses.replace(self.now, wall=wall, uptime=uptime)


class Balancer:
    """A load balancer with the agent, its clocks in the test's hands."""

    def __init__(self, haproxy: Haproxy, directory: Path, nats: dict[str, Any]) -> None:
        self.haproxy = haproxy
        self.state = directory / "state"
        self.state.mkdir()
        self.clock = Clock()
        self.config = {
            **haproxy.where,
            "master_socket": "",
            "state_dir": str(self.state),
            "nats": nats,
            "frontend": f"127.0.0.1:{haproxy.port}",
            "watchdog_after": 15,
        }

    def run(self, name: str, /, **request: Any) -> dict[str, Any]:
        """A command's answer."""
        return answer(self.config, name, json.dumps(request), self.clock)

    def take(self, owner: str = "ann", rollout: str = "r1", **more: Any) -> int:
        """The lock's token."""
        found = self.run("acquire", owner=owner, rollout=rollout, ttl=15, **more)
        assert found["ok"], found
        token: int = found["token"]
        return token

    def canary(self, cut: int = 500, **more: Any) -> int:
        """A rollout that has given the canary its share."""
        token = self.take()
        done = self.run("cut", token=token, **WALK, cut=cut, **more)
        assert done["ok"], done
        return token

    @property
    def on_disk(self) -> int:
        """The cut that a restart of HAProxy would read."""
        return int((self.haproxy.maps / "cut.map").read_text().split()[1])

    @property
    def running(self) -> int:
        """The cut that HAProxy goes by."""
        return int(RuntimeSocket(str(self.haproxy.socket)).read_map(str(self.haproxy.maps / "cut.map"))["canary"])

    def journal(self, *names: str) -> list[tuple[Any, ...]]:
        """These values of every line of the journal."""
        entries, _ = StateFiles(self.state).entries(100_000)
        return [tuple(entry.get(name) for name in names) for entry in entries]


@pytest.fixture
def lb(haproxy: Haproxy, tmp_path: Path) -> Balancer:
    """A load balancer whose NATS nobody serves."""
    return Balancer(haproxy, tmp_path, {"servers": [f"127.0.0.1:{free_port()}"]})


@pytest.fixture
def lb_with_nats(haproxy: Haproxy, tmp_path: Path, nats: Nats) -> Balancer:
    """A load balancer with a NATS server."""
    return Balancer(haproxy, tmp_path, nats.where)


@pytest.fixture
def lb_with_master(stopped_haproxy: Haproxy, tmp_path: Path) -> Balancer:
    """A load balancer whose HAProxy can be reloaded."""
    stopped_haproxy.start_with_master()
    one = Balancer(stopped_haproxy, tmp_path, {})
    one.config["master_socket"] = str(stopped_haproxy.master)
    return one


def bucket_says(nats: Nats) -> dict[str, Any]:
    """What the instances read."""
    with connect(nats.where["servers"], "admin", "admin-secret") as connection:
        entry, _ = KeyValue(connection, "release").get("traffic")
    assert entry is not None
    value: dict[str, Any] = json.loads(entry.value)
    return value


def someone_writes(nats: Nats, **changes: Any) -> None:
    """Another load balancer tells the instances something else."""
    with connect(nats.where["servers"], "admin", "admin-secret") as connection:
        bucket = KeyValue(connection, "release")
        if not bucket.exists():
            bucket.create(5, 1)
        entry, revision = bucket.get("traffic")
        value = json.loads(entry.value) if entry else {"stable": "blue", "canary": "blue", "salt": "none", "cut": 0}
        bucket.put("traffic", json.dumps({**value, **changes}).encode(), revision)


# --- as it is installed ------------------------------------------------------------------------------------------


@pytest.fixture
def installed(lb: Balancer, tmp_path: Path) -> list[str]:
    """The command, laid out as the role does it and configured for this load balancer."""
    parts = yaml.safe_load((ROOT / "roles/release_agent/vars/main.yml").read_text())["__release_agent_parts"]
    place = tmp_path / "lib" / "ansible" / "module_utils"
    place.mkdir(parents=True)
    for part in parts:
        shutil.copy(PLUGINS / "module_utils" / part, place)
    for directory in (place, place.parent):
        shutil.copy(ROOT / "roles/release_agent/files/__init__.py", directory)
    (tmp_path / "agent.json").write_text(json.dumps(lb.config))
    script = (ROOT / "roles/release_agent/files/trading-bot-release.py").read_text()
    script = script.replace("/usr/local/lib/trading-bot-release", str(tmp_path / "lib"))
    script = script.replace(
        "main(sys.argv[1:])", f"main(sys.argv[1:], __import__('pathlib').Path({str(tmp_path / 'agent.json')!r}))"
    )
    (tmp_path / "trading-bot-release").write_text(script)
    return [sys.executable, "-I", str(tmp_path / "trading-bot-release")]


def call(command: list[str], *words: str, **request: Any) -> tuple[int, dict[str, Any]]:
    """Exit status and answer of the installed command."""
    done = subprocess.run([*command, *words], input=json.dumps(request), capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout) if done.stdout else {}


def test_the_installed_command_carries_out_a_walk(installed: list[str], lb: Balancer) -> None:
    code, taken = call(installed, "acquire", owner="ann", rollout="r1", ttl=30)
    assert (code, taken["ok"], taken["token"]) == (0, True, 1)
    assert taken["traffic"] == {
        "stable": "blue", "canary": "green", "salt": "none", "cut": 0, "shadow": "", "releases": {},
    }  # fmt: skip
    code, cut = call(installed, "cut", token=1, **WALK, cut=500, kv=True)
    assert (code, cut["after"]["cut"], cut["kv"]["ok"]) == (0, 500, False)
    assert lb.running == lb.on_disk == 500
    assert call(installed, "look", token=1, instances={})[1]["traffic"]["cut"] == 500
    assert call(installed, "cut", token=7, cut=0)[0] == 3
    assert call(installed, "watchdog") == (0, {}) or lb.running == 500
    for command in ("status", "probe", "settle", "sync"):
        assert call(installed, command, accounts=1)[0] == 0


def test_of_many_that_acquire_at_once_one_wins(installed: list[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: call(installed, "acquire", owner=f"owner{n}", rollout="r", ttl=60), range(16)))
    assert sorted(code for code, _ in answers) == [0] + [3] * 15
    winner = next(found for _, found in answers if found["ok"])
    assert {found["code"] for _, found in answers if not found["ok"]} == {"locked"}
    assert {found["lock"]["owner"] for _, found in answers if not found["ok"]} <= {winner["lock"]["owner"]}


@pytest.mark.parametrize("text", ["[]", "{", '"x"'])
def test_a_request_that_is_none_is_refused(lb: Balancer, text: str) -> None:
    found = answer(lb.config, "status", text)
    assert (found["ok"], found["code"]) == (False, "invalid")


def test_an_unknown_command_and_a_missing_argument_are_refused(lb: Balancer) -> None:
    assert "'dance' is no command" in lb.run("dance")["error"]
    assert lb.run("acquire", owner="ann")["error"] == "rollout is None, expected a text"
    assert lb.run("cut", cut=0)["error"] == "token is None, expected the token that acquire gave"
    assert lb.run("cut", token=True, cut=0)["code"] == "invalid"


def test_without_its_configuration_it_says_so(installed: list[str], tmp_path: Path) -> None:
    (tmp_path / "agent.json").unlink()
    code, found = call(installed, "status")
    assert (code, found["code"]) == (3, "failed")


# --- the lock ----------------------------------------------------------------------------------------------------

WRITES: dict[str, dict[str, Any]] = {
    "renew": {},
    "unlock": {},
    "cut": {"cut": 2000},
    "look": {},
    "journal": {"entries": [{"event": "stage"}]},
    "note": {"rollout": {"id": "mine"}},
    "mark": {"release": "x"},
    "unmark": {"release": "x"},
}


@pytest.mark.parametrize("command", WRITES)
def test_who_was_overtaken_can_change_nothing_any_more(lb: Balancer, command: str) -> None:
    old = lb.take()
    lb.clock.pass_by(15)
    new = lb.take("bob", "r2")
    before = {path.name: path.read_bytes() for path in lb.state.iterdir()}
    found = lb.run(command, token=old, **WRITES[command])
    assert (found["ok"], found["code"], found["lock"]["owner"]) == (False, "fenced", "bob")
    assert {path.name: path.read_bytes() for path in lb.state.iterdir()} == before
    assert lb.running == lb.on_disk == 0
    assert lb.run(command, token=new, **WRITES[command])["ok"]


def test_a_takeover_is_in_the_journal_and_drops_what_an_operator_asked_of_the_other(lb: Balancer) -> None:
    lb.take()
    assert lb.run("command", action="promote", by="eve", why="in a hurry")["ok"]
    lb.clock.pass_by(15)
    token = lb.take("bob", "r2")
    assert ("taken_over", "r2", True) in lb.journal("event", "rollout", "expired")
    assert lb.run("look", token=token, command=True)["command"] is None


def test_a_run_that_planned_before_somebody_else_was_at_it_does_not_get_the_lock(lb: Balancer) -> None:
    seen = lb.run("status")["token"]
    assert lb.run("unlock", token=lb.take("bob", "r2"))["ok"]
    before = {path.name: path.read_bytes() for path in lb.state.iterdir()}
    found = lb.run("acquire", owner="ann", rollout="r1", ttl=60, after=seen)
    assert (found["ok"], found["code"]) == (False, "overtaken")
    assert {path.name: path.read_bytes() for path in lb.state.iterdir()} == before
    assert lb.run("acquire", owner="ann", rollout="r1", ttl=60, after=lb.run("status")["token"])["ok"]


def test_after_an_unlock_no_token_works_and_the_next_is_higher(lb: Balancer) -> None:
    token = lb.take()
    assert lb.run("unlock", token=token)["ok"]
    assert lb.run("renew", token=token)["code"] == "fenced"
    assert lb.take("bob", "r2") == token + 1


def test_a_lock_that_has_expired_lets_the_canary_lose_accounts_and_not_gain_any(lb: Balancer) -> None:
    token = lb.canary()
    lb.clock.pass_by(15)
    assert lb.run("cut", token=token, cut=2000)["code"] == "fenced"
    assert lb.run("cut", token=token, cut=0)["ok"]
    assert lb.running == 0


def test_a_look_is_a_heartbeat(lb: Balancer) -> None:
    token = lb.take()
    lb.clock.pass_by(10)
    assert lb.run("look", token=token)["ok"]
    lb.clock.pass_by(10)
    assert lb.run("acquire", owner="bob", rollout="r2", ttl=15)["code"] == "locked"


def test_a_deploy_is_refused_while_a_rollout_holds_the_load_balancer(lb: Balancer, run_module: RunModule) -> None:
    token = lb.take()
    args = {**lb.haproxy.where, "state_dir": str(lb.state), "stable": "green", "canary": "green"}
    for check in (True, False):
        refused = run_module("release_traffic", args, check=check)
        assert "the rollout r1 of ann holds this load balancer for" in refused["msg"]
        assert "nothing was changed" in refused["msg"]
    assert "holds" in run_module("release_traffic", {**args, "token": token + 1})["msg"]
    assert run_module("release_traffic", {**args, "state": "read"})["traffic"]["stable"] == "blue"
    assert run_module("release_traffic", {**args, "token": token})["traffic"]["stable"] == "green"
    lb.run("unlock", token=token)
    assert run_module("release_traffic", {**args, "stable": "blue", "canary": "blue"})["changed"] is True


# --- the traffic -------------------------------------------------------------------------------------------------


def test_a_change_is_in_the_journal_before_and_after_it_is_made(lb: Balancer) -> None:
    lb.canary(journal={"stage": "5%", "cause": "stage"})
    lines = lb.journal("event", "phase", "stage", "token", "by", "rollout")
    assert lines == [("traffic", phase, "5%", 1, "control", "r1") for phase in ("intend", "done")]
    assert [line[0]["cut"] for line in lb.journal("after")] == [500, 500]
    assert all(line[0] is not None and line[0] > 0 for line in lb.journal("seconds")[1:])


def test_a_change_that_cannot_be_journalled_is_not_made(lb: Balancer) -> None:
    token = lb.take()
    (lb.state / "journal.jsonl").symlink_to("/dev/full")
    found = lb.run("cut", token=token, **WALK, cut=500)
    assert (found["ok"], found["code"]) == (False, "failed")
    assert "No space left on device" in found["error"]
    assert lb.running == lb.on_disk == 0


def test_the_way_back_is_open_although_the_journal_cannot_be_written(lb: Balancer) -> None:
    token = lb.canary()
    (lb.state / "journal.jsonl").unlink()
    (lb.state / "journal.jsonl").symlink_to("/dev/full")
    found = lb.run("cut", token=token, cut=0)
    assert (found["ok"], found["after"]["cut"]) == (True, 0)
    assert "cannot be written" in found["warnings"][0]
    assert lb.running == lb.on_disk == 0


FULL_DISK = """
set -e
cp -a {state} {maps} {spare}
mount -t tmpfs -o size=64k full {state}; cp -a {spare}/state/. {state}/
mount -t tmpfs -o size=64k full {maps}; cp -a {spare}/maps/. {maps}/
dd if=/dev/zero of={state}/filler bs=4k 2>/dev/null || true
dd if=/dev/zero of={maps}/filler bs=4k 2>/dev/null || true
yes >>{state}/journal.jsonl 2>/dev/null || true
"$@"
cat {maps}/cut.map >&2
"""


def test_the_way_back_is_open_on_disks_that_are_full(lb: Balancer, installed: list[str], tmp_path: Path) -> None:
    """In a mount namespace of its own, where state and maps are on disks without a free block."""
    isolated = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode != 0:
        # What a kernel allows is not for us to install, in CI neither.
        pytest.skip("this machine gives no mount namespaces")
    token = lb.canary()
    (tmp_path / "spare").mkdir()
    script = FULL_DISK.format(state=lb.state, maps=lb.haproxy.maps, spare=tmp_path / "spare")
    done = subprocess.run(
        [*isolated, "sh", "-c", script, "sh", *installed, "cut"],
        input=json.dumps({"token": token, "cut": 0}),
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)
    assert (found["ok"], found["after"]["cut"]) == (True, 0), done
    assert any("No space left" in warning for warning in found["warnings"])
    assert lb.running == 0
    assert done.stderr == "canary 0\n"


def test_nobody_goes_to_a_slot_without_a_server_and_everybody_may_come_back(lb: Balancer) -> None:
    token = lb.canary()
    runtime = RuntimeSocket(str(lb.haproxy.socket))
    for slot in ("green", "blue"):
        for name in ("app1", "app2"):
            runtime.do(f"set server slot_{slot}/{name} state maint")
    found = lb.run("cut", token=token, cut=2000, up_timeout=0.1)
    assert (found["code"], lb.running) == ("unreachable", 500)
    assert "green has 0 (none), 1 must be up" in found["error"]
    assert lb.run("cut", token=token, cut=0)["ok"]
    assert lb.running == 0


def test_without_haproxy_the_canary_can_only_lose_accounts(lb: Balancer) -> None:
    token = lb.canary()
    lb.haproxy.stop()
    assert lb.run("cut", token=token, cut=2000)["code"] == "unreachable"
    found = lb.run("cut", token=token, cut=0)
    assert (found["ok"], found["haproxy"], lb.on_disk) == (True, "stopped", 0)


def test_a_change_that_sends_accounts_astray_is_refused(lb: Balancer) -> None:
    token = lb.canary()
    found = lb.run("cut", token=token, salt="another", cut=2000)
    assert (found["ok"], found["code"]) == (False, "invalid")
    assert "set the cut to 0 first" in found["error"]
    assert lb.run("cut", token=token, shadow="red")["code"] == "invalid"


def slot_of(connection: http.client.HTTPConnection, account: str) -> str:
    connection.request("GET", "/slot", headers={"X-Account-Id": account})
    return connection.getresponse().read().decode()


def test_a_connection_from_before_a_reload_gets_the_new_cut(lb_with_master: Balancer) -> None:
    """The old worker keeps it until its next answer, with the maps that it read at its start."""
    lb = lb_with_master
    token = lb.canary(2000)
    traffic = Traffic("blue", "green", SALT, 2000)
    account = next(name for name in (f"acct-{n}" for n in range(100)) if traffic.slot_of(name) == "green")
    kept = http.client.HTTPConnection("127.0.0.1", lb.haproxy.port, timeout=5)
    assert slot_of(kept, account) == "green"
    lb.haproxy.reload()
    done = lb.run("cut", token=token, cut=0)
    assert (done["ok"], done["old_workers"], done["warnings"]) == (True, 1, [])
    assert slot_of(kept, account) == "blue"
    kept.close()
    fresh = http.client.HTTPConnection("127.0.0.1", lb.haproxy.port, timeout=5)
    assert slot_of(fresh, account) == "blue"
    fresh.close()


def test_a_master_that_cannot_be_asked_is_told_and_holds_nothing_up(lb_with_master: Balancer) -> None:
    lb_with_master.config["master_socket"] = "/nonexistent/master.sock"
    token = lb_with_master.take()
    done = lb_with_master.run("cut", token=token, **WALK, cut=500)
    assert (done["ok"], lb_with_master.running) == (True, 500)
    assert "whether a HAProxy still finishes connections" in done["warnings"][0]


def test_what_a_reload_in_the_middle_of_a_change_left_behind_is_settled_with_the_smaller_canary(lb: Balancer) -> None:
    lb.canary(500)
    runtime = RuntimeSocket(str(lb.haproxy.socket))
    runtime.do(f"set map {lb.haproxy.maps}/cut.map canary 2000")
    assert lb.run("settle")["did"] == ["settled"]
    assert lb.running == lb.on_disk == 500
    runtime.do(f"set map {lb.haproxy.maps}/cut.map canary 0")
    assert lb.run("watchdog")["did"] == ["settled"]
    assert lb.running == lb.on_disk == 0
    assert lb.run("settle")["did"] == []


# --- the instances -----------------------------------------------------------------------------------------------


def test_the_instances_are_told_the_traffic_the_releases_and_the_shadow(lb_with_nats: Balancer, nats: Nats) -> None:
    token = lb_with_nats.canary(0, kv=True, shadow="green", releases={"blue": "a", "green": "b"})
    said = {"stable": "blue", "canary": "green", "salt": SALT, "cut": 0, "releases": {"blue": "a", "green": "b"}}
    assert bucket_says(nats) == {**said, "shadow": "green", "token": token}
    done = lb_with_nats.run("cut", token=token, cut=500, shadow="", kv=True)
    assert (done["kv"]["ok"], done["after"]["shadow"]) == (True, "")
    assert bucket_says(nats) == {**said, "cut": 500, "shadow": "", "token": token}


def test_only_the_load_balancer_that_is_asked_to_tells_the_instances(lb_with_nats: Balancer, nats: Nats) -> None:
    someone_writes(nats, cut=1)
    lb_with_nats.canary(500, shadow="green")
    assert bucket_says(nats)["cut"] == 1
    assert lb_with_nats.run("status")["traffic"]["shadow"] == "green"


def test_a_dead_nats_holds_nothing_up_and_is_told_once_it_is_back(lb: Balancer, nats: Nats) -> None:
    token = lb.take()
    done = lb.run("cut", token=token, **WALK, cut=500, kv=True)
    assert (done["ok"], done["kv"]["ok"], lb.running) == (True, False, 500)
    assert "no NATS server lets us in" in done["kv"]["error"]
    assert lb.run("look", token=token)["kv"]["ok"] is False
    lb.config["nats"] = nats.where
    assert lb.run("watchdog")["did"] == ["kv"]
    assert bucket_says(nats)["cut"] == 500
    assert lb.run("look", token=token)["kv"]["ok"] is True


def test_what_was_owed_gives_way_to_what_somebody_wrote_since(lb_with_nats: Balancer, nats: Nats) -> None:
    lb = lb_with_nats
    token = lb.canary(500, kv=True)
    where = lb.config["nats"]
    lb.config["nats"] = {"servers": [f"127.0.0.1:{free_port()}"]}
    lb.run("cut", token=token, cut=2000, kv=True)
    someone_writes(nats, cut=0)
    lb.config["nats"] = where
    assert lb.run("watchdog")["did"] == ["kv"]
    assert bucket_says(nats)["cut"] == 0


# --- the watchdog ------------------------------------------------------------------------------------------------


def test_the_watchdog_takes_the_accounts_back_when_the_rollout_falls_silent_and_not_before(
    lb_with_nats: Balancer, nats: Nats
) -> None:
    lb = lb_with_nats
    token = lb.canary(2000, kv=True, shadow="green")
    lb.clock.pass_by(14.9)
    assert lb.run("watchdog")["did"] == []
    assert lb.running == 2000
    lb.clock.pass_by(0.1)
    assert lb.run("watchdog")["did"] == ["cut", "kv"]
    assert lb.running == lb.on_disk == 0
    assert (bucket_says(nats)["cut"], bucket_says(nats)["shadow"]) == (0, "")
    assert ("traffic", "done", "watchdog", "r1") in lb.journal("event", "phase", "by", "rollout")
    assert lb.run("watchdog")["did"] == []
    fenced = lb.run("cut", token=token, cut=2000)
    assert (fenced["code"], lb.running) == ("fenced", 0)


def test_the_watchdog_ends_a_shadow_that_nobody_looks_after(lb_with_nats: Balancer, nats: Nats) -> None:
    lb_with_nats.canary(0, kv=True, shadow="green")
    lb_with_nats.clock.pass_by(15)
    assert lb_with_nats.run("watchdog")["did"] == ["cut", "kv"]
    assert bucket_says(nats)["shadow"] == ""
    assert lb_with_nats.run("status")["traffic"]["shadow"] == ""


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_a_clock_that_is_stepped_neither_wakes_the_watchdog_nor_puts_it_to_sleep(lb: Balancer, step: float) -> None:
    lb.canary()
    lb.clock.pass_by(10, step)
    assert lb.run("watchdog")["did"] == []
    lb.clock.pass_by(5)
    assert lb.run("watchdog")["did"] == ["cut"]


def test_the_watchdog_acts_although_the_journal_cannot_be_written_and_nats_is_away(lb: Balancer) -> None:
    lb.canary()
    (lb.state / "journal.jsonl").unlink()
    (lb.state / "journal.jsonl").symlink_to("/dev/full")
    lb.clock.pass_by(15)
    found = lb.run("watchdog")
    assert (found["ok"], found["did"], lb.running, lb.on_disk) == (True, ["cut"], 0, 0)
    assert any("No space left" in warning for warning in found["warnings"])
    assert any("not told over NATS yet" in warning for warning in found["warnings"])


def test_the_watchdog_acts_without_haproxy_too(lb: Balancer) -> None:
    lb.canary()
    lb.haproxy.stop()
    lb.clock.pass_by(15)
    assert lb.run("watchdog")["did"] == ["cut"]
    assert lb.on_disk == 0


def test_the_watchdog_has_nothing_to_do_before_there_are_maps(lb: Balancer) -> None:
    lb.haproxy.stop()
    for path in lb.haproxy.maps.iterdir():
        path.unlink()
    assert lb.run("watchdog") == {"ok": True, "did": [], "warnings": []}


def test_the_watchdog_leaves_the_rollouts_figures_for_prometheus(lb: Balancer, tmp_path: Path) -> None:
    file = tmp_path / "figures" / "rollout.prom"
    lb.config["metrics_file"] = str(file)
    lb.canary()
    assert lb.run("watchdog")["warnings"] == []
    file.parent.mkdir()
    lb.run("watchdog")
    assert "\ntrading_canary_cut 500\n" in file.read_text()


def test_two_watchdogs_at_once_do_it_once(lb: Balancer, installed: list[str]) -> None:
    lb.canary()
    StateFiles(lb.state).remove("lock.json")
    with ThreadPoolExecutor(4) as pool:
        assert {code for code, _ in pool.map(lambda _: call(installed, "watchdog"), range(4))} == {0}
    assert lb.running == lb.on_disk == 0
    assert lb.journal("by", "phase").count(("watchdog", "done")) == 1


# --- a load balancer that comes back -----------------------------------------------------------------------------


@pytest.fixture
def returning(lb_with_nats: Balancer) -> Balancer:
    """A load balancer that was stopped with an old split on its disk."""
    lb_with_nats.canary(500, kv=True)
    lb_with_nats.haproxy.stop()
    return lb_with_nats


def test_a_load_balancer_that_comes_back_does_what_the_fleet_does(returning: Balancer, nats: Nats) -> None:
    someone_writes(nats, stable="green", canary="blue", salt="none", cut=0, releases={"green": "b"})
    found = returning.run("sync")
    assert found["after"] == {"stable": "green", "canary": "blue", "salt": "none", "cut": 0}
    assert returning.run("status")["traffic"]["releases"] == {"green": "b"}
    returning.haproxy.start()
    assert returning.run("look")["running"] == found["after"]
    assert returning.journal("event", "why")[-1] == ("sync", "as the bucket says (revision 2)")


def test_a_load_balancer_that_comes_back_within_a_rollout_has_its_canary(returning: Balancer, nats: Nats) -> None:
    someone_writes(nats, cut=2000)
    assert returning.run("sync")["after"]["cut"] == 2000


def test_one_that_comes_back_to_a_rollout_that_is_silent_has_nobody_on_the_canary(returning: Balancer, nats: Nats) -> None:
    someone_writes(nats, cut=2000)
    returning.clock.pass_by(15)
    assert returning.run("sync")["after"]["cut"] == 0


def test_without_nats_a_load_balancer_comes_back_with_nobody_on_the_canary(returning: Balancer) -> None:
    returning.config["nats"] = {"servers": [f"127.0.0.1:{free_port()}"]}
    found = returning.run("sync")
    assert (found["ok"], found["after"]["stable"], found["after"]["cut"]) == (True, "blue", 0)
    assert "nobody is on the canary" in returning.journal("why")[-1][0]


def test_a_load_balancer_that_knows_better_than_the_bucket_keeps_what_it_does(returning: Balancer, nats: Nats) -> None:
    """It went back while NATS was away; the bucket still says what was before."""
    where = returning.config["nats"]
    returning.config["nats"] = {"servers": [f"127.0.0.1:{free_port()}"]}
    assert returning.run("cut", token=1, cut=0, kv=True)["ok"]
    returning.config["nats"] = where
    assert bucket_says(nats)["cut"] == 500
    assert returning.run("sync")["after"]["cut"] == 0
    assert returning.run("watchdog")["did"] == ["kv"]
    assert bucket_says(nats)["cut"] == 0


def test_the_first_start_of_a_new_fleet_needs_no_bucket_and_no_maps(lb_with_nats: Balancer) -> None:
    lb_with_nats.haproxy.stop()
    assert lb_with_nats.run("sync")["why"] == "the bucket says nothing yet"
    for path in lb_with_nats.haproxy.maps.iterdir():
        path.unlink()
    found = lb_with_nats.run("sync")
    assert (found["ok"], found["after"]) == (True, None)


def test_a_new_load_balancer_has_the_fleets_split_before_it_serves(lb_with_nats: Balancer, nats: Nats) -> None:
    lb_with_nats.haproxy.stop()
    someone_writes(nats, stable="green", canary="green", salt="none", cut=0)
    assert lb_with_nats.run("sync")["after"]["stable"] == "green"


# --- journal, notes, looks ---------------------------------------------------------------------------------------


def test_a_line_that_a_crash_tore_costs_only_itself(lb: Balancer) -> None:
    token = lb.take()
    lb.run("journal", token=token, entries=[{"event": "start"}])
    with (lb.state / "journal.jsonl").open("a") as file:
        file.write('{"at": "2026-01-31T12:00:00.123Z", "eve')
    lb.run("journal", token=token, entries=[{"event": "stage"}])
    found = lb.run("status")
    assert [entry["event"] for entry in found["journal"]] == ["start", "stage"]
    assert found["journal_torn"] == 1


def test_the_journal_keeps_its_last_ten_thousand_lines_and_does_not_grow_for_ever(lb: Balancer) -> None:
    token = lb.take()
    for at in range(0, 3 * JOURNAL_LINES, 1000):
        lb.run("journal", token=token, entries=[{"event": "stage", "n": n} for n in range(at, at + 1000)])
    numbers = [number for (number,) in lb.journal("n")]
    assert JOURNAL_LINES <= len(numbers) <= 2 * JOURNAL_LINES
    assert numbers == list(range(3 * JOURNAL_LINES - len(numbers), 3 * JOURNAL_LINES))


def test_an_operators_word_is_taken_once_and_stays_in_the_journal(lb: Balancer) -> None:
    assert lb.run("command", action="pause", by="eve", why="lunch")["code"] == "invalid"
    token = lb.take()
    assert lb.run("command", action="pause", by="eve", why="lunch")["ok"]
    assert lb.run("look", token=token)["command"] is None
    taken = lb.run("look", token=token, command=True)["command"]
    assert (taken["action"], taken["by"], taken["why"]) == ("pause", "eve", "lunch")
    assert lb.run("look", token=token, command=True)["command"] is None
    assert lb.journal("event", "by", "action", "why") == [("command", "eve", "pause", "lunch")]


def test_notes_and_marks_are_told_again(lb: Balancer) -> None:
    token = lb.take()
    lb.run("note", token=token, rollout={"id": "r1", "stage": "5%"})
    assert lb.run("mark", release="b", why="errors", rollout="r1")["changed"] is True
    found = lb.run("status", entries=5)
    assert (found["rollout"], found["bad"]["b"]["why"]) == ({"id": "r1", "stage": "5%"}, "errors")
    assert lb.run("unmark", release="b")["bad"] == {}
    assert [event for (event,) in lb.journal("event")] == ["marked", "unmarked"]


def test_a_look_counts_requests_by_slot_and_server(lb: Balancer) -> None:
    runtime = RuntimeSocket(str(lb.haproxy.socket))
    for _ in range(3):
        connection = http.client.HTTPConnection("127.0.0.1", lb.haproxy.port, timeout=10)
        connection.request("GET", "/x", headers={"X-Account-Id": "a"})
        reply = connection.getresponse()
        reply.read()
        assert reply.status == 503
        connection.close()
    found = lb.run("look", instances={"app1": {"blue": f"127.0.0.1:{free_port()}"}})
    assert found["haproxy"]["blue"]["requests"] == 3
    assert found["haproxy"]["blue"]["errors"] == 3
    assert found["haproxy"]["blue"]["connect_errors"] > 0
    assert set(found["haproxy"]["blue"]["by_server"]) == {"app1", "app2", "app3"}
    assert found["worker"]["pid"] == runtime.about()["pid"]
    assert found["instances"]["app1"]["blue"]["up"] is False


def test_a_look_at_a_load_balancer_without_haproxy_still_sees_the_rest(lb: Balancer) -> None:
    lb.haproxy.stop()
    found = lb.run("look")
    assert (found["ok"], found["running"], found["traffic"]["cut"]) == (True, None, 0)


def test_every_command_of_the_contract_is_there() -> None:
    names = "acquire renew unlock cut look journal note command status mark unmark probe reach watchdog sync"
    assert set(COMMANDS) == {*names.split(), "settle"}
    assert all(function.__doc__ for function in COMMANDS.values())
