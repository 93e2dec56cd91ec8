"""What a person should hear of at once: from the ledger's events and from what accounts have at stake."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from trading_bot.domain.admission import refusal_from
from trading_bot.errors import TradingError
from trading_bot.ports import AlertBoard, Event, Log

SCHEMA = 1
QUEUE = 1000
KEEP = 10_000
"""How many alerts are kept to be looked at later."""

_LIMITS = frozenset(
    {"max_position_size", "max_order_notional", "max_open_orders", "max_leverage", "min_margin_level"}
)
_SWITCHES = {
    "trading.halted": ("trading_halted", "critical", "Trading is halted"),
    "trading.resumed": ("trading_resumed", "info", "Trading goes on"),
    "trading.degraded": ("trading_degraded", "critical", "Reduce-only for every account"),
    "trading.undegraded": ("trading_undegraded", "info", "Reduce-only is over"),
    "account.latched": ("drawdown_latched", "critical", "Past the largest drawdown: reduce-only"),
    "account.resumed": ("drawdown_resumed", "info", "May trade again after a drawdown"),
}


class Alerts:
    """Puts alerts on the board, each rule of an account once in ``interval`` at most, whoever saw it."""

    def __init__(
        self, board: AlertBoard, who: dict[str, str], settings: Callable[[], tuple[str, float]], log: Log
    ) -> None:
        """``settings`` gives the channel, and the interval in seconds."""
        self._board = board
        self._who = who
        self._settings = settings
        self._log = log
        self._queue: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue(QUEUE)
        self._quiet: dict[str, float] = {}
        self.told = 0
        self.dropped = 0

    def tell(
        self, rule: str, severity: str, account: str, message: str, *, once: str = "", **about: Any
    ) -> None:
        """Queue an alert. What was told within the interval is not told again; ``once`` names an occurrence
        that is to be told for itself."""
        key = f"{rule}:{account}:{once}"
        now = time.monotonic()
        if self._quiet.get(key, 0) > now:
            return
        if len(self._quiet) > QUEUE:
            self._quiet = {name: until for name, until in self._quiet.items() if until > now}
        interval = self._settings()[1]
        self._quiet[key] = now + interval
        line = {
            "schema": SCHEMA, "rule": rule, "severity": severity, "account": account, "message": message,
            "at": int(time.time() * 1000), **about, **self._who,
        }  # fmt: skip
        try:
            self._queue.put_nowait((key, line))
        except asyncio.QueueFull:
            self.dropped += 1

    def heard(self, events: Sequence[Event]) -> None:
        """Look at events of the ledger, each of them once."""
        for event in events:
            fields = event.fields
            kind, account = fields["e"], fields.get("account", "")
            if kind in _SWITCHES:
                rule, severity, message = _SWITCHES[kind]
                reason = {name: fields[name] for name in ("by", "reason") if name in fields}
                of = "" if account == "all" else account
                self.tell(rule, severity, of, message, once=event.id, **reason)
            elif kind == "order.refused":
                self._refused(account, fields)

    def _refused(self, account: str, fields: dict[str, str]) -> None:
        refusal = refusal_from(fields["rule"], fields["limit"], fields["value"])
        about: dict[str, Any] = {"order": fields["order"], "limit": refusal.limit, "value": refusal.value}
        if refusal.rule in _LIMITS:
            message = "An order was refused at a limit"
            about |= {"once": refusal.rule, "limit_name": refusal.rule}
            self.tell("limit_hit", "warning", account, message, **about)
        elif refusal.rule == "duplicate_intent":
            message = "The same intent a second time was refused"
            self.tell("duplicate_intent", "warning", account, message, **about)

    def conflict(self, account: str, client_order_id: str) -> None:
        """Another order came under an id that names one already."""
        message = "Another order under a used client order id was refused"
        self.tell("duplicate_id", "warning", account, message, order=client_order_id)

    async def run(self) -> None:
        while True:
            key, line = await self._queue.get()
            channel, interval = self._settings()
            try:
                if await self._board.tell(channel, key, line, interval, KEEP):
                    self.told += 1
                    self._log("alert", **{k: v for k, v in line.items() if k not in ("at", *self._who)})
            except TradingError:
                # It is still news once the ledger is back.
                await asyncio.sleep(0.5)
                if self._queue.empty():
                    self._queue.put_nowait((key, line))
                else:
                    self.dropped += 1
