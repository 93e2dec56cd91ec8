"""The notifier as a process, beside servers on loopback that speak as a mail server, Slack and Twilio do."""

from __future__ import annotations

import json
import random
import re
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from notify_servers import ACCOUNT, AWAY, LOSE, OK, TOKEN, Servers

from servers import Redis, Server, free_port, until

SECRET = "notifier-token-for-tests"
DESK = {"email": ["desk@example.com"], "slack": ["desk"], "sms": ["+491701234567"], "call": ["+491701234567"]}
CHANNELS = ("slack", "email", "sms")


class Notifier(Server):
    """A notifier with its own state, on a port of its own."""

    def __init__(self, directory: Path, servers: Servers, **more: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.directory = directory
        for name, text in (
            ("token", SECRET),
            ("key", "a-key-that-signs-links"),
            ("hook", servers.hook),
            ("twilio", TOKEN),
        ):
            (directory / name).write_text(text + "\n")
        self.settings: dict[str, Any] = {
            "server": {
                "host": "127.0.0.1",
                "port": port,
                "url": self.url,
                "token_file": str(directory / "token"),
                "acknowledge_key_file": str(directory / "key"),
            },
            "state": str(directory / "state"),
            "email": {
                "host": "127.0.0.1",
                "port": servers.mail_port,
                "sender": "alerts@example.com",
                "security": "none",
            },
            "slack": {"webhooks": {"desk": str(directory / "hook")}},
            "twilio": {
                "account": ACCOUNT,
                "token_file": str(directory / "twilio"),
                "sender": "+15005550006",
                "url": servers.url,
            },
            "contacts": [{"name": "desk", **DESK}],
            "calls": {"after": 3600},
            "per_minute": {"email": 60_000, "slack": 60_000, "sms": 60_000, "call": 60_000},
            "retry_first": 0.05,
            "retry_longest": 0.2,
            **more,
        }
        self.config = directory / "config.yaml"
        self.config.write_text(yaml.safe_dump(self.settings))
        command = [sys.executable, "-m", "trading_bot", "notify", "-config", str(self.config)]
        super().__init__(command, port, directory / "log")

    def ask(self, method: str, path: str, body: Any = None, token: str | None = SECRET) -> tuple[int, Any]:
        """Status and body, decoded where it is JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, kind, text = answer.status, answer.headers["Content-Type"], answer.read()
        except urllib.error.HTTPError as error:
            status, kind, text = error.code, error.headers["Content-Type"], error.read()
        return status, json.loads(text) if "json" in kind else text.decode()

    def alert(self, *alerts: dict[str, Any]) -> None:
        """Hand alerts over as Alertmanager does, again until they are taken."""
        assert self.ask("POST", "/api/alerts", webhook(*alerts))[0] == 200

    def figure(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.ask("GET", "/metrics")[1], re.MULTILINE)
        assert found, name
        return float(found.group(1))

    def owed(self) -> int:
        """Deliveries that are still to be made."""
        text = self.ask("GET", "/metrics")[1]
        return int(sum(float(n) for n in re.findall(r'notifier_deliveries\{.*state="waiting"\} (\S+)', text)))


def webhook(*alerts: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": "4",
        "groupKey": "g",
        "status": "firing",
        "receiver": "notifier",
        "alerts": list(alerts),
    }


def alert(
    name: str = "RedisDown",
    *,
    status: str = "firing",
    severity: str = "critical",
    host: str = "data1",
    **more: Any,
) -> Any:
    return {
        "status": status,
        "labels": {"alertname": name, "severity": severity, "host": host, "job": "redis"},
        "annotations": {
            "summary": f"{name} on {host}",
            "value": "no answer",
            "threshold": "answers",
            "runbook_url": f"https://docs.example.com/alerts/{name}.md",
        },
        "startsAt": "2026-11-27T10:00:00Z",
        "endsAt": "2026-11-27T10:05:00Z" if status == "resolved" else "0001-01-01T00:00:00Z",
        "generatorURL": "http://mon1:9090/graph?g0.expr=redis_up&g0.tab=1",
        "fingerprint": f"{name}-{host}",
        **more,
    }


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    running = Servers()
    yield running
    running.stop()


@pytest.fixture
def start(tmp_path: Path, servers: Servers) -> Iterator[Callable[..., Notifier]]:
    started: list[Notifier] = []

    def make(**more: Any) -> Notifier:
        notifier = Notifier(tmp_path / f"notifier{len(started)}", servers, **more)
        started.append(notifier)
        notifier.start()
        return notifier

    yield make
    for notifier in started:
        notifier.kill()


def test_severity_chooses_the_channels_and_the_end_is_told_where_the_beginning_was(
    start: Callable[..., Notifier], servers: Servers
) -> None:
    notifier = start()
    notifier.alert(
        alert("Minor", severity="info"), alert("Busy", severity="warning"), alert("Down", severity="critical")
    )
    until(lambda: notifier.owed() == 0 and len(servers.taken) >= 3, 10, "all are told")
    told = {name: "\n".join(each["text"] for each in servers.of(name)) for name in CHANNELS}
    assert [name for name in ("Minor", "Busy", "Down") if name in told["slack"]] == ["Minor", "Busy", "Down"]
    assert [name for name in ("Minor", "Busy", "Down") if name in told["email"]] == ["Busy", "Down"]
    assert [name for name in ("Minor", "Busy", "Down") if name in told["sms"]] == ["Down"]
    assert servers.of("call") == []
    before = len(servers.taken)
    ended = [
        alert(name, status="resolved", severity=of)
        for name, of in (("Busy", "warning"), ("Down", "critical"))
    ]
    notifier.alert(*ended, alert("NeverTold", status="resolved"))
    until(lambda: notifier.owed() == 0 and len(servers.taken) >= before + 3, 10, "the ends are told")
    after = servers.taken[before:]
    assert {each["channel"]: each["text"].count("RESOLVED") for each in after} == {
        "slack": 2,
        "email": 2,
        "sms": 1,
    }
    assert not any("NeverTold" in each["text"] for each in servers.taken)


def test_a_person_learns_what_where_since_when_how_bad_and_what_to_do(
    start: Callable[..., Notifier], servers: Servers
) -> None:
    notifier = start()
    notifier.alert(alert("HostDiskFull", host="app1"))
    until(lambda: notifier.owed() == 0 and len(servers.taken) == 3)
    [mail], [post], [sms] = servers.of("email"), servers.of("slack"), servers.of("sms")
    assert mail["subject"] == "[FIRING · critical] HostDiskFull on app1"
    for line in (
        "Where: app1",
        "Since: 2026-11-27 10:00:00 UTC",
        "Value: no answer",
        "Threshold: answers",
        "What to do: https://docs.example.com/alerts/HostDiskFull.md",
        "Plot: http://mon1:9090/graph?g0.expr=redis_up&g0.tab=1",
        f"Acknowledge: {notifier.url}/ack/",
    ):
        assert line in mail["text"]
    assert "<https://docs.example.com/alerts/HostDiskFull.md>" in post["text"]
    assert sms["text"].startswith("FIRING critical: HostDiskFull on app1 [")
    assert len(sms["text"]) <= 306


def test_messages_are_in_chinese_where_that_is_set(start: Callable[..., Notifier], servers: Servers) -> None:
    notifier = start(language="zh")
    notifier.alert(alert("HostDiskFull", host="app1"))
    until(lambda: notifier.owed() == 0 and len(servers.taken) == 3)
    [mail], [sms] = servers.of("email"), servers.of("sms")
    assert mail["subject"] == "[告警 · 严重] 主机磁盘即将写满 (app1)"
    assert "处理方法: https://docs.example.com/alerts/HostDiskFull.md" in mail["text"]
    assert len(sms["text"]) <= 134


def test_the_same_alert_is_told_once_until_it_changes_or_for_long_goes_on(
    start: Callable[..., Notifier], servers: Servers
) -> None:
    notifier = start(repeat_after=1.5)
    for _ in range(5):
        notifier.alert(alert())
    until(lambda: notifier.owed() == 0 and len(servers.taken) == 3)
    assert notifier.ask("GET", "/api/messages")[1][0]["still"] is False
    until(lambda: notifier.alert(alert()) or len(servers.of("email")) == 2, 10, "it is told again")
    assert "STILL FIRING" in servers.of("email")[1]["text"]
    notifier.alert(alert(startsAt="2026-11-27T11:00:00Z"))
    until(
        lambda: any("11:00:00" in each["text"] for each in servers.of("email")),
        10,
        "a new one of that name is told",
    )


def test_what_waits_goes_out_together_and_each_is_named(
    start: Callable[..., Notifier], servers: Servers
) -> None:
    """The rate of a channel holds, and nothing is dropped for it."""
    notifier = start(per_minute={"slack": 30, "email": 30, "sms": 30, "call": 30})
    for number in range(60):
        notifier.alert(alert("Host", host=f"app{number:02}"))
    until(lambda: notifier.owed() == 0, 60, "all are told")
    hosts = [f"app{number:02}" for number in range(60)]
    for channel in CHANNELS:
        # An SMS has no more than the titles; elsewhere each alert has its line.
        line = r"Host on (app\d\d)" if channel == "sms" else r"Where: (app\d\d)"
        named = re.findall(line, "\n".join(each["text"] for each in servers.of(channel)))
        assert sorted(named) == hosts
        assert len(servers.of(channel)) < 40


@pytest.mark.parametrize("status", ["429", "500", "503"])
def test_a_channel_that_is_not_ready_is_tried_again(
    start: Callable[..., Notifier], servers: Servers, status: str
) -> None:
    servers.modes.update(slack=status, sms="429", email="451")
    notifier = start()
    notifier.alert(alert())
    until(lambda: min(servers.tries[name] for name in CHANNELS) >= 2, 10, "each is tried again")
    assert servers.taken == []
    assert notifier.figure("notifier_oldest_waiting_seconds") > 0
    servers.modes.update(dict.fromkeys(servers.modes, OK))
    until(lambda: notifier.owed() == 0)
    assert Counter(each["channel"] for each in servers.taken) == {"slack": 1, "email": 1, "sms": 1}


def test_it_waits_as_long_as_the_other_side_asks(start: Callable[..., Notifier], servers: Servers) -> None:
    servers.modes["slack"], servers.retry_after = "429", "3"
    notifier = start()
    notifier.alert(alert(severity="info"))
    until(lambda: servers.tries["slack"] == 1)
    servers.modes["slack"] = OK
    refused = time.time()
    until(lambda: servers.of("slack"), 10)
    assert servers.of("slack")[0]["at"] - refused > 2


@pytest.mark.parametrize(
    ("channel", "status", "instead"),
    [("slack", "404", "email"), ("sms", "400", "email"), ("email", "550", "slack")],
)
def test_what_a_channel_will_never_take_is_said_on_another(
    start: Callable[..., Notifier], servers: Servers, channel: str, status: str, instead: str
) -> None:
    servers.modes[channel] = status
    notifier = start(routes={"info": [channel], "warning": [channel], "critical": [channel]})
    notifier.alert(alert())
    until(lambda: servers.of(instead), 10, f"{instead} is told")
    assert servers.tries[channel] == 1
    assert notifier.figure(f'notifier_refused_total{{channel="{channel}"}}') == 1


def test_a_wrong_password_loses_nothing(start: Callable[..., Notifier], servers: Servers) -> None:
    notifier = start(routes={"info": ["sms"], "warning": ["sms"], "critical": ["sms"]}, retry_longest=0.1)
    (notifier.directory / "twilio").write_text("wrong")
    notifier.alert(alert())
    until(lambda: servers.tries["sms"] >= 1)
    until(lambda: "401" in json.dumps(notifier.ask("GET", "/api/messages")[1]), 10)
    assert notifier.owed() == 1


@pytest.mark.parametrize("channel", ["sms", "call", "email", "slack"])
def test_what_was_taken_without_a_yes_is_not_sent_twice_blindly(
    start: Callable[..., Notifier], servers: Servers, channel: str
) -> None:
    """Twilio is asked, mail has the same Message-ID again, and Slack's reader is told."""
    servers.modes[channel] = LOSE
    calls = {"after": 0, "every": 3600}
    notifier = start(routes={"info": [channel], "warning": [channel], "critical": [channel]}, calls=calls)
    notifier.alert(alert())
    until(lambda: servers.of(channel), 10)
    servers.modes[channel] = OK
    until(lambda: notifier.owed() == 0, 10)
    taken = servers.of(channel)
    if channel in ("sms", "call"):
        assert len(taken) == 1
    elif channel == "email":
        assert len({each["id"] for each in taken}) == 1
    else:
        assert [("may be a repetition" in each["text"]) for each in taken] == [False] + [True] * (
            len(taken) - 1
        )


def test_the_phone_rings_until_somebody_acknowledges_and_the_next_are_told_meanwhile(
    start: Callable[..., Notifier], servers: Servers
) -> None:
    second = {
        "name": "second",
        "email": ["lead@example.com"],
        "sms": [],
        "slack": [],
        "call": ["+491700000000"],
    }
    calls = {"after": 0.3, "every": 0.3, "times": 2}
    notifier = start(contacts=[{"name": "desk", **DESK}, second], calls=calls)
    notifier.alert(alert("Down"))
    until(lambda: len(servers.of("call")) >= 3, 20, "the second is called")
    assert [each["to"] for each in servers.of("call")][:3] == [DESK["call"][0]] * 2 + ["+491700000000"]
    [lead] = [each for each in servers.of("email") if each["to"] == "lead@example.com"]
    assert "nobody has acknowledged it" in lead["text"]
    assert "To stop these calls" in servers.of("call")[0]["text"]
    link = re.search(r"/ack/\S+", lead["text"])
    assert link
    status, page = notifier.ask("GET", link.group(), token=None)
    assert status == 200
    assert "button" in page
    assert notifier.figure("notifier_unacknowledged") == 1  # to look at a link acknowledges nothing
    assert notifier.ask("POST", link.group(), token=None)[0] == 200
    assert notifier.figure("notifier_unacknowledged") == 0
    assert notifier.ask("POST", link.group()[:-3] + "AAA", token=None)[0] == 404


def test_an_alert_that_is_over_or_acknowledged_in_time_calls_nobody(
    start: Callable[..., Notifier], servers: Servers
) -> None:
    notifier = start(calls={"after": 1.5, "every": 0.2})
    notifier.alert(alert("Over"), alert("Known"), alert("Open"))
    until(lambda: notifier.owed() == 0 and servers.of("email"))
    notifier.alert(alert("Over", status="resolved"))
    kept = notifier.ask("GET", "/api/messages")[1]
    [known] = [each for each in kept if each["notice"]["rule"] == "Known"]
    # All three went out together, so the message that is acknowledged names all of them: take one of its own.
    notifier.alert(alert("Alone", host="app9"))
    until(lambda: any("Alone" in each["text"] for each in servers.of("email")))
    assert (
        notifier.ask(
            "POST", "/api/acknowledgements", {"message": known["deliveries"][0]["message"], "by": "alice"}
        )[1]
        != {}
    )
    until(lambda: servers.of("call"), 20, "the phone rings for what is left")
    assert all("Over" not in call["text"] for call in servers.of("call"))
    assert "Alone" in servers.of("call")[0]["text"]
    assert "Known" not in servers.of("call")[0]["text"]


def test_a_maintenance_window_keeps_quiet_and_what_goes_on_is_told_afterwards(
    start: Callable[..., Notifier], servers: Servers
) -> None:
    notifier = start()
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    window = {
        "matchers": [{"name": "host", "value": "data1"}],
        "ends": ends,
        "by": "alice",
        "why": "new disks",
    }
    status, made = notifier.ask("POST", "/api/silences", window)
    assert status == 201
    notifier.alert(alert("Quiet"), alert("Loud", host="app1"), alert("Over"))
    notifier.alert(alert("Over", status="resolved"))
    until(lambda: servers.of("sms") and notifier.owed() == 0)
    assert all("Quiet" not in each["text"] and "Over" not in each["text"] for each in servers.taken)
    assert [each["why"] for each in notifier.ask("GET", "/api/silences")[1]] == ["new disks"]
    assert notifier.ask("DELETE", f"/api/silences/{made['id']}")[0] == 200
    until(lambda: any("Quiet" in each["text"] for each in servers.of("sms")), 10, "what goes on is told")
    assert all("Over" not in each["text"] for each in servers.taken)
    assert notifier.ask("DELETE", f"/api/silences/{made['id']}")[0] == 404


def test_the_ledgers_alerts_are_told_and_none_is_lost_while_it_is_away(
    start: Callable[..., Notifier], servers: Servers, own_redis: Redis
) -> None:
    import redis

    def publish(message: str, **more: Any) -> None:
        about = {"rule": "limit_passed", "severity": "critical", "account": "alice", "limit": "100000"}
        line = {
            **about,
            "schema": 1,
            "value": "101000",
            "message": message,
            "at": int(time.time() * 1000),
            **more,
        }
        redis.Redis.from_url(own_redis.url).xadd("trading:alerts:history", {"json": json.dumps(line)})

    publish("Before there was a notifier")
    notifier = start(redis={"url": own_redis.url})
    until(lambda: notifier.figure("notifier_ledger_up") == 1)
    until(lambda: publish("Past the limit") or servers.of("sms"), 10)
    notifier.kill()
    for number in range(5):
        publish(f"While it was away {number}")
    redis.Redis.from_url(own_redis.url).xadd("trading:alerts:history", {"json": "no JSON", "other": "field"})
    publish("After what was none", schema=1)
    notifier.start()
    until(lambda: any("After what was none" in each["text"] for each in servers.of("email")), 10)
    until(lambda: notifier.owed() == 0)
    told = "\n".join(each["text"] for each in servers.of("email"))
    for number in range(5):
        assert told.count(f"While it was away {number}") == 1
    assert "Before there was a notifier" not in told
    assert "Value: 101000" in told
    assert "Threshold: 100000" in told
    assert notifier.figure('notifier_malformed_total{where="ledger"}') == 1


def test_what_happens_to_a_release_is_told(start: Callable[..., Notifier], servers: Servers) -> None:
    notifier = start()
    notice = {
        "event": "rollback",
        "rollout": "r1",
        "from": "1.3.2-77ab",
        "to": "1.4.0-3f2a",
        "stage": "5%",
        "summary": "1.4.0-3f2a was rolled back",
        "reasons": ["errors 3.1% beside 0.2%"],
        "at": "2026-11-27T10:00:00Z",
    }
    assert notifier.ask("POST", "/api/notices", notice) == (200, {"news": 1})
    assert notifier.ask("POST", "/api/notices", notice) == (200, {"news": 0})
    until(lambda: servers.of("email"))
    assert "reason: errors 3.1% beside 0.2%" in servers.of("email")[0]["text"]


def test_a_thousand_alerts_arrive_once_each_whatever_dies_meanwhile(
    start: Callable[..., Notifier], servers: Servers
) -> None:
    """The notifier is killed, and each channel is away or loses its answers for a while. What a channel
    confirmed never comes again; what it took without a yes: mail with its Message-ID, an SMS never, a post
    with its mark."""
    dice = random.Random(7)
    notifier = start(calls={"after": 36000})
    names = [f"n{number:04}" for number in range(1000)]
    kills = sorted(dice.sample(range(50, 950), 6))
    for number, name in enumerate(names):
        if number in kills:
            notifier.kill()
            notifier.start()
        if number in (200, 500):
            servers.modes.update({channel: dice.choice([AWAY, "503", LOSE]) for channel in CHANNELS})
            servers.modes["email"] = {"503": "451"}.get(servers.modes["email"], servers.modes["email"])
        if number in (400, 700):
            servers.modes.update(dict.fromkeys(servers.modes, OK))
        until(lambda each=name: _taken(notifier, alert("Load", host=each)), 10)  # type: ignore[misc]
    until(lambda: notifier.owed() == 0, 60, "all are told")
    mails: dict[str, str] = {}
    for each in servers.of("email"):
        for name in re.findall(r"^  Where: (n\d{4})\s*$", each["text"], re.MULTILINE):
            assert mails.setdefault(name, each["id"]) == each["id"], f"{name} came in two mails"
    assert sorted(mails) == names
    sms = Counter(name for each in servers.of("sms") for name in re.findall(r"\(?(n\d{4})", each["text"]))
    assert sorted(sms) == names
    assert {name: count for name, count in sms.items() if count > 1} == {}
    posts: Counter[str] = Counter()
    for each in servers.of("slack"):
        if "may be a repetition" not in each["text"]:
            posts.update(re.findall(r"Where: (n\d{4})\s*$", each["text"], re.MULTILINE))
    assert {name: count for name, count in posts.items() if count > 1} == {}
    told = {
        name
        for each in servers.of("slack")
        for name in re.findall(r"Where: (n\d{4})\s*$", each["text"], re.MULTILINE)
    }
    assert sorted(told) == names
    # What Slack had said yes to comes again only where the notifier was killed before it had that on disk.
    again = 0
    for index, each in enumerate(servers.of("slack")):
        reference = each["text"].rpartition(" ")[2]
        before = [one for one in servers.of("slack")[:index] if one["text"].endswith(reference)]
        assert bool(before) <= ("may be a repetition" in each["text"])
        again += any(one["confirmed"] for one in before)
    assert again <= len(kills)


def _taken(notifier: Notifier, one: dict[str, Any]) -> bool:
    try:
        return notifier.ask("POST", "/api/alerts", webhook(one))[0] == 200
    except OSError:
        return False
