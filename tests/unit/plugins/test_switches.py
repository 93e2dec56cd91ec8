"""Whom an operator's switch is told to, what is refused before, and whether every instance is seen to follow."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from ansible.module_utils.switching import CORE_FEATURES, missing, outcome, plan, request
from plugin_testing import RunModule, free_port
from trading_bot.domain.features import REGISTRY

TOKEN = "operator-token-0123456789"
FEATURES = {"order_entry": True, "order_cancel": True, "order_listing": True, "order_stream": True}
SEEN = {
    "answers": True, "ledger": True, "halted": False, "degraded": False, "features": FEATURES, "hotfixes": [], "draining": False,
}  # fmt: skip
SILENT = {"answers": False, "code": None, "error": "no answer on port 18081: refused"}
AWAY = {**SEEN, "ledger": False, "halted": None, "degraded": None}
UNREACHABLE = {"unreachable": True, "msg": "Failed to connect to the host via ssh"}


def looked(**slots: dict[str, Any]) -> dict[str, Any]:
    return {"instances": slots}


def signed(id_: str = "tight", **settings: str) -> str:
    payload = {"id": id_, "settings": {f"risk.{name}": value for name, value in settings.items()}, "reason": "r"}
    return json.dumps({"payload": base64.b64encode(json.dumps(payload).encode()).decode(), "signature": "c2ln"})


HALT = request("halt", "halt", reason="prices look wrong", by="alice@control")
FLEET = ["app1", "app2"]


# What is asked for


def test_the_reason_goes_along_with_who_gives_it() -> None:
    assert HALT["body"] == {"reason": "prices look wrong (by alice@control)"}
    assert HALT["error"] == ""
    assert "resume" in HALT["undo"]


def test_without_a_reason_one_still_knows_who_it_was() -> None:
    assert request("halt", "halt", by="alice@control")["body"] == {"reason": "(by alice@control)"}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (request("halt", "stop"), ["halt_action=stop", "halt or resume"]),
        (request("degrade", "halt"), ["degrade_action=halt", "enable or disable"]),
        (request("halt", "resume", reason=" ", by="alice@control"), ["halt_reason"]),
        (request("hotfix", "revert"), ["hotfix_id"]),
        (request("hotfix", "apply", signed="{}"), ["payload and signature"]),
        (request("hotfix", "apply", signed="no JSON"), ["trading-bot hotfix sign"]),
        (request("hotfix", "apply", signed=json.dumps({"payload": "%", "signature": "c2ln"})), ["no signed hotfix"]),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_was_expected(asked: dict[str, Any], words: list[str]) -> None:
    assert [word for word in words if word not in asked["error"]] == []
    assert plan(asked, {"app1": looked(blue=SEEN)}, ["app1"])["error"] == asked["error"]


def test_features_may_be_a_list_or_separated_by_commas() -> None:
    assert request("features", "disable", features="a, b,a")["body"]["features"] == ["a", "b"]
    assert request("features", "disable", features=["a", "b"])["body"]["features"] == ["a", "b"]
    assert "features" not in request("features", "disable", features="")["body"]


def test_core_features_are_the_apps() -> None:
    assert set(CORE_FEATURES) == {name for name, feature in REGISTRY.items() if feature.core}


# Whom to tell


def test_the_first_that_answers_is_told_whatever_the_others_do() -> None:
    found = plan(HALT, {"app1": UNREACHABLE, "app2": looked(blue=SILENT, green=SEEN)}, [*FLEET, "app3"])
    assert found["error"] == ""
    assert found["by"] == {"host": "app2", "slot": "green"}
    assert (found["reached"], found["unreachable"]) == (["app2"], ["app1"])
    text = "\n".join(found["what"])
    assert "app2 (green) is told" in text
    assert "not waited for: app1" in text
    assert "Not asked, because of -l" in text
    assert "app3" in text


def test_one_that_does_not_stop_soon_is_told_before_one_that_drains() -> None:
    looks = {"app1": looked(blue={**SEEN, "draining": True}), "app2": looked(blue=SEEN)}
    assert plan(HALT, looks, FLEET)["by"] == {"host": "app2", "slot": "blue"}
    assert plan(HALT, {"app1": looks["app1"]}, FLEET)["by"] == {"host": "app1", "slot": "blue"}


def test_nothing_is_needed_where_it_is_in_force() -> None:
    found = plan(HALT, {"app1": looked(blue={**SEEN, "halted": True})}, ["app1"])
    assert found["needed"] == []
    assert "Nothing to do" in found["what"][0]


@pytest.mark.parametrize(
    ("looks", "words"),
    [
        ({"app1": looked(blue=SILENT), "app2": UNREACHABLE}, ["app1 blue: no answer", "app2: Failed", "systemctl", "hset"]),
        ({"app1": looked(blue=AWAY)}, ["does not reach Redis", "Start Redis"]),
        ({"app1": looked(blue={**SILENT, "code": 401, "error": "answered 401"})}, ["answered 401", "vault_api_operator_token"]),
    ],
)
def test_where_nobody_can_be_told_it_says_why_and_what_else_stops_trading(looks: dict[str, Any], words: list[str]) -> None:
    found = plan(HALT, looks, FLEET)
    assert found["by"] is None
    assert [word for word in words if word not in found["error"]] == []


def test_no_feature_is_switched_that_is_core_or_unknown() -> None:
    asked = request("features", "disable", features="order_entry,order_steam,order_listing")
    found = plan(asked, {"app1": looked(blue=SEEN)}, ["app1"])
    assert "order_entry, order_steam cannot" in found["error"]
    assert "order_listing, order_stream" in found["error"]


def test_without_a_list_all_features_but_the_core_are_meant_and_the_way_back_names_what_was_on() -> None:
    seen = {**SEEN, "features": {**FEATURES, "order_stream": False}}
    found = plan(request("features", "disable"), {"app1": looked(blue=seen)}, ["app1"])
    assert found["needed"] == ["order_listing is on"]
    assert found["undo"].endswith("features_action=enable -e features_list=order_listing")
    assert plan(request("features", "enable"), {"app1": looked(blue=SEEN)}, ["app1"])["needed"] == []


# Hotfixes


def test_a_hotfix_is_in_force_by_its_id_and_settings() -> None:
    asked = request("hotfix", "apply", signed=signed(max_leverage="2"))
    assert missing(SEEN, asked["wanted"]) == ["the hotfix tight is not in force"]
    fix = {"id": "tight", "settings": {"risk.max_leverage": "2"}}
    assert missing({**SEEN, "hotfixes": [fix]}, asked["wanted"]) == []
    other = {"app1": looked(blue={**SEEN, "hotfixes": [{"id": "tight", "settings": {"risk.max_leverage": "1"}}]})}
    assert "other settings (risk.max_leverage=1)" in plan(asked, other, ["app1"])["error"]


def test_one_without_a_name_of_its_own_is_in_force_when_another_sets_the_same() -> None:
    fix = {"id": "earlier", "settings": {"risk.max_leverage": "2"}}
    asked = request("hotfix", "apply", signed=signed(max_leverage="2"), any_id=True)
    assert missing({**SEEN, "hotfixes": [fix]}, asked["wanted"]) == []
    assert missing(SEEN, asked["wanted"]) != []


def test_a_hotfix_that_is_over_needs_no_end() -> None:
    asked = request("hotfix", "revert", hotfix_id="tight")
    assert missing(SEEN, asked["wanted"]) == []
    assert missing({**SEEN, "hotfixes": [{"id": "tight", "settings": {}}]}, asked["wanted"]) == ["the hotfix tight is in force"]


# Whether all follow


def test_an_instance_that_does_not_follow_is_named() -> None:
    planned = plan(HALT, {"app1": looked(blue=SEEN), "app2": looked(blue=SEEN), "app3": UNREACHABLE}, FLEET)
    halted = {**SEEN, "halted": True}
    ended = outcome(HALT, planned, "", {"app1": looked(blue=halted, green=SILENT), "app2": looked(blue=SEEN, green=halted)})
    assert ended["result"] == "failed"
    assert ended["late"] == ["app2 blue: it is not halted"]
    assert ended["told"][0] == "app1: blue halted"
    assert ended["told"][1].startswith("app2: blue NOT: it is not halted, green halted")
    assert "app3: cannot be reached" in ended["told"][2]
    assert outcome(HALT, planned, "", {"app1": looked(blue=halted)})["result"] == "changed"
    assert outcome(HALT, {**planned, "needed": []}, "", {"app1": looked(blue=halted)})["result"] == "nothing"


def test_a_refusal_is_how_it_ended() -> None:
    planned = plan(HALT, {"app1": looked(blue=SEEN)}, ["app1"])
    ended = outcome(HALT, planned, "blue answered 403", {})
    assert (ended["result"], ended["late"]) == ("failed", ["app1: blue answered 403"])


def test_in_check_mode_nothing_is_said_to_have_changed() -> None:
    planned = plan(HALT, {"app1": looked(blue=SEEN)}, ["app1"])
    assert outcome(HALT, planned, "", {})["result"] == "nothing"


# The module


class App:
    """An HTTP server that keeps switches as an instance does; a change is in force after so many looks."""

    def __init__(self) -> None:
        self.mode, self.degraded, self.looks_until = "normal", 0, 0
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.refuses: tuple[int, dict[str, Any]] | None = None
        app = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.answer(401, b"{}")
                if self.path == "/metrics":
                    return self.answer(200, f"trading_degraded {app.degraded}\n".encode())
                app.looks_until -= 1
                if app.told and app.looks_until <= 0:
                    app.mode = "halted"
                body = {"mode": app.mode, "features": FEATURES, "hotfixes": [], "draining": False, "release_id": "r1"}
                return self.answer(200, json.dumps(body).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if app.refuses:
                    return self.answer(app.refuses[0], json.dumps(app.refuses[1]).encode())
                app.told.append((self.path, body))
                return self.answer(200, b'{"mode":"halted"}')

            def answer(self, code: int, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def where(self) -> dict[str, Any]:
        ports = {"blue": free_port(), "green": self.server.server_address[1]}
        return {"address": "127.0.0.1", "ports": ports, "token": TOKEN}

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def app() -> Iterator[App]:
    served = App()
    yield served
    served.stop()


def test_what_each_slot_has_in_force_is_told_and_one_that_is_silent_is_no_error(run_module: RunModule, app: App) -> None:
    app.mode, app.degraded = "halted", 1
    found = run_module("switches", app.where)
    assert not found["changed"]
    green = found["instances"]["green"]
    assert (green["answers"], green["ledger"], green["halted"], green["degraded"]) == (True, True, True, True)
    assert not found["instances"]["blue"]["answers"]
    assert "refused" in found["instances"]["blue"]["error"]


def test_an_instance_without_redis_says_that_it_knows_nothing(run_module: RunModule, app: App) -> None:
    app.mode = "unknown"
    green = run_module("switches", app.where)["instances"]["green"]
    assert (green["answers"], green["ledger"], green["halted"]) == (True, False, None)


def test_a_token_that_is_not_known_is_told_with_the_code(run_module: RunModule, app: App) -> None:
    assert run_module("switches", {**app.where, "token": "another"})["instances"]["green"]["code"] == 401


def test_one_is_told_and_the_module_waits_until_it_follows(run_module: RunModule, app: App) -> None:
    told = run_module("switches", {**app.where, "slot": "green", "path": "/api/trading/halt", "body": {"reason": "r"}})
    assert told["changed"]
    assert app.told == [("/api/trading/halt", {"reason": "r"})]
    app.looks_until = 3
    followed = run_module("switches", {**app.where, "wanted": {"halted": True}})
    assert followed["instances"]["green"]["halted"]
    assert not followed["changed"]


def test_who_does_not_follow_in_time_is_told_as_it_is(run_module: RunModule, app: App) -> None:
    followed = run_module("switches", {**app.where, "wanted": {"halted": True}, "follow": 0.3})
    assert not followed["instances"]["green"]["halted"]
    assert followed["waited"] >= 0.3


def test_check_mode_tells_nobody_and_waits_for_nothing(run_module: RunModule, app: App) -> None:
    told = run_module("switches", {**app.where, "slot": "green", "path": "/api/trading/halt"}, check=True)
    assert told["changed"]
    assert app.told == []
    assert not run_module("switches", {**app.where, "wanted": {"halted": True}}, check=True)["instances"]["green"]["halted"]


def test_a_refusal_is_told_in_the_apps_words(run_module: RunModule, app: App) -> None:
    app.refuses = (400, {"title": "The request cannot be understood", "errors": {"risk.max_leverage": "lower than 3.0"}})
    told = run_module("switches", {**app.where, "slot": "green", "path": "/api/hotfix/apply"})
    assert told["failed"]
    assert "400: The request cannot be understood: risk.max_leverage: expected lower than 3.0" in told["msg"]


def test_the_token_shows_nowhere(run_module: RunModule, app: App) -> None:
    assert TOKEN not in json.dumps(run_module("switches", {**app.where, "slot": "blue", "path": "/api/trading/halt"}))
