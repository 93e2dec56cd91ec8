"""The report of a rollout: complete in itself, true to its files, and readable whatever they hold."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.report import render
from ansible.module_utils.report_pictures import thinned
from ansible.module_utils.rollout_record import Parts, decision, outcome_of, reaction, read, reasons_of, seconds
from plugin_testing import RunModule
from rollout_sample import START, rollout, save, stamp

XHTML = "{http://www.w3.org/1999/xhtml}"
ALL = ("rollout.json", "looks.jsonl", "journal.jsonl", "shadow.json")


def parts_of(files: dict[str, Any]) -> Parts:
    """What would be read of these files."""
    rollout_json, looks, journal, shadow = (files.get(name) for name in ALL)
    return Parts(rollout_json or {}, looks or [], journal or [], shadow)


def parsed(page: str) -> ET.Element:
    """The page as XML; raises where it is not well-formed."""
    return ET.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def texts(page: str) -> str:
    """All text that a reader sees."""
    root = parsed(page)
    body = root.find(f"{XHTML}body/{XHTML}main")
    assert body is not None
    return " ".join(" ".join(body.itertext()).split())


@pytest.fixture(scope="module")
def promoted() -> dict[str, Any]:
    """A good release."""
    return rollout()


@pytest.fixture(scope="module")
def rolled_back() -> dict[str, Any]:
    """A release that begins to fail after 190 seconds."""
    return rollout(lambda seconds: 0.02 if seconds > 190 else 0.001)


def test_a_promoted_release_is_told_first_and_in_one_sentence(promoted: dict[str, Any]) -> None:
    page = render(parts_of(promoted))
    heading = parsed(page).find(f".//{XHTML}h1")
    assert heading is not None
    assert "".join(heading.itertext()).startswith("1.4.0 serves all accounts after ")
    assert "<title>Promoted: 1.4.0 after 1.3.2</title>" in page


def test_a_rollback_tells_the_judges_reasons_and_numbers_and_how_soon_the_traffic_was_back(rolled_back: dict[str, Any]) -> None:
    parts = parts_of(rolled_back)
    shown = texts(render(parts))
    verdict = next(e for e in rolled_back["journal.jsonl"] if e["event"] == "rollback")
    assert reasons_of(parts) == verdict["reasons"]
    for reason in verdict["reasons"]:
        assert reason in shown
    last = rolled_back["looks.jsonl"][-1]
    assert f"{last['canary']['errors']:,} of {last['canary']['requests']:,}" in shown
    assert reaction(parts) == pytest.approx(0.042)
    assert "Verdict to 0% 0.042 s" in shown
    assert "1.3.2 serves all accounts" in decision(parts)
    assert "50% not reached" in re.sub(r"\s+", " ", shown)


def test_every_picture_is_there_and_says_in_words_what_it_shows(promoted: dict[str, Any]) -> None:
    root = parsed(render(parts_of(promoted)))
    figures = {figure.get("id"): figure for figure in root.iter(f"{XHTML}figure")}
    assert set(figures) == {"share", "errors", "latency", "evidence"}
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    for figure in figures.values():
        picture = figure.find(f".//{XHTML}svg[@role='img']")
        assert picture is not None
        assert set((picture.get("aria-labelledby") or "").split()) <= ids
        assert picture.findtext(f"{XHTML}title")
        assert picture.findtext(f"{XHTML}desc")
        assert picture.findall(f"{XHTML}path[@d]")


def test_a_line_is_drawn_where_its_values_are(promoted: dict[str, Any]) -> None:
    """The share's line: from 0 at the left to 100% at the top, each stage at its height."""
    root = parsed(render(parts_of(promoted)))
    target = root.find(f".//{XHTML}figure[@id='share']/{XHTML}div//{XHTML}path[@class='line target']")
    assert target is not None
    heights = [float(y) for y in re.findall(r"V([\d.]+)", target.get("d") or "")]
    assert heights == [475, 400, 250, 0, 0]
    assert (target.get("d") or "").startswith("M0 500")


def test_every_mark_leads_to_its_row_of_the_journal(rolled_back: dict[str, Any]) -> None:
    root = parsed(render(parts_of(rolled_back)))
    rows = {row.get("id"): "".join(row.itertext()) for row in root.iter(f"{XHTML}tr") if row.get("id")}
    links = list(root.iter(f"{XHTML}a"))
    assert {(link.get("class") or "").split()[1] for link in links} == {"shadow", "stage", "verdict", "rollback", "end"}
    for link in links:
        row = rows[(link.get("href") or "").removeprefix("#")]
        assert "".join(link.itertext()) in row
        assert (link.get("class") or "").split()[1] in row


NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;\x00\x1b\ud800\u202e]]>-->"


