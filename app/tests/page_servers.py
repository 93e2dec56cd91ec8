"""A fleet that only tells figures, a real Prometheus that asks for them, and the page that shows them."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from servers import Server, free_port, need, until

PASSWORD = "a-password-for-tests"
HOSTILE = '<script>document.title="taken"</script><img src=x onerror=alert(1)>'
IMAGE, CONFIG = "sha256:" + "ab" * 32, "cd" * 32


class Fleet:
    """Three app hosts with 0.1.0 in blue, which serves; since 20 minutes a canary in green on two; a load
    balancer; Redis."""

    def __init__(self) -> None:
        self.began = time.time()
        self.rollout: dict[str, Any] | None = {"id": "r-7", "stage": "5%"}
        self.cut = 500
        self.leverage = 1.5
        self.hostile = HOSTILE
        fleet = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                text = fleet.figures(self.path[1:])
                self.send_response(200 if text else 503)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def targets(self) -> list[dict[str, Any]]:
        def one(path: str, job: str, host: str, port: int) -> dict[str, Any]:
            labels = {"job": job, "host": host, "instance": f"{host}:{port}", "__metrics_path__": f"/{path}"}
            return {"targets": [self.address], "labels": labels}

        slots = [("blue", 18080), ("green", 18081)]
        app = [one(f"{slot}-{n}", "app", f"app{n}", port) for n in (1, 2, 3) for slot, port in slots]
        return [*app, one("lb", "node", "lb1", 9100), one("redis", "redis", "data1", 9121)]

    def past(self, at: float) -> tuple[str, int]:
        """The stage and the cut of a moment: nothing, then a shadow, then what it is now."""
        if self.rollout is None or at < self.began - 1200:
            return "", 0
        return ("shadow", 0) if at < self.began - 600 else (self.rollout["stage"], self.cut)

    def history(self) -> str:
        """The last hour of all targets, as promtool takes it."""
        lines = []
        for target in self.targets():
            labels = dict(target["labels"])
            path = labels.pop("__metrics_path__")[1:]
            added = ",".join(f'{name}="{value}"' for name, value in labels.items())
            for at in range(int(self.began) - 3600, int(self.began), 10):
                text = self.figures(path, at)
                lines.append(f"up{{{added}}} {int(bool(text))} {at}")
                for line in text.splitlines():
                    series, _, value = line.rpartition(" ")
                    name, _, own = series.partition("{")
                    lines.append(f"{name}{{{added}{',' if own else ''}{own or '}'} {value} {at}")
        return "\n".join([*lines, "# EOF\n"])

    def figures(self, path: str, at: float | None = None) -> str:
        at = time.time() if at is None else at
        if path == "lb":
            return self.load_balancer(at)
        if path == "redis":
            return "redis_up 1\n"
        slot, _, number = path.partition("-")
        if slot == "green" and (not self.past(at)[0] or number == "3"):
            return ""
        version = "0.1.0" if slot == "blue" else "0.2.0"
        return self.instance(version, slot, at, ready=slot == "blue" or number == "1")

    def instance(self, version: str, slot: str, at: float, *, ready: bool) -> str:
        """50 orders/s in 5 ms at most; on the canary 5, a tenth errors, between 100 and 250 ms."""
        passed = at - self.began + 5000
        rate, wrong, fast = (50.0, 0.0, 1.0) if slot == "blue" else (5.0, 0.1, 0.0)
        labels = f'version="{version}",slot="{slot}"'
        count = passed * rate
        about = f'release_id="{version}-abcdef",image="{IMAGE}",config_hash="{CONFIG}",{labels}'
        return f"""trading_build_info{{{about}}} 1
trading_ready{{{labels}}} {int(ready)}
trading_member{{{labels}}} 1
trading_orders_total{{{labels},outcome="accepted"}} {count * (0.98 - wrong)}
trading_orders_total{{{labels},outcome="refused"}} {count * 0.02}
trading_orders_total{{{labels},outcome="error"}} {count * wrong}
trading_order_duration_seconds_bucket{{{labels},le="0.005"}} {count * fast}
trading_order_duration_seconds_bucket{{{labels},le="0.1"}} {count * fast}
trading_order_duration_seconds_bucket{{{labels},le="0.25"}} {count}
trading_order_duration_seconds_bucket{{{labels},le="+Inf"}} {count}
trading_outbox_pending{{{labels}}} 12
trading_halted{{{labels}}} 0
trading_degraded{{{labels}}} 0
trading_risk_worst_leverage{{{labels}}} {self.leverage}
trading_risk_worst_margin_level{{{labels}}} 4
trading_risk_worst_drawdown{{{labels}}} 0.02
trading_limit{{{labels},limit="max_leverage"}} 3
trading_limit{{{labels},limit="min_margin_level"}} 1.5
trading_limit{{{labels},limit="max_drawdown"}} 0.1
"""

    def load_balancer(self, at: float) -> str:
        passed = at - self.began + 5000
        stage, cut = self.past(at)
        text = f"""trading_canary_cut {cut}
