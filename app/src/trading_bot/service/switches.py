"""The fleet-wide switches: halt, degradation, features, hotfixes. Kept in the ledger, followed by all."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from trading_bot.config import Risk
from trading_bot.domain.features import REGISTRY, choose
from trading_bot.errors import AccessDenied, Malformed, TradingError
from trading_bot.ports import Log, Panel
from trading_bot.service import hotfix
from trading_bot.service.hotfix import Hotfix, Signed, Verify

INTERVAL = 0.4
"""How often the panel is read even if no change was announced; below the second that is promised."""
LONGEST_MAINTENANCE = 60
"""Seconds. Whoever began one and never came back leaves no fleet that waits for ever."""


class Switches:
    """``ports.Controls`` and everything that changes them. ``on_change`` is told after each change."""

    def __init__(
        self,
        panel: Panel,
        risk: Callable[[], Risk],
        verify: Verify | None,
        announce: Callable[[], Awaitable[None]],
        on_change: Callable[[], None],
        log: Log,
    ) -> None:
        self._panel = panel
        self._risk = risk
        self._verify = verify
        self._announce = announce
        self._on_change = on_change
        self._log = log
        self._fields: dict[str, str] = {}
        self._nudged = asyncio.Event()
        self._read: dict[str, Hotfix | None] = {}
        self.hotfixes: list[Hotfix] = []

    async def mode(self) -> str:
        try:
            self._take(await self._panel.read())
        except TradingError:
            return "unknown"
        if self._fields.get("halted") == "1":
            return "halted"
        return "reduce_only" if self._fields.get("degraded") == "1" else "normal"

    async def features(self) -> dict[str, bool]:
        return {name: self.on(name) for name in REGISTRY}

    def on(self, feature: str) -> bool:
        return self._fields.get(f"feature:{feature}") != "0"

    def in_force(self, name: str) -> bool:
        """``halted`` or ``degraded``, as last read."""
        return self._fields.get(name) == "1"

    def maintenance(self) -> bool:
        """Whether Redis or NATS is being restarted on purpose just now, as last read."""
        until = self._fields.get("maintenance", "")
        return until.isdecimal() and time.time() * 1000 < int(until)

    def nudge(self) -> None:
        """Somebody announced a change."""
        self._nudged.set()

    async def run(self) -> None:
        """Follow the panel for ever."""
        while True:
            # While the ledger is away what was last known stays in force; no order is decided meanwhile.
            with contextlib.suppress(TradingError):
                self._take(await self._panel.read())
            self._nudged.clear()
            try:
                async with asyncio.timeout(INTERVAL):
                    await self._nudged.wait()
            except TimeoutError:
                continue

    def _take(self, fields: dict[str, str]) -> None:
        now = time.time()
        active = []
        for name, text in fields.items():
            if name.startswith("hotfix:"):
                fix = self._hotfix(text)
                if fix is not None and fix.payload.expires > now:
                    active.append(fix)
        if fields != self._fields or active != self.hotfixes:
            before = self._fields
            self._fields, self.hotfixes = fields, active
            changed = sorted(k for k in fields.keys() | before.keys() if fields.get(k) != before.get(k))
            self._log("switches", changed=changed, hotfixes=[fix.payload.id for fix in active])
            self._on_change()

    def _hotfix(self, text: str) -> Hotfix | None:
        """Verified here too: whoever can write to the ledger is not thereby one who may sign."""
        if text not in self._read:
            self._read[text] = None
            if self._verify is not None:
                try:
                    self._read[text] = hotfix.read(msgspec.json.decode(text, type=Signed), self._verify)
                except (Malformed, msgspec.DecodeError, OSError) as error:
                    self._log("hotfix", outcome="ignored", reason=str(error))
        return self._read[text]

    async def _change(
        self, event: str, who: str, why: str, request_id: str, fields: Mapping[str, str], account: str = ""
    ) -> None:
        await self._panel.change(event, who, why, request_id, fields, account)
        self._take(await self._panel.read())
        await self._announce()

    async def halt(self, who: str, why: str, request_id: str) -> None:
        await self._change("trading.halted", who, why, request_id, {"halted": "1"})

    async def resume(self, who: str, why: str, request_id: str, account: str = "") -> None:
        """Lift the halt, or an account's drawdown latch. Needs a reason."""
        if not why.strip():
            raise Malformed({"reason": "why trading may go on"})
        if account:
            await self._change("account.resumed", who, why, request_id, {}, account)
        else:
            await self._change("trading.resumed", who, why, request_id, {"halted": ""})

    async def degrade(self, on: bool, who: str, why: str, request_id: str) -> None:
        event = "trading.degraded" if on else "trading.undegraded"
        await self._change(event, who, why, request_id, {"degraded": "1" if on else ""})

    async def maintain(self, seconds: int, who: str, why: str, request_id: str) -> None:
        """For so long orders wait for Redis and NATS; 0 ends it. Raises Malformed."""
        if not 0 <= seconds <= LONGEST_MAINTENANCE:
            raise Malformed({"seconds": f"a whole number from 0 to {LONGEST_MAINTENANCE}"})
        until = str(int((time.time() + seconds) * 1000)) if seconds else ""
        event = "maintenance.begun" if seconds else "maintenance.ended"
        await self._change(event, who, why, request_id, {"maintenance": until})

    async def switch(
        self, on: bool, names: list[str] | None, who: str, why: str, request_id: str
    ) -> list[str]:
        """Switch features; the names that were meant. Raises Malformed and then changes none."""
        chosen, errors = choose(names)
        if errors:
            raise Malformed(errors)
        fields = {f"feature:{name}": "" if on else "0" for name in chosen}
        await self._change("features.enabled" if on else "features.disabled", who, why, request_id, fields)
        return chosen

    async def apply(self, signed: Signed, who: str, request_id: str) -> Hotfix:
        """Raises AccessDenied where no key is trusted, Malformed for a hotfix that cannot be applied."""
        if self._verify is None:
            raise AccessDenied(403, "server.hotfix_key_file is not set: no hotfix is trusted here")
        fix = hotfix.read(signed, self._verify)
        errors = hotfix.untimely(fix.payload, time.time()) | hotfix.loosening(self._risk(), fix)
        if errors:
            raise Malformed(errors)
        stored = msgspec.json.encode(signed).decode()
        name = f"hotfix:{fix.payload.id}"
        known = (await self._panel.read()).get(name)
        if known is not None and known != stored:
            raise Malformed({"id": "one that no other hotfix has"})
        await self._change("hotfix.applied", who, fix.payload.reason, request_id, {name: stored})
        return fix

    async def revert(self, id: str, who: str, why: str, request_id: str) -> None:
        if f"hotfix:{id}" not in await self._panel.read():
            raise Malformed({"id": "that of a hotfix that was applied"})
        await self._change("hotfix.reverted", who, why, request_id, {f"hotfix:{id}": ""})

    def shown(self) -> list[dict[str, Any]]:
        return [
            {
                "id": fix.payload.id,
                "settings": fix.payload.settings,
                "reason": fix.payload.reason,
                "expires": fix.payload.expires,
            }
            for fix in self.hotfixes
        ]