def poisoned(value: Any) -> Any:
    """The same value with every text in it, keys included, made hostile."""
    if isinstance(value, str):
        return value + NASTY
    if isinstance(value, list):
        return [poisoned(one) for one in value]
    if isinstance(value, dict):
        return {key: poisoned(one) for key, one in value.items()} | {NASTY: NASTY}
    return value


def test_whatever_the_files_hold_is_shown_as_text_and_nothing_else(rolled_back: dict[str, Any]) -> None:
    hostile = {name: poisoned(contents) for name, contents in rolled_back.items()}
    for entry, before in zip(hostile["journal.jsonl"], rolled_back["journal.jsonl"], strict=True):
        entry.update(at=before["at"], event=before["event"])
    hostile["rollout.json"]["outcome"] = "rolled_back"
    page = render(parts_of(hostile))
    page.encode("utf-8")
    root = parsed(page)
    clean = parsed(render(parts_of(rolled_back)))
    assert {element.tag for element in root.iter()} == {element.tag for element in clean.iter()}
    assert len(list(root.iter(f"{XHTML}script"))) == 2
    assert not [name for element in root.iter() for name in element.attrib if name.startswith("on")]
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert "</script><script>alert(1)" in texts(page)


def test_the_page_asks_the_network_for_nothing_and_lets_no_other_script_run(promoted: dict[str, Any]) -> None:
    page = render(parts_of(promoted))
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", page))
    assert addresses == {"http://www.w3.org/1999/xhtml"}
    assert not re.search(r"@import|url\(|<link|<img|<iframe", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy.group(1).startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy.group(1)


@pytest.mark.parametrize("left_out", ALL)
def test_a_part_that_is_missing_leaves_the_rest(rolled_back: dict[str, Any], left_out: str) -> None:
    page = render(parts_of({name: contents for name, contents in rolled_back.items() if name != left_out}))
    assert len(texts(page)) > 500


def test_nothing_at_all_is_a_page_that_says_so() -> None:
    page = render(Parts())
    assert "No look was recorded" in texts(page)
    assert outcome_of(Parts()) == "open"


def test_only_a_shadow_is_a_page_about_the_shadow(promoted: dict[str, Any]) -> None:
    shadow = {**promoted["shadow.json"]}
    shadow["differences"] = [{**shadow["differences"][0], "expected": False, "why": None}]
    failed = {"outcome": "failed", "to": {"version": "1.4.0"}, "reasons": ["the shadow found 3 differences"]}
    shown = texts(render(parts_of({"rollout.json": failed, "shadow.json": shadow})))
    assert "The rollout of 1.4.0 failed before any account was moved" in shown
    assert "the shadow found 3 differences" in shown
    assert "c-1001 of account acct-17: stable accepted, canary refused" in shown
    assert "✗ unexpected" in shown


def test_going_back_by_hand_is_told_as_such() -> None:
    """The journals of both load balancers have it, the page once."""
    back = {"kind": "rollback", "from": {"release_id": "1.3.2-a"}, "to": {"release_id": "1.4.0-b"}, "outcome": "rolled_back"}
    start = {"at": stamp(START), "event": "start", "by": "control", "kind": "rollback"}
    journal = [{**start, "load_balancer": name} for name in ("lb1", "lb2")]
    page = render(parts_of({"rollout.json": back, "journal.jsonl": journal}))
    assert "1.4.0-b is taken out of the traffic by rollback.yml, 1.3.2-a serves all accounts in its place" in texts(page)
    rows = [row for row in parsed(page).iter(f"{XHTML}tr") if row.get("id")]
    assert ["".join(row.itertext()) for row in rows] == ["12:00:00.000startcontrol lb1, lb2kind rollback"]


def test_a_rollout_that_was_killed_in_the_middle_is_told_as_such(tmp_path: Path, promoted: dict[str, Any]) -> None:
    """The last lines are cut off in the middle of a character, as a kill leaves them."""
    halved = {
        name: contents[: len(contents) // 2] if isinstance(contents, list) else contents for name, contents in promoted.items()
    }
    halved["rollout.json"] = {k: v for k, v in promoted["rollout.json"].items() if k not in ("outcome", "ended_at")}
    directory = save(tmp_path / "r1", halved)
    for name in ("looks.jsonl", "journal.jsonl"):
        with (directory / name).open("ab") as file:
            file.write(b'{"at": 17698609' + "é".encode()[:1])
    parts = read(str(directory))
    assert outcome_of(parts) == "open"
    assert "has no end yet" in decision(parts)
    shown = texts(render(parts))
    assert "1 line of looks.jsonl could not be read" in shown
    watched = Parts(
        parts.rollout,
        parts.looks,
        [*parts.journal, {"at": stamp(START + 400), "event": "traffic", "by": "watchdog", "phase": "done"}],
        None,
    )
    assert outcome_of(watched) == "cut_off"
    assert "watchdog took 1.4.0 out of the traffic" in texts(render(watched))


@pytest.mark.parametrize(
    "value", [None, "x", -1, 10**400, math.nan, math.inf, [], {}, [None], [[]], {"a": 1}, True, [1, "x", None], "9" * 5000]
)
def test_a_value_of_any_kind_in_any_place_is_no_error(rolled_back: dict[str, Any], value: Any) -> None:
    """One place after the other holds something that is not expected there."""
    short = {**rolled_back, "looks.jsonl": rolled_back["looks.jsonl"][-2:], "journal.jsonl": rolled_back["journal.jsonl"][-8:]}
    for name in ALL:
        whole = short[name]
        for place in whole[-1] if isinstance(whole, list) else whole:
            changed = [*whole[:-1], {**whole[-1], place: value}] if isinstance(whole, list) else {**whole, place: value}
            parsed(render(parts_of({**short, name: changed})))
    look = short["looks.jsonl"][-1]
    for place in ("requests", "errors", "p50", "p99"):
        parsed(render(parts_of({**short, "looks.jsonl": [{**look, "canary": {**look["canary"], place: value}}]})))
    for place in ("name", "test", "outcome", "sentence", "evidence", "target"):
        changed = {**look, "findings": [{**look["findings"][-1], place: value}]}
        parsed(render(parts_of({**short, "looks.jsonl": [changed]})))


def test_a_long_rollout_makes_a_page_of_bounded_size_that_keeps_the_extremes(promoted: dict[str, Any]) -> None:
    """Eight hours of looks and a journal as long: the one bad look is still to be seen."""
    first = promoted["looks.jsonl"][10]
    looks = []
    for number in range(6_000):
        p99 = 0.9 if number == 4_321 else 0.02
        looks.append({**first, "at": START + 5 * number, "canary": {**first["canary"], "p99": p99}})
    journal = [
        {**promoted["journal.jsonl"][number % 12], "at": stamp(START + number), "why": "x" * 5_000} for number in range(20_000)
    ]
    page = render(parts_of({**promoted, "looks.jsonl": looks, "journal.jsonl": journal}))
    assert len(page.encode()) < 1_000_000
    line = parsed(page).find(f".//{XHTML}figure[@id='latency']/{XHTML}div//{XHTML}path[@class='line canary p99']")
    assert line is not None
    heights = sorted({float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", line.get("d") or "")})
    assert len(heights) == 2
    assert heights[0] < 50 < heights[1]


def test_thinning_keeps_first_last_and_every_extreme() -> None:
    points = [(at, math.sin(at / 7) + (9 if at == 777 else 0) - (9 if at == 1500 else 0)) for at in range(5_000)]
    kept = thinned(points, 200)
    assert len(kept) <= 210
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert {points[777], points[1500]} <= set(kept)
    assert kept == sorted(kept)


def test_what_is_embedded_for_the_pointer_is_what_the_looks_said(promoted: dict[str, Any]) -> None:
    page = render(parts_of(promoted))
    data = parsed(page).find(f".//{XHTML}script[@id='data']")
    assert data is not None
    told = json.loads(data.text or "")
    assert len(told["looks"]) == len(promoted["looks.jsonl"])
    at, text = told["looks"][0]
    assert at == pytest.approx(promoted["looks.jsonl"][0]["at"], abs=0.06)
    assert "5%" in text
    assert "errors, beside the baseline" in text


def test_times_are_read_as_numbers_and_as_text_and_told_in_utc() -> None:
    assert seconds("2026-01-31T12:00:00.250Z") == START + 0.25
    assert seconds("2026-01-31T13:00:00+01:00") == START
    assert seconds(START) == START
    assert seconds("yesterday") is None
    assert seconds("2026-02-31T12:00:00Z") is None


def test_the_module_writes_the_page_once_and_tells_the_decision(
    run_module: RunModule, tmp_path: Path, rolled_back: dict[str, Any]
) -> None:
    directory = save(tmp_path / "r1", rolled_back)
    told = run_module("release_report", {"directory": str(directory)}, check=True)
    assert told["changed"] is True
    assert not (directory / "report.html").exists()
    told = run_module("release_report", {"directory": str(directory)})
    assert told["changed"] is True
    assert told["outcome"] == "rolled_back"
    assert told["reasons"] == rolled_back["rollout.json"].get("reasons", told["reasons"])
    assert "was rolled back at 20%" in told["decision"]
    assert (directory / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert run_module("release_report", {"directory": str(directory)})["changed"] is False
    assert "there is no rollout" in run_module("release_report", {"directory": str(tmp_path / "none")})["msg"]
