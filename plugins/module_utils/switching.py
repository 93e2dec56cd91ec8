"""What an operator wants of the app's fleet-wide switches, whom to tell, and whether every instance follows.

Pure: dictionaries in (as the module ``switches`` returns them), dictionaries and sentences out. Standard library only.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any, Union

#: The features that the app never switches off: without a list all others are meant.
CORE_FEATURES = ("order_entry", "order_cancel")

#: By operation and action: the call, what is wanted, what will be done, what was done.
_SWITCHES: dict[tuple[str, str], tuple[str, dict[str, Any], str, str]] = {
    ("halt", "halt"): (
        "/api/trading/halt",
        {"halted": True},
        "Halts all trading: every instance answers orders with 503, whatever account they are of",
        "halted",
    ),
    ("halt", "resume"): ("/api/trading/resume", {"halted": False}, "Lets trading go on", "not halted"),
    ("degrade", "enable"): (
        "/api/degradation/enable",
        {"degraded": True},
        "Degrades the fleet: only orders that reduce a position are taken",
        "reduce-only",
    ),
    ("degrade", "disable"): (
        "/api/degradation/disable",
        {"degraded": False},
        "Ends the degradation: orders may open positions again",
        "not degraded",
    ),
    ("features", "disable"): ("/api/features/disable", {"on": False}, "Switches off", "off"),
    ("features", "enable"): ("/api/features/enable", {"on": True}, "Switches on", "on"),
    ("hotfix", "apply"): ("/api/hotfix/apply", {}, "Applies", "in force"),
    ("hotfix", "revert"): ("/api/hotfix/revert", {}, "Ends", "not in force"),
}


class SwitchError(ValueError):
    """What an operator asked for cannot be done; the sentence says why and what is expected."""


def request(
    operation: str,
    action: str,
    *,
    reason: str = "",
    by: str = "",
    features: Union[str, Sequence[str], None] = None,
    signed: Union[str, Mapping[str, str]] = "",
    hotfix_id: str = "",
    any_id: bool = False,
) -> dict[str, Any]:
    """What is wanted: {operation, action, path, body, wanted, does, done, undo, error}. Never raises; ``error`` is a sentence.

    ``wanted`` is what ``missing`` compares with. ``signed`` is a hotfix as ``trading-bot hotfix sign`` prints it; with ``any_id``
    another one with the same settings does as well.
    """
    answer: dict[str, Any] = {"operation": operation, "action": action, "error": ""}
    try:
        answer.update(_request(operation, action, reason, by, features, signed, hotfix_id, any_id))
    except SwitchError as error:
        answer["error"] = str(error)
    return answer


def _request(
    operation: str,
    action: str,
    reason: str,
    by: str,
    features: Union[str, Sequence[str], None],
    signed: Union[str, Mapping[str, str]],
    hotfix_id: str,
    any_id: bool,
) -> dict[str, Any]:
    actions = [name for known, name in _SWITCHES if known == operation]
    if action not in actions:
        raise SwitchError(f"{operation}_action={action}: expected {' or '.join(actions)}")
    path, wanted, does, done = _SWITCHES[operation, action]
    if (operation, action) == ("halt", "resume") and not reason.strip():
        raise SwitchError('halt_reason is missing: say why trading may go on, as in -e halt_reason="prices were checked"')
    why = " ".join(part for part in (reason.strip(), f"(by {by})" if by else "") if part)
    body: dict[str, Any] = {"reason": why} if why else {}
    undo = {
        "halt": f"ansible-playbook halt.yml -e halt_action={'resume -e halt_reason=...' if action == 'halt' else 'halt'}",
        "degrade": f"ansible-playbook degrade.yml -e degrade_action={'disable' if action == 'enable' else 'enable'}",
    }.get(operation, "")
    if operation == "features":
        names = _names(features)
        wanted = {"features": names, **wanted}
        if names:
            body["features"] = names
        meant = ", ".join(names) or "every feature that is not core"
        does, done = f"{does} {meant}", f"{meant} {done}"
    elif operation == "hotfix" and action == "apply":
        payload, body = _signed(signed)
        settings = payload["settings"]
        wanted = {"hotfix": payload["id"], "settings": settings, "any_id": any_id}
        shown = ", ".join(f"{name}={value}" for name, value in sorted(settings.items()))
        does, done = f"Applies the hotfix {payload['id']}: {shown}", f"{shown} in force"
        undo = f"ansible-playbook hotfix.yml -e hotfix_action=revert -e hotfix_id={payload['id']}"
    elif operation == "hotfix":
        if not hotfix_id:
            raise SwitchError("hotfix_id is missing: name the hotfix to end, as in -e hotfix_id=tight")
        wanted, body["id"] = {"hotfix": hotfix_id, "settings": None, "any_id": False}, hotfix_id
        does, done = f"Ends the hotfix {hotfix_id}", f"{hotfix_id} not in force"
        undo = "apply it again: ansible-playbook hotfix.yml -e hotfix_file=<its signed file>"
    return {"path": path, "body": body, "wanted": wanted, "does": does, "done": done, "undo": undo}


def _names(features: Union[str, Sequence[str], None]) -> list[str]:
    words = features.split(",") if isinstance(features, str) else list(features or [])
    names = [str(word).strip() for word in words]
    return list(dict.fromkeys(name for name in names if name))


def _signed(signed: Union[str, Mapping[str, str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a signed hotfix says, and the body that applies it. Whether it is genuine is the app's to say."""
    try:
        given = json.loads(signed) if isinstance(signed, str) else signed
        body = {name: str(given[name]) for name in ("payload", "signature")}
        payload = dict(json.loads(base64.b64decode(body["payload"], validate=True)))
        payload = {"id": str(payload["id"]), "settings": dict(payload["settings"])}
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise SwitchError(
            "hotfix_file is no signed hotfix: expected the JSON object with payload and signature that"
            " `trading-bot hotfix sign` prints"
        ) from None
    return payload, body


