"""What an operator did is one whole line in each host's log."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from plugin_testing import RunModule

BEGIN = {"id": "20260131T120000Z-halt", "operation": "halt", "event": "begin", "by": "alice@control", "what": ["Nobody trades"]}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "state" / "operations.jsonl"


def lines(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_the_lines_of_a_run_are_appended_whole_and_share_its_name(run_module: RunModule, log: Path) -> None:
    run_module("operation_line", {"path": str(log), **BEGIN})
    end = {**BEGIN, "event": "end", "what": ["Halted «now»\nby hand"], "result": "changed", "undo": "ansible-playbook resume"}
    told = run_module("operation_line", {"path": str(log), **end})
    first, last = lines(log)
    assert {key: first[key] for key in BEGIN} == BEGIN
    assert (last["id"], last["event"], last["result"], last["what"]) == (first["id"], "end", "changed", ["Halted «now»\nby hand"])
    assert told["line"] == last
    assert not told["changed"]


def test_others_may_not_read_it(run_module: RunModule, log: Path) -> None:
    run_module("operation_line", {"path": str(log), **BEGIN})
    assert stat.S_IMODE(log.stat().st_mode) == 0o640


def test_check_mode_shows_the_line_and_writes_none(run_module: RunModule, log: Path) -> None:
    told = run_module("operation_line", {"path": str(log), **BEGIN}, check=True)
    assert told["line"]["by"] == "alice@control"
    assert not log.exists()


def test_an_end_has_to_say_how_it_ended(run_module: RunModule, log: Path) -> None:
    told = run_module("operation_line", {"path": str(log), **BEGIN, "event": "end"})
    assert told["failed"]
    assert "result" in told["msg"]


def test_a_log_that_cannot_be_written_is_said(run_module: RunModule, tmp_path: Path) -> None:
    told = run_module("operation_line", {"path": str(tmp_path), **BEGIN})
    assert told["failed"]
    assert str(tmp_path) in told["msg"]
