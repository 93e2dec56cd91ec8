"""What a release is, what a fleet serves, and what has to happen for it to serve another.

Pure: dictionaries in (as the modules return them), dictionaries out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Optional

SLOTS = ("blue", "green")

_UNBUILT = "-unbuilt"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9][A-Za-z0-9.+!_-]{0,63}")
_REQUIRED = {"version": _VERSION, "image": _DIGEST, "config_sha256": _HEX}
_OPTIONAL = {"image_manifest": _DIGEST, "wheel_sha256": _HEX, "created_at": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")}
_EXPECTED = {
    _VERSION: "a version such as 1.4.0",
    _DIGEST: "sha256: and 64 hex digits",
    _HEX: "64 hex digits",
    _OPTIONAL["created_at"]: "a time such as 2026-01-31T12:00:00Z",
}


class ReleaseError(ValueError):
    """What was given describes no release, or no fleet; the message is one sentence for the operator."""


# --- a release ---------------------------------------------------------------------------------------------------


def release_id(image: str, version: str, config_sha256: str) -> str:
    """The release's id: the version, and ten hex digits of the digest of image and config together."""
    digest = hashlib.sha256(f"{image}:{config_sha256}".encode()).hexdigest()
    return f"{version}-{digest[:10]}"


def release_json(given: Mapping[str, Any], unbuilt: bool = False) -> dict[str, Any]:
    """The contents of ``release.json``, with the id; raises ReleaseError where a field is missing or malformed.

    Fields: version, image (``sha256:…``), config_sha256, and where known image_manifest, wheel_sha256, created_at.
    An id that is given must be the right one. With `unbuilt`, for check mode, a release whose image is not built yet
    is one too; it has no image, and an id that no release ever has.
    """
    if unbuilt and given.get("image") is None:
        built = release_json({**given, "image": f"sha256:{'0' * 64}", "id": None})
        return {**built, "id": f"{built['version']}{_UNBUILT}", "image": None}
    unknown = sorted(set(given) - set(_REQUIRED) - set(_OPTIONAL) - {"id"})
    if unknown:
        raise ReleaseError(f"release.json has unknown {', '.join(unknown)}")
    found: dict[str, Any] = {}
    for name, pattern in {**_REQUIRED, **_OPTIONAL}.items():
        value = given.get(name)
        if value is None:
            if name in _REQUIRED:
                raise ReleaseError(f"release.json lacks {name}")
            continue
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ReleaseError(f"release.json has {name} {value!r}, expected {_EXPECTED[pattern]}")
        found[name] = value
    identity = release_id(found["image"], found["version"], found["config_sha256"])
    if given.get("id") not in (None, identity):
        raise ReleaseError(f"release.json has id {given['id']!r}, but its contents are {identity}")
    return {"id": identity, **found}


# --- what the fleet does -----------------------------------------------------------------------------------------


def other(slot: str) -> str:
    return SLOTS[1] if slot == SLOTS[0] else SLOTS[0]


