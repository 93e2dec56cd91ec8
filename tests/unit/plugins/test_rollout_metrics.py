"""What a load balancer tells Prometheus of a rollout."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.lease import Lock
from ansible.module_utils.rollout_metrics import ENDED, rollout_series
from ansible.module_utils.state_files import stamp
from ansible.module_utils.traffic import Traffic

NOW = 1_795_000_000.0
CANARY = Traffic("blue", "green", "r1", 500)
BEGUN: dict[str, Any] = {
    "id": "r1",
    "phase": "stage",
    "stage": "5%",
    "started_at": stamp(NOW - 60),
    "updated_at": stamp(NOW - 30),
    "paused": False,
}


def lock(rollout: str) -> Lock:
    return Lock("ann", 1, rollout, "canary", 15, NOW - 60, NOW, NOW + 15, 1.0, "boot")


def series(rollout: dict[str, Any] | None, held: Lock | None = None) -> dict[str, str]:
    text = rollout_series(CANARY, rollout, held)
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def test_a_rollout_tells_when_it_began_and_where_it_is() -> None:
    found = series(BEGUN, lock("r1"))
    assert found["trading_canary_cut"] == "500"
    assert found['trading_rollout_info{rollout="r1",stage="5%",paused="0"}'] == "1"
    assert found['trading_rollout_started_timestamp_seconds{rollout="r1"}'] == f"{NOW - 60:.3f}"


def test_it_was_last_heard_of_at_the_locks_last_heartbeat() -> None:
    assert series(BEGUN, lock("r1"))['trading_rollout_heard_timestamp_seconds{rollout="r1"}'] == f"{NOW:.3f}"


def test_one_that_was_left_behind_was_last_heard_of_when_it_last_wrote() -> None:
    for held in (None, lock("another")):
        assert series(BEGUN, held)['trading_rollout_heard_timestamp_seconds{rollout="r1"}'] == f"{NOW - 30:.3f}"


def test_one_that_has_ended_or_never_was_has_no_figures() -> None:
    for rollout in (None, {}, *({**BEGUN, "phase": phase} for phase in ENDED)):
        assert not [name for name in series(rollout) if name.startswith("trading_rollout")]


def test_notes_that_cannot_be_read_leave_the_figure_out_and_names_cannot_break_the_page() -> None:
    found = series({"id": 'a"\n\\', "phase": "shadow", "started_at": "yesterday"})
    told = [name for name in found if name.startswith("trading_rollout")]
    assert told == [r'trading_rollout_info{rollout="a\"\n\\",stage="shadow",paused="0"}']


def test_each_slot_that_has_a_part_in_traffic_tells_its_share() -> None:
    found = series(None)
    assert found['trading_traffic_share{role="stable",slot="blue"}'] == "9500"
    assert found['trading_traffic_share{role="canary",slot="green"}'] == "500"


def test_without_a_canary_the_stable_slot_has_all_and_a_load_balancer_that_does_nothing_yet_tells_none() -> None:
    assert 'trading_traffic_share{role="stable",slot="green"} 10000\n' in rollout_series(Traffic("green", "green"), None, None)
    assert 'role="canary"' not in rollout_series(Traffic("green", "green"), None, None)
    assert "trading_traffic_share" not in rollout_series(None, None, None)
