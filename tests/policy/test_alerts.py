"""That every alert is tested and has its page, and that no test or page is of an alert that does not exist."""

from __future__ import annotations

import re

from repository import ROOT, contents

RULES = (ROOT / "roles/prometheus/templates/rules.yml.j2").read_text()
ALERTS = set(re.findall(r"\[\[ alert\('(\w+)'", RULES))
PAGES = ROOT / "docs/runbook/alerts"


def test_there_are_alerts_to_check() -> None:
    assert len(ALERTS) > 30


def test_every_alert_has_a_test_and_every_test_an_alert() -> None:
    assert set(contents(ROOT / "tests/templates/alerts.yml")) == ALERTS


def test_every_alert_has_a_page_of_the_runbook_and_every_page_an_alert() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} - {"README"} == ALERTS


def test_every_page_of_an_alert_says_what_it_means_where_to_look_what_to_do_and_when_it_is_over() -> None:
    order = re.compile(r"# \w+\n\n\S.+\n\n\*\*Look at\.\*\* .+\n\n\*\*Do\.\*\* .+\n\n\*\*Over when\.\*\* .+\n")
    assert [name for name in ALERTS if not order.fullmatch((PAGES / f"{name}.md").read_text())] == []


def test_the_list_of_alerts_names_each_with_its_severity() -> None:
    listed = dict(re.findall(r"^\| \[(\w+)\]\(\1\.md\) \| (\w+) \|", (PAGES / "README.md").read_text(), re.MULTILINE))
    assert listed == dict(re.findall(r"\[\[ alert\('(\w+)', '(\w+)'", RULES))


def test_alertmanager_names_no_alert_that_does_not_exist() -> None:
    text = (ROOT / "roles/alertmanager/templates/alertmanager.yml.j2").read_text()
    named = {name for names in re.findall(r'alertname!?=~?"([\w|]+)"', text) for name in names.split("|")}
    assert named <= ALERTS
