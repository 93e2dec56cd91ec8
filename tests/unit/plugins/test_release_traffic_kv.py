"""The module that tells the instances over NATS, against a real server with the fleet's permissions."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import nats as nats_py
import pytest
from ansible.module_utils.nats_client import (
    Address,
    Conflict,
    JetStreamError,
    KeyValue,
    NatsError,
    connect,
    parse_address,
)
from plugin_testing import Nats, RunModule, free_port, missing, program

WANTED = {"stable": "green", "canary": "blue", "salt": "1.0.0-aaaaaaaaaa", "cut": 500}


def test_the_instances_client_reads_what_the_module_wrote(nats: Nats, run_module: RunModule) -> None:
    result = run_module("release_traffic_kv", {**nats.where, **WANTED})
    assert (result["changed"], result["created_bucket"], result["before"]) == (True, True, None)

    async def read() -> bytes | None:
        client = await nats_py.connect(f"nats://admin:admin-secret@127.0.0.1:{nats.port}")
        bucket = await client.jetstream().key_value("release")
        entry = await bucket.get("traffic")
        await client.close()
        return entry.value

    assert json.loads(asyncio.run(read()) or b"") == {**WANTED, "releases": {}, "shadow": "", "token": 0}


def test_the_release_of_each_slot_is_told_and_stays(nats: Nats, run_module: RunModule) -> None:
    run_module("release_traffic_kv", {**nats.where, **WANTED, "releases": {"blue": "1.0.0-aaaaaaaaaa"}})
    result = run_module("release_traffic_kv", {**nats.where, "releases": {"green": "1.1.0-bbbbbbbbbb"}})
    assert result["changed"]
    assert result["releases"] == {"blue": "1.0.0-aaaaaaaaaa", "green": "1.1.0-bbbbbbbbbb"}
    assert not run_module("release_traffic_kv", {**nats.where, **WANTED})["changed"]


def test_the_slot_in_the_shadow_is_told_stays_and_goes(nats: Nats, run_module: RunModule) -> None:
    run_module("release_traffic_kv", {**nats.where, **WANTED, "shadow": "blue"})
    stays = run_module("release_traffic_kv", {**nats.where, "cut": 2000})
    assert (stays["changed"], stays["shadow"]) == (True, "blue")
    goes = run_module("release_traffic_kv", {**nats.where, "shadow": ""}, diff=True)
    assert (goes["changed"], goes["shadow"], goes["diff"]["before"]["shadow"]) == (True, "", "blue")


def test_a_bucket_that_the_app_made_first_is_used(nats: Nats, run_module: RunModule) -> None:
    async def create() -> None:
        client = await nats_py.connect(f"nats://admin:admin-secret@127.0.0.1:{nats.port}")
        bucket = await client.jetstream().create_key_value(bucket="release", history=5)
        await bucket.put("traffic", b'{"stable":"blue","canary":"green","salt":"none","cut":0}')
        await client.close()

    asyncio.run(create())
    result = run_module("release_traffic_kv", {**nats.where, "cut": 500})
    assert (result["changed"], result["created_bucket"]) == (True, False)
    assert result["traffic"] == {"stable": "blue", "canary": "green", "salt": "none", "cut": 500}


def test_the_app_may_make_the_bucket_after_the_module_did(nats: Nats, run_module: RunModule) -> None:
    run_module("release_traffic_kv", {**nats.where, **WANTED})

    async def create() -> None:
        client = await nats_py.connect(f"nats://admin:admin-secret@127.0.0.1:{nats.port}")
        await client.jetstream().create_key_value(bucket="release", history=5)
        await client.close()

    asyncio.run(create())
    assert run_module("release_traffic_kv", {**nats.where, "state": "read"})["traffic"] == WANTED


def test_the_same_again_changes_nothing_and_omitted_values_stay(nats: Nats, run_module: RunModule) -> None:
    first = run_module("release_traffic_kv", {**nats.where, **WANTED})
    again = run_module("release_traffic_kv", {**nats.where, "cut": 500})
    assert (again["changed"], again["revision"]) == (False, first["revision"])


def test_check_mode_tells_and_writes_nothing(nats: Nats, run_module: RunModule) -> None:
    result = run_module("release_traffic_kv", {**nats.where, **WANTED}, check=True, diff=True)
    assert (result["changed"], result["traffic"], result["after"]) == (True, None, WANTED)
    assert result["created_bucket"] is True
    told = run_module("release_traffic_kv", {**nats.where, "state": "read"})
    assert (told["traffic"], told["revision"], told["created_bucket"]) == (None, None, False)


def test_first_contact_needs_the_stable_slot(nats: Nats, run_module: RunModule) -> None:
    assert "say which slot is stable" in run_module("release_traffic_kv", {**nats.where, "cut": 0})["msg"]


@pytest.mark.parametrize("value", [b"not json", b"[]", b'{"stable":"blue"}', b"\xff"])
def test_an_unreadable_value_is_told_and_replaced(nats: Nats, run_module: RunModule, value: bytes) -> None:
    with connect(nats.where["servers"], "release", "release-secret") as connection:
        bucket = KeyValue(connection, "release")
        bucket.create(5, 1)
        bucket.put("traffic", value, 0)
    result = run_module("release_traffic_kv", {**nats.where, **WANTED})
    assert (result["changed"], result["before"], result["traffic"]) == (True, None, WANTED)
    assert result["unreadable"] == value.decode(errors="replace")


def test_a_deleted_key_has_no_value_and_can_be_set_again(nats: Nats, run_module: RunModule) -> None:
    run_module("release_traffic_kv", {**nats.where, **WANTED})

    async def delete() -> None:
        client = await nats_py.connect(f"nats://admin:admin-secret@127.0.0.1:{nats.port}")
        await (await client.jetstream().key_value("release")).delete("traffic")
        await client.close()

    asyncio.run(delete())
    assert run_module("release_traffic_kv", {**nats.where, "state": "read"})["traffic"] is None
    assert run_module("release_traffic_kv", {**nats.where, **WANTED})["traffic"] == WANTED


def test_a_writer_that_comes_between_is_noticed(nats: Nats) -> None:
    with connect(nats.where["servers"], "release", "release-secret") as connection:
        bucket = KeyValue(connection, "release")
        assert bucket.create(5, 1) is True
        revision = bucket.put("traffic", b"one", 0)
        bucket.put("traffic", b"two", revision)
        with pytest.raises(Conflict, match="somebody else wrote traffic"):
            bucket.put("traffic", b"three", revision)
        assert bucket.create(9, 1) is False


def test_the_first_server_that_answers_is_used(nats: Nats, run_module: RunModule) -> None:
    servers = [f"127.0.0.1:{free_port()}", f"nats://127.0.0.1:{nats.port}"]
    result = run_module("release_traffic_kv", {**nats.where, "servers": servers, **WANTED})
    assert result["server"] == f"nats://127.0.0.1:{nats.port}"


def test_a_wrong_password_is_told_without_it(nats: Nats, run_module: RunModule) -> None:
    result = run_module("release_traffic_kv", {**nats.where, "password": "wrong-secret", **WANTED})
    assert "no NATS server lets us in" in result["msg"]
    assert "Authorization Violation" in result["msg"]
    assert "wrong-secret" not in json.dumps(result["msg"])


def test_a_user_without_the_permission_is_told_which_one_it_lacks(nats: Nats, run_module: RunModule) -> None:
    where = {**nats.where, "user": "client", "password": "client-secret"}
    result = run_module("release_traffic_kv", {**where, **WANTED})
    assert "Permissions Violation for Publish to" in result["msg"]
    assert "$JS.API.STREAM.INFO.KV_release" in result["msg"]


def test_what_jetstream_refuses_and_what_nobody_answers_is_told(nats: Nats) -> None:
    with connect([f"127.0.0.1:{nats.port}"], "admin", "admin-secret") as connection:
        with pytest.raises(NatsError, match="is JetStream on"):
            connection.api("nobody.listens", {})
        with pytest.raises(JetStreamError):
            KeyValue(connection, "release").create(5, 3)
        with pytest.raises(JetStreamError):
            KeyValue(connection, "nowhere").get("traffic")


def serve_once(reply: bytes) -> tuple[int, threading.Thread]:
    """A listener that says this to the first who connects, and then closes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        peer, _ = listener.accept()
        with peer, listener:
            peer.sendall(reply)
            peer.settimeout(5)
            try:
                while peer.recv(4096):
                    pass
            except OSError:
                pass

    thread = threading.Thread(target=run)
    thread.start()
    return listener.getsockname()[1], thread


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "is no NATS server"),
        (b'INFO {"tls_required": true}\r\n', "demands TLS"),
        (b"", "did not answer within"),
        (b"INFO {}\r\nPING\r\n+OK\r\nHELLO x\r\n", "answered HELLO"),
    ],
)
def test_a_server_that_is_something_else_is_told(reply: bytes, says: str) -> None:
    port, thread = serve_once(reply)
    with pytest.raises(NatsError, match=says):
        connect([f"127.0.0.1:{port}"], timeout=0.3)
    thread.join()


