"""The module that builds a version once, with a small app of the test's own and a real engine."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.artifact import (
    ArtifactError,
    check_python,
    check_version,
    resolve,
    same_dependencies,
    source_digest,
    source_files,
    versions_of_tags,
)
from ansible.module_utils.image_store import read
from plugin_testing import RunModule, missing

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "trading-bot"
version = "{version}"
requires-python = ">=3.11"
[tool.hatch.build.targets.wheel]
packages = ["src/trading_bot"]
"""
DOCKERFILE = """ARG BASE_IMAGE
FROM ${BASE_IMAGE}
COPY wheels/deps/ /deps/
COPY wheels/app/ /app/
"""


def dependency(directory: Path) -> str:
    """A wheel of nothing, and the line that locks it."""
    name = "tbdep-1.0-py3-none-any.whl"
    record = "tbdep.py,,\ntbdep-1.0.dist-info/METADATA,,\ntbdep-1.0.dist-info/WHEEL,,\ntbdep-1.0.dist-info/RECORD,,\n"
    files = {
        "tbdep.py": "",
        "tbdep-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tbdep\nVersion: 1.0\n",
        "tbdep-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tbdep-1.0.dist-info/RECORD": record,
    }
    with zipfile.ZipFile(directory / name, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
    return f"tbdep==1.0 --hash=sha256:{hashlib.sha256((directory / name).read_bytes()).hexdigest()}\n"


class Repository:
    """A git repository with an app, and a store."""

    def __init__(self, root: Path) -> None:
        self.root = root / "repository"
        self.app = self.root / "app"
        self.store = root / "store"
        (self.app / "src/trading_bot").mkdir(parents=True)
        (root / "index").mkdir()
        (self.app / "requirements.txt").write_text(dependency(root / "index"))
        (self.app / "Dockerfile").write_text(DOCKERFILE)
        self.write("1.0.0", "first")
        self.git("init", "--quiet", "--initial-branch", "main")
        self.commit()

    def git(self, *command: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *command], cwd=self.root, check=True, capture_output=True)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "state")

    def write(self, version: str, text: str) -> None:
        (self.app / "pyproject.toml").write_text(PYPROJECT.format(version=version))
        (self.app / "src/trading_bot/__init__.py").write_text(f"TEXT = {text!r}\n")

    def args(self, **more: Any) -> dict[str, Any]:
        where = {"store": str(self.store), "source": str(self.root)}
        return {**where, "build_image": False, "python_versions": [PYTHON], "image_python": PYTHON, **more}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A repository whose dependencies come from a directory beside it."""
    if shutil.which("git") is None:
        missing("git")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return Repository(tmp_path)


def test_the_checkouts_version_is_built_once(repository: Repository, run_module: RunModule) -> None:
    built = run_module("release_build", repository.args())
    assert (built["changed"], built["built"], built["origin"], built["version"]) == (True, True, "checkout", "1.0.0")
    assert Path(built["wheel"]).name == "trading_bot-1.0.0-py3-none-any.whl"
    assert hashlib.sha256(Path(built["wheel"]).read_bytes()).hexdigest() == built["wheel_sha256"]
    assert [p.name for p in Path(built["wheels_dirs"][PYTHON]).iterdir()] == ["tbdep-1.0-py3-none-any.whl"]
    assert built["image"] == f"sha256:{built['wheel_sha256']}"
    assert json.loads((Path(built["directory"]) / "release-artifact.json").read_text()) == built["artifact"]
    again = run_module("release_build", repository.args())
    assert (again["changed"], again["origin"], again["artifact"]) == (False, "store", built["artifact"])
    assert again["versions"] == ["1.0.0"]


def test_nothing_is_left_of_a_build_but_the_version(repository: Repository, run_module: RunModule) -> None:
    run_module("release_build", repository.args())
    assert [path.name for path in repository.store.iterdir()] == ["1.0.0"]


def test_the_same_sources_give_the_same_wheel(repository: Repository, run_module: RunModule, tmp_path: Path) -> None:
    one = run_module("release_build", repository.args())
    os.utime(repository.app / "src/trading_bot/__init__.py", (1, 1))
    two = run_module("release_build", repository.args(store=str(tmp_path / "other")))
    assert one["wheel_sha256"] == two["wheel_sha256"]


def test_changed_sources_under_a_built_version_are_refused(repository: Repository, run_module: RunModule) -> None:
    built = run_module("release_build", repository.args())
    repository.write("1.0.0", "changed")
    refused = run_module("release_build", repository.args())
    assert "are not those that 1.0.0 was built from" in refused["msg"]
    assert "raise the version in" in refused["msg"]
    warned = run_module("release_build", repository.args(changed_source="warn"))
    assert (warned["changed"], warned["artifact"]) == (False, built["artifact"])
    assert "are not those that 1.0.0 was built from" in json.dumps(warned["warnings"])


def test_an_older_version_comes_from_the_store_whatever_the_checkout_is(repository: Repository, run_module: RunModule) -> None:
    old = run_module("release_build", repository.args())
    repository.write("1.1.0", "second")
    new = run_module("release_build", repository.args())
    assert new["version"] == "1.1.0"
    assert run_module("release_build", repository.args(version="1.0.0"))["artifact"] == old["artifact"]
    # The dependencies did not change, so their wheels are the same files.
    inodes = [next(Path(r["wheels_dirs"][PYTHON]).iterdir()).stat().st_ino for r in (old, new)]
    assert inodes[0] == inodes[1]


def test_a_tagged_version_is_built_from_its_tag(repository: Repository, run_module: RunModule) -> None:
    from_checkout = run_module("release_build", repository.args())
    repository.git("tag", "v1.0.0")
    repository.write("1.1.0", "second")
    repository.commit()
    shutil.rmtree(repository.store)
    result = run_module("release_build", repository.args(version="1.0.0"))
    assert (result["origin"], result["artifact"]["origin"]) == ("tag", "tag")
    assert result["wheel_sha256"] == from_checkout["wheel_sha256"]


def test_a_tag_on_another_version_is_refused(repository: Repository, run_module: RunModule) -> None:
    repository.git("tag", "v2.0.0")
    result = run_module("release_build", repository.args(version="2.0.0"))
    assert result["msg"] == "the tag v2.0.0 has version 1.0.0 in its pyproject.toml"
    assert list(repository.store.iterdir()) == []


def test_an_unknown_version_is_refused_with_where_it_was_looked_for(repository: Repository, run_module: RunModule) -> None:
    run_module("release_build", repository.args())
    repository.git("tag", "v0.9.0")
    result = run_module("release_build", repository.args(version="9.9.9"))
    assert result["msg"] == (
        f"release 9.9.9 is unknown: the store {repository.store} has 1.0.0; the checkout is 1.0.0;"
        " there is no git tag v9.9.9 (tagged: 0.9.0)"
    )


def test_check_mode_says_that_it_would_build(repository: Repository, run_module: RunModule) -> None:
    result = run_module("release_build", repository.args(), check=True)
    assert (result["changed"], result["built"], result["artifact"], result["image"]) == (True, False, None, None)
    assert not repository.store.exists()


def test_reading_tells_what_there_is(repository: Repository, run_module: RunModule) -> None:
    result = run_module("release_build", repository.args(state="read"))
    assert (result["versions"], result["checkout_version"], result["changed"]) == ([], "1.0.0", False)


def test_a_failing_build_tells_the_end_of_what_it_printed(repository: Repository, run_module: RunModule) -> None:
    (repository.app / "requirements.txt").write_text(f"tbdep==1.0 --hash=sha256:{'0' * 64}\n")
    result = run_module("release_build", repository.args())
    assert result["msg"].startswith(f"downloading the dependencies for Python {PYTHON} failed")
    assert "HASHES" in result["msg"].upper()
    assert list(repository.store.iterdir()) == []


@pytest.mark.parametrize("name", ["Dockerfile", "requirements.txt"])
def test_a_version_that_lacks_a_file_is_refused(repository: Repository, run_module: RunModule, name: str) -> None:
    (repository.app / name).unlink()
    assert run_module("release_build", repository.args())["msg"] == f"version 1.0.0 has no {name} in app"


def test_a_broken_project_file_or_none_is_told(repository: Repository, run_module: RunModule) -> None:
    (repository.app / "pyproject.toml").write_text("[")
    assert "pyproject.toml cannot be read" in run_module("release_build", repository.args())["msg"]
    (repository.app / "pyproject.toml").unlink()
    assert "pyproject.toml has none" in run_module("release_build", repository.args())["msg"]


def test_a_broken_record_in_the_store_is_told_with_the_way_out(repository: Repository, run_module: RunModule) -> None:
    built = run_module("release_build", repository.args())
    (Path(built["directory"]) / "release-artifact.json").write_text("{")
    assert "to have it built again" in run_module("release_build", repository.args())["msg"]


def test_wheels_for_another_python_are_added_to_a_built_version(repository: Repository, run_module: RunModule) -> None:
    built = run_module("release_build", repository.args())
    more = run_module("release_build", repository.args(python_versions=[PYTHON, "3.14"]))
    assert (more["changed"], more["wheel_sha256"]) == (True, built["wheel_sha256"])
    assert set(more["wheels_dirs"]) == {PYTHON, "3.14"}
    assert run_module("release_build", repository.args(python_versions=["3.14"]))["changed"] is False


# --- the image ---


def test_an_extra_lies_apart_with_its_own_lock_and_goes_with_its_version(repository: Repository, run_module: RunModule) -> None:
    lock = (repository.app / "requirements.txt").read_text()
    (repository.app / "requirements-notify.txt").write_text(f"# the extra\n{lock}")
    assert run_module("release_build", repository.args(extra="notify"), check=True)["changed"] is True
    told = run_module("release_build", repository.args(extra="notify"))
    directory = Path(told["extra_directory"])
    assert directory == repository.store / "notify" / "1.0.0"
    assert (directory / "requirements.txt").read_text().startswith("# the extra")
    assert sorted(path.suffix for path in directory.rglob("*.whl")) == [".whl", ".whl"]
    # Not where the image and the app hosts take theirs from.
    assert len(list((repository.store / "1.0.0").rglob("*.whl"))) == 2
    assert run_module("release_build", repository.args(extra="notify"))["changed"] is False
    repository.write("2.0.0", "second")
    repository.commit()
    shutil.rmtree(repository.store / "1.0.0")
    run_module("release_build", repository.args(extra="notify"))
    assert [path.name for path in (repository.store / "notify").iterdir()] == ["2.0.0"]


def test_a_version_that_was_built_without_the_extra_says_so(repository: Repository, run_module: RunModule) -> None:
    told = run_module("release_build", repository.args(extra="notify"))
    assert told["failed"]
    assert "built without requirements-notify.txt" in told["msg"]


@pytest.fixture
def base_image(tmp_path: Path) -> Iterator[str]:
    """An image with one file."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, check=False).returncode:
        missing("docker")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("unique")
        data = base64.b64encode(os.urandom(30))
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    tag = f"tb-test-base-{os.getpid()}:1"
    subprocess.run([docker, "import", "-", tag], input=archive.getvalue(), check=True, capture_output=True)
    yield tag
    for record in tmp_path.glob("store/*/release-artifact.json"):
        image = json.loads(record.read_text()).get("image")
        if image:
            subprocess.run([docker, "image", "rm", "--force", image], check=False, capture_output=True)
    subprocess.run([docker, "image", "rm", "--force", tag], check=True, capture_output=True)


