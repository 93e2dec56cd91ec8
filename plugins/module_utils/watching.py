"""Whether a fleet does worse than it did: errors, refusals, instances that are gone. Pure, standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: How orders end that the instance could not decide, and those that it decided against.
ERRORS = ("error", "unavailable")
REFUSALS = ("refused", "malformed", "throttled")
#: So many bad orders are no accident; below, a fraction says nothing.
FEWEST = 10
#: So many looks in a row without a ready answer are no hiccup.
MISSED = 3

Look = Mapping[str, Mapping[str, Any]]


def ended(before: Look, after: Look) -> dict[str, int]:
    """Orders that ended between two looks at the same instances, by outcome; an instance that began anew counts from 0."""
    found: dict[str, int] = {}
    for name, now in after.items():
        then = before.get(name) or {}
        same = then.get("started") == now.get("started")
        for path, outcomes in (now.get("orders") or {}).items():
            for outcome, count in outcomes.items():
                earlier = ((then.get("orders") or {}).get(path) or {}).get(outcome, 0) if same else 0
                found[outcome] = found.get(outcome, 0) + count - earlier
    return found


def fractions(counts: Mapping[str, int]) -> dict[str, float]:
    """``orders``, and of them the fractions ``errors`` and ``refusals``."""
    orders = sum(counts.values())
    return {
        "orders": orders,
        "errors": sum(counts.get(outcome, 0) for outcome in ERRORS) / orders if orders else 0.0,
        "refusals": sum(counts.get(outcome, 0) for outcome in REFUSALS) / orders if orders else 0.0,
    }


def worse(
    counts: Mapping[str, int], missed: Mapping[str, int], baseline: Mapping[str, float], errors: float, refusals: float
) -> list[str]:
    """Why what was seen is worse than may be; empty if it is not.

    `counts` as ``ended`` tells them, `missed` the looks in a row that an instance was not ready at; `errors` is the highest
    fraction of errors, or the baseline's if that was higher already, `refusals` how much their fraction may rise above it.
    """
    found = [f"{name} was not ready at {looks} looks in a row" for name, looks in sorted(missed.items()) if looks >= MISSED]
    seen = fractions(counts)
    limits = (
        ("errors", ERRORS, max(errors, baseline.get("errors", 0.0))),
        ("refusals", REFUSALS, baseline.get("refusals", 0.0) + refusals),
    )
    for what, outcomes, most in limits:
        bad = sum(counts.get(outcome, 0) for outcome in outcomes)
        if bad >= FEWEST and seen[what] > most:
            found.append(f"{what}: {bad} of {seen['orders']:.0f} orders ({seen[what]:.1%}), and {most:.1%} may be")
    return found
