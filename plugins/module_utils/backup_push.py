"""Sends a host's backups to another one, by rsync over ssh, under a key that can do nothing else there. Standard library only."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from .backup_files import check_beside, write_figures
from .backups import BackupError, of_host, parse, unsent

#: Which backup was sent last, and to whom; beside the backups.
SENT = "sent.json"


def command(push: Mapping[str, Any], path: Path) -> list[str]:
    """What sends an archive and, after it, its checksum: only then does the receiver take it."""
    address = f"[{push['address']}]" if ":" in push["address"] else push["address"]
    ssh = (
        f"ssh -F /dev/null -p {push['port']} -i {push['key']} -b {push['from']} -o BatchMode=yes -o IdentitiesOnly=yes"
        f" -o StrictHostKeyChecking=yes -o UserKnownHostsFile={push['known_hosts']} -o GlobalKnownHostsFile=/dev/null"
        " -o ConnectTimeout=10 -o ServerAliveInterval=15"
    )
    target = f"{push['user']}@{address}:"
    return ["rsync", "--ignore-existing", "--timeout=60", f"--rsh={ssh}", str(path), f"{path}.sha256", target]


def push(config: Mapping[str, Any]) -> dict[str, Any]:
    """Send what the other host has not got yet, the oldest first. Raises BackupError; what is left is sent by the next run."""
    about = config.get("push")
    if not about:
        return {"skipped": True, "why": "backup_push_to names no other host"}
    directory = Path(config["directory"])
    pushed, damaged = [], []
    try:
        for backup in unsent(_names(directory), config["host"], _last_sent(directory, about["to"])):
            path = directory / backup.name
            try:
                check_beside(path)
            except BackupError as error:
                # It would be refused there, and must not keep back those after it.
                damaged.append(str(error))
                continue
            _send(about, path)
            _remember(directory, {"to": about["to"], "name": backup.name})
            pushed.append(backup.name)
    finally:
        _tell(config, directory, about["to"])
    if damaged:
        raise BackupError(f"not sent to {about['to']}: {'; '.join(damaged)}")
    return {"to": about["to"], "pushed": pushed}


def _names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def _last_sent(directory: Path, to: str) -> Optional[str]:
    with contextlib.suppress(OSError, ValueError):
        sent = json.loads((directory / SENT).read_text(encoding="utf-8"))
        if sent["to"] == to:
            return str(sent["name"])
    return None


def _remember(directory: Path, sent: Mapping[str, str]) -> None:
    new = directory / f".{SENT}.new"
    new.write_text(json.dumps(sent), encoding="utf-8")
    new.rename(directory / SENT)


def _send(about: Mapping[str, Any], path: Path) -> None:
    done = subprocess.run(
        command(about, path), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        said = " | ".join(done.stderr.strip().splitlines()[:2]) or f"rsync ended with {done.returncode}"
        raise BackupError(f"{path.name} was not sent to {about['to']} ({about['address']}): {said}")


def _figures_file(config: Mapping[str, Any]) -> Path:
    path = Path(config["metrics_file"])
    return path.with_name(f"{path.stem}-pushed{path.suffix}")


def _tell(config: Mapping[str, Any], directory: Path, to: str) -> None:
    """Leave for the node exporter up to when backups have left this host; where none has, since when there are some."""
    oldest = of_host(_names(directory), config["host"])[:1]
    sent = parse(_last_sent(directory, to) or (oldest[0].name if oldest else ""))
    if sent is not None:
        what = "When the last backup was taken that has left this host."
        write_figures(_figures_file(config), [("trading_backup_pushed_timestamp_seconds", f"{sent.taken.timestamp():.0f}", what)])


def forget(config: Mapping[str, Any]) -> None:
    """Leave no figure where nothing is sent."""
    with contextlib.suppress(FileNotFoundError):
        _figures_file(config).unlink()
