"""The commands of ``trading-bot-backup``: a host's state into one archive, and back. Standard library only.

    create               take a backup, then remove what is too old
    push                 send what was not sent yet to another host
    list                 what this host has
    now                  how far its ledger and its streams are
    check FILE           whether an archive is whole
    unpack FILE DIR      its parts into a directory, each checked
    ledger DIR           the unpacked ledger loaded by a server of its own, halted, and written as a data directory: DIR/redis
    install DIR          that data directory in the place of Redis's, which must be stopped; the old one is moved aside
    streams DIR          the unpacked streams into NATS
    try-streams DIR      the unpacked streams into a NATS server of their own

Each prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, Optional

from .backup_files import check_beside, digest_of, sha256, sync_directory, write_figures
from .backup_push import forget, push
from .backups import (
    SCHEMA,
    BackupError,
    check_manifest,
    milliseconds_of,
    missing,
    name_of,
    of_host,
    parse,
    stream_decision,
    surplus,
)
from .jetstream_streams import delete_stream, differences, restore_stream, stream_names, stream_state, take_snapshot
from .nats_client import Connection, NatsError, connect
from .redis_client import RedisConnection, RedisError

CONFIG = Path("/etc/trading-bot-backup/backup.json")
MANIFEST = "manifest.json"
LEDGER = "redis/dump.rdb"
FILES = "files.tar"
_PART = ".part"
#: What only grows in the ledger, so that a loaded one has at least what was counted when its backup began.
_GROWS = {"fills": "trading:fills", "audit": "trading:audit"}


# --- what is there ------------------------------------------------------------------------------------------------


def _redis(config: Mapping[str, Any]) -> RedisConnection:
    """A connection, once the server has read its data."""
    about = config["redis"]
    connection = RedisConnection((about["host"], int(about["port"])), about["user"], about["password"])
    deadline = time.monotonic() + float(config["timeout"])
    while True:
        try:
            connection.call("PING")
        except RedisError as error:
            if not str(error).startswith("LOADING") or time.monotonic() > deadline:
                connection.close()
                raise
            time.sleep(0.05)
        else:
            return connection


def _nats(config: Mapping[str, Any]) -> Connection:
    about = config["nats"]
    return connect(about["servers"], about["user"], about["password"], timeout=10.0)


def ledger_now(connection: RedisConnection) -> dict[str, Any]:
    """How far the ledger is: its clock, the last line of its audit, and how much there is of what only grows."""
    seconds, microseconds = connection.call("TIME")
    last = connection.call("XREVRANGE", _GROWS["audit"], "+", "-", "COUNT", 1)
    counted = {name: _entries_added(connection, key) for name, key in _GROWS.items() if connection.call("EXISTS", key)}
    return {
        "at": int(seconds) * 1000 + int(microseconds) // 1000,
        "keys": int(connection.call("DBSIZE")),
        "until": milliseconds_of(last[0][0]) if last else 0,
        "counted": counted,
    }


def _entries_added(connection: RedisConnection, stream: str) -> int:
    flat = connection.call("XINFO", "STREAM", stream)
    return int(dict(zip(flat[::2], flat[1::2]))["entries-added"])


def now(config: Mapping[str, Any]) -> dict[str, Any]:
    """How far the ledger and the streams are; what does not answer is told in words."""
    found: dict[str, Any] = {"ledger": None, "streams": None, "why": []}
    if config.get("redis"):
        try:
            with _redis(config) as connection:
                found["ledger"] = ledger_now(connection)
        except (OSError, RedisError) as error:
            found["why"].append(f"Redis: {error}")
    if config.get("nats"):
        try:
            with _nats(config) as bus:
                found["streams"] = {name: stream_state(bus, name) for name in stream_names(bus)}
        except NatsError as error:
            found["why"].append(f"NATS: {error}")
    return found


# --- create -------------------------------------------------------------------------------------------------------


def snapshot_ledger(connection: RedisConnection, timeout: float) -> dict[str, Any]:
    """Have Redis write a snapshot; what was there when that began. Everything that it had answered by then is in it.

    The snapshot is of one instant, that of the fork. Raises BackupError if it fails or takes too long.
    """
    deadline = time.monotonic() + timeout
    _wait_for_snapshot(connection, deadline)
    counted = ledger_now(connection)
    before = int(connection.info("persistence")["rdb_saves"])
    connection.call("BGSAVE", "SCHEDULE")
    while True:
        about = _wait_for_snapshot(connection, deadline)
        if int(about["rdb_saves"]) > before:
            return counted
        if about["rdb_last_bgsave_status"] != "ok":
            raise BackupError("Redis could not write its snapshot; its log says why: journalctl -u redis-server")
        if time.monotonic() > deadline:
            raise BackupError(f"Redis has not begun its snapshot within {timeout:g} s: another child of it is busy")
        time.sleep(0.05)


def _wait_for_snapshot(connection: RedisConnection, deadline: float) -> dict[str, str]:
    while True:
        about = connection.info("persistence")
        if about["rdb_bgsave_in_progress"] == "0":
            return about
        if time.monotonic() > deadline:
            raise BackupError("Redis has not written its snapshot in time: raise backup_timeout")
        time.sleep(0.05)


def _pack_files(paths: Sequence[str], target: Path) -> list[str]:
    """The paths that there are, with what is below them, into one archive; returns which."""
    there = [path for path in paths if os.path.lexists(path)]
    with tarfile.open(target, "w") as archive:
        for path in there:
            archive.add(path, arcname=path.lstrip("/"))
    return there


def _release_on(root: str) -> dict[str, str]:
    """By slot, the release that its link leads to."""
    found = {}
    for slot in ("blue", "green"):
        with contextlib.suppress(OSError):
            found[slot] = os.path.basename(os.readlink(f"{root}/slots/{slot}"))
    return found


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Alone with the backups, among all processes of this host."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _making(directory: Path) -> Iterator[Path]:
    """A directory for parts; whatever a run that was killed has left is removed."""
    for left in directory.glob(f"*{_PART}"):
        left.unlink()
    for left in directory.glob(".making-*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=directory) as folder:
        yield Path(folder)


@contextlib.contextmanager
def _written(path: Path, recipients: Sequence[str]) -> Iterator[IO[bytes]]:
    """A file to be written, through age where there are recipients; on the disk and under its name only once it is whole."""
    part = path.with_name(path.name + _PART)
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            if recipients:
                command = ["age", *(word for recipient in recipients for word in ("--recipient", recipient))]
                with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.PIPE) as age:
                    assert age.stdin is not None
                    assert age.stderr is not None
                    with contextlib.suppress(BrokenPipeError):
                        yield age.stdin
                        age.stdin.close()
                    said = age.stderr.read().decode(errors="replace").strip()
                if age.returncode != 0:
                    raise BackupError(f"age did not encrypt it: {said}")
            else:
                yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(part, path)
        sync_directory(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def _check_room(directory: Path, host: str) -> None:
    """Leave the disk to the ledger: a backup needs room for what it gathers and for itself. Raises BackupError."""
    last = of_host((path.name for path in directory.iterdir()), host)[-1:]
    wanted = sum(3 * (directory / backup.name).stat().st_size for backup in last)
    free = shutil.disk_usage(directory).free
    if free < wanted:
        raise BackupError(
            f"there is no room for a backup in {directory}: {free} bytes are free, and it takes up to {wanted}, "
            "three times the last one"
        )


def create(config: Mapping[str, Any]) -> dict[str, Any]:
    """Take a backup. Its name appears once it is whole and on the disk."""
    directory = Path(config["directory"])
    recipients: Sequence[str] = config["age_recipients"]
    if recipients and shutil.which("age") is None:
        raise BackupError("backup_age_recipients are set and age is not installed, so nothing was written: site.yml installs it")
    with _alone(directory), _making(directory) as folder:
        began = time.time()
        # The new one takes the place of the oldest, so that one goes first: on a full disk there is no other room.
        removed = _remove_old(directory, {**config, "keep_hourly": max(int(config["keep_hourly"]) - 1, 1)})
        _check_room(directory, config["host"])
        parts: dict[str, tuple[Path, str]] = {}
        manifest: dict[str, Any] = {"schema": SCHEMA, "host": config["host"], "redis": None, "streams": {}, "files": []}
        # The ledger first: an event that the bus has twice is known by its id, one that it lacks is lost.
        with contextlib.ExitStack() as opened:
            if config.get("redis"):
                with _redis(config) as connection:
                    if not connection.call("EXISTS", _GROWS["audit"]):
                        # The newest backup would be one of nothing, just where a new host waits for its data.
                        return {"skipped": True, "why": "the ledger is empty: a backup of it would be the newest one"}
                    manifest["redis"] = snapshot_ledger(connection, float(config["timeout"]))
                    manifest["redis"]["version"] = connection.info("server")["redis_version"]
                # Redis replaces the file as a whole, so what is open stays what it is.
                ledger = opened.enter_context(open(config["redis"]["dump"], "rb"))
                parts[LEDGER] = (Path(f"/proc/self/fd/{ledger.fileno()}"), sha256(ledger))
            if config.get("nats"):
                _snapshot_streams(config, folder, manifest, parts)
            manifest["files"] = _pack_files(config["files"], folder / FILES)
            manifest["release"] = _release_on(config["release_root"])
            parts[FILES] = (folder / FILES, digest_of(folder / FILES))
            taken = manifest["redis"]["at"] if manifest["redis"] else int(began * 1000)
            manifest["taken_at"] = taken
            manifest["parts"] = {name: {"size": path.stat().st_size, "sha256": digest} for name, (path, digest) in parts.items()}
            name = name_of(config["host"], datetime.fromtimestamp(taken / 1000, timezone.utc), bool(recipients))
            path = directory / name
            with _written(path, recipients) as target:
                _write_archive(target, manifest, parts)
        digest = digest_of(path)
        with _written(directory / f"{name}.sha256", ()) as file:
            file.write(f"{digest}  {name}\n".encode())
        removed += _remove_old(directory, config)
        size = path.stat().st_size
        _tell(config, taken, size, time.time() - began)
    summary = {key: manifest[key] for key in ("redis", "files", "release")}
    streams = {stream: saved["state"] for stream, saved in manifest["streams"].items()}
    return {"name": name, "size": size, "sha256": digest, "taken_at": taken, **summary, "streams": streams, "removed": removed}


def _snapshot_streams(
    config: Mapping[str, Any], folder: Path, manifest: dict[str, Any], parts: dict[str, tuple[Path, str]]
) -> None:
    with _nats(config) as bus:
        for stream in stream_names(bus):
            path = folder / f"{stream}.snapshot"
            with open(path, "wb") as file:
                manifest["streams"][stream] = take_snapshot(bus, stream, file)
            parts[f"nats/{stream}.snapshot"] = (path, digest_of(path))


def _write_archive(target: IO[bytes], manifest: Mapping[str, Any], parts: Mapping[str, tuple[Path, str]]) -> None:
    with tarfile.open(fileobj=target, mode="w|") as archive:
        with tempfile.TemporaryFile() as file:
            file.write(json.dumps(manifest, indent=2, sort_keys=True).encode())
            _add(archive, MANIFEST, file)
        for name, (path, _) in parts.items():
            with open(path, "rb") as part:
                _add(archive, name, part)


def _add(archive: tarfile.TarFile, name: str, source: Any) -> None:
    about = tarfile.TarInfo(name)
    about.size, about.mode, about.mtime = source.seek(0, os.SEEK_END), 0o600, int(time.time())
    source.seek(0)
    archive.addfile(about, source)


def _remove_old(directory: Path, config: Mapping[str, Any]) -> list[str]:
    names = [path.name for path in directory.iterdir()]
    removed = surplus(names, config["host"], int(config["keep_hourly"]), int(config["keep_daily"]))
    for name in removed:
        (directory / name).unlink()
        with contextlib.suppress(FileNotFoundError):
            (directory / f"{name}.sha256").unlink()
    return removed


def _tell(config: Mapping[str, Any], taken: int, size: int, seconds: float) -> None:
    """Leave for the node exporter when the last backup was taken; nothing where it has no directory."""
    figures = (
        ("trading_backup_timestamp_seconds", f"{taken / 1000}", "When this host's last backup was taken."),
        ("trading_backup_size_bytes", f"{size}", "How large it is."),
        ("trading_backup_duration_seconds", f"{round(seconds, 3)}", "How long it took."),
    )
    write_figures(Path(config["metrics_file"]), figures)
    if not config.get("push"):
        forget(config)


def listed(config: Mapping[str, Any]) -> dict[str, Any]:
    """This host's backups, the oldest first."""
    directory = Path(config["directory"])
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return {
        "backups": [
            {"name": backup.name, "stamp": backup.stamp, "size": (directory / backup.name).stat().st_size}
            for backup in of_host(names, config["host"])
        ]
    }


