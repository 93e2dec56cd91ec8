"""Faults made on purpose, each really and put back: diagnose.yml names the cause among its first three findings."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from conftest import APPS, BALANCERS, STATE, Fleet
from test_alerting import on
from test_paper_venue import within

testinfra_hosts = ["ansible://lb"]

ARCHIVES = STATE / "diagnoses"
#: What a fault gives to the playbook besides.
Arguments = tuple[str, ...]


def diagnosed(fleet: Fleet, *arguments: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The findings of a run, and the files of its archive."""
    shutil.rmtree(ARCHIVES, ignore_errors=True)
    done = fleet.play("diagnose.yml", "-e", f"diagnose_archive_to={ARCHIVES}", *arguments)
    assert done.code == 0, done.output
    assert set(done.changed.values()) == {0}
    [path] = ARCHIVES.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = {name.partition("/")[2]: archive.extractfile(name) for name in archive.getnames()}
        files = {name: member.read().decode() for name, member in members.items() if member}
    return json.loads(files["findings.json"]), files


def slot_of(name: str) -> str:
    """The slot that runs on an app host."""
    units = on(name).check_output("systemctl list-units 'trading-bot@*' --state=active --plain --no-legend")
    found = re.search(r"trading-bot@(\w+)\.service", units)
    assert found, units
    return found[1]


def ready(fleet: Fleet, name: str, slot: str) -> bool:
    port = {"blue": 18080, "green": 18081}[slot]
    try:
        return requests.get(f"http://{fleet.private[name]}:{port}/health/ready", timeout=2).ok
    except requests.RequestException:
        return False


@contextmanager
def restarted(fleet: Fleet, name: str, change: str, back: str) -> Iterator[None]:
    """The slot of a host, restarted after a change of what it reads at its start; `{slot}` in both commands is its name."""
    host, slot = on(name), slot_of(name)
    unit = f"trading-bot@{slot}"
    try:
        host.check_output(f"systemctl stop {unit} && {change.format(slot=slot)}")
        host.run(f"systemctl start {unit}")
        within(30, lambda: not ready(fleet, name, slot), "it is not ready")
        yield
    finally:
        host.run(f"systemctl stop {unit}")
        host.check_output(back.format(slot=slot))
        host.check_output(f"systemctl reset-failed {unit}; systemctl start {unit}")
        within(60, lambda: ready(fleet, name, slot), "it serves again")


@contextmanager
def changed_file(fleet: Fleet, name: str, path: str, command: str) -> Iterator[None]:
    """The slot of a host, restarted with a file changed by a command."""
    change = f"cp -p {path} /root/kept && {command} {path}"
    with restarted(fleet, name, change, f"cat /root/kept > {path} && rm /root/kept"):
        yield


@contextmanager
def wrong_password(fleet: Fleet) -> Iterator[Arguments]:
    with changed_file(fleet, "app1", "/opt/trading-bot/slots/{slot}/secrets/redis_password", "sed -i s/^./wrong/"):
        yield ()


@contextmanager
def port_closed(fleet: Fleet) -> Iterator[Arguments]:
    port = {"blue": 18080, "green": 18081}[slot_of("app2")]
    rule = f"INPUT -s {fleet.private['lb1']} -p tcp --dport {port} -j DROP"
    on("app2").check_output(f"iptables -I {rule}")
    try:
        yield ()
    finally:
        on("app2").check_output(f"iptables -D {rule}")


@contextmanager
def disk_full(fleet: Fleet) -> Iterator[Arguments]:
    """A disk of its own, since the host's is the machine's."""
    host, path = on("app1"), "/var/log/trading-bot"
    host.check_output(f"mount -t tmpfs -o size=8m tmpfs {path}")
    try:
        assert "No space left" in host.run(f"head -c 9m /dev/zero > {path}/zeros").stderr
        yield ()
    finally:
        host.check_output(f"umount {path}")


@contextmanager
def clock_off(fleet: Fleet) -> Iterator[Arguments]:
    """A container has its machine's clock, so that it is the time server's that is put forward: what differs is the two."""
    gateway = fleet.private["lb1"].rpartition(".")[0] + ".1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((gateway, 0))

        def answer() -> None:
            while True:
                asked, address = server.recvfrom(512)
                if asked == b"end":
                    return
                now = time.time() + 90 + 2208988800
                stamp = struct.pack("!II", int(now), int(now % 1 * 2**32))
                server.sendto(b"\x24\x01" + 30 * b"\0" + stamp + stamp, address)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            port = server.getsockname()[1]
            yield ("-e", json.dumps({"diagnose_time_servers": [f"{gateway}:{port}"]}), "-l", "app1")
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ender:
                ender.sendto(b"end", server.getsockname())
            thread.join()


@contextmanager
def bad_config(fleet: Fleet) -> Iterator[Arguments]:
    with changed_file(
        fleet, "app1", "/opt/trading-bot/slots/{slot}/config.yaml", "sed -i 's/max_leverage:.*/max_leverage: banana/'"
    ):
        yield ()


