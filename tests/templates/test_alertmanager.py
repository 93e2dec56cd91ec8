"""Alertmanager's configuration, given to the real amtool: that it is right, and where each alert goes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from real_servers import program
from rendering import render

WEBHOOK = "http://10.0.0.71:9095/alertmanager"
DEAD_MANS_SWITCH = "https://alive.example/trading"


def amtool(*arguments: str) -> str:
    """What amtool prints; fails with it if it is not content."""
    done = subprocess.run([program("amtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def written(place: Path, **inputs: str) -> str:
    path = place / "alertmanager.yml"
    path.write_text(render("alertmanager", "alertmanager.yml.j2", private_address="10.0.0.71", **inputs))
    return str(path)


@pytest.mark.parametrize("webhook", ["", WEBHOOK], ids=["nobody", "notifier"])
@pytest.mark.parametrize("switch", ["", DEAD_MANS_SWITCH], ids=["unwatched", "watched"])
def test_amtool_finds_nothing_wrong_with_it(webhook: str, switch: str, tmp_path: Path) -> None:
    config = written(tmp_path, alertmanager_webhook_url=webhook, alertmanager_watchdog_url=switch)
    found = amtool("check-config", config)
    assert "SUCCESS" in found
    assert webhook in Path(config).read_text()
    assert switch in Path(config).read_text()


@pytest.mark.parametrize("severity", ["critical", "warning", "info"])
def test_an_alert_of_each_severity_goes_to_the_notifier(severity: str, tmp_path: Path) -> None:
    config = written(tmp_path, alertmanager_webhook_url=WEBHOOK)
    assert amtool("config", "routes", "test", "--config.file", config, "alertname=HostDown", f"severity={severity}") == "notifier"


def test_without_a_notifier_nobody_is_told(tmp_path: Path) -> None:
    config = written(tmp_path)
    assert amtool("config", "routes", "test", "--config.file", config, "alertname=HostDown", "severity=critical") == "nobody"


@pytest.mark.parametrize(("switch", "receiver"), [("", "nobody"), (DEAD_MANS_SWITCH, "watchdog")])
def test_the_watchdog_disturbs_nobody_and_goes_where_its_silence_is_noticed(switch: str, receiver: str, tmp_path: Path) -> None:
    config = written(tmp_path, alertmanager_webhook_url=WEBHOOK, alertmanager_watchdog_url=switch)
    assert amtool("config", "routes", "test", "--config.file", config, "alertname=Watchdog", "severity=none") == receiver
