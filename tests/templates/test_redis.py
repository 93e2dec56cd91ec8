"""The ledger's configuration and access list, in a real Redis."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from real_servers import free_ports, listens, program, wait
from redis.backoff import NoBackoff
from redis.retry import Retry
from rendering import REPOSITORY, ROLES, render

TOOL = ROLES / "redis" / "files" / "redis-config.py"
FLEET = yaml.safe_load((REPOSITORY / "group_vars" / "all" / "fleet.yml").read_text())
PASSWORDS = {
    "trading_bot": "password-of-the-trading-bot",
    "exporter": "password-of-the-exporter",
    "notifier": "password-of-the-notifier",
    "backup": "password-of-the-backup",
    "operator": "password-of-the-operator",
}
USERS = [user | {"password": PASSWORDS[user["name"]]} for user in FLEET["redis_users"]]


class Ledger:
    """A running Redis with the role's configuration and the fleet's users."""

    def __init__(self, place: Path) -> None:
        self.place = place
        [self.port] = free_ports(1)
        self.process: subprocess.Popen[bytes] | None = None
        self.clients: list[redis.Redis] = []
        self.configure()

    def configure(self, users: list[dict[str, str]] | None = None, **inputs: Any) -> None:
        """Write both files."""
        inputs = {
            "redis_users": users or USERS,
            "redis_bind_addresses": ["127.0.0.1"],
            "redis_port": self.port,
            "__redis_users_file": str(self.place / "users.acl"),
            "__redis_data_dir": str(self.place),
        } | inputs
        (self.place / "users.acl").write_text(render("redis", "users.acl.j2", **inputs))
        (self.place / "redis.conf").write_text(render("redis", "redis.conf.j2", **inputs))

    def start(self) -> None:
        """Start it and return when it serves."""
        command = [program("redis-server"), str(self.place / "redis.conf"), "--pidfile", "", "--supervised", "no"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait(lambda: listens(self.port), "Redis serves")

    def stop(self) -> None:
        """Stop it as systemd does."""
        for client in self.clients:
            client.close()
        if self.process:
            self.process.terminate()
            self.process.wait(10)

    def client(self, user: str, password: str | None = None) -> redis.Redis:
        """Return a client that answers with text and asks once."""
        client = redis.Redis(
            port=self.port,
            username=user,
            password=password or PASSWORDS[user],
            decode_responses=True,
            single_connection_client=True,
            retry=Retry(NoBackoff(), 0),
        )
        self.clients.append(client)
        return client

    def dry_run(self, command: str) -> str:
        """Return what the access list says of a command of the app."""
        return str(self.client("operator").acl_dryrun("trading_bot", *command.split()))

    def tool(self, *arguments: object, password: str = PASSWORDS["operator"]) -> subprocess.CompletedProcess[str]:
        """Run the role's tool."""
        command = [sys.executable, str(TOOL), *map(str, arguments)]
        return subprocess.run(command, text=True, capture_output=True, check=False, input=password)

    def apply(self, password: str = PASSWORDS["operator"]) -> dict[str, list[str]]:
        """Bring the running server up to date as the role does."""
        arguments = ("apply", "--config", self.place / "redis.conf", "--user", "operator")
        result = self.tool(*arguments, password=password)
        assert result.returncode == 0, result.stderr
        return dict(json.loads(result.stdout))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A running Redis."""
    one = Ledger(tmp_path)
    one.start()
    yield one
    one.stop()


def test_rendered_configuration_passes_the_check_that_guards_it(tmp_path: Path) -> None:
    program("redis-server")
    one = Ledger(tmp_path)
    assert one.tool("check", "--config", tmp_path / "redis.conf").returncode == 0
    assert one.tool("check", "--users", tmp_path / "users.acl").returncode == 0


def test_a_server_whose_socket_does_not_listen_yet_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Ledger(tmp_path)
    slow = tmp_path / "redis-server"
    slow.write_text(
        f"#!{sys.executable}\n"
        "import os, socket, sys, time\n"
        "address = sys.argv[sys.argv.index('--unixsocket') + 1]\n"
        "socket.socket(socket.AF_UNIX).bind(address)\n"
        "time.sleep(0.3)\n"
        "os.unlink(address)\n"
        f"os.execv({program('redis-server')!r}, sys.argv)\n"
    )
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    result = one.tool("check", "--users", tmp_path / "users.acl")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("line", ["no-such-setting yes", "maxmemory lots", "appendfsync sometimes"])
def test_bad_configuration_does_not_pass(tmp_path: Path, line: str) -> None:
    program("redis-server")
    one = Ledger(tmp_path)
    with (tmp_path / "redis.conf").open("a") as file:
        file.write(f"{line}\n")
    result = one.tool("check", "--config", tmp_path / "redis.conf")
    assert result.returncode == 1
    assert line.split()[0] in result.stderr


def test_bad_rule_does_not_pass(tmp_path: Path) -> None:
    program("redis-server")
    one = Ledger(tmp_path)
    one.configure([USERS[0] | {"rules": "~trading:* +no-such-command"}])
    result = one.tool("check", "--users", tmp_path / "users.acl")
    assert result.returncode == 1
    assert "no-such-command" in result.stderr


def test_no_clear_password_is_on_disk(tmp_path: Path) -> None:
    Ledger(tmp_path)
    written = (tmp_path / "users.acl").read_text() + (tmp_path / "redis.conf").read_text()
    assert not any(password in written for password in PASSWORDS.values())


def test_nobody_gets_in_without_a_user(ledger: Ledger) -> None:
    with redis.Redis(port=ledger.port, retry=Retry(NoBackoff(), 0)) as nobody, pytest.raises(redis.AuthenticationError):
        nobody.ping()
    with pytest.raises(redis.AuthenticationError):
        ledger.client("trading_bot", "wrong").ping()


def test_guarantees_of_the_ledger_are_on(ledger: Ledger) -> None:
    found = ledger.client("operator").config_get("*")
    expected = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "protected-mode": "yes"}
    assert {name: found[name] for name in expected} == expected
    assert found["maxmemory"] == str(1024**3)
    assert found["save"] == "3600 1 300 100 60 10000"


# What the app does on its way through an order.
ALLOWED = [
    "PING", "INFO", "TIME", "SELECT 0", "CLIENT SETNAME app", "GET trading:a", "SET trading:a 1 PX 5000", "DEL trading:a",
    "EXISTS trading:a", "EXPIRE trading:a 1", "PEXPIRE trading:a 1", "HGET trading:h f", "HSET trading:h f 1",
    "HMGET trading:h f", "HGETALL trading:h", "HDEL trading:h f", "HINCRBY trading:h n 1", "ZADD trading:z 1 a",
    "ZREM trading:z a", "ZCARD trading:z", "ZRANGE trading:z 0 -1", "ZRANGEBYSCORE trading:z 0 1",
    "ZREVRANGE trading:z 0 -1", "XADD trading:x * f 1", "XREAD STREAMS trading:x 0", "XRANGE trading:x - +",
    "XLEN trading:x", "XDEL trading:x 1-1", "XTRIM trading:x MAXLEN 10", "SCAN 0", "PUBLISH trading:alerts a",
    "SUBSCRIBE trading:metrics", "MULTI", "EXEC", "SCRIPT LOAD return", "SCRIPT EXISTS abc", "EVALSHA abc 1 trading:a",
    "XGROUP CREATE trading:x g 0 MKSTREAM", "XREADGROUP GROUP g c STREAMS trading:x >", "XACK trading:x g 1-1",
    "XAUTOCLAIM trading:x g c 0 0",
]  # fmt: skip
# What would lose the ledger, show others' data, or change the server.
DENIED = [
    "FLUSHALL", "FLUSHDB", "CONFIG GET *", "CONFIG SET maxmemory 1", "KEYS *", "SHUTDOWN", "DEBUG SLEEP 1", "ACL LIST",
    "ACL SETUSER x on", "SAVE", "BGSAVE", "BGREWRITEAOF", "REPLICAOF NO ONE", "MONITOR", "CLIENT KILL TYPE normal",
    "CLIENT LIST", "SWAPDB 0 0", "SORT trading:a", "MIGRATE 127.0.0.1 1 trading:a 0 1", "RESTORE trading:a 0 x",
    "MODULE LIST", "SCRIPT FLUSH", "SCRIPT KILL", "FUNCTION FLUSH", "FUNCTION LOAD x", "EVAL return 0", "SLOWLOG GET",
    "LATENCY RESET", "CLUSTER INFO", "GET other:a", "SET other:a 1", "PUBLISH other:a 1", "SUBSCRIBE other:a",
    "RENAME trading:a other:a",
]  # fmt: skip


@pytest.mark.parametrize("command", ALLOWED)
def test_app_may(ledger_of_module: Ledger, command: str) -> None:
    assert ledger_of_module.dry_run(command) == "OK"


@pytest.mark.parametrize("command", DENIED)
def test_app_may_not(ledger_of_module: Ledger, command: str) -> None:
    assert "no permissions" in ledger_of_module.dry_run(command).lower()


@pytest.fixture(scope="module")
def ledger_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """A running Redis that the tests only ask."""
    one = Ledger(tmp_path_factory.mktemp("redis"))
    one.start()
    yield one
    one.stop()


def test_app_is_refused_for_real(ledger: Ledger) -> None:
    client = ledger.client("trading_bot")
    client.set("trading:order", "1")
    for refused in (client.flushall, client.config_get, client.keys, client.shutdown):
        with pytest.raises(redis.ResponseError, match=r"(?i)no permissions"):
            refused()
    script = client.script_load("return redis.call('GET', KEYS[1])")
    assert client.evalsha(script, 1, "trading:order") == "1"
    assert client.evalsha_ro(script, 1, "trading:order") == "1"
    with pytest.raises(redis.ResponseError):
        client.evalsha(script, 1, "other:order")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_decided_is_there_however_it_ended_and_no_snapshot_is_needed(ledger: Ledger, number: signal.Signals) -> None:
    """A script's writes are one transaction in the append-only file, which Redis replays as its default user."""
    # No snapshot can be written, as where there is no room for one.
    (ledger.place / "dump.rdb").mkdir()
    client = ledger.client("trading_bot")
    script = "redis.call('HSET', KEYS[1], 'status', 'accepted') return redis.call('XADD', KEYS[2], '*', 'e', ARGV[1])"
    client.evalsha(client.script_load(script), 2, "trading:order", "trading:audit", "order.accepted")
    with client.pipeline(transaction=True) as both:
        both.set("trading:one", "1")
        both.set("trading:other", "1")
        both.execute()
    assert ledger.process
    ledger.client("operator").bgsave()
    wait(lambda: ledger.client("operator").info("persistence")["rdb_last_bgsave_status"] == "err", "a snapshot failed")
    client.set("trading:after", "1")
    ledger.process.send_signal(number)
    ledger.process.wait(10)
    ledger.start()
    again = ledger.client("trading_bot")
    assert again.hget("trading:order", "status") == "accepted"
    assert again.xlen("trading:audit") == 1
    assert again.mget("trading:one", "trading:other", "trading:after") == ["1", "1", "1"]


