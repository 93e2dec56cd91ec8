"""What an instance counts, in Prometheus's text format. Every series carries version and slot."""

from __future__ import annotations

import os
import resource
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping

BUCKETS = tuple(float(f"{0.0003 * 1.2**n:.4g}") for n in range(52))
"""From 0.3 ms to 3.3 s. Whoever reads a quantile or counts what is slower than another bound is off by less
than a fifth of the duration, wherever it lies."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Histogram:
    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds


class Metrics:
    """Counters and gauges of one instance."""

    def __init__(self, version: str, slot: str, build: dict[str, str], outcomes: Iterable[str]) -> None:
        labels = self._labels = f'version="{version}",slot="{slot}"'
        self.build = build
        self._orders = {(path, outcome): 0 for path in ("http", "nats") for outcome in outcomes}
        self._seconds = {"http": Histogram(), "nats": Histogram()}
        # Rendered on each look, so what does not change is made once.
        self._buckets = {
            path: [
                f'trading_order_duration_seconds_bucket{{path="{path}",le="{bound}",{labels}}} '
                for bound in (*BUCKETS, "+Inf")
            ]
            for path in self._seconds
        }
        self.responses: dict[int, int] = {}
        self.published = 0
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self.counters: dict[str, tuple[str, Callable[[], Mapping[str, float]]]] = {}
        """By name: help, and the value of each set of labels, such as ``reason="again"`` or the empty one."""
        self.labelled: dict[str, tuple[str, Callable[[], Mapping[str, float]]]] = {}
        """As ``counters``, but gauges."""
        self._started = time.time()

    def order(self, path: str, outcome: str, seconds: float) -> None:
        self._orders[path, outcome] += 1
        self._seconds[path].observe(seconds)

    def response(self, status: int) -> None:
        self.responses[status] = self.responses.get(status, 0) + 1

    def totals(self) -> dict[str, float]:
        """Since the start: orders by how they ended, time spent on them, and the process's own."""

        def ended(*outcomes: str) -> int:
            return sum(count for (_, outcome), count in self._orders.items() if outcome in outcomes)

        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "orders": sum(self._orders.values()),
            "accepted": ended("accepted", "again"),
            "refused": ended("refused"),
            "errors": ended("error", "unavailable"),
            "seconds": sum(histogram.total for histogram in self._seconds.values()),
            "cpu": usage.ru_utime + usage.ru_stime,
            "memory": _resident(),
        }

    def render(self) -> bytes:
        labels = self._labels
        build = ",".join(f'{name}="{escape(value)}"' for name, value in self.build.items())
        out = [
            "# HELP trading_build_info What runs here.\n# TYPE trading_build_info gauge",
            f"trading_build_info{{{labels},{build}}} 1",
            "# HELP trading_orders_total Orders by path and outcome.\n# TYPE trading_orders_total counter",
        ]
        for (path, outcome), count in self._orders.items():
            out.append(f'trading_orders_total{{path="{path}",outcome="{outcome}",{labels}}} {count}')
        name = "trading_order_duration_seconds"
        out.append(f"# HELP {name} Time to decide an order.\n# TYPE {name} histogram")
        for path, histogram in self._seconds.items():
            cumulative = 0
            for series, count in zip(self._buckets[path], histogram.counts, strict=True):
                cumulative += count
                out.append(f"{series}{cumulative}")
            out.append(f'{name}_sum{{path="{path}",{labels}}} {histogram.total:.6f}')
            out.append(f'{name}_count{{path="{path}",{labels}}} {cumulative}')
        name = "trading_http_responses_total"
        out.append(f"# HELP {name} HTTP answers by status.\n# TYPE {name} counter")
        for status, count in sorted(self.responses.items()):
            out.append(f'{name}{{status="{status}",{labels}}} {count}')
        name = "trading_events_published_total"
        out.append(f"# HELP {name} Events that the bus has stored.\n# TYPE {name} counter")
        out.append(f"{name}{{{labels}}} {self.published}")
        for name, (text, read) in self.gauges.items():
            out.append(f"# HELP {name} {text}\n# TYPE {name} gauge\n{name}{{{labels}}} {read():.15g}")
        for name, kind, (text, counted) in (
            *((name, "counter", entry) for name, entry in self.counters.items()),
            *((name, "gauge", entry) for name, entry in self.labelled.items()),
        ):
            out.append(f"# HELP {name} {text}\n# TYPE {name} {kind}")
            for label, value in counted().items():
                out.append(f"{name}{{{label}{',' if label else ''}{labels}}} {value:.15g}")
        usage = resource.getrusage(resource.RUSAGE_SELF)
        for name, kind, value in (
            ("process_cpu_seconds_total", "counter", usage.ru_utime + usage.ru_stime),
            ("process_resident_memory_bytes", "gauge", _resident()),
            ("process_start_time_seconds", "gauge", self._started),
        ):
            out.append(f"# TYPE {name} {kind}\n{name}{{{labels}}} {value:.3f}")
        out.append("")
        return "\n".join(out).encode()


def _resident() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * _PAGE


def escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
