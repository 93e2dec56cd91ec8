"""Recorded ticks, read whole and checked before the first is replayed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from trading_bot.domain import money
from trading_bot.domain.instrument import Instrument

FIELDS = ("time", "symbol", "price")


@dataclass(frozen=True)
class Tick:
    """A recorded price. ``at`` is in ms."""

    at: int
    symbol: str
    price: int


@dataclass(frozen=True)
class Replay:
    """Ticks in their order, ``speed`` times as fast as they were recorded."""

    ticks: tuple[Tick, ...]
    speed: float
    loop: bool

    def schedule(self) -> Iterator[tuple[float, Tick]]:
        """Each tick with the seconds after the start at which it is due.

        A loop begins again after the mean distance between two ticks, and so never at the same moment.
        """
        first, last = self.ticks[0].at, self.ticks[-1].at
        mean = max(1, (last - first) // max(1, len(self.ticks) - 1))
        before = 0
        while True:
            for tick in self.ticks:
                yield (before + tick.at - first) / 1000 / self.speed, tick
            if not self.loop:
                return
            before += last - first + mean

    def first_prices(self) -> dict[str, int]:
        """The price at which each symbol begins."""
        prices: dict[str, int] = {}
        for tick in self.ticks:
            prices.setdefault(tick.symbol, tick.price)
        return prices


def read(path: str, text: str, instruments: Mapping[str, Instrument]) -> tuple[Tick, ...]:
    """The ticks in ``text``: JSON lines where the first line begins with a brace, else CSV with a header.

    Both have time (whole milliseconds, or ISO 8601 with an offset), symbol and price. Raises ValueError that
    names the file, the line, what was expected and what was found.
    """
    ticks: list[Tick] = []
    rows = _json_rows(path, text) if text.lstrip().startswith("{") else _csv_rows(path, text)
    for number, row in rows:
        tick = _tick(row, instruments, f"{path}: line {number}")
        if ticks and tick.at < ticks[-1].at:
            raise ValueError(
                f"{path}: line {number}: time: expected {ticks[-1].at} ms or later, found {tick.at} ms"
            )
        ticks.append(tick)
    if not ticks:
        raise ValueError(f"{path}: expected at least one tick, found none")
    return tuple(ticks)


def _json_rows(path: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield number, msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise ValueError(f"{path}: line {number}: expected a JSON object, found {error}") from None


def _csv_rows(path: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    found = [name.strip() for name in reader.fieldnames or ()]
    if not set(FIELDS) <= set(found):
        raise ValueError(
            f"{path}: line 1: expected a header with {', '.join(FIELDS)},"
            f" found {', '.join(found) or 'nothing'}"
        )
    reader.fieldnames = found
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: expected CSV, found {error}") from None


def _tick(row: Mapping[str, Any], instruments: Mapping[str, Instrument], where: str) -> Tick:
    values = {name: str(row[name]).strip() if row.get(name) is not None else "" for name in FIELDS}
    instrument = instruments.get(values["symbol"])
    if instrument is None:
        raise ValueError(
            f"{where}: symbol: expected one of {', '.join(instruments)}, found {values['symbol']!r}"
        )
    at = _milliseconds(values["time"])
    if at is None:
        raise ValueError(
            f"{where}: time: expected whole milliseconds, or such as 2026-01-31T12:00:00.250Z,"
            f" found {values['time']!r}"
        )
    price = money.parse(values["price"])
    if not price or price % instrument.tick:
        raise ValueError(
            f"{where}: price: expected a positive multiple of {money.show(instrument.tick)},"
            f" found {values['price']!r}"
        )
    return Tick(at, instrument.symbol, price)


def _milliseconds(text: str) -> int | None:
    if text.isascii() and text.isdigit() and len(text) <= 15:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    # Whole milliseconds, exactly: a float of seconds would round.
    since = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000