def test_an_account_without_jetstream_is_told(tmp_path: Path) -> None:
    program("nats-server")
    server = Nats(tmp_path, "accounts { PLAIN { users: [ { user: plain, password: plain-secret } ] } }")
    with connect([f"127.0.0.1:{server.port}"], "plain", "plain-secret") as connection:
        bucket = KeyValue(connection, "release")
        actions: list[Callable[[], object]] = [bucket.exists, lambda: bucket.get("traffic"), lambda: bucket.create(5, 1)]
        for action in actions:
            with pytest.raises(JetStreamError, match="not enabled for account"):
                action()
        with pytest.raises(NatsError, match="nobody answers"):
            bucket.put("traffic", b"x", 0)
    server.stop()


def test_a_connection_that_is_closed_or_has_no_time_left_is_told(nats: Nats) -> None:
    connection = connect([f"127.0.0.1:{nats.port}"], "admin", "admin-secret")
    connection.timeout = 0
    with pytest.raises(NatsError, match="did not answer within 0 s"):
        connection.request("x", b"")
    connection.timeout = 2
    connection.close()
    with pytest.raises(NatsError, match="cannot be written to"):
        connection.request("x", b"")


def test_a_value_that_the_bucket_does_not_take_is_told(nats: Nats) -> None:
    with connect([f"127.0.0.1:{nats.port}"], "admin", "admin-secret") as connection:
        connection.api("$JS.API.STREAM.CREATE.KV_small", {"name": "KV_small", "subjects": ["$KV.small.>"], "max_msg_size": 10})
        with pytest.raises(JetStreamError):
            KeyValue(connection, "small").put("traffic", b"x" * 1000, 0)