trading_traffic_share{{role="stable",slot="blue"}} {10000 - cut}
node_cpu_seconds_total{{cpu="0",mode="idle"}} {passed * 0.75}
node_memory_MemAvailable_bytes 600
node_memory_MemTotal_bytes 1000
node_filesystem_avail_bytes{{mountpoint="/"}} 10
node_filesystem_size_bytes{{mountpoint="/"}} 40
hostile{{account={json.dumps(self.hostile)}}} 1
"""
        if self.rollout is not None and stage:
            name = self.rollout["id"]
            text += f"""trading_traffic_share{{role="canary",slot="green"}} {cut}
trading_rollout_info{{rollout="{name}",stage="{stage}",paused="0"}} 1
trading_rollout_started_timestamp_seconds{{rollout="{name}"}} {self.began - 1200:.0f}
trading_rollout_heard_timestamp_seconds{{rollout="{name}"}} {at:.0f}
"""
        return text


RULES = {
    "groups": [
        {
            "name": "test",
            "rules": [
                {"alert": "Watchdog", "expr": "vector(1)", "labels": {"severity": "none"}},
                {
                    "alert": "Hostile",
                    "expr": "hostile == 1",
                    "labels": {"severity": "critical"},
                    "annotations": {
                        "summary": "Account {{ $labels.account }} is odd",
                        "value": "{{ $value }}",
                        "threshold": "0",
                        "runbook_url": "https://runbook.example.com/Hostile.md",
                    },
                },
                {
                    "alert": "Script",
                    "expr": "vector(2)",
                    "labels": {"severity": "warning"},
                    "annotations": {"summary": "A link that is none", "runbook_url": "javascript:alert(1)"},
                },
            ],
        }
    ]
}


class Prometheus(Server):
    def __init__(self, directory: Path, fleet: Fleet, alertmanager: str = "") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        (directory / "rules.yml").write_text(yaml.safe_dump(RULES))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "alerting": {
                "alertmanagers": [{"static_configs": [{"targets": [alertmanager] if alertmanager else []}]}]
            },
            "scrape_configs": [{"job_name": "fleet", "static_configs": fleet.targets()}],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        (directory / "history.txt").write_text(fleet.history())
        subprocess.run(
            [need("promtool"), "tsdb", "create-blocks-from", "openmetrics", "history.txt", "data"],
            cwd=directory, check=True, capture_output=True,
        )  # fmt: skip
        command = [
            need("prometheus"), f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
        ]  # fmt: skip
        super().__init__(command, port, directory / "prometheus.log")


class Alertmanager(Server):
    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        config = directory / "alertmanager.yml"
        config.write_text(
            yaml.safe_dump({"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}]})
        )
        command = [
            need("prometheus-alertmanager"), f"--config.file={config}", f"--storage.path={directory}",
            f"--web.listen-address={self.address}", "--cluster.listen-address=",
        ]  # fmt: skip
        super().__init__(command, port, directory / "alertmanager.log")

    def silence(self, name: str) -> None:
        """For an hour, every alert of this name."""
        now = datetime.now(UTC)
        body = {
            "matchers": [{"name": "alertname", "value": name, "isRegex": False}],
            "startsAt": now.isoformat(), "endsAt": (now + timedelta(hours=1)).isoformat(),
            "createdBy": "desk", "comment": "known",
        }  # fmt: skip
        request = urllib.request.Request(f"http://{self.address}/api/v2/silences", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200


class Page(Server):
    """The page as a process, with one user, and what a browser would send it."""

    def __init__(self, directory: Path, prometheus: str, **more: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.reports = directory / "reports"
        self.reports.mkdir(exist_ok=True)
        from trading_bot.page.login import hashed

        users = [{"name": "desk", "password_hash": hashed(PASSWORD)}]
        (directory / "users.yaml").write_text(yaml.safe_dump(users))
        settings = {
            "server": {"host": "127.0.0.1", "port": port},
            "users_file": str(directory / "users.yaml"),
            "prometheus": prometheus,
            "reports": str(self.reports),
            **more,
        }
        self.config = directory / "config.yaml"
        self.config.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "trading_bot", "page", "-config", str(self.config)]
        super().__init__(command, port, directory / "page.log")

    def ask(
        self, path: str, method: str = "GET", body: str = "", **headers: str
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers in small letters, and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(
                method, path, body or None, {k.replace("_", "-"): v for k, v in headers.items()}
            )
            answer = connection.getresponse()
            kept = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, kept, answer.read().decode()
        finally:
            connection.close()

    def login(
        self, name: str = "desk", password: str = PASSWORD, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        form = urllib.parse.urlencode({"name": name, "password": password})
        return self.ask("/login", "POST", form, **headers)

    def cookie(self) -> str:
        status, headers, _ = self.login()
        assert status == 303
        return headers["set-cookie"].partition(";")[0]

    def view(self, cookie: str, span: str = "15m") -> dict[str, Any]:
        status, _, body = self.ask(f"/view.json?span={span}", Cookie=cookie)
        assert status == 200, body
        found: dict[str, Any] = json.loads(body)
        return found


def shown(page: Page, cookie: str, what: str) -> dict[str, Any]:
    """The view, once its releases have rates."""

    def ready() -> dict[str, Any] | None:
        view = page.view(cookie)
        releases = view.get("releases", [])
        return view if len(releases) == 2 and all(one["p99"] for one in releases) else None

    found: dict[str, Any] = until(ready, 20, what)
    return found
