"""Which source a version is built from, and whether that source is still the one it was built from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Optional

_VERSION = re.compile(r"[0-9][A-Za-z0-9.+!_-]{0,63}")
#: What in the app's directory goes into a release; tests and caches do not.
SOURCES = ("pyproject.toml", "requirements.txt", "requirements-notify.txt", "Dockerfile", "README.md", "src")
_PYTHON = re.compile(r"3\.\d{1,2}")


class ArtifactError(RuntimeError):
    """A version cannot be had; the message says where it was looked for."""


def tag_of(version: str) -> str:
    """The git tag of a version."""
    return f"v{version}"


def versions_of_tags(tags: Iterable[str]) -> list[str]:
    """The versions among git tags."""
    return sorted(tag[1:] for tag in tags if tag.startswith("v") and _VERSION.fullmatch(tag[1:]))


def check_version(version: str) -> str:
    """The version, if it may be a directory's name; raises ArtifactError otherwise."""
    if not _VERSION.fullmatch(version):
        raise ArtifactError(f"{version!r} is no version, expected something such as 1.4.0")
    return version


def check_python(version: str) -> str:
    """The Python version, if it is one; raises ArtifactError otherwise."""
    if not _PYTHON.fullmatch(version):
        raise ArtifactError(f"{version!r} is no Python version, expected something such as 3.13")
    return version


def resolve(version: str, store: str, stored: Sequence[str], checkout: Optional[str], tagged: Sequence[str]) -> str:
    """Where the version comes from: ``store``, ``checkout`` or ``tag``, tried in this order.

    Raises ArtifactError that names the places and what they have.
    """
    check_version(version)
    if version in stored:
        return "store"
    if version == checkout:
        return "checkout"
    if version in tagged:
        return "tag"
    raise ArtifactError(
        f"release {version} is unknown: the store {store} has {', '.join(stored) or 'nothing'}; the checkout is"
        f" {checkout or 'without a version'}; there is no git tag {tag_of(version)}"
        f" (tagged: {', '.join(tagged) or 'nothing'})"
    )


def source_files(app: Path) -> list[Path]:
    """The files of a release below the app's directory, as relative paths in a fixed order."""
    found: list[Path] = []
    for name in SOURCES:
        path = app / name
        candidates = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
        found += [file.relative_to(app) for file in candidates if file.is_file() and not _generated(file.relative_to(app))]
    return found


def _generated(file: Path) -> bool:
    return any(part == "__pycache__" or part.endswith(".egg-info") or part.startswith(".") for part in file.parts)


def source_digest(app: Path) -> str:
    """The digest in hex of a release's files: their names, whether they may be executed, and their contents."""
    digest = hashlib.sha256()
    for file in source_files(app):
        data = (app / file).read_bytes()
        executable = bool((app / file).stat().st_mode & 0o100)
        digest.update(f"{file.as_posix()}\0{executable}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def same_dependencies(artifact: dict[str, Any], requirements_sha256: str, python: str) -> bool:
    """Whether that artifact's wheels for this Python are what these locked requirements ask for."""
    return artifact.get("requirements_sha256") == requirements_sha256 and python in artifact.get("python_versions", [])
