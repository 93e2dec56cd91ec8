"""What the tests of the fleet's operations share: playbooks run as a person runs them, and orders sent meanwhile."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

# Molecule asks Ansible for colours, and what is printed here is read by the tests.
os.environ.pop("ANSIBLE_FORCE_COLOR", None)
os.environ.pop("PY_COLORS", None)
os.environ["ANSIBLE_NOCOLOR"] = "1"

ROOT = Path(__file__).resolve().parents[3]
#: Scenarios share this file; each has it as its own.
SCENARIO = Path(__file__).absolute().parents[1]
HOSTS = yaml.safe_load((SCENARIO / "inventory" / "hosts.yml").read_text())["all"]["children"]["lab"]
LAB = HOSTS["vars"]["lab_name"]
DATA = next(iter(HOSTS["children"]["redis"]["hosts"]))
APPS, BALANCERS = (list(HOSTS["children"][group]["hosts"]) for group in ("app", "lb"))
STATE = ROOT / ".lab" / LAB


@dataclass(frozen=True)
class Run:
    """What a playbook printed, and how it ended."""

    code: int
    output: str

    @property
    def said(self) -> str:
        """The output as one line, however it was wrapped."""
        return " ".join(self.output.split())

    @property
    def changed(self) -> dict[str, int]:
        """Changes by host, from the recap."""
        return {host: int(count) for host, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", self.output, re.M)}


class Play:
    """A playbook that runs, as the leader of a process group of its own. What it prints waits in a file: a pipe that nobody
    reads holds its writer up."""

    def __init__(self, command: list[str], output: Path) -> None:
        self._output = output
        with output.open("w") as file:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)

    def printed(self) -> str:
        """What it has printed so far."""
        return self._output.read_text()

    def finish(self) -> Run:
        """Wait for its end; its output goes to the test's own, too."""
        code = self._process.wait()
        output = self.printed()
        print(output)
        return Run(code, output)

    def kill(self) -> None:
        """End all of it at once, as a control node that loses its power."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Load:
    """A constant load of orders at the load balancer, on HTTP and NATS; judged against the ledger afterwards."""

    def __init__(self, process: subprocess.Popen[str], log: Path, fleet: Fleet) -> None:
        self._process = process
        self._fleet = fleet
        self.log = log

    def finish(self, *, now: bool = False) -> dict[str, Any]:
        """The summary, once all orders are sent; `now` ends the sending first."""
        if now:
            self._process.send_signal(signal.SIGINT)
        out, err = self._process.communicate(timeout=600)
        assert out.strip(), err
        return dict(json.loads(out.strip().splitlines()[-1]))

    def judge(self) -> dict[str, Any]:
        """Client's log against the ledger: what was lost, doubled or answered differently."""
        done = subprocess.run(
            [
                *("trading-bot", "judge", str(self.log), "--redis", f"redis://{self._fleet.private[DATA]}:6379/0"),
                *("--redis-username", "trading_bot", "--redis-password-file", str(STATE / "secrets/redis_trading_bot")),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.strip(), done.stderr
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def on_host(host: str, command: str) -> str:
    """What a shell command on a host of the lab prints. Raises CalledProcessError if it fails."""
    done = subprocess.run(["docker", "exec", f"{LAB}-{host}", "sh", "-c", command], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@contextmanager
def read_only(host: str, directory: str) -> Iterator[None]:
    """While the block runs, nothing can be written there."""
    on_host(host, f"mount --bind {directory} {directory} && mount -o remount,bind,ro {directory}")
    try:
        yield
    finally:
        on_host(host, f"umount --lazy {directory}")


def operations(host: str, count: int) -> list[dict[str, Any]]:
    """The last lines of a host's log of operations."""
    log = on_host(host, f"tail -n {count} /var/lib/trading-bot/operations.jsonl")
    return [json.loads(line) for line in log.splitlines()]


@dataclass(frozen=True)
class Fleet:
    """The lab's fleet, from the control node."""

    private: Mapping[str, str]
    url: str
    loads: list[Load]
    plays: list[Play]

    def play(self, playbook: str, *arguments: str, inventories: tuple[Path, ...] = (SCENARIO / "inventory",)) -> Run:
        """Run a playbook; its output goes to the test's own, too."""
        return self.start(playbook, *arguments, inventories=inventories).finish()

    def start(self, playbook: str, *arguments: str, inventories: tuple[Path, ...] = (SCENARIO / "inventory",)) -> Play:
        """Start a playbook and go on."""
        sources = [word for path in inventories for word in ("-i", str(path))]
        # The control node shares its processors with the whole fleet, which no control node does: the fleet comes first.
        play = Play(
            ["nice", "-n", "10", "ansible-playbook", *sources, playbook, *arguments], STATE / f"play-{len(self.plays)}.log"
        )
        self.plays.append(play)
        return play

    def status(self) -> dict[str, Any]:
        """What release-status.yml says, as data."""
        done = self.play("release-status.yml", "-e", "release_status_format=json")
        assert done.code == 0, done.output
        text = done.output[done.output.index("msg: |-") + len("msg: |-") : done.output.index("PLAY RECAP")]
        return dict(json.loads(text))

    def served(self) -> tuple[str, str]:
        """The id of the release that serves, and its slot: what the load balancers' maps and the app hosts' disks say."""
        found = set()
        for balancer in BALANCERS:
            released = dict(line.split() for line in on_host(balancer, "cat /etc/haproxy/maps/release.map").splitlines())
            slot = released["stable"]
            found |= {(on_host(host, f"readlink /opt/trading-bot/slots/{slot}"), slot) for host in APPS}
        assert len(found) == 1, f"not the same everywhere: {found}"
        link, slot = found.pop()
        return Path(link).name, slot

    def load(self, rate: int, count: int, *, name: str, stop_every: int = 0) -> Load:
        """Start sending; the caller finishes it."""
        log = STATE / f"{name}.jsonl"
        process = subprocess.Popen(
            [
                *("trading-bot", "load", "--url", self.url, "--token-file", str(STATE / "secrets/api_desk_token")),
                *("--nats", f"nats://{self.private[DATA]}:4222", "--nats-user", "client"),
                *("--nats-password-file", str(STATE / "secrets/nats_client")),
                *("--rate", str(rate), "--count", str(count), "--accounts", "1000", "--run", name, "--log", str(log)),
                *("--stop-every", str(stop_every), "--time-in-force", "IOC" if stop_every else "GTC"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        load = Load(process, log, self)
        self.loads.append(load)
        return load


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    """The fleet that the scenario has made."""
    sources = [word for path in (SCENARIO / "inventory", *SCENARIO.glob("scaled-out.yml")) for word in ("-i", str(path))]
    listed = subprocess.run(
        ["ansible-inventory", *sources, "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    inventory = json.loads(listed.stdout)
    hosts = inventory["_meta"]["hostvars"]
    return Fleet(
        private={name: variables["private_address"] for name, variables in hosts.items()},
        url=f"http://{hosts[inventory['lb']['hosts'][0]]['ansible_host']}:8080",
        loads=[],
        plays=[],
    )


@pytest.fixture(autouse=True)
def no_load_outlives_its_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails must not disturb the next one."""
    yield
    if "fleet" in request.fixturenames:
        fleet: Fleet = request.getfixturevalue("fleet")
        while fleet.loads:
            fleet.loads.pop().stop()
        while fleet.plays:
            fleet.plays.pop().kill()


@pytest.fixture(scope="session")
def source() -> Callable[..., Path]:
    """Makes a copy of the app's source with another version, as a developer's next release; `edit` may change its files."""

    def make(version: str, edit: Callable[[Path], None] = lambda _: None) -> Path:
        home = STATE / f"source-{version}"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(ROOT / "app", home / "app", ignore=shutil.ignore_patterns("__pycache__", ".*", "tests"))
        project = home / "app" / "pyproject.toml"
        project.write_text(re.sub(r'^version = ".*"$', f'version = "{version}"', project.read_text(), flags=re.M))
        edit(home / "app")
        return home

    return make


@pytest.fixture(scope="session")
def shared_config() -> dict[str, Any]:
    """The app's configuration as the repository's variables have it, templates and all."""
    return dict(yaml.safe_load((ROOT / "group_vars/all/release.yml").read_text())["release_config"])
