"""That the dashboards are Grafana's JSON, readable, and ask for what there is."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from real_servers import program
from rendering import REPOSITORY, ROLES

_FILTER = REPOSITORY / "plugins/filter/dashboards.py"
_SPEC = importlib.util.spec_from_file_location("dashboards_filter", _FILTER)
assert _SPEC is not None
assert _SPEC.loader is not None
dashboards = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(dashboards)

SPECS: dict[str, Any] = yaml.safe_load((ROLES / "dashboards/files/dashboards.yml").read_text())
THRESHOLDS = yaml.safe_load((ROLES / "prometheus/defaults/main.yml").read_text())["prometheus_thresholds"]
MADE = {name: dashboards.dashboard(spec, name, THRESHOLDS) for name, spec in SPECS.items()}
#: What the app, and the release agent, tell.
TOLD = {
    *re.findall(r"^\| `(\w+)` \|", (REPOSITORY / "docs/metrics.md").read_text(), re.MULTILINE),
    *re.findall(r"\b(trading_(?:canary|rollout)_\w+)", (REPOSITORY / "plugins/module_utils/rollout_metrics.py").read_text()),
    *(f"trading_rollout_{moment}_timestamp_seconds" for moment in ("started", "heard")),
}

each = pytest.mark.parametrize("name", MADE)


def test_there_is_one_for_each_thing_that_is_looked_at() -> None:
    assert set(MADE) == {"overview", "orders", "risk", "rollout", "hosts", "data"}


@each
def test_every_query_parses(name: str, tmp_path: Path) -> None:
    rules = [{"record": f"q{number}", "expr": query} for number, query in enumerate(dashboards.queries(MADE[name]))]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": name, "rules": rules}]}))
    checked = subprocess.run([program("promtool"), "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout
    assert len(rules) >= 8


@each
def test_every_series_of_the_app_that_is_asked_for_is_told(name: str) -> None:
    asked = {word for query in dashboards.queries(MADE[name]) for word in re.findall(r"\btrading_\w+", query)}
    assert {re.sub(r"_(bucket|sum|count)$", "", word) for word in asked} - TOLD == set()


@each
def test_a_panel_says_what_it_shows_in_which_unit_and_lies_over_no_other(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    panels = MADE[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        spot = panel["gridPos"]
        cells = {(spot["x"] + x, spot["y"] + y) for x in range(spot["w"]) for y in range(spot["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"].endswith((".", ")"))
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["targets"]


@each
def test_a_panel_links_to_pages_that_there_are(name: str) -> None:
    links = [link["url"] for panel in MADE[name]["panels"] for link in panel.get("links", [])]
    assert [link for link in links if not (REPOSITORY / link).is_file()] == []


def test_each_has_a_name_of_its_own_and_marks_deployments_on_its_plots() -> None:
    assert len({made["uid"] for made in MADE.values()}) == len(MADE)
    assert all([mark["name"] for mark in made["annotations"]["list"]] == ["Serves", "Share", "Stage"] for made in MADE.values())


def test_the_lines_of_the_plots_are_those_of_the_rules() -> None:
    changed = dashboards.dashboard(SPECS["hosts"], "hosts", {**THRESHOLDS, "cpu_percent": 33})
    [panel] = [panel for panel in changed["panels"] if panel["title"] == "Processors"]
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"] == 33


def test_a_description_that_is_none_is_refused_with_its_name() -> None:
    with pytest.raises(dashboards.AnsibleFilterError, match="dashboard broken: KeyError: 'rows'"):
        dashboards.dashboard({"title": "x"}, "broken", THRESHOLDS)
