"""Servers leave a JetStream cluster: real servers, in clusters of three to five."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.nats_client import Connection, NatsError, connect
from ansible.module_utils.nats_members import Cluster, Member, Stream, forbidden, unready, unsettled
from plugin_testing import RunModule, ended, program, wait_until

CONFIG = """
server_name: "{name}"
listen: "{address}:{port}"
http: "{address}:{monitor}"
jetstream {{ store_dir: "{store}" }}
authorization {{ users: [
  {{ user: app, password: app-secret }}
  {{ user: system, password: system-secret, permissions: {{
      publish: ["$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO.*", "$JS.API.SERVER.REMOVE"], subscribe: ["_INBOX.>"] }} }}
] }}
cluster {{ name: trading, listen: "{address}:{cluster}", routes: [{routes}] }}
"""


class Servers:
    """NATS servers of one cluster, each with an address of its own, and all with the same ports."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.addresses: dict[str, str] = {}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            self.port, self.monitor, self.cluster = (one.getsockname()[1] for one in sockets)

    def start(self, *names: str) -> None:
        """Start servers of these names, new ones or some that were there."""
        for name in names:
            self.addresses.setdefault(name, f"127.0.0.{len(self.addresses) + 2}")
        for name in names:
            text = CONFIG.format(
                name=name,
                address=self.addresses[name],
                port=self.port,
                monitor=self.monitor,
                cluster=self.cluster,
                store=self.place / name,
                routes=", ".join(f'"nats-route://{address}:{self.cluster}"' for address in self.addresses.values()),
            )
            (self.place / f"{name}.conf").write_text(text)
            self.run(name)
        begun = time.monotonic()
        wait_until(lambda: self.whole() or time.monotonic() > begun + 10, "a leader")
        # Of servers that are all new at once, NATS 2.10 now and then leaves some out when they choose their first leader; they
        # come in with a restart, as the runbook says.
        for name in set(self.running) - self.members():
            self.kill(name)
            self.run(name)
        wait_until(self.whole, f"a cluster of {len(self.addresses)}")

    def run(self, name: str) -> None:
        command = [program("nats-server"), "-c", str(self.place / f"{name}.conf")]
        self.running[name] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def whole(self) -> bool:
        """Whether the leader counts every server that ever was, and those that run are healthy."""
        return self.size() == len(self.addresses) and all(self.healthy(name) for name in self.running)

    def stop(self, name: str) -> None:
        """Stop a server as an operator does."""
        ended(self.running.pop(name))

    def kill(self, name: str) -> None:
        """Have a server's machine die."""
        process = self.running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def page(self, name: str, path: str) -> dict[str, Any]:
        """A page of a server's monitoring; empty where it does not answer."""
        try:
            with urllib.request.urlopen(f"http://{self.addresses[name]}:{self.monitor}/{path}", timeout=5) as answer:
                return dict(json.load(answer))
        except OSError:
            return {}

    def healthy(self, name: str) -> bool:
        return self.page(name, "healthz").get("status") == "ok"

    def leader(self) -> str:
        """The leader of the cluster; empty where there is none."""
        for name in self.running:
            if self.page(name, "jsz").get("meta_cluster", {}).get("leader") == name:
                return name
        return ""

    def members(self) -> set[str]:
        """The members that the leader counts, itself too; none where there is no leader."""
        name = self.leader()
        group = self.page(name, "jsz")["meta_cluster"] if name else {}
        return {name, *(replica["name"] for replica in group.get("replicas") or [])} - {""}

    def size(self) -> int:
        """How many members the leader counts."""
        return len(self.members())

    def app(self) -> Connection:
        """A connection to the leader of the cluster.

        What another server passes on to the leader can reach the new stream's server before the word does of who waits for the
        answer; then it is lost. Word and order of the leader itself go one way, and so one after the other.
        """
        return connect([f"{self.addresses[self.leader()]}:{self.port}"], "app", "app-secret", timeout=10)

    @property
    def address(self) -> str:
        return f"{self.addresses[next(iter(self.running))]}:{self.port}"

    def stream(self, name: str, copies: int, messages: int = 0) -> list[str]:
        """Make a stream with messages; the servers that keep it, its leader first."""
        with self.app() as app:
            app.api(
                f"$JS.API.STREAM.CREATE.{name}",
                {
                    "name": name,
                    "subjects": [f"{name}.>"],
                    "num_replicas": copies,
                    "storage": "file",
                    "retention": "limits",
                    "discard": "old",
                    "max_consumers": -1,
                    "max_msgs": -1,
                    "max_bytes": -1,
                    "max_age": 0,
                },
            )
            for _ in range(messages):
                assert b'"seq"' in app.request(f"{name}.one", b"x" * 500).payload
        return self.keepers(name)

    def keepers(self, name: str) -> list[str]:
        """The servers that keep a stream, its leader first."""
        with self.app() as app:
            cluster = app.api(f"$JS.API.STREAM.INFO.{name}", {})["cluster"]
        return [cluster["leader"], *(replica["name"] for replica in cluster.get("replicas") or [])]

    def led(self, stream: str) -> bool:
        """Whether the stream has a leader, which alone tells of it."""
        try:
            return self.keepers(stream)[0] != ""
        except (KeyError, NatsError):
            return False

    def arguments(self, *hosts: str, **more: Any) -> dict[str, Any]:
        """The module's arguments for an inventory with these hosts."""
        monitors = {host: f"{self.addresses.get(host, '127.0.0.9')}:{self.monitor}" for host in hosts}
        user = {"user": "system", "password": "system-secret"}
        return {"servers": [self.address], "hosts": monitors, "wait": 60, **user, **more}


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """No server yet."""
    program("nats-server")
    cluster = Servers(tmp_path)
    yield cluster
    for name in list(cluster.running):
        cluster.stop(name)


