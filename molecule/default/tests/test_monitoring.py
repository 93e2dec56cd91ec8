"""Prometheus and Alertmanager: what they ask, what they tell, and that something wrong is told of and taken back."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest
import requests
import yaml
from conftest import ROOT, Fleet
from test_paper_venue import within
from testinfra.host import Host

testinfra_hosts = ["ansible://monitoring"]

UNITS = ["prometheus", "prometheus-alertmanager", "prometheus-node-exporter", "certificate-metrics.timer"]


def asked(fleet: Fleet, query: str) -> list[tuple[dict[str, str], float]]:
    """What Prometheus answers: labels and value of each series."""
    url = f"http://{fleet.private['mon1']}:9090/api/v1/query"
    found = requests.get(url, params={"query": query}, timeout=10).json()["data"]["result"]
    return [(one["metric"], float(one["value"][1])) for one in found]


def told(fleet: Fleet, name: str) -> list[dict[str, Any]]:
    """The alerts of this name that Alertmanager has."""
    url = f"http://{fleet.private['mon1']}:9093/api/v2/alerts"
    return list(requests.get(url, params={"filter": f'alertname="{name}"'}, timeout=10).json())


@pytest.mark.parametrize("unit", UNITS)
def test_it_runs_now_and_after_a_boot(host: Host, unit: str) -> None:
    service = host.service(unit)
    assert service.is_running
    assert service.is_enabled


@pytest.mark.parametrize("port", [9090, 9093, 9100])
def test_it_listens_on_the_private_interface_only(fleet: Fleet, host: Host, port: int) -> None:
    with host.sudo():
        found = host.check_output(f"ss -Hltn 'sport = :{port}' | awk '{{print $4}}'").split()
    assert found == [f"{fleet.private['mon1']}:{port}"]


def test_nothing_listens_for_other_alertmanagers(host: Host) -> None:
    with host.sudo():
        assert host.check_output("ss -Hltun 'sport = :9094'") == ""


def test_the_configurations_are_right_and_in_force(fleet: Fleet, host: Host) -> None:
    with host.sudo():
        host.check_output("promtool check config /etc/prometheus/prometheus.yml")
        host.check_output("amtool check-config /etc/prometheus/alertmanager.yml")
    loaded = asked(fleet, "prometheus_config_last_reload_successful or alertmanager_config_last_reload_successful")
    assert [value for _, value in loaded] == [1, 1]


def test_every_host_of_the_inventory_answers_for_all_that_is_on_it(fleet: Fleet) -> None:
    def silent() -> list[dict[str, str]]:
        # Of an app host one slot is empty.
        return [labels for labels, value in asked(fleet, 'up{job!="app"} or max by (job, host) (up{job="app"})') if not value]

    within(30, lambda: not silent(), "every target answers")
    jobs = {(labels["job"], labels["host"]) for labels, _ in asked(fleet, "up")}
    assert {job for job, _ in jobs} >= {"node", "app", "haproxy", "redis", "nats", "docker", "prometheus", "alertmanager", "page"}
    assert {host for job, host in jobs if job == "node"} >= {"lb1", "lb2", "app1", "app2", "data1", "mon1"}


@pytest.mark.parametrize(
    "series",
    [
        "redis_up",
        "nats_healthy",
        'nats_stream_messages{stream="TRADING_EVENTS"}',
        "haproxy_backend_active_servers",
        "engine_daemon_engine_info",
        "trading_limit",
        "trading_risk_swept_timestamp_seconds",
        "trading_canary_cut",
        'trading_traffic_share{role="stable"}',
    ],
)
def test_what_the_rules_and_the_plots_go_by_is_there(fleet: Fleet, series: str) -> None:
    assert asked(fleet, series) != []


#: Queries that have an answer only while something goes on, or where hosts have what containers have not.
SOMETIMES = re.compile(r"trading_rollout_|trading_account_used|offset 1m|node_disk_|histogram_quantile|/ sum|trading_risk_worst_")


def test_every_query_of_every_dashboard_has_an_answer(fleet: Fleet) -> None:
    path = ROOT / "plugins/filter/dashboards.py"
    spec = importlib.util.spec_from_file_location("dashboards_filter", path)
    assert spec is not None
    assert spec.loader is not None
    dashboards = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dashboards)
    specs = yaml.safe_load((ROOT / "roles/dashboards/files/dashboards.yml").read_text())
    thresholds = yaml.safe_load((ROOT / "roles/prometheus/defaults/main.yml").read_text())["prometheus_thresholds"]
    made = [dashboards.dashboard(each, name, thresholds) for name, each in specs.items()]
    silent = [query for each in made for query in dashboards.queries(each) if not asked(fleet, query)]
    assert [query for query in silent if not SOMETIMES.search(query)] == []


def test_the_watchdog_reaches_alertmanager(fleet: Fleet) -> None:
    [alert] = within(90, lambda: told(fleet, "Watchdog"), "the alert is handed over")
    assert alert["status"]["state"] == "active"


def leave(host: Host, file: str, series: str, days: int) -> None:
    """A series for the node exporter that tells of a moment so many days from now."""
    host.check_output("printf '%%s %%s\\n' %s $(( $(date +%%s) + %s )) > %s", series, str(days * 86400), file)


def test_a_certificate_that_ends_soon_is_told_of_until_it_is_renewed(fleet: Fleet, host: Host) -> None:
    """As the host's own program leaves it; the alert has all that a person needs."""
    file = "/var/lib/trading-bot-metrics/test.prom"
    series = 'trading_certificate_expires_timestamp_seconds{path="/etc/ssl/test.pem"}'
    with host.sudo():
        try:
            leave(host, file, series, days=1)
            [alert] = within(60, lambda: told(fleet, "CertificateExpiring"), "the alert fires")
            leave(host, file, series, days=100)
            within(60, lambda: not asked(fleet, 'ALERTS{alertname="CertificateExpiring"}'), "the alert is over")
        finally:
            host.check_output(f"rm -f {file}")
    assert alert["labels"]["host"] == "mon1"
    assert alert["annotations"]["summary"] == "The certificate /etc/ssl/test.pem on mon1 ends soon"
    assert alert["annotations"]["runbook_url"].endswith("/CertificateExpiring.md")
