"""What an account has at stake, against its definitions."""

from __future__ import annotations

import pytest

from trading_bot.domain.exposure import Standing, standing, uses
from trading_bot.domain.limits import Limits
from trading_bot.domain.money import SCALE
from trading_bot.domain.position import account_from

RATE = SCALE // 5
LIMITS = Limits(
    100_000 * SCALE, SCALE, 10, 0, 0, 3 * SCALE, 3 * SCALE // 2, RATE, SCALE // 10, 0, 0, 0,
)  # fmt: skip


def account(**fields: int) -> Standing | None:
    marks = {"A": 20 * SCALE, "B": 5 * SCALE}
    text = {name.replace("__", ":"): str(value) for name, value in fields.items()}
    return standing(account_from(text), marks, RATE, 7)


def test_a_standing_is_what_its_definitions_say() -> None:
    found = account(
        cash=100 * SCALE, q__A=10 * SCALE, c__A=150 * SCALE, q__B=-4 * SCALE, c__B=-30 * SCALE,
        bq__A=SCALE, bn__A=20 * SCALE, sq__B=SCALE, sn__B=5 * SCALE, open=2, peak=200 * SCALE, day=7,
    )  # fmt: skip
    # Equity 100 + (200 - 150) + (-20 + 30); gross max(220, 200) + max(20, 25).
    assert found == Standing(220.0, 245.0, 160.0, 245 / 160, 160 / (245 * 0.2), 60.0, 0.2, 2)


def test_a_peak_of_another_day_is_none() -> None:
    found = account(cash=100 * SCALE, peak=200 * SCALE, day=6)
    assert found is not None
    assert found.drawdown == 0


def test_without_a_price_or_funds_there_is_no_standing() -> None:
    assert account(cash=SCALE, q__C=1, c__C=1) is None
    assert account(second=1) is None


def test_nothing_is_a_ratio_to_nothing() -> None:
    found = account(cash=0, sq__A=SCALE, sn__A=20 * SCALE)
    assert found is not None
    assert (found.position_size, found.leverage, found.margin_level, found.drawdown) == (20.0, None, 0.0, 0.0)
    assert [(use.rule, use.fraction) for use in uses(found, LIMITS)] == [
        ("max_leverage", float("inf")),
        ("min_margin_level", float("inf")),
        ("max_position_size", pytest.approx(0.0002)),
    ]


def test_uses_are_fractions_of_each_limit_the_most_used_first() -> None:
    now = Standing(50_000, 60_000, 40_000, 1.5, 40_000 / 12_000, 0, 0.08, 1)
    found = uses(now, LIMITS)
    assert [(use.rule, round(use.fraction, 4)) for use in found] == [
        ("max_drawdown", 0.8), ("max_position_size", 0.5), ("max_leverage", 0.5),
        ("min_margin_level", 0.45), ("max_open_orders", 0.1),
    ]  # fmt: skip
    assert uses(Standing(0, 0, 1, 0, None, 0, 0, 0), LIMITS) == []
    odd = Standing(1, 1, 1, 1, None, 0, 0, 0)
    assert [use.rule for use in uses(odd, LIMITS)] == ["max_leverage", "max_position_size"]