def test_the_image_is_built_and_taken_apart(repository: Repository, base_image: str, run_module: RunModule) -> None:
    built = run_module("release_build", repository.args(build_image=True, base_image=base_image))
    image = read(Path(built["image_dir"]))
    assert (built["image"], built["image_manifest"]) == (image.id, image.manifest_digest)
    assert len(image.layers) == 3
    repository.write("1.1.0", "second")
    new = run_module("release_build", repository.args(build_image=True, base_image=base_image))
    second = read(Path(new["image_dir"]))
    assert second.diff_ids[:2] == image.diff_ids[:2]
    assert second.id != image.id
    assert second.layers[0].path.stat().st_ino == image.layers[0].path.stat().st_ino


def test_an_image_is_added_to_a_version_that_was_built_without(
    repository: Repository, base_image: str, run_module: RunModule
) -> None:
    without = run_module("release_build", repository.args())
    assert without["image_manifest"] is None
    result = run_module("release_build", repository.args(build_image=True, base_image=base_image))
    assert (result["changed"], result["wheel_sha256"]) == (True, without["wheel_sha256"])
    assert result["image"] == read(Path(result["image_dir"])).id


def test_a_base_image_that_cannot_be_had_is_told(repository: Repository, base_image: str, run_module: RunModule) -> None:
    gone = "127.0.0.1:1/no-such-base:1"
    result = run_module("release_build", repository.args(build_image=True, base_image=gone))
    assert f"the base image {gone} is not on this machine and cannot be pulled" in result["msg"]
    assert "base_image is needed" in run_module("release_build", repository.args(build_image=True))["msg"]


