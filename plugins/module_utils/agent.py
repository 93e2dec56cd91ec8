"""The release agent of a load balancer: what a rollout has done there, one command at a time. Standard library only.

``trading-bot-release <command>`` reads one JSON object and writes one. `COMMANDS` names every command with what does it.
A command that changes something is carried out alone among all processes of the machine, and is in the journal before it is
done. Taking accounts from the canary is never held up: not by a full disk, not by NATS, not by another command that hangs.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

from .balancer import Change, LoadBalancer, as_dict, make, plan, read, wait_up
from .haproxy import HaproxyError, RuntimeSocket, by_slot, parse_slots
from .instances import scrape_all
from .lease import Lock, Now, Refused, acquire, check, heartbeat_lost, renew
from .map_files import read_text, replace_text
from .rollout_metrics import rollout_series
from .state_files import BAD, COMMAND, LOCK, ROLLOUT, TRAFFIC, StateFiles, current_time, stamp
from .traffic import SLOTS, Traffic, TrafficError, traffic_from

CONFIG = Path("/etc/trading-bot-release/agent.json")
REFUSED = 3
_WORD = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_ROLES = ("stable", "canary", "salt", "cut")


def _need(request: Mapping[str, Any], name: str, kind: Any, what: str) -> Any:
    value = request.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Refused("invalid", f"{name} is {value!r}, expected {what}")
    return value


def _text(request: Mapping[str, Any], name: str) -> str:
    value: str = _need(request, name, str, "a text")
    return value


def _token(request: Mapping[str, Any]) -> int:
    value: int = _need(request, "token", int, "the token that acquire gave")
    return value


class Agent:
    """The commands, on this machine's state and this machine's HAProxy; the requests are `engine`'s contract."""

    def __init__(self, config: Mapping[str, Any], clock: Callable[[], Now] = current_time) -> None:
        self.config = config
        self.clock = clock
        self.files = StateFiles(Path(config["state_dir"]))
        self.prefix = str(config.get("backend_prefix", "slot_"))
        self.runtime = RuntimeSocket(config["socket"], float(config.get("timeout", 2.0)))
        self.balancer = LoadBalancer(Path(config["maps_dir"]), self.runtime, str(config.get("master_socket") or ""), self.prefix)
        self.watchdog_after = float(config.get("watchdog_after", 15))

    # what more than one command needs

    def full(self, traffic: Optional[Traffic]) -> Optional[dict[str, Any]]:
        """The maps' four keys, with what only the instances are told: the slot in the shadow, the slots' releases."""
        if traffic is None:
            return None
        more = self.files.read(TRAFFIC) or {}
        return {**traffic.as_dict(), "shadow": more.get("shadow") or "", "releases": more.get("releases") or {}}

    def held(self, request: Mapping[str, Any], now: Now) -> Lock:
        """The lock of the token that the request names."""
        return check(self.files.lock(), self.files.token(), _token(request), now)

    def line(self, event: str, by: str, token: Optional[int], rollout: Optional[str], **more: Any) -> dict[str, Any]:
        """A line of the journal."""
        return {"at": stamp(self.clock().wall), "rollout": rollout, "token": token, "by": by, **more, "event": event}

    @contextlib.contextmanager
    def alone(self, warnings: list[str], retreats: Callable[[], bool]) -> Iterator[None]:
        """Alone with the state; who only takes accounts from the canary goes on without, and says so."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.files.exclusively(2.0))
            except OSError as error:
                if not retreats():
                    raise
                warnings.append(f"not alone with the state: {error}")
            yield

    # the lock

    def acquire(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Take the lock, or learn who has it. With `after`, the token that its owner saw: only if nobody had it since."""
        owner, rollout = _text(request, "owner"), _text(request, "rollout")
        now = self.clock()
        with self.files.exclusively():
            before = self.files.lock()
            lock = acquire(
                before,
                self.files.token(),
                now,
                owner=owner,
                rollout=rollout,
                kind=str(request.get("kind") or "rollout"),
                ttl=float(request.get("ttl") or self.watchdog_after),
                at_least=int(request.get("token") or 0),
                preempt=bool(request.get("preempt")),
            )
            after = request.get("after")
            if after is not None and after != self.files.token():
                raise Refused("overtaken", "somebody else has changed things since the fleet was read")
            # Whatever may fail comes before it is taken.
            traffic, _, differs = read(self.balancer)
            if before is not None and before.rollout != rollout:
                # What an operator asked of another rollout is not meant for this one.
                self.files.remove(COMMAND)
            self.files.hold(lock)
            if before is not None and (before.owner, before.rollout) != (owner, rollout):
                more = {"from": before.as_dict(), "expired": before.expired(now), "owner": owner}
                self.files.journal([self.line("taken_over", "control", lock.token, rollout, **more)])
        return {"token": lock.token, "lock": lock.as_dict(), "traffic": self.full(traffic), "running_differs": differs}

    def renew(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The heartbeat."""
        now = self.clock()
        with self.files.exclusively():
            ttl = request.get("ttl")
            lock = renew(self.held(request, now), now, float(ttl) if ttl else None)
            self.files.hold(lock)
        return {"lock": lock.as_dict()}

    def unlock(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Give the lock back; the token stays the highest, so that no old one comes to life again."""
        with self.files.exclusively():
            self.held(request, self.clock())
            self.files.remove(LOCK)
            self.files.remove(COMMAND)
        return {}

    # the traffic

    def cut(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Change the traffic: files, running maps, workers that finish after a reload; read back."""
        started = time.monotonic()
        token = _token(request)
        shadow, releases = request.get("shadow"), request.get("releases")
        if shadow not in (None, "", *SLOTS):
            raise Refused("invalid", f"shadow is {shadow!r}, expected one of: {', '.join(SLOTS)}, or nothing")
        if releases is not None and not isinstance(releases, dict):
            raise Refused("invalid", f"releases is {releases!r}, expected a release's id for a slot")
        changes = {name: request.get(name) for name in _ROLES}
        warnings: list[str] = []
        with self.alone(warnings, lambda: not shadow and plan(self.balancer, changes, allow_stopped=True).retreats):
            now = self.clock()
            lock = self.held(request, now)
            change = plan(self.balancer, changes, allow_stopped=True)
            change.warnings.extend(warnings)
            retreats = change.retreats and not shadow
            if not retreats:
                if change.running_before is None:
                    raise Refused("unreachable", f"no HAProxy answers on {self.runtime.path}; nothing was changed")
                if lock.expired(now):
                    raise Refused("fenced", f"the lock of {lock.owner} has expired; renew it first", lock=lock.as_dict())
                wait_up(change, int(request.get("min_up", 1)), float(request.get("up_timeout", 2.0)))
            more = request.get("journal") or {}
            by, tells = str(request.get("by") or "control"), bool(request.get("kv"))
            result = self.turn(change, shadow, releases, retreats, by, token, lock.rollout, started, tells, more)
        if request.get("kv"):
            result["kv"] = self.tell(change.warnings)
        return result

    def turn(
        self,
        change: Change,
        shadow: Optional[str],
        releases: Optional[Mapping[str, str]],
        retreats: bool,
        by: str,
        token: Optional[int],
        rollout: Optional[str],
        started: float,
        tells: bool,
        more: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Make a planned change, in the journal before and after."""
        before = self.full(change.before)
        known = self.files.read(TRAFFIC) or {}
        beside = {
            "shadow": (known.get("shadow") or "") if shadow is None else shadow,
            "releases": {**(known.get("releases") or {}), **(releases or {})},
        }
        after = {**change.target.as_dict(), **beside}
        what: dict[str, Any] = {**more, "before": before, "after": after}

        def note(action: Callable[[], None], needed: bool) -> None:
            try:
                action()
            except OSError as error:
                if needed:
                    raise
                change.warnings.append(f"the state in {self.files.directory} cannot be written: {error}")

        def journal(phase: str, needed: bool, **also: Any) -> None:
            entry = self.line("traffic", by, token, rollout, **{**what, "phase": phase, **also})
            # A disk that is slow does not hold up the way back: its first line reaches the disk with its last one.
            note(lambda: self.files.journal([entry], sync=needed or phase != "intend"), needed)

        journal("intend", not retreats)
        try:
            differs = make(change)
        except (HaproxyError, TrafficError, OSError) as error:
            journal("failed", False, error=str(error))
            raise
        if beside != known:
            note(lambda: self.files.write(TRAFFIC, beside), not retreats)
        if tells:
            owed: dict[str, Any] = {**change.target.as_dict(), "token": token}
            owed.update({name: value for name, value in (("shadow", shadow), ("releases", releases)) if value is not None})
            note(lambda: self.told_instances().owe(owed), not retreats)
        seconds = round(time.monotonic() - started, 4)
        also = {"warnings": list(change.warnings)} if change.warnings else {}
        journal("done", False, seconds=seconds, old_workers=change.old_workers, **also)
        return {
            "before": before,
            "after": after,
            "changed": change.changes,
            "haproxy": "stopped" if change.running_before is None else "running",
            "running_differs": differs,
            "seconds": seconds,
            "old_workers": change.old_workers,
            "warnings": change.warnings,
            "servers": by_slot(self.runtime.servers(), self.prefix) if change.running_before is not None else {},
        }

    def told_instances(self) -> Any:
        """The bucket; what talks to NATS is loaded by those commands alone that do."""
        from .told_instances import ToldInstances

        return ToldInstances(self.files, self.config.get("nats") or {})

    def tell(self, warnings: list[str], later: bool = False) -> dict[str, Any]:
        """Tell the instances what they are owed; a NATS that is away is reported, and the watchdog tries again."""
        result: dict[str, Any] = self.told_instances().tell(later=later)
        if not result["ok"]:
            warnings.append(f"the instances are not told over NATS yet: {result['error']}")
        return result

    # looking

    def look(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that the walk judges by, in one go; renews the lock on the way."""
        now = self.clock()
        found: dict[str, Any] = {"at": now.wall, "command": None, "warnings": []}
        instances = request.get("instances") or {}
        scraped: dict[str, Any] = {}
        token = str(self.config.get("status_token") or "") if request.get("shadow") else ""
        scraping = threading.Thread(
            target=lambda: scraped.update(scrape_all(instances, float(request.get("timeout", 1.0)), token)), daemon=True
        )
        scraping.start()
        if request.get("token") is not None:
            with self.files.exclusively():
                ttl = request.get("ttl")
                lock = renew(self.held(request, now), now, float(ttl) if ttl else None)
                try:
                    self.files.hold(lock)
                    if request.get("command"):
                        found["command"] = self.take_command(lock)
                except OSError as error:
                    found["warnings"].append(f"the state in {self.files.directory} cannot be written: {error}")
        held = self.files.lock()
        found["lock"] = held.as_dict() if held else None
        try:
            on_disk, running, differs = read(self.balancer)
            found.update(traffic=self.full(on_disk), running=as_dict(running), running_differs=differs)
            if running is not None:
                found["haproxy"] = parse_slots(self.runtime.ask("show stat -1 6 -1"), self.prefix)
                found["servers"] = by_slot(self.runtime.servers(), self.prefix)
                found["worker"] = self.runtime.about()
        except (HaproxyError, TrafficError, OSError) as error:
            found["haproxy_error"] = str(error)
        known = self.files.read("kv.json") or {}
        found["kv"] = {"ok": not known.get("pending"), "revision": known.get("revision"), "pending": known.get("pending")}
        scraping.join()
        found["instances"] = scraped
        return found

    def take_command(self, lock: Lock) -> Optional[dict[str, Any]]:
        """What an operator asked for, once: in the journal from now on."""
        command = self.files.read(COMMAND)
        if command is not None:
            more = _without(command, "by")
            self.files.journal([self.line("command", str(command.get("by")), lock.token, lock.rollout, **more)])
            self.files.remove(COMMAND)
        return command

    # notes

    def journal(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Append what the walk did."""
        entries = _need(request, "entries", list, "a list of events")
        with self.files.exclusively():
            lock = self.held(request, self.clock())
            lines = []
            for entry in entries:
                if not isinstance(entry, dict) or not _WORD.fullmatch(str(entry.get("event"))):
                    raise Refused("invalid", f"{entry!r} is no event")
                lines.append({**self.line(entry["event"], "control", lock.token, lock.rollout), **entry})
            self.files.journal(lines)
        return {"written": len(lines)}

    def note(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Put the rollout's own notes in place of the last ones."""
        rollout = _need(request, "rollout", dict, "an object")
        with self.files.exclusively():
            self.held(request, self.clock())
            self.files.write(ROLLOUT, rollout)
        return {}

    def command(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Leave the rollout that is in progress a word."""
        action = _text(request, "action")
        if not _WORD.fullmatch(action):
            raise Refused("invalid", f"action is {action!r}, expected a word")
        now = self.clock()
        with self.files.exclusively():
            lock = self.files.lock()
            if lock is None or lock.expired(now):
                raise Refused("invalid", f"no rollout is in progress here that could be told to {action}")
            left = {"action": action, "by": _text(request, "by"), "why": str(request.get("why") or ""), "at": stamp(now.wall)}
            self.files.write(COMMAND, left)
        return {"command": left, "lock": lock.as_dict()}

    def mark(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Note that a release is bad."""
        release = _text(request, "release")
        return self._marks(request, lambda marks, at: {**marks, release: {
            "why": str(request.get("why") or ""), "at": at, "rollout": request.get("rollout")}}, "marked", release)  # fmt: skip

    def unmark(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Take that back."""
        release = _text(request, "release")
        return self._marks(request, lambda marks, _: _without(marks, release), "unmarked", release)

    def _marks(
        self, request: Mapping[str, Any], change: Callable[[dict[str, Any], str], dict[str, Any]], event: str, release: str
    ) -> dict[str, Any]:
        now = self.clock()
        with self.files.exclusively():
            if request.get("token") is not None:
                self.held(request, now)
            before = self.files.read(BAD) or {}
            after = change(before, stamp(now.wall))
            if set(after) != set(before):
                by, rollout = str(request.get("by") or "operator"), request.get("rollout")
                more = {"release": release, "why": str(request.get("why") or "")}
                self.files.journal([self.line(event, by, request.get("token"), rollout, **more)])
            self.files.write(BAD, after)
        return {"bad": after, "changed": set(after) != set(before)}

    def status(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that is known here; changes nothing."""
        now = self.clock()
        lock = self.files.lock()
        count = int(request.get("entries", 20))
        entries, torn = self.files.entries(count, request.get("rollout")) if count else ([], 0)
        found: dict[str, Any] = {
            "at": now.wall,
            "lock": {**lock.as_dict(), "live": not lock.expired(now), "left": lock.left(now)} if lock else None,
            "token": self.files.token(),
            "rollout": self.files.read(ROLLOUT),
            "command": self.files.read(COMMAND),
            "bad": self.files.read(BAD) or {},
            "journal": entries,
            "journal_torn": torn,
            "kv": self.files.read("kv.json") or {},
        }
        try:
            on_disk, running, differs = read(self.balancer)
            found.update(traffic=self.full(on_disk), running=as_dict(running), running_differs=differs)
            found["servers"] = by_slot(self.runtime.servers(), self.prefix) if running is not None else {}
        except (HaproxyError, TrafficError, OSError) as error:
            found["haproxy_error"] = str(error)
        return found

    # without anybody asking

    def watchdog(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Take the canary's accounts back when nobody looks after it; mend what a reload or an absent NATS left behind."""
        started = time.monotonic()
        now = self.clock()
        did: list[str] = []
        warnings: list[str] = []
        with self.alone(warnings, lambda: True):
            on_disk, running, _differs = read(self.balancer)
            if on_disk is None:
                return {"did": did, "warnings": warnings}
            lock = self.files.lock()
            shadow = str((self.files.read(TRAFFIC) or {}).get("shadow") or "")
            served = max(on_disk.cut, running.cut if running else 0)
            if (served or shadow) and heartbeat_lost(lock, now, self.watchdog_after):
                since = lock.since_heartbeat(now) if lock else None
                change = plan(self.balancer, {"cut": 0}, allow_stopped=True)
                change.warnings.extend(warnings)
                more = {"why": "nobody looks after the canary", "silent_for": since, "owner": lock.owner if lock else None}
                token, rollout = (lock.token, lock.rollout) if lock else (self.files.token(), None)
                self.turn(change, "", None, True, "watchdog", token, rollout, started, True, more)
                warnings = change.warnings
                did.append("cut")
                try:
                    # Its owner may still live: from now on his token is worth nothing.
                    self.files.fence()
                    self.files.remove(COMMAND)
                except OSError as error:
                    warnings.append(f"the former owner is not fenced: {error}")
            elif _differs:
                did += self.settle_maps(on_disk, running)
        if (self.files.read("kv.json") or {}).get("pending"):
            did += ["kv"] if self.tell(warnings, later=True)["ok"] else []
        self.show(warnings)
        return {"did": did, "warnings": warnings}

    def show(self, warnings: list[str]) -> None:
        """Leave the rollout's figures for Prometheus, where the host has a place for them; nothing depends on it."""
        path = Path(self.config.get("metrics_file") or "")
        try:
            if path.name and path.parent.is_dir():
                on_disk = read(self.balancer)[0]
                text = rollout_series(on_disk, self.files.read(ROLLOUT), self.files.lock())
                if text != read_text(path):
                    replace_text(path, text, sync=False)
        except (HaproxyError, TrafficError, OSError) as error:
            warnings.append(f"{path} cannot be written: {error}")

    def settle_maps(self, on_disk: Traffic, running: Optional[Traffic]) -> list[str]:
        """Make files and HAProxy say the same, as a reload in the middle of a change may leave them; never with more canary."""
        cut = min(on_disk.cut, running.cut if running else on_disk.cut)
        change = plan(self.balancer, {"cut": cut}, allow_stopped=True)
        if not change.changes:
            return []
        differs = make(change)
        lock = self.files.lock()
        more = {"running": as_dict(running), "before": self.full(on_disk), "after": self.full(change.target)}
        self.files.journal([self.line("settled", "watchdog", self.files.token(), lock.rollout if lock else None, **more)])
        return ["settled", *(str(one) for one in differs)]

    def settle(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """After a reload: the new worker may have read a file just before it was changed."""
        with self.files.exclusively():
            on_disk, running, differs = read(self.balancer)
            did = self.settle_maps(on_disk, running) if on_disk is not None and differs else []
        return {"did": did}

    def sync(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Before this load balancer serves: what the fleet does; nobody on the canary where that cannot be known."""
        with self.files.exclusively(2.0):
            before = read(self.balancer)[0]
            if before is not None and before.cut:
                # First of all: were this to end half-way, nobody would be on the canary.
                make(plan(self.balancer, {"cut": 0}, allow_stopped=True))
            after, why = self.fleet_traffic(before)
            if after is not None:
                try:
                    make(plan(self.balancer, after.as_dict(), allow_stopped=True))
                except TrafficError as error:
                    why = f"{why}; {error}"
            done = read(self.balancer)[0]
            if before is not None or after is not None:
                entry = self.line("sync", "watchdog", self.files.token(), None, before=as_dict(before),
                                  after=as_dict(done), why=why)  # fmt: skip
                with contextlib.suppress(OSError):
                    self.files.journal([entry])
        return {"before": as_dict(before), "after": as_dict(done), "why": why}

    def fleet_traffic(self, own: Optional[Traffic]) -> tuple[Optional[Traffic], str]:
        """What the fleet does as far as this load balancer can know, and a sentence on how it knows."""
        from .nats_client import NatsError

        instances = self.told_instances()
        now, lock = self.clock(), self.files.lock()
        canary_is_watched = not heartbeat_lost(lock, now, self.watchdog_after)
        try:
            told, revision = instances.read(3.0)
        except (NatsError, OSError, ValueError) as error:
            return None, f"what the fleet does cannot be known, so nobody is on the canary: {error}"
        if told is None or told.traffic is None or revision is None:
            return None, "the bucket says nothing yet"
        if instances.known().get("pending") and not instances.overtaken(told, revision):
            return own, "this load balancer knows better than the bucket, which is not told yet"
        cut = told.traffic.cut if canary_is_watched else 0
        more = self.files.read(TRAFFIC) or {}
        if (more.get("shadow") or "", more.get("releases") or {}) != (told.shadow, told.releases):
            with contextlib.suppress(OSError):
                self.files.write(TRAFFIC, {"shadow": told.shadow, "releases": told.releases})
        return traffic_from({**told.traffic.as_dict(), "cut": cut}), f"as the bucket says (revision {revision})"

    # probing

    def probe(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Ask this load balancer's own frontend as many accounts would, and compare who answers with who should."""
        from .probing import probe

        traffic = read(self.balancer)[1]
        if traffic is None:
            raise Refused("unreachable", f"no HAProxy answers on {self.runtime.path}")
        count = int(request.get("accounts", 1000))
        return probe(str(self.config.get("frontend", "127.0.0.1:8080")), traffic, count)

    def reach(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Whether another load balancer takes connections, as seen from this one."""
        address = (_text(request, "address"), _need(request, "port", int, "a port's number"))
        try:
            socket.create_connection(address, timeout=1.0).close()
        except OSError as error:
            return {"open": False, "error": str(error)}
        return {"open": True}


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


COMMANDS: dict[str, Callable[[Agent, Mapping[str, Any]], dict[str, Any]]] = {
    "acquire": Agent.acquire,
    "renew": Agent.renew,
    "unlock": Agent.unlock,
    "cut": Agent.cut,
    "look": Agent.look,
    "journal": Agent.journal,
    "note": Agent.note,
    "command": Agent.command,
    "status": Agent.status,
    "mark": Agent.mark,
    "unmark": Agent.unmark,
    "probe": Agent.probe,
    "reach": Agent.reach,
    "watchdog": Agent.watchdog,
    "sync": Agent.sync,
    "settle": Agent.settle,
}


def answer(config: Mapping[str, Any], command: str, text: str, clock: Callable[[], Now] = current_time) -> dict[str, Any]:
    """What a command answers to a request's text; ``ok`` is False where it was not carried out."""
    try:
        if command not in COMMANDS:
            raise Refused("invalid", f"{command!r} is no command, expected one of: {', '.join(COMMANDS)}")
        try:
            request = json.loads(text) if text.strip() else {}
        except ValueError as error:
            raise Refused("invalid", f"the request is no JSON: {error}") from error
        if not isinstance(request, dict):
            raise Refused("invalid", "the request is no JSON object")
        return {"ok": True, **COMMANDS[command](Agent(config, clock), request)}
    except Refused as refused:
        return {"ok": False, "code": refused.code, "error": str(refused), **refused.more}
    except HaproxyError as error:
        return {"ok": False, "code": "unreachable", "error": str(error)}
    except TrafficError as error:
        return {"ok": False, "code": "invalid", "error": str(error)}
    except OSError as error:
        return {"ok": False, "code": "failed", "error": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"ok": False, "code": "failed", "error": f"{type(error).__name__}: {error}"}


def main(arguments: list[str], config_file: Path = CONFIG) -> int:
    """Carry out one command; the exit status is 0 where it was, and 3 where it was refused."""
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(json.dumps({"ok": False, "code": "failed", "error": f"{config_file}: {error}"}))
        return REFUSED
    command = arguments[0] if arguments else ""
    # The commands that systemd calls take nothing.
    text = "" if command in ("watchdog", "sync", "settle") or sys.stdin.isatty() else sys.stdin.read()
    result = answer(config, command, text)
    if command in ("watchdog", "sync", "settle") and result["ok"] and not result.get("did", True) and not result.get("warnings"):
        return 0
    print(json.dumps(result))
    return 0 if result["ok"] else REFUSED
