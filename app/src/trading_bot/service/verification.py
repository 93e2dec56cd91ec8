"""Recompute the ledger from its audit for ever, one instance at a time, and say what differs.

A pass reads what the audit has told since the last one, so its cost is that of what happened meanwhile. How
far it came, and each account as the audit tells it, is kept in the ledger: whichever instance comes next goes
on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from trading_bot.domain.audit import NOTHING, Finding, Passed, Told, limits_from, place
from trading_bot.domain.limits import Limits
from trading_bot.errors import TradingError
from trading_bot.ports import Archive, Log, View

LEASE_NAME = "verify"
LEASE = 10.0
LINES = 250
"""Of the audit, at most, in one step."""
TURN = 25
"""Lines, or accounts, between two looks at whoever has an order to decide."""
REST = 2
"""How many times as long as a step took orders have the instance and the ledger to themselves after it."""
ORDERS = 200
"""Orders of one account that are compared in one step of the ledger."""
KEEP_AFTER = 20_000
"""Lines after which what was computed is kept, should a pass have that many to catch up with."""
ROUNDS = 50
"""How often an account is looked at in one pass while it goes on changing; the rest is left to the next."""


class Progress(msgspec.Struct):
    """How far the ledger was verified: the last line, the fills up to it, when, the accounts that changed and
    were not compared since, and every difference there is by account."""

    at: str = NOTHING
    fills: int = 0
    verified_ms: int = 0
    pending: set[str] = set()
    differences: dict[str, list[Finding]] = {}

    @property
    def count(self) -> int:
        return sum(map(len, self.differences.values()))


class _LeaseLost(Exception):
    """Another instance verifies now."""


class Verifier:
    def __init__(
        self,
        archive: Archive,
        interval: Callable[[], float],
        identity: dict[str, str],
        log: Log,
        member: Callable[[], bool] = lambda: True,
    ) -> None:
        """``identity`` goes with each finding into the audit. Only a ``member`` of the fleet verifies: one
        that was left running may know less than what is written now."""
        self._member = member
        self._incomplete = False
        self._why_not = ""
        self._archive = archive
        self._interval = interval
        self._identity = identity
        self._log = log
        self._progress = Progress()
        self._told: dict[str, Told] = {}
        self._changed: set[str] = set()
        self._limits: dict[str, Limits] = {}
        self._news: list[dict[str, str]] = []
        self._lines = 0
        self.known = Progress()
        """As last read, whoever verifies."""
        self.limits_passed = 0
        """Found by this instance."""

    async def run(self) -> None:
        while True:
            interval = self._interval()
            try:
                await self._read()
                if self._member() and time.time() * 1000 - self.known.verified_ms >= interval * 1000:
                    await self.step()
                self._why_not = ""
            except TradingError as error:
                # Whoever verifies next goes on where the last pass was kept.
                if str(error) != self._why_not:
                    self._why_not = str(error)
                    self._log("verify", outcome="waiting", reason=self._why_not)
            except _LeaseLost:
                self._log("verify", outcome="left to another instance")
            await asyncio.sleep(min(interval / 4, 5.0))

    async def _read(self) -> None:
        text = await self._archive.progress()
        self.known = msgspec.json.decode(text, type=Progress) if text else Progress()

    @staticmethod
    def _copy(progress: Progress) -> Progress:
        return msgspec.json.decode(msgspec.json.encode(progress), type=Progress)

    async def step(self) -> None:
        """One pass, unless another instance is at it."""
        if not await self._archive.lead(LEASE_NAME, LEASE):
            return
        self._told.clear()
        self._changed.clear()
        self._news.clear()
        await self._read()
        self._progress = self._copy(self.known)
        self._limits = {}
        self._lines = 0
        if self._progress.at == NOTHING and not await self._archive.begins():
            # Without its beginning the audit does not tell an account.
            if not self._incomplete:
                self._incomplete = True
                self._log("verify", outcome="cannot begin: the audit was cut before it was ever read")
            return
        await self._catch_up()
        for account in sorted((self._progress.pending | self._progress.differences.keys()) - {""}):
            await self._load([account])
            self._changed.add(account)
            await self._check(account)
        view = await self._archive.inspect("", [], self._progress.at, LINES)
        await self._take(view.lines)
        self._compare_fills(view)
        self._progress.verified_ms = int(time.time() * 1000)
        await self._keep()
        self._told.clear()
        await self._archive.leave(LEASE_NAME)

    async def _catch_up(self) -> None:
        while True:
            began = time.monotonic()
            lines = await self._archive.lines(self._progress.at, LINES)
            await self._take(lines)
            if len(lines) < LINES:
                return
            await self._renew()
            if self._lines >= KEEP_AFTER:
                await self._keep()
            await self._rest(began)

    async def _rest(self, began: float) -> None:
        # The lease is kept even where a step took very long.
        await asyncio.sleep(min(REST * (time.monotonic() - began), LEASE / 4))

    async def _renew(self) -> None:
        if not await self._archive.lead(LEASE_NAME, LEASE):
            raise _LeaseLost

    async def _keep(self) -> None:
        """Keep what was computed, then how far it came.

        Each account with the last line that it was told and what was found by it, so it does not matter
        if only some of them are kept: whoever starts again from an earlier line passes over what is in them.
        """
        found: dict[str, list[dict[str, str]]] = {}
        differences = []
        for news in self._news:
            if news["e"] == "limit.passed":
                found.setdefault(news["account"], []).append(news)
            else:
                differences.append(news)
        changed = list(self._changed & self._told.keys())
        for first in range(0, len(changed), TURN):
            part = changed[first : first + TURN]
            await self._kept(
                {account: msgspec.json.encode(self._told.pop(account)) for account in part},
                [news for account in part for news in found.get(account, [])],
            )
        await self._kept({}, differences, msgspec.json.encode(self._progress))
        self._changed.clear()
        self.known = self._copy(self._progress)
        self._news.clear()
        self._lines = 0

    async def _kept(
        self, accounts: dict[str, bytes], findings: list[dict[str, str]], progress: bytes = b""
    ) -> None:
        if not await self._archive.keep(LEASE_NAME, accounts, findings, progress):
            raise _LeaseLost
        for news in findings:
            self.limits_passed += news["e"] == "limit.passed"
            told = {key: word for key, word in news.items() if key not in ("e", "version", "slot")}
            self._log("verify", outcome=news["e"], **told)

    async def _load(self, accounts: list[str]) -> None:
        missing = [account for account in accounts if account not in self._told]
        if missing:
            for account, text in zip(missing, await self._archive.told(missing), strict=True):
                self._told[account] = msgspec.json.decode(text, type=Told) if text else Told()

    async def _take(self, lines: list[tuple[str, dict[str, str]]]) -> None:
        await self._load(sorted({line["account"] for _, line in lines if line.get("account")}))
        if any(line.get("limits", "") not in self._limits for _, line in lines if "limits" in line):
            every = await self._archive.limits()
            self._limits = {name: known for name, text in every.items() if (known := limits_from(text))}
        for number, (id, line) in enumerate(lines, 1):
            if number % TURN == 0:
                await asyncio.sleep(0)
            self._progress.at = id
            account = line.get("account", "")
            if not line["e"].startswith("order.") or line["e"] == "order.refused":
                continue
            if line["e"] == "order.fill":
                self._progress.fills += 1
            trusted = account not in self._progress.differences
            self._changed.add(account)
            self._progress.pending.add(account)
            told = self._told[account]
            if place(told.at) < place(id):
                told.at = id
                for passed in told.read(line, self._limits, trusted):
                    self._tell_passed(account, passed)
        self._lines += len(lines)

    def _tell_passed(self, account: str, passed: Passed) -> None:
        self._news.append(
            {
                "e": "limit.passed",
                "account": account,
                "order": passed.order,
                "rule": passed.rule,
                "limit": passed.limit,
                "value": passed.value,
                "accepted_by": f"{passed.version} {passed.slot}",
                **self._identity,
            }
        )

    async def _check(self, account: str) -> None:
        told = self._told[account]
        found: list[Finding] | None = None
        for _ in range(ROUNDS):
            began = time.monotonic()
            ids = sorted(told.touched)[:ORDERS]
            view = await self._archive.inspect(account, ids, self._progress.at, LINES)
            await self._take(view.lines)
            await self._renew()
            if view.whole:
                found = told.compare(view.fields, view.orders)
            await self._rest(began)
            if view.whole and (found or not told.touched):
                break
        if found is not None:
            if not told.touched:
                self._progress.pending.discard(account)
            self._note(account, found)

    def _compare_fills(self, view: View) -> None:
        """Each fill has its line in the audit: nothing was applied that is not told, or told twice."""
        if view.whole:
            told = self._progress.fills
            self._note("", [] if view.fills == told else [Finding("fills", str(view.fills), str(told))])

    def _note(self, account: str, found: list[Finding]) -> None:
        before = self._progress.differences.get(account, [])
        known = {finding.field for finding in before}
        for finding in found:
            if finding.field not in known:
                self._news.append(
                    {
                        "e": "ledger.difference",
                        "account": account,
                        "field": finding.field,
                        "ledger": finding.ledger,
                        "computed": finding.computed,
                        **self._identity,
                    }
                )
        if found:
            self._progress.differences[account] = found
        else:
            self._progress.differences.pop(account, None)
