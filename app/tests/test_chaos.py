"""The short form of the chaos run, with the same judge. ``python tests/chaos.py`` is the long one."""

from __future__ import annotations

from pathlib import Path

from chaos import run

from servers import need


def test_nothing_is_lost_doubled_or_past_a_limit_while_everything_is_killed(tmp_path: Path) -> None:
    need("redis-server")
    need("nats-server")
    result = run(tmp_path, count=1200, rate=100, seed=3, pause=1.0)
    assert result["ok"], result
    assert all(result["kills"].values()), result["kills"]
    assert result["judge"]["accepted"] > 100
    assert result["ledger"]["fills"] > 50
    assert len(result["accepted_by"]) == 2, result["accepted_by"]
