"""The one way in for orders, whichever path they came by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec

from trading_bot.domain.admission import Admission, Code
from trading_bot.domain.lifecycle import State
from trading_bot.domain.order import Order, OrderRequest, ReplaceRequest, order_from, replacement_from
from trading_bot.domain.position import Account
from trading_bot.errors import Malformed, TradingError, Unavailable
from trading_bot.ports import CancelCode, Ledger, Log, OrderView, Probe

_OUTCOME = {
    Code.ACCEPTED: "accepted",
    Code.REFUSED: "refused",
    Code.CONFLICT: "conflict",
    Code.THROTTLED: "throttled",
    Code.HALTED: "halted",
    Code.NONE: "unknown",
    Code.DONE: "done",
    Code.MOVED: "done",
    Code.PENDING: "done",
}
PATIENCE = 4.0
"""Seconds that a request waits in maintenance: fewer than the load balancers wait for its answer."""
OUTCOMES = (*dict.fromkeys(_OUTCOME.values()), "again", "malformed", "unavailable", "error")

_NO_SUCH_ORDER = Admission(Code.NONE, False, 0, "", "")

Observe = Callable[[str, str, float], None]

Body = TypeVar("Body")
Some = TypeVar("Some", Order, Order | None)
Found = TypeVar("Found")


class Mirrored(Protocol):
    """Where copies of decided orders go, for a release on trial."""

    @property
    def on(self) -> bool: ...

    def take(
        self,
        account: str,
        path: str,
        body: bytes,
        outcome: str,
        order: Order | None,
        admission: Admission | None,
    ) -> None:
        """Copy what was decided. Returns at once and raises nothing."""


def outcome_of(admission: Admission) -> str:
    again = admission.again and admission.code is not Code.CONFLICT
    return "again" if again else _OUTCOME[admission.code]


def decode(body: bytes, type_: type[Body]) -> Body:
    """What ``body`` holds. Raises Malformed."""
    try:
        return msgspec.json.decode(body, type=type_)
    except msgspec.ValidationError as error:
        expected, _, where = str(error).partition(" - at `$.")
        raise Malformed({where.rstrip("`") or "body": expected}) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed({"body": f"JSON ({error})"}) from None


class OrderDesk:
    """Decides orders. ``observe(path, outcome, seconds)`` is told of each,
    ``nudge()`` of whatever there is to send.

    Without what it ``needs`` nothing is done. New orders ask ``intake`` as well, which cancels pass by.
    While ``maintenance()`` holds, a request waits up to PATIENCE for what is needed. Whether it had been
    decided when an answer was lost does not matter: an id is decided once.
    """

    def __init__(
        self,
        ledger: Ledger,
        needs: dict[str, Probe],
        observe: Observe,
        log: Log,
        nudge: Callable[[], None] = lambda: None,
        mirror: Mirrored | None = None,
        intake: dict[str, Probe] | None = None,
        maintenance: Callable[[], bool] = lambda: False,
    ) -> None:
        self._ledger = ledger
        self._needs = needs
        self._intake = {**needs, **(intake or {})}
        self._observe = observe
        self._log = log
        self._nudge = nudge
        self._mirror = mirror
        self._maintenance = maintenance
        self._back: asyncio.Task[None] | None = None
        self.on_conflict: Callable[[str, str], None] = lambda account, client_order_id: None
        self.closed = False
        self.in_flight = 0

    def check(self, *, new: bool = False) -> None:
        """Raises Unavailable while a dependency is away or after the desk closed."""
        if self.closed:
            raise Unavailable("instance", "draining")
        for dependency, probe in (self._intake if new else self._needs).items():
            reason = probe.reason()
            if reason is not None:
                raise Unavailable(dependency, reason)

    async def _patiently(self, ask: Callable[[], Awaitable[Found]]) -> Found:
        """What ``ask`` finds; in maintenance once nothing is missing, asked again with the same ids."""
        begun = 0.0
        while True:
            try:
                return await ask()
            except Unavailable as error:
                now = time.monotonic()
                begun = begun or now
                late = self.closed or now - begun >= PATIENCE
                if late or error.dependency not in self._needs or not self._maintenance():
                    raise
            # One look for all who wait.
            if self._back is None or self._back.done():
                self._back = asyncio.get_running_loop().create_task(self._usable(begun + PATIENCE))
            await asyncio.shield(self._back)

    async def _usable(self, until: float) -> None:
        """Return once nothing is missing, or ``until`` is over."""
        while True:
            await asyncio.sleep(0.02)
            missing = any(probe.reason() is not None for probe in self._needs.values())
            if not missing or time.monotonic() >= until or self.closed or not self._maintenance():
                return

    async def settled(self) -> None:
        """Return if nothing is missing. Raises as ``check``."""

        async def ask() -> None:
            self.check()

        await self._patiently(ask)

    async def order(self, account: str, client_order_id: str) -> OrderView | None:
        return await self._patiently(lambda: self._ledger.order(account, client_order_id))

    async def orders(self, account: str, count: int) -> list[OrderView]:
        return await self._patiently(lambda: self._ledger.orders(account, count))

    async def account(self, account: str) -> tuple[Account, dict[str, int]]:
        """The account and the last prices."""

        async def ask() -> tuple[Account, dict[str, int]]:
            return await self._ledger.account(account), await self._ledger.marks()

        return await self._patiently(ask)

    async def cancel(self, account: str, client_order_id: str, request_id: str) -> tuple[CancelCode, str]:
        """Never refused by a risk check, nor while trading is halted."""

        asked = 0

        async def ask() -> tuple[CancelCode, str]:
            nonlocal asked
            self.check()
            asked += 1
            return await self._ledger.cancel(account, client_order_id, request_id)

        code, state = await self._patiently(ask)
        if asked > 1 and code is CancelCode.DONE and state == State.CANCELLED:
            # It was the first one, whose answer was lost.
            code = CancelCode.CANCELLED
        self._log(
            "cancel", account=account, order=client_order_id, outcome=code.name.lower(), request=request_id
        )
        self._nudge()
        return code, state

    async def rehearse(self, account: str, body: bytes, request_id: str) -> tuple[Order, Admission]:
        """Decide without leaving a trace: what this version would say of a mirrored order."""
        order = order_from(account, decode(body, OrderRequest))
        self.check(new=True)
        return order, await self._ledger.admit(order, request_id, dry=True)

    async def submit(self, account: str, body: bytes, path: str, request_id: str) -> tuple[Order, Admission]:
        """Decide the order in ``body`` for ``account``.

        Raises Malformed, or Unavailable while a dependency is away or after the desk closed.
        """
        mirror = self._mirror if self._mirror is not None and self._mirror.on else None

        async def decide() -> tuple[Order, Admission]:
            order = order_from(account, decode(body, OrderRequest))
            self.check(new=True)
            return order, await self._ledger.admit(order, request_id, tell=mirror is not None)

        try:
            order, admission = await self._decide(account, path, request_id, decide)
        except Malformed:
            if mirror is not None:
                mirror.take(account, path, body, "malformed", None, None)
            raise
        if mirror is not None:
            mirror.take(account, path, body, outcome_of(admission), order, admission)
        return order, admission

    async def replace(
        self,
        account: str,
        client_order_id: str,
        body: bytes,
        path: str,
        request_id: str,
        *,
        dry: bool = False,
    ) -> tuple[str, Admission, str]:
        """Decide the order in ``body`` in the place of another: its id, the decision, and the other's state.

        Raises as ``submit``. The same again gets the same decision, whatever became of either meanwhile.
        """
        state = ""

        async def decide() -> tuple[Order | None, Admission]:
            nonlocal state
            request = decode(body, ReplaceRequest)
            self.check(new=True)
            admission = _NO_SUCH_ORDER
            order = None
            while True:
                replaced = await self._ledger.order(account, client_order_id)
                if replaced is None:
                    return order, admission
                order = replacement_from(request, replaced.order, replaced.total)
                admission, state = await self._ledger.replace(replaced, order, request_id, dry=dry)
                # It began to await, or awaits no more, since it was read: an order does each of these once.
                if admission.code is not Code.MOVED:
                    return order, admission

        if dry:
            order, admission = await decide()
        else:
            order, admission = await self._decide(account, path, request_id, decide, replaces=client_order_id)
        return order.client_order_id if order else "", admission, state

    async def _decide(
        self,
        account: str,
        path: str,
        request_id: str,
        decide: Callable[[], Awaitable[tuple[Some, Admission]]],
        **about: str,
    ) -> tuple[Some, Admission]:
        began = time.perf_counter()
        outcome = "error"
        self.in_flight += 1
        try:
            order, admission = await self._patiently(decide)
            if admission.code is Code.ACCEPTED:
                self._nudge()
            outcome = outcome_of(admission)
            refusal = admission.refusal
            if admission.code is Code.CONFLICT and order is not None:
                self.on_conflict(account, order.client_order_id)
            self._log(
                "order",
                account=account,
                order=order.client_order_id if order else "",
                outcome=outcome,
                path=path,
                request=request_id,
                **about,
                **({"rule": refusal.rule, "limit": refusal.limit, "value": refusal.value} if refusal else {}),
            )
            return order, admission
        except Malformed:
            outcome = "malformed"
            raise
        except TradingError as error:
            outcome = "unavailable" if isinstance(error, Unavailable) else "error"
            self._log(
                "order", account=account, outcome=outcome, path=path, request=request_id, reason=str(error)
            )
            raise
        finally:
            self.in_flight -= 1
            self._observe(path, outcome, time.perf_counter() - began)
