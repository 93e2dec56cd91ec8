"""The load balancer's configuration, in a real HAProxy before real servers."""

import asyncio
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import xxhash
from real_servers import free_ports, log_tail, program, wait
from rendering import ROLES, render

STATE_TOOL = ROLES / "haproxy" / "files" / "haproxy-state.py"


@dataclass
class Answer:
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes


async def read_message(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    """Return the first line, the headers (lower case) and the body of an HTTP message."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return first, headers, await reader.readexactly(int(headers.get("content-length", "0")))


async def send(
    port: int, method: str = "GET", path: str = "/", headers: tuple[tuple[str, str], ...] = (), body: bytes = b""
) -> Answer:
    """Send one request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{method} {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    try:
        first, found, content = await asyncio.wait_for(read_message(reader), 10)
    finally:
        writer.close()
    return Answer(int(first.split()[1]), found, content)


@dataclass
class Upstream:
    """A server of one slot on one host, as small as can be."""

    name: str
    slot: str
    port: int
    address: str = "127.0.0.1"
    ready: bool = True
    answers: Callable[[str], int] = lambda _: 200
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self.server = await asyncio.start_server(self._serve, self.address, self.port)

    async def stop(self) -> None:
        """Stop listening and break off every connection."""
        if self.server:
            self.server.close()
        for writer in self.writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            while True:
                first, headers, _ = await read_message(reader)
                if "/health/ready" in first:
                    status = 200 if self.ready else 503
                else:
                    self.requests.append((first, headers))
                    status = self.answers(first)
                if status == 0:
                    return
                body = f"{self.name} {self.slot}".encode()
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()


class Balancer:
    """A running HAProxy with the role's configuration."""

    def __init__(self, place: Path, hosts: list[dict[str, str]]) -> None:
        self.place = place
        self.port, self.stats_port, self.blue, self.green = free_ports(4)
        self.process: subprocess.Popen[bytes] | None = None
        self.config = place / "haproxy.cfg"
        (place / "state").write_text("1\n")
        self.set_maps("blue", "green", "none", 0)
        self.configure(hosts)

    def configure(self, hosts: list[dict[str, str]], slot_ports: dict[str, int] | None = None, **inputs: object) -> None:
        """Write the configuration for some hosts."""
        text = render(
            "haproxy",
            "haproxy.cfg.j2",
            haproxy_frontend_address="127.0.0.1",
            haproxy_frontend_port=self.port,
            haproxy_stats_address="127.0.0.1",
            haproxy_stats_port=self.stats_port,
            haproxy_app_hosts=hosts,
            haproxy_slot_ports=slot_ports or {"blue": self.blue, "green": self.green},
            __haproxy_maps_dir=str(self.place),
            __haproxy_admin_socket=str(self.place / "admin.sock"),
            __haproxy_state_file=str(self.place / "state"),
            **inputs,
        )
        if os.geteuid() != 0:
            text = re.sub(r"^    (chroot|user|group) .*\n", "", text, flags=re.MULTILINE)
            text = re.sub(r"(admin\.sock) user \S+ group \S+", r"\1", text)
        self.config.write_text(text)

    def set_maps(self, stable: str, canary: str, salt: str, cut: int) -> None:
        """Set the split on disk, and in the running process if there is one."""
        (self.place / "release.map").write_text(f"stable {stable}\ncanary {canary}\nsalt {salt}\n")
        (self.place / "cut.map").write_text(f"canary {cut}\n")
        if self.process:
            for key, value in (("stable", stable), ("canary", canary), ("salt", salt)):
                assert self.ask(f"set map {self.place}/release.map {key} {value}").strip() == ""
            assert self.ask(f"set map {self.place}/cut.map canary {cut}").strip() == ""

    def start(self) -> None:
        """Start it and return when it serves."""
        with (self.place / "log").open("wb") as log:
            self.process = subprocess.Popen([program("haproxy"), "-W", "-f", self.config], stdout=log, stderr=log)
        wait(lambda: self._try("show info") != "", f"HAProxy serves: {log_tail(self.place / 'log')}")

    def stop(self) -> None:
        """Stop the master and its workers."""
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(10)

    def _try(self, command: str) -> str:
        try:
            return self.ask(command)
        except OSError:
            return ""

    def ask(self, command: str) -> str:
        """Return the admin socket's answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.place / "admin.sock"))
            connection.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def status(self, backend: str, server: str) -> str:
        """Return a server's status as the statistics have it."""
        lines = [line.split(",") for line in self.ask("show stat").splitlines()]
        return next(line[17] for line in lines if line[:2] == [backend, server])

    async def becomes(self, status: str, backend: str, server: str) -> None:
        """Return when a server has a status."""
        await until(lambda: self.status(backend, server) == status, f"{backend}/{server} is {status}")

    def tool(self, command: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Run the role's tool on this HAProxy."""
        names = {"config": "haproxy.cfg", "socket": "admin.sock", "state": "state", "mark": "mark"}
        places = [f"--{option}={self.place / name}" for option, name in names.items()]
        return subprocess.run(
            [sys.executable, str(STATE_TOOL), *places, command, *more], text=True, capture_output=True, check=False
        )

    def reload(self) -> subprocess.CompletedProcess[str]:
        """Do what the unit does on a reload."""
        assert self.process
        assert self.tool("save").returncode == 0
        return self.tool("reload", str(self.process.pid))


HOSTS = [{"name": "app1", "address": "127.0.0.1"}]
TWO_HOSTS = [{"name": "app1", "address": "127.0.0.1"}, {"name": "app2", "address": "127.0.0.2"}]


@pytest.fixture
def balancer(tmp_path: Path) -> Iterator[Balancer]:
    """A load balancer in front of app1, not yet started."""
    program("haproxy")
    one = Balancer(tmp_path, HOSTS)
    yield one
    one.stop()


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine, two minutes at most."""
    asyncio.run(asyncio.wait_for(main, 120))


async def until(condition: Callable[[], bool], what: str, seconds: float = 10) -> None:
    """Wait for a condition without holding up the servers of the same loop."""
    await asyncio.wait_for(_poll(condition), seconds)
    assert condition(), what


async def _poll(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


async def serve(balancer: Balancer, *upstreams: Upstream) -> None:
    """Start servers and the load balancer, and return when every ready server is up."""
    for upstream in upstreams:
        await upstream.start()
    await asyncio.to_thread(balancer.start)
    for upstream in upstreams:
        if upstream.ready:
            await balancer.becomes("UP", f"slot_{upstream.slot}", upstream.name)


def bucket(account: str, salt: str) -> int:
    """The split as the design defines it."""
    return int(xxhash.xxh32(f"{account}:{salt}".encode()).intdigest()) % 10000


@pytest.mark.parametrize("hosts", [HOSTS, TWO_HOSTS, [{"name": "app-1.example", "address": "10.0.0.7"}]])
@pytest.mark.parametrize("log", ["all", "errors"])
def test_configuration_is_valid_without_a_warning(tmp_path: Path, hosts: list[dict[str, str]], log: str) -> None:
    haproxy = program("haproxy")
    one = Balancer(tmp_path, hosts)
    one.configure(hosts, haproxy_log_requests=log)
    result = subprocess.run([haproxy, "-c", "-f", one.config], text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stdout + result.stderr


def test_split_is_the_hash_of_the_design_and_grows_only(balancer: Balancer) -> None:
    """20,000 accounts: each is on the slot that xxhash says, and who is on the canary stays there as the cut grows."""
    accounts = [f"acct-{number}" for number in range(20_000)]
    salt = "2026.11.22-1"

    async def slots_of(port: int, some: list[str]) -> dict[str, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        found = {}
        for start in range(0, len(some), 50):
            batch = some[start : start + 50]
            writer.write(b"".join(b"GET / HTTP/1.1\r\nHost: t\r\nX-Account-Id: %s\r\n\r\n" % one.encode() for one in batch))
            for account in batch:
                first, _, body = await read_message(reader)
                assert first.split()[1] == "200"
                found[account] = body.decode().split()[1]
        writer.close()
        return found

    async def main() -> None:
        blue, green = Upstream("app1", "blue", balancer.blue), Upstream("app1", "green", balancer.green)
        await serve(balancer, blue, green)
        before: set[str] = set()
        for cut in (500, 2000, 5000, 10000):
            balancer.set_maps("blue", "green", salt, cut)
            parts = await asyncio.gather(*(slots_of(balancer.port, accounts[start::8]) for start in range(8)))
            found = {account: slot for part in parts for account, slot in part.items()}
            assert found == {account: "green" if bucket(account, salt) < cut else "blue" for account in accounts}
            canary = {account for account, slot in found.items() if slot == "green"}
            assert canary >= before
            assert abs(len(canary) / len(accounts) - cut / 10000) < 0.005
            before = canary
        await blue.stop()
        await green.stop()

    run(main())


def test_request_without_an_account_goes_to_the_stable_slot_even_at_a_full_cut(balancer: Balancer) -> None:
    async def main() -> None:
        blue, green = Upstream("app1", "blue", balancer.blue), Upstream("app1", "green", balancer.green)
        await serve(balancer, blue, green)
        balancer.set_maps("green", "blue", "r2", 10000)
        assert (await send(balancer.port)).body == b"app1 green"
        assert (await send(balancer.port, headers=(("X-Account-Id", ""),))).body == b"app1 green"
        assert (await send(balancer.port, headers=(("X-Account-Id", "a1"),))).body == b"app1 blue"
        await blue.stop()
        await green.stop()

    run(main())


def test_request_that_names_two_accounts_is_refused(balancer: Balancer) -> None:
    """Neither of two headers, nor a list in one, may make the app see another account than the split."""

    async def main() -> None:
        blue = Upstream("app1", "blue", balancer.blue)
        await serve(balancer, blue)
        twice = await send(balancer.port, headers=(("X-Account-Id", "a1"), ("X-Account-Id", "a2")))
        listed = await send(balancer.port, headers=(("X-Account-Id", "a1, a2"),))
        assert (twice.status, listed.status) == (400, 400)
        assert blue.requests == []
        await blue.stop()

    run(main())


def test_what_a_client_says_of_its_origin_is_replaced(balancer: Balancer) -> None:
    async def main() -> None:
        blue = Upstream("app1", "blue", balancer.blue)
        await serve(balancer, blue)
        told = {"X-Forwarded-For": "8.8.8.8", "X-Request-Id": "mine", "Forwarded": "for=8.8.8.8", "X-Real-Ip": "8.8.8.8"}
        answer = await send(balancer.port, headers=tuple(told.items()))
        seen = blue.requests[-1][1]
        assert seen["x-forwarded-for"] == "127.0.0.1"
        assert re.fullmatch(r"[0-9a-f-]{36}", seen["x-request-id"])
        assert not {"forwarded", "x-real-ip"} & seen.keys()
        assert answer.headers["x-request-id"] == seen["x-request-id"]
        assert answer.headers["x-release-slot"] == "blue"
        await blue.stop()

    run(main())


def test_no_server_is_a_problem_with_retry_after(balancer: Balancer) -> None:
    async def main() -> None:
        await asyncio.to_thread(balancer.start)
        await balancer.becomes("DOWN", "slot_blue", "app1")
        answer = await send(balancer.port, "POST", "/api/orders", (("X-Account-Id", "a1"),), b"{}")
        assert answer.status == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "1"
        assert json.loads(answer.body)["status"] == 503

    run(main())


def test_body_that_is_too_large_is_refused(balancer: Balancer) -> None:
    async def main() -> None:
        blue = Upstream("app1", "blue", balancer.blue)
        await serve(balancer, blue)
        fits = await send(balancer.port, "POST", "/api/orders", body=b"x" * 16384)
        large = await send(balancer.port, "POST", "/api/orders", body=b"x" * 16385)
        assert (fits.status, large.status) == (200, 413)
        assert large.headers["content-type"] == "application/problem+json"
        await blue.stop()

    run(main())


@pytest.mark.parametrize("failure", [0, 503], ids=["breaks off", "answers 503"])
def test_order_that_one_server_fails_is_answered_by_another(balancer: Balancer, failure: int) -> None:
    """No client sees that a server died or drains, bodies included; what is not idempotent is not sent twice."""

    async def main() -> None:
        balancer.configure(TWO_HOSTS)
        good = Upstream("app1", "blue", balancer.blue)
        bad = Upstream("app2", "blue", balancer.blue, "127.0.0.2", answers=lambda _: failure)
        await serve(balancer, good, bad)
        answers = [
            await send(balancer.port, "POST", "/api/orders", (("X-Account-Id", f"a{number}"),), b'{"n":1}')
            for number in range(40)
        ]
        assert {answer.status for answer in answers} == {200}
        assert bad.requests, "the failing server got its share"
        seen = len(good.requests) + len(bad.requests)
        operator = [await send(balancer.port, "POST", "/api/trading/halt") for _ in range(10)]
        assert len(good.requests) + len(bad.requests) == seen + len(operator)
        await good.stop()
        await bad.stop()

    run(main())


async def load(port: int, stop: asyncio.Event, results: list[str], keep: bool) -> None:
    """Send orders, on a connection that is kept until an answer says that it closes, or on one for each."""
    number = 0
    while not stop.is_set():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while not stop.is_set():
                number += 1
                body = b'{"client_order_id":"%d"}' % number
                head = f"POST /api/orders HTTP/1.1\r\nHost: t\r\nX-Account-Id: a{number}\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                first, headers, content = await asyncio.wait_for(read_message(reader), 10)
                results.append(f"{first.split()[1]} {content.decode()}")
                if not keep or headers.get("connection", "").lower() == "close":
                    break
                await asyncio.sleep(0.002)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            results.append(f"failed: {error!r}")
        finally:
            writer.close()


def has_more(results: list[str], count: int) -> bool:
    """Tell whether more than `count` requests were answered."""
    return len(results) > count


def test_ten_reloads_under_load_lose_no_request_and_keep_who_is_out(balancer: Balancer) -> None:
    """A drained server stays drained, a down one gets no request, and no client notices ten reloads."""

    async def main() -> None:
        balancer.configure([{"name": f"app{number}", "address": f"127.0.0.{number}"} for number in (1, 2, 3, 4)])
        app1 = Upstream("app1", "blue", balancer.blue)
        await serve(balancer, app1)
        others = [Upstream(f"app{number}", "blue", balancer.blue, f"127.0.0.{number}", ready=number != 4) for number in (2, 3, 4)]
        for upstream in others:
            await upstream.start()
        await balancer.becomes("UP", "slot_blue", "app3")
        await balancer.becomes("DOWN", "slot_blue", "app4")
        balancer.ask("set server slot_blue/app3 state drain")
        for upstream in others:
            upstream.requests.clear()
        stop = asyncio.Event()
        results: list[str] = []
        clients = [asyncio.create_task(load(balancer.port, stop, results, number % 3 > 0)) for number in range(12)]
        for _ in range(10):
            before = len(results)
            result = await asyncio.to_thread(balancer.reload)
            assert result.returncode == 0, result.stderr
            # Behind it may stand how many checks in a row were missed.
            assert balancer.status("slot_blue", "app3").startswith("DRAIN")
            assert balancer.status("slot_blue", "app4") == "DOWN"
            await until(functools.partial(has_more, results, before + 100), "the load goes on")
        stop.set()
        await asyncio.gather(*clients)
        failures = [result for result in results if not result.startswith("200")]
        print(f"{len(results)} requests through 10 reloads, {len(failures)} failed")
        assert failures == []
        assert others[1].requests == [], "the drained server got requests"
        assert others[2].requests == [], "the server that is down got requests"
        assert others[0].requests
        await asyncio.gather(app1.stop(), *(upstream.stop() for upstream in others))

    run(main())


def test_new_server_gets_no_request_before_its_first_successful_check(balancer: Balancer) -> None:
    async def main() -> None:
        app1 = Upstream("app1", "blue", balancer.blue)
        await serve(balancer, app1)
        app2 = Upstream("app2", "blue", balancer.blue, "127.0.0.2", ready=False)
        await app2.start()
        balancer.configure(TWO_HOSTS)
        assert balancer.tool("stale").returncode == 0
        assert (await asyncio.to_thread(balancer.reload)).returncode == 0
        assert balancer.tool("stale").returncode == 1
        assert balancer.status("slot_blue", "app2") == "DOWN"
        for number in range(50):
            assert (await send(balancer.port, headers=(("X-Account-Id", f"a{number}"),))).body == b"app1 blue"
        assert app2.requests == []
        app2.ready = True
        await balancer.becomes("UP", "slot_blue", "app2")
        for number in range(50):
            assert (await send(balancer.port, headers=(("X-Account-Id", f"a{number}"),))).status == 200
        assert app2.requests
        await app1.stop()
        await app2.stop()

    run(main())


def test_server_that_moved_is_reached_at_its_new_port_after_a_reload(balancer: Balancer) -> None:
    """HAProxy's own state file would keep the old address against the configuration."""

    async def main() -> None:
        app1 = Upstream("app1", "blue", balancer.blue)
        await serve(balancer, app1)
        [port] = free_ports(1)
        moved = Upstream("app1", "moved", port)
        await moved.start()
        balancer.configure(HOSTS, {"blue": port, "green": balancer.green})
        assert (await asyncio.to_thread(balancer.reload)).returncode == 0
        await balancer.becomes("UP", "slot_blue", "app1")
        assert (await send(balancer.port)).body == b"app1 moved"
        await app1.stop()
        await moved.stop()

    run(main())


def test_reload_of_what_cannot_start_is_said_and_the_old_process_serves_on(balancer: Balancer) -> None:
    async def main() -> None:
        app1 = Upstream("app1", "blue", balancer.blue)
        await serve(balancer, app1)
        balancer.config.write_text(balancer.config.read_text().replace("balance leastconn", "balance nonsense"))
        assert balancer.process
        result = await asyncio.to_thread(balancer.tool, "--timeout", "2", "reload", str(balancer.process.pid))
        assert result.returncode == 1
        assert "old one goes on serving" in result.stderr
        assert (await send(balancer.port)).status == 200
        await app1.stop()

    run(main())


def test_metrics_and_statistics_are_on_their_own_port(balancer: Balancer) -> None:
    async def main() -> None:
        await asyncio.to_thread(balancer.start)
        metrics = await fetch(balancer.stats_port, "/metrics")
        page = await fetch(balancer.stats_port, "/stats")
        assert "haproxy_server_status" in metrics
        assert "slot_blue" in page

    async def fetch(port: int, path: str) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        text = (await reader.read()).decode()
        writer.close()
        return text

    run(main())
