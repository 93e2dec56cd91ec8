"""What runs where, who gets which traffic, and how far a rollout is: as data, and on one screen.

Pure: of a fleet it takes what the modules return, and what the load balancers' agents say of themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from .release import SLOTS, ReleaseError, agreed_traffic, other, served, slot_of
from .rollout_metrics import ENDED
from .rollout_record import escaped_line, lasting, listed, mapping, merged, number_of, seconds

#: Characters of a line that says what is in the journal.
WIDE = 100


def status(fleet: Mapping[str, Any]) -> dict[str, Any]:
    """``{traffic, served, problems, load_balancers, hosts, rollout, held, bad, journal}``.

    ``fleet`` has load_balancers and hosts, and as ``agents`` by load balancer what its agent's ``status`` said; without it
    nothing is known of rollouts. ``rollout`` is the one in progress or the last one, ``held`` a sentence for each other run
    that has a load balancer's lock.
    """
    problems: list[str] = []
    traffic: Optional[dict[str, Any]] = None
    now: Optional[dict[str, Any]] = None
    try:
        traffic = agreed_traffic(fleet)
        now = served(fleet)
    except ReleaseError as error:
        problems.append(str(error))
    agents = _agents(fleet, problems)
    bad = _bad(agents)
    hosts = {}
    for name, host in sorted((fleet.get("hosts") or {}).items()):
        slots: dict[str, Any] = {slot: _slot_status(slot_of(host, slot)) for slot in SLOTS}
        answers = not _silent(host)
        hosts[name] = {**slots, "answers": answers, "previous": (host or {}).get("previous"), "releases": _on_disk(host)}
        if not answers:
            problems.append(f"{name} does not answer")
        for slot in SLOTS if answers else ():
            gets_traffic = bool(traffic and _has_traffic(traffic, slot))
            if gets_traffic and not slots[slot]["ready"]:
                problems.append(f"{name}: {slot} gets traffic and is not ready: {slots[slot]['reason'] or 'nothing there'}")
            if gets_traffic and slots[slot]["release_id"] in bad:
                problems.append(f"{name}: {slot} gets traffic and runs {slots[slot]['release_id']}, which is marked bad")
    balancers = {}
    for name, result in sorted((fleet.get("load_balancers") or {}).items()):
        servers = (result or {}).get("servers") or {}
        balancers[name] = {
            "haproxy": (result or {}).get("haproxy"),
            "traffic": (result or {}).get("traffic"),
            "running_differs": (result or {}).get("running_differs") or [],
            "servers": servers,
        }
        if "agents" in fleet:
            balancers[name]["agent"] = agents.get(name, {}).get("error") or ("ok" if name in agents else "none")
        if _silent(result):
            problems.append(f"{name} does not answer")
        elif balancers[name]["haproxy"] != "running":
            problems.append(f"{name}: HAProxy does not run")
    rollout = _rollout(agents, traffic, problems)
    return {
        "traffic": traffic,
        "served": now,
        "problems": problems,
        "load_balancers": balancers,
        "hosts": hosts,
        "rollout": rollout,
        "held": _held(agents, rollout),
        "bad": bad,
        "journal": _journal(agents),
    }


def _silent(result: Optional[Mapping[str, Any]]) -> bool:
    """Whether a host could not be asked, as Ansible puts it."""
    return any((result or {}).get(key) is True for key in ("unreachable", "failed"))


# --- what the agents say -----------------------------------------------------------------------------------------


def _agents(fleet: Mapping[str, Any], problems: list[str]) -> dict[str, Mapping[str, Any]]:
    """What each load balancer's agent said; those that said nothing useful are problems."""
    said = {name: mapping(told) for name, told in sorted(mapping(fleet.get("agents")).items())}
    if "agents" in fleet:
        for name, result in sorted((fleet.get("load_balancers") or {}).items()):
            if not said.get(name):
                up = mapping(result).get("haproxy") is not None
                why = "it has no agent yet (site.yml brings it)" if up else "it cannot be asked"
                problems.append(f"{name}: nothing is known of rollouts there, {why}")
            elif said[name].get("ok") is False:
                problems.append(f"{name}: its agent says: {said[name].get('error') or 'it cannot tell'}")
    return {name: told for name, told in said.items() if told}


