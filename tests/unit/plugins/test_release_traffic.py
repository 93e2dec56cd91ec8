"""The module that sets what a load balancer does, against a real HAProxy."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from ansible.module_utils.haproxy import (
    HaproxyError,
    HaproxyStopped,
    RuntimeSocket,
    by_slot,
    parse_servers,
    parse_show_map,
)
from ansible.module_utils.map_files import replace_text
from ansible.module_utils.traffic import Traffic
from plugin_testing import ROOT, Haproxy, RunModule


def slot_of(server: Haproxy, account: str) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/slot", headers={"X-Account-Id": account})
    with urllib.request.urlopen(request, timeout=2) as answer:
        body: str = answer.read().decode()
        return body


def test_haproxy_sends_every_account_where_the_traffic_says(haproxy: Haproxy, run_module: RunModule) -> None:
    result = run_module("release_traffic", {**haproxy.where, "salt": "1.1.0-bbbbbbbbbb", "cut": 2000})
    assert result["changed"] is True
    assert result["traffic"] == {"stable": "blue", "canary": "green", "salt": "1.1.0-bbbbbbbbbb", "cut": 2000}
    assert result["running_differs"] == []
    traffic = Traffic(**result["traffic"])
    accounts = [f"acct-{number}" for number in range(200)]
    assert [slot_of(haproxy, a) for a in accounts] == [traffic.slot_of(a) for a in accounts]


def test_the_files_and_the_running_maps_say_the_same_and_comments_stay(haproxy: Haproxy, run_module: RunModule) -> None:
    run_module("release_traffic", {**haproxy.where, "stable": "green", "canary": "blue"})
    assert (haproxy.maps / "release.map").read_text() == "# what traffic does\nstable green\ncanary blue\nsalt none\n"
    running = RuntimeSocket(str(haproxy.socket)).read_map(str(haproxy.maps / "release.map"))
    assert running == {"stable": "green", "canary": "blue", "salt": "none"}


def test_a_restart_keeps_the_split(haproxy: Haproxy, run_module: RunModule) -> None:
    run_module("release_traffic", {**haproxy.where, "cut": 500})
    haproxy.stop()
    haproxy.start()
    result = run_module("release_traffic", {**haproxy.where, "state": "read"})
    assert result["running"]["cut"] == result["traffic"]["cut"] == 500
    assert result["running_differs"] == []


def test_the_same_again_changes_nothing(haproxy: Haproxy, run_module: RunModule) -> None:
    run_module("release_traffic", {**haproxy.where, "cut": 500})
    before = (haproxy.maps / "cut.map").stat()
    result = run_module("release_traffic", {**haproxy.where, "cut": 500})
    assert (result["changed"], result["steps"]) == (False, [])
    assert (haproxy.maps / "cut.map").stat().st_ino == before.st_ino


def test_check_mode_shows_the_change_and_makes_none(haproxy: Haproxy, run_module: RunModule) -> None:
    result = run_module("release_traffic", {**haproxy.where, "cut": 500}, check=True, diff=True)
    assert result["changed"] is True
    assert (result["traffic"]["cut"], result["after"]["cut"]) == (0, 500)
    assert [(d["before"], d["after"]) for d in result["diff"]] == [("canary 0\n", "canary 500\n")]
    assert (haproxy.maps / "cut.map").read_text() == "canary 0\n"
    assert RuntimeSocket(str(haproxy.socket)).read_map(str(haproxy.maps / "cut.map")) == {"canary": "0"}


def test_mode_and_owner_of_a_map_stay(haproxy: Haproxy, run_module: RunModule) -> None:
    os.chmod(haproxy.maps / "cut.map", 0o640)
    if os.geteuid() == 0:
        os.chown(haproxy.maps / "cut.map", 65534, 65534)
    before = (haproxy.maps / "cut.map").stat()
    run_module("release_traffic", {**haproxy.where, "cut": 500})
    after = (haproxy.maps / "cut.map").stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino


def test_nothing_is_left_beside_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        replace_text(tmp_path / "cut.map", "\udcff")
    assert list(tmp_path.iterdir()) == []


def test_first_contact_creates_the_files_and_adds_the_keys(stopped_haproxy: Haproxy, run_module: RunModule) -> None:
    for name in ("release.map", "cut.map"):
        (stopped_haproxy.maps / name).write_text("")
    stopped_haproxy.start()
    refused = run_module("release_traffic", {**stopped_haproxy.where, "cut": 0})
    assert "say which slot is stable" in refused["msg"]
    result = run_module("release_traffic", {**stopped_haproxy.where, "stable": "green"})
    assert result["running_differs"] == []
    assert result["traffic"] == {"stable": "green", "canary": "blue", "salt": "none", "cut": 0}
    assert run_module("release_traffic", {**stopped_haproxy.where, "stable": "green"})["changed"] is False


def test_a_running_map_that_lacks_a_key_gets_it(haproxy: Haproxy, run_module: RunModule) -> None:
    RuntimeSocket(str(haproxy.socket)).do(f"del map {haproxy.maps / 'cut.map'} canary")
    told = run_module("release_traffic", {**haproxy.where, "state": "read"})
    assert told["running_differs"] == [{"map": "cut.map", "key": "canary", "disk": "0", "running": None}]
    result = run_module("release_traffic", haproxy.where)
    assert result["changed"] is True
    assert result["running_differs"] == []


def test_a_running_map_that_was_changed_by_hand_is_told_and_put_right(haproxy: Haproxy, run_module: RunModule) -> None:
    RuntimeSocket(str(haproxy.socket)).do(f"set map {haproxy.maps / 'cut.map'} canary 700")
    told = run_module("release_traffic", {**haproxy.where, "state": "read"})
    assert told["running_differs"] == [{"map": "cut.map", "key": "canary", "disk": "0", "running": "700"}]
    assert (told["traffic"]["cut"], told["running"]["cut"]) == (0, 700)
    checked = run_module("release_traffic", haproxy.where, check=True, diff=True)
    assert checked["changed"] is True
    assert [d["after"] for d in checked["diff"]] == ["canary 0\n"]
    result = run_module("release_traffic", haproxy.where)
    assert (result["changed"], result["running_differs"]) == (True, [])


def test_without_haproxy_it_fails_unless_the_files_alone_are_asked_for(stopped_haproxy: Haproxy, run_module: RunModule) -> None:
    refused = run_module("release_traffic", {**stopped_haproxy.where, "cut": 500})
    assert refused["failed"] is True
    assert "no HAProxy answers on" in refused["msg"]
    assert (stopped_haproxy.maps / "cut.map").read_text() == "canary 0\n"
    result = run_module("release_traffic", {**stopped_haproxy.where, "cut": 500, "allow_stopped": True})
    assert (result["haproxy"], result["running"], result["servers"]) == ("stopped", None, {})
    assert (stopped_haproxy.maps / "cut.map").read_text() == "canary 500\n"


def test_reading_without_files_and_haproxy_tells_that_there_is_nothing(tmp_path: Path, run_module: RunModule) -> None:
    where = {"maps_dir": str(tmp_path), "socket": str(tmp_path / "none.sock"), "state": "read"}
    result = run_module("release_traffic", where)
    assert (result["traffic"], result["running"], result["haproxy"]) == (None, None, "stopped")


def test_maps_that_haproxy_does_not_use_are_an_error(haproxy: Haproxy, run_module: RunModule, tmp_path: Path) -> None:
    (tmp_path / "release.map").write_text("stable blue\ncanary green\nsalt none\n")
    (tmp_path / "cut.map").write_text("canary 0\n")
    result = run_module("release_traffic", {**haproxy.where, "maps_dir": str(tmp_path), "cut": 500})
    assert f"HAProxy has no map {tmp_path}/release.map" in result["msg"]
    assert (tmp_path / "cut.map").read_text() == "canary 0\n"


def test_a_broken_map_file_is_named(haproxy: Haproxy, run_module: RunModule) -> None:
    (haproxy.maps / "cut.map").write_text("canary\n")
    assert run_module("release_traffic", {**haproxy.where, "cut": 1})["msg"].startswith("cut.map: line 1")


def test_an_unsafe_change_is_refused_and_nothing_is_done(haproxy: Haproxy, run_module: RunModule) -> None:
    run_module("release_traffic", {**haproxy.where, "salt": "r1", "cut": 500})
    result = run_module("release_traffic", {**haproxy.where, "salt": "r2", "cut": 2000})
    assert "set the cut to 0 first" in result["msg"]
    assert run_module("release_traffic", {**haproxy.where, "state": "read"})["running"]["salt"] == "r1"


def test_the_servers_are_told_by_slot_with_state_and_sessions(haproxy: Haproxy, run_module: RunModule) -> None:
    runtime = RuntimeSocket(str(haproxy.socket))
    runtime.do("set server slot_green/app2 state drain")
    servers = run_module("release_traffic", {**haproxy.where, "state": "read"})["servers"]
    assert set(servers) == {"blue", "green"}
    told = {f"{slot}/{name}": (s["admin"], s["up"], s["sessions"]) for slot, ss in servers.items() for name, s in ss.items()}
    assert told == {
        "blue/app1": ("ready", True, 0),
        "blue/app2": ("ready", True, 0),
        "blue/app3": ("maint", False, 0),
        "green/app1": ("ready", True, 0),
        "green/app2": ("drain", True, 0),
    }
    assert servers["blue"]["app1"]["address"] == f"127.0.0.1:{haproxy.app_ports[0]}"


def test_a_slot_gets_no_accounts_before_its_servers_are_up(haproxy: Haproxy, run_module: RunModule) -> None:
    runtime = RuntimeSocket(str(haproxy.socket))
    for name in ("app1", "app2"):
        runtime.do(f"set server slot_green/{name} state maint")
    args = {**haproxy.where, "stable": "green", "canary": "green"}
    refused = run_module("release_traffic", {**args, "up_timeout": 0.2})
    assert "green has 0 (none), 1 must be up; nothing was changed" in refused["msg"]
    assert run_module("release_traffic", {**haproxy.where, "state": "read"})["traffic"]["stable"] == "blue"
    timer = threading.Timer(0.3, lambda: runtime.do("set server slot_green/app2 state ready"))
    timer.start()
    assert run_module("release_traffic", {**args, "up_timeout": 20})["traffic"]["stable"] == "green"
    timer.join()
    back = {**haproxy.where, "stable": "blue", "canary": "blue", "min_up": 3, "up_timeout": 0.2}
    assert "blue has 2 (app1, app2), 3 must be up" in run_module("release_traffic", back)["msg"]


def test_what_gets_no_more_accounts_need_not_be_up(haproxy: Haproxy, run_module: RunModule) -> None:
    for name in ("app1", "app2"):
        RuntimeSocket(str(haproxy.socket)).do(f"set server slot_green/{name} state maint")
    assert run_module("release_traffic", {**haproxy.where, "salt": "r1"})["changed"] is True
    assert run_module("release_traffic", {**haproxy.where, "cut": 500, "min_up": 0})["changed"] is True
    assert run_module("release_traffic", {**haproxy.where, "cut": 0})["changed"] is True


def test_a_socket_that_refuses_or_is_none_is_told(haproxy: Haproxy, tmp_path: Path) -> None:
    with pytest.raises(HaproxyError, match="refused 'set map none x 1'"):
        RuntimeSocket(str(haproxy.socket)).do("set map none x 1")
    with pytest.raises(HaproxyStopped, match="no HAProxy answers"):
        RuntimeSocket(str(tmp_path / "none.sock")).ask("show info")
    with pytest.raises(HaproxyError, match="cannot use the socket"):
        RuntimeSocket(str(tmp_path / ("x" * 120))).ask("show info")


def test_a_haproxy_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(HaproxyError, match=r"did not answer 'show info' within 0\.1 s"):
            RuntimeSocket(str(tmp_path / "s"), timeout=0.1).ask("show info")


def test_servers_are_those_that_both_tables_tell_of() -> None:
    stat = "# pxname,svname,qcur,scur,status,check_status,addr,\nslot_blue,app1,,3,UP,L7OK,10.0.0.21:18080,\nx,y,0,0,UP,,,\n"
    state = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state\n3 slot_blue 1 app1 10.0.0.21 2 8\n"
    servers = parse_servers(stat, state)
    assert [(s.name, s.admin, s.up, s.serves, s.sessions) for s in servers] == [("app1", "drain", True, False, 3)]
    assert by_slot(servers, "other_") == {}


def test_a_check_that_is_under_way_does_not_change_what_the_last_one_found() -> None:
    stat = "# pxname,svname,qcur,scur,status,check_status,addr,\nslot_blue,app1,,3,UP,* L7OK,10.0.0.21:18080,\n"
    state = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state\n3 slot_blue 1 app1 10.0.0.21 2 0\n"
    [server] = parse_servers(stat, state)
    assert server.check == "L7OK"


def test_show_map_of_an_unknown_map_is_an_error() -> None:
    with pytest.raises(HaproxyError, match="has no map"):
        parse_show_map("m", "Unknown map identifier. Please use #<id> or <file>.\n")


def test_it_runs_as_ansible_runs_it(haproxy: Haproxy) -> None:
    """Packed, sent and run by ansible itself, with the project's own configuration."""
    args = json.dumps({**haproxy.where, "cut": 500})
    done = subprocess.run(
        [str(ROOT / ".venv/bin/ansible"), "localhost", "-i", "localhost,", "-c", "local", "-m", "release_traffic", "-a", args],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
             "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CHANGED" in done.stdout
    assert (haproxy.maps / "cut.map").read_text() == "canary 500\n"
