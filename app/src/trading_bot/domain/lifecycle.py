"""The states of an order and the only ways from one to another."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    ACCEPTED = "accepted"  # decided, written, not sent
    DISPATCHED = "dispatched"  # about to be sent, or sent and not yet answered
    UNKNOWN = "unknown"  # sent without an answer: only the venue knows
    OPEN = "open"  # rests at the venue
    PARTIALLY_FILLED = "partially_filled"
    FILLED = "filled"
    CANCELLED = "cancelled"
    REJECTED = "rejected"  # by a risk check, or by the venue
    EXPIRED = "expired"


FINAL = frozenset({State.FILLED, State.CANCELLED, State.REJECTED, State.EXPIRED})

_ENDS = frozenset({State.PARTIALLY_FILLED, State.FILLED, State.CANCELLED, State.REJECTED, State.EXPIRED})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.ACCEPTED: frozenset({State.DISPATCHED, State.CANCELLED, State.EXPIRED}),
    State.DISPATCHED: _ENDS | {State.OPEN, State.UNKNOWN},
    State.UNKNOWN: _ENDS | {State.OPEN, State.DISPATCHED},
    State.OPEN: _ENDS - {State.REJECTED},
    State.PARTIALLY_FILLED: frozenset({State.FILLED, State.CANCELLED, State.EXPIRED}),
    State.FILLED: frozenset(),
    State.CANCELLED: frozenset(),
    State.REJECTED: frozenset(),
    State.EXPIRED: frozenset(),
}
"""``settle.lua`` holds the same table; a test compares them."""


def legal(before: State, after: State) -> bool:
    return after in TRANSITIONS[before]
