"""What the service needs of the outside world."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Literal, Protocol

import msgspec

from trading_bot.domain.admission import Admission
from trading_bot.domain.order import Order

Role = Literal["trade", "observe", "operate"]


class Event(msgspec.Struct, frozen=True):
    """A line of the outbox. ``id`` is unique for ever and rises; it is the key of deduplication."""

    id: str
    fields: dict[str, str]


class Ledger(Protocol):
    """The one place where orders are decided. Every method raises Unavailable while it is away."""

    def admit(self, order: Order, request_id: str) -> Awaitable[Admission]:
        """Decide ``order`` in one atomic step; the same order again gets the same decision."""


class Outbox(Protocol):
    """Events that were written with the decisions they tell of, waiting to be published."""

    async def claim(self, count: int) -> Sequence[Event] | None:
        """The oldest events, or None while another instance holds the lease."""

    async def settle(self, ids: Sequence[str]) -> None:
        """Forget published events."""

    async def release(self) -> None:
        """Let go of the lease, so that another instance goes on at once."""

    async def wait(self, seconds: float) -> None:
        """Return when there may be something to claim, or after ``seconds``."""

    async def pending(self) -> int:
        """How many events wait."""


class Publisher(Protocol):
    """The bus that events go to."""

    async def publish(self, events: Sequence[Event]) -> list[str]:
        """Publish in order; the ids that are known to be stored. Raises Unavailable."""


class Probe(Protocol):
    """A dependency's state, as known now, without asking."""

    def reason(self) -> str | None:
        """None while it is usable, else why it is not."""


class Controls(Protocol):
    """The fleet-wide switches, as last known."""

    async def mode(self) -> str:
        """normal, reduce_only or halted; unknown while the ledger is away."""

    async def features(self) -> dict[str, bool]:
        """Every feature of this version, and whether it is on."""


class Access(Protocol):
    """Who may do what."""

    def require(self, authorization: str, role: Role, account: str | None = None, /) -> object:
        """Raises AccessDenied unless the header's token has the role and, if given, the account."""


class Log(Protocol):
    def __call__(self, event: str, /, **fields: Any) -> None:
        """Write one line."""