def _balancer_traffic(fleet: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each load balancer's traffic; raises ReleaseError where one has none or its running maps are not its files."""
    found: dict[str, dict[str, Any]] = {}
    for name, result in sorted((fleet.get("load_balancers") or {}).items()):
        traffic = result.get("traffic") if result else None
        if not traffic:
            raise ReleaseError(f"load balancer {name} has no traffic maps yet: run site.yml or update-lb.yml first")
        if result.get("running_differs"):
            changed = ", ".join(f"{d['key']} {d['running']} instead of {d['disk']}" for d in result["running_differs"])
            raise ReleaseError(
                f"load balancer {name} runs with other maps than its files say ({changed}): run update-lb.yml first"
            )
        found[name] = traffic
    return found


def agreed_traffic(fleet: Mapping[str, Any]) -> dict[str, Any]:
    """What every load balancer does; raises ReleaseError that names who does what when they disagree."""
    balancers = _balancer_traffic(fleet)
    if not balancers:
        raise ReleaseError("the inventory has no load balancer")
    traffics = list(balancers.values())
    if any(traffic != traffics[0] for traffic in traffics):
        each = "; ".join(f"{name}: {_describe(traffic)}" for name, traffic in balancers.items())
        raise ReleaseError(
            f"the load balancers disagree about the traffic ({each}); decide which slot is right, and make them do it:"
            " ansible lb -m release_traffic -a 'stable=<slot> canary=<slot> salt=none cut=0'"
        )
    return traffics[0]


def _describe(traffic: Mapping[str, Any]) -> str:
    return f"stable {traffic['stable']}, canary {traffic['canary']} {traffic['cut'] / 100:g}% (salt {traffic['salt']})"


def slot_of(host: Optional[Mapping[str, Any]], slot: str) -> Mapping[str, Any]:
    return ((host or {}).get("slots") or {}).get(slot) or {}


def _serves(state: Mapping[str, Any], release: Optional[str]) -> bool:
    """The slot runs that release and is ready: what the link says is also what answers."""
    live = state.get("status") or {}
    return bool(
        release
        and state.get("release_id") == release
        and state.get("running")
        and state.get("ready")
        and live.get("release_id") == release
    )


def _in_rotation(fleet: Mapping[str, Any], slot: str) -> set[str]:
    """The hosts that a load balancer sends requests to in this slot; its servers have the hosts' names."""
    return {
        name
        for result in (fleet.get("load_balancers") or {}).values()
        for name, server in (((result or {}).get("servers") or {}).get(slot) or {}).items()
        if server["up"] and server["admin"] == "ready"
    }


def _served_by_host(fleet: Mapping[str, Any], slot: str) -> dict[str, str]:
    """The release in the slot, by host: of the hosts that are ready there and in rotation.

    Where no load balancer has one in rotation, of the ready hosts; where none is ready, of those that have one on disk.
    A host that comes back into the inventory may still run what the fleet served when it left.
    """
    hosts = fleet.get("hosts") or {}
    ready, linked = {}, {}
    for name, host in sorted(hosts.items()):
        state = slot_of(host, slot)
        release = state.get("release_id")
        if release:
            linked[name] = release
            if _serves(state, release):
                ready[name] = release
    rotation = _in_rotation(fleet, slot)
    return {name: release for name, release in ready.items() if name in rotation} or ready or linked


def served(fleet: Mapping[str, Any]) -> Optional[dict[str, Any]]:
    """What the fleet serves now: ``{release_id, version, slot, hosts, ready, release}``; None on a new fleet.

    That is the release in the stable slot of the hosts that are ready there; where none is, the one that is on disk, and
    `ready` is false. Raises ReleaseError when the load balancers or the hosts disagree.
    """
    slot = agreed_traffic(fleet)["stable"]
    by_host = _served_by_host(fleet, slot)
    if len(set(by_host.values())) > 1:
        raise ReleaseError(
            f"the hosts serve different releases in the stable slot {slot} ({_each(by_host)}): name a release_version"
        )
    return _told(fleet, slot, by_host) if by_host else None


def _each(by_host: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {release}" for name, release in by_host.items())


def _told(fleet: Mapping[str, Any], slot: str, by_host: Mapping[str, str]) -> dict[str, Any]:
    """What is served by most of these hosts."""
    common = max(sorted(set(by_host.values())), key=list(by_host.values()).count)
    hosts = [name for name, release in by_host.items() if release == common]
    release = dict(slot_of(fleet["hosts"][hosts[0]], slot).get("release") or {})
    return {
        "release_id": common,
        "version": release.get("version"),
        "slot": slot,
        "hosts": hosts,
        "ready": any(_serves(slot_of(fleet["hosts"][name], slot), common) for name in hosts),
        "release": release,
    }


# --- what has to be done -----------------------------------------------------------------------------------------


def plan(fleet: Mapping[str, Any]) -> dict[str, Any]:
    """What a deploy has to do; never raises, what stands in the way is the sentence in `error`.

    Of `fleet` it reads load_balancers, hosts (all of `app`), target (release.json), requested_version, limited, limit.
    Returns action (none, first, start, switch; None with an error), slot (where the target runs afterwards),
    old_slot (what a switch leaves), served (as `served` tells it; where hosts differ and a version for all of them was
    asked for, what most of them serve), target, prepare (hosts where the target is to be started),
    idle_active (hosts whose other slot still runs), reasons, error.
    """
    answer: dict[str, Any] = {
        "action": None,
        "slot": None,
        "old_slot": None,
        "served": None,
        "target": None,
        "prepare": [],
        "idle_active": [],
        "reasons": [],
        "error": None,
    }
    try:
        _plan(fleet, answer)
    except ReleaseError as error:
        answer.update(action=None, error=str(error))
    return answer


def _scope(fleet: Mapping[str, Any]) -> list[str]:
    hosts = sorted(fleet.get("hosts") or {})
    if not hosts:
        raise ReleaseError("the group app has no hosts: add one to the inventory")
    if not fleet.get("limited"):
        return hosts
    wanted = [name for name in hosts if name in (fleet.get("limit") or [])]
    if not wanted:
        raise ReleaseError("the run is limited to hosts of which none is in the group app")
    return wanted


def _plan(fleet: Mapping[str, Any], answer: dict[str, Any]) -> None:
    scope = _scope(fleet)
    traffic = agreed_traffic(fleet)
    stable = traffic["stable"]
    if not fleet.get("target"):
        raise ReleaseError("the release to deploy is not known")
    target = release_json(fleet["target"], unbuilt=str(fleet["target"].get("id")).endswith(_UNBUILT))
    answer["target"] = target
    requested = fleet.get("requested_version")
    if requested and requested != target["version"]:
        raise ReleaseError(f"version {requested} was asked for, but what was built is {target['version']}")
    if traffic["cut"] > 0:
        raise ReleaseError(
            f"a rollout is in progress: {_describe(traffic)}; finish it with canary.yml or end it with rollback.yml"
        )
    by_host = _served_by_host(fleet, stable)
    limited = bool(fleet.get("limited"))
    differ = len(set(by_host.values())) > 1
    if differ and (limited or not requested):
        served(fleet)
    answer["served"] = _told(fleet, stable, by_host) if by_host else None
    now = None if differ or not by_host else answer["served"]["release_id"]
    if now == target["id"]:
        _in_place(fleet, scope, stable, answer)
    elif limited:
        raise ReleaseError(_not_for_a_part(scope, now, target))
    elif not by_host:
        answer.update(action="first", slot=stable)
        answer["prepare"] = _not_serving(fleet, scope, stable, target["id"])
        answer["reasons"].append(f"the fleet serves nothing yet: {target['id']} starts in the stable slot {stable}")
    else:
        idle = other(stable)
        answer.update(action="switch", slot=idle, old_slot=stable)
        answer["prepare"] = _not_serving(fleet, scope, idle, target["id"])
        what = now or f"different releases ({_each(by_host)})"
        answer["reasons"].append(f"the fleet serves {what} in {stable}: {target['id']} goes to {idle}")
        reused = sorted(set(scope) - set(answer["prepare"]))
        if reused:
            answer["reasons"].append(f"{idle} runs it already on {', '.join(reused)}")


def _in_place(fleet: Mapping[str, Any], scope: Sequence[str], stable: str, answer: dict[str, Any]) -> None:
    target = answer["target"]["id"]
    idle = other(stable)
    answer["slot"] = stable
    answer["prepare"] = _not_serving(fleet, scope, stable, target)
    answer["idle_active"] = [name for name in scope if slot_of(fleet["hosts"][name], idle).get("running")]
    if answer["prepare"]:
        answer["action"] = "start"
        answer["reasons"].append(f"the fleet serves {target}; {', '.join(answer['prepare'])} not yet")
    else:
        answer["action"] = "none"
        answer["reasons"].append(f"{target} is served by {', '.join(scope)} already")


def _not_serving(fleet: Mapping[str, Any], scope: Sequence[str], slot: str, release: str) -> list[str]:
    return [name for name in scope if not _serves(slot_of(fleet["hosts"][name], slot), release)]


def _not_for_a_part(scope: Sequence[str], now: Optional[str], target: Mapping[str, Any]) -> str:
    hosts = ", ".join(scope)
    if now is None:
        return f"the fleet serves nothing yet: the first release goes to all of app, run it without -l ({hosts})"
    return (
        f"the fleet serves {now}, and {target['id']} would go to {hosts} only: another release goes to all of app,"
        " run it without -l"
    )


# --- do the hosts run what they should ---------------------------------------------------------------------------


def attest(states: Mapping[str, Mapping[str, Any]], expected: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every difference between what hosts run in a slot and the expected release, ``{host, what, expected, found}``.

    `states` is a slot's state by host; `expected` is a release.json, with `slot` where that is to be attested too.
    Attested are the link on disk, the config on disk, the image that really runs, readiness, and what the instance
    says of itself. An engine may know the image by its manifest's digest instead of its config's, and a host without an
    engine runs the wheel that the image was made of.
    """
    release = release_json({key: value for key, value in expected.items() if key != "slot"})
    wheel = release.get("wheel_sha256")
    images = {release["image"], release.get("image_manifest"), wheel, f"sha256:{wheel}"} - {None, "sha256:None"}
    found: list[dict[str, Any]] = []
    if not states:
        found.append({"host": None, "what": "hosts", "expected": "at least one", "found": "none"})
    for host, state in sorted(states.items()):
        live = state.get("status") or {}
        checks: list[tuple[str, Any, Any]] = [
            ("release on disk", release["id"], state.get("release_id")),
            ("config on disk", release["config_sha256"], state.get("config_sha256")),
            ("running", True, bool(state.get("running"))),
            ("ready", True, True if state.get("ready") else state.get("ready_reason") or False),
            ("live version", release["version"], live.get("version")),
            ("live release", release["id"], live.get("release_id")),
            ("live config", release["config_sha256"], live.get("config_hash")),
        ]
        if expected.get("slot"):
            checks.append(("live slot", expected["slot"], live.get("slot")))
        for what, digest in (("image", state.get("image")), ("live image", live.get("image"))):
            checks.append((what, release["image"], release["image"] if digest in images else digest))
        found += [
            {"host": host, "what": what, "expected": wanted, "found": seen} for what, wanted, seen in checks if wanted != seen
        ]
    return found
