"""Everything on one host: the guide's commands as they stand, orders, a release beside another, the other runtime."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import STATE, Fleet
from testinfra.host import Host

testinfra_hosts = ["ansible://bot1"]


def secret(name: str) -> str:
    return (STATE / "secrets" / name).read_text().strip()


def order(fleet: Fleet, **changes: Any) -> requests.Response:
    body = {
        "client_order_id": uuid.uuid4().hex,
        "symbol": "BTC-USDT",
        "side": "buy",
        "type": "limit",
        "quantity": "0.001",
        "price": "50000",
    }
    headers = {"Authorization": f"Bearer {secret('api_desk_token')}", "X-Account-Id": "desk-1"}
    return requests.post(f"{fleet.url}/api/orders", json={**body, **changes}, headers=headers, timeout=10)


def post(host: Host, path: str, body: str = "") -> dict[str, Any]:
    """The guide's `curl -X POST http://localhost:8080/…`, with a token."""
    done = host.run(
        "curl -sS --fail-with-body -X POST http://localhost:8080%s -H %s -d %s",
        path,
        f"Authorization: Bearer {secret('api_operator_token')}",
        body,
    )
    assert done.rc == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def test_an_order_is_taken(fleet: Fleet) -> None:
    assert order(fleet).status_code == 201


def test_degraded_by_the_guides_line_only_what_reduces_is_taken(host: Host, fleet: Fleet) -> None:
    post(host, "/api/degradation/enable")
    try:
        refused = order(fleet)
        assert refused.status_code in {422, 503}, refused.text
    finally:
        post(host, "/api/degradation/disable")
    assert order(fleet).status_code == 201


def test_features_are_switched_off_by_the_guides_line(host: Host) -> None:
    try:
        done = post(host, "/api/features/disable")
        off = {name for name, on in done["features"].items() if not on}
        assert off == set(done["changed"]), done
        assert "order_listing" in off, done
        assert "order_entry" not in off, done
    finally:
        assert all(post(host, "/api/features/enable")["features"].values())


def test_a_hotfix_without_a_signature_is_refused_and_says_what_is_missing(host: Host) -> None:
    with pytest.raises(AssertionError, match="signature"):
        post(host, "/api/hotfix/apply", '{"payload": ""}')


def test_the_guides_looks_at_the_host_show_something(host: Host, fleet: Fleet) -> None:
    _, slot = fleet.served()
    with host.sudo():
        assert "active (" in host.check_output("systemctl status trading-bot")
        assert '"event":"start"' in host.check_output(f"docker logs trading-bot-{slot} 2>&1")
        assert host.run("find /var/log/trading-bot -mtime +30 -delete").rc == 0
        for look, shown in (("top -bn1", "load average"), ("df -h", "Mounted on"), ("free -m", "Mem:")):
            assert shown in host.check_output(look)


def test_the_guides_restart_brings_the_service_back(host: Host, fleet: Fleet) -> None:
    with host.sudo():
        assert host.run("systemctl restart trading-bot").rc == 0
    done = fleet.play("deploy.yml")
    assert done.code == 0, done.output
    assert order(fleet).status_code == 201


def test_monitoring_sees_every_part_of_the_host(host: Host) -> None:
    answer = json.loads(host.check_output("curl -sSg 'http://10.206.2.21:9090/api/v1/query?query=up'"))
    results = answer["data"]["result"]
    # Of the app's two slots one is empty.
    assert {result["metric"]["job"] for result in results if result["value"][1] == "0"} <= {"app"}
    up = {result["metric"]["job"] for result in results if result["value"][1] == "1"}
    assert up >= {"app", "haproxy", "nats", "node", "redis"}


# It provisions the host once more.
@pytest.mark.long
def test_the_runtime_systemd_takes_over_from_docker_under_load(fleet: Fleet, source: Callable[..., Path]) -> None:
    _, before = fleet.served()
    load = fleet.load(rate=50, count=1_000_000, name="runtime")
    runtime = ("-e", "release_runtime=systemd")
    version = ("-e", "release_version=0.1.3", "-e", f"release_source={source('0.1.3')}")
    run = fleet.play("site.yml", *runtime, *version)
    assert run.code == 0
    again = fleet.play("deploy.yml", *runtime)
    assert (again.code, set(again.changed.values())) == (0, {0})
    summary = load.finish(now=True)
    assert summary["failed"] == 0, summary
    verdict = load.judge()
    assert (verdict["lost"], verdict["doubled"], verdict["different"]) == (0, 0, 0), verdict
    after, slot = fleet.served()
    assert slot != before
    assert after.startswith("0.1.3-")
