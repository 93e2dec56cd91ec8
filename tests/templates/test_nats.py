"""The bus' configuration, in a real NATS server with the fleet's users."""

import asyncio
import json
import re
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import nats
import nats.errors
import nats.js.errors
import pytest
import yaml
from nats.aio.client import Client
from nats.js.api import KeyValueConfig, StreamConfig
from real_servers import free_ports, listens, log_tail, program, wait
from rendering import REPOSITORY, render

FLEET = yaml.safe_load((REPOSITORY / "group_vars" / "all" / "fleet.yml").read_text())
USERS = [user | {"password": f"password-of-the-user-{user['name']}"} for user in FLEET["nats_users"]]


class Bus:
    """A NATS server with the role's configuration."""

    def __init__(self, place: Path, cluster: list[dict[str, str]], number: int, ports: list[int]) -> None:
        self.place, self.cluster = place, cluster
        self.name, self.address = cluster[number]["name"], cluster[number]["address"]
        self.port, self.monitor, self.cluster_port = ports
        self.process: subprocess.Popen[bytes] | None = None
        place.mkdir(exist_ok=True)
        self.configure()

    def configure(self, **inputs: Any) -> None:
        """Write the configuration."""
        version = subprocess.run([program("nats-server"), "--version"], text=True, capture_output=True, check=True)
        values: dict[str, Any] = {
            "inventory_hostname": self.name,
            "nats_users": USERS,
            "nats_bind_address": self.address,
            "nats_port": self.port,
            "nats_monitor_port": self.monitor,
            "nats_cluster_port": self.cluster_port,
            "nats_cluster_hosts": self.cluster,
            "nats_cluster_password": "password-of-the-cluster",
            "__nats_store_dir": str(self.place / "store"),
            "__nats_version": {"stdout": version.stdout},
        }
        (self.place / "nats.conf").write_text(render("nats", "nats-server.conf.j2", **(values | inputs)))

    def figures(self, page: str) -> dict[str, Any]:
        """A page of the server's monitoring."""
        with urllib.request.urlopen(f"http://{self.address}:{self.monitor}/{page}", timeout=5) as answer:
            return dict(json.load(answer))

    def check(self) -> subprocess.CompletedProcess[str]:
        """Check it as the role does before it lands."""
        command = [program("nats-server"), "-t", "-c", str(self.place / "nats.conf")]
        return subprocess.run(command, text=True, capture_output=True, check=False)

    def start(self) -> None:
        """Start the server and return when it listens."""
        with (self.place / "log").open("wb") as log:
            self.process = subprocess.Popen([program("nats-server"), "-c", str(self.place / "nats.conf")], stdout=log, stderr=log)
        wait(lambda: listens(self.port, self.address), f"NATS serves: {log_tail(self.place / 'log')}")

    def stop(self) -> None:
        """Stop the server at once."""
        if self.process:
            self.process.terminate()
            self.process.wait(10)

    def reload(self) -> None:
        """Have it read its configuration again."""
        assert self.process
        subprocess.run([program("nats-server"), "--signal", f"reload={self.process.pid}"], check=True, capture_output=True)
        wait(lambda: "Reloaded" in (self.place / "log").read_text(), "NATS reloaded")

    async def connect(self, user: str, refused: list[str] | None = None, password: str | None = None) -> Client:
        """Return a connection; what the server refuses it goes to `refused`."""

        async def note(error: Exception) -> None:
            if refused is not None:
                refused.append(str(error).lower())

        return await nats.connect(
            f"nats://{self.address}:{self.port}",
            user=user,
            password=password or f"password-of-the-user-{user}",
            error_cb=note,
            allow_reconnect=False,
            connect_timeout=5,
        )


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    """One running server."""
    program("nats-server")
    one = Bus(tmp_path / "bus", [{"name": "data1", "address": "127.0.0.1"}], 0, free_ports(3))
    one.start()
    yield one
    one.stop()


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine, a minute at most."""
    asyncio.run(asyncio.wait_for(main, 60))


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition, ten seconds at most."""
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"not within 10 s: {what}")


