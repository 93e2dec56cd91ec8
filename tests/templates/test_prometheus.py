"""The alert rules, targets and configuration, given to the real promtool."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from real_servers import program
from rendering import render

ALERTS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("alerts.yml").read_text())
RULES = render("prometheus", "rules.yml.j2")
BY_NAME = {rule["alert"]: rule for group in yaml.safe_load(RULES)["groups"] for rule in group["rules"]}

#: Minutes that each part lasts: just below the threshold, past it, and below it again. Longer than any rule looks back.
BELOW, PAST, AGAIN = 20, 90, 20


def promtool(*arguments: str | Path) -> None:
    """Fail with what promtool says, if it is not content."""
    done = subprocess.run([program("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def values(change: Callable[[int, float | None], float | None], below: float | None, past: float | None) -> str:
    """A series' sample of each minute, `_` where it has none."""
    wanted = [below] * BELOW + [past] * PAST + [below] * AGAIN
    samples = [change(minute, value) for minute, value in enumerate(wanted)]
    return " ".join("_" if sample is None else f"{sample:.10g}" for sample in samples)


def series(case: dict[str, Any]) -> Iterator[dict[str, str]]:
    """What a case says of its series, as promtool takes it."""
    for name, (below, past) in case.get("gauges", {}).items():
        yield {"series": name, "values": values(lambda _, value: value, below, past)}
    for name, (below, past) in case.get("ages", {}).items():
        yield {"series": name, "values": values(lambda minute, age: minute * 60 - (age or 0), below, past)}
    for name, (below, past) in case.get("counters", {}).items():
        total = 0.0

        def count(_: int, more: float | None) -> float:
            nonlocal total
            total += more or 0
            return total

        yield {"series": name, "values": values(count, below, past)}
    for name, value in case.get("steady", {}).items():
        yield {"series": name, "values": values(lambda _, value: value, value, value)}


def expected(name: str) -> dict[str, Any]:
    """The alert as it is told."""
    case = ALERTS[name]
    texts = {key: case[key] for key in ("summary", "value", "threshold")}
    return {
        "exp_labels": {**case.get("labels", {}), "severity": BY_NAME[name]["labels"]["severity"]},
        "exp_annotations": {**texts, "runbook_url": f"docs/runbook/alerts/{name}.md"},
    }


def proof(name: str) -> list[dict[str, Any]]:
    """promtool's tests of one alert: not just below, then past the threshold, then resolved; and never where it is quiet."""
    case = ALERTS[name]
    told = [expected(name)]
    ends = {BELOW - 1: told if case.get("always") else [], BELOW + PAST - 1: told}
    ends[BELOW + PAST + AGAIN - 1] = ends[BELOW - 1]
    checks: list[dict[str, Any]] = [
        {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": alerts} for minute, alerts in ends.items()
    ]
    never: list[dict[str, Any]] = [
        {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": []} for minute in (BELOW - 1, BELOW + PAST - 1)
    ]
    tests = [(series(case), checks)]
    if "quiet" in case:
        tests.append((series(case["quiet"]), never))
    return [{"interval": "1m", "input_series": list(inputs), "alert_rule_test": checks} for inputs, checks in tests]


def test_every_alert_is_tested() -> None:
    assert set(ALERTS) == set(BY_NAME)


@pytest.mark.parametrize("name", BY_NAME)
def test_an_alert_fires_past_its_threshold_and_not_just_below_and_resolves(name: str, tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [BY_NAME[name]]}]}))
    test = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": proof(name)}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    promtool("test", "rules", tmp_path / "test.yml")


def test_every_alert_says_how_bad_it_is_what_it_is_its_value_and_where_to_read_on() -> None:
    parts = ("summary", "value", "threshold", "runbook_url")
    assert [name for name, rule in BY_NAME.items() if not all(rule["annotations"].get(part) for part in parts)] == []
    assert {rule["labels"]["severity"] for rule in BY_NAME.values()} <= {"critical", "warning", "info", "none"}


def fleet(**more: Any) -> dict[str, Any]:
    """Variables of a small fleet."""
    addresses = {"lb1": "10.0.0.11", "app1": "10.0.0.21", "app2": "10.0.0.22", "data1": "10.0.0.61", "mon1": "10.0.0.71"}
    return {
        "groups": {
            "all": list(addresses),
            "lb": ["lb1"],
            "app": ["app1", "app2"],
            "redis": ["data1"],
            "nats": ["data1"],
            "monitoring": ["mon1"],
        },
        "hostvars": {host: {"private_address": address} for host, address in addresses.items()},
        "private_address": addresses["mon1"],
        "trading_bot_slot_ports": {"blue": 18080, "green": 18081},
        "trading_bot_runtime": "docker",
        "haproxy_stats_port": 8404,
        "node_exporter_port": 9100,
        "redis_exporter_port": 9121,
        "nats_exporter_port": 7777,
        "docker_engine_metrics_port": 9323,
        "alertmanager_port": 9093,
        **more,
    }


def targets(**more: Any) -> dict[str, list[str]]:
    """The addresses of each job."""
    found: dict[str, list[str]] = {}
    for entry in json.loads(render("prometheus", "targets.json.j2", **fleet(**more))):
        assert set(entry["labels"]) == {"job", "host"}
        found.setdefault(entry["labels"]["job"], []).extend(entry["targets"])
    return found


def test_every_host_of_the_inventory_is_a_target_on_each_port_of_what_it_runs() -> None:
    found = targets()
    assert set(found) == {"node", "app", "haproxy", "redis", "nats", "docker", "prometheus", "alertmanager", "page"}
    assert len(found["node"]) == 5
    assert found["app"] == ["10.0.0.21:18080", "10.0.0.21:18081", "10.0.0.22:18080", "10.0.0.22:18081"]
    assert found["docker"] == ["10.0.0.21:9323", "10.0.0.22:9323"]
    assert found["haproxy"] == ["10.0.0.11:8404"]


def test_what_a_fleet_does_not_have_is_no_target() -> None:
    assert "docker" not in targets(trading_bot_runtime="systemd")
    assert targets(alertmanager_webhook_url="http://10.0.0.71:9095/alertmanager")["notifier"] == ["10.0.0.71:9095"]


def test_promtool_finds_nothing_wrong_with_the_configuration_and_its_rules(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(RULES)
    (tmp_path / "targets.json").write_text(render("prometheus", "targets.json.j2", **fleet()))
    places = {"__prometheus_rules_file": str(tmp_path / "rules.yml"), "__prometheus_targets_file": str(tmp_path / "targets.json")}
    (tmp_path / "prometheus.yml").write_text(render("prometheus", "prometheus.yml.j2", **fleet(**places)))
    promtool("check", "config", tmp_path / "prometheus.yml")
