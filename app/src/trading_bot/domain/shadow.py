"""What two versions say of the same order, and where they differ."""

from __future__ import annotations

from typing import Any

import msgspec

from trading_bot.domain.admission import Facts

GROUPS = 200
EXAMPLES = 3


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """``outcome`` as the metrics count it; the rest where a check refused. Equal decisions are equal."""

    outcome: str
    rule: str = ""
    limit: str = ""
    value: str = ""


class Copy(msgspec.Struct, frozen=True, omit_defaults=True):
    """An order that was decided, as it travels to the slot that decides it once more.

    ``body`` is the request as it came, ``identity`` the order's fingerprint (empty for a request that is no
    order), ``salt`` names the traffic map that was in force. Another version reads this: never rename a
    field, and give a new one a default.
    """

    account: str
    path: str
    body: bytes
    decision: Decision
    salt: str = ""
    identity: str = ""
    facts: Facts | None = None


class Differences:
    """Differences grouped by what they have in common: at most 200 groups, each with its first 3 examples."""

    def __init__(self) -> None:
        self.count = 0
        self._groups: dict[tuple[str, ...], tuple[int, list[dict[str, Any]]]] = {}

    def add(
        self,
        account: str,
        client_order_id: str,
        type_: str,
        side: str,
        stable: Decision,
        canary: Decision,
    ) -> None:
        self.count += 1
        key = (type_, side, stable.outcome, stable.rule, canary.outcome, canary.rule)
        count, examples = self._groups.get(key, (0, []))
        if not count and len(self._groups) >= GROUPS:
            return
        if len(examples) < EXAMPLES:
            examples.append(
                {
                    "account": account,
                    "client_order_id": client_order_id,
                    "stable": msgspec.structs.asdict(stable),
                    "canary": msgspec.structs.asdict(canary),
                }
            )
        self._groups[key] = (count + 1, examples)

    def shown(self) -> list[dict[str, Any]]:
        """The most frequent first."""
        return [
            {
                "type": key[0],
                "side": key[1],
                "stable": {"outcome": key[2], "rule": key[3]},
                "canary": {"outcome": key[4], "rule": key[5]},
                "count": count,
                "examples": examples,
            }
            for key, (count, examples) in sorted(self._groups.items(), key=lambda group: -group[1][0])
        ]
