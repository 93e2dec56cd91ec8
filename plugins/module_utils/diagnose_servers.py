"""How servers answer to a host that needs them: Redis, NATS, a time server, HTTP, a port. Standard library only.

Every call is bounded by its timeout, and what goes wrong is part of the answer.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any, Optional
from urllib.parse import urlencode

from .diagnose_text import slow_commands
from .instances import get
from .nats_client import NatsError, connect

#: Seconds between 1900, where NTP counts from, and 1970.
_NTP_EPOCH = 2208988800
_PINGS = 7
_REFUSALS = ("WRONGPASS", "NOAUTH", "NOPERM", "AUTH")
_SLOWLOG_ENTRIES = 512


class RedisError(RuntimeError):
    """The server says no; the message is what it said."""


class Redis:
    """One connection that speaks Redis' protocol."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self._socket = socket.create_connection((host, port), timeout=timeout)
        self._file = self._socket.makefile("rb")

    def close(self) -> None:
        """End the connection."""
        self._file.close()
        self._socket.close()

    def ask(self, *words: str) -> Any:
        """The reply to a command, as integers, bytes, lists; raises RedisError, OSError."""
        encoded = [word.encode() for word in words]
        self._socket.sendall(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded))
        return self._reply()

    def _reply(self) -> Any:
        line = self._file.readline().rstrip(b"\r\n")
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            raise RedisError(rest.decode(errors="replace"))
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self._reply() for _ in range(int(rest))]
        raise OSError("the connection was closed" if not line else "the answer is not Redis'")


def parse_info(text: str) -> dict[str, str]:
    """What INFO printed, key to value."""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))


