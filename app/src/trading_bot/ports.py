"""What the service needs of the outside world."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Literal, Protocol

import msgspec

from trading_bot.domain.admission import Admission, Facts
from trading_bot.domain.audit import OrderFields
from trading_bot.domain.instrument import Instrument
from trading_bot.domain.lifecycle import State
from trading_bot.domain.limits import Limits
from trading_bot.domain.order import Order
from trading_bot.domain.position import Account

Role = Literal["trade", "observe", "operate"]


class Event(msgspec.Struct, frozen=True):
    """A line of the outbox. ``id`` is unique for ever and rises; it is the key of deduplication."""

    id: str
    fields: dict[str, str]


class Fill(msgspec.Struct, frozen=True):
    """One execution. ``trade`` is unique at its venue; amounts are scaled; ``at`` is in ms."""

    trade: str
    quantity: int
    price: int
    fee: int
    at: int


class Report(msgspec.Struct, frozen=True):
    """What a venue says of one order: its state, what was filled in all, and fills.

    ``fills`` may be some of them; then ``filled`` tells the ledger that it is behind. A report of nothing
    but fills has neither.
    """

    account: str
    client_order_id: str
    state: State | None
    filled: int | None
    fills: tuple[Fill, ...] = ()
    reason: str = ""


class OrderView(msgspec.Struct, frozen=True):
    """An order as the ledger holds it."""

    order: Order
    state: State
    at: int
    version: str
    slot: str
    filled: int
    reason: str
    rule: str
    limit: str
    value: str
    cancel_wanted: bool
    total: int
    """What is wanted in all: the order's own quantity, and ``before``."""
    before: int
    """What the orders that it replaces have filled."""
    awaits: str
    """The order whose end it awaits before it is sent."""
    replaces: str
    replaced_by: str


class CancelCode(IntEnum):
    """The first element of what ``cancel.lua`` returns."""

    CANCELLED = 1
    WANTED = 2
    DONE = 3
    NONE = 4
    THROTTLED = 5


class SettleCode(IntEnum):
    """The first element of what ``settle.lua`` returns."""

    APPLIED = 1
    NONE = 2
    FENCED = 3
    BEHIND = 4


class Task(msgspec.Struct, frozen=True):
    """An order that this instance holds for a while. ``fence`` names this holding."""

    order: Order
    fence: int
    ask_first: bool
    cancel_wanted: bool
    sent_ms_ago: int
    filled: int


class Ledger(Protocol):
    """The one place where orders are decided. Every method raises Unavailable while it is away."""

    def admit(
        self, order: Order, request_id: str, /, *, dry: bool = False, tell: bool = False
    ) -> Awaitable[Admission]:
        """Decide ``order`` in one atomic step; the same order again gets the same decision.

        ``dry`` decides without leaving a trace. ``tell`` asks for the facts that it was decided from.
        """

    async def replace(
        self, replaced: OrderView, order: Order, request_id: str, *, dry: bool = False
    ) -> tuple[Admission, str]:
        """Decide ``order``, whose quantity is what is wanted in all, in the place of ``replaced``; the
        decision and the state of ``replaced``, which stays as it was unless the order is accepted."""

    async def judge(self, order: Order, facts: Facts, limits: Limits) -> Admission | None:
        """What ``order`` gets from ``facts`` under ``limits``, without a trace; None where more is needed to
        decide it."""

    async def cancel(self, account: str, client_order_id: str, request_id: str) -> tuple[CancelCode, str]:
        """Cancel, or ask for it; the code and the order's state."""

    async def order(self, account: str, client_order_id: str) -> OrderView | None: ...

    async def orders(self, account: str, count: int) -> list[OrderView]:
        """The latest accepted orders, newest first."""

    async def account(self, account: str) -> Account: ...

    async def marks(self) -> dict[str, int]: ...


