"""A load balancer's maps: what they say on disk and in each HAProxy that runs, and how they come to say something else.

Standard library only; the module ``release_traffic`` and the agent on the load balancers both work with it.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Optional

from .haproxy import HaproxyError, HaproxyStopped, OldWorker, RuntimeSocket, old_workers
from .map_files import read_text, replace_text
from .traffic import (
    CUT_MAP,
    RELEASE_MAP,
    Step,
    Traffic,
    TrafficError,
    differences,
    gaining,
    parse_map,
    plan_steps,
    traffic_of_maps,
    wanted,
    with_value,
)

FILES = (RELEASE_MAP, CUT_MAP)

# HAProxy reads the keys of one request one after the other. A request that is just at it when a key changes sees that
# change or not, and both are safe; the pause keeps a second change from falling into the same request.
_PAUSE_BETWEEN_STEPS = 0.01

# In a reload the master becomes a new program, and nobody listens on its socket for a moment.
_MASTER_RESTARTS, _MASTER_POLL = 1.0, 0.02

_POLL = 0.1
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class LoadBalancer:
    """The maps of this load balancer: the files, and the running HAProxy if there is one."""

    def __init__(self, maps_dir: Path, runtime: RuntimeSocket, master: str = "", backend_prefix: str = "slot_") -> None:
        self.maps_dir = maps_dir
        self.runtime = runtime
        self.master = master
        self.backend_prefix = backend_prefix

    def texts(self) -> dict[str, str]:
        """The files' texts, empty for a missing file."""
        return {name: read_text(self.maps_dir / name) for name in FILES}

    def running(self, worker: Optional[RuntimeSocket] = None) -> Optional[dict[str, dict[str, str]]]:
        """The running maps, None where HAProxy does not run; those of the worker that takes new connections if none is named."""
        try:
            return {name: (worker or self.runtime).read_map(str(self.maps_dir / name)) for name in FILES}
        except HaproxyStopped:
            return None

    def write(self, step: Step) -> None:
        """Bring the step to its file, if it does not say so already."""
        path = self.maps_dir / step.map
        text = read_text(path)
        if parse_map(text).get(step.key) != step.value:
            changed = with_value(text, step.key, step.value)
            try:
                replace_text(path, changed)
            except OSError as error:
                if error.errno not in _DISK_FULL or not text:
                    raise
                overwrite(path, changed)

    def set_running(self, step: Step, worker: Optional[RuntimeSocket] = None) -> None:
        """Bring the step to the running map and read it back."""
        worker = worker or self.runtime
        path = str(self.maps_dir / step.map)
        worker.set_map(path, step.key, step.value)
        found = worker.read_map(path).get(step.key)
        if found != step.value:
            raise HaproxyError(f"the running map {path} says {step.key} {found} after it was set to {step.value}")

    def old_workers(self) -> list[OldWorker]:
        """The workers that finish their connections after a reload; raises HaproxyError when the master cannot be asked."""
        if not self.master:
            return []
        deadline = time.monotonic() + _MASTER_RESTARTS
        while True:
            try:
                return old_workers(self.master, self.runtime.timeout)
            except HaproxyStopped:
                if not os.path.exists(self.master) or time.monotonic() >= deadline:
                    raise
                time.sleep(_MASTER_POLL)


def overwrite(path: Path, text: str) -> None:
    """Put `text` into the blocks that the file has, for a disk with no room for another file.

    One write: HAProxy reads the file at its start only, and a reader beside it sees the old text or the new one.
    """
    handle = os.open(path, os.O_WRONLY)
    try:
        data = text.encode()
        os.pwrite(handle, data, 0)
        os.ftruncate(handle, len(data))
        os.fsync(handle)
    finally:
        os.close(handle)


