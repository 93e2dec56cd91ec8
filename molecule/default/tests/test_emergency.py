"""The emergency operations on a fleet that serves, and on what is left of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import requests
from conftest import APPS, BALANCERS, Fleet, Run, on_host, operations, read_only
from test_orders import ACCOUNT, order, post, secret
from test_paper_venue import FINAL, seen, within

PORTS = (18080, 18081)


@contextmanager
def broken(host: str, breaks: str, mends: str) -> Iterator[None]:
    on_host(host, breaks)
    try:
        yield
    finally:
        on_host(host, mends)


def statuses(fleet: Fleet) -> dict[str, dict[str, Any]]:
    """What every instance says of itself, by its host and port."""
    found = {}
    headers = {"Authorization": f"Bearer {secret('api_operator_token')}"}
    for host in APPS:
        for port in PORTS:
            url = f"http://{fleet.private[host]}:{port}/api/status"
            try:
                found[f"{host}:{port}"] = requests.get(url, headers=headers, timeout=5).json()
            except requests.ConnectionError:
                continue
    return found


def modes(fleet: Fleet) -> set[str]:
    return {status["mode"] for status in statuses(fleet).values()}


def done(run: Run, *words: str) -> Run:
    assert run.code == 0, run.output
    assert not [word for word in words if word not in run.output], run.output
    assert secret("api_operator_token") not in run.output
    return run


@pytest.fixture(autouse=True)
def nothing_stays_switched(fleet: Fleet) -> Iterator[None]:
    """A test that fails must leave a fleet that trades."""
    yield
    answering = sorted(statuses(fleet))
    assert answering, "no instance answers"
    host, port = answering[0].split(":")
    headers = {"Authorization": f"Bearer {secret('api_operator_token')}"}
    for path in ("trading/resume", "degradation/disable", "features/enable"):
        url = f"http://{fleet.private[host]}:{port}/api/{path}"
        assert requests.post(url, json={"reason": "a test is over"}, headers=headers, timeout=5).status_code == 200


def test_check_says_who_would_be_told_and_changes_nothing(fleet: Fleet) -> None:
    done(fleet.play("halt.yml", "--check", "--diff"), "Halts all trading", "is told", "nothing was changed")
    assert modes(fleet) == {"normal"}


def test_trading_is_halted_and_resumed_with_what_is_left_of_the_fleet(fleet: Fleet) -> None:
    """No load balancer, one app host that cannot be reached, and any other but the last one stopped."""
    unreachable, *stopped, last = APPS
    with ExitStack() as down:
        for balancer in BALANCERS:
            down.enter_context(broken(balancer, "systemctl stop haproxy", "systemctl start haproxy"))
        down.enter_context(broken(unreachable, "systemctl stop ssh; pkill sshd", "systemctl start ssh"))
        for host in stopped:
            on_host(host, "systemctl stop trading-bot")
        try:
            done(fleet.play("halt.yml", "-e", "halt_reason=drill"), f"{last}: ", "halted", f"{unreachable}: cannot be reached")
            found = statuses(fleet)
            # It could not be asked, and follows by itself.
            assert {name.split(":")[0] for name in found} == {unreachable, last}
            assert modes(fleet) == {"halted"}
            begin, end = operations(last, 2)
            assert (begin["operation"], begin["event"], end["event"], end["result"]) == ("halt", "begin", "end", "changed")
            # And with that one gone as well.
            on_host(unreachable, "systemctl stop trading-bot")
            stopped.append(unreachable)
            done(fleet.play("halt.yml"), "Nothing to do", "halted", f"{unreachable}: cannot be reached")
            assert {name.split(":")[0] for name in statuses(fleet)} == {last}
            assert operations(last, 2)[1]["result"] == "nothing"
        finally:
            for host in stopped:
                on_host(host, "systemctl start trading-bot")
    within(20, lambda: post(fleet, order()).status_code == 503, "the load balancer is back, and nobody trades")
    refused = fleet.play("halt.yml", "-e", "halt_action=resume")
    assert refused.code != 0
    assert "halt_reason is missing" in refused.output
    done(fleet.play("halt.yml", "-e", "halt_action=resume", "-e", "halt_reason=drill"), "not halted")
    assert modes(fleet) == {"normal"}
    within(20, lambda: post(fleet, order()).status_code == 201, "orders are taken again")


def test_a_host_that_can_write_nothing_holds_up_no_halt(fleet: Fleet) -> None:
    with read_only(APPS[-1], "/var/lib/trading-bot"):
        done(fleet.play("halt.yml", "-e", "halt_reason=drill"), f"{APPS[-1]}: the line could not be written", "halted")
    assert modes(fleet) == {"halted"}
    done(fleet.play("halt.yml", "-e", "halt_action=resume", "-e", "halt_reason=drill"), "not halted")


def test_degraded_only_what_reduces_is_taken(fleet: Fleet) -> None:
    def market(**changes: Any) -> dict[str, Any]:
        body = order(type="market", **changes)
        del body["price"]
        return body

    opened = market()
    assert post(fleet, opened).status_code == 201
    within(20, lambda: seen(fleet, opened["client_order_id"])["status"] in FINAL, "there is a position")
    done(fleet.play("degrade.yml"), "reduce-only", "degrade_action=disable")
    more = post(fleet, market())
    assert (more.status_code, more.json()["rule"]) == (422, "degraded")
    assert post(fleet, market(side="sell", reduce_only=True)).status_code == 201
    done(fleet.play("degrade.yml", "-e", "degrade_action=disable", "-l", "app2"), "Not asked, because of -l", "app1")
    assert modes(fleet) == {"normal"}
    assert post(fleet, market()).status_code == 201


def test_features_are_off_and_the_way_back_names_them(fleet: Fleet) -> None:
    def listed() -> int:
        headers = {"Authorization": f"Bearer {secret('api_desk_token')}", "X-Account-Id": ACCOUNT}
        return requests.get(f"{fleet.url}/api/orders", headers=headers, timeout=10).status_code

    done(fleet.play("features.yml", "-e", "features_list=order_listing"), "features_action=enable -e features_list=order_listing")
    assert listed() == 503
    assert post(fleet, order()).status_code == 201
    done(fleet.play("features.yml", "-e", "features_action=enable"), "order_listing")
    assert listed() == 200


def test_a_hotfix_tightens_a_limit_once_and_is_taken_back(fleet: Fleet) -> None:
    given = ("-e", "hotfix_set=risk.max_order_notional=10", "-e", "hotfix_reason=drill", "-e", "hotfix_for=10m")
    try:
        done(fleet.play("hotfix.yml", *given, "-e", "hotfix_id=drill"), "in force", "hotfix_action=revert -e hotfix_id=drill")
        refused = post(fleet, order(quantity="0.01"))
        assert (refused.status_code, refused.json()["rule"]) == (422, "max_order_notional")
        done(fleet.play("hotfix.yml", *given), "Nothing to do")
    finally:
        run = fleet.play("hotfix.yml", "-e", "hotfix_action=revert", "-e", "hotfix_id=drill")
    done(run, "not in force")
    assert not any(status["hotfixes"] for status in statuses(fleet).values())
    assert post(fleet, order(quantity="0.01")).status_code == 201
