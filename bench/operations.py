"""What a run of each playbook costs that has nothing to change, over three app hosts, and how that grows to twelve.

    python bench/operations.py [--hosts 12] [--runs 2]

The lab must be deployed (`make demo`). Each playbook is run on the three hosts, then app hosts are added by the way of
docs/runbook/scale.md, all is run again, and they are taken out again. The nine are light: their app runs without orders.
Wall times in seconds, the shortest of so many runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: What is run, so that it finds nothing to do. What always does something is run in check mode.
RUNS = {
    "preflight": [],
    "site": [],
    "deploy": [],
    "update-lb": [],
    "release-status": [],
    "canary": [],
    "update-config": [],
    "upgrade": ["-e", "upgrade_what=docker"],
    "restart-service": ["--check"],
    "rollback": ["--check"],
    "halt": ["-e", "halt_action=resume", "-e", "halt_reason=bench"],
    "degrade": ["-e", "degrade_action=disable"],
    "features": ["-e", "features_action=enable"],
    "hotfix": ["--check", "-e", "hotfix_id=bench", "-e", "hotfix_set=risk.max_leverage=1", "-e", "hotfix_reason=bench"],
    "backup": ["--check"],
    "restore": ["--check"],
    "drill": ["--check"],
    "diagnose": [],
    "order-life": ["--check", "-e", "order_account=nobody", "-e", "order_id=none"],
    "postmortem": ["--check", "-e", "postmortem_from=1h"],
    "release-gate": ["-e", "release_version=0.1.0", "--check"],
}


def run(*command: str, hosts: int, new: str = "") -> float:
    """Run a command on a lab of so many app hosts; wall time in seconds."""
    environment = {**os.environ, "LAB_APP_HOSTS": str(hosts), "LAB_NEW_NODES": new}
    start = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}")
    return time.monotonic() - start


def costs(hosts: int, runs: int, few: Mapping[str, float] | None = None) -> dict[str, float]:
    """The shortest of so many runs of each playbook, in seconds, said at once, with how it grew from ``few``."""
    measured = {}
    for name, words in RUNS.items():
        measured[name] = min(run("ansible-playbook", f"{name}.yml", *words, hosts=hosts) for _ in range(runs))
        grown = f" {measured[name] / few[name]:.2f} times that of 3 hosts" if few else ""
        mode = ".check" if "--check" in words else ""
        print(f"noop.{name}{mode}.{hosts}_hosts {measured[name]:.1f} s{grown}", flush=True)
    return measured


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--hosts", type=int, default=12, help="to how many app hosts it grows (default 12)")
    arguments.add_argument("--runs", type=int, default=2, help="how often each playbook is run (default 2)")
    options = arguments.parse_args()
    hosts = options.hosts
    few = costs(3, options.runs)
    new = ",".join(f"app{number}" for number in range(4, hosts + 1))
    run("ansible-playbook", "lab/create.yml", hosts=hosts)
    run("ansible-playbook", "deploy.yml", "-l", "new_nodes", hosts=hosts, new=new)
    run("ansible-playbook", "update-lb.yml", hosts=hosts)
    try:
        many = costs(hosts, options.runs, few)
    finally:
        run("ansible-playbook", "update-lb.yml", hosts=3)
        gone = [f"trading-lab-{name}" for name in new.split(",")]
        subprocess.run(["docker", "rm", "--force", "--volumes", *gone], check=True, stdout=subprocess.DEVNULL)
        disks = [f"{name}-docker" for name in gone]
        subprocess.run(["docker", "volume", "rm", *disks], check=True, stdout=subprocess.DEVNULL)
    # A run over four times the hosts that takes no more than four times as long grows no faster than the fleet.
    worst = max(many[name] / few[name] for name in RUNS)
    goal = hosts / 3
    print(f"noop_growth {worst:.2f} ratio goal {goal:.2f} {'ok' if worst <= goal else 'short'}")


if __name__ == "__main__":
    main()