async def flush(connection: Client) -> None:
    """Return once the server has all that was sent: nats-py's first ping overtakes what is buffered, the second does not."""
    await connection.flush()
    await connection.flush()


def test_rendered_configuration_passes_the_check_that_guards_it(bus: Bus) -> None:
    result = bus.check()
    assert result.returncode == 0, result.stderr


def test_bad_configuration_does_not_pass(bus: Bus) -> None:
    bus.configure(nats_jetstream_max_file="much")
    assert bus.check().returncode != 0


def test_configuration_is_the_same_on_every_run_and_has_no_clear_password(bus: Bus) -> None:
    first = (bus.place / "nats.conf").read_text()
    bus.configure()
    assert (bus.place / "nats.conf").read_text() == first
    assert "password-of-the-user" not in first
    assert len(set(re.findall(r"\$2a\$08\$\S{53}", first))) == len(USERS)


@pytest.mark.parametrize(("version", "written"), [("v2.9.10", False), ("v2.10.27", True), ("v2.11.4", True)])
def test_every_message_is_written_before_it_is_acknowledged_where_the_version_can(bus: Bus, version: str, written: bool) -> None:
    bus.configure(__nats_version={"stdout": f"nats-server: {version}"})
    assert ('sync_interval: "always"' in (bus.place / "nats.conf").read_text()) is written


@pytest.mark.parametrize("credentials", ['"user":"client","pass":"wrong"', '"user":"nobody","pass":"x"', ""])
def test_nobody_gets_in_without_a_password(bus: Bus, credentials: str) -> None:
    with socket.create_connection(("127.0.0.1", bus.port), timeout=5) as connection, connection.makefile("rb") as lines:
        assert lines.readline().startswith(b"INFO ")
        comma = "," if credentials else ""
        connection.sendall(f'CONNECT {{"verbose":false{comma}{credentials}}}\r\nPING\r\n'.encode())
        assert b"Authorization Violation" in lines.readline()


def test_order_goes_from_client_to_app_and_back(bus: Bus) -> None:
    """Request and reply, with a queue group for each slot; the app answers on an inbox that it may not publish to otherwise."""

    async def main() -> None:
        app, client = await bus.connect("trading_bot"), await bus.connect("client")

        async def answer(message: Any) -> None:
            await message.respond(b"accepted")

        await app.subscribe("trading.orders.submit.*", queue="blue", cb=answer)
        await flush(app)
        for _ in range(5):
            assert (await client.request("trading.orders.submit.a1", b"{}", timeout=5)).data == b"accepted"
        await app.close()
        await client.close()

    run(main())


def test_app_has_its_stream_and_follows_the_split_that_the_engine_sets(bus: Bus) -> None:
    async def main() -> None:
        app, engine = await bus.connect("trading_bot"), await bus.connect("release")
        stream = app.jetstream()
        await stream.add_stream(StreamConfig(name="TRADING_EVENTS", subjects=["trading.events.>"]))
        assert (await stream.publish("trading.events.order", b"1", headers={"Nats-Msg-Id": "1"})).seq == 1
        assert (await stream.publish("trading.events.order", b"1", headers={"Nats-Msg-Id": "1"})).duplicate
        events = await stream.pull_subscribe("trading.events.>", durable="reader")
        [message] = await events.fetch(1, timeout=5)
        await message.ack_sync()

        split = await engine.jetstream().create_key_value(KeyValueConfig(bucket="release", history=5))
        await split.put("traffic", b"{}")
        assert (await split.get("traffic")).value == b"{}"
        followed: Any = await (await app.jetstream().key_value("release")).watch("traffic")
        update = await followed.updates(timeout=5)
        assert update is not None
        assert update.value == b"{}"
        await app.close()
        await engine.close()

    run(main())