def test_two_writers_of_the_same_value_are_both_right(nats: Nats, run_module: RunModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another load balancer writes between this one's look and its own write."""
    put = KeyValue.put

    def late(self: KeyValue, key: str, value: bytes, expected: int) -> int:
        monkeypatch.setattr(KeyValue, "put", put)
        self.put(key, other, expected)
        return put(self, key, value, expected)

    other = json.dumps(WANTED).encode()
    monkeypatch.setattr(KeyValue, "put", late)
    same = run_module("release_traffic_kv", {**nats.where, **WANTED})
    assert (same.get("failed"), same["changed"], same["traffic"]) == (None, False, WANTED)
    other = json.dumps({**WANTED, "cut": 0}).encode()
    monkeypatch.setattr(KeyValue, "put", late)
    different = run_module("release_traffic_kv", {**nats.where, "cut": 2000})
    assert "somebody else wrote traffic" in different["msg"]


def test_nobody_named_is_an_error() -> None:
    with pytest.raises(NatsError, match="none was named"):
        connect([])


def test_a_closed_connection_is_told(nats: Nats) -> None:
    with connect([f"127.0.0.1:{nats.port}"], "admin", "admin-secret") as connection:
        nats.stop()
        with pytest.raises(NatsError, match=r"closed the connection|cannot be written to|did not answer"):
            connection.request("x", b"")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("h", Address("h", 4222, False)),
        ("h:1", Address("h", 1, False)),
        ("nats://h:1", Address("h", 1, False)),
        ("tls://h", Address("h", 4222, True)),
        ("[::1]:5", Address("::1", 5, False)),
        ("[::1]", Address("::1", 4222, False)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["http://h", "nats://user:secret@h", "h:port", ""])
def test_what_is_no_address_is_refused_without_showing_a_secret(text: str) -> None:
    with pytest.raises(NatsError) as error:
        parse_address(text)
    assert "secret" not in str(error.value)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """A key and a certificate of its own for localhost."""
    if shutil.which("openssl") is None:
        missing("openssl")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    return tmp_path


@pytest.fixture
def tls_nats(authority: Path) -> Iterator[Nats]:
    """A NATS server that demands TLS."""
    server = Nats(authority, f'tls {{ cert_file: "{authority}/cert.pem", key_file: "{authority}/key.pem" }}')
    yield server
    server.stop()


def test_tls_with_an_authority_of_ones_own(tls_nats: Nats, authority: Path, run_module: RunModule) -> None:
    where = {**tls_nats.where, "servers": [f"localhost:{tls_nats.port}"], "ca_file": str(authority / "cert.pem")}
    assert run_module("release_traffic_kv", {**where, **WANTED})["changed"] is True


def test_a_server_of_an_unknown_authority_is_refused(tls_nats: Nats) -> None:
    with pytest.raises(NatsError, match=r"TLS with tls://localhost:.* failed"):
        connect([f"tls://localhost:{tls_nats.port}"], "admin", "admin-secret")


def test_tls_that_the_server_does_not_have_is_told(nats: Nats) -> None:
    with pytest.raises(NatsError, match="has none"):
        connect([f"127.0.0.1:{nats.port}"], "admin", "admin-secret", ssl.create_default_context())