def test_a_server_that_was_stopped_leaves_and_its_copies_are_made_elsewhere(servers: Servers, run_module: RunModule) -> None:
    servers.start("data1", "data2", "data3", "data4")
    keepers = servers.stream("EVENTS", 3, 200)
    everybody = servers.arguments("data1", "data2", "data3", "data4")
    assert not run_module("nats_members", everybody)["changed"]

    others = [name for name in servers.addresses if name != servers.leader()]
    leads = run_module("nats_members", servers.arguments(*others, wait=0))
    assert f"({servers.leader()} leads it, or did: stop nats-server there" in leads["msg"]

    left = next(name for name in keepers[1:] if name != servers.leader())
    stay = [name for name in servers.addresses if name != left]
    running = run_module("nats_members", servers.arguments(*stay))
    assert (running["failed"], running["removed"]) == (True, [])
    assert running["msg"].startswith(
        f"{left} runs as a member of the cluster, and is not in the inventory. Stop nats-server there"
    )
    assert servers.size() == 4

    servers.stop(left)
    told = run_module("nats_members", servers.arguments(*stay), check=True, diff=True)
    assert (told["changed"], told["removed"], told["members"]) == (True, [left], stay)
    assert f"{left}\n" in told["diff"]["before"]
    assert f"{left}\n" not in told["diff"]["after"]
    assert servers.size() == 4

    done = run_module("nats_members", servers.arguments(*stay))
    assert (done["changed"], done["removed"], done["members"]) == (True, [left], stay)
    assert servers.size() == 3
    assert sorted(servers.keepers("EVENTS")) == stay
    assert [servers.page(name, "jsz")["messages"] for name in stay] == [200] * 3
    assert not run_module("nats_members", servers.arguments(*stay))["changed"]

    shutil.rmtree(servers.place / left)
    servers.start(left)
    assert not run_module("nats_members", everybody)["changed"], "it came back with an empty disk"


def test_five_become_three_one_after_the_other(servers: Servers, run_module: RunModule) -> None:
    servers.start("data1", "data2", "data3", "data4", "data5")
    servers.stream("EVENTS", 3, 50)
    one, other = [name for name in servers.addresses if name != servers.leader()][:2]
    stay = [name for name in servers.addresses if name not in (one, other)]
    servers.stop(one)
    first = run_module("nats_members", servers.arguments(*stay))
    assert first["failed"]
    assert first["msg"].startswith(f"Removed: {one}. {other} runs as a member of the cluster")
    servers.stop(other)
    assert run_module("nats_members", servers.arguments(*stay))["removed"] == [other]
    assert servers.size() == 3
    assert sorted(servers.keepers("EVENTS")) == stay
    assert [servers.page(name, "jsz")["messages"] for name in stay] == [50] * 3