@contextmanager
def redis_slow(fleet: Fleet) -> Iterator[Arguments]:
    """Somebody sends scripts that take long, one after the other."""
    redis = ["redis-cli", "-h", fleet.private["data1"], "--user", "operator", "--no-auth-warning", "-r", "-1"]
    script = "local x = 0 for i = 1, 5e6 do x = x + i end return x"
    environment = {**os.environ, "REDISCLI_AUTH": (STATE / "secrets/redis_operator").read_text().strip()}
    process = subprocess.Popen([*redis, "EVAL", script, "0"], env=environment, stdout=subprocess.DEVNULL)
    try:
        yield ()
    finally:
        process.terminate()
        process.wait()


@contextmanager
def nats_down(fleet: Fleet) -> Iterator[Arguments]:
    slots = {name: slot_of(name) for name in APPS}
    on("data1").check_output("systemctl stop nats-server")
    try:
        yield ()
    finally:
        on("data1").check_output("systemctl start nats-server")
        within(60, lambda: all(ready(fleet, name, slot) for name, slot in slots.items()), "the app is ready again")


@contextmanager
def image_missing(fleet: Fleet) -> Iterator[Arguments]:
    """Kept under another name, which no release asks for."""
    image = "image=$(. /opt/trading-bot/slots/{slot}/release.env; echo $RELEASE_IMAGE_REFERENCE)"
    change = f"{image}; docker rm -f trading-bot-{{slot}}; docker tag $image kept:kept && docker rmi $image"
    back = f"{image}; docker tag kept:kept $image && docker rmi kept:kept"
    with restarted(fleet, "app1", change, back):
        yield ()


@contextmanager
def out_of_memory(fleet: Fleet) -> Iterator[Arguments]:
    with changed_file(fleet, "app1", "/opt/trading-bot/compose.yaml", "sed -i 's/mem_limit:.*/mem_limit: 10m/'"):
        yield ()


@contextmanager
def certificate_expired(fleet: Fleet) -> Iterator[Arguments]:
    """The load balancer serves it."""
    host, pem, config = on("lb1"), "/etc/haproxy/expired.pem", "/etc/haproxy/haproxy.cfg"
    host.check_output(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=lb1 -keyout {pem}.key -out {pem}.crt"
        f" -not_before 20250101000000Z -not_after 20250201000000Z && cat {pem}.crt {pem}.key > {pem}"
    )
    front = f"frontend expired\n    bind {fleet.private['lb1']}:8443 ssl crt {pem}\n    http-request return status 200"
    try:
        host.check_output(f"cp -p {config} /root/kept && printf '%%s\\n' %s >> {config} && systemctl reload haproxy", front)
        served = f"https://{fleet.private['lb1']}:8443/"
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(served, timeout=5)
        yield ()
    finally:
        host.check_output(f"cat /root/kept > {config} && systemctl reload haproxy && rm /root/kept {pem} {pem}.crt {pem}.key")


Fault = Callable[[Fleet], Any]
#: What is done, the host of the finding, and words of its cause.
FAULTS: list[tuple[Fault, str, str]] = [
    (wrong_password, "app1", "wrong password in secrets/redis_password"),
    (bad_config, "app1", "max_leverage"),
    (nats_down, "data1", "it was stopped"),
    (port_closed, "app2", "a firewall on app2 turns it away"),
    (disk_full, "app1", "there is no room for data"),
    (clock_off, "app1", "behind, says the time server"),
    (redis_slow, "data1", "EVAL"),
    (image_missing, "app1", "the engine does not have trading-bot:"),
    (out_of_memory, "app1", "it needed more than the"),
    (certificate_expired, "lb1", "it ended"),
]


@pytest.mark.parametrize(
    ("make", "host", "cause"),
    [pytest.param(*fault, marks=[] if fault in FAULTS[:3] else pytest.mark.long) for fault in FAULTS],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_faults_cause_is_among_the_first_three_findings(fleet: Fleet, make: Fault, host: str, cause: str) -> None:
    with make(fleet) as arguments:
        found, _ = diagnosed(fleet, *arguments)
    assert [item for item in found[:3] if host in item["host"] and cause in item["cause"]], found


def test_of_a_fleet_that_is_well_nothing_critical_is_found_and_no_secret_is_kept(fleet: Fleet) -> None:
    found, files = diagnosed(fleet)
    assert [item for item in found if item["severity"] == "critical"] == []
    assert {f"{name}/facts.json" for name in (*BALANCERS, *APPS, "data1", "mon1")} < set(files)
    assert json.loads(files["mon1/figures.json"])["up"]["result"]
    assert "redis" in files["data1/facts.json"]
    secrets = [path.read_text().strip() for path in (STATE / "secrets").iterdir()]
    assert [name for name, text in files.items() if any(secret in text for secret in secrets)] == []


def test_in_check_mode_it_says_the_same_and_keeps_nothing(fleet: Fleet) -> None:
    shutil.rmtree(ARCHIVES, ignore_errors=True)
    done = fleet.play("diagnose.yml", "--check", "--diff", "-l", "lb1", "-e", f"diagnose_archive_to={ARCHIVES}")
    assert done.code == 0, done.output
    assert "1 host measured: " in done.output
    assert not ARCHIVES.exists()
