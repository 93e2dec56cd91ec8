"""What the probes of diagnose_measure say of real servers, and of what programs print."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from ansible.module_utils.diagnose_servers import (
    nats_login,
    nats_state,
    port_outcome,
    redis_login,
    redis_state,
    series,
    time_offset,
)
from ansible.module_utils.diagnose_text import (
    blocking_rules,
    chrony_offset,
    host_port,
    last_errors,
    listening,
    listens,
    named_certificates,
    not_after,
    sections,
    slow_commands,
)
from plugin_testing import Nats, RunModule, free_port, program, wait_until
from plugin_testing import listens as answers


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[int]:
    """The port of a Redis with a user; its slow log has everything."""
    port = free_port()
    users = tmp_path / "users.acl"
    users.write_text("user default off\nuser app on >right-password ~* &* +@all\n")
    options = [
        "--port",
        str(port),
        "--aclfile",
        str(users),
        "--dir",
        str(tmp_path),
        "--save",
        "",
        "--slowlog-log-slower-than",
        "0",
    ]
    process = subprocess.Popen([program("redis-server"), *options], stdout=subprocess.DEVNULL)
    wait_until(lambda: answers(port), "Redis listening", process)
    yield port
    process.terminate()
    process.wait()


def test_redis_lets_in_who_has_the_password_and_says_how_long_it_takes(redis: int) -> None:
    answer = redis_login("127.0.0.1", redis, "app", "right-password")
    assert (answer["error"], answer["refused"]) == ("", False)
    assert answer["milliseconds"] >= 0


def test_redis_says_why_it_refuses_somebody(redis: int) -> None:
    answer = redis_login("127.0.0.1", redis, "app", "wrong-password")
    assert answer["error"].startswith("WRONGPASS")
    assert answer["refused"]
    assert redis_login("127.0.0.1", redis, "", "")["error"].startswith("NOAUTH")


def test_a_redis_that_is_not_there_is_no_refusal() -> None:
    answer = redis_login("127.0.0.1", free_port(), "app", "right-password")
    assert "refused" in answer["error"]
    assert not answer["refused"]


def test_redis_tells_its_memory_persistence_and_slow_commands_by_name_alone(redis: int) -> None:
    redis_login("127.0.0.1", redis, "app", "right-password")
    state = redis_state("127.0.0.1", redis, "app", "right-password", time.time() - 60)
    assert state["error"] == ""
    assert state["info"]["rdb_last_bgsave_status"] == "ok"
    assert {"PING", "AUTH"} <= {item["command"] for item in state["slow"]}
    assert "right-password" not in str(state)
    assert redis_state("127.0.0.1", redis, "app", "wrong-password", 0)["error"].startswith("WRONGPASS")


def test_nats_lets_in_and_refuses(nats: Nats) -> None:
    url = f"nats://127.0.0.1:{nats.port}"
    assert nats_login(url, "client", "client-secret")["error"] == ""
    refused = nats_login(url, "client", "wrong-secret")
    assert refused["refused"]
    assert "Authorization Violation" in refused["error"]
    assert not nats_login(f"nats://127.0.0.1:{free_port()}", "client", "client-secret")["refused"]


def test_nats_tells_its_health_and_storage(tmp_path: Path) -> None:
    monitor = free_port()
    server = Nats(tmp_path, f'http: "127.0.0.1:{monitor}"')
    try:
        wait_until(lambda: answers(monitor), "NATS' monitoring listening", server.process)
        state = nats_state(f"127.0.0.1:{monitor}")
    finally:
        server.stop()
    assert state["error"] == ""
    assert state["healthy"]
    assert state["lags"] == []
    assert nats_state(f"127.0.0.1:{monitor}")["error"]


def test_a_port_is_open_refused_or_without_an_answer() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert port_outcome("127.0.0.1", port)["outcome"] == "open"
        assert port in [number for _, number in listening(Path("/proc/net/tcp").read_text())]
    assert port_outcome("127.0.0.1", port)["outcome"] == "refused"
    with socket.socket() as server, ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        # Whose queue is full drops what comes, as a firewall does.
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        assert port_outcome("127.0.0.1", server.getsockname()[1], timeout=0.3)["outcome"] == "no answer"


@pytest.mark.parametrize("ahead", [90.0, -0.25])
def test_a_time_server_tells_how_far_the_clock_is_ahead(ahead: float) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def answer() -> None:
            _, address = server.recvfrom(512)
            now = time.time() - ahead + 2208988800
            stamp = struct.pack("!II", int(now), int(now % 1 * 2**32))
            server.sendto(b"\x24\x01" + 30 * b"\0" + stamp + stamp, address)

        thread = threading.Thread(target=answer)
        thread.start()
        found = time_offset(f"127.0.0.1:{server.getsockname()[1]}", timeout=5)
        thread.join()
    assert found["offset"] == pytest.approx(ahead, abs=0.2)


def test_what_does_not_answer_is_an_error_and_never_an_exception() -> None:
    assert time_offset(f"127.0.0.1:{free_port()}", timeout=0.2)["error"]
    assert "error" in series(f"127.0.0.1:{free_port()}", ["up"], 0, 60)["up"]


def test_listening_sockets_are_read_from_the_kernels_table() -> None:
    table = (
        "  sl  local_address rem_address   st\n"
        "   0: 0100007F:18EB 00000000:0000 0A 0\n"
        "   1: 3D02CB0A:18EB 00000000:0000 0A 0\n"
        "   2: 3D02CB0A:9999 0100007F:18EB 01 0\n"
    )
    found = listening(table)
    assert found == [("10.203.2.61", 6379), ("127.0.0.1", 6379)]
    assert listening("x\n 0: 00000000000000000000000000000000:1F90 0:0 0A") == [("::", 8080)]
    assert listens(found, "10.203.2.61", 6379)
    assert not listens(found, "10.0.0.1", 6379)
    assert listens([("0.0.0.0", 22)], "10.0.0.1", 22)


@pytest.mark.parametrize(
    "rule",
    [
        "-A INPUT -s 10.0.0.11/32 -p tcp -m tcp --dport 18080 -j DROP",
        "-A INPUT -p tcp -m multiport --dports 80,18080 -j REJECT --reject-with icmp-port-unreachable",
        "tcp dport 18080 drop",
        "ip saddr 10.0.0.11 tcp dport { 80, 18080 } counter packets 3 bytes 180 reject",
        "18080/tcp                  DENY        10.0.0.11",
    ],
)
def test_a_rule_that_turns_a_port_away_is_found_in_any_firewalls_words(rule: str) -> None:
    assert blocking_rules(f"# Generated\n-A INPUT -p tcp --dport 18080 -j ACCEPT\n  {rule}\n", 18080) == [rule]
    assert blocking_rules(rule, 8080) == []
    assert blocking_rules("-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP", 18080) == []


def test_the_apps_config_is_read_as_far_as_it_can_be() -> None:
    text = "# x\nredis:\n  url: redis://10.0.0.61:6379/0\n  username: 'trading_bot'\nnats:\n  url: [broken\n  user: trading_bot\n"
    assert sections(text)["redis"] == {"url": "redis://10.0.0.61:6379/0", "username": "trading_bot"}
    assert sections(text)["nats"]["user"] == "trading_bot"
    assert sections("") == {}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://10.0.0.61:6380/0", ("10.0.0.61", 6380)),
        ("rediss://user:p%40ss@redis.example.com/0", ("redis.example.com", 6379)),
        ("redis://[fd00::1]:6379/0", ("fd00::1", 6379)),
        ("10.0.0.61,10.0.0.62", ("10.0.0.61", 6379)),
    ],
)
def test_host_and_port_are_taken_from_an_address(url: str, expected: tuple[str, int]) -> None:
    assert host_port(url, 6379) == expected


def test_an_address_without_a_host_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected scheme://host:port"):
        host_port("redis://:6379", 6379)


def test_a_certificates_end_is_read_and_so_are_haproxys_certificates() -> None:
    assert not_after("notAfter=Feb  1 00:00:00 2025 GMT\n") == 1738368000.0
    assert not_after("Could not open file") is None
    config = "frontend api\n  bind :443 ssl crt /etc/haproxy/api.pem alpn h2\n  # bind :444 ssl crt /etc/old.pem\n"
    assert named_certificates(config) == ["/etc/haproxy/api.pem"]


def test_chronys_offset_is_how_far_the_clock_is_ahead() -> None:
    line = "A29FC87B,162.159.200.123,4,1732770000.1,0.002500000,-0.000012,0.0001,-12.3,0.01,0.2,0.01,0.002,64.2,Normal"
    assert chrony_offset(line) == -0.0025
    assert chrony_offset(line.replace("Normal", "Not synchronised")) is None
    assert chrony_offset("506 Cannot talk to daemon") is None


def test_slow_commands_are_summed_by_name_from_a_moment_on() -> None:
    entries = [
        {"at": 100, "microseconds": 500_000, "command": "EVAL"},
        {"at": 101, "microseconds": 700_000, "command": "EVAL"},
        {"at": 102, "microseconds": 900_000, "command": "KEYS"},
        {"at": 10, "microseconds": 9_000_000, "command": "SORT"},
    ]
    assert slow_commands(entries, 50) == [
        {"command": "EVAL", "count": 2, "seconds": 1.2},
        {"command": "KEYS", "count": 1, "seconds": 0.9},
    ]


def test_of_a_log_the_last_errors_count_and_without_any_its_last_lines() -> None:
    assert last_errors("start\nerror: one\nfine\nfatal: two\nbye\n", 1) == ["fatal: two"]
    assert last_errors("a\nb\n\nc\n", 2) == ["b", "c"]


def test_the_module_measures_a_host_that_has_nothing_and_changes_nothing(run_module: RunModule, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("x" * 100 + "\nlogin with hunter2hunter2\n")
    result = run_module(
        "diagnose_measure",
        {
            "services": [{"name": "Nothing", "unit": "no-such-unit-here.service"}],
            "slots": {"root": str(tmp_path), "runtime": "docker", "address": "127.0.0.1", "ports": {"blue": free_port()}},
            "reach": [{"to": "x", "service": "y", "address": "127.0.0.1", "port": free_port()}],
            "redis": {"address": "127.0.0.1", "port": free_port(), "user": "exporter"},
            "certificates": [str(tmp_path / "none.pem")],
            "logs": [str(log), str(tmp_path / "absent.log")],
            "log_bytes": 40,
            "secrets": ["hunter2hunter2"],
        },
        check=True,
    )
    assert not result["changed"]
    facts = result["facts"]
    assert facts["reach"][0]["outcome"] == "refused"
    assert facts["disks"][0]["path"] == "/"
    assert facts["certificates"][0]["ends"] is None
    assert facts["redis"]["error"]
    assert "hunter2" not in str(result)
    assert len(result["logs"]["app.log"]) <= 40
