"""The NATS exporter before a real server, and what Prometheus thinks of its page."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest
from real_servers import free_ports, listens, program, wait
from rendering import ROLES

EXPORTER = ROLES / "nats_exporter" / "files" / "nats-exporter.py"


class Exported:
    """A NATS server with JetStream, which may be stopped, and the exporter beside it."""

    def __init__(self, place: Path) -> None:
        self.port, self.monitor, self.exporter = free_ports(3)
        server = [program("nats-server"), "-a", "127.0.0.1", "-p", str(self.port), "-m", str(self.monitor)]
        self.server = subprocess.Popen([*server, "-js", "-sd", str(place)], stderr=subprocess.DEVNULL)
        wait(lambda: listens(self.monitor), "NATS serves")
        arguments = ["--listen", f"127.0.0.1:{self.exporter}", "--server", f"http://127.0.0.1:{self.monitor}"]
        self.process = subprocess.Popen([sys.executable, "-I", str(EXPORTER), *arguments])
        wait(lambda: listens(self.exporter), "the exporter serves")

    def page(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.exporter}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def series(self) -> dict[str, float]:
        found = re.findall(r"^(\w+(?:\{.*\})?) (\S+)$", self.page(), re.MULTILINE)
        return {name: float(value) for name, value in found}


@pytest.fixture
def exported(tmp_path: Path) -> Iterator[Exported]:
    one = Exported(tmp_path)
    yield one
    for process in (one.process, one.server):
        process.terminate()
        process.wait(10)


async def fill(port: int) -> None:
    """A stream with three messages, and a durable reader that took one."""
    client = await nats.connect(f"nats://127.0.0.1:{port}")
    try:
        stream = client.jetstream()
        await stream.add_stream(name="EVENTS", subjects=["events.>"])
        for _ in range(3):
            await stream.publish("events.one", b"")
        reader = await stream.pull_subscribe("events.>", durable="clerk")
        [message] = await reader.fetch(1)
        await message.ack_sync()
    finally:
        await client.close()


def test_streams_and_readers_have_their_figures(exported: Exported) -> None:
    asyncio.run(fill(exported.port))
    found = exported.series()
    assert (found["nats_up"], found["nats_healthy"]) == (1, 1)
    assert found['nats_stream_messages{stream="EVENTS"}'] == 3
    assert found['nats_consumer_pending{stream="EVENTS",consumer="clerk"}'] == 2
    assert found["nats_received_messages_total"] >= 3


def test_a_server_that_is_gone_is_down_and_the_exporter_is_not(exported: Exported) -> None:
    exported.server.terminate()
    exported.server.wait(10)
    assert exported.series() == {"nats_up": 0}


def test_promtool_finds_nothing_wrong_with_the_page(exported: Exported) -> None:
    asyncio.run(fill(exported.port))
    checked = subprocess.run(
        [program("promtool"), "check", "metrics"], input=exported.page(), capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
