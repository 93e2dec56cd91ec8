#!/usr/bin/env python3
"""Run the repository's checks, stage after stage, and end with a line that counts them.

    tests/run.py lint unit molecule      whole groups
    tests/run.py policy app              single stages

Every stage of a group runs, so that one run shows all there is to mend; after a group with a failure no further group
starts. A pytest stage counts each of its tests, a fleet that comes up one and its tests each, a linter as one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
JUNIT = ROOT / ".lab" / "junit"
MEMORY = Path("/dev/shm")
# The app's tests that have to reach every branch of its domain.
DOMAIN = [f"tests/test_{name}.py" for name in ("domain", "exposure", "verification", "ledger_properties")]
# Those of its face to people and to exchanges, which take as long as all the others.
FACES = [f"tests/test_{name}.py" for name in ("ccxt", "notify", "notify_messages", "page", "page_browser", "paper", "venue")]


@dataclass(frozen=True)
class Stage:
    """A command whose exit code is the verdict; where pytest runs in it, its report says how many tests there were."""

    name: str
    command: Sequence[str]
    directory: Path = ROOT
    report: Path | None = None
    #: The command is a check of its own besides the tests in its report.
    counts_itself: bool = True
    #: It has the machine to itself, and shows what it prints as it goes. Neighbours that need not run beside each other.
    alone: bool = False


@dataclass(frozen=True)
class Count:
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed"


def pytest_stage(name: str, tests: Sequence[str], directory: Path = ROOT, options: Sequence[str] = ()) -> Stage:
    report = JUNIT / f"{name}.xml"
    # Nothing here uses the asyncio plugin, and where it is not configured it warns, which is an error.
    command = ["pytest", "-p", "no:asyncio", *tests, f"--junit-xml={report}", *options]
    return Stage(name, command, directory, report, counts_itself=False)


def shell_scripts() -> list[str]:
    """The repository's files that a shell runs: by their name or their first line."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
    )
    names = [name for name in listed.stdout.decode().split("\0") if name]
    return [name for name in names if (ROOT / name).is_file() and is_shell(ROOT / name)]


