"""What instances say of themselves, read from real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from ansible.module_utils.instances import parse_metrics, scrape, scrape_all, summary
from plugin_testing import free_port

METRICS = """# HELP trading_build_info What runs here.
# TYPE trading_build_info gauge
trading_build_info{version="1.1.0",slot="green",release_id="1.1.0-bbbbbbbbbb",config_hash="c0ffee"} 1
trading_orders_total{path="http",outcome="accepted",version="1.1.0",slot="green"} 12
trading_orders_total{path="http",outcome="error",version="1.1.0",slot="green"} 3
trading_orders_total{path="nats",outcome="accepted",version="1.1.0",slot="green"} 5
trading_order_duration_seconds_bucket{path="http",le="0.001"} 10
trading_order_duration_seconds_bucket{path="http",le="+Inf"} 15
trading_order_duration_seconds_bucket{path="nats",le="0.001"} 1
trading_order_duration_seconds_bucket{path="nats",le="+Inf"} 5
trading_order_duration_seconds_sum{path="http"} 0.5
trading_fenced_writes_total{version="1.1.0"} 2
trading_shadow_skipped_total{reason="full"} 4
trading_shadow_skipped_total{reason="stale"} 1
process_start_time_seconds 1.7e9
process_resident_memory_bytes 5e7 1700000000000
"""


@contextmanager
def server(answer: bytes, *, hold: bool = False) -> Iterator[str]:
    """Answers every connection with these bytes; with `hold` it never ends its answer."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def run() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.recv(4096)
                peer.sendall(answer)
                if hold:
                    done.wait(10)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        done.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_an_instance_is_told_by_path_and_outcome_with_its_latency_over_all_paths() -> None:
    with server(b"HTTP/1.1 200 OK\r\n\r\n" + METRICS.encode()) as address:
        found = scrape(address, 2.0)
    assert found["up"] is True
    assert [found[name] for name in ("version", "slot", "release_id", "config_hash")] == [
        "1.1.0", "green", "1.1.0-bbbbbbbbbb", "c0ffee",
    ]  # fmt: skip
    assert found["orders"] == {"http": {"accepted": 12, "error": 3}, "nats": {"accepted": 5}}
    assert found["latency"] == {"bounds": [0.001, None], "counts": [11, 20]}
    assert (found["started"], found["memory"], found["latency_sum"]) == (1.7e9, 5e7, 0.5)
    assert found["stops"]["fenced_writes"] == 2
    assert found["stops"]["duplicated_executions"] is None
    assert found["shadow"] == {
        "mirrored": None, "compared": None, "skipped": 5, "differences": None,
        "skipped_by_reason": {"full": 4, "stale": 1},
    }  # fmt: skip


def test_an_instance_that_has_counted_nothing_yet_says_so() -> None:
    found = summary({})
    assert (found["orders"], found["latency"], found["release_id"]) == ({}, {"bounds": [], "counts": []}, None)


def test_labels_may_hold_whatever_a_text_holds() -> None:
    samples = parse_metrics('a{x="1,2",y="q\\"\\\\\\n}"} 1\nb +Inf\nc{} 2\n')
    assert samples == {"a": [({"x": "1,2", "y": 'q"\\\n}'}, 1.0)], "b": [({}, float("inf"))], "c": [({}, 2.0)]}


@pytest.mark.parametrize("text", ["a", "a{x=1} 1", 'a{x="1} 1', "a one"])
def test_what_is_no_sample_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no sample|no labels|convert"):
        parse_metrics(text)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "/metrics answered 503"),
        (b"SSH-2.0-OpenSSH\r\n", "the answer is no HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>\n", "'<html>' is no sample"),
        (b"", "the answer is no HTTP"),
    ],
)
def test_an_answer_that_is_none_is_told(answer: bytes, error: str) -> None:
    with server(answer) as address:
        assert scrape(address, 2.0) == {"up": False, "error": error}


def test_instances_are_asked_all_at_once() -> None:
    """Each answers only when all of them have been asked."""
    everybody = threading.Barrier(3)
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]

    def run(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer, listener:
            peer.recv(4096)
            everybody.wait(10)
            peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + METRICS.encode())

    threads = [threading.Thread(target=run, args=(listener,)) for listener in listeners]
    for thread in threads:
        thread.start()
    addresses = {f"app{at}": {"blue": f"127.0.0.1:{one.getsockname()[1]}"} for at, one in enumerate(listeners)}
    found = scrape_all(addresses, 10.0)
    for thread in threads:
        thread.join()
    assert [found[host]["blue"]["up"] for host in addresses] == [True, True, True]


def test_an_instance_that_hangs_or_is_gone_does_not_hide_the_others() -> None:
    with server(b"HTTP/1.1 200 OK\r\n\r\n" + METRICS.encode()) as good, server(b"HTTP/1.1 200 OK\r\n\r\n", hold=True) as slow:
        addresses = {"app1": {"blue": good, "green": slow}, "gone": {"blue": f"127.0.0.1:{free_port()}"}}
        found = scrape_all(addresses, 0.3)
    assert found["app1"]["blue"]["up"] is True
    assert found["app1"]["green"] == {"up": False, "error": "timed out"}
    assert "refused" in found["gone"]["blue"]["error"]


def test_a_listener_that_says_nothing_is_not_waited_for() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        assert scrape(f"127.0.0.1:{listener.getsockname()[1]}", 0.1) == {"up": False, "error": "timed out"}
