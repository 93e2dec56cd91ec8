"""What a staged rollout, or the way back, has to do on a fleet as it is.

Pure: dictionaries in (as the modules and the load balancers' agents return them), dictionaries out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from .release import SLOTS, ReleaseError, agreed_traffic, plan


def canary_plan(fleet: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a rollout has to do: ``release.plan`` with walk (none, all or warm), stages (those still to walk), resumed, and
    before: {release_id, version, slot} of what served before it, which is where the way back leads.

    Besides what ``release.plan`` reads: agents ({load balancer: its agent's status}), force_reason. Never raises; what
    stands in the way is the sentence in `error`.
    """
    try:
        return _canary_plan(fleet, stages)
    except ReleaseError as error:
        return {**plan({}), "walk": "none", "stages": [], "resumed": None, "before": None, "reasons": [], "error": str(error)}


def _canary_plan(fleet: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if fleet.get("limited"):
        raise ReleaseError("a rollout is for all of app: run it without -l")
    traffic = _traffic(fleet)
    target = (fleet.get("target") or {}).get("id")
    resumed: Optional[float] = None
    if traffic["cut"] > 0:
        if traffic["salt"] != target:
            raise ReleaseError(
                f"a rollout of {traffic['salt']} is in progress at {traffic['cut'] / 100:g}%: go on with it"
                f" (-e release_version=<its version>), or end it with rollback.yml"
            )
        resumed = traffic["cut"]
    quiet = {name: {**(lb or {}), "traffic": {**traffic, "cut": 0}} for name, lb in fleet["load_balancers"].items()}
    answer = plan({**fleet, "load_balancers": quiet})
    answer.update(walk="none", stages=[], resumed=resumed, before=None)
    if answer["error"]:
        return answer
    if answer["action"] == "first":
        raise ReleaseError(
            "the fleet serves nothing yet, so there is nothing to compare with: deploy.yml brings the first release"
        )
    marked = bad_releases(fleet).get(answer["target"]["id"])
    if marked and not fleet.get("force_reason"):
        raise ReleaseError(
            f"{answer['target']['id']} is marked bad since {marked['at']}: {marked['why']};"
            " to roll it out all the same: -e \"release_force_reason='...'\""
        )
    if answer["action"] == "switch":
        answer["walk"] = "all"
        answer["stages"] = [stage for stage in stages if stage["cut"] >= (resumed or 0)]
        if resumed:
            answer["reasons"].append(f"goes on at {resumed / 100:g}%")
    elif answer["idle_active"]:
        answer["walk"] = "warm"
        answer["reasons"].append("the release before still runs: it is kept warm, then stopped")
    if answer["served"]:
        # Once it serves all accounts the fleet does not tell any more where it came from; the rollout that was cut off does.
        left = _came_from(fleet, answer["target"]["id"]) if answer["walk"] == "warm" else []
        answer["before"] = left[0] if left else {**answer["served"], "slot": answer["old_slot"]}
    return answer


def _traffic(fleet: Mapping[str, Any]) -> dict[str, Any]:
    """What the load balancers do; in the middle of somebody's change they may disagree, and it is he who is named."""
    try:
        return agreed_traffic(fleet)
    except ReleaseError:
        for name, status in sorted((fleet.get("agents") or {}).items()):
            lock = (status or {}).get("lock") or {}
            if lock.get("live"):
                raise ReleaseError(f"the {lock['kind']} {lock['rollout']} of {lock['owner']} holds {name}") from None
        raise


def bad_releases(fleet: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The releases that a load balancer knows as bad, ``{release: {why, at, rollout}}``."""
    found: dict[str, dict[str, Any]] = {}
    for status in (fleet.get("agents") or {}).values():
        for release, mark in ((status or {}).get("bad") or {}).items():
            found.setdefault(release, dict(mark))
    return found


def rollback_plan(fleet: Mapping[str, Any]) -> dict[str, Any]:
    """How to go back: {action, to, bad, running, start, reasons, error}.

    action: ``cut`` (a rollout is in progress: its accounts go back), ``switch`` (to the release before, or to a named
    one) or None. to and bad: {release_id, slot, version}. running: the hosts on which `to` runs in its slot; start: those
    on which it is on disk and has to be started first.
    Of `fleet` it reads load_balancers and hosts (those that answer), agents, release_to, force_reason. Never raises.
    """
    answer: dict[str, Any] = {"action": None, "to": None, "bad": None, "running": [], "start": [], "reasons": [], "error": None}
    try:
        _rollback_plan(fleet, answer)
    except ReleaseError as error:
        answer.update(action=None, error=str(error))
    return answer


def _rollback_plan(fleet: Mapping[str, Any], answer: dict[str, Any]) -> None:
    balancers = {name: result for name, result in (fleet.get("load_balancers") or {}).items() if (result or {}).get("traffic")}
    if not balancers:
        raise ReleaseError("no load balancer could be read, so nothing can be turned back from here")
    traffics = [result["traffic"] for result in balancers.values()]
    stable = max(sorted({traffic["stable"] for traffic in traffics}), key=[traffic["stable"] for traffic in traffics].count)
    idle = SLOTS[1] if stable == SLOTS[0] else SLOTS[0]
    wanted = fleet.get("release_to") or None
    canaries = [traffic["canary"] for traffic in traffics if traffic["cut"] > 0 and traffic["canary"] != traffic["stable"]]
    now = _in_slot(fleet, stable)
    if now is None:
        raise ReleaseError(f"no app host tells what it runs in the stable slot {stable}")
    if (canaries or _on_trial(fleet, now["release_id"])) and wanted in (None, now["release_id"]):
        answer.update(action="cut", to={**now, "slot": stable}, bad={**(_in_slot(fleet, idle) or _unknown()), "slot": idle})
        answer["reasons"].append(f"a rollout is in progress: all accounts go back to {now['release_id']} in {stable}")
        return
    before = wanted or _before(fleet, now["release_id"])
    if before is None:
        raise ReleaseError(
            f"there is no release before {now['release_id']} on the hosts: name one with -e release_to=<release id>"
        )
    if before == now["release_id"]:
        answer["reasons"].append(f"the fleet serves {before} already")
        return
    on_disk = _on_disk(fleet)
    if before not in on_disk:
        there = ", ".join(sorted(on_disk)) or "none"
        raise ReleaseError(f"{before} is on no host's disk any more; there are: {there}. Bring it out with deploy.yml instead")
    mark = bad_releases(fleet).get(before)
    if mark and not fleet.get("force_reason"):
        raise ReleaseError(
            f"{before} is marked bad since {mark['at']}: {mark['why']};"
            " to go back to it all the same: -e \"release_force_reason='...'\""
        )
    hosts = fleet.get("hosts") or {}
    ready = [name for name in sorted(hosts) if _runs(hosts[name], idle, before)]
    answer.update(
        action="switch",
        to={"release_id": before, "version": on_disk[before]["version"], "slot": idle},
        bad={**now, "slot": stable},
        running=ready,
        start=[name for name in on_disk[before]["hosts"] if name not in ready],
    )
    answer["reasons"].append(f"{now['release_id']} in {stable} is left for {before} in {idle}")
    if ready:
        answer["reasons"].append(f"which still runs on {', '.join(ready)}")


def _unknown() -> dict[str, Any]:
    return {"release_id": "unknown", "version": None}


def _in_slot(fleet: Mapping[str, Any], slot: str) -> Optional[dict[str, Any]]:
    """The release that most of the hosts have in the slot."""
    found: dict[str, int] = {}
    for host in (fleet.get("hosts") or {}).values():
        release = (((host or {}).get("slots") or {}).get(slot) or {}).get("release_id")
        if release:
            found[release] = found.get(release, 0) + 1
    if not found:
        return None
    release = max(sorted(found), key=found.__getitem__)
    return {"release_id": release, "version": (_on_disk(fleet).get(release) or {}).get("version")}


def _runs(host: Optional[Mapping[str, Any]], slot: str, release: str) -> bool:
    """It is started there and says so itself; whether it is ready depends on Redis and NATS, too."""
    state = ((host or {}).get("slots") or {}).get(slot) or {}
    return bool(state.get("running") and (state.get("status") or {}).get("release_id") == release)


def _before(fleet: Mapping[str, Any], now: str) -> Optional[str]:
    """What served before: what the rollout that brought `now` came from, else what the hosts remember.

    What merely runs in the other slot is no such thing: it may be what a rollout that was cut off left there.
    """
    came_from = [before["release_id"] for before in _came_from(fleet, now)]
    remembered = [
        host["previous"]
        for host in (fleet.get("hosts") or {}).values()
        if (host or {}).get("previous") and host["previous"] != now
    ]
    candidates = came_from or remembered
    return max(sorted(set(candidates)), key=candidates.count) if candidates else None


def _came_from(fleet: Mapping[str, Any], now: str) -> list[dict[str, Any]]:
    """What the rollouts that brought `now` came from, as the load balancers' agents have them."""
    brought = [rollout for rollout in _rollouts(fleet) if (rollout.get("to") or {}).get("release_id") == now]
    return [dict(rollout["from"]) for rollout in brought if rollout["from"]["release_id"] != now]


def _rollouts(fleet: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The last rollout as each load balancer's agent has it."""
    return [dict(status["rollout"]) for status in (fleet.get("agents") or {}).values() if (status or {}).get("rollout")]


def _on_disk(fleet: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By release: its version, and the hosts that have it."""
    found: dict[str, dict[str, Any]] = {}
    for name, host in sorted((fleet.get("hosts") or {}).items()):
        for release in (host or {}).get("releases") or []:
            entry = found.setdefault(release["id"], {"version": release["version"], "hosts": []})
            entry["hosts"].append(name)
    return found


def _on_trial(fleet: Mapping[str, Any], now: str) -> bool:
    """Whether a release without an account is on trial: in the shadow, or prepared by a rollout that holds the lock."""
    for status in (fleet.get("agents") or {}).values():
        if ((status or {}).get("traffic") or {}).get("shadow"):
            return True
        lock, rollout = (status or {}).get("lock") or {}, (status or {}).get("rollout") or {}
        if lock.get("live") and lock.get("kind") == "canary" and (rollout.get("to") or {}).get("release_id") != now:
            return True
    return False


def expected_differences(notes: Any, path: str) -> list[dict[str, str]]:
    """What a release's notes declare under ``expected_differences``; none where there are no notes.

    Each entry has any of type, side, stable and canary (``accepted``, ``refused by <rule>``), and why. Raises
    ReleaseError that names the file, the entry and what was expected.
    """
    if notes is None:
        return []
    if not isinstance(notes, Mapping):
        raise ReleaseError(f"{path} is a {type(notes).__name__}, expected a mapping")
    entries = notes.get("expected_differences") or []
    kinds = {"type", "side", "stable", "canary"}
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries], 1):
        wrong = not isinstance(entry, Mapping) or not entry.get("why") or not kinds & set(entry) or set(entry) - kinds - {"why"}
        if wrong:
            raise ReleaseError(
                f"{path}: expected_differences, entry {number}: expected why and any of {', '.join(sorted(kinds))}"
            )
    return [dict(entry) for entry in entries]


def tell_plan(answer: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The plan of a rollout for people: from what, to what, where, which stages, how many accounts at each.

    `settings`: hosts, load_balancers, accounts, shadow_orders, warm_seconds, on_insufficient.
    """
    target = answer["target"]
    if answer["walk"] == "none":
        return f"{target['id']}: {'; '.join(answer['reasons'])}: nothing to do"
    if answer["walk"] == "warm":
        return f"{target['id']}: {'; '.join(answer['reasons'])}"
    lines = [
        f"From            {answer['served']['release_id']} in {answer['old_slot']}",
        f"To              {target['id']} in {answer['slot']}"
        + (f", goes on at {answer['resumed'] / 100:g}%" if answer["resumed"] else ""),
        f"App hosts       {', '.join(settings['hosts'])}",
        f"Load balancers  {', '.join(settings['load_balancers'])}",
        f"To start        {', '.join(answer['prepare']) or 'none, it runs everywhere'}",
    ]
    if not answer["resumed"]:
        orders = settings["shadow_orders"]
        lines.append(f"Shadow          {f'{orders:,} orders compared, no account moved' if orders else 'none'}")
    for stage in answer["stages"]:
        accounts = round(settings["accounts"] * stage["cut"] / 10_000)
        lines.append(
            f"Stage {stage['name']:<10}about {accounts:,} of {settings['accounts']:,} accounts, looked at for"
            f" {stage['min_seconds']:g} s at least and {stage['deadline']:g} s at most, then {settings['on_insufficient']}"
        )
    lines.append(
        f"Then            {answer['served']['release_id']} is kept running for {settings['warm_seconds']:g} s, and stopped"
    )
    return "\n".join(lines)
