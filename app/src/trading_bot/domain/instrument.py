"""What can be traded, and in which steps."""

from __future__ import annotations

import msgspec

from trading_bot.domain import money
from trading_bot.domain.order import valid_symbol


class Instrument(msgspec.Struct, frozen=True):
    """Price step, quantity step, smallest and largest quantity; scaled integers."""

    symbol: str
    tick: int
    lot: int
    minimum: int
    maximum: int

    def text(self) -> str:
        """As the ledger holds it."""
        return f"{self.tick}|{self.lot}|{self.minimum}|{self.maximum}"


def instruments_from(text: str) -> list[Instrument]:
    """From ``SYMBOL:tick:lot:minimum:maximum`` with commas between. Raises ValueError.

    Tick times lot has to be a multiple of 10**-8, so that every notional is exact.
    """
    instruments = []
    for part in text.split(","):
        symbol, *numbers = part.strip().split(":")
        values = [money.parse(number) for number in numbers]
        if not valid_symbol(symbol) or len(values) != 4 or not all(values):
            raise ValueError(f"{part.strip()!r} is not SYMBOL:tick:lot:minimum:maximum")
        tick, lot, minimum, maximum = (value or 0 for value in values)
        if tick * lot % money.SCALE or minimum % lot or maximum % lot or maximum < minimum:
            raise ValueError(f"{part.strip()!r}: tick x lot, minimum or maximum do not fit")
        instruments.append(Instrument(symbol, tick, lot, minimum, maximum))
    return instruments