def test_slot_hears_the_copies_of_orders_that_the_other_slot_makes(bus: Bus) -> None:
    async def main() -> None:
        stable, shadow = await bus.connect("trading_bot"), await bus.connect("trading_bot")
        copies = await shadow.subscribe("trading.shadow.green", queue="green")
        await flush(shadow)
        await stable.publish("trading.shadow.green", b"{}")
        assert (await copies.next_msg(timeout=20)).data == b"{}"
        await stable.close()
        await shadow.close()

    run(main())


@pytest.mark.parametrize(
    ("user", "subject"),
    [
        ("client", "trading.events.order"),
        ("client", "trading.shadow.green"),
        ("release", "trading.shadow.green"),
        ("client", "trading.control.halt"),
        ("client", "$KV.release.traffic"),
        ("client", "$JS.API.STREAM.LIST"),
        ("release", "trading.orders.submit.a1"),
        ("release", "trading.events.order"),
        ("release", "$JS.API.STREAM.PURGE.TRADING_EVENTS"),
        ("release", "$JS.API.STREAM.DELETE.KV_release"),
        ("backup", "trading.events.order"),
        ("backup", "$KV.release.traffic"),
        ("backup", "$JS.API.STREAM.PURGE.TRADING_EVENTS"),
        ("trading_bot", "$KV.release.traffic"),
        ("trading_bot", "$JS.API.STREAM.DELETE.TRADING_EVENTS"),
        ("trading_bot", "$JS.API.STREAM.PURGE.KV_release"),
        ("trading_bot", "$JS.API.STREAM.MSG.DELETE.TRADING_EVENTS"),
        ("trading_bot", "$SYS.REQ.SERVER.PING"),
        ("trading_bot", "$JS.API.SERVER.REMOVE"),
        ("backup", "$JS.API.SERVER.REMOVE"),
        ("system", "$JS.API.STREAM.DELETE.TRADING_EVENTS"),
        ("system", "trading.orders.submit.a1"),
    ],
)
def test_user_may_not_publish(bus: Bus, user: str, subject: str) -> None:
    async def main() -> None:
        refused: list[str] = []
        connection = await bus.connect(user, refused)
        await connection.publish(subject, b"")
        await until(lambda: bool(refused), f"{user} is refused {subject}")
        assert "permissions violation for publish" in refused[0]
        await connection.close()

    run(main())


@pytest.mark.parametrize(
    ("user", "subject"),
    [
        ("client", "trading.orders.submit.*"),
        ("client", "trading.events.>"),
        ("client", "trading.shadow.>"),
        ("client", ">"),
        ("release", "trading.>"),
        ("trading_bot", ">"),
    ],
)
def test_user_may_not_subscribe(bus: Bus, user: str, subject: str) -> None:
    async def main() -> None:
        refused: list[str] = []
        connection = await bus.connect(user, refused)
        await connection.subscribe(subject)
        await until(lambda: bool(refused), f"{user} is refused {subject}")
        assert "permissions violation for subscription" in refused[0]
        await connection.close()

    run(main())


def test_new_user_comes_with_a_reload_that_disconnects_nobody(bus: Bus) -> None:
    async def main() -> None:
        app = await bus.connect("trading_bot")
        bus.configure(nats_users=[*USERS, {"name": "extra", "password": "password-of-the-user-extra", "publish": ["a"]}])
        await asyncio.to_thread(bus.reload)
        extra = await bus.connect("extra")
        assert app.is_connected
        await app.flush()
        assert app.stats["reconnects"] == 0
        await extra.close()
        await app.close()

    run(main())