def test_second_apply_changes_nothing(ledger: Ledger) -> None:
    assert ledger.apply() == {"changed": [], "restart": []}
    assert ledger.apply() == {"changed": [], "restart": []}


def test_changed_setting_is_applied_without_a_restart(ledger: Ledger) -> None:
    client = ledger.client("trading_bot")
    client.set("trading:order", "1")
    ledger.configure(redis_max_memory="2gb", redis_max_clients=500)
    assert ledger.apply() == {"changed": ["maxclients", "maxmemory"], "restart": []}
    assert ledger.client("operator").config_get("maxmemory")["maxmemory"] == str(2 * 1024**3)
    assert client.get("trading:order") == "1"
    assert ledger.apply() == {"changed": [], "restart": []}


def test_changed_users_leave_the_connections_of_the_others_alone(ledger: Ledger) -> None:
    """A rotated password, a new user, a removed one: who is connected as somebody else stays connected."""
    extra = {"name": "extra", "password": "password-of-an-extra-user", "rules": "+ping"}
    ledger.configure([*USERS, extra])
    assert ledger.apply() == {"changed": ["user extra"], "restart": []}
    bystander = ledger.client("operator")
    number = bystander.client_id()
    leaver = ledger.client("extra", extra["password"])
    assert leaver.ping()

    ledger.configure([USERS[0] | {"password": "a-new-password-of-the-bot"}, *USERS[1:]])
    assert ledger.apply() == {"changed": ["user extra", "user trading_bot"], "restart": []}
    assert bystander.client_id() == number
    assert ledger.client("trading_bot", "a-new-password-of-the-bot").ping()
    with pytest.raises(redis.AuthenticationError):
        ledger.client("trading_bot").ping()
    with pytest.raises(redis.ConnectionError):
        leaver.ping()