# --- check and unpack ---------------------------------------------------------------------------------------------


def check(path: Path) -> dict[str, Any]:
    """Compare an archive with the checksum beside it and with its manifest. Raises BackupError with what is wrong."""
    check_beside(path)
    if path.suffix == ".age":
        return {"name": path.name, "encrypted": True}
    manifest = _read_archive(path, None)
    return {"name": path.name, "encrypted": False, "parts": sorted(manifest["parts"])}


def _read_archive(path: Path, target: Optional[Path]) -> dict[str, Any]:
    """Read an archive through, each part checked, and keep the parts in a directory if one is given."""
    try:
        with tarfile.open(path, "r|") as archive:
            members = iter(archive)
            first = next(members, None)
            source = archive.extractfile(first) if first is not None and first.name == MANIFEST else None
            if source is None:
                raise BackupError(f"{path.name} is no backup: it does not begin with {MANIFEST}")
            manifest = check_manifest(json.load(source))
            left = dict(manifest["parts"])
            for member in members:
                about, part = left.pop(member.name, None), archive.extractfile(member)
                if about is None or part is None:
                    raise BackupError(f"{path.name} is damaged: {member.name} is not in its manifest")
                if _copy(part, target / member.name if target else None) != about["sha256"]:
                    raise BackupError(f"{path.name} is damaged: {member.name} is not what its manifest says")
    except (tarfile.TarError, ValueError, EOFError, OSError) as error:
        raise BackupError(f"{path.name} cannot be read: {error}") from error
    if left:
        raise BackupError(f"{path.name} is damaged: it lacks {', '.join(sorted(left))}")
    if target:
        (target / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return manifest


def _copy(source: Any, path: Optional[Path]) -> str:
    digest = hashlib.sha256()
    with contextlib.ExitStack() as opened:
        file = None
        if path is not None:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            file = opened.enter_context(open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb"))
        while True:
            chunk = source.read(1 << 20)
            if not chunk:
                return digest.hexdigest()
            digest.update(chunk)
            if file is not None:
                file.write(chunk)


def unpack(path: Path, target: Path) -> dict[str, Any]:
    """An archive's parts into a directory that is made anew; returns its manifest. It must not be encrypted any more."""
    backup = parse(path.name)
    if backup is not None and backup.encrypted:
        raise BackupError(f"{path.name} is encrypted: restore.yml decrypts it with restore_age_identity")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(mode=0o700, parents=True)
    return _read_archive(path, target)


# --- the ledger ---------------------------------------------------------------------------------------------------


def _manifest_in(folder: Path) -> dict[str, Any]:
    return check_manifest(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))


@contextlib.contextmanager
def _server_on(directory: Path, timeout: float) -> Iterator[RedisConnection]:
    """A Redis of its own on a directory with a snapshot, reached by a socket in it alone."""
    address = directory / "socket"
    command = ["redis-server", "--port", "0", "--unixsocket", str(address), "--unixsocketperm", "700", "--dir", str(directory)]
    command += ["--dbfilename", "dump.rdb", "--save", "", "--appendonly", "no", "--databases", "1", "--daemonize", "no"]
    log = directory / "log"
    with open(log, "wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as server:
        try:
            connection = _loaded(server, address, log, timeout)
            with connection:
                yield connection
        finally:
            server.terminate()
            server.wait(timeout=60)
    for path in (address, log):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _loaded(server: subprocess.Popen[bytes], address: Path, log: Path, timeout: float) -> RedisConnection:
    """A connection once the server has read its data. It listens before that, and ends if it cannot."""
    deadline = time.monotonic() + timeout
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            connection = RedisConnection(address)
            try:
                connection.call("PING")
            except RedisError:
                connection.close()  # LOADING
            else:
                return connection
        time.sleep(0.05)
    said = log.read_text(errors="replace").strip().splitlines()[-3:]
    raise BackupError(f"Redis does not load the backup's ledger: {' | '.join(said)}")


def load_ledger(folder: Path, reason: str, timeout: float, halted: bool = True) -> dict[str, Any]:
    """Load the unpacked ledger, halt trading in it, and leave ``folder/redis`` as a data directory with an append-only file.

    A server that has its append-only file on reads that and not the snapshot, so the snapshot alone would come up empty.
    Returns what was loaded and whether trading was halted already. Raises BackupError if less was loaded than was saved.
    """
    manifest = _manifest_in(folder)
    if not manifest["redis"]:
        raise BackupError(f"the backup of {manifest['host']} has no ledger: it is not one of a Redis host")
    directory = folder / "redis"
    began = time.monotonic()
    with _server_on(directory, timeout) as connection:
        found = ledger_now(connection)
        lacking = missing(manifest["redis"]["counted"], found["counted"])
        if lacking:
            raise BackupError(f"the loaded ledger is not whole: {'; '.join(lacking)}")
        was_halted = connection.call("HGET", "trading:control", "halted") == "1"
        if halted and not was_halted:
            _halt(connection, reason)
        now_there = ledger_now(connection)["counted"]
        connection.call("CONFIG", "SET", "appendonly", "yes")
        _wait_for_log(connection, timeout)
    (directory / "dump.rdb").unlink()
    return {**found, "counted": now_there, "was_halted": was_halted, "seconds": round(time.monotonic() - began, 3)}


def _halt(connection: RedisConnection, reason: str) -> None:
    """The kill switch, with its line in the audit and its event, as the app's own command does it."""
    line = ["e", "trading.halted", "account", "", "by", "restore", "reason", reason]
    event = ["e", "trading.halted", "account", "all", "by", "restore", "reason", reason]
    more = ["version", "", "slot", ""]
    connection.call("MULTI")
    connection.call("HSET", "trading:control", "halted", "1")
    connection.call("HINCRBY", "trading:control", "revision", 1)
    connection.call("XADD", "trading:audit", "*", *line, "detail", "halted=1", *more, "request", "")
    connection.call("XADD", "trading:outbox", "*", *event, "at", str(int(time.time() * 1000)), *more)
    connection.call("EXEC")


def _wait_for_log(connection: RedisConnection, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        about = connection.info("persistence")
        if about["aof_last_bgrewrite_status"] != "ok":
            raise BackupError("Redis could not write the append-only file of the restored ledger: is the disk full?")
        if about["aof_rewrite_in_progress"] == "0" and about["aof_rewrite_scheduled"] == "0":
            return
        if time.monotonic() > deadline:
            raise BackupError(f"Redis has not written the restored ledger within {timeout:g} s: raise backup_timeout")
        time.sleep(0.05)


def install(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Put the data directory that `ledger` made in the place of Redis's. What was there is moved aside, below it."""
    data = Path(config["redis"]["dump"]).parent
    with contextlib.suppress(OSError, RedisError), RedisConnection((config["redis"]["host"], int(config["redis"]["port"]))):
        raise BackupError("Redis runs, and would write over what is put there: stop it first")
    owner = pwd.getpwnam(config["redis"]["owner"])
    data.mkdir(mode=0o750, exist_ok=True)
    aside = data / f"before-{datetime.now(timezone.utc).strftime('%Y%m%dT%H%M%SZ')}"
    old = [path for path in sorted(data.iterdir()) if not path.name.startswith("before-")]
    if old:
        aside.mkdir(mode=0o700)
        for path in old:
            path.rename(aside / path.name)
    shutil.move(str(folder / "redis" / "appendonlydir"), str(data / "appendonlydir"))
    for path in (data, *data.glob("appendonlydir"), *data.glob("appendonlydir/*")):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    (data / "appendonlydir").chmod(0o750)
    sync_directory(data)
    return {"aside": str(aside) if old else ""}


# --- the streams --------------------------------------------------------------------------------------------------


def restore_streams(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Put the unpacked streams back; what each stream needs is decided by how far the present one is."""
    manifest = _manifest_in(folder)
    done: dict[str, str] = {}
    with _nats(config) as bus:
        for name, saved in manifest["streams"].items():
            done[name] = stream_decision(name, saved["state"], stream_state(bus, name))
            if done[name] in ("keep", "told anew"):
                continue
            if done[name] == "replace":
                _put_aside(bus, name, Path(config["directory"]))
                delete_stream(bus, name)
            _restore(bus, name, saved, folder)
    return {"streams": done}


def _put_aside(bus: Connection, name: str, directory: Path) -> None:
    """What the present stream holds, as a snapshot beside the backups, before it is deleted."""
    aside = directory / f"before-{datetime.now(timezone.utc).strftime('%Y%m%dT%H%M%SZ')}"
    aside.mkdir(mode=0o700, exist_ok=True)
    with open(aside / f"{name}.snapshot", "wb") as file:
        about = take_snapshot(bus, name, file)
    (aside / f"{name}.json").write_text(json.dumps(about), encoding="utf-8")


def _restore(bus: Connection, name: str, saved: Mapping[str, Any], folder: Path) -> None:
    with open(folder / "nats" / f"{name}.snapshot", "rb") as file:
        found = restore_stream(bus, name, saved, file)
    wrong = differences(saved["state"], found, ("messages", "first_seq", "last_seq"))
    if wrong:
        raise BackupError(f"the restored stream {name} is not the saved one: {', '.join(wrong)}")


def try_streams(folder: Path, timeout: float) -> dict[str, Any]:
    """Restore every unpacked stream into a NATS server of its own, which is removed again."""
    manifest = _manifest_in(folder)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as store, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = ["nats-server", "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", store]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            try:
                with _answering(server, port, timeout) as bus:
                    for name, saved in manifest["streams"].items():
                        alone = {**saved, "config": {**saved["config"], "num_replicas": 1}}
                        _restore(bus, name, alone, folder)
            finally:
                server.terminate()
                server.wait(timeout=60)
    counts = {name: saved["state"]["messages"] for name, saved in manifest["streams"].items()}
    return {"streams": counts, "seconds": round(time.monotonic() - began, 3)}


def _answering(server: subprocess.Popen[bytes], port: int, timeout: float) -> Connection:
    deadline = time.monotonic() + timeout
    while True:
        try:
            bus = connect([f"127.0.0.1:{port}"], timeout=10.0)
        except NatsError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
            continue
        return bus


# --- the command --------------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace, config: Mapping[str, Any]) -> dict[str, Any]:
    paths = [Path(path) for path in arguments.paths]
    timeout = float(config["timeout"])
    command = arguments.command
    wanted = {"check": 1, "unpack": 2, "ledger": 1, "install": 1, "streams": 1, "try-streams": 1}.get(command, 0)
    if len(paths) != wanted:
        raise BackupError(f"{command} takes {wanted} paths, found {len(paths)}")
    if command == "create":
        return create(config)
    if command == "push":
        return push(config)
    if command == "list":
        return listed(config)
    if command == "now":
        return now(config)
    if command == "check":
        return check(paths[0])
    if command == "unpack":
        return unpack(paths[0], paths[1])
    if command == "ledger":
        return load_ledger(paths[0], arguments.reason, timeout)
    if command == "install":
        return install(config, paths[0])
    if command == "streams":
        return restore_streams(config, paths[0])
    return try_streams(paths[0], timeout)


def main(words: list[str], config_file: Path = CONFIG) -> int:
    """Carry out one command; the exit status is 0 where it was, and 1 where it was not, with why on standard error."""
    commands = ("create", "push", "list", "now", "check", "unpack", "ledger", "install", "streams", "try-streams")
    parser = argparse.ArgumentParser(
        prog="trading-bot-backup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=commands)
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--reason", default="restored from a backup", help="why trading is halted in the restored ledger")
    arguments = parser.parse_args(words)
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        print(json.dumps(_run(arguments, config)))
    except (BackupError, NatsError, RedisError, OSError, ValueError, KeyError) as error:
        print(f"trading-bot-backup {arguments.command}: {error}", file=sys.stderr)
        return 1
    return 0
