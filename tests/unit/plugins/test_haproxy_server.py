"""The module that takes servers in and out of rotation, against a real HAProxy with a real server behind it."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from ansible.module_utils.haproxy import RuntimeSocket
from plugin_testing import Haproxy, RunModule, wait_until


@contextmanager
def request_in_flight(server: Haproxy, app: int) -> Iterator[threading.Event]:
    """A request that the app host holds until the event is set."""
    answer = threading.Event()
    listener = socket.create_server(("127.0.0.1", server.app_ports[app]))

    def app_host() -> None:
        peer, _ = listener.accept()
        with peer, listener:
            peer.recv(65536)
            answer.wait(20)
            peer.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    def client() -> None:
        with closing(urllib.request.urlopen(f"http://127.0.0.1:{server.port}/x", timeout=20)):
            pass

    threads = [threading.Thread(target=app_host), threading.Thread(target=client)]
    for thread in threads:
        thread.start()
    runtime = RuntimeSocket(str(server.socket))
    wait_until(lambda: any(s.sessions for s in runtime.servers()), "the request reaching the app host")
    try:
        yield answer
    finally:
        answer.set()
        for thread in threads:
            thread.join()


def admin(server: Haproxy) -> dict[str, str]:
    servers = RuntimeSocket(str(server.socket)).servers()
    return {s.name: s.admin for s in servers if s.backend == "slot_blue"}


def test_a_server_is_drained_and_taken_back(haproxy: Haproxy, run_module: RunModule) -> None:
    args = {**haproxy.where, "backend": "slot_blue", "servers": ["app1"]}
    drained = run_module("haproxy_server", {**args, "state": "drain"})
    assert (drained["changed"], drained["after"]["app1"]["admin"]) == (True, "drain")
    assert run_module("haproxy_server", {**args, "state": "drain"})["changed"] is False
    assert run_module("haproxy_server", {**args, "state": "ready"})["after"]["app1"]["admin"] == "ready"
    assert run_module("haproxy_server", {**args, "state": "maint"})["after"]["app1"]["admin"] == "maint"


def test_it_waits_until_the_last_session_is_gone(haproxy: Haproxy, run_module: RunModule) -> None:
    runtime = RuntimeSocket(str(haproxy.socket))
    runtime.do("set server slot_blue/app2 state maint")
    with request_in_flight(haproxy, 0) as answer:
        args = {**haproxy.where, "backend": "slot_blue", "servers": ["app1"], "state": "drain", "min_healthy": 0}
        refused = run_module("haproxy_server", {**args, "timeout": 0.3})
        assert refused["msg"] == "slot_blue is not drained after 0.3 s: app1 holds 1 sessions and 0 queued requests"
        timer = threading.Timer(0.5, answer.set)
        timer.start()
        result = run_module("haproxy_server", {**args, "timeout": 15})
        timer.join()
    assert result.get("failed") is None
    assert result["after"]["app1"]["sessions"] == 0
    assert result["waited"] > 0


def test_it_refuses_to_leave_too_few_in_the_stable_slot(haproxy: Haproxy, run_module: RunModule) -> None:
    args = {**haproxy.where, "backend": "slot_blue", "servers": ["app1"], "state": "drain", "min_healthy": 2}
    assert run_module("haproxy_server", args)["msg"] == (
        "drain of app1 would leave 1 of 3 servers serving in slot_blue (app2), and 2 must go on serving"
    )
    assert run_module("haproxy_server", {**args, "servers": ["app1", "app2"], "min_healthy": 1})["msg"].endswith(
        "(none), and 1 must go on serving"
    )
    assert admin(haproxy)["app1"] == "ready"


def test_the_other_slot_may_be_emptied(haproxy: Haproxy, run_module: RunModule) -> None:
    args = {**haproxy.where, "backend": "slot_green", "servers": ["app1", "app2"], "state": "maint"}
    assert run_module("haproxy_server", args)["changed"] is True
    assert "would leave 0" in run_module("haproxy_server", {**args, "backend": "slot_blue", "stable": "blue"})["msg"]


def test_check_mode_shows_the_change_and_makes_none(haproxy: Haproxy, run_module: RunModule) -> None:
    args = {**haproxy.where, "backend": "slot_blue", "servers": ["app1"], "state": "drain"}
    result = run_module("haproxy_server", args, check=True, diff=True)
    assert result["changed"] is True
    assert result["diff"]["after"] == "app1 drain\napp2 ready\napp3 maint\n"
    assert admin(haproxy)["app1"] == "ready"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"backend": "slot_red"}, "HAProxy has no backend slot_red"),
        ({"servers": ["app9"]}, "slot_blue has no server app9; it has app1, app2, app3"),
        ({"maps_dir": "/nonexistent"}, "does not say which slot is stable"),
        ({"socket": "/nonexistent"}, "no HAProxy answers"),
    ],
)
def test_what_cannot_be_is_told(haproxy: Haproxy, run_module: RunModule, change: dict[str, object], says: str) -> None:
    args = {**haproxy.where, "backend": "slot_blue", "servers": ["app1"], "state": "drain", **change}
    assert says in run_module("haproxy_server", args)["msg"]


def test_what_is_on_disk_stays(haproxy: Haproxy, run_module: RunModule) -> None:
    before: list[tuple[Path, str]] = [(path, path.read_text()) for path in haproxy.maps.iterdir()]
    run_module("haproxy_server", {**haproxy.where, "backend": "slot_blue", "servers": ["app1"], "state": "drain"})
    assert [(path, path.read_text()) for path in haproxy.maps.iterdir()] == before
