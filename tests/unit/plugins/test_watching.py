"""Whether a fleet does worse than it did is told from what its instances count."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.watching import ended, fractions, worse


def look(started: float, **outcomes: int) -> dict[str, Any]:
    return {"started": started, "orders": {"http": outcomes}}


def test_orders_are_counted_from_one_look_to_the_next_and_from_0_after_a_restart() -> None:
    before = {"app1": look(1, accepted=100, error=1), "app2": look(1, accepted=50)}
    after = {"app1": look(1, accepted=110, error=3), "app2": look(2, accepted=5)}
    assert ended(before, after) == {"accepted": 15, "error": 2}


def test_without_orders_there_are_no_fractions() -> None:
    assert fractions({}) == {"orders": 0, "errors": 0.0, "refusals": 0.0}


@pytest.mark.parametrize(
    ("counts", "missed", "reason"),
    [
        ({"accepted": 1000, "error": 10}, {}, ""),
        ({"accepted": 900, "error": 20}, {}, "errors: 20 of 920"),
        # Too few to say so.
        ({"accepted": 10, "error": 9}, {}, ""),
        # The baseline refused a tenth; five hundredths more may be.
        ({"accepted": 860, "refused": 140}, {}, ""),
        ({"accepted": 800, "refused": 150, "throttled": 50}, {}, "refusals: 200 of 1000"),
        ({}, {"app2": 3}, "app2 was not ready"),
        ({}, {"app2": 2}, ""),
    ],
)
def test_worse_is_more_errors_more_refusals_or_an_instance_that_is_gone(
    counts: dict[str, int], missed: dict[str, int], reason: str
) -> None:
    found = worse(counts, missed, {"errors": 0.0, "refusals": 0.1}, errors=0.01, refusals=0.05)
    assert bool(found) == bool(reason)
    assert reason in "".join(found)
