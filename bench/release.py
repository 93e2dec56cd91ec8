"""A release to three app hosts of the lab, beside a plain copy-and-symlink deployment of the same app to the same hosts.

    python bench/release.py [--rounds 2]

The lab must be deployed (`make demo`). The image is built beforehand, since both deployments start from what is built.
Each round: the plain deployment, deploy.yml to a new version with the same dependencies, deploy.yml with nothing to do.
Times are wall times in seconds; their ratios are medians over the rounds. At the end the fleet is back on its version.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / ".lab" / "trading-lab"
HERE = ROOT / "bench"


def play(*words: str) -> tuple[float, str]:
    """Run a playbook; wall time in seconds, and what it printed."""
    start = time.monotonic()
    done = subprocess.run(
        ["ansible-playbook", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"ansible-playbook {' '.join(words)} failed:\n{done.stdout}")
    return time.monotonic() - start, done.stdout


def build(version: str) -> Path:
    """Build a version of the checkout under another number into the lab's store; its source."""
    source = STATE / "bench-source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "app", source / "app", ignore=shutil.ignore_patterns("__pycache__", ".*", "tests"))
    project = source / "app" / "pyproject.toml"
    project.write_text(re.sub(r'^version = ".*"$', f'version = "{version}"', project.read_text(), flags=re.M))
    asked = {
        "version": version,
        "store": str(STATE / "releases"),
        "source": str(source),
        "base_image": "trading-bot-lab/python:current",
    }
    subprocess.run(
        ["ansible", "localhost", "-m", "release_build", "-a", json.dumps(asked)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return source


def archive(version: str) -> Path:
    """What the plain deployment copies: the same wheels, unpacked, for the hosts' own Python."""
    built = STATE / "releases" / version
    lib = STATE / "bench-plain" / "lib"
    shutil.rmtree(lib.parent, ignore_errors=True)
    wheels = [*built.glob("wheels-py*/*.whl"), *built.glob("trading_bot-*.whl")]
    for wheel in wheels:
        shutil.unpack_archive(wheel, lib, "zip")
    path = STATE / "bench-plain.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        file.add(lib, "lib")
    return path


def say(name: str, value: float, unit: str, goal: str, *, ok: bool) -> None:
    print(f"{name} {value:.2f} {unit} goal {goal} {'ok' if ok else 'short'}", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=2, help="how often each deployment is timed (default 2)")
    rounds = arguments.parse_args().rounds

    status = play("release-status.yml", "-e", "release_status_format=json")[1]
    served = json.loads(status[status.index("msg: |-") + 7 : status.index("PLAY RECAP")])["served"]
    plain: list[float] = []
    release: list[float] = []
    nothing: list[float] = []
    moved: dict[str, int] = {}
    for number in range(rounds):
        version = f"{served['version']}+bench{int(time.time())}.{number}"
        source = build(version)
        given = {"plain_release": version, "plain_archive": str(archive(version)), "plain_config": "server: {debug: false}\n"}
        plain.append(play("bench/plain-deploy.yml", "-e", json.dumps(given))[0])
        took, output = play("deploy.yml", "-e", f"release_version={version}", "-e", f"release_source={source}")
        release.append(took)
        moved = {host: int(count) for host, count in re.findall(r"(app\d+): (\d+) bytes of \d+ moved", output)}
        nothing.append(play("deploy.yml")[0])
    play("deploy.yml", "-e", f"release_version={served['version']}")
    subprocess.run(
        ["ansible", "app", "-m", "shell", "-a", "systemctl stop plain; rm -rf /opt/plain /etc/systemd/system/plain.service"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )

    base = statistics.median(plain)
    print(f"# medians: plain deployment {base:.1f} s, release {statistics.median(release):.1f} s,", end=" ")
    print(f"nothing to do {statistics.median(nothing):.1f} s")
    ratio = statistics.median(release) / base
    say("release_over_plain_deploy", ratio, "ratio", "1.0", ok=ratio <= 1)
    ratio = statistics.median(nothing) / base
    say("nothing_to_do_over_plain_deploy", ratio, "ratio", "0.5", ok=ratio <= 0.5)
    for host, count in sorted(moved.items()):
        say(f"moved_to_{host}", count / 1e6, "MB", "10", ok=count < 10_000_000)


if __name__ == "__main__":
    main()
