"""What the instances are told over NATS, from a load balancer whose NATS may be away for a while. Standard library only.

What could not be told is noted, with the revision that the key had when it was last seen. Once NATS is back it is told,
unless somebody else wrote since: then that is newer.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from typing import Any, Optional

from .nats_client import Conflict, Connection, KeyValue, NatsError, connect
from .state_files import StateFiles
from .traffic import TrafficError
from .traffic_kv import KEY, Told, parse, write

STATE = "kv.json"
_ATTEMPTS = 3


class ToldInstances:
    """The bucket as this load balancer knows it; ``nats`` says where it is and who asks."""

    def __init__(self, files: StateFiles, nats: Mapping[str, Any]) -> None:
        self.files = files
        self.nats = nats
        self.key = str(nats.get("key", KEY))

    def connection(self, seconds: float = 2.0) -> Connection:
        """To the first server that lets us in, within so many seconds in all; raises NatsError."""
        deadline = time.monotonic() + seconds
        context = None
        if self.nats.get("tls") or self.nats.get("ca_file"):
            context = ssl.create_default_context(cafile=self.nats.get("ca_file") or None)
        reasons = []
        for server in self.nats.get("servers") or ():
            left = deadline - time.monotonic()
            if left <= 0:
                reasons.append(f"{server}: no time was left")
                break
            try:
                return connect([server], self.nats.get("user"), self.nats.get("password"), context, min(left, 1.0))
            except NatsError as error:
                reasons.append(str(error))
        raise NatsError("; ".join(reasons) or "no NATS server is named in the agent's configuration")

    def bucket(self, connection: Connection) -> KeyValue:
        """The bucket on that connection."""
        return KeyValue(connection, str(self.nats.get("bucket", "release")))

    def read(self, seconds: float = 2.0) -> tuple[Optional[Told], Optional[int]]:
        """What the bucket says and the revision, None where there is no bucket or no value; raises NatsError, OSError."""
        with self.connection(seconds) as connection:
            bucket = self.bucket(connection)
            entry, _ = bucket.get(self.key) if bucket.exists() else (None, 0)
        return (parse(entry), entry.revision) if entry else (None, None)

    # what is owed

    def known(self) -> dict[str, Any]:
        """``revision`` as last seen, and ``pending``: the changes that the instances are still to be told of."""
        return self.files.read(STATE) or {}

    def owe(self, changes: Mapping[str, Any]) -> None:
        """Note what is to be told; what was owed before and is not said anew stays owed."""
        known = self.known()
        self.files.write(STATE, {"revision": known.get("revision"), "pending": {**(known.get("pending") or {}), **changes}})

    def overtaken(self, told: Told, revision: int) -> bool:
        """Whether somebody else wrote since what is owed was noted."""
        known = self.known()
        if known.get("revision") is not None:
            return bool(revision != known["revision"])
        # Never seen before: only a higher fencing number tells that what is owed came later.
        return told.token >= int((known.get("pending") or {}).get("token") or 0)

    def tell(self, *, later: bool = False) -> dict[str, Any]:
        """Write what is owed; ``ok`` says whether nothing is owed any more.

        Told at once, it replaces what another writer brings meanwhile; told `later`, it gives way to that.
        """
        pending = self.known().get("pending")
        if not pending:
            return {"ok": True}
        try:
            with self.connection() as connection:
                revision = self._write(self.bucket(connection), pending, later)
        except (NatsError, TrafficError, OSError) as error:
            return {"ok": False, "error": str(error)}
        return self._paid(pending, revision)

    def _write(self, bucket: KeyValue, pending: Mapping[str, Any], later: bool) -> Optional[int]:
        history, replicas = int(self.nats.get("history", 5)), int(self.nats.get("replicas", 1))
        for attempt in range(_ATTEMPTS):
            if later and bucket.exists():
                entry, _ = bucket.get(self.key)
                if entry is not None and self.overtaken(parse(entry), entry.revision):
                    return entry.revision
            try:
                return write(bucket, pending, key=self.key, history=history, replicas=replicas).revision
            except Conflict:
                if attempt + 1 == _ATTEMPTS:
                    raise
        return None

    def _paid(self, pending: Mapping[str, Any], revision: Optional[int]) -> dict[str, Any]:
        try:
            with self.files.exclusively():
                if self.known().get("pending") == pending:
                    self.files.write(STATE, {"revision": revision, "pending": None})
        except OSError as error:
            return {"ok": True, "revision": revision, "warning": f"it is told, and this could not be noted: {error}"}
        return {"ok": True, "revision": revision}
