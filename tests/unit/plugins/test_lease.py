"""Who may change a load balancer's traffic, and when somebody else may."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible.module_utils.lease import (
    Lock,
    Now,
    Refused,
    acquire,
    check,
    heartbeat_lost,
    lock_from,
    refuses_strangers,
    renew,
)

START = Now(wall=1_000_000.0, uptime=500.0, boot="one")


def later(seconds: float, step: float = 0.0) -> Now:
    """So many seconds after START; the wall's clock was moved by `step` meanwhile."""
    return Now(START.wall + seconds + step, START.uptime + seconds, START.boot)


def take(held: Lock | None, last: int, now: Now, owner: str = "ann", rollout: str = "r1", **more: Any) -> Lock:
    given = {"kind": "rollout", "ttl": 15.0, **more}
    return acquire(held, last, now, owner=owner, rollout=rollout, **given)


def test_a_free_load_balancer_is_taken_with_a_token_above_every_one_before() -> None:
    lock = take(None, 7, START)
    assert (lock.token, lock.owner, lock.rollout) == (8, "ann", "r1")
    assert (lock.acquired_at, lock.renewed_at, lock.expires_at) == (START.wall, START.wall, START.wall + 15)


def test_a_load_balancer_that_is_held_is_refused_until_the_lock_expires_and_not_before() -> None:
    held = take(None, 0, START)
    with pytest.raises(Refused, match="the rollout r1 of ann holds this load balancer for 1 s more") as refused:
        take(held, 1, later(14.5), "bob", "r2")
    assert refused.value.code == "locked"
    assert refused.value.more == {"lock": held.as_dict()}
    assert take(held, 1, later(15), "bob", "r2").token == 2


def test_an_owner_may_be_overtaken_at_once_and_his_token_is_worth_nothing_then() -> None:
    held = take(None, 0, START)
    taken = take(held, 1, later(1), "bob", "r2", preempt=True)
    assert taken.token == 2
    with pytest.raises(Refused, match=r"the token 1 is no longer .* the rollout r2 of bob holds") as refused:
        check(taken, 2, 1, later(2))
    assert refused.value.code == "fenced"


def test_the_same_owner_keeps_his_token_or_gets_the_one_that_all_load_balancers_are_to_have() -> None:
    held = take(None, 0, START)
    again = take(held, 1, later(5))
    assert (again.token, again.acquired_at, again.expires_at) == (1, held.acquired_at, later(5).wall + 15)
    assert take(again, 1, later(6), at_least=9).token == 9
    assert take(again, 1, later(6), at_least=1).token == 1


def test_a_free_load_balancer_is_taken_with_the_token_that_the_others_have() -> None:
    assert take(None, 3, START, at_least=9).token == 9
    assert take(None, 12, START, at_least=9).token == 13


def test_another_rollout_of_the_same_owner_has_to_wait_too() -> None:
    with pytest.raises(Refused):
        take(take(None, 0, START), 1, later(1), rollout="r2")


def test_a_heartbeat_prolongs_a_lock_and_revives_one_that_nobody_took() -> None:
    held = take(None, 0, START)
    assert not renew(held, later(10)).expired(later(24))
    assert not renew(held, later(100), 5.0).expired(later(104))
    assert check(held, 1, 1, later(100)) is held


@pytest.mark.parametrize(("token", "why"), [(1, "given up after it was not heard of"), (2, "does not hold this")])
def test_nobody_has_a_token_where_there_is_no_lock(token: int, why: str) -> None:
    with pytest.raises(Refused, match=why):
        check(None, 2, token, START)


def test_an_expired_lock_of_another_does_not_let_an_old_token_in() -> None:
    held = replace(take(None, 0, START), token=5)
    with pytest.raises(Refused, match="given up"):
        check(held, 5, 4, later(100))


@pytest.mark.parametrize("step", [-86_400.0, -20.0, 20.0, 86_400.0])
def test_a_clock_that_is_stepped_makes_no_lock_live_longer_or_die_sooner(step: float) -> None:
    held = take(None, 0, START)
    assert not held.expired(later(14, step))
    assert held.expired(later(15, step))


def test_after_a_reboot_the_clock_on_the_wall_tells_and_where_it_makes_no_sense_the_lock_has_expired() -> None:
    held = take(None, 0, START)
    assert not held.expired(Now(START.wall + 10, 3.0, "two"))
    assert held.expired(Now(START.wall + 15, 8.0, "two"))
    assert held.expired(Now(START.wall - 1, 8.0, "two"))


def test_the_watchdog_waits_for_the_shorter_of_expiry_and_silence() -> None:
    held = take(None, 0, START, ttl=600.0)
    assert heartbeat_lost(None, START, 15)
    assert not heartbeat_lost(held, later(14.9), 15)
    assert heartbeat_lost(held, later(15), 15)
    assert not heartbeat_lost(held, later(30), 60)
    assert heartbeat_lost(take(None, 0, START, ttl=5.0), later(5), 15)


def test_strangers_are_refused_while_a_lock_lives_and_its_owner_never() -> None:
    held = take(None, 0, START)
    assert "ann" in (refuses_strangers(held, later(1), None) or "")
    assert "ann" in (refuses_strangers(held, later(1), 2) or "")
    assert (refuses_strangers(held, later(1), 2) or "").endswith("or end it with rollback.yml")
    # Before a deployment has moved anybody, a rollback would leave what serves well.
    assert "rollback" not in (refuses_strangers(take(None, 0, START, kind="deploy"), later(1), 2) or "")
    assert refuses_strangers(held, later(1), 1) is None
    assert refuses_strangers(held, later(15), None) is None
    assert refuses_strangers(None, START, None) is None


@pytest.mark.parametrize("values", [None, {}, {"owner": "ann"}, {**take(None, 0, START).as_dict(), "token": "x"}])
def test_a_file_that_holds_no_lock_is_no_lock(values: dict[str, Any] | None) -> None:
    assert lock_from(values) is None


def test_a_lock_is_read_as_it_was_written() -> None:
    held = take(None, 0, START)
    assert lock_from(held.as_dict()) == held