class Book(Protocol):
    """The ledger as the dispatcher uses it."""

    async def due(self, count: int) -> list[tuple[str, str]]:
        """(account, client order id) of orders that should be looked at, the longest due first."""

    async def take(self, account: str, client_order_id: str, lease: float) -> Task | None:
        """Hold an order for ``lease`` seconds; None if another instance has it or it is done."""

    async def resend(self, task: Task) -> bool:
        """Note that it is about to be sent again; False if another instance has it now."""

    async def settle(
        self,
        account: str,
        client_order_id: str,
        state: State | None,
        fills: Sequence[Fill],
        *,
        filled: int | None = None,
        fence: int | None = None,
        again_in: float | None = None,
        reason: str = "",
    ) -> tuple[SettleCode, int, int]:
        """Apply what the venue says; how, how many fills were new, and how many executions were doubled."""

    async def lead(self, what: str, lease: float) -> bool:
        """Take or renew a lease that one instance at a time holds."""

    async def leave(self, what: str) -> None:
        """Give a lease back, so that another instance goes on at once."""

    async def seen(self) -> int | None:
        """The number of the venue's last report that was applied."""

    async def note_seen(self, number: int) -> None: ...

    async def note_marks(self, marks: Mapping[str, tuple[int, int]]) -> None:
        """Symbol to (price, ms); an older mark does not replace a newer one."""

    async def note_instruments(self, instruments: Iterable[Instrument], *, replace: bool) -> None: ...


class View(msgspec.Struct, frozen=True):
    """An account at one instant: the lines of the audit up to it, and what the ledger holds. ``whole`` is
    False where there are more lines than were asked for; then there are only lines."""

    lines: list[tuple[str, dict[str, str]]]
    whole: bool
    fields: dict[str, str]
    fills: int
    orders: dict[str, OrderFields]


class Archive(Protocol):
    """The audit, and how far the ledger was verified against it."""

    async def lead(self, what: str, lease: float) -> bool:
        """Take or renew a lease that one instance at a time holds."""

    async def leave(self, what: str) -> None: ...

    async def lines(self, after: str, count: int) -> list[tuple[str, dict[str, str]]]:
        """Id and fields of the next lines of the audit."""

    async def inspect(self, account: str, orders: Sequence[str], after: str, count: int) -> View: ...

    async def begins(self) -> bool:
        """Whether the audit has its first line still."""

    async def limits(self) -> dict[str, str]:
        """Every set of limits that was ever in force, by its name."""

    async def progress(self) -> bytes | None: ...

    async def told(self, accounts: Sequence[str]) -> list[bytes | None]:
        """What ``keep`` was given for each account."""

    async def keep(
        self,
        what: str,
        accounts: Mapping[str, bytes],
        findings: Sequence[Mapping[str, str]],
        progress: bytes = b"",
    ) -> bool:
        """Keep all of it, with a line in the audit for each finding; False without the lease ``what``.

        Without ``progress`` that stays as it was.
        """


class Venue(Protocol):
    """An exchange. Methods raise VenueTimeout where the outcome cannot be known."""

    @property
    def name(self) -> str: ...

    async def submit(self, order: Order, deadline_ms: int) -> Report:
        """Send an order; the venue does nothing with it after ``deadline_ms``. Raises VenueRefused."""

    async def query(self, order: Order) -> Report | None:
        """What became of an order, with all its fills; None if the venue has none by that id."""

    async def cancel(self, order: Order) -> Report | None: ...

    async def reports(self, after: int, wait: float) -> tuple[int, list[Report]]:
        """Reports with numbers above ``after``, and the number of the last; waits for the first."""

    async def head(self) -> int:
        """The number of the latest report."""

    async def prices(self) -> dict[str, tuple[int, int]]:
        """The last prices and their ms by symbol, from a venue that has to be asked; empty from one that
        publishes them."""

    async def instruments(self) -> list[Instrument]: ...

    async def close(self) -> None: ...


class Outbox(Protocol):
    """Events that were written with the decisions they tell of, waiting to be published."""

    async def claim(self, count: int) -> Sequence[Event] | None:
        """The oldest events, or None while another instance holds the lease."""

    async def after(self, id: str, count: int) -> Sequence[Event]:
        """Events behind ``id``, whoever holds the lease."""

    async def settle(self, ids: Sequence[str]) -> None:
        """Forget published events."""

    async def release(self) -> None:
        """Let go of the lease, so that another instance goes on at once."""

    async def wait(self, seconds: float) -> None:
        """Return when there may be something to claim, or after ``seconds``."""

    async def pending(self) -> tuple[int, float]:
        """How many events wait, and for how many seconds the oldest."""


