"""A rollout's files as the control node leaves them: traffic is simulated, what is said of it is the judge's own.

python tests/unit/plugins/rollout_sample.py DIRECTORY [error rate of the canary]    writes them, and the report, to look at
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import plugin_testing  # noqa: F401 - it lays the project's module_utils beside Ansible's own
from ansible.module_utils.judge import FAIL, PASS, STOPS, Look, Memory, Sample, Tally, judge, standard_plan

START = 1_769_860_800.0  # 2026-01-31T12:00:00Z
STAGES = [(500, 60, 600), (2000, 60, 600), (5000, 60, 600), (10000, 60, 600)]
USUAL = {"errors": 0.001, "rejections": 0.01, "slow": 0.01, "slower": 0.10}


def stamp(at: float) -> str:
    """A time as the journals write it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def bad_of(rng: random.Random, requests: int, rate: float) -> int:
    """How many of these requests are bad."""
    return sum(rng.random() < rate for _ in range(requests))


def rollout(
    error_rate: Callable[[float], float] = lambda _: 0.001, per_second: int = 200, every: int = 5, seed: int = 1
) -> dict[str, Any]:
    """What a rollout leaves whose canary has these errors (by the seconds since it began): the contents of its files."""
    rng = random.Random(seed)
    plan, memory = standard_plan(), Memory()
    stops = {stop.name: 0 for stop in STOPS}
    now = START
    looks: list[dict[str, Any]] = []
    journal: list[dict[str, Any]] = []
    outcome = "promoted"

    def says(event: str, by: str = "control", **more: Any) -> None:
        journal.append({"at": stamp(now), "rollout": "r1", "token": 7, "by": by, "event": event, **more})

    def cut(before: int, after: int, stable: str = "blue") -> None:
        nonlocal now
        for balancer in ("lb1", "lb2"):
            was = {"stable": "blue", "canary": "green", "salt": "1.4.0-3f2a9c01de", "cut": before}
            then = {**was, "stable": stable, "cut": after}
            says("traffic", phase="intend", load_balancer=balancer, before=was, after=then)
            now += 0.021
            says("traffic", phase="done", load_balancer=balancer, seconds=0.02, before=was, after=then)

    says("start", **{"from": "1.3.2-77ab01c2ff", "to": "1.4.0-3f2a9c01de"})
    now += 4.2
    says("prepared", hosts=["app1", "app2", "app3"])
    says("shadow", slot="green")
    now += 30
    shown = 0
    for goal, least, deadline in STAGES:
        name = f"{goal / 100:g}%"
        says("stage", stage=name, cut=goal)
        cut(shown, goal)
        shown, began = goal, now
        counts = {who: dict.fromkeys(("requests", *USUAL), 0) for who in ("canary", "baseline")}
        while True:
            now += every
            exposure = goal / 10_000
            here = round(per_second * every * exposure * rng.uniform(0.9, 1.1)) if exposure < 1 else per_second * every
            for who, requests in (("canary", here), ("baseline", per_second * every - here)):
                counts[who]["requests"] += requests
                for metric, rate in USUAL.items():
                    worse = who == "canary" and metric == "errors"
                    counts[who][metric] += bad_of(rng, requests, error_rate(now - START) if worse else rate)
            samples = {
                metric: Sample(*(Tally(counts[who]["requests"], counts[who][metric]) for who in ("canary", "baseline")))
                for metric in USUAL
            }
            verdict, memory = judge(plan, memory, Look(name, exposure, samples, stops))
            told = verdict.to_dict()
            drift = 1 + 0.1 * rng.random()
            looks.append(
                {
                    "at": now,
                    "stage": name,
                    "cut": goal,
                    "elapsed": now - began,
                    "left": began + deadline - now,
                    "share": counts["canary"]["requests"] / sum(side["requests"] for side in counts.values()),
                    "canary": {**counts["canary"], "p50": 0.0031 * drift, "p90": 0.0079 * drift, "p99": 0.0172 * drift**3},
                    "baseline": {**counts["baseline"], "p50": 0.0030, "p90": 0.0077, "p99": 0.0166 * drift}
                    if exposure < 1
                    else {},
                    "findings": told["findings"],
                    "outcome": told["outcome"],
                    "reasons": told["reasons"],
                }
            )
            if verdict.outcome == FAIL or (verdict.outcome == PASS and now - began >= least):
                break
        reasons = list(verdict.reasons)
        if verdict.outcome == FAIL:
            outcome, decided = "rolled_back", now
            cut(goal, 0)
            told = {"stage": name, "outcome": FAIL, "reasons": reasons}
            says("rollback", reasons=reasons, decided_at=stamp(decided), seconds=round(now - decided, 3), verdict=told)
            says("marked", release="1.4.0-3f2a9c01de", why=reasons[0])
            break
        says("verdict", stage=name, outcome=verdict.outcome, reasons=reasons)
    else:
        says("promote")
        cut(10_000, 0, stable="green")
        says("retired", slot="blue")
    now += 2
    says("end", outcome=outcome)
    return {
        "rollout.json": {
            "id": "2026-01-31T12-00-00-1.4.0",
            "started_at": START,
            "ended_at": now,
            "outcome": outcome,
            "owner": "desk@control",
            "from": {"release_id": "1.3.2-77ab01c2ff", "version": "1.3.2", "slot": "blue"},
            "to": {"release_id": "1.4.0-3f2a9c01de", "version": "1.4.0", "slot": "green"},
            "stages": [
                {"name": f"{goal / 100:g}%", "cut": goal, "min_seconds": least, "deadline": deadline}
                for goal, least, deadline in STAGES
            ],
            "hosts": ["app1", "app2", "app3"],
            "load_balancers": ["lb1", "lb2"],
            "accounts": 1000,
            "thresholds": {"errors": 0.01, "latency": 0.1, "slow": 0.05},
        },
        "looks.jsonl": looks,
        "journal.jsonl": journal,
        "shadow.json": {
            "mirrored": 6000,
            "compared": 5988,
            "skipped": {"busy": 12},
            "differences": [
                {
                    "type": "limit",
                    "side": "buy",
                    "stable": {"outcome": "accepted", "rule": None},
                    "canary": {"outcome": "refused", "rule": "max_leverage"},
                    "rule": "max_leverage",
                    "count": 3,
                    "expected": True,
                    "why": "the release lowers max_leverage to 2",
                    "examples": [{"order": "c-1001", "account": "acct-17", "stable": "accepted", "canary": "refused"}],
                }
            ],
        },
    }


def save(directory: Path, files: dict[str, Any]) -> Path:
    """Write the files, and give their directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, contents in files.items():
        lines = contents if isinstance(contents, list) else [contents]
        (directory / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


if __name__ == "__main__":
    from ansible.module_utils.report import write

    rate = float(sys.argv[2]) if len(sys.argv) > 2 else 0.001
    write(str(save(Path(sys.argv[1]), rollout(lambda seconds: rate if seconds > 90 else 0.001))))
