"""Files of backups: written whole, read through, checked with what lies beside them. Standard library only."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from .backups import BackupError


def sha256(source: IO[bytes]) -> str:
    """The digest of what is left to read."""
    digest = hashlib.sha256()
    while True:
        chunk = source.read(1 << 20)
        if not chunk:
            return digest.hexdigest()
        digest.update(chunk)


def digest_of(path: Path) -> str:
    """The digest of a file."""
    with open(path, "rb") as file:
        return sha256(file)


def sync_directory(directory: Path) -> None:
    """Have what was renamed or removed in it on the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_beside(path: Path) -> None:
    """Compare an archive with the checksum beside it. Raises BackupError with what is wrong."""
    beside = path.with_name(f"{path.name}.sha256")
    try:
        expected = beside.read_text(encoding="utf-8").split()[0]
        found = digest_of(path)
    except (OSError, IndexError) as error:
        raise BackupError(f"{path.name} cannot be checked: {error}") from error
    if found != expected:
        raise BackupError(f"{path.name} is damaged: its SHA-256 is {found}, {beside.name} says {expected}")


def write_figures(path: Path, figures: Iterable[tuple[str, str, str]]) -> None:
    """Leave figures for the node exporter, each a series, its value and what it is; nothing where it has no directory."""
    if not path.parent.is_dir():
        return
    text, told = "", set()
    for series, value, what in figures:
        name = series.partition("{")[0]
        if name not in told:
            text += f"# HELP {name} {what}\n# TYPE {name} gauge\n"
            told.add(name)
        text += f"{series} {value}\n"
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.chmod(0o644)
    new.rename(path)
