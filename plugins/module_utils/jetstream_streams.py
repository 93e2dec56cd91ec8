"""JetStream streams out of a server and into one, by its own snapshots: a stream with its messages, sequences and consumers.

Standard library only, as it travels to hosts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Optional

from .nats_client import Connection, JetStreamError, NatsError

_STREAM_NOT_FOUND = 10059
CHUNK = 64 * 1024


def stream_names(connection: Connection) -> list[str]:
    """Every stream's name."""
    found: list[str] = []
    while True:
        answer = connection.api("$JS.API.STREAM.NAMES", {"offset": len(found)} if found else {})
        page = answer.get("streams") or []
        found += page
        if not page or len(found) >= int(answer.get("total", 0)):
            return sorted(found)


def stream_state(connection: Connection, name: str) -> Optional[dict[str, Any]]:
    """A stream's state, as JetStream tells it; None where there is no such stream."""
    try:
        return dict(connection.api(f"$JS.API.STREAM.INFO.{name}", {})["state"])
    except JetStreamError as error:
        if error.code == _STREAM_NOT_FOUND:
            return None
        raise


def take_snapshot(connection: Connection, name: str, target: BinaryIO) -> dict[str, Any]:
    """Write a stream's snapshot; returns its ``config`` and ``state``. Raises NatsError if the server breaks it off."""
    inbox = connection.subscribe()
    answer = connection.api(f"$JS.API.STREAM.SNAPSHOT.{name}", {"deliver_subject": inbox, "chunk_size": CHUNK})
    while True:
        message, reply = connection.receive(inbox)
        if not message.payload:
            # An empty message is the end; one with a status of its own tells why it ended.
            if message.status not in ("", "204"):
                raise NatsError(f"{connection.address}: the snapshot of {name} was broken off with {message.status}")
            break
        target.write(message.payload)
        if reply:
            connection.publish(reply, b"")
    return {"config": answer["config"], "state": answer["state"]}


def _chunks(source: BinaryIO) -> Iterator[bytes]:
    while True:
        chunk = source.read(CHUNK)
        if not chunk:
            return
        yield chunk


def restore_stream(connection: Connection, name: str, saved: Mapping[str, Any], source: BinaryIO) -> dict[str, Any]:
    """Make a stream from its snapshot; returns its state. The server refuses one that is there already."""
    answer = connection.api(f"$JS.API.STREAM.RESTORE.{name}", {"config": saved["config"], "state": saved["state"]})
    subject = str(answer["deliver_subject"])
    for chunk in _chunks(source):
        said = connection.request(subject, chunk).payload
        if said and json.loads(said).get("error"):
            raise NatsError(f"{connection.address}: {name}: {json.loads(said)['error'].get('description')}")
    return dict(connection.api(subject, {})["state"])


def delete_stream(connection: Connection, name: str) -> None:
    """Delete a stream with all that is in it."""
    connection.api(f"$JS.API.STREAM.DELETE.{name}", {})


def differences(saved: Mapping[str, Any], found: Mapping[str, Any], fields: Iterable[str]) -> list[str]:
    """The fields of two states that are not the same, in words."""
    return [f"{field} is {found.get(field)}, was {saved.get(field)}" for field in fields if saved.get(field) != found.get(field)]
