"""The commands that people type: orders and hotfixes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servers import App, Nats, Redis, until


class Shell:
    """``trading-bot`` as a process, for one account."""

    def __init__(self, app: App) -> None:
        self.account = f"acc-{uuid.uuid4().hex[:8]}"
        self.access = [
            "--url", app.url, "--token-file", str(app.config.parent / "token"), "--account", self.account,
        ]  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "trading_bot", "orders", *arguments, *self.access],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def orders(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.orders(*arguments, "--json")[1].splitlines()]


@pytest.fixture
def shell(app: App) -> Shell:
    return Shell(app)


BUY = ("BTC-USDT", "buy", "0.001", "--price", "50000")


def test_an_order_is_submitted_listed_shown_replaced_and_cancelled(shell: Shell) -> None:
    assert shell.orders("submit", *BUY, "--id", "a") == (0, "a accepted\n", "")
    assert shell.orders("submit", *BUY, "--id", "a") == (0, "a accepted\n", "")
    code, out, _ = shell.orders("replace", "a", "--new-id", "b", "--price", "49000")
    assert (code, out) == (0, "b accepted, replaces a\n")
    header, first, second = shell.orders("list")[1].splitlines()
    assert header.split() == [
        "CLIENT_ORDER_ID", "STATUS", "SIDE", "QUANTITY", "SYMBOL", "TYPE", "PRICE", "FILLED", "ACCEPTED_AT",
    ]  # fmt: skip
    assert first.split()[:8] == ["b", "accepted", "buy", "0.001", "BTC-USDT", "limit", "49000", "0"]
    assert second.split()[:2] == ["a", "cancelled"]
    assert [row["client_order_id"] for row in shell.json("list", "--status", "open")] == ["b"]
    assert "replaces         a" in shell.orders("show", "b")[1].splitlines()
    assert shell.json("show", "b")[0]["price"] == "49000"
    assert shell.orders("cancel", "b") == (0, "b cancelled\n", "")


def test_the_type_follows_from_the_prices(shell: Shell) -> None:
    shell.orders("submit", *BUY, "--stop-price", "49000", "--id", "s")
    shell.orders("submit", "BTC-USDT", "sell", "0.001", "--stop-price", "49000", "--id", "t")
    assert [row["type"] for row in shell.json("list")] == ["stop", "stop_limit"]
    code, _, err = shell.orders("submit", "BTC-USDT", "buy", "0.001", "--id", "m")
    assert (code, "mark_missing" in err) == (1, True)


def test_a_refusal_is_exit_status_1_with_the_rule(shell: Shell) -> None:
    code, out, err = shell.orders("submit", "BTC-USDT", "buy", "9", "--price", "50000", "--id", "a")
    assert (code, out) == (1, "")
    assert err == "422 Refused by a risk check; max_position_size: limit 100000, value 450000\n"
    assert shell.orders("show", "none")[0] == 1
    assert shell.json("cancel", "none")[0]["status"] == 404
    assert (
        "dry would be refused"
        in shell.orders("submit", "BTC-USDT", "buy", "8", "--price", "50000", "--id", "dry", "--dry-run")[1]
    )


def test_an_id_that_was_made_up_is_said_before_it_is_used(shell: Shell) -> None:
    code, out, err = shell.orders("submit", *BUY)
    assert code == 0
    assert out.split()[0] == err.removeprefix("client order id: ").strip()


def test_no_answer_is_said_after_it_was_tried_again(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from trading_bot.entrypoints import orders
    from trading_bot.entrypoints.cli import main

    monkeypatch.setattr(orders, "PATIENCE_SECONDS", 0.3)
    shell.access[1] = "http://127.0.0.1:1"
    assert main(["orders", "show", "a", *shell.access]) == 1
    shell.access[1] = "ftp://127.0.0.1"
    assert main(["orders", "show", "a", *shell.access]) == 1
    shell.access[3] = "/nowhere"
    assert main(["orders", "show", "a", *shell.access]) == 1


def test_watching_goes_on_at_another_instance(
    redis: Redis, nats: Nats, start_app: Callable[..., App]
) -> None:
    """What happens while no instance is there is shown once one is."""
    app = start_app(redis.url, nats.url)
    shell = Shell(app)
    watching = shell.start("watch", "--json", "--count", "3")
    until(lambda: 'trading_event_streams{version="0.1.0",slot="blue"} 1' in metrics(app), 10, "it watches")
    shell.orders("submit", *BUY, "--id", "a")
    app.kill()
    app.start_ready()
    shell.orders("submit", *BUY, "--id", "b")
    shell.orders("cancel", "b")
    out, _ = watching.communicate(timeout=30)
    events = [json.loads(line) for line in out.splitlines()]
    assert [(event["type"], event["client_order_id"]) for event in events] == [
        ("order.accepted", "a"),
        ("order.accepted", "b"),
        ("order.cancelled", "b"),
    ]
    code, out, _ = shell.orders("watch", "--after", events[1]["id"], "--count", "1")
    assert code == 0
    assert out.split()[1:3] == ["order.cancelled", "b"]


def metrics(app: App) -> str:
    return str(app.call("GET", "/metrics")[1]["text"])


def hotfix(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trading_bot", "hotfix", *arguments],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


SIGN = ("--id", "tight", "--reason", "venue trouble", "--for", "2h", "--set", "risk.max_position_size=1000")


@pytest.fixture
def key(tmp_path: Path) -> str:
    path = str(tmp_path / "key")
    assert hotfix("keygen", path).returncode == 0
    return path


def test_a_key_is_secret_and_never_overwritten(key: str) -> None:
    assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    before = Path(key).read_bytes()
    again = hotfix("keygen", key)
    assert (again.returncode, "is there already" in again.stderr) == (1, True)
    Path(f"{key}.pub").unlink()
    assert hotfix("keygen", key).returncode == 1
    assert Path(key).read_bytes() == before
    assert not Path(f"{key}.pub").exists()


def test_a_signed_hotfix_is_applied_by_who_trusts_the_key(
    key: str, redis: Redis, nats: Nats, start_app: Callable[..., App]
) -> None:
    app = start_app(redis.url, nats.url, TRADING_SERVER_HOTFIX_KEY_FILE=f"{key}.pub")
    signed = hotfix("sign", "--key", key, *SIGN)
    assert signed.returncode == 0
    status, answer, _ = app.call("POST", "/api/hotfix/apply", json.loads(signed.stdout))
    assert (status, answer["hotfixes"][0]["settings"]) == (200, {"risk.max_position_size": "1000"})
    assert app.call("POST", "/api/hotfix/revert", {"id": "tight"})[0] == 200


def test_a_signed_hotfix_shows_what_it_says_and_whose_it_is(key: str, tmp_path: Path) -> None:
    out = str(tmp_path / "fix.json")
    assert hotfix("sign", "--key", key, *SIGN, "--out", out).returncode == 0
    assert hotfix("sign", "--key", key, *SIGN, "--out", out).returncode == 1
    shown = json.loads(hotfix("show", out, "--public-key", f"{key}.pub").stdout)
    assert (shown["id"], shown["reason"], shown["in_time"], shown["signature"]) == (
        "tight", "venue trouble", True, "genuine",
    )  # fmt: skip
    other = str(tmp_path / "other")
    hotfix("keygen", other)
    shown = hotfix("show", out, "--public-key", f"{other}.pub")
    assert (shown.returncode, json.loads(shown.stdout)["signature"]) == (1, "NOT by this key")
    Path(out).write_text("{}")
    assert hotfix("show", out).returncode == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"--set": "server.port=1"}, "server.port: one of risk."),
        ({"--set": "risk.initial_equity=1"}, "risk.initial_equity: one of risk."),
        ({"--set": "risk.max_leverage=x"}, "risk.max_leverage: a decimal"),
        ({"--set": "risk.max_leverage"}, "risk.KEY=VALUE"),
        ({"--for": "8d"}, "at most seven days"),
        ({"--for": "0s"}, "a time to come"),
        ({"--for": "soon"}, "a duration"),
        ({"--reason": " "}, "why it is needed"),
        ({"--id": "a b"}, "1 to 40"),
    ],
)
def test_what_the_fleet_would_refuse_is_not_signed(changed: dict[str, str], said: str, key: str) -> None:
    arguments = dict(zip(SIGN[::2], SIGN[1::2], strict=True)) | changed
    done = hotfix("sign", "--key", key, *(word for pair in arguments.items() for word in pair))
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


def test_a_key_that_others_can_read_signs_nothing(key: str) -> None:
    os.chmod(key, 0o640)
    done = hotfix("sign", "--key", key, *SIGN)
    assert (done.returncode, "others may read it" in done.stderr) == (1, True)
