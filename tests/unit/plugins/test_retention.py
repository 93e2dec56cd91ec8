"""The last releases stay, with what they need; never does one go that is linked, or that an inventory's hosts may need."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.retention import OnDisk, surplus, surplus_versions
from hypothesis import given
from hypothesis import strategies as st
from plugin_testing import RunModule, missing

NO_DOCKER = "/nonexistent/docker"


def ids(releases: list[OnDisk]) -> list[str]:
    """Their names."""
    return [release.id for release in releases]


def test_the_oldest_go_by_when_they_last_served_and_not_by_name() -> None:
    releases = [OnDisk("1.9.0", False, 10), OnDisk("1.10.0", False, 30), OnDisk("1.2.0", False, 40), OnDisk("1.3.0", False, 20)]
    assert ids(surplus(releases, 2)) == ["1.9.0", "1.3.0"]


def test_a_linked_release_stays_however_old_and_counts_among_the_kept() -> None:
    releases = [OnDisk("old", True, 1), OnDisk("a", False, 2), OnDisk("b", False, 3), OnDisk("c", False, 4)]
    assert ids(surplus(releases, 2)) == ["a", "b"]


def test_more_linked_releases_than_are_to_be_kept_all_stay() -> None:
    assert surplus([OnDisk(name, True, 1) for name in "abc"], 2) == []


def test_to_keep_fewer_than_what_serves_and_the_one_before_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        surplus([], 1)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=12), st.integers(2, 8))
def test_what_stays_is_at_least_what_was_asked_for_and_everything_linked(found: list[tuple[bool, int]], keep: int) -> None:
    releases = [OnDisk(str(number), linked, float(at)) for number, (linked, at) in enumerate(found)]
    gone = surplus(releases, keep)
    stay = [release for release in releases if release not in gone]
    assert len(stay) >= min(keep, len(releases))
    assert len(stay) == max(min(keep, len(releases)), sum(release.linked for release in releases))
    assert not any(release.linked for release in gone)
    assert all(release.linked or old.served_at <= release.served_at for old in gone for release in stay)


def test_a_version_that_any_inventory_needs_stays_in_the_store_and_so_do_those_built_last() -> None:
    built = {"1.0": 1.0, "1.1": 2.0, "1.2": 3.0, "1.3": 4.0, "1.4": 5.0}
    assert surplus_versions(built, {"lab": ["1.1"], "production": ["1.0", "0.9"]}, 2) == ["1.2"]
    assert surplus_versions(built, {}, 2) == ["1.0", "1.1", "1.2"]


# --- on a host ---------------------------------------------------------------------------------------------------


class AppHost:
    """An app host's directory with releases, the first of them the oldest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("releases", "slots", "venvs"):
            (root / name).mkdir(parents=True)

    def release(self, version: str, age: int, venv: str = "", **more: Any) -> str:
        """Put a release there that is so many seconds old."""
        name = f"{version}-{age:010x}"
        path = self.root / "releases" / name
        path.mkdir()
        (path / "release.json").write_text(json.dumps({"id": name, "version": version, **more}))
        if venv:
            (self.root / "venvs" / venv).mkdir(exist_ok=True)
            (self.root / "venvs" / venv / ".complete").touch()
            (path / "venv").symlink_to(self.root / "venvs" / venv)
        os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
        return name

    def there(self, what: str = "releases") -> set[str]:
        """What is there."""
        return {path.name for path in (self.root / what).iterdir()}


@pytest.fixture
def host(tmp_path: Path) -> AppHost:
    """A host without a release."""
    return AppHost(tmp_path / "trading-bot")


def test_a_host_keeps_the_last_releases_and_their_environments(run_module: RunModule, host: AppHost) -> None:
    names = [host.release(f"1.{age}.0", age, venv=f"v{age // 2}") for age in range(8)]
    (host.root / "slots" / "blue").symlink_to(f"../releases/{names[0]}")
    (host.root / "slots" / "green").symlink_to(f"../releases/{names[6]}")
    (host.root / "previous").symlink_to(f"releases/{names[7]}")
    (host.root / "venvs" / "hosts-own").mkdir()
    (host.root / "venvs" / "hosts-own" / ".complete").touch()
    (host.root / "runtime").symlink_to(host.root / "venvs" / "hosts-own")
    (host.root / "venvs" / "being-built").mkdir()
    given_ = {"root": str(host.root), "keep": 4, "docker": NO_DOCKER, "links": []}

    before = {path: path.stat().st_mtime for path in host.root.rglob("*")}
    told = run_module("release_retain", given_, check=True)
    assert told["removed"] == {"releases": [names[5], names[4], names[3], names[2]], "venvs": ["v1", "v2"], "images": []}
    assert {path: path.stat().st_mtime for path in host.root.rglob("*")} == before

    done = run_module("release_retain", given_)
    assert done == told
    assert host.there() == {names[0], names[1], names[6], names[7]}
    assert host.there("venvs") == {"v0", "v3", "hosts-own", "being-built"}
    assert done["versions"] == ["1.0.0", "1.1.0", "1.6.0", "1.7.0"]
    assert run_module("release_retain", given_)["changed"] is False


