"""The one way in for orders, whichever path they came by."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import msgspec

from trading_bot.domain.admission import Admission, Code
from trading_bot.domain.order import Order, OrderRequest, order_from
from trading_bot.domain.position import Account
from trading_bot.errors import Malformed, TradingError, Unavailable
from trading_bot.ports import CancelCode, Ledger, Log, OrderView, Probe

_OUTCOME = {
    Code.ACCEPTED: "accepted",
    Code.REFUSED: "refused",
    Code.CONFLICT: "conflict",
    Code.THROTTLED: "throttled",
    Code.HALTED: "halted",
}
OUTCOMES = (*_OUTCOME.values(), "again", "malformed", "unavailable", "error")

Observe = Callable[[str, str, float], None]


Body = TypeVar("Body")


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
    ``nudge()`` of whatever there is to send."""

    def __init__(
        self,
        ledger: Ledger,
        needs: dict[str, Probe],
        observe: Observe,
        log: Log,
        nudge: Callable[[], None] = lambda: None,
    ) -> None:
        self._ledger = ledger
        self._needs = needs
        self._observe = observe
        self._log = log
        self._nudge = nudge
        self.closed = False
        self.in_flight = 0

    def check(self) -> None:
        """Raises Unavailable while a dependency is away or after the desk closed."""
        if self.closed:
            raise Unavailable("instance", "draining")
        for dependency, probe in self._needs.items():
            reason = probe.reason()
            if reason is not None:
                raise Unavailable(dependency, reason)

    async def order(self, account: str, client_order_id: str) -> OrderView | None:
        return await self._ledger.order(account, client_order_id)

    async def orders(self, account: str, count: int) -> list[OrderView]:
        return await self._ledger.orders(account, count)

    async def account(self, account: str) -> tuple[Account, dict[str, int]]:
        """The account and the last prices."""
        return await self._ledger.account(account), await self._ledger.marks()

    async def cancel(self, account: str, client_order_id: str, request_id: str) -> tuple[CancelCode, str]:
        """Never refused by a risk check, nor while trading is halted."""
        self.check()
        code, state = await self._ledger.cancel(account, client_order_id, request_id)
        self._log(
            "cancel", account=account, order=client_order_id, outcome=code.name.lower(), request=request_id
        )
        self._nudge()
        return code, state

    async def rehearse(self, account: str, body: bytes, request_id: str) -> tuple[Order, Admission]:
        """Decide without leaving a trace: what this version would say of a mirrored order."""
        order = order_from(account, decode(body, OrderRequest))
        self.check()
        return order, await self._ledger.admit(order, request_id, dry=True)

    async def submit(self, account: str, body: bytes, path: str, request_id: str) -> tuple[Order, Admission]:
        """Decide the order in ``body`` for ``account``.

        Raises Malformed, or Unavailable while a dependency is away or after the desk closed.
        """
        began = time.perf_counter()
        outcome = "error"
        self.in_flight += 1
        try:
            order = order_from(account, decode(body, OrderRequest))
            self.check()
            admission = await self._ledger.admit(order, request_id)
            again = admission.again and admission.code is not Code.CONFLICT
            if admission.code is Code.ACCEPTED:
                self._nudge()
            outcome = "again" if again else _OUTCOME[admission.code]
            refusal = admission.refusal
            self._log(
                "order",
                account=account,
                order=order.client_order_id,
                outcome=outcome,
                path=path,
                request=request_id,
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