# What an instance says


def missing(seen: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What of ``wanted`` is not in force at this instance, in words; empty: all of it is."""
    if not seen.get("ledger"):
        return ["it does not reach Redis"]
    if "features" in wanted:
        return [f"{name} is {'off' if wanted['on'] else 'on'}" for name in to_switch(seen, wanted)]
    if "hotfix" in wanted:
        return _hotfix_missing(seen, wanted)
    return [
        f"it is {'' if seen.get(name) else 'not '}{name}"
        for name, value in wanted.items()
        if seen.get(name) is None or bool(seen[name]) != value
    ]


def to_switch(seen: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The features that are not as wanted at this instance; a name that it does not know is none of them."""
    known: Mapping[str, bool] = seen.get("features") or {}
    names = wanted["features"] or [name for name in known if name not in CORE_FEATURES]
    return [name for name in names if name in known and known[name] != wanted["on"]]


def _hotfix_missing(seen: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    found = {fix["id"]: fix["settings"] for fix in seen.get("hotfixes") or []}
    id_ = wanted["hotfix"]
    if wanted["settings"] is None:
        return [f"the hotfix {id_} is in force"] if id_ in found else []
    others = list(found.values()) if wanted["any_id"] else [found.get(id_)]
    return [] if wanted["settings"] in others else [f"the hotfix {id_} is not in force"]


# Whom to tell


def plan(asked: Mapping[str, Any], looks: Mapping[str, Any], fleet: Sequence[str]) -> dict[str, Any]:
    """Whom to tell, once every host was asked.

    {by: {host, slot} or null, needed, what, reached, unreachable, undo, error}: ``needed`` are words, empty where everything
    is as wanted; ``what`` are the sentences for an operator. ``looks`` are the module's results by host, ``fleet`` all app hosts
    of the inventory. Never raises; ``error`` says what stands in the way and what to do.
    """
    unreachable = [host for host in looks if not _instances(looks[host])]
    answer: dict[str, Any] = {
        "by": None,
        "needed": [],
        "what": [],
        "reached": [host for host in looks if host not in unreachable],
        "unreachable": unreachable,
        "undo": asked.get("undo", ""),
        "error": asked.get("error", ""),
    }
    if answer["error"]:
        return answer
    able = [
        (bool(seen.get("draining")), host, slot)
        for host in looks
        for slot, seen in _instances(looks[host]).items()
        if seen.get("ledger")
    ]
    if not able:
        answer["error"] = _nobody(asked, looks)
        return answer
    _, host, slot = min(able, key=lambda found: found[0])
    seen = looks[host]["instances"][slot]
    try:
        _refuse(seen, asked["wanted"])
    except SwitchError as error:
        answer["error"] = str(error)
        return answer
    answer["by"] = {"host": host, "slot": slot}
    answer["needed"] = missing(seen, asked["wanted"])
    answer["undo"] = _undo(asked, seen)
    answer["what"] = _what(asked, answer, looks, fleet)
    return answer


def _instances(look: Any) -> Mapping[str, Any]:
    found = look.get("instances") if isinstance(look, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _refuse(seen: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Say no to what the app would refuse, before it is told."""
    if "features" in wanted:
        known = list(seen.get("features") or {})
        wrong = [name for name in wanted["features"] if name not in known or name in CORE_FEATURES]
        if wrong:
            may = ", ".join(name for name in known if name not in CORE_FEATURES)
            raise SwitchError(f"features_list: {', '.join(wrong)} cannot be switched; expected some of {may}")
    if wanted.get("settings") is not None:
        for fix in seen.get("hotfixes") or []:
            if fix["id"] == wanted["hotfix"] and fix["settings"] != wanted["settings"]:
                raise SwitchError(
                    f"the hotfix {fix['id']} is in force with other settings ({_settings(fix)}): revert it first, or sign under"
                    " another hotfix_id"
                )


def _settings(fix: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(fix["settings"].items()))


def _undo(asked: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    if asked["operation"] != "features":
        return str(asked["undo"])
    names = to_switch(seen, asked["wanted"])
    other = "enable" if asked["action"] == "disable" else "disable"
    return f"ansible-playbook features.yml -e features_action={other} -e features_list={','.join(names)}" if names else ""


def _what(asked: Mapping[str, Any], found: Mapping[str, Any], looks: Mapping[str, Any], fleet: Sequence[str]) -> list[str]:
    by = found["by"]
    if found["needed"]:
        told = f"{by['host']} ({by['slot']}) is told"
        what = [f"{asked['does']}. That is for the whole fleet, and survives restarts. {told}"]
    else:
        what = [f"Nothing to do, {by['host']} ({by['slot']}) says that it is so: {asked['done']}"]
    left = [host for host in fleet if host not in looks]
    if left:
        what.append(f"Not asked, because of -l, which limits who is asked and not whom it is for: {', '.join(left)}")
    if found["unreachable"]:
        what.append(f"Cannot be reached, and is not waited for: {', '.join(found['unreachable'])}")
    return what


def _nobody(asked: Mapping[str, Any], looks: Mapping[str, Any]) -> str:
    """What stands in the way where no instance can change a switch, and what else stops trading."""
    told = []
    redis_away = refused = False
    for host, look in looks.items():
        instances = _instances(look)
        if not instances:
            told.append(
                f"{host}: {look.get('msg') or 'cannot be reached'}" if isinstance(look, Mapping) else f"{host}: not asked"
            )
            continue
        for slot, seen in instances.items():
            redis_away = redis_away or bool(seen.get("answers"))
            refused = refused or seen.get("code") in (401, 403)
            told.append(f"{host} {slot}: {seen.get('error') or 'answers, but does not reach Redis'}")
    if refused:
        help_ = "The operator's token is not the fleet's: vault_api_operator_token is another one than was deployed"
    elif redis_away:
        help_ = (
            "Without Redis no instance decides an order, so nobody trades; no switch can be changed either."
            " Start Redis, then run this again"
        )
    else:
        help_ = (
            "Where no instance runs, nobody trades. Start one (on an app host: systemctl start trading-bot) and run this again;"
            " or on the Redis host, which instances read twice a second: redis-cli --user operator --askpass hset trading:control"
            " halted 1 (resume: hdel trading:control halted); or end them: ansible app -m ansible.builtin.systemd_service"
            " -a 'name=trading-bot state=stopped'"
        )
    return f"No instance can be told, so nothing was changed ({asked['operation']} {asked['action']}). {'; '.join(told)}. {help_}"


# Whether all follow


def outcome(asked: Mapping[str, Any], planned: Mapping[str, Any], refused: str, looks: Mapping[str, Any]) -> dict[str, Any]:
    """How it ended: {result: changed, nothing or failed, told: a sentence per host, late: those that do not follow}.

    ``refused`` is why the one that was told did not do it, or empty. ``looks`` are the module's results by host, of those
    that were reached, after the change; none in check mode.
    """
    if refused:
        why = f"{planned['by']['host']}: {refused}"
        return {"result": "failed", "told": [why], "late": [why]}
    if not looks:
        return {"result": "nothing", "told": ["A check: nobody was told, and nothing was changed"], "late": []}
    told, late = [], []
    for host, look in looks.items():
        answering = {slot: seen for slot, seen in _instances(look).items() if seen.get("answers")}
        words = []
        for slot, seen in answering.items():
            lacks = missing(seen, asked["wanted"])
            words.append(f"{slot} {asked['done']}" if not lacks else f"{slot} NOT: {'; '.join(lacks)}")
            late += [f"{host} {slot}: {'; '.join(lacks)}"] if lacks else []
        told.append(f"{host}: {', '.join(words) or 'no instance answers'}")
    told += [f"{host}: cannot be reached; an instance there follows when it reaches Redis" for host in planned["unreachable"]]
    result = "failed" if late else ("changed" if planned["needed"] else "nothing")
    return {"result": result, "told": told, "late": late}