def test_a_host_that_died_is_replaced_by_one_of_another_name(servers: Servers, run_module: RunModule) -> None:
    """The one that dies is the leader of the cluster, and it dies before the new one is there."""
    servers.start("data1", "data2", "data3")
    servers.stream("EVENTS", 3, 50)
    died = servers.leader()
    stay = [name for name in servers.addresses if name != died]
    servers.kill(died)
    early = run_module("nats_members", servers.arguments(*stay, "data4", wait=0))
    assert early["failed"]
    wait_until(lambda: servers.leader() != "", "another leader")
    servers.start("data4")
    done = run_module("nats_members", servers.arguments(*stay, "data4"))
    assert (done["removed"], done["members"]) == ([died], [*stay, "data4"])
    assert sorted(servers.keepers("EVENTS")) == [*stay, "data4"]
    assert [servers.page(name, "jsz")["messages"] for name in (*stay, "data4")] == [50] * 3


def test_a_server_whose_name_nobody_knows_any_more_leaves_by_its_id(servers: Servers, run_module: RunModule) -> None:
    servers.start("data1", "data2", "data3")
    for name in ("data3", "data2", "data1"):
        servers.stop(name)
    servers.start("data1", "data2")
    still_wanted = run_module("nats_members", servers.arguments("data1", "data2", "data3", wait=0))
    assert "data3: in the inventory, and not in the cluster" in still_wanted["msg"]
    done = run_module("nats_members", servers.arguments("data1", "data2"))
    assert [name.split()[0] for name in done["removed"]] == ["server"]
    assert servers.size() == 2


def test_three_become_two_only_where_no_stream_has_three_copies(servers: Servers, run_module: RunModule) -> None:
    servers.start("data1", "data2", "data3")
    servers.stream("EVENTS", 3)
    servers.stop("data3")
    # Whichever of them data3 led.
    wait_until(lambda: servers.leader() != "" and servers.led("EVENTS"), "the cluster and the stream have a leader again")
    stay = servers.arguments("data1", "data2")
    for check in (True, False):
        refused = run_module("nats_members", stay, check=check)
        assert refused["failed"]
        assert "too few servers for the copies that streams have: EVENTS (3)" in refused["msg"]
    single = run_module("nats_members", servers.arguments(servers.leader()))
    assert "a cluster does not become a single server" in single["msg"]
    assert servers.size() == 3
    with servers.app() as app:
        app.api("$JS.API.STREAM.DELETE.EVENTS", {})
    assert run_module("nats_members", stay)["removed"] == ["data3"]


def test_the_only_copy_of_a_stream_is_not_given_up(servers: Servers, run_module: RunModule) -> None:
    servers.start("data1", "data2", "data3", "data4")
    for number in range(20):
        [keeper] = servers.stream(f"ONE{number}", 1, 5)
        if keeper != servers.leader():
            break
    stay = servers.arguments(*(name for name in servers.addresses if name != keeper))
    servers.stop(keeper)
    wait_until(lambda: servers.leader() != "", "a leader")
    stay["servers"] = [servers.address]
    for check in (True, False):
        refused = run_module("nats_members", {**stay, "wait": 1}, check=check)
        assert refused["failed"]
        assert "whose copies would be lost" in refused["msg"]
    assert servers.size() == 4


def test_nobody_leaves_while_another_one_is_missing(servers: Servers, run_module: RunModule) -> None:
    servers.start("data1", "data2", "data3", "data4", "data5")
    servers.stop("data5")
    servers.stop("data4")
    wait_until(lambda: servers.leader() != "", "a leader")
    refused = run_module("nats_members", servers.arguments("data1", "data2", "data3", "data4", wait=1))
    assert refused["msg"] == "data5 cannot leave the cluster yet: data4 does not run"
    assert (
        "data4 does not run"
        in run_module("nats_members", servers.arguments("data1", "data2", "data3", "data4"), check=True)["msg"]
    )