def test_what_only_a_restart_can_change_is_named_and_no_data_is_lost(ledger: Ledger) -> None:
    client = ledger.client("trading_bot")
    client.set("trading:order", "1")
    rotated = "a-new-password-of-the-operator"
    ledger.configure([*USERS[:-1], USERS[-1] | {"password": rotated}])
    answer = ledger.apply(rotated)
    assert answer["changed"] == []
    assert "user operator" in answer["restart"][0]
    ledger.stop()
    ledger.start()
    assert ledger.apply(rotated) == {"changed": [], "restart": []}
    assert ledger.client("trading_bot").get("trading:order") == "1"


def test_the_notifier_reads_the_ledgers_alerts_and_nothing_else(ledger: Ledger) -> None:
    ledger.client("operator").xadd("trading:alerts:history", {"json": "{}"})
    notifier = ledger.client("notifier")
    assert notifier.xread({"trading:alerts:history": "0-0"})
    assert notifier.xrevrange("trading:alerts:history", count=1)
    for refused in (
        lambda: notifier.xadd("trading:alerts:history", {"json": "{}"}),
        lambda: notifier.xread({"trading:audit": "0-0"}),
        lambda: notifier.get("trading:mode"),
        lambda: notifier.publish("trading:alerts", "{}"),
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            refused()


def test_the_backup_has_a_snapshot_written_and_counts_and_changes_nothing(ledger: Ledger) -> None:
    ledger.client("operator").xadd("trading:audit", {"e": "order.accepted"})
    backup = ledger.client("backup")
    assert backup.bgsave()
    assert backup.dbsize() == 1
    assert backup.exists("trading:audit")
    assert backup.xrevrange("trading:audit", count=1)
    assert backup.xinfo_stream("trading:audit")["length"] == 1
    for refused in (
        lambda: backup.xadd("trading:audit", {"e": "order.accepted"}),
        lambda: backup.xtrim("trading:audit", 0),
        backup.flushall,
        lambda: backup.config_get("dir"),
        lambda: backup.xrange("trading:fills"),
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            refused()