def parsed(texts: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The maps that the files' texts say; raises TrafficError with the file's name."""
    found = {}
    for name, text in texts.items():
        try:
            found[name] = parse_map(text)
        except TrafficError as error:
            raise TrafficError(f"{name}: {error}") from error
    return found


def as_dict(traffic: Optional[Traffic]) -> Optional[dict[str, Any]]:
    """The four keys, None for no traffic."""
    return traffic.as_dict() if traffic else None


def _maps_of(traffic: Traffic) -> dict[str, dict[str, str]]:
    return {
        RELEASE_MAP: {"stable": traffic.stable, "canary": traffic.canary, "salt": traffic.salt},
        CUT_MAP: {"canary": str(traffic.cut)},
    }


def _complete(target: Traffic, maps: Mapping[str, Mapping[str, str]]) -> list[Step]:
    """The steps that write out what the maps leave to HAProxy's defaults; none of them moves an account."""
    return [
        Step(missing["map"], missing["key"], missing["disk"])
        for missing in differences(_maps_of(target), maps)
        if missing["running"] is None
    ]


def _steps(maps: Mapping[str, Mapping[str, str]], target: Traffic) -> list[Step]:
    """What leads from these maps to the target: the safe order, then the keys that were only defaults until now."""
    start = traffic_of_maps(maps, defaults=True)
    assert start is not None
    steps = list(plan_steps(start, target))
    set_by_steps = {(step.map, step.key) for step in steps}
    return steps + [step for step in _complete(target, maps) if (step.map, step.key) not in set_by_steps]


@dataclass
class Change:
    """What it takes for the files and the running maps to say `target`; planned, not yet made."""

    balancer: LoadBalancer
    texts: dict[str, str]
    before: Optional[Traffic]
    target: Traffic
    running_before: Optional[dict[str, dict[str, str]]]
    disk_steps: list[Step]
    running_steps: list[Step]
    #: What does not keep the change from being made, each one sentence: a disk that is full, an old worker that is silent.
    warnings: list[str] = field(default_factory=list)
    old_workers: int = 0
    #: Whether the files say it too; False only where a full disk must not keep the canary's accounts from going back.
    on_disk: bool = True

    @property
    def changes(self) -> bool:
        """Whether anything is to be done at all; workers that finish after a reload are looked at in any case."""
        return bool(self.disk_steps or self.running_steps)

    @property
    def retreats(self) -> bool:
        """Whether the canary only loses accounts, which is never held up."""
        return retreats(self.before, self.target)


def retreats(before: Optional[Traffic], target: Traffic) -> bool:
    """Whether the change takes accounts from the canary and does nothing else."""
    return before is not None and target.stable == before.stable and target.cut == 0


def plan(balancer: LoadBalancer, changes: Mapping[str, Any], allow_stopped: bool = False) -> Change:
    """What it takes for this load balancer to do what it does now with these changes.

    Raises TrafficError or HaproxyError where it cannot be done, with nothing done.
    """
    texts = balancer.texts()
    disk = parsed(texts)
    before = traffic_of_maps(disk, defaults=any(disk.values()))
    target = wanted(before, changes)
    running = balancer.running()
    if running is None and not allow_stopped:
        raise HaproxyStopped(
            f"no HAProxy answers on {balancer.runtime.path}; start it, or allow_stopped to write the files alone"
        )
    return Change(
        balancer=balancer,
        texts=texts,
        before=before,
        target=target,
        running_before=running,
        disk_steps=_steps(disk, target),
        running_steps=_steps(running, target) if running is not None else [],
    )


def wait_up(change: Change, min_up: int, timeout: float) -> None:
    """Until every slot that is to get more accounts has enough servers that are up; raises HaproxyError after the timeout."""
    if change.running_before is None:
        return
    now = traffic_of_maps(change.running_before, defaults=True)
    assert now is not None
    slots = gaining(now, change.target)
    deadline = time.monotonic() + timeout
    while slots and min_up:
        servers = change.balancer.runtime.servers()
        prefix = change.balancer.backend_prefix
        up = {slot: [s for s in servers if s.backend == f"{prefix}{slot}" and s.serves] for slot in slots}
        if all(len(found) >= min_up for found in up.values()):
            return
        if time.monotonic() >= deadline:
            each = ", ".join(
                f"{slot} has {len(found)} ({', '.join(s.name for s in found) or 'none'})" for slot, found in up.items()
            )
            raise HaproxyError(
                f"HAProxy does not find enough servers up after {timeout:g} s to send accounts there:"
                f" {each}, {min_up} must be up; nothing was changed"
            )
        time.sleep(_POLL)


def _in_order(steps: list[Step], *doers: Callable[[Step], None]) -> None:
    for at, step in enumerate(steps):
        if at:
            time.sleep(_PAUSE_BETWEEN_STEPS)
        for do in doers:
            do(step)


def _write_all(change: Change) -> None:
    """The files; where the canary only loses accounts, a file that cannot be written does not keep the traffic where it is."""
    try:
        for step in change.disk_steps:
            change.balancer.write(step)
    except OSError as error:
        if not change.retreats or change.running_before is None:
            raise
        change.on_disk = False
        change.warnings.append(f"the files in {change.balancer.maps_dir} cannot be written, HAProxy alone was told: {error}")


def _tell_old_workers(change: Change) -> None:
    balancer = change.balancer
    try:
        workers = balancer.old_workers()
    except HaproxyError as error:
        change.warnings.append(f"whether a HAProxy still finishes connections after a reload is not known: {error}")
        return
    for worker in workers:
        try:
            maps = balancer.running(worker)
            if maps is not None:
                change.old_workers += 1
                _in_order(_steps(maps, change.target), partial(balancer.set_running, worker=worker))
        except HaproxyStopped:
            continue
        except (HaproxyError, TrafficError) as error:
            change.warnings.append(f"the worker {worker.pid}, which finishes after a reload, was not told: {error}")


def make(change: Change) -> list[dict[str, Any]]:
    """Make the change and read it back; gives where the running maps differ from the files, which is nowhere.

    Raises HaproxyError or TrafficError where what was set is not what is read.
    """
    balancer = change.balancer
    if change.disk_steps == change.running_steps and not change.retreats:
        _in_order(change.disk_steps, balancer.write, balancer.set_running)
    elif change.retreats:
        # Back from the canary at once: what HAProxy does comes first, what a restart would read right after.
        _in_order(change.running_steps, balancer.set_running)
        if change.running_before is not None:
            _tell_old_workers(change)
        _write_all(change)
    else:
        _write_all(change)
        _in_order(change.running_steps, balancer.set_running)
    if change.running_before is not None and not change.retreats:
        _tell_old_workers(change)
    disk, running = parsed(balancer.texts()), balancer.running()
    expected = _maps_of(change.target)
    left = differences(expected, disk)
    if left and change.on_disk:
        raise TrafficError(f"the files in {balancer.maps_dir} do not say what was written: {left}")
    differs = differences(expected, running) if running is not None else []
    if differs:
        raise HaproxyError(f"the running maps differ from what they were set to: {differs}")
    return differences(disk, running) if running is not None else []


def read(balancer: LoadBalancer) -> tuple[Optional[Traffic], Optional[Traffic], list[dict[str, Any]]]:
    """What the files say, what the running HAProxy does (None: it does not run), and where the two differ."""
    disk = parsed(balancer.texts())
    running = balancer.running()
    return (
        traffic_of_maps(disk, defaults=any(disk.values())),
        traffic_of_maps(running, defaults=True) if running is not None else None,
        differences(disk, running) if running is not None else [],
    )