def test_a_majority_that_is_gone_is_told(servers: Servers, run_module: RunModule) -> None:
    servers.start("data1", "data2", "data3")
    servers.stop("data3")
    servers.stop("data2")
    refused = run_module("nats_members", servers.arguments("data1", "data2", wait=0, timeout=1))
    assert (
        refused["msg"].startswith("the cluster has no leader among the servers of the inventory")
        or "does not run" in refused["msg"]
    )


def test_a_password_that_is_wrong_is_told_and_in_check_mode_no_error(servers: Servers, run_module: RunModule) -> None:
    servers.start("data1", "data2", "data3")
    wrong = servers.arguments("data1", "data2", "data3", password="wrong")
    assert "Authorization Violation" in run_module("nats_members", wrong)["msg"]
    told = run_module("nats_members", wrong, check=True)
    assert (told["changed"], told["removed"]) == (False, [])
    assert "Authorization Violation" in told["told"]


# --- what speaks against it, without servers ---------------------------------------------------------------------


def cluster(*names: str, streams: tuple[Stream, ...] = (), ill: dict[str, str] | None = None, gone: str = "old") -> Cluster:
    """These servers, all well, and one that left."""
    members = {name: Member(name, True, True) for name in names}
    return Cluster({**members, gone: Member(gone, False, False)}, streams, ill or {})


def kept(copies: int, *names: str) -> Stream:
    return Stream("EVENTS", copies, tuple(Member(name, True, True) for name in names))


def test_a_server_may_leave_when_all_others_are_well() -> None:
    assert unready(cluster("a", "b", "c", streams=(kept(3, "a", "b"),)), ["a", "b", "c"]) == ""


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (cluster("a", "b"), "c: in the inventory, and not in the cluster"),
        (cluster("a", "b", "c", ill={"c": "stream not current"}), "c is not healthy: stream not current"),
        (
            Cluster({name: Member(name, name != "c", True) for name in "abc"}, (), {}),
            "c is behind the others",
        ),
        (
            Cluster({name: Member(name, True, name != "b") for name in "abc"}, (), {}),
            "b does not run",
        ),
        (
            cluster("a", "b", "c", streams=(kept(3, "a"),)),
            "of the 3 copies of the stream EVENTS 1 are there, which is no majority",
        ),
        (
            cluster("a", "b", "c", streams=(Stream("EVENTS", 0, (), "stream is offline"),)),
            "nobody answers for the stream EVENTS, whose copies would be lost: stream is offline",
        ),
    ],
)
def test_what_keeps_a_server_is_said(found: Cluster, why: str) -> None:
    assert unready(found, ["a", "b", "c"]) == why


def test_a_majority_of_all_members_has_to_run() -> None:
    found = Cluster({name: Member(name, True, name in "ab") for name in "abcd"}, (), {})
    assert unready(found, ["a", "b"]) == "2 of 4 servers run, which is no majority"


def test_a_server_that_left_is_waited_for_until_every_copy_is_made() -> None:
    hosts = ["a", "b", "c"]
    assert unsettled(cluster("a", "b", "c"), hosts, "old") == "old is still in the cluster"
    well = Cluster({name: Member(name, True, True) for name in hosts}, (kept(3, "a", "b"),), {})
    assert unsettled(well, hosts, "old") == "the stream EVENTS has not all of its 3 copies: one is missing"
    late = Stream("EVENTS", 3, (Member("a", True, True), Member("b", True, True), Member("c", False, True)))
    assert unsettled(Cluster(well.members, (late,), {}), hosts, "old") == "the stream EVENTS has not all of its 3 copies: c"
    silent = Stream("EVENTS", 0, (), "no answer")
    assert unsettled(Cluster(well.members, (silent,), {}), hosts, "old") == "nobody answers for the stream EVENTS: no answer"
    copied = Cluster(well.members, (kept(3, "a", "b", "c"),), {"c": "not current"})
    assert unsettled(copied, hosts, "old") == "c is not healthy: not current"
    assert unsettled(Cluster(well.members, (kept(3, "a", "b", "c"),), {}), hosts, "old") == ""


def test_streams_with_no_more_copies_than_hosts_forbid_nothing() -> None:
    assert forbidden(cluster("a", "b", streams=(kept(2, "a", "b"),)), ["a", "b"]) == ""
