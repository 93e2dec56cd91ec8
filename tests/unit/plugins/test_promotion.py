"""What an image has been through is written beside it, and what it lacks is said by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.promotion import PromotionError, missing, parse, table
from plugin_testing import RunModule

IMAGE, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store that has 1.4.0."""
    (tmp_path / "1.4.0").mkdir()
    built(tmp_path, IMAGE)
    return tmp_path


def built(store: Path, image: str | None) -> None:
    artifact = {"version": "1.4.0", "wheel_sha256": "c" * 64, **({"image": image} if image else {})}
    (store / "1.4.0" / "release-artifact.json").write_text(json.dumps(artifact))


def served(environment: str, event: str = "deploy") -> dict[str, Any]:
    return {"state": "present", "event": event, "environment": environment, "release_id": "1.4.0-0123456789", "by": "ci@runner"}


def asked(store: Path, **more: Any) -> dict[str, Any]:
    return {"store": str(store), "version": "1.4.0", **more}


WANTED = {"requires": ["test", "staging"], "marks": ["review", "qa"]}


def test_what_is_missing_is_said_by_name(run_module: RunModule, store: Path) -> None:
    run_module("release_promotion", asked(store, **served("test")))
    told = run_module("release_promotion", asked(store, environment="production", **WANTED))
    assert [sentence.partition(":")[0] for sentence in told["missing"]] == ["staging", "review", "qa"]
    assert "ansible-playbook -i inventories/staging deploy.yml -e release_version=1.4.0" in told["missing"][0]
    assert "ansible-playbook release-gate.yml -e release_version=1.4.0 -e release_mark=qa" in told["missing"][2]
    assert told["table"][1].startswith("test: deploy of 1.4.0-0123456789, 20")
    assert told["table"][2:] == ["staging: missing", "review: missing", "qa: missing"]


def test_with_all_of_it_nothing_is_missing(run_module: RunModule, store: Path) -> None:
    for line in (served("test"), served("staging", "canary")):
        run_module("release_promotion", asked(store, **line))
    for mark in ("review", "qa"):
        run_module("release_promotion", asked(store, state="present", event="mark", mark=mark, by="alice"))
    assert run_module("release_promotion", asked(store, environment="production", **WANTED))["missing"] == []


def test_a_promotion_is_of_an_image_and_not_of_a_version_alone(run_module: RunModule, store: Path) -> None:
    run_module("release_promotion", asked(store, **served("test")))
    built(store, OTHER)
    [told] = run_module("release_promotion", asked(store, requires=["test"]))["missing"]
    assert "another image of 1.4.0 was, on 20" in told
    assert "it was built again" in told


def test_a_mark_is_of_one_image_and_says_who_and_when(run_module: RunModule, store: Path) -> None:
    given = run_module("release_promotion", asked(store, state="present", event="mark", mark="qa", by="alice", marks=["qa"]))
    assert given["table"][1].startswith("qa: alice, 20")
    built(store, OTHER)
    assert len(run_module("release_promotion", asked(store, marks=["qa"]))["missing"]) == 1


def test_the_same_is_written_once_and_check_mode_writes_nothing(run_module: RunModule, store: Path) -> None:
    record = store / "1.4.0" / "promotions.jsonl"
    assert run_module("release_promotion", asked(store, **served("test")), check=True)["changed"]
    assert not record.exists()
    assert run_module("release_promotion", asked(store, **served("test")))["changed"]
    assert not run_module("release_promotion", asked(store, **served("test")))["changed"]
    [line] = parse(record.read_text(), "record")
    assert {key: line[key] for key in ("image", "event", "environment", "by")} == {
        "image": IMAGE,
        "event": "deploy",
        "environment": "test",
        "by": "ci@runner",
    }


def test_what_served_here_before_is_let_in_again(run_module: RunModule, store: Path) -> None:
    run_module("release_promotion", asked(store, **served("production")))
    assert run_module("release_promotion", asked(store, environment="production", **WANTED))["missing"] == []
    assert len(run_module("release_promotion", asked(store, environment="staging", **WANTED))["missing"]) == 4


def test_without_an_image_it_is_the_wheel(run_module: RunModule, store: Path) -> None:
    built(store, None)
    assert run_module("release_promotion", asked(store))["image"] == "sha256:" + "c" * 64


def test_a_version_that_the_store_lacks_is_told_with_what_there_is(run_module: RunModule, store: Path) -> None:
    told = run_module("release_promotion", {"store": str(store), "version": "1.5.0"})
    assert told["failed"]
    assert "has no version 1.5.0; it has: 1.4.0" in told["msg"]


def test_a_line_that_is_none_is_told_with_its_place(run_module: RunModule, store: Path) -> None:
    (store / "1.4.0" / "promotions.jsonl").write_text('{"image": "x", "event": "deploy", "at": "now"}\n{"image"\n')
    told = run_module("release_promotion", asked(store))
    assert told["failed"]
    assert "promotions.jsonl, line 2 is no line of a record" in told["msg"]
    with pytest.raises(PromotionError, match="line 1"):
        parse("[]", "record")


def test_what_is_there_and_not_asked_for_is_shown_too() -> None:
    lines = [{"image": IMAGE, "event": "mark", "mark": "load-test", "by": "bob", "at": "2026-01-31T12:00:00Z"}]
    assert table(lines, IMAGE, "1.4.0", [], [])[1:] == ["load-test: bob, 2026-01-31T12:00:00Z"]
    assert table(lines, OTHER, "1.4.0", [], [])[1:] == []
    assert missing(lines, IMAGE, "1.4.0", [], []) == []