def redis_login(host: str, port: int, user: str, password: str, timeout: float = 2.0) -> dict[str, Any]:
    """How Redis answers a user: ``error`` (empty if it lets us in), ``refused`` (it answered, and said no), ``milliseconds``."""
    found: dict[str, Any] = {"address": f"{host}:{port}", "error": "", "refused": False, "milliseconds": None}
    try:
        server = Redis(host, port, timeout)
    except OSError as error:
        return {**found, "error": str(error) or type(error).__name__}
    try:
        if password:
            server.ask("AUTH", user or "default", password)
        times = []
        for _ in range(_PINGS):
            began = time.monotonic()
            server.ask("PING")
            times.append(time.monotonic() - began)
        found["milliseconds"] = round(sorted(times)[_PINGS // 2] * 1000, 1)
        found["worst_milliseconds"] = round(max(times) * 1000, 1)
    except RedisError as error:
        found.update(error=str(error), refused=any(word in str(error) for word in _REFUSALS))
    except OSError as error:
        # It took the connection, and is too busy to answer.
        found.update(error=f"no answer: {str(error) or type(error).__name__}", milliseconds=timeout * 1000)
    finally:
        server.close()
    return found


def redis_state(host: str, port: int, user: str, password: str, since: float, timeout: float = 6.0) -> dict[str, Any]:
    """What the server says of itself: memory, persistence, clients, and its slow log since a moment."""
    found: dict[str, Any] = {"error": ""}
    try:
        server = Redis(host, port, timeout)
    except OSError as error:
        return {"error": str(error) or type(error).__name__}
    try:
        if password:
            server.ask("AUTH", user, password)
        info = parse_info(server.ask("INFO").decode(errors="replace"))
        found["info"] = {
            key: info.get(key, "")
            for key in (
                *("redis_version", "role", "loading", "connected_clients", "rejected_connections", "blocked_clients"),
                *("used_memory", "maxmemory", "mem_fragmentation_ratio", "evicted_keys", "instantaneous_ops_per_sec"),
                *("aof_enabled", "aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"),
                *("latest_fork_usec", "uptime_in_seconds"),
            )
        }
        entries = [
            {"at": entry[1], "microseconds": entry[2], "command": entry[3][0].decode(errors="replace").upper()}
            for entry in server.ask("SLOWLOG", "GET", str(_SLOWLOG_ENTRIES))
            if entry[3]
        ]
        found["slow"] = slow_commands(entries, since)
    except (RedisError, OSError, ValueError, IndexError) as error:
        found["error"] = str(error) or type(error).__name__
    finally:
        server.close()
    return found


def nats_login(url: str, user: str, password: str, timeout: float = 2.0) -> dict[str, Any]:
    """How NATS answers a user: ``error`` (empty if it lets us in), ``refused`` (it answered, and said no), ``milliseconds``."""
    began = time.monotonic()
    servers = [part.strip() for part in url.split(",")]
    try:
        connect(servers, user or None, password or None, timeout=timeout).close()
    except (NatsError, ValueError) as error:
        text = str(error).replace("no NATS server lets us in: ", "")
        return {"address": url, "error": text, "refused": "authorization" in text.lower(), "milliseconds": None}
    return {"address": url, "error": "", "refused": False, "milliseconds": round((time.monotonic() - began) * 1000, 1)}


def _lags(streams: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"stream": stream["name"], "consumer": consumer["name"], "pending": int(consumer.get("num_pending") or 0)}
        for account in streams.get("account_details") or []
        for stream in account.get("stream_detail") or []
        for consumer in stream.get("consumer_detail") or []
    ]


def nats_state(monitor: str, timeout: float = 2.0) -> dict[str, Any]:
    """What the server says on its monitoring address: health, JetStream's storage, each consumer's lag."""
    try:
        status, health = get(monitor, "/healthz", timeout)
        about = json.loads(get(monitor, "/varz", timeout)[1])
        streams = json.loads(get(monitor, "/jsz?" + urlencode({"streams": 1, "consumers": 1}), timeout)[1])
    except (OSError, ValueError) as error:
        return {"error": str(error) or type(error).__name__}
    return {
        "error": "",
        "healthy": status == 200,
        "health": health.strip()[:300],
        "version": about.get("version"),
        "connections": about.get("connections"),
        "slow_consumers": about.get("slow_consumers"),
        "jetstream": {key: streams.get(key) for key in ("disabled", "storage", "memory", "streams", "consumers", "messages")},
        "max_storage": (streams.get("config") or {}).get("max_storage"),
        "lags": _lags(streams),
    }


def time_offset(server: str, timeout: float = 1.0) -> dict[str, Any]:
    """Seconds that this host's clock is ahead of a time server's (SNTP, RFC 4330): ``offset``, or ``error``."""
    host, _, port = server.partition(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
            stream.settimeout(timeout)
            sent = time.time()
            stream.sendto(b"\x23" + 47 * b"\0", (host, int(port or 123)))
            answer = stream.recv(512)
            received = time.time()
        seconds, fraction, out_seconds, out_fraction = struct.unpack("!4I", answer[32:48])
    except (OSError, ValueError, struct.error) as error:
        return {"server": server, "error": str(error) or type(error).__name__}
    there = seconds - _NTP_EPOCH + fraction / 2**32
    back = out_seconds - _NTP_EPOCH + out_fraction / 2**32
    return {"server": server, "error": "", "offset": round(((sent - there) + (received - back)) / 2, 3)}


def port_outcome(address: str, port: int, timeout: float = 1.5) -> dict[str, Any]:
    """What becomes of a connection: ``open``, ``refused``, ``no answer`` (dropped on the way), or the system's error."""
    began = time.monotonic()
    try:
        socket.create_connection((address, port), timeout=timeout).close()
        outcome = "open"
    except ConnectionRefusedError:
        outcome = "refused"
    except socket.timeout:
        outcome = "no answer"
    except OSError as error:
        outcome = error.strerror or str(error)
    return {"outcome": outcome, "milliseconds": round((time.monotonic() - began) * 1000, 1)}


def series(address: str, queries: Sequence[str], start: float, end: float, timeout: float = 3.0) -> dict[str, Any]:
    """What Prometheus has of each query around the time, as it answers ``query_range``; or its error."""
    step = max(15, int((end - start) / 120))
    found: dict[str, Any] = {}
    for query in queries:
        asked = urlencode({"query": query, "start": int(start), "end": int(end), "step": step})
        try:
            status, text = get(address, f"/api/v1/query_range?{asked}", timeout)
            found[query] = json.loads(text).get("data") if status == 200 else {"error": f"answered {status}"}
        except (OSError, ValueError) as error:
            found[query] = {"error": str(error) or type(error).__name__}
            break
    return found


def readiness_of(address: str, timeout: float = 2.0) -> tuple[Optional[int], str]:
    """Status and body of ``/health/ready``; None and the error where nothing answers."""
    try:
        status, text = get(address, "/health/ready", timeout)
    except (OSError, ValueError) as error:
        return None, str(error) or type(error).__name__
    return status, text
