#!/usr/bin/python3 -I
"""What a NATS server and its JetStream do, in Prometheus's text format, read from its monitoring port at each look.

nats-exporter --listen 10.0.0.11:7777 --server http://10.0.0.11:8222
"""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Sample = tuple[str, float]
Family = tuple[str, str, str, Sequence[Sample]]
Fetch = Callable[[str], Mapping[str, Any]]

TIMEOUT = 2.0


def fetch(server: str, path: str) -> Mapping[str, Any]:
    """The JSON object that the monitoring port answers, also where it answers with an error's status."""
    try:
        with urllib.request.urlopen(f"{server}{path}", timeout=TIMEOUT) as answer:  # noqa: S310 - the unit names the server
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        found = json.load(error)
    if not isinstance(found, dict):
        raise ValueError(f"{path} answers no object")
    return found


def labels(**values: object) -> str:
    """``{stream="TRADING_EVENTS"}``."""
    escaped = {name: str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for name, value in values.items()}
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"


def families(get: Fetch) -> Iterator[Family]:
    """Every series: name, type, help, values. A server that does not answer has ``nats_up 0`` and no other."""
    try:
        server, streams, health = get("/varz"), get("/jsz?streams=true&consumers=true&config=true"), get("/healthz")
    except (OSError, ValueError):
        yield "nats_up", "gauge", "1 while the server answers.", [("", 0)]
        return
    yield "nats_up", "gauge", "1 while the server answers.", [("", 1)]
    healthy = health.get("status") == "ok"
    yield "nats_healthy", "gauge", "1 while the server and its streams are healthy.", [("", healthy)]
    for name, kind, text, key in (
        ("nats_connections", "gauge", "Clients that are connected.", "connections"),
        ("nats_subscriptions", "gauge", "Subscriptions.", "subscriptions"),
        ("nats_slow_consumers_total", "counter", "Clients cut off because they did not read.", "slow_consumers"),
        ("nats_received_messages_total", "counter", "Messages from clients.", "in_msgs"),
        ("nats_sent_messages_total", "counter", "Messages to clients.", "out_msgs"),
        ("nats_received_bytes_total", "counter", "Bytes from clients.", "in_bytes"),
        ("nats_sent_bytes_total", "counter", "Bytes to clients.", "out_bytes"),
        ("nats_memory_bytes", "gauge", "Memory of the server.", "mem"),
    ):
        yield name, kind, text, [("", server.get(key, 0))]
    for name, text, key in (
        ("nats_jetstream_storage_bytes", "What streams hold on disk.", "storage"),
        ("nats_jetstream_memory_bytes", "What streams hold in memory.", "memory"),
    ):
        yield name, "gauge", text, [("", streams.get(key, 0))]
    limits = streams.get("config") or {}
    yield "nats_jetstream_storage_limit_bytes", "gauge", "What they may hold on disk.", [("", limits.get("max_storage", 0))]
    known = [
        (stream["name"], stream)
        for account in streams.get("account_details") or []
        for stream in account.get("stream_detail") or []
    ]
    for name, kind, text, key in (
        ("nats_stream_messages", "gauge", "Messages that a stream holds.", "messages"),
        ("nats_stream_bytes", "gauge", "Bytes that a stream holds.", "bytes"),
        ("nats_stream_last_sequence", "gauge", "Number of a stream's last message.", "last_seq"),
    ):
        yield name, kind, text, [(labels(stream=stream), one["state"].get(key, 0)) for stream, one in known]
    yield (
        "nats_stream_replica_lag",
        "gauge",
        "Messages that a copy of a stream on another server lacks.",
        [
            (labels(stream=stream, server=copy["name"]), copy.get("lag", 0))
            for stream, one in known
            for copy in (one.get("cluster") or {}).get("replicas") or []
        ],
    )
    yield (
        "nats_consumer_pending",
        "gauge",
        "Messages that a durable reader of a stream has yet to get.",
        [
            (labels(stream=stream, consumer=reader["name"]), reader.get("num_pending", 0))
            for stream, one in known
            for reader in one.get("consumer_detail") or []
            if (reader.get("config") or {}).get("durable_name")
        ],
    )


def render(get: Fetch) -> bytes:
    """The page that Prometheus reads."""
    lines = []
    for name, kind, text, samples in families(get):
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{label} {float(value):.15g}" for label, value in samples]
    return ("\n".join(lines) + "\n").encode()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serves a NATS server's figures to Prometheus on /metrics.")
    parser.add_argument("--listen", required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--server", required=True, metavar="URL", help="the server's monitoring port")
    chosen = parser.parse_args()

    class Page(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            if self.path != "/metrics":
                self.send_error(404)
                return
            body = render(lambda path: fetch(chosen.server, path))
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """One line for each look would be all that the journal has."""

    address, _, port = chosen.listen.rpartition(":")
    ThreadingHTTPServer((address, int(port)), Page).serve_forever()


if __name__ == "__main__":
    main()