def is_shell(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline(80)
    return path.suffix == ".sh" or (first.startswith(b"#!") and first.split(b"/")[-1].split()[-1] in (b"sh", b"bash"))


def groups() -> dict[str, list[Stage]]:
    """What there is to run. Of what runs beside another, the longest comes first."""
    app = ROOT / "app"
    return {
        "lint": [
            Stage("ansible-lint", ["ansible-lint", "--strict"]),
            Stage("yamllint", ["yamllint", "--strict", "."]),
            Stage("ruff", ["ruff", "check", "."]),
            Stage("shellcheck", ["shellcheck", *shell_scripts()]),
            Stage("imports", ["lint-imports", "--no-cache"], app),
            Stage("mypy-app", ["mypy"], app),
            Stage("mypy", ["mypy"]),
        ],
        "unit": [
            pytest_stage("app", ["tests"], app, [f"--ignore={file}" for file in (*DOMAIN, *FACES)]),
            pytest_stage("faces", FACES, app),
            pytest_stage("plugins", ["tests/unit"]),
            pytest_stage("policy", ["tests/policy"]),
            pytest_stage("templates", ["tests/templates"]),
            # Apart from the rest: these reach every branch of the domain, and only they pay for being traced.
            pytest_stage("domain", DOMAIN, app, ["--cov"]),
        ],
        # What only waits for Ansible, which keeps one core busy, runs beside another; where orders are sent, nothing does.
        "molecule": [
            fleet_up("default"),
            fleet_up("single", "idempotence"),
            fleet_verify("single"),
            fleet_verify("default"),
        ],
    }


def fleet_up(scenario: str, *actions: str) -> Stage:
    """Makes the fleet of a scenario anew, and does what comes before its tests."""
    commands = [f"molecule {action} --scenario-name {scenario}" for action in ("destroy", "converge", *actions)]
    return Stage(f"molecule-{scenario}-up", ["bash", "-c", " && ".join(commands)])


def fleet_verify(scenario: str) -> Stage:
    """Asks the fleet of a scenario, and removes it whatever the answer is."""
    verify, destroy = (f"molecule {action} --scenario-name {scenario}" for action in ("verify", "destroy"))
    command = ["bash", "-c", f"{verify}; code=$?; {destroy} && exit $code"]
    report = JUNIT / f"molecule-{scenario}.xml"
    return Stage(f"molecule-{scenario}-verify", command, report=report, counts_itself=False, alone=True)


def read_report(path: Path) -> Count:
    """The tests that a JUnit report lists; none where the report is missing or was cut off."""
    try:
        suites = ElementTree.parse(path).getroot().iter("testsuite")
    except (OSError, ElementTree.ParseError):
        return Count()
    total = Count()
    for suite in suites:
        tests, failures, errors, skipped = (int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped"))
        total += Count(tests - failures - errors - skipped, failures + errors, skipped)
    return total


def failures(path: Path) -> list[str]:
    """The tests that a JUnit report says failed, each with the end of what it says of them."""
    try:
        cases = ElementTree.parse(path).getroot().iter("testcase")
    except (OSError, ElementTree.ParseError):
        return []
    found = []
    for case in cases:
        for problem in (*case.iter("failure"), *case.iter("error")):
            lines = (problem.text or "").strip().splitlines()[-12:]
            name = f"{case.get('classname', '')}::{case.get('name', '')}"
            found.append("\n".join([f"FAILED {name}", *(f"  {line[:300]}" for line in lines)]))
    return found


def run(stage: Stage) -> Count:
    said = f"==> {stage.name}: {' '.join(stage.command[:6])}{' ...' if len(stage.command) > 6 else ''}"
    print(said, flush=True)
    if stage.report is not None:
        stage.report.unlink(missing_ok=True)
    start = time.monotonic()
    output = None if stage.alone else subprocess.PIPE
    try:
        done = subprocess.run(
            stage.command, cwd=stage.directory, check=False, text=True, stdout=output, stderr=output and subprocess.STDOUT
        )
        code = done.returncode
        if not stage.alone:
            print(f"==> {stage.name} printed:", done.stdout, sep="\n", end="", flush=True)
    except FileNotFoundError:
        print(f"{stage.command[0]} is not installed: run 'make env tools'", flush=True)
        code = 127
    count = read_report(stage.report) if stage.report is not None else Count()
    if stage.counts_itself and code == 0:
        count += Count(passed=1)
    if code != 0 and count.failed == 0:
        count += Count(failed=1)
    left_out = f", {count.skipped} skipped" if count.skipped else ""
    print(f"==> {stage.name}: {count}{left_out} in {time.monotonic() - start:.0f} s\n", flush=True)
    return count


def run_all(stages: Sequence[Stage]) -> Iterator[tuple[Stage, Count]]:
    """Each stage with its count, in their order; neighbours that need not be alone beside each other."""
    for alone, neighbours in groupby(stages, lambda stage: stage.alone):
        several = list(neighbours)
        # Three keep two processors busy: most of them also wait, for servers that they started or for a host's answer.
        with ThreadPoolExecutor(max_workers=1 if alone else 3) as pool:
            yield from zip(several, pool.map(run, several), strict=True)


def environment() -> None:
    """What every stage sees: the project's own programs first, its Ansible configuration, and no leave to skip."""
    os.environ["PATH"] = os.pathsep.join([str(ROOT / ".venv" / "bin"), os.environ["PATH"], "/usr/sbin", "/sbin"])
    os.environ["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")
    os.environ["CI"] = "true"
    os.environ["PYTHONUNBUFFERED"] = "1"
    for name in ("PYTHONPATH", "PYTEST_ADDOPTS", "ANSIBLE_INVENTORY"):
        os.environ.pop(name, None)
    # A server of a test, such as a Redis that keeps a log, must not wait for a disk that others keep busy.
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4e9:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)


def main() -> int:
    there_is = groups()
    parser = argparse.ArgumentParser(
        description="Run the repository's checks. A group runs all of its stages.",
        epilog="\n".join(f"  {name:9} {' '.join(stage.name for stage in stages)}" for name, stages in there_is.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="+", metavar="GROUP|STAGE")
    parser.add_argument("--long", action="store_true", help="the tests that are marked long, instead of those that are not")
    arguments = parser.parse_args()
    wanted = arguments.what
    single = {stage.name: [stage] for stages in there_is.values() for stage in stages}
    # A scenario by its own name is all of it.
    for stage in there_is["molecule"]:
        single.setdefault(stage.name.rpartition("-")[0], []).append(stage)
    unknown = [name for name in wanted if name not in there_is and name not in single]
    if unknown:
        print(f"There is no {' and no '.join(unknown)}. There is:\n{parser.epilog}", file=sys.stderr)
        return 2

    environment()
    if arguments.long:
        os.environ["PYTEST_ADDOPTS"] = "-m long"
    JUNIT.mkdir(parents=True, exist_ok=True, mode=0o700)
    total = Count()
    failed: list[str] = []
    not_run: list[str] = []
    for name in wanted:
        stages = there_is.get(name) or single[name]
        if total.failed:
            not_run += [stage.name for stage in stages]
            continue
        for stage, count in run_all(stages):
            total += count
            if count.failed:
                failed += [f"==> failed: {stage.name}", *(failures(stage.report) if stage.report is not None else ())]
    print(*failed, sep="\n", flush=True)
    if not_run:
        print(f"Not run, because something before failed: {' '.join(not_run)}", flush=True)
    if total.passed + total.failed == 0:
        total = Count(failed=1)
        print("No tests ran.", flush=True)
    print(total, flush=True)
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