def _bad(agents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The releases that are marked as bad on any load balancer, with why and since when."""
    return {release: dict(mapping(why)) for told in agents.values() for release, why in sorted(mapping(told.get("bad")).items())}


def _journal(agents: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The last entries of all journals in the order of time, each once, with the load balancers that have it as ``on``."""
    longest = max((len(listed(told.get("journal"))) for told in agents.values()), default=0)
    ordered = merged((name, e) for name, told in agents.items() for e in listed(told.get("journal")) if isinstance(e, Mapping))
    return ordered[len(ordered) - longest :] if longest else []


def _rollout(
    agents: Mapping[str, Mapping[str, Any]], traffic: Optional[Mapping[str, Any]], problems: list[str]
) -> Optional[dict[str, Any]]:
    """The rollout in progress, or the last one: what it is, how far, until when, and whose."""
    told = [agent for agent in agents.values() if mapping(agent.get("rollout")).get("id")]
    if not told:
        return None
    # The highest fencing token is the latest rollout's; a load balancer that was away remembers an earlier one.
    newest = max(told, key=lambda agent: (number_of(agent.get("token")) or 0, seconds(_of(agent, "updated_at")) or 0))
    rollout = mapping(newest["rollout"])
    lock = next((mapping(a["lock"]) for a in told if mapping(a.get("lock")).get("rollout") == rollout["id"]), {})
    live = any(mapping(a.get("lock")).get("live") and mapping(a["lock"]).get("rollout") == rollout["id"] for a in told)
    phase = str(rollout.get("phase") or "")
    walking = bool(traffic and traffic.get("cut"))
    in_progress = live or walking or (phase not in ENDED and bool(phase) and bool(lock))
    if in_progress and not live:
        problems.append(
            f"the rollout {rollout['id']} is not looked after: its lock has expired; canary.yml resumes it, rollback.yml ends it"
        )
    stage, began = _stage(agents, rollout)
    commands = {str(mapping(a.get("command")).get("action")) for a in told if mapping(a.get("command"))}
    paused = _paused(agents, rollout)
    found = {
        "id": rollout["id"],
        "in_progress": in_progress,
        "phase": phase,
        "outcome": rollout.get("outcome"),
        "from": _release(rollout.get("from")),
        "to": _release(rollout.get("to")),
        "stage": stage,
        "cut": traffic.get("cut") if traffic else None,
        "stages": [str(mapping(one).get("name")) for one in listed(rollout.get("stages"))],
        "paused": paused,
        "owner": lock.get("owner") or rollout.get("owner"),
        "started_at": rollout.get("started_at"),
        "updated_at": rollout.get("updated_at"),
        "left": None,
        "lock": {key: lock.get(key) for key in ("owner", "token", "live", "left", "expires_at")} if lock else None,
        "commands": sorted(commands),
    }
    until = seconds(rollout.get("until"))
    deadline = next(
        (number_of(mapping(s).get("deadline")) for s in listed(rollout.get("stages")) if mapping(s).get("name") == stage), None
    )
    now = number_of(newest.get("at"))
    if in_progress and now is not None:
        if until is None and began is not None and deadline is not None:
            until = began + deadline
        found["left"] = max(0, round(until - now)) if until is not None and not paused else None
    return found


def _of(agent: Mapping[str, Any], key: str) -> Any:
    return mapping(agent.get("rollout")).get(key)


def _release(told: Any) -> Optional[str]:
    """The id of a release that is told by its id or by its description."""
    return str(mapping(told).get("release_id") or mapping(told).get("id") or "") or None if isinstance(told, Mapping) else told


def _own_entries(
    agents: Mapping[str, Mapping[str, Any]], rollout: Mapping[str, Any], *events: str
) -> Iterator[Mapping[str, Any]]:
    """The rollout's entries of these kinds, the latest first."""
    entries = _journal(agents)
    return (e for e in reversed(entries) if e.get("rollout") == rollout["id"] and e.get("event") in events)


def _stage(agents: Mapping[str, Mapping[str, Any]], rollout: Mapping[str, Any]) -> tuple[Optional[str], Optional[float]]:
    """The stage that it is in, and since when, where the journals' last entries tell."""
    entry = next(_own_entries(agents, rollout, "stage"), {})
    stage = rollout.get("stage") or entry.get("stage")
    return (str(stage) if stage else None), seconds(entry.get("at")) if entry.get("stage") == stage else None


def _held(agents: Mapping[str, Mapping[str, Any]], rollout: Optional[Mapping[str, Any]]) -> list[str]:
    """Who else brings something out at the moment, with the load balancers that are held."""
    found: dict[tuple[str, str, str], list[str]] = {}
    left: dict[tuple[str, str, str], float] = {}
    for name, told in agents.items():
        lock = mapping(told.get("lock"))
        if lock.get("live") and not (rollout and lock.get("rollout") == rollout["id"]):
            run = (str(lock.get("kind")), str(lock.get("rollout")), str(lock.get("owner")))
            found.setdefault(run, []).append(name)
            left[run] = max(left.get(run, 0.0), number_of(lock.get("left")) or 0.0)
    return [
        f"{kind} {run} of {owner} holds {', '.join(names)} for {lasting(left[kind, run, owner])} more"
        for (kind, run, owner), names in found.items()
    ]


def _paused(agents: Mapping[str, Mapping[str, Any]], rollout: Mapping[str, Any]) -> bool:
    """Whether an operator made it wait: the rollout says so itself, or its last word on it in the journal does."""
    if "paused" in rollout or rollout.get("phase") == "paused":
        return bool(rollout.get("paused", True))
    last = next(_own_entries(agents, rollout, "pause", "resume", "stage", "end"), {})
    return last.get("event") == "pause"


# --- the screen --------------------------------------------------------------------------------------------------


def status_table(fleet: Mapping[str, Any]) -> str:
    """The same on one screen."""
    told = status(fleet)
    lines: list[str] = []
    now = told["served"]
    asked = "agents" in fleet
    lines.append(f"Serving  {now['release_id']} in {now['slot']}" if now else "Serving  nothing")
    if told["traffic"]:
        lines.append(f"Traffic  {_shares(told['traffic'])}")
    lines += _rollout_lines(told["rollout"])
    lines += [f"Lock     {sentence}" for sentence in told["held"]]
    for release, why in told["bad"].items():
        lines.append(f"Bad      {release}: {_shortened(why.get('why') or 'no reason is written down')}")
    rows: list[Sequence[str]] = [("LOAD BALANCER", "HAPROXY", *(("AGENT",) if asked else ()), "TRAFFIC", "SERVERS UP")]
    for name, balancer in told["load_balancers"].items():
        up = [
            f"{slot} {sum(s['up'] and s['admin'] == 'ready' for s in servers.values())}/{len(servers)}"
            for slot, servers in sorted(balancer["servers"].items())
        ]
        text = _shares(balancer["traffic"]) if balancer["traffic"] else "none"
        agent = ("ok" if balancer["agent"] == "ok" else "none" if balancer["agent"] == "none" else "fails",) if asked else ()
        rows.append((name, balancer["haproxy"] or "unknown", *agent, text, ", ".join(up) or "-"))
    lines += ["", *_columns(rows)]
    table = [("HOST", "SLOT", "RELEASE", "STATE", "RESTARTS", "SINCE")]
    for name, slots in told["hosts"].items():
        if not slots["answers"]:
            table.append((name, "-", "-", "no answer", "-", "-"))
        for slot in SLOTS if slots["answers"] else ():
            state = slots[slot]
            if not state["release_id"] and slots[other(slot)]["release_id"]:
                continue
            word = "ready" if state["ready"] else "not ready" if state["running"] else "stopped"
            table.append(
                (
                    name,
                    slot,
                    state["release_id"] or "-",
                    word if state["release_id"] else "empty",
                    "-" if state["restarts"] is None else str(state["restarts"]),
                    state["since"] or "-",
                )
            )
    lines += ["", *_columns(table)]
    lines += _kept_lines(told)
    if told["journal"]:
        entries = [(_when(e), e.get("rollout") or "-", e.get("by") or "-", _said(e)) for e in told["journal"]]
        lines += ["", *_columns([("JOURNAL (UTC)", "ROLLOUT", "BY", "WHAT"), *entries])]
    if told["problems"]:
        lines += ["", "Problems", *(f"  {problem}" for problem in told["problems"])]
    return "\n".join(lines)


def _rollout_lines(rollout: Optional[Mapping[str, Any]]) -> list[str]:
    """The rollout in progress in two lines, the last one in one; nothing where there never was one."""
    if rollout is None:
        return []
    what = f"{rollout['from'] or 'nothing'} -> {rollout['to'] or '?'}"
    if not rollout["in_progress"]:
        how = rollout["outcome"] or rollout["phase"] or "ended"
        return [f"Last     {what}: {how.replace('_', ' ')} at {rollout['updated_at'] or '?'} ({rollout['id']})"]
    phase = "paused" if rollout["paused"] else rollout["phase"]
    where = " ".join(str(word) for word in (phase, rollout["stage"]) if word)
    stages = f" of {', '.join(rollout['stages'])}" if rollout["stages"] else ""
    left = f", {lasting(rollout['left'])} left" if rollout["left"] is not None else ""
    lock = rollout["lock"] or {}
    held = f"lock for {lasting(number_of(lock.get('left')))} more" if lock.get("live") else "lock expired"
    asked = f", asked to {' and '.join(rollout['commands'])}" if rollout["commands"] else ""
    return [f"Rollout  {what}: {where}{stages}{left}", f"         {rollout['id']}, {rollout['owner'] or 'nobody'}, {held}{asked}"]


def _kept_lines(told: Mapping[str, Any]) -> list[str]:
    """The releases on disk: those of a host in one line, hosts with the same ones together."""
    by_releases: dict[tuple[str, ...], list[str]] = {}
    for name, host in told["hosts"].items():
        marked = []
        for release in host["releases"]:
            notes = [
                note for note, is_so in (("previous", release == host["previous"]), ("bad", release in told["bad"])) if is_so
            ]
            marked.append(f"{release} ({', '.join(notes)})" if notes else release)
        if marked:
            by_releases.setdefault(tuple(marked), []).append(name)
    if not by_releases:
        return []
    return [
        "",
        *_columns([("ON DISK", "RELEASES"), *((", ".join(hosts), ", ".join(kept)) for kept, hosts in by_releases.items())]),
    ]


def _when(entry: Mapping[str, Any]) -> str:
    """A time of the journal to the second."""
    at = str(entry.get("at") or "-")
    return at[:19].replace("T", " ")


def _said(entry: Mapping[str, Any]) -> str:
    """What an entry says in one line."""
    words = [str(entry.get("event") or "-").replace("_", " ")]
    if entry.get("phase"):
        words.append(str(entry["phase"]))
    after = mapping(entry.get("after"))
    if after.get("cut") is not None:
        words.append(_shares({"stable": "?", "canary": "?", "salt": "none", **after}))
    words += [str(entry[key]) for key in ("stage", "outcome", "action", "release", "to") if isinstance(entry.get(key), str)]
    reasons = entry.get("reasons") or entry.get("why") or entry.get("error")
    words += [str(reasons[0]) if isinstance(reasons, list) else str(reasons)] if reasons else []
    return _shortened(" ".join(words))


def _shortened(text: Any) -> str:
    text = escaped_line(str(text))
    return text if len(text) <= WIDE else f"{text[: WIDE - 1]}…"


def _shares(traffic: Mapping[str, Any]) -> str:
    if traffic["cut"] == 0 or traffic["canary"] == traffic["stable"]:
        return f"all accounts on {traffic['stable']}"
    share = f"{traffic['cut'] / 100:g}% of accounts on {traffic['canary']} (canary {traffic['salt']})"
    return share if traffic["cut"] == 10_000 else f"{share}, the others on {traffic['stable']}"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _on_disk(host: Any) -> list[str]:
    """The ids of the releases on a host's disk, the one that was made last first."""
    found = [mapping(release) for release in listed(mapping(host).get("releases"))]
    found.sort(key=lambda release: (str(release.get("created_at") or ""), str(release.get("id") or "")), reverse=True)
    return [str(release["id"]) for release in found if release.get("id")]


def _has_traffic(traffic: Mapping[str, Any], slot: str) -> bool:
    if slot == traffic["stable"] and (traffic["cut"] < 10_000 or slot == traffic["canary"]):
        return True
    return bool(slot == traffic["canary"] and traffic["cut"] > 0)


def _slot_status(state: Mapping[str, Any]) -> dict[str, Any]:
    live = state.get("status") or {}
    return {
        "release_id": state.get("release_id"),
        "version": state.get("version"),
        "running": bool(state.get("running")),
        "ready": bool(state.get("ready")),
        "reason": None if state.get("ready") else state.get("ready_reason"),
        "restarts": (state.get("unit") or {}).get("restarts"),
        "mode": live.get("mode"),
        "since": live.get("started_at"),
    }
