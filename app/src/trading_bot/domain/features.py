"""What can be switched off while everything runs. A name is never used for anything else, ever."""

from __future__ import annotations

import datetime

import msgspec


class Feature(msgspec.Struct, frozen=True):
    """``core`` features cannot be switched off. After ``expires`` a feature has to be removed or kept for
    good; until then its switch still works."""

    name: str
    owner: str
    core: bool
    expires: datetime.date
    does: str


REGISTRY: dict[str, Feature] = {
    feature.name: feature
    for feature in (
        Feature("order_entry", "execution", True, datetime.date(2030, 1, 1), "take orders"),
        Feature("order_cancel", "execution", True, datetime.date(2030, 1, 1), "take cancels"),
        Feature("order_listing", "execution", False, datetime.date(2030, 1, 1), "list an account's orders"),
        Feature("metrics_feed", "operations", False, datetime.date(2030, 1, 1), "publish metrics on Redis"),
        Feature("order_stream", "execution", False, datetime.date(2030, 1, 1), "stream an account's events"),
        Feature("api_docs", "operations", False, datetime.date(2030, 1, 1), "serve /docs"),
    )
}

RETIRED = frozenset({"shadow_orders"})
"""Names that once meant something. They are refused, so that an old script cannot switch something new."""


def choose(names: list[str] | None) -> tuple[list[str], dict[str, str]]:
    """The features that a request names, or all non-core ones, and what is wrong with the request."""
    if names is None:
        return [feature.name for feature in REGISTRY.values() if not feature.core], {}
    errors = {}
    for name in names:
        if name in RETIRED:
            errors[name] = "a retired name"
        elif name not in REGISTRY:
            errors[name] = f"one of {', '.join(REGISTRY)}"
        elif REGISTRY[name].core:
            errors[name] = "not a core feature: those stay on"
    return list(dict.fromkeys(names)), errors
