"""What an instance is, whether it is ready, and how it stops."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from trading_bot.domain.traffic import Traffic
from trading_bot.ports import Controls, Probe


@dataclass(frozen=True)
class Identity:
    """Given by whatever starts the instance, never by the config file."""

    version: str
    release_id: str
    slot: str
    image: str
    instance: str


class Instance:
    """``needs``: what it is not ready without, but in maintenance for those that its desk ``waits`` for."""

    def __init__(
        self,
        identity: Identity,
        config_hash: str,
        needs: dict[str, Probe],
        waits: Collection[str],
        controls: Controls,
        traffic: Callable[[], Traffic | None],
    ) -> None:
        self.identity = identity
        self.config_hash = config_hash
        self.draining = False
        self.started_ms = int(time.time() * 1000)
        self._needs = needs
        self._waits = waits
        self._controls = controls
        self._traffic = traffic

    def not_ready(self) -> dict[str, str]:
        """Why the instance takes no orders: what is missing, and the reason. Empty when it is ready."""
        waits = self._waits if self._controls.maintenance() else ()
        reasons = {
            name: reason
            for name, probe in self._needs.items()
            if name not in waits and (reason := probe.reason()) is not None
        }
        if self.draining:
            reasons["instance"] = "draining"
        return reasons

    async def status(self) -> dict[str, Any]:
        identity, traffic = self.identity, self._traffic()
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started_ms / 1000))
        return {
            "version": identity.version,
            "release_id": identity.release_id,
            "slot": identity.slot,
            "instance": identity.instance,
            "image": identity.image,
            "config_hash": self.config_hash,
            "mode": await self._controls.mode(),
            "maintenance": self._controls.maintenance(),
            "features": await self._controls.features(),
            "hotfixes": self._controls.shown(),
            "traffic": None
            if traffic is None
            else {name: getattr(traffic, name) for name in ("stable", "canary", "salt", "cut", "shadow")},
            "started_at": started,
            "draining": self.draining,
            "ready": not self.not_ready(),
        }
