"""What happened in a span of time is found in what hosts wrote down, once each, and becomes a page in the guide's order."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.postmortem import (
    PostmortemError,
    alerts,
    app_log,
    file_name,
    journal,
    merged,
    moment,
    operations,
    page,
    releases,
    span,
    unit_log,
)
from plugin_testing import RunModule

NOW = 1769864400.0  # 2026-01-31 13:00 UTC
SINCE = NOW - 3600


def at(minute: int, second: int = 0) -> str:
    return f"2026-01-31T12:{minute:02}:{second:02}.000Z"


def lines(*entries: dict[str, Any]) -> list[str]:
    return [json.dumps(entry, separators=(",", ":")) for entry in entries]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31T12:00:00Z", SINCE),
        ("2026-01-31T13:00:00+01:00", SINCE),
        ("2026-01-31 12:00", SINCE),
        ("1h", SINCE),
        ("30m", NOW - 1800),
        ("", NOW),
    ],
)
def test_a_time_is_iso_or_short_in_utc_or_so_long_ago(text: str, expected: float) -> None:
    assert moment(text, NOW) == expected


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        ("", "", "from when"),
        ("yesterday", "", "'yesterday' is no time, expected"),
        ("2026-02-31 12:00", "", "is no time"),
        ("1h", "2h", "is empty"),
        ("2026-01-31 14:00", "2026-01-31 15:00", "is empty"),
    ],
)
def test_what_is_no_span_is_told_with_what_was_expected(first: str, last: str, said: str) -> None:
    with pytest.raises(PostmortemError, match=said):
        span(first, last, NOW)


def test_a_span_never_reaches_into_the_future() -> None:
    assert span("1h", "2026-01-31 15:00", NOW) == {"since": SINCE, "until": NOW}
    assert file_name(SINCE) == "2026-01-31T12-00-00Z.md"


def test_an_operation_is_told_with_who_what_how_it_ended_and_how_to_take_it_back() -> None:
    begin = {"at": at(5), "id": "x", "operation": "halt", "event": "begin", "by": "ann@desk", "what": ["Nobody trades"]}
    end = {**begin, "at": at(6), "event": "end", "what": ["Halted"], "result": "changed", "undo": "ansible-playbook halt.yml"}
    earlier = {**begin, "at": "2026-01-31T11:59:59Z"}
    told = operations([*lines(earlier, begin, end), "torn {"], SINCE, NOW)
    assert [event["text"] for event in told] == [
        "ann@desk began halt: Nobody trades",
        "halt ended, changed: Halted. To take it back: ansible-playbook halt.yml",
    ]
    assert {event["step"] for event in told} == {"solved"}


def test_an_operation_that_failed_has_no_way_back() -> None:
    end = {
        "at": at(6),
        "operation": "canary",
        "event": "end",
        "what": ["errors"],
        "result": "failed",
        "undo": "ansible-playbook rollback.yml",
    }
    assert [event["text"] for event in operations(lines(end), SINCE, NOW)] == ["canary ended, failed: errors"]


def test_the_journal_tells_what_was_done_and_the_way_back_solves() -> None:
    traffic = {"rollout": "r1", "by": "control", "event": "traffic", "after": {"stable": "blue", "canary": "green", "cut": 500}}
    told = journal(
        lines(
            {"at": at(1), **traffic, "phase": "intend"},
            {"at": at(1, 1), **traffic, "phase": "done"},
            {"at": at(2), "rollout": "r1", "by": "control", "event": "rollback", "reason": "errors 3%"},
            {"at": at(3), **traffic, "by": "watchdog", "phase": "done"},
        ),
        SINCE,
        NOW,
    )
    assert [(event["step"], event["text"]) for event in told] == [
        ("located", "traffic of r1 by control: stable blue, canary green, 5% on the canary, phase done"),
        ("solved", "rollback of r1 by control: errors 3%"),
        ("solved", "traffic of r1 by watchdog: stable blue, canary green, 5% on the canary, phase done"),
    ]


def test_the_apps_daily_work_is_left_out_and_the_same_words_are_told_once() -> None:
    about = {"instance": "app1", "slot": "blue"}
    told = app_log(
        lines(
            {"at": at(1), "event": "order", "account": "a", "order": "o1", "outcome": "accepted", **about},
            {"at": at(1), "event": "venue", "order": "o1", "outcome": "filled", **about},
            {"at": at(2), "event": "redis", "state": "away", "reason": "redis://bot:secret@data1 refused", **about},
            {"at": at(3), "event": "defect", "request": "q-1", "error": "KeyError(17)", **about},
            {"at": at(4), "event": "defect", "request": "q-2", "error": "KeyError(18)", **about},
            {"at": at(5), "event": "dispatch", "order": "o2", "outcome": "left", "reason": "venue away", **about},
        ),
        SINCE,
        NOW,
    )
    assert [event["text"] for event in told] == [
        "redis: state away, reason redis://…@data1 refused (blue)",
        "defect: error KeyError(17) (blue); 2 times, the last at 12:04:00",
        "dispatch: outcome left, reason venue away (blue)",
    ]


def test_warnings_of_services_are_told_by_unit() -> None:
    entry = {
        "__REALTIME_TIMESTAMP": str(int((SINCE + 60) * 1e6)),
        "_SYSTEMD_UNIT": "init.scope",
        "UNIT": "trading-bot@blue.service",
    }
    told = unit_log(lines({**entry, "MESSAGE": "Failed with result 'exit-code'."}, {**entry, "MESSAGE": [1, 2]}), SINCE, NOW)
    assert [(event["at"], event["text"]) for event in told] == [(SINCE + 60, "trading-bot@blue: Failed with result 'exit-code'.")]


def test_a_release_that_came_and_a_slot_that_was_given_another_are_changes() -> None:
    known = [{"id": "1.0-a", "config_sha256": "c" * 64, "placed_at": SINCE + 1}, {"id": "0.9-b", "placed_at": SINCE - 1}]
    told = releases(known, {"blue": ("1.0-a", SINCE + 2), "green": ("0.9-b", SINCE - 2)}, SINCE, NOW)
    assert [event["text"] for event in told] == [
        "1.0-a came onto the disk, configuration cccccccccccc",
        "the slot blue has led to 1.0-a since then",
    ]


def test_an_alert_fires_and_stops_as_often_as_prometheus_saw_it() -> None:
    def series(name: str, *times: float) -> dict[str, Any]:
        labels = {"__name__": "ALERTS", "alertname": name, "alertstate": "firing", "severity": "critical", "instance": "app1"}
        return {"metric": labels, "values": [[time, "1"] for time in times]}

    answer = {
        "data": {
            "result": [
                series("InstanceDown", SINCE + 60, SINCE + 75, SINCE + 600),
                series("RedisDown", SINCE, NOW),
                series("Watchdog", SINCE, SINCE + 15),
            ]
        }
    }
    told = alerts(answer, SINCE, NOW)
    assert [(event["at"] - SINCE, event["text"]) for event in told if "InstanceDown" in event["text"]] == [
        (60, "InstanceDown (critical) of instance app1 fires"),
        (90, "InstanceDown (critical) of instance app1 has stopped"),
        (600, "InstanceDown (critical) of instance app1 fires"),
        (615, "InstanceDown (critical) of instance app1 has stopped"),
    ]
    assert "RedisDown (critical) of instance app1 fires already" in [event["text"] for event in told]
    assert not [event for event in told if "Watchdog" in event["text"]]


def event(minute: int, step: str, source: str, text: str) -> dict[str, Any]:
    return {"at": SINCE + 60 * minute, "step": step, "source": source, "text": text}


def test_what_several_hosts_say_at_about_the_same_time_is_one_event() -> None:
    said = event(1, "solved", "operation", "ann began halt")
    later = {**said, "at": said["at"] + 20}
    told = merged({"app2": [later], "app1": [said], "lb1": [event(9, "solved", "operation", "ann began halt")]})
    assert [(one["at"] - SINCE, one["hosts"]) for one in told] == [(60, ["app1", "app2"]), (540, ["lb1"])]


def test_the_page_has_the_guides_order_durations_open_questions_and_what_was_not_read() -> None:
    by_host = {
        "app1": [event(1, "located", "config", "1.0-a came"), event(3, "located", "app", "defect: a|b <script>")],
        "mon1": [
            event(5, "found", "alert", "OrderErrorsHigh fires"),
            event(20, "solved", "alert", "OrderErrorsHigh has stopped"),
        ],
        "lb1": [event(8, "solved", "operation", "ann@desk began rollback")],
    }
    text = page(SINCE, NOW, by_host, ["app2: it did not answer"])
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["Found", "Located", "Solved", "Reviewed", "In the order of time", "Not read"]
    assert "From the last change to the first alert: 4 minutes" in text
    assert "From the first alert to the first operation: 3 minutes" in text
    assert "From the first alert to the last that stopped: 15 minutes" in text
    assert "defect: a\\|b &lt;script>" in text
    assert text.count("- [ ] ") == 9
    assert "app2: it did not answer" in text


def test_a_quiet_span_says_so() -> None:
    text = page(SINCE, NOW, {"app1": []})
    assert "No alert fired in this time." in text
    assert "Nothing was written down." in text
    assert "Not read" not in text


def test_a_host_is_read_with_what_was_rotated_and_what_it_does_not_have_is_no_error(
    run_module: RunModule, tmp_path: Path
) -> None:
    logs, root = tmp_path / "log", tmp_path / "root"
    logs.mkdir()
    (logs / "trading-bot-blue.log").write_text("\n".join(lines({"at": at(9), "event": "warning", "detail": "now"})) + "\n")
    with gzip.open(logs / "trading-bot-blue.log-20260131.gz", "wt") as file:
        file.write("\n".join(lines({"at": at(8), "event": "warning", "detail": "rotated"})) + "\n")
    placed = root / "releases" / "1.0-a"
    placed.mkdir(parents=True)
    (placed / "release.json").write_text('{"id": "1.0-a", "config_sha256": "cc"}')
    os.utime(placed / "release.json", (SINCE + 60, SINCE + 60))
    state = {"operations": str(tmp_path / "none.jsonl"), "journal": str(tmp_path / "none"), "logs": str(logs), "root": str(root)}
    told = run_module("postmortem_read", {"since": SINCE, "until": NOW, **state})
    assert not told["changed"]
    assert told["notes"] == []
    assert sorted(event["text"] for event in told["events"]) == [
        "1.0-a came onto the disk, configuration cc",
        "warning: detail now",
        "warning: detail rotated",
    ]


def test_what_cannot_be_read_is_a_note_and_the_rest_is_there(run_module: RunModule, tmp_path: Path) -> None:
    log = tmp_path / "operations.jsonl"
    log.write_text("\n".join(lines({"at": at(5), "event": "begin", "by": "ann", "operation": "halt", "what": ["x"]})))
    state = {"operations": str(log), "journal": str(tmp_path), "logs": str(tmp_path), "root": str(tmp_path)}
    told = run_module("postmortem_read", {"since": SINCE, "until": NOW, **state, "prometheus": "http://127.0.0.1:1"})
    assert [event["text"] for event in told["events"]] == ["ann began halt: x"]
    assert len(told["notes"]) == 1
    assert "127.0.0.1:1" in told["notes"][0]
