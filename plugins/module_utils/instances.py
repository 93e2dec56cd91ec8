"""What the app's instances say of themselves on ``/metrics``, asked all at once. Standard library only."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Optional

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?$")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}
#: More than an instance ever says; a server that is something else is not read to its end.
_MOST_BYTES = 4_000_000

#: What ends a rollout at once when it grows, by the name that it has in an answer.
_STOPS = {
    "duplicated_executions": "trading_duplicated_executions_total",
    "fenced_writes": "trading_fenced_writes_total",
    "ledger_differences": "trading_ledger_differences",
    "ledger_verified_at": "trading_ledger_verified_timestamp_seconds",
    "risk_limit_passed": "trading_risk_limit_passed_total",
}
_SHADOW = {
    "mirrored": "trading_shadow_mirrored_total",
    "compared": "trading_shadow_compared_total",
    "skipped": "trading_shadow_skipped_total",
    "differences": "trading_shadow_differences_total",
}


def parse_metrics(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Every sample of Prometheus's text format by its name: labels and value. Raises ValueError on a line that is none."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = _SAMPLE.match(line)
        if match is None:
            raise ValueError(f"{line[:80]!r} is no sample")
        name, labels, value = match.groups()
        found.setdefault(name, []).append((_labels(labels) if labels else {}, float(value)))
    return found


def _labels(text: str) -> dict[str, str]:
    found = {}
    at = 0
    while at < len(text):
        match = _LABEL.match(text, at)
        if match is None:
            raise ValueError(f"{text[:80]!r} are no labels")
        found[match[1]] = re.sub(r'\\[\\"n]', lambda escape: _ESCAPES[escape[0]], match[2])
        at = match.end()
    return found


def summary(samples: Mapping[str, list[tuple[dict[str, str], float]]]) -> dict[str, Any]:
    """What a judge wants to know of an instance; everything is cumulative since its start.

    ``orders`` by path and outcome; ``latency`` in seconds over all paths, ``counts[i]`` of them up to ``bounds[i]`` (the last
    bound is null: all). What the instance does not count is null.
    """
    build = (samples.get("trading_build_info") or [({}, 0.0)])[0][0]
    orders: dict[str, dict[str, int]] = {}
    for labels, value in samples.get("trading_orders_total", ()):
        path = orders.setdefault(labels.get("path", ""), {})
        path[labels.get("outcome", "")] = path.get(labels.get("outcome", ""), 0) + int(value)
    return {
        **{name: build.get(name) for name in ("version", "slot", "release_id", "config_hash")},
        "started": _total(samples, "process_start_time_seconds"),
        "memory": _total(samples, "process_resident_memory_bytes"),
        "orders": orders,
        "latency": _histogram(samples.get("trading_order_duration_seconds_bucket", ())),
        "latency_sum": _total(samples, "trading_order_duration_seconds_sum"),
        "stops": {name: _total(samples, series) for name, series in _STOPS.items()},
        "shadow": {
            **{name: _total(samples, series) for name, series in _SHADOW.items()},
            "skipped_by_reason": {labels.get("reason", ""): value for labels, value in samples.get(_SHADOW["skipped"], ())},
        },
    }


def _total(samples: Mapping[str, list[tuple[dict[str, str], float]]], name: str) -> Optional[float]:
    found = samples.get(name)
    return sum(value for _, value in found) if found else None


def _histogram(buckets: Iterable[tuple[dict[str, str], float]]) -> dict[str, Any]:
    counts: dict[float, int] = {}
    for labels, value in buckets:
        bound = float(labels["le"].replace("+Inf", "inf"))
        counts[bound] = counts.get(bound, 0) + int(value)
    bounds = sorted(counts)
    return {
        "bounds": [None if bound == float("inf") else bound for bound in bounds],
        "counts": [counts[bound] for bound in bounds],
    }


def get(address: str, path: str, timeout: float, token: str = "") -> tuple[int, str]:
    """Status and body of one HTTP request; raises OSError or ValueError when no answer comes within the timeout."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout
    bearer = f"Authorization: Bearer {token}\r\n" if token else ""
    answer = bytearray()
    with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout) as stream:
        # 1.0: the answer ends with the connection, in one piece.
        stream.sendall(f"GET {path} HTTP/1.0\r\nHost: {address}\r\n{bearer}\r\n".encode())
        while len(answer) < _MOST_BYTES:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            stream.settimeout(left)
            chunk = stream.recv(65536)
            if not chunk:
                break
            answer += chunk
    head, separator, body = bytes(answer).partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split(None, 2)
    if not separator or len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ValueError("the answer is no HTTP")
    return int(words[1]), body.decode(errors="replace")


def scrape(address: str, timeout: float, token: str = "") -> dict[str, Any]:
    """What one instance says: ``up``, and its summary or the error; with a token also ``trial``, what it found in the shadow."""
    try:
        status, text = get(address, "/metrics", timeout)
        if status != 200:
            return {"up": False, "error": f"/metrics answered {status}"}
        found: dict[str, Any] = {"up": True, **summary(parse_metrics(text))}
        if token:
            status, text = get(address, "/api/shadow", timeout, token)
            found["trial"] = json.loads(text) if status == 200 else None
        return found
    except (OSError, ValueError) as error:
        return {"up": False, "error": str(error) or type(error).__name__}


def scrape_all(
    addresses: Mapping[str, Mapping[str, str]], timeout: float = 1.0, token: str = ""
) -> dict[str, dict[str, dict[str, Any]]]:
    """Every instance of ``{host: {slot: "address:port"}}``, asked at the same time."""
    found: dict[str, dict[str, dict[str, Any]]] = {host: {} for host in addresses}

    def ask(host: str, slot: str, address: str) -> None:
        found[host][slot] = scrape(address, timeout, token)

    threads = [
        threading.Thread(target=ask, args=(host, slot, address), daemon=True)
        for host, slots in addresses.items()
        for slot, address in slots.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout + 1)
    for host, slots in addresses.items():
        for slot in slots:
            found[host].setdefault(slot, {"up": False, "error": "timed out"})
    return found
