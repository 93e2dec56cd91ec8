"""Backups of a real Redis and a real NATS: taken, checked, unpacked, and loaded again."""

from __future__ import annotations

import getpass
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils import backup_agent
from ansible.module_utils.backups import BackupError
from ansible.module_utils.jetstream_streams import delete_stream, restore_stream, stream_state
from ansible.module_utils.nats_client import Connection, JetStreamError, connect
from ansible.module_utils.redis_client import RedisConnection, RedisError
from plugin_testing import Nats, ended, free_port, listens, program, wait_until

STREAM = {"name": "TRADING_EVENTS", "subjects": ["trading.events.>"], "storage": "file", "num_replicas": 1}


class Redis:
    """A real Redis with an append-only file, as the fleet's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.start()

    def start(self) -> None:
        command = [program("redis-server"), "--port", str(self.port), "--dir", str(self.directory), "--appendonly", "yes"]
        self.process = subprocess.Popen([*command, "--requirepass", "a-secret", "--save", ""], stdout=subprocess.DEVNULL)
        wait_until(lambda: listens(self.port), "Redis listening", self.process)

    def connection(self) -> RedisConnection:
        return RedisConnection(("127.0.0.1", self.port), "default", "a-secret")

    def stop(self) -> None:
        ended(self.process)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    (tmp_path / "redis").mkdir()
    server = Redis(tmp_path / "redis")
    with server.connection() as connection:
        connection.call("XADD", "trading:audit", "*", "e", "limits")
    yield server
    server.stop()


@pytest.fixture
def bus(nats: Nats) -> Iterator[Connection]:
    with connect([f"127.0.0.1:{nats.port}"], "admin", "admin-secret") as connection:
        connection.api("$JS.API.STREAM.CREATE.TRADING_EVENTS", STREAM)
        yield connection
        if stream_state(connection, "TRADING_EVENTS") is not None:
            delete_stream(connection, "TRADING_EVENTS")


@pytest.fixture
def config(tmp_path: Path, redis: Redis, nats: Nats) -> dict[str, Any]:
    (tmp_path / "backups").mkdir()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "settings").write_text("what it was")
    return {
        "host": "data1",
        "directory": str(tmp_path / "backups"),
        "age_recipients": [],
        "keep_hourly": 2,
        "keep_daily": 0,
        "timeout": 30,
        "files": [str(tmp_path / "etc"), str(tmp_path / "missing")],
        "release_root": str(tmp_path / "opt"),
        "metrics_file": str(tmp_path / "backup.prom"),
        "redis": {
            "host": "127.0.0.1",
            "port": redis.port,
            "user": "default",
            "password": "a-secret",
            "dump": str(redis.directory / "dump.rdb"),
            "owner": getpass.getuser(),
        },
        "nats": {"servers": [f"127.0.0.1:{nats.port}"], "user": "admin", "password": "admin-secret"},
    }


def trade(redis: Redis, count: int) -> None:
    """What the app leaves in the ledger, as far as a backup looks at it."""
    with redis.connection() as connection:
        for number in range(count):
            connection.call("XADD", "trading:fills", "*", "trade", number)
            connection.call("XADD", "trading:audit", "*", "e", "order.accepted")


def events(bus: Connection, count: int) -> None:
    for number in range(count):
        bus.request("trading.events.order.accepted.a", b"x" * 1000, {"Nats-Msg-Id": f"{number}"})


def archive(config: dict[str, Any], made: dict[str, Any]) -> Path:
    return Path(config["directory"]) / str(made["name"])


@pytest.mark.usefixtures("bus")
def test_a_backup_is_whole_and_tells_what_is_in_it(config: dict[str, Any], redis: Redis, bus: Connection) -> None:
    trade(redis, 5)
    events(bus, 200)
    made = backup_agent.create(config)
    assert made["redis"]["counted"] == {"fills": 5, "audit": 6}
    assert made["streams"]["TRADING_EVENTS"]["messages"] == 200
    assert len(made["files"]) == 1
    path = archive(config, made)
    assert path.stat().st_mode & 0o777 == 0o600
    assert backup_agent.check(path)["parts"] == ["files.tar", "nats/TRADING_EVENTS.snapshot", "redis/dump.rdb"]
    assert [found["name"] for found in backup_agent.listed(config)["backups"]] == [made["name"]]
    assert sorted(other.name for other in path.parent.iterdir()) == [path.name, f"{path.name}.sha256"]
    assert f"trading_backup_timestamp_seconds {made['taken_at'] / 1000}" in Path(config["metrics_file"]).read_text()


def test_what_was_there_when_it_began_is_loaded_again_and_halted(config: dict[str, Any], redis: Redis, tmp_path: Path) -> None:
    trade(redis, 3)
    made = backup_agent.create(config)
    trade(redis, 2)
    backup_agent.unpack(archive(config, made), tmp_path / "unpacked")
    loaded = backup_agent.load_ledger(tmp_path / "unpacked", "a test", 30)
    assert (loaded["counted"], loaded["was_halted"]) == ({"fills": 3, "audit": 5}, False)

    with pytest.raises(BackupError, match="Redis runs"):
        backup_agent.install(config, tmp_path / "unpacked")
    redis.stop()
    aside = Path(backup_agent.install(config, tmp_path / "unpacked")["aside"])
    redis.start()
    assert backup_agent.now(config)["ledger"]["counted"] == loaded["counted"]
    with redis.connection() as connection:
        assert connection.call("XLEN", "trading:fills") == 3
        assert connection.call("HGET", "trading:control", "halted") == "1"
        assert connection.call("XLEN", "trading:audit") == 5
        assert connection.call("CONFIG", "GET", "appendonly") == ["appendonly", "yes"]
    assert (aside / "appendonlydir").is_dir(), "what was there is moved aside"


def test_a_ledger_that_was_halted_says_so_and_gets_no_second_line(config: dict[str, Any], redis: Redis, tmp_path: Path) -> None:
    trade(redis, 1)
    with redis.connection() as connection:
        connection.call("HSET", "trading:control", "halted", "1")
    backup_agent.unpack(archive(config, backup_agent.create(config)), tmp_path / "unpacked")
    loaded = backup_agent.load_ledger(tmp_path / "unpacked", "a test", 30)
    assert (loaded["was_halted"], loaded["counted"]["audit"]) == (True, 2)


def test_what_comes_to_an_inbox_before_the_answer_to_a_request_is_not_lost(bus: Connection, nats: Nats) -> None:
    inbox = bus.subscribe()
    stream_state(bus, "TRADING_EVENTS")
    with connect([f"127.0.0.1:{nats.port}"], "admin", "admin-secret") as other:
        other.publish(inbox, b"first")
        stream_state(other, "TRADING_EVENTS")
    stream_state(bus, "TRADING_EVENTS")
    assert bus.receive(inbox)[0].payload == b"first"


def test_a_stream_comes_back_with_its_messages_and_numbers(config: dict[str, Any], bus: Connection, tmp_path: Path) -> None:
    events(bus, 300)
    before = stream_state(bus, "TRADING_EVENTS")
    made = backup_agent.create(config)
    unpacked = tmp_path / "unpacked"
    backup_agent.unpack(archive(config, made), unpacked)
    assert backup_agent.try_streams(unpacked, 30)["streams"] == {"TRADING_EVENTS": 300}
    assert backup_agent.restore_streams(config, unpacked)["streams"] == {"TRADING_EVENTS": "keep"}

    delete_stream(bus, "TRADING_EVENTS")
    assert backup_agent.restore_streams(config, unpacked)["streams"] == {"TRADING_EVENTS": "restore"}
    after = stream_state(bus, "TRADING_EVENTS")
    assert before is not None
    assert after is not None
    assert [after[name] for name in ("messages", "first_seq", "last_seq", "bytes")] == [
        before[name] for name in ("messages", "first_seq", "last_seq", "bytes")
    ]

    delete_stream(bus, "TRADING_EVENTS")
    bus.api("$JS.API.STREAM.CREATE.TRADING_EVENTS", STREAM)
    events(bus, 2)
    assert backup_agent.restore_streams(config, unpacked)["streams"] == {"TRADING_EVENTS": "replace"}
    state = stream_state(bus, "TRADING_EVENTS")
    assert state is not None
    assert state["messages"] == 300
    [aside] = Path(config["directory"]).glob("before-*")
    assert json.loads((aside / "TRADING_EVENTS.json").read_text())["state"]["messages"] == 2


def test_the_server_refuses_to_restore_a_stream_that_is_there(config: dict[str, Any], bus: Connection, tmp_path: Path) -> None:
    events(bus, 1)
    backup_agent.unpack(archive(config, backup_agent.create(config)), tmp_path / "unpacked")
    manifest = json.loads((tmp_path / "unpacked" / "manifest.json").read_text())
    with open(tmp_path / "unpacked/nats/TRADING_EVENTS.snapshot", "rb") as file, pytest.raises(JetStreamError, match="in use"):
        restore_stream(bus, "TRADING_EVENTS", manifest["streams"]["TRADING_EVENTS"], file)


@pytest.mark.parametrize("at", [100, 0.5, -2000])
def test_a_damaged_archive_is_refused_by_either_checksum(config: dict[str, Any], redis: Redis, tmp_path: Path, at: float) -> None:
    trade(redis, 50)
    path = archive(config, backup_agent.create(config))
    data = bytearray(path.read_bytes())
    place = int(len(data) * at) if isinstance(at, float) else at
    if at == -2000:
        data = data[:-12000]
    else:
        data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(BackupError, match=r"damaged: its SHA-256"):
        backup_agent.check(path)
    with pytest.raises(BackupError, match=r"damaged|cannot be read|no backup"):
        backup_agent.unpack(path, tmp_path / "unpacked")


def test_an_empty_ledger_is_no_backup_so_that_a_new_host_cannot_hide_the_last_one(config: dict[str, Any], redis: Redis) -> None:
    with redis.connection() as connection:
        connection.call("FLUSHALL")
    assert backup_agent.create(config)["skipped"]
    assert list(Path(config["directory"]).iterdir()) == []


def test_only_so_many_stay(config: dict[str, Any]) -> None:
    directory = Path(config["directory"])
    for hour in range(5):
        (directory / f"20260101T0{hour}0000Z-data1.tar").write_text("")
        (directory / f"20260101T0{hour}0000Z-data1.tar.sha256").write_text("")
    made = backup_agent.create(config)
    assert len(made["removed"]) == 4
    left = sorted(path.name for path in directory.iterdir())
    assert left == ["20260101T040000Z-data1.tar", "20260101T040000Z-data1.tar.sha256", made["name"], f"{made['name']}.sha256"]


def test_a_disk_without_room_first_loses_old_backups_and_then_refuses_a_new_one(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(config["directory"])
    for hour in range(5):
        (directory / f"20260101T0{hour}0000Z-data1.tar").write_text("12345")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=14))
    with pytest.raises(BackupError, match=r"no room for a backup in .*: 14 bytes are free, and it takes up to 15"):
        backup_agent.create(config)
    assert sorted(path.name for path in directory.iterdir()) == ["20260101T040000Z-data1.tar"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=15))
    assert backup_agent.create(config)["removed"] == []


def test_what_a_killed_run_has_left_is_removed_and_is_no_backup(config: dict[str, Any]) -> None:
    directory = Path(config["directory"])
    (directory / "20260101T000000Z-data1.tar.part").write_text("half")
    (directory / ".making-left").mkdir()
    assert backup_agent.listed(config)["backups"] == []
    made = backup_agent.create(config)
    assert sorted(path.name for path in directory.iterdir()) == [made["name"], f"{made['name']}.sha256"]


def test_an_encrypted_backup_is_opened_with_the_key_alone(config: dict[str, Any], redis: Redis, tmp_path: Path) -> None:
    trade(redis, 2)
    identity = tmp_path / "identity"
    subprocess.run([program("age-keygen"), "-o", str(identity)], check=True, capture_output=True)
    recipient = next(word for word in identity.read_text().split() if word.startswith("age1"))
    made = backup_agent.create({**config, "age_recipients": [recipient]})
    path = archive(config, made)
    assert path.name.endswith(".tar.age")
    assert path.read_bytes().startswith(b"age-encryption.org/")
    assert backup_agent.check(path)["encrypted"]
    with pytest.raises(BackupError, match="is encrypted"):
        backup_agent.unpack(path, tmp_path / "unpacked")
    plain = tmp_path / path.stem
    subprocess.run([program("age"), "--decrypt", "--identity", str(identity), "--output", str(plain), str(path)], check=True)
    assert backup_agent.unpack(plain, tmp_path / "unpacked")["redis"]["counted"] == {"fills": 2, "audit": 3}


def test_without_age_nothing_is_written_rather_than_in_clear(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BackupError, match="age is not installed"):
        backup_agent.create({**config, "age_recipients": ["age1xyz"]})
    assert list(Path(config["directory"]).iterdir()) == []


def test_a_wrong_password_is_said_and_leaves_nothing(config: dict[str, Any]) -> None:
    with pytest.raises(RedisError, match="WRONGPASS"):
        backup_agent.create({**config, "redis": {**config["redis"], "password": "wrong"}})
    assert list(Path(config["directory"]).iterdir()) == []


def test_how_far_a_host_is_tells_what_does_not_answer(config: dict[str, Any], redis: Redis) -> None:
    trade(redis, 1)
    found = backup_agent.now({**config, "nats": {**config["nats"], "servers": [f"127.0.0.1:{free_port()}"]}})
    assert found["ledger"]["counted"] == {"fills": 1, "audit": 2}
    assert found["ledger"]["until"] > 0
    assert found["streams"] is None
    assert [why.split(":")[0] for why in found["why"]] == ["NATS"]


def test_a_command_prints_json_or_why_not(config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "backup.json"
    settings.write_text(json.dumps(config))
    assert backup_agent.main(["list"], settings) == 0
    assert json.loads(capsys.readouterr().out) == {"backups": []}
    assert backup_agent.main(["unpack", "one"], settings) == 1
    assert capsys.readouterr().err == "trading-bot-backup unpack: unpack takes 2 paths, found 1\n"
    assert backup_agent.main(["list"], tmp_path / "none.json") == 1