class Unanswered(Protocol):
    """Orders that were sent and about which the venue has said nothing yet."""

    async def unanswered(self, within: float) -> list[float]:
        """The age in seconds since each was sent, of those that are looked at again ``within`` seconds."""


class Batch(msgspec.Struct, frozen=True):
    """Events as they were stored, their numbers as their ids. None at all says that nothing happened for a
    while; ``gap`` that what lay between can no longer be told. ``last`` is where to go on."""

    events: tuple[Event, ...]
    last: int
    gap: bool


class Tail(Protocol):
    """The events that were published, of whichever instance."""

    def follow(self, account: str, after: int | None, idle: float) -> AsyncGenerator[Batch, None]:
        """The account's events with numbers above ``after``, or from now on; at least every ``idle`` seconds
        something. Raises Unavailable when the source is away."""


class Audit(Protocol):
    """Every decision and who changed what, kept for a time."""

    async def trim(self, keep_seconds: float) -> int:
        """Forget lines older than that; how many. A few that are older may stay."""


class Publisher(Protocol):
    """The bus that events go to."""

    async def publish(self, events: Sequence[Event]) -> list[str]:
        """Publish in order; the ids that are known to be stored. Raises Unavailable."""


class Feed(Protocol):
    """Where metrics are published and kept."""

    async def publish(self, channel: str, line: Mapping[str, Any], keep_seconds: float) -> None: ...


class AlertBoard(Protocol):
    """Where alerts are published and kept."""

    async def tell(self, channel: str, key: str, line: Mapping[str, Any], quiet: float, keep: int) -> bool:
        """False, and nothing is told, if ``key`` was told within ``quiet`` seconds by any instance."""


class Accounts(Protocol):
    """All accounts, to be looked over."""

    def scan(self, count: int) -> AsyncGenerator[list[str], None]:
        """The names of all accounts, at most ``count`` at once, or none for a while; some may come twice."""

    async def remember(self, names: Sequence[str]) -> None:
        """Note that there are such accounts."""

    async def read(self, names: Sequence[str]) -> list[tuple[str, Account]]: ...

    async def marks(self) -> dict[str, int]: ...

    async def lead(self, seconds: float) -> bool:
        """Whether it is this instance that looks them over."""

    async def note(self, summary: Mapping[str, Any], seconds: float) -> None:
        """Keep what was found for every instance to show, for so long."""

    async def noted(self) -> dict[str, Any]: ...


class Probe(Protocol):
    """A dependency's state, as known now, without asking."""

    def reason(self) -> str | None:
        """None while it is usable, else why it is not."""


class Panel(Protocol):
    """Where the fleet-wide switches are kept."""

    async def read(self) -> dict[str, str]: ...

    async def change(
        self, event: str, who: str, why: str, request_id: str, fields: Mapping[str, str], account: str = ""
    ) -> None:
        """Set fields (an empty value removes one) and write who and why to the audit, in one step. With an
        ``account`` its drawdown latch is lifted."""


class Controls(Protocol):
    """The fleet-wide switches, as last known."""

    async def mode(self) -> str:
        """normal, reduce_only or halted; unknown while the ledger is away."""

    async def features(self) -> dict[str, bool]:
        """Every feature of this version, and whether it is on."""

    def maintenance(self) -> bool:
        """Whether orders wait for Redis and NATS just now, because they are restarted on purpose."""

    def shown(self) -> list[dict[str, Any]]:
        """The hotfixes in force."""


class Access(Protocol):
    """Who may do what."""

    def require(self, authorization: str, role: Role, account: str | None = None, /) -> str:
        """The token's name. Raises AccessDenied unless it has the role and, if given, the account."""


class Log(Protocol):
    def __call__(self, event: str, /, **fields: Any) -> None:
        """Write one line."""