def test_a_release_that_served_lately_outlives_one_that_was_built_later(run_module: RunModule, host: AppHost) -> None:
    """It leaves its slot: its time is that of the last run that saw it there."""
    old, newer, newest = host.release("1.0.0", 900), host.release("1.1.0", 20), host.release("1.2.0", 10)
    slot = host.root / "slots" / "blue"
    slot.symlink_to(f"../releases/{old}")
    given_ = {"root": str(host.root), "docker": NO_DOCKER, "links": []}
    run_module("release_retain", {**given_, "keep": 3})
    slot.unlink()
    slot.symlink_to(f"../releases/{newest}")
    assert run_module("release_retain", {**given_, "keep": 2})["removed"]["releases"] == [newer]
    assert host.there() == {old, newest}


def test_a_kept_release_that_cannot_be_read_keeps_every_environment_and_image(run_module: RunModule, host: AppHost) -> None:
    kept, gone = host.release("1.1.0", 1), [host.release(f"1.0.{age}", age, venv=f"v{age}") for age in (9, 8)]
    host.release("1.2.0", 0)
    (host.root / "releases" / kept / "release.json").write_text("{")
    done = run_module("release_retain", {"root": str(host.root), "keep": 2, "docker": NO_DOCKER, "links": []})
    assert done["removed"] == {"releases": gone, "venvs": [], "images": []}
    assert host.there("venvs") == {"v8", "v9"}
    assert done["versions"] == ["1.1.0", "1.2.0"]


def test_a_host_without_anything_is_left_alone(run_module: RunModule, tmp_path: Path) -> None:
    done = run_module("release_retain", {"root": str(tmp_path / "none"), "keep": 5, "docker": NO_DOCKER})
    assert done["changed"] is False
    assert "too few" in run_module("release_retain", {"root": str(tmp_path), "keep": 1, "docker": NO_DOCKER})["msg"]


def docker(*arguments: str, **options: Any) -> str:
    """The standard output of the engine's client."""
    printed: bytes = subprocess.run(["docker", *arguments], check=True, capture_output=True, **options).stdout
    return printed.decode().strip()


@pytest.fixture
def repository() -> Iterator[str]:
    """A name of this test's own for images; those that it still names afterwards are removed."""
    try:
        docker("version")
    except (OSError, subprocess.CalledProcessError):
        missing("Docker's engine")
    name = f"retention-test-{uuid.uuid4().hex[:8]}"
    yield name
    left = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", name).split()
    if left:
        docker("image", "rm", *left)


def image(repository: str, tag: str) -> str:
    """Make an image of next to nothing; its id."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(tag))
    return docker("import", "-", f"{repository}:{tag}", input=archive.getvalue())


def test_images_of_removed_releases_go_but_not_one_that_a_container_uses(
    run_module: RunModule, host: AppHost, repository: str
) -> None:
    found = {tag: image(repository, tag) for tag in ("kept", "old", "used", "manifest")}
    host.release("1.3.0", 1, image=found["kept"])
    host.release("1.2.0", 2, image="sha256:" + 64 * "0", image_manifest=found["manifest"])
    host.release("1.1.0", 3, image=found["old"])
    host.release("1.0.0", 4, image=found["used"])
    container = docker("create", f"{repository}:used", "/nothing")
    try:
        given_ = {"root": str(host.root), "keep": 2, "repository": repository, "links": []}
        told = run_module("release_retain", given_, check=True)
        assert sorted(told["removed"]["images"]) == [f"{repository}:old", f"{repository}:used"]
        done = run_module("release_retain", given_)
        assert done["removed"]["images"] == [f"{repository}:old"]
        left = docker("image", "ls", "--format", "{{.Tag}}", repository).split()
        assert sorted(left) == ["kept", "manifest", "used"]
        assert run_module("release_retain", given_)["changed"] is False
    finally:
        docker("rm", container)


# --- on the control node -----------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with versions 1.0 to 1.5, built in this order."""
    path = tmp_path / "store"
    for number in range(6):
        directory = path / f"1.{number}"
        directory.mkdir(parents=True)
        record = directory / "release-artifact.json"
        record.write_text("{}")
        os.utime(record, (1_700_000_000 + number, 1_700_000_000 + number))
    return path


def stored(store: Path) -> list[str]:
    """The versions in the store."""
    return sorted(path.name for path in store.glob("[!k]*"))


def test_the_store_keeps_what_the_hosts_of_every_inventory_keep(run_module: RunModule, store: Path) -> None:
    given_ = {"store": str(store), "keep": 2, "docker": NO_DOCKER}
    production = {**given_, "inventory": ["/srv/production"], "versions": ["1.0", "1.1"], "keep": 6}
    lab = {**given_, "inventory": ["/srv/lab"], "versions": ["1.2", "1.5"]}
    assert run_module("release_store", production)["removed"] == []
    told = run_module("release_store", lab, check=True)
    assert told["removed"] == ["1.3"]
    assert len(stored(store)) == 6
    assert run_module("release_store", lab)["removed"] == ["1.3"]
    assert stored(store) == ["1.0", "1.1", "1.2", "1.4", "1.5"]
    assert run_module("release_store", lab)["changed"] is False
    later = run_module("release_store", {**production, "versions": ["1.1", "1.5"], "keep": 2})
    assert later["removed"] == ["1.0"]


def test_a_record_that_cannot_be_read_removes_nothing(run_module: RunModule, store: Path) -> None:
    (store / "kept").mkdir()
    (store / "kept" / "x.json").write_text("{")
    told = run_module(
        "release_store", {"store": str(store), "keep": 1, "inventory": ["lab"], "versions": [], "docker": NO_DOCKER}
    )
    assert "nothing is removed" in told["msg"]
    assert len(stored(store)) == 6
