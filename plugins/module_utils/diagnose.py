"""What is wrong with a fleet, why, and how to mend it, from what diagnose_measure found on each host. Pure.

A finding is ``{severity, host, what, cause, mend, evidence}``. Those that explain others come first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from .diagnose_text import blocking_rules, listens

SEVERITIES = ("critical", "warning", "notice")
#: The kinds of finding, causes before what follows from them; of the same severity they are told in this order.
KINDS = (
    *("unreachable", "disk", "config", "release", "image", "memory", "password", "service", "certificate", "clock", "port"),
    *("redis", "nats", "load", "expiry", "absent", "symptom"),
)
LIMITS: dict[str, float] = {
    "disk_percent": 90,
    "memory_percent": 85,
    "load_per_processor": 2,
    "redis_milliseconds": 50,
    "redis_slow_seconds": 5,
    "clock_seconds": 0.5,
    "stream_lag": 10000,
    "certificate_days": 14,
}
_FULL = 98
_BAD_CONFIG = 78
_DAY = 86400
_UP = ("active", "reloading")
_LOG = "/var/log/trading-bot/trading-bot"


def findings(
    measured: Mapping[str, Mapping[str, Any]], before: float, after: float, limits: Optional[Mapping[str, float]] = None
) -> list[dict[str, Any]]:
    """Every finding, worst and most telling first; the same one on several hosts is told once.

    ``measured`` is what the module returned for each host, also where the host was unreachable or the module failed. It was
    measured between ``before`` and ``after``, seconds since 1970 by the control node's clock.
    """
    judge = _Judge(measured, before, after, {**LIMITS, **(limits or {})})
    found = [*_silent_hosts(measured), *judge.causes()]
    found += judge.symptoms([item for item in found if item["severity"] == "critical"])
    return _told_once(sorted(found, key=lambda item: (SEVERITIES.index(item["severity"]), KINDS.index(item["kind"]))))


def _finding(
    kind: str, severity: str, host: str, what: str, cause: str, mend: str, evidence: Sequence[object] = ()
) -> dict[str, Any]:
    shown = [str(line) for line in evidence if str(line).strip()]
    return {
        "kind": kind,
        "severity": severity,
        "host": host,
        "what": what,
        "cause": cause,
        "mend": mend,
        "evidence": shown,
    }


def _told_once(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    merged: dict[tuple[str, ...], dict[str, Any]] = {}
    for item in found:
        key = (item["severity"], item["kind"], item["what"], item["cause"])
        first = merged.get(key)
        if first is None:
            merged[key] = {**item, "hosts": [item["host"]]}
        elif item["host"] not in first["hosts"]:
            first["hosts"].append(item["host"])
            first["evidence"] = [*first["evidence"], *(f"{item['host']}: {line}" for line in item["evidence"])][:8]
            first["mend"] = item["mend"].replace(item["host"], ",".join(first["hosts"]))
    return [{**item, "host": ", ".join(item.pop("hosts"))} for item in merged.values()]


def _silent_hosts(measured: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for host, result in measured.items():
        if "facts" in result:
            continue
        why = " ".join(str(result.get("msg", "no answer")).removeprefix("Task failed: ").split())
        if result.get("unreachable"):
            cause = "the host is down, or ssh to it does not work"
            mend = f"ansible {host} -m ansible.builtin.ping; if it is lost, docs/runbook/replace-host.md"
            yield _finding("unreachable", "critical", host, "The host does not answer", cause, mend, [why])
        else:
            cause = "the measurement itself failed"
            yield _finding(
                "unreachable", "critical", host, "The host cannot be measured", cause, f"ansible {host} -b -a id", [why]
            )


def _start(host: str, unit: str) -> str:
    return f"ansible {host} -b -m ansible.builtin.systemd_service -a 'name={unit} state=started'"


def _shell(host: str, command: str) -> str:
    return f"ansible {host} -b -m ansible.builtin.shell -a '{command}'"


def _journal(host: str, unit: str) -> str:
    return f"ansible {host} -b -a 'journalctl -u {unit} -n 50 --no-pager'"


class _Judge:
    def __init__(
        self, measured: Mapping[str, Mapping[str, Any]], before: float, after: float, limits: Mapping[str, float]
    ) -> None:
        self.fleet: dict[str, Mapping[str, Any]] = {
            name: result["facts"] for name, result in measured.items() if "facts" in result
        }
        self.silent = set(measured) - set(self.fleet)
        self.before = before
        self.after = after
        self.limits = limits

    def causes(self) -> Iterator[dict[str, Any]]:
        """What explains itself."""
        for host, facts in self.fleet.items():
            for judge in (self.disks, self.services, self.slots, self.memory, self.load, self.clock, self.certificates):
                yield from judge(host, facts)
            yield from self.nats(host, facts)
        yield from self.ports()
        yield from self.redis()

    def symptoms(self, critical: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Slots that do not serve, which may follow from something else."""
        for host, facts in self.fleet.items():
            for slot, state in self.items(facts, "slots"):
                ready = state.get("ready") or {}
                own = any(item["host"] == host and item["kind"] in ("config", "image", "memory", "release") for item in critical)
                if ready.get("ready") or own or self.down(facts, "Docker"):
                    continue
                runs = state["unit"].get("active") in _UP
                if not runs and any(item["host"] == host and item["kind"] == "service" for item in critical):
                    continue
                reason = f"{slot}: {ready.get('reason', '')}"
                severity, cause, mend = (
                    "critical",
                    "none that is known here",
                    f"ansible {host} -b -a 'tail -n 50 {_LOG}-{slot}.log'",
                )
                if critical:
                    severity, mend = "notice", "mend that first"
                    cause = f"follows from: {critical[0]['what']} ({critical[0]['host']})"
                yield _finding("symptom", severity, host, "The app is not ready", cause, mend, [reason])

    # what is asked of the facts

    @staticmethod
    def items(facts: Mapping[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The parts of a probe by name; none if it failed or was not asked."""
        found = facts.get(name)
        if isinstance(found, dict) and not isinstance(found.get("error"), str):
            yield from ((key, value) for key, value in found.items() if isinstance(value, dict))

    @staticmethod
    def rows(facts: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
        """The rows of a probe; none if it failed or was not asked."""
        found = facts.get(name)
        return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []

    @staticmethod
    def part(facts: Mapping[str, Any], name: str) -> dict[str, Any]:
        """A probe's facts; empty if it failed or was not asked."""
        found = facts.get(name)
        return found if isinstance(found, dict) and not found.get("error") else {}

    @staticmethod
    def down(facts: Mapping[str, Any], service: str) -> bool:
        """Whether the host is known to need this service, and it does not run."""
        state = (facts.get("services") or {}).get(service)
        return isinstance(state, dict) and state.get("active") not in _UP

    # hosts

    def disks(self, host: str, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """File systems without room."""
        for disk in self.rows(facts, "disks"):
            used, inodes = disk["used_percent"], disk["inodes_percent"]
            worst = max(used, inodes)
            if worst < self.limits["disk_percent"]:
                continue
            full = worst >= _FULL
            what = f"The disk below {disk['path']} is {'full' if full else 'almost full'}"
            cause = "there is no room for data" if used >= inodes else "there are too many files (no inodes left)"
            mend = _shell(host, f"du -xh {disk['path']} | sort -h | tail -20") + ", then remove what is not needed"
            told = f"{used:g}% used, {disk['free_mib']} MiB free, {inodes:g}% of the inodes used"
            yield _finding("disk", "critical" if full else "warning", host, what, cause, mend, [told])

    def services(self, host: str, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Units that do not run, each with why."""
        states = dict(self.items(facts, "services"))
        absent = [name for name, state in states.items() if state.get("load") == "not-found"]
        if absent and len(absent) == len(states):
            yield _finding(
                *("absent", "notice", host, "Nothing is installed", "the host was not provisioned yet"),
                f"ansible-playbook site.yml -l {host}",
            )
            return
        for name, state in states.items():
            unit = str(state.get("unit", name)).removesuffix(".service")
            if name in absent:
                mend = f"ansible-playbook site.yml -l {host}"
                yield _finding("absent", "warning", host, f"{name} is not installed", f"there is no unit {unit}", mend)
            elif state.get("result") == "oom-kill" or state.get("oom_kills"):
                kills = state.get("oom_kills") or 1
                cause = f"it needed more memory than it may have, and the kernel killed {kills} of its processes"
                mend = f"give it or the host more memory, then {_start(host, unit)}"
                yield _finding("memory", "critical", host, f"{name} ran out of memory", cause, mend, state.get("errors", []))
            elif state.get("active") not in _UP:
                yield self.stopped(host, name, unit, state)

    @staticmethod
    def stopped(host: str, name: str, unit: str, state: Mapping[str, Any]) -> dict[str, Any]:
        """A unit that does not run and was not killed for want of memory."""
        errors = state.get("errors", [])
        severity = "critical" if state.get("vital", True) else "warning"
        told = f"{unit}: {state.get('active')}, result {state.get('result')}, exit status {state.get('exit_status')}"
        if state.get("active") == "inactive" and state.get("result") in ("success", ""):
            at_boot = "" if state.get("enabled") == "enabled" else ", and does not start at boot"
            cause = f"it was stopped, or never started{at_boot}"
            return _finding("service", severity, host, f"{name} does not run", cause, _start(host, unit), [told, *errors[-1:]])
        again = f"it ends again and again ({state.get('restarts')} restarts)" if state.get("restarts") else "it failed"
        cause = f"{again}: {errors[-1] if errors else 'exit status ' + str(state.get('exit_status'))}"
        mend = f"{_journal(host, unit)}; then ansible-playbook site.yml -l {host}"
        return _finding("service", severity, host, f"{name} does not run", cause, mend, [told, *errors])

    def memory(self, host: str, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """A host without memory, and processes that were killed for want of it."""
        memory = self.part(facts, "memory")
        if not memory:
            return
        used = 100 * (1 - memory["available_mib"] / memory["total_mib"])
        if used >= self.limits["memory_percent"]:
            mend = _shell(host, "ps -eo rss,comm --sort=-rss | head")
            told = [f"{memory['available_mib']} of {memory['total_mib']} MiB are left", *memory["kills"]]
            severity = "critical" if used >= _FULL else "warning"
            yield _finding("load", severity, host, "The host has little memory left", "its processes take it", mend, told)
        elif memory["kills"]:
            mend = f"ansible {host} -b -a 'journalctl -k -n 50 --no-pager'; give the host or the service more memory"
            cause = "there was no memory left for it"
            yield _finding("memory", "warning", host, "The kernel killed a process", cause, mend, memory["kills"])

    def load(self, host: str, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Processors that cannot keep up."""
        load = self.part(facts, "load")
        if load and load["five"] > self.limits["load_per_processor"] * (load["processors"] or 1):
            figures = ", ".join(f"{load[name]:g}" for name in ("one", "five", "fifteen"))
            told = [f"load {figures} on {load['processors']} processors", *load["busiest"]]
            mend = f"ansible {host} -b -a 'top -bn1'; docs/runbook/scale.md"
            cause = "more wants to run than there are processors for"
            yield _finding("load", "warning", host, "The host is overloaded", cause, mend, told)

    def clock(self, host: str, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """A clock that is off: by a time server, else by chrony, else by the control node's clock."""
        clock, limit = self.part(facts, "clock"), self.limits["clock_seconds"]
        if not clock:
            return
        servers = clock["servers"]
        offsets = [(item["offset"], f"says the time server {item['server']}") for item in servers if not item["error"]]
        if clock["chrony_offset"] is not None:
            offsets.append((clock["chrony_offset"], "says chrony"))
        at_least, at_most = facts["time"] - self.after, facts["time"] - self.before
        if not at_least <= 0 <= at_most:
            offsets.append((at_least if at_least > 0 else at_most, "says the control node's clock, at the least"))
        wrong = [(offset, by) for offset, by in offsets if abs(offset) > limit]
        if wrong:
            offset, by = wrong[0]
            what = f"The clock is off by {abs(offset):.1f} s"
            cause = f"it is {'ahead' if offset > 0 else 'behind'}, {by}" + ("" if clock["synchronized"] else "; nothing keeps it")
            mend = f"ansible {host} -b -a 'chronyc makestep'"
            told = [f"{offset:+.3f} s, {source}" for offset, source in offsets]
            yield _finding("clock", "critical", host, what, cause, f"{mend}; base_ntp_servers names the servers", told)
        elif not clock["synchronized"] and not clock["container"]:
            mend = f"ansible-playbook site.yml -l {host}; base_time_sync says what keeps it"
            yield _finding("clock", "warning", host, "Nothing keeps the clock", "no time service is in step", mend)
        elif servers and all(item["error"] for item in servers):
            mend = "let port 123/udp through, or name other servers in base_ntp_servers"
            told = [f"{item['server']}: {item['error']}" for item in servers]
            yield _finding(
                "clock", "warning", host, "No time server answers", "it is down, or the way to it is closed", mend, told
            )

    def certificates(self, host: str, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Certificates that have ended, or will soon."""
        for item in self.rows(facts, "certificates"):
            path, ends = item["path"], item["ends"]
            mend = f"renew {path} on {host}, then have what uses it read it again"
            if ends is None:
                cause = "the file is missing or holds no certificate"
                yield _finding("expiry", "warning", host, f"The certificate {path} cannot be read", cause, mend, [item["error"]])
                continue
            days = (ends - facts["time"]) / _DAY
            if days <= 0:
                what = f"The certificate {path} has expired"
                yield _finding("certificate", "critical", host, what, f"it ended {-days:.1f} days ago", mend)
            elif days < self.limits["certificate_days"]:
                yield _finding(
                    "expiry", "warning", host, f"The certificate {path} ends soon", f"it ends in {days:.1f} days", mend
                )

    # the app

    def slots(self, host: str, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """What keeps a slot from running and serving."""
        slots = dict(self.items(facts, "slots"))
        services = dict(self.items(facts, "services"))
        app = services.get("The app", {})
        if app.get("load") == "loaded" and not slots:
            yield _finding(
                *("absent", "notice", host, "No release runs here", "none was brought out, or all slots were stopped for good"),
                f"ansible-playbook deploy.yml -l {host}" if len(self.fleet) == 1 else "ansible-playbook deploy.yml",
            )
        for slot, state in slots.items():
            found = list(self.slot(host, slot, state))
            yield from found
            unit = state["unit"]
            if not found and unit.get("active") not in _UP and not self.down(facts, "Docker") and not self.down(facts, "The app"):
                yield self.stopped(host, f"The app's slot {slot}", f"trading-bot@{slot}", unit)

    def slot(self, host: str, slot: str, state: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The causes that one slot shows."""
        release, unit = state.get("release_id"), state["unit"]
        image, container, config = (state.get(name) or {} for name in ("image", "container", "config"))
        deploy = "ansible-playbook deploy.yml"
        if release is None:
            cause = "its link is missing or leads nowhere"
            yield _finding("release", "critical", host, f"The slot {slot} has no release", cause, deploy)
            return
        if image.get("present") is False:
            named = image["reference"] or "an image of the release"
            cause = f"the engine does not have {named}; it was removed, or never arrived"
            yield _finding("image", "critical", host, f"The image of {release} is missing", cause, deploy, [image["error"]])
        if config.get("status") == _BAD_CONFIG:
            lines = [line for line in str(config["output"]).splitlines() if line.strip()]
            cause = f"its own check refuses it: {lines[0] if lines else 'without a reason'}"
            mend = f"mend the key in release_config, then {deploy}; if it was changed on {host} alone, put it back there"
            yield _finding("config", "critical", host, f"The configuration of {release} is wrong", cause, mend, lines[:5])
        kills = container.get("oom_events") or 0
        if container.get("oom_killed") or kills or unit.get("result") == "oom-kill" or unit.get("oom_kills"):
            runs = unit.get("active") in _UP and not container.get("oom_killed")
            limit = f"{container['memory_mib']} MiB" if container.get("memory_mib") else "memory"
            cause = f"it needed more than the {limit} that it may have, and the kernel killed it"
            again = f"ansible-playbook site.yml -l {host}, then ansible-playbook restart-service.yml -l {host}"
            mend = f"raise trading_bot_memory_limit, then {again}"
            told = [f"killed {kills} times in the last 15 minutes", f"exit status {container.get('exit_status')}"]
            severity = "warning" if runs and (state.get("ready") or {}).get("ready") else "critical"
            yield _finding("memory", severity, host, f"The app ran out of memory in {slot}", cause, mend, told)
        for name, server in (("redis", "Redis"), ("nats", "NATS")):
            answer = state.get(name) or {}
            if answer.get("refused"):
                yield self.refused(host, server, answer, str(release))

    @staticmethod
    def refused(host: str, server: str, answer: Mapping[str, Any], release: str) -> dict[str, Any]:
        """A server that answers, and does not let the app in."""
        file = f"{answer.get('file') or 'its password'} of {release}"
        if answer.get("password_as_inventory") is False:
            cause = f"wrong password in {file}: it is not what the inventory says"
            mend = "ansible-playbook update-config.yml brings out the inventory's; put a file back that was changed by hand"
        else:
            cause = f"wrong password or user in {server}: {file} has what the inventory says, and is refused"
            mend = "ansible-playbook site.yml, which gives the servers the inventory's"
        return _finding("password", "critical", host, f"{server} refuses the app", cause, mend, [answer.get("error")])

    # between hosts

    def ports(self) -> Iterator[dict[str, Any]]:
        """Ports that a host needs and does not reach, once for each port."""
        closed: dict[tuple[str, int], list[tuple[str, dict[str, Any]]]] = {}
        for host, facts in self.fleet.items():
            for item in self.rows(facts, "reach"):
                if item["outcome"] != "open":
                    closed.setdefault((item["to"], int(item["port"])), []).append((host, item))
        for (target, port), askers in closed.items():
            found = self.port(target, port, askers)
            if found:
                yield found

    def port(self, target: str, port: int, askers: Sequence[tuple[str, dict[str, Any]]]) -> Optional[dict[str, Any]]:
        """Why a port is closed to these hosts; None where it follows from something that is told anyway."""
        item = askers[0][1]
        service, address = item["service"], item["address"]
        hosts = ", ".join(host for host, _ in askers)
        told = [f"{host}: {each['outcome']}" for host, each in askers]
        what = f"{hosts} cannot reach {service} ({target}:{port})"
        severity = "critical" if item.get("vital") else "warning"
        facts = self.fleet.get(target)
        if facts is None:
            if target in self.silent:
                return None
            cause = f"{target} was not measured: it is down, or left out of this run"
            mend = f"ansible-playbook diagnose.yml -l '{','.join([*(host for host, _ in askers), target])}'"
            return _finding("port", severity, askers[0][0], what, cause, mend, told)
        slot = item.get("slot")
        if self.down(facts, item.get("needs", service)) or (slot and slot not in (facts.get("slots") or {})):
            return None
        if not listens(facts.get("listening") or [], address, port):
            if slot:
                return None
            at = [f"{place}:{number}" for place, number in facts.get("listening") or [] if number == port]
            cause = f"{service} runs and listens on {', '.join(at)} only" if at else f"{service} does not listen on it"
            return _finding("port", severity, target, what, cause, f"ansible-playbook site.yml -l {target}", told)
        for host in [target, *(host for host, _ in askers)]:
            rules = self.part(self.fleet[host], "firewall")
            lines = [f"{name}: {line}" for name, text in rules.items() for line in blocking_rules(text, port)]
            if lines:
                cause = f"a firewall on {host} turns it away: {lines[0]}"
                mend = f"remove that rule on {host}"
                if lines[0].startswith("iptables: -A "):
                    mend = f"ansible {host} -b -a 'iptables -D {lines[0].split('-A ', 1)[1]}'"
                return _finding("port", severity, host, what, cause, mend, [*told, *lines])
        cause = f"{service} listens on {target}, so something on the way turns it away: a firewall or a route between the hosts"
        return _finding("port", severity, target, what, cause, f"let {port}/tcp from {hosts} to {address} through", told)

    def redis(self) -> Iterator[dict[str, Any]]:
        """A Redis that answers slowly, cannot write, or is full."""
        limit = self.limits["redis_milliseconds"]
        slow = [
            (host, state["redis"]["milliseconds"])
            for host, facts in self.fleet.items()
            for _, state in self.items(facts, "slots")
            if ((state.get("redis") or {}).get("milliseconds") or 0) >= limit
        ]
        servers = {host: facts for host, facts in self.fleet.items() if "redis" in facts}
        for host, facts in servers.items():
            yield from self.redis_server(host, facts)
        commands = [each for facts in servers.values() for each in (facts["redis"].get("slow") or [])]
        took = sum(each["seconds"] for each in commands)
        if not slow and took < self.limits["redis_slow_seconds"]:
            return
        host = next(iter(servers), slow[0][0] if slow else "")
        told = [f"{asker}: PING takes {milliseconds:g} ms" for asker, milliseconds in slow]
        told += [f"{each['command']}: {each['count']} calls, {each['seconds']:g} s" for each in commands[:3]]
        connections = [
            item["milliseconds"]
            for asker, _ in slow
            for item in self.rows(self.fleet[asker], "reach")
            if item["service"] == "Redis" and item["outcome"] == "open"
        ]
        if commands and took >= self.limits["redis_slow_seconds"] / 5:
            worst = commands[0]
            cause = f"slow commands hold it up: {worst['command']} took {worst['seconds']:g} s in {worst['count']} calls"
            mend = f"find who sends {worst['command']}: redis-cli --user operator CLIENT LIST and SLOWLOG GET on {host}"
        elif connections and min(connections) >= limit:
            cause = f"the network or the processors: a connection alone takes {min(connections):g} ms"
            mend = f"ansible {host} -b -a 'ss -ti'; ansible {host} -b -a 'top -bn1'"
        else:
            cause = "the server is held up, and by no slow command: a fork, the disk, or CLIENT PAUSE"
            mend = f"redis-cli --user operator LATENCY DOCTOR on {host}"
        held_up = took >= 2 * self.limits["redis_slow_seconds"] or any(milliseconds >= 4 * limit for _, milliseconds in slow)
        severity = "critical" if held_up else "warning"
        yield _finding("redis", severity, host, "Redis is slow", cause, mend, told)

    def redis_server(self, host: str, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """What the server says of itself."""
        state = facts["redis"]
        if state.get("error"):
            if not self.down(facts, "Redis"):
                mend = f"ansible-playbook site.yml -l {host}"
                cause = "it runs, and does not answer the one who looks"
                yield _finding("redis", "warning", host, "Redis cannot be looked at", cause, mend, [state["error"]])
            return
        info = state["info"]
        if info.get("loading") not in ("0", ""):
            cause = "it was started and reads its data from disk"
            yield _finding("redis", "warning", host, "Redis is not ready yet", cause, "wait until it has read them")
        for severity, names, what, cause in (
            (
                "critical",
                ("aof_last_write_status",),
                "Redis cannot write to disk",
                "its last write to disk failed, and it refuses writes until one works",
            ),
            (
                "warning",
                ("rdb_last_bgsave_status", "aof_last_bgrewrite_status"),
                "Redis could not write a snapshot",
                "no room on the disk, or no memory, for a copy; there is no new backup, and the append-only file grows",
            ),
        ):
            failed = [name for name in names if info.get(name) not in ("ok", "", None)]
            if failed:
                mend = f"ansible {host} -b -a 'df -h /var/lib/redis'; {_journal(host, 'redis-server')}"
                yield _finding("redis", severity, host, what, cause, mend, failed)
        used, most = int(info.get("used_memory") or 0), int(info.get("maxmemory") or 0)
        if most and used >= 0.9 * most:
            severity = "critical" if used >= most else "warning"
            told = [f"{used // 2**20} of {most // 2**20} MiB"]
            mend = f"raise redis_max_memory, then ansible-playbook site.yml -l {host}"
            yield _finding(
                "redis", severity, host, "Redis is almost full", "the ledger grows towards redis_max_memory", mend, told
            )

    def nats(self, host: str, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """A NATS that is not healthy, or readers that are behind."""
        state = self.part(facts, "nats")
        if not state:
            return
        if not state["healthy"]:
            mend = _journal(host, "nats-server")
            yield _finding("nats", "critical", host, "NATS is not healthy", "it says so itself", mend, [state["health"]])
        for lag in state["lags"]:
            if lag["pending"] >= self.limits["stream_lag"]:
                what = f"{lag['consumer']} is behind on the stream {lag['stream']}"
                mend = "see what reads it: docs/runbook/alerts/README.md"
                told = [f"{lag['pending']} messages wait"]
                yield _finding("nats", "warning", host, what, "its reader is stopped or too slow", mend, told)


def table(found: Sequence[Mapping[str, Any]], hosts: Sequence[str], archive: str = "") -> str:
    """The findings as a person reads them, the most telling first, and where the archive is."""
    counts = [(severity, sum(item["severity"] == severity for item in found)) for severity in SEVERITIES]
    told = ", ".join(f"{count} {severity}" for severity, count in counts if count) or "nothing found"
    lines = [f"{len(hosts)} host{'s' if len(hosts) != 1 else ''} measured: {told}"]
    for number, item in enumerate(found, 1):
        lines += ["", f"{number:2}. {item['severity']:8} {item['host']}: {item['what']}"]
        lines += [f"    cause    {item['cause']}", f"    mend     {item['mend']}"]
        lines += [f"    {'seen' if at == 0 else '':8} {line}" for at, line in enumerate(item["evidence"][:5])]
    if archive:
        lines += ["", f"Logs, figures and versions, without secrets: {archive}"]
    return "\n".join(lines)
