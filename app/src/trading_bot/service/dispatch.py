"""From the ledger to the venue and back. Any number of the fleet's instances may do this at once.

An order is written as sent before it is sent. Without an answer its state is unknown, and the venue is asked
before anything else is done with it. It is sent again only once the venue has said that it does not have it
and can no longer get it from the earlier sending.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from trading_bot.domain.lifecycle import State
from trading_bot.errors import TradingError, VenueRefused, VenueTimeout
from trading_bot.ports import Book, Log, Report, SettleCode, Task, Venue

CONCURRENCY = 64
IDLE_SECONDS = 0.1
CLOCK_SKEW = 0.5
"""How far the venue's clock may be behind ours, in seconds."""


class NoVenue:
    """``ports.Probe`` where no venue is configured: accepted would mean that an order will be sent."""

    def reason(self) -> str:
        return "venue.adapter is none, so nothing would send an order: name a venue, or hold to decide only"


class Dispatcher:
    def __init__(
        self,
        book: Book,
        venue: Venue,
        log: Log,
        *,
        timeout: float,
        recheck: float,
        member: Callable[[], bool] = lambda: True,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._book = book
        self._venue = venue
        self._log = log
        self._timeout = timeout
        self._recheck = recheck
        self._member = member
        self._wall = wall
        self._lease = timeout * 3 + 1
        self._nudged = asyncio.Event()
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._tasks: set[asyncio.Task[None]] = set()
        self._working: set[tuple[str, str]] = set()
        self._reconciled = False
        self._why = "not reconciled with the venue yet"
        self.fills = 0
        self.doubled = 0
        self.fenced = 0

    def reason(self) -> str | None:
        """``ports.Probe``: None once the venue's reports up to this start were applied."""
        return None if self._reconciled else self._why

    def nudge(self) -> None:
        """There may be something to send."""
        self._nudged.set()

    async def run(self) -> None:
        """Send, ask, cancel; for ever. Nothing is taken while this instance is no member of the fleet."""
        while True:
            if not self._member():
                await asyncio.sleep(IDLE_SECONDS)
                continue
            try:
                due = await self._book.due(CONCURRENCY * 2)
            except TradingError:
                await asyncio.sleep(IDLE_SECONDS * 5)
                continue
            fresh = [entry for entry in due if entry not in self._working]
            for entry in fresh:
                await self._slots.acquire()
                self._working.add(entry)
                task = asyncio.create_task(self._work(*entry))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            if len(due) < CONCURRENCY * 2:
                self._nudged.clear()
                try:
                    async with asyncio.timeout(IDLE_SECONDS):
                        await self._nudged.wait()
                except TimeoutError:
                    pass

    async def finish(self) -> None:
        """Wait for what is being worked on."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _work(self, account: str, client_order_id: str) -> None:
        try:
            task = await self._book.take(account, client_order_id, self._lease)
            if task is not None:
                await self._settle_with_venue(task)
        except TradingError as error:
            # The lease ends by itself, then somebody asks the venue.
            self._log("dispatch", account=account, order=client_order_id, outcome="left", reason=str(error))
        finally:
            self._working.discard((account, client_order_id))
            self._slots.release()

    async def _settle_with_venue(self, task: Task) -> None:
        order = task.order
        try:
            if not task.ask_first:
                await self._send(task)
                return
            found = await self._venue.query(order)
            if found is not None:
                if task.cancel_wanted and found.state not in _FINAL:
                    found = await self._venue.cancel(order) or found
                await self._apply(found, task)
                return
            reachable = task.sent_ms_ago / 1000 <= self._timeout + CLOCK_SKEW
            if reachable:
                # An earlier sending may still arrive. Until it no longer can, nothing is certain.
                await self._put(
                    task, State.UNKNOWN, "not at the venue yet", again_in=self._timeout + CLOCK_SKEW
                )
            elif task.filled:
                await self._put(task, None, "the venue lost a filled order", again_in=self._recheck)
            elif task.cancel_wanted:
                await self._put(task, State.CANCELLED, "cancelled before it reached the venue", filled=0)
            elif await self._book.resend(task):
                self._log(
                    "dispatch", account=order.account, order=order.client_order_id, outcome="sent again"
                )
                await self._send(task)
        except VenueTimeout as error:
            await self._put(task, State.UNKNOWN, str(error), again_in=self._timeout / 2)

    async def _send(self, task: Task) -> None:
        deadline = int((self._wall() + self._timeout) * 1000)
        try:
            report = await self._venue.submit(task.order, deadline)
        except VenueRefused as error:
            await self._put(task, State.REJECTED, str(error), filled=0)
            return
        await self._apply(report, task)

    async def _put(
        self,
        task: Task,
        state: State | None,
        reason: str,
        *,
        filled: int | None = None,
        again_in: float | None = None,
    ) -> None:
        """A conclusion of this holder's own: the ledger takes it only while the fence is the latest."""
        order = task.order
        code, _, _ = await self._book.settle(
            order.account, order.client_order_id, state, (), filled=filled, fence=task.fence,
            again_in=again_in, reason=reason,
        )  # fmt: skip
        if code is SettleCode.FENCED:
            self.fenced += 1
        self._log(
            "dispatch", account=order.account, order=order.client_order_id,
            outcome=state.value if state else "strange", reason=reason, code=code.name.lower(),
        )  # fmt: skip

    async def _apply(self, report: Report, task: Task | None = None) -> None:
        """What the venue says is a fact, whoever heard it first."""
        code, fresh, doubled = await self._book.settle(
            report.account, report.client_order_id, report.state, report.fills, filled=report.filled,
            again_in=self._recheck if task is not None else None, reason=report.reason,
        )  # fmt: skip
        self.fills += fresh
        self.doubled += doubled
        if doubled:
            self._log(
                "defect", account=report.account, order=report.client_order_id, doubled=doubled,
                detail="the venue executed more than was ordered, or one trade id twice",
            )  # fmt: skip
        if fresh or task is not None or code is not SettleCode.APPLIED:
            self._log(
                "venue", account=report.account, order=report.client_order_id, fills=fresh,
                outcome=report.state.value if report.state else "fill", code=code.name.lower(),
            )  # fmt: skip

    async def follow(self) -> None:
        """Read the venue's reports, one member at a time, and become ready once this start caught up."""
        head: int | None = None
        lease = self._timeout + 3
        leads = False
        while True:
            try:
                if head is None:
                    head = await self._venue.head()
                seen = await self._book.seen() or 0
                if seen >= head and not self._reconciled:
                    self._reconciled = True
                    self._log("reconcile", outcome="caught up", seen=seen)
                if leads and not self._member():
                    await self._book.leave("reports")
                leads = self._member() and await self._book.lead("reports", lease)
                if not leads:
                    await asyncio.sleep(0.3)
                    continue
                last, reports = await self._venue.reports(seen, 1.0)
                for report in reports:
                    await self._apply(report)
                if last != seen:
                    await self._book.note_seen(last)
                await self._book.note_marks(await self._venue.prices())
            except TradingError as error:
                self._why = f"not reconciled with the venue yet: {error}"
                await asyncio.sleep(0.3)


_FINAL = frozenset({State.FILLED, State.CANCELLED, State.REJECTED, State.EXPIRED})
