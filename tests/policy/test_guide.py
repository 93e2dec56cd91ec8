"""The guide's table: every row says what does it here, and names tests that exist."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from repository import PLAYBOOKS, ROOT, contents

GUIDE = ROOT / "docs" / "guide.md"
#: The guide's chapters, and in how many rows each command, list item and number of theirs is told.
CHAPTERS = {"部署步骤": 8, "配置管理": 23, "监控告警": 25, "版本管理": 26, "故障处理": 27, "运维操作": 16}


@dataclass(frozen=True)
class Row:
    """A row of the table and the line where it stands."""

    line: int
    chapter: str
    cells: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.line}: {self.cells[0]}"


def rows() -> list[Row]:
    """The table's rows but for its headings."""
    found, chapter = [], ""
    for number, line in enumerate(GUIDE.read_text().splitlines(), 1):
        if heading := re.match(r"## (.+)", line):
            chapter = heading.group(1)
        if line.startswith("| ") and not line.startswith("| guide |"):
            row = re.sub(r"\s*<!--.*?-->\s*$", "", line)
            found.append(Row(number, chapter, tuple(cell.strip() for cell in row.strip("|").split(" | "))))
    return found


@cache
def defined_in(path: Path) -> set[str]:
    """The tests that a file defines."""
    return set(re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)) if path.is_file() else set()


@pytest.mark.parametrize("row", rows(), ids=str)
def test_a_row_says_what_does_it_and_names_tests_that_exist(row: Row) -> None:
    assert len(row.cells) == 3, "the guide's words, ours, the proof"
    assert all(row.cells)
    named = re.findall(r"`([\w/.-]+\.py)::(test_\w+)`", row.cells[2])
    assert named, "no test is named"
    assert [f"{path}::{name}" for path, name in named if name not in defined_in(ROOT / path)] == []


@pytest.mark.parametrize("row", rows(), ids=str)
def test_a_row_names_playbooks_that_exist(row: Row) -> None:
    spans = " ".join(re.findall(r"`([^`]+)`", row.cells[1]))
    named = set(re.findall(r"(?<![\w/.-])([a-z-]+\.yml)\b", spans))
    assert named - {path.name for path in PLAYBOOKS} == set()


def test_each_chapter_has_its_rows_in_the_guides_order() -> None:
    told = Counter(row.chapter for row in rows())
    assert [heading.split(" · ")[:2] for heading in told] == [[str(number), name] for number, name in enumerate(CHAPTERS, 3)]
    assert list(told.values()) == list(CHAPTERS.values()), "a row came or went"


def test_the_guide_in_chinese_has_all_eight_chapters() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "docs" / "zh" / "README.md").read_text(), re.MULTILINE)
    assert headings == ["目录", "系统要求", "环境准备", *CHAPTERS]


def test_the_ci_example_goes_through_the_environments_in_order() -> None:
    jobs = contents(ROOT / "docs" / "examples" / "ci.yml")["jobs"]
    order = ["lint", "unit", "build-and-test", "qa", "staging", "production"]
    assert list(jobs) == order
    for name, job in jobs.items():
        assert all(order.index(needed) < order.index(name) for needed in job.get("needs", []))
    assert "staging" in jobs["production"]["needs"]
    assert "qa" in jobs["staging"]["needs"]
    # There a person says yes.
    assert [name for name, job in jobs.items() if "environment" in job] == ["qa", "production"]