def test_a_missing_tool_is_told(repository: Repository, run_module: RunModule) -> None:
    result = run_module("release_build", repository.args(build_image=True, base_image="x", docker="no-such-docker"))
    assert "no-such-docker is not installed" in result["msg"]


# --- the pure part ---


def test_the_store_goes_before_the_checkout_and_that_before_a_tag() -> None:
    assert resolve("1.0", "/s", ["1.0"], "1.0", ["1.0"]) == "store"
    assert resolve("1.0", "/s", [], "1.0", ["1.0"]) == "checkout"
    assert resolve("1.0", "/s", [], "1.1", ["1.0"]) == "tag"
    with pytest.raises(ArtifactError, match="the store /s has nothing; the checkout is without a version"):
        resolve("1.0", "/s", [], None, [])


@pytest.mark.parametrize("version", ["", "../x", "v1", "1 0", "latest"])
def test_what_is_no_version_is_refused(version: str) -> None:
    with pytest.raises(ArtifactError, match="is no version"):
        check_version(version)


@pytest.mark.parametrize("version", ["", "3", "2.7", "3.13.1", "x"])
def test_what_is_no_python_is_refused(version: str) -> None:
    with pytest.raises(ArtifactError, match="is no Python version"):
        check_python(version)


def test_only_versions_count_among_tags() -> None:
    assert versions_of_tags(["v1.0.0", "v0.9", "venv", "1.0", "v/../x"]) == ["0.9", "1.0.0"]


def test_caches_and_tests_are_no_sources(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "src/a.py", "src/__pycache__/a.pyc", "src/x.egg-info/y", "src/.cache/z", "tests/t.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [file.as_posix() for file in source_files(tmp_path)] == ["pyproject.toml", "src/a.py"]


@pytest.mark.parametrize("change", ["content", "name", "mode"])
def test_the_digest_sees_content_name_and_mode(tmp_path: Path, change: str) -> None:
    file = tmp_path / "src" / "a.py"
    file.parent.mkdir()
    file.write_text("x")
    before = source_digest(tmp_path)
    assert source_digest(tmp_path) == before
    if change == "content":
        file.write_text("y")
    elif change == "name":
        file.rename(file.with_name("b.py"))
    else:
        file.chmod(0o755)
    assert source_digest(tmp_path) != before


def test_wheels_are_shared_for_the_same_lock_and_python_only() -> None:
    artifact = {"requirements_sha256": "a", "python_versions": ["3.13"]}
    assert same_dependencies(artifact, "a", "3.13")
    assert not same_dependencies(artifact, "b", "3.13")
    assert not same_dependencies(artifact, "a", "3.14")
    assert not same_dependencies({}, "a", "3.13")
