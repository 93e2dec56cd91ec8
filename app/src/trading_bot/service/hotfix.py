"""A signed, expiring override of a few settings. It can only make a limit tighter, and is never code."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

import msgspec

from trading_bot import config
from trading_bot.config import Risk
from trading_bot.errors import ConfigError, Malformed

MAX_SECONDS = 7 * 86400

# What may be overridden, and which way is tighter. 0 means "no such limit" where it is named.
_LOWER, _HIGHER, _LOWER_OR_ON = "lower", "higher", "lower, or on"
TIGHTER: dict[str, str] = {
    "max_position_size": _LOWER,
    "max_order_notional": _LOWER,
    "max_open_orders": _LOWER,
    "max_leverage": _LOWER,
    "max_drawdown": _LOWER,
    "max_orders_per_second": _LOWER_OR_ON,
    "price_collar": _LOWER_OR_ON,
    "max_mark_age": _LOWER_OR_ON,
    "min_margin_level": _HIGHER,
    "margin_rate": _HIGHER,
    "duplicate_window": _HIGHER,
}


class Payload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is signed: the bytes of this as JSON. Times are seconds since 1970."""

    id: str
    settings: dict[str, str]
    reason: str
    issued: int
    expires: int


class Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is sent and stored; both in base64."""

    payload: str
    signature: str


@dataclasses.dataclass(frozen=True)
class Hotfix:
    payload: Payload
    values: Mapping[str, Any]


Verify = Callable[[bytes, bytes], bool]


def read(signed: Signed, verify: Verify) -> Hotfix:
    """The hotfix, once its signature and form are right. Raises Malformed."""
    try:
        data = base64.b64decode(signed.payload, validate=True)
        signature = base64.b64decode(signed.signature, validate=True)
    except binascii.Error:
        raise Malformed({"payload": "base64", "signature": "base64"}) from None
    if not verify(data, signature):
        raise Malformed({"signature": "that of the key which this fleet trusts"})
    try:
        payload = msgspec.json.decode(data, type=Payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed({"payload": str(error)}) from None
    errors: dict[str, str] = {}
    if re.fullmatch("[A-Za-z0-9_-]{1,40}", payload.id) is None:
        errors["id"] = "1 to 40 of A-Z a-z 0-9 _ -"
    if not payload.reason.strip():
        errors["reason"] = "why it is needed"
    if not payload.settings:
        errors["settings"] = "at least one"
    values: dict[str, Any] = {}
    for name, text in payload.settings.items():
        section, _, key = name.partition(".")
        if section != "risk" or key not in TIGHTER:
            errors[name] = "one of " + ", ".join(f"risk.{known}" for known in TIGHTER)
            continue
        try:
            values[key] = config.value("risk", key, text)
        except ConfigError as error:
            errors[name] = error.issues[0].expected
    if errors:
        raise Malformed(errors)
    return Hotfix(payload, values)


def untimely(payload: Payload, now: float) -> dict[str, str]:
    """What is wrong with the times of a hotfix that is to be applied now."""
    errors = {}
    if payload.expires <= now:
        errors["expires"] = "a time to come"
    if payload.expires - payload.issued > MAX_SECONDS or payload.issued > now + 60:
        errors["issued"] = "now, and at most seven days before it expires"
    return errors


def loosening(risk: Risk, hotfix: Hotfix) -> dict[str, str]:
    """What of ``hotfix`` would not tighten ``risk``: such a hotfix is refused as a whole."""
    return {
        f"risk.{name}": f"{TIGHTER[name]} than {getattr(risk, name)}"
        for name, value in hotfix.values.items()
        if tightest(name, getattr(risk, name), value) != value
    }


def tightest(name: str, one: Any, other: Any) -> Any:
    way = TIGHTER[name]
    if way == _HIGHER:
        return max(one, other)
    if way == _LOWER_OR_ON and Decimal(0) in (one, other):
        return max(one, other)
    return min(one, other)


def tightened(risk: Risk, hotfixes: Iterable[Hotfix]) -> Risk:
    """``risk`` with every override; where several meet, the tightest holds."""
    for hotfix in hotfixes:
        risk = dataclasses.replace(
            risk,
            **{name: tightest(name, getattr(risk, name), value) for name, value in hotfix.values.items()},
        )
    return risk
