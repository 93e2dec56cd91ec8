"""The load balancer's map files on disk: read them, and replace one so that no reader ever sees half of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def read_text(path: Path) -> str:
    """The file's text, empty where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def replace_text(path: Path, text: str, new_file_mode: int = 0o644, *, sync: bool = True) -> None:
    """Put `text` in place of the file: written beside it, synced, renamed over it, the directory synced.

    Without `sync` a reader still sees the old text or the new one, but a machine that loses power may have neither. Mode and
    owner stay those of the file; a new one gets `new_file_mode` and the owner of its directory.
    """
    try:
        model = path.stat()
        mode = model.st_mode & 0o7777
    except FileNotFoundError:
        model = path.parent.stat()
        mode = new_file_mode
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if (model.st_uid, model.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), model.st_uid, model.st_gid)
            if sync:
                os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    if not sync:
        return
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