def test_three_servers_form_a_cluster_that_keeps_a_stream_thrice(tmp_path: Path) -> None:
    program("nats-server")
    ports = free_ports(3)
    hosts = [{"name": f"data{number}", "address": f"127.0.0.{number}"} for number in (1, 2, 3)]
    servers = [Bus(tmp_path / host["name"], hosts, number, ports) for number, host in enumerate(hosts)]

    async def main() -> None:
        app = await servers[0].connect("trading_bot")
        stream = app.jetstream(timeout=2)
        config = StreamConfig(name="TRADING_EVENTS", subjects=["trading.events.>"], num_replicas=3)
        for _ in range(100):
            try:
                found = await stream.add_stream(config)
                break
            except (nats.js.errors.APIError, nats.errors.Error):
                await asyncio.sleep(0.1)  # the servers are still choosing their leader
        assert found.cluster is not None
        assert found.cluster.name == "trading"
        assert len(found.cluster.replicas or []) == 2
        assert (await stream.publish("trading.events.order", b"1")).seq == 1
        await app.close()

    try:
        for server in servers:
            server.start()
        run(main())
    finally:
        for server in servers:
            server.stop()


def test_majority_that_chooses_the_first_leader_is_counted_of_all_servers(tmp_path: Path) -> None:
    """Two of four are none: else each half could choose one of its own, and both would lead."""
    ports = free_ports(3)
    hosts = [{"name": f"data{number}", "address": f"127.0.0.{number}"} for number in range(1, 5)]
    first = Bus(tmp_path / "data1", hosts, 0, ports)
    try:
        first.start()
        assert first.figures("jsz")["meta_cluster"]["cluster_size"] == 4
    finally:
        first.stop()


def test_cluster_grows_by_a_reload_and_a_server_that_was_replaced_has_its_streams_again(tmp_path: Path) -> None:
    program("nats-server")
    ports = free_ports(3)
    hosts = [{"name": f"data{number}", "address": f"127.0.0.{number}"} for number in range(1, 6)]
    servers = [Bus(tmp_path / host["name"], hosts[:3], number, ports) for number, host in enumerate(hosts[:3])]

    async def publish() -> None:
        app = await servers[0].connect("trading_bot")
        stream = app.jetstream(timeout=2)
        for _ in range(100):
            try:
                await stream.add_stream(StreamConfig(name="TRADING_EVENTS", subjects=["trading.events.>"], num_replicas=3))
                break
            except (nats.js.errors.APIError, nats.errors.Error):
                await asyncio.sleep(0.1)  # the servers are still choosing their leader
        for number in range(10):
            await stream.publish("trading.events.order", str(number).encode())
        await app.close()

    try:
        for server in servers:
            server.start()
        run(publish())
        began = servers[0].figures("varz")["start"]

        servers[2].stop()
        shutil.rmtree(servers[2].place / "store")
        servers[2].start()
        wait(lambda: servers[2].figures("jsz")["messages"] == 10, "the replaced server has copied the stream")

        servers += [Bus(tmp_path / host["name"], hosts, number, ports) for number, host in enumerate(hosts) if number > 2]
        for server in servers[3:]:
            server.start()
        for server in servers[:3]:
            server.cluster = hosts
            server.configure()
            server.reload()
        wait(
            lambda: {server.figures("jsz")["meta_cluster"]["cluster_size"] for server in servers} == {5}, "all five know of five"
        )
        assert servers[0].figures("varz")["start"] == began, "no server was restarted for it"
    finally:
        for server in servers:
            server.stop()


def test_container_is_confined_and_sees_a_replaced_configuration() -> None:
    """The directory of the configuration is mounted, not the file, which a new one would not replace."""
    text = render("nats", "compose.yaml.j2", __nats_user={"uid": 998, "group": 997}, nats_image="nats:2.10")
    service = yaml.safe_load(text)["services"]["nats"]
    assert service["user"] == "998:997"
    assert service["network_mode"] == "host"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "/etc/nats:/etc/nats:ro" in service["volumes"]
    assert service["command"] == ["-c", "/etc/nats/nats-server.conf"]
