"""A release on trial decides copies of real orders, without a trace, and is compared with what serves.

Whoever decides an order publishes a copy once it has answered: the request, its decision, and the facts of
the ledger that it was decided from. An instance of the slot on trial decides the copy from these facts with
its own code and its own script, so that neither the order's own effect nor anything that happened since is in
the way.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from trading_bot.domain.admission import Admission
from trading_bot.domain.limits import Limits
from trading_bot.domain.order import Order, OrderRequest, fingerprint, order_from
from trading_bot.domain.shadow import Copy, Decision, Differences
from trading_bot.domain.traffic import Traffic
from trading_bot.errors import Malformed, TradingError, Unavailable
from trading_bot.ports import Ledger, Log
from trading_bot.service.submit import decode, outcome_of

WAITING = 1000
"""How many copies may wait, on either side. More are dropped and counted: a copy is never worth an order."""

PAUSE = 0.002
"""Between a decision and its copy, so that the answer has left; copies of that time leave together."""

WORKERS = 4
"""Copies that are decided at once. The ledger is shared with the orders that count."""

_NOTHING_DECIDED = frozenset({"again", "throttled", "halted"})

Publish = Callable[[str, bytes], Awaitable[bool]]


class Mirror:
    """``service.submit.Mirrored``: the side that serves."""

    def __init__(self, slot: str, publish: Publish, log: Log) -> None:
        """``publish(slot, copy)`` is true if the bus took the copy."""
        self._slot = slot
        self._publish = publish
        self._log = log
        self._to = ""
        self._salt = ""
        self._waiting: deque[tuple[str, str, bytes, str, Order | None, Admission | None]] = deque()
        self._nudged = asyncio.Event()
        self.mirrored = 0
        self.skipped: Counter[str] = Counter()

    @property
    def on(self) -> bool:
        return bool(self._to)

    def follow(self, traffic: Traffic | None) -> None:
        """Take ``traffic`` as the map in force."""
        to = traffic.shadow if traffic is not None else ""
        self._to = to if to != self._slot else ""
        self._salt = traffic.salt if traffic is not None else ""

    def take(
        self,
        account: str,
        path: str,
        body: bytes,
        outcome: str,
        order: Order | None,
        admission: Admission | None,
    ) -> None:
        if len(self._waiting) >= WAITING:
            self.skipped["queue_full"] += 1
        else:
            self._waiting.append((account, path, body, outcome, order, admission))
            self._nudged.set()

    async def run(self) -> None:
        while True:
            await self._nudged.wait()
            await asyncio.sleep(PAUSE)
            self._nudged.clear()
            while self._waiting:
                entry = self._waiting.popleft()
                to = self._to
                if not to:
                    self._waiting.clear()
                    break
                try:
                    if await self._publish(to, msgspec.json.encode(self._copy(*entry))):
                        self.mirrored += 1
                    else:
                        self.skipped["bus_away"] += 1
                except Exception as error:
                    # Whatever it is, the order was answered and is none of this.
                    self.skipped["bus_away"] += 1
                    self._log("defect", part="mirror", error=repr(error))
                await asyncio.sleep(0)

    def _copy(
        self,
        account: str,
        path: str,
        body: bytes,
        outcome: str,
        order: Order | None,
        admission: Admission | None,
    ) -> Copy:
        return Copy(
            account,
            path,
            body,
            _decision(outcome, admission),
            self._salt,
            fingerprint(order) if order is not None else "",
            admission.facts() if admission is not None and admission.facts is not None else None,
        )


class Shadow:
    """The side that is on trial."""

    def __init__(self, slot: str, release: str, ledger: Ledger, log: Log) -> None:
        self._slot = slot
        self.release = release
        self._ledger = ledger
        self._log = log
        self._trial: tuple[str, str] | None = None
        self._on = False
        self._waiting: deque[bytes] = deque()
        self._nudged = asyncio.Event()
        self._differences = Differences()
        self._counted = 0
        self._passed_over: Counter[str] = Counter()
        self._since = int(time.time() * 1000)
        self.limits: Limits | None = None
        """What this version would hold every order to, were it the one that serves."""
        self.compared = 0
        self.skipped: Counter[str] = Counter()
        self.differences = 0

    def follow(self, traffic: Traffic | None) -> None:
        """Take ``traffic`` as the map in force. Another trial begins with nothing found."""
        if traffic is None or traffic.shadow != self._slot:
            self._on = False
            return
        release = traffic.releases.get(self._slot) or self.release
        self._on = release == self.release
        trial = (traffic.salt, release)
        if trial != self._trial:
            self._trial = trial
            self._differences = Differences()
            self._counted = 0
            self._passed_over = Counter()
            self._since = int(time.time() * 1000)

    def hear(self, data: bytes) -> None:
        """A copy has come."""
        if not self._on:
            return
        if len(self._waiting) >= WAITING:
            self._skip("overrun")
        else:
            self._waiting.append(data)
            self._nudged.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            while self._waiting:
                data = self._waiting.popleft()
                try:
                    await self._compare(msgspec.json.decode(data, type=Copy))
                except (msgspec.DecodeError, UnicodeDecodeError):
                    self._skip("unreadable")
                # Between two copies whoever has an order to decide comes first.
                await asyncio.sleep(0)
            self._nudged.clear()
            await self._nudged.wait()

    async def _compare(self, copy: Copy) -> None:
        stable = copy.decision
        if self._trial is None or copy.salt != self._trial[0]:
            self._skip("other_map")
            return
        if stable.outcome in _NOTHING_DECIDED:
            self._skip(stable.outcome)
            return
        order: Order | None = None
        try:
            order = order_from(copy.account, decode(copy.body, OrderRequest))
            canary = await self._decide(order, copy)
        except Malformed:
            canary = Decision("malformed")
        except Unavailable:
            self._skip("unavailable")
            return
        except TradingError as error:
            canary = Decision("error", value=str(error))
        except Exception as error:
            self._log("defect", part="shadow", account=copy.account, error=repr(error))
            canary = Decision("error", value=repr(error))
        if canary is None:
            self._skip("moved")
            return
        self.compared += 1
        self._counted += 1
        if canary != stable:
            self.differences += 1
            id = order.client_order_id if order is not None else ""
            type_, side = (order.type.value, order.side.value) if order is not None else ("", "")
            self._differences.add(copy.account, id, type_, side, stable, canary)
            self._log(
                "shadow",
                account=copy.account,
                order=id,
                stable=msgspec.to_builtins(stable),
                canary=msgspec.to_builtins(canary),
            )

    async def _decide(self, order: Order, copy: Copy) -> Decision | None:
        identity = fingerprint(order)
        if copy.identity and identity != copy.identity:
            # Sent again, the order would be another one to this version.
            return Decision("conflict", "fingerprint", copy.identity, identity)
        if copy.facts is None or self.limits is None:
            # The other version took it for malformed and looked at nothing; whatever this one says differs.
            admission: Admission | None = await self._ledger.admit(order, "", dry=True)
        else:
            admission = await self._ledger.judge(order, copy.facts, self.limits)
        return None if admission is None else _decision(outcome_of(admission), admission)

    def _skip(self, reason: str) -> None:
        self.skipped[reason] += 1
        self._passed_over[reason] += 1

    def shown(self) -> dict[str, Any]:
        """What this instance has found since the trial began."""
        return {
            "since": self._since,
            "compared": self._counted,
            "skipped": dict(self._passed_over),
            "differences": self._differences.shown(),
        }


def _decision(outcome: str, admission: Admission | None) -> Decision:
    refusal = admission.refusal if admission is not None else None
    if refusal is None:
        return Decision(outcome)
    return Decision(outcome, refusal.rule, refusal.limit, refusal.value)
