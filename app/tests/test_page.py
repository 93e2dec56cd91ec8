"""The page as a process, beside a real Prometheus that asks a small fleet for its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from page_servers import HOSTILE, PASSWORD, Alertmanager, Fleet, Page, Prometheus, shown
from trading_bot.errors import ConfigError
from trading_bot.page import plots, settings
from trading_bot.page.login import SESSIONS, TRIES, WINDOW, Door, fits, hashed, is_hash

from servers import free_port, until

REPORT = "<!doctype html><title>r</title><script>parent.document</script>"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    fleet.close()


@pytest.fixture(scope="module")
def prometheus(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), fleet)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def page(prometheus: Prometheus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    page = Page(tmp_path_factory.mktemp("page"), prometheus.url)
    (page.reports / "20261127-0.2.0.html").write_text(REPORT)
    (page.reports / "notes.txt").write_text("not a report")
    (page.reports / "link.html").symlink_to("/etc/hostname")
    page.start()
    yield page
    page.kill()


@pytest.fixture(scope="module")
def cookie(page: Page) -> str:
    return page.cookie()


@pytest.fixture(scope="module")
def view(page: Page, cookie: str) -> dict[str, Any]:
    return shown(page, cookie, "the figures are there")


def test_each_slot_of_each_host_is_shown_with_its_state(view: dict[str, Any]) -> None:
    found = {(each["host"], each["slot"]): each for each in view["instances"]}
    assert len(found) == 6
    blue, green = found["app2", "blue"], found["app2", "green"]
    assert (blue["up"], blue["ready"], blue["version"], blue["role"], blue["member"]) == (
        True, True, "0.1.0", "stable", True,
    )  # fmt: skip
    assert (green["up"], green["ready"], green["version"], green["role"]) == (True, False, "0.2.0", "canary")
    # Nothing runs there, and its slot is known by its port alone.
    assert (found["app3", "green"]["up"], found["app3", "green"]["version"]) == (False, "")
    assert view["others"] == [
        {"host": "data1", "jobs": {"redis": True}},
        {"host": "lb1", "jobs": {"node": True}},
    ]


def test_stable_and_canary_are_shown_beside_each_other_with_their_figures(view: dict[str, Any]) -> None:
    stable, canary = view["releases"]
    assert (stable["role"], stable["version"], stable["hosts"], stable["ready"]) == ("stable", "0.1.0", 3, 3)
    assert (canary["role"], canary["version"], canary["hosts"], canary["ready"]) == ("canary", "0.2.0", 2, 1)
    assert stable["rate"] == pytest.approx(150, rel=0.1)
    assert canary["rate"] == pytest.approx(10, rel=0.1)
    assert stable["errors"] == pytest.approx(0, abs=0.01)
    assert canary["errors"] == pytest.approx(10, rel=0.02)
    assert stable["rejections"] == pytest.approx(2, rel=0.02)
    assert (stable["p50"], stable["p99"]) == (pytest.approx(2.5, rel=0.02), pytest.approx(4.95, rel=0.02))
    assert canary["p99"] == pytest.approx(248.5, rel=0.02)


def test_the_rollout_tells_its_stage_its_share_and_when_it_was_last_heard_of(
    view: dict[str, Any], fleet: Fleet
) -> None:
    assert view["rollout"]["id"] == "r-7"
    assert (view["rollout"]["stage"], view["rollout"]["paused"], view["cut"]) == ("5%", False, 500)
    assert view["rollout"]["started"] == pytest.approx(fleet.began - 1200, abs=1)
    assert view["rollout"]["heard"] >= view["rollout"]["started"]


def test_every_plot_has_lines_and_those_of_risk_have_their_limit(
    page: Page, cookie: str, view: dict[str, Any]
) -> None:
    found = until(
        lambda: (
            (now := {plot["name"]: plot for plot in page.view(cookie)["plots"]})
            and all(plot["lines"] for plot in now.values())
            and now
        ),
        20,
        "each plot has a line",
    )
    assert list(found) == [plot.name for plot in plots.PLOTS]
    last = {
        name: {line["name"]: line["points"][-1][1] for line in plot["lines"]} for name, plot in found.items()
    }
    assert last["share"] == {"canary": 5}
    assert last["leverage"] == {"worst account": 1.5}
    assert last["drawdown"] == {"worst account": 2}
    assert {name: plot["limit"][-1][1] for name, plot in found.items() if plot["limit"]} == {
        "leverage": 3,
        "margin_level": 1.5,
        "drawdown": 10,
    }
    assert last["memory"] == {"lb1": 40}
    assert last["disk"] == {"lb1": 75}
    assert set(last["latency"]) == {
        f"{release} {part}" for release in ("0.1.0 blue", "0.2.0 green") for part in ("P50", "P99")
    }


@pytest.mark.parametrize("span", plots.SPANS)
def test_each_span_is_answered(page: Page, cookie: str, span: str) -> None:
    times = page.view(cookie, span)["times"]
    assert times["last"] - times["first"] == plots.SPANS[span]


def test_a_deployment_and_a_rollouts_stages_become_marks(
    page: Page, cookie: str, view: dict[str, Any]
) -> None:
    def texts() -> set[str]:
        return [mark["text"] for mark in page.view(cookie, "1h")["marks"]]

    # Those of one moment by their text.
    assert texts() == ["0.2.0-abcdef starts in green", "Rollout shadow", "Rollout 5%"]
    assert [mark["text"] for mark in page.view(cookie, "15m")["marks"]] == ["Rollout 5%"]


def test_what_was_there_all_the_time_is_no_mark_and_what_went_is_an_end() -> None:
    always = {"metric": {"stage": "5%"}, "values": [[1000, "1"], [1300, "1"]]}
    later = {"metric": {"stage": "20%"}, "values": [[1100, "1"], [1200, "1"]]}
    begun = list(plots.appearances("rollout", "Rollout {stage}", [always, later], 1000, 5))
    assert begun == [{"at": 1100, "kind": "rollout", "text": "Rollout 20%"}]
    ended = list(plots.endings("rollout", "Rollout ended", [always, later], 1300, 5))
    assert ended == [{"at": 1205, "kind": "rollout", "text": "Rollout ended"}]


def test_alerts_are_shown_the_worst_first_but_for_the_one_that_always_fires(page: Page, cookie: str) -> None:
    alerts = until(lambda: (found := page.view(cookie)["alerts"]) and len(found) == 2 and found, 20, "alerts")
    assert [(alert["name"], alert["severity"]) for alert in alerts] == [
        ("Hostile", "critical"),
        ("Script", "warning"),
    ]
    assert alerts[0]["summary"] == f"Account {HOSTILE} is odd"
    assert (alerts[0]["value"], alerts[0]["threshold"]) == ("1", "0")
    assert page.view(cookie)["watched"] is True


def test_a_silenced_alert_says_so_and_stands_last(fleet: Fleet, tmp_path: Path) -> None:
    alertmanager = Alertmanager(tmp_path / "alertmanager")
    prometheus = Prometheus(tmp_path / "prometheus", fleet, alertmanager.address)
    page = Page(tmp_path / "page", prometheus.url, alertmanager=f"http://{alertmanager.address}")
    try:
        alertmanager.start()
        alertmanager.silence("Hostile")
        prometheus.start()
        page.start()
        cookie = page.cookie()

        def both() -> list[tuple[str, bool]] | None:
            found = [(alert["name"], alert["quiet"]) for alert in page.view(cookie)["alerts"]]
            return found if len(found) == 2 and any(quiet for _, quiet in found) else None

        assert until(both, 30, "both alerts, one of them silenced") == [("Script", False), ("Hostile", True)]
    finally:
        page.kill()
        prometheus.kill()
        alertmanager.kill()


def test_without_a_session_nothing_is_shown(page: Page) -> None:
    for path in ("/", "/reports/20261127-0.2.0.html"):
        status, headers, body = page.ask(path, Cookie="session=made-up")
        assert (status, headers["location"], body) == (303, "/login", "")
    assert page.ask("/view.json")[0] == 401


def test_the_cookie_is_for_this_page_and_no_script(page: Page) -> None:
    status, headers, _ = page.login()
    assert (status, headers["location"]) == (303, "/")
    flags = set(headers["set-cookie"].split("; ")[1:])
    assert flags == {"Path=/", "HttpOnly", "SameSite=Strict"}


def test_a_session_ends_with_logging_out_and_with_its_time() -> None:
    now = [0.0]
    door = Door({"desk": hashed(PASSWORD)}, 100, lambda: now[0])
    first, second = door.enter("desk"), door.enter("desk")
    assert first != second
    door.leave(first)
    assert (door.who(first), door.who(second), door.who("")) == (None, "desk", None)
    now[0] = 100
    assert door.who(second) is None


def test_logging_out_is_for_good(page: Page) -> None:
    cookie = page.cookie()
    assert page.ask("/", Cookie=cookie)[0] == 200
    status, headers, _ = page.ask("/logout", "POST", Cookie=cookie)
    assert status == 303
    assert "Max-Age=0" in headers["set-cookie"]
    assert page.ask("/", Cookie=cookie)[0] == 303


@pytest.mark.parametrize(
    ("name", "password"), [("desk", "wrong"), ("nobody", PASSWORD), ("", ""), ("desk", PASSWORD + "x")]
)
def test_a_wrong_name_and_a_wrong_password_get_the_same_answer(page: Page, name: str, password: str) -> None:
    status, headers, body = page.login(name, password)
    assert status == 401
    assert "set-cookie" not in headers
    assert "This name and password do not belong together." in body
    assert not name or name not in body


def test_who_fails_too_often_has_to_wait_and_others_do_not() -> None:
    now = [1000.0]
    door = Door({}, 100, lambda: now[0])
    for _ in range(TRIES):
        assert door.wait("10.0.0.1", "desk") == 0
        door.failed("10.0.0.1", "desk")
    assert door.wait("10.0.0.1", "other") == WINDOW
    assert door.wait("10.0.0.2", "desk") == WINDOW
    assert door.wait("10.0.0.2", "other") == 0
    now[0] += WINDOW
    assert door.wait("10.0.0.1", "desk") == 0


def test_the_page_itself_makes_who_fails_too_often_wait(prometheus: Prometheus, tmp_path: Path) -> None:
    page = Page(tmp_path, prometheus.url)
    page.start()
    try:
        assert [page.login(password="wrong")[0] for _ in range(TRIES)] == [401] * TRIES
        status, headers, _ = page.login()
        assert (status, int(headers["retry-after"]) <= WINDOW + 1) == (429, True)
        assert f'page_logins_total{{outcome="refused"}} {TRIES}' in page.ask("/metrics")[2]
    finally:
        page.kill()


def test_no_more_sessions_are_kept_than_there_is_room_for() -> None:
    door = Door({}, 100, lambda: 0.0)
    first = door.enter("desk")
    for _ in range(SESSIONS):
        last = door.enter("desk")
    assert (door.who(first), door.who(last)) == (None, "desk")


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}]
)
def test_another_sites_form_cannot_log_anybody_in_or_out(
    page: Page, cookie: str, headers: dict[str, str]
) -> None:
    assert page.login(**headers)[0] == 403
    assert page.ask("/logout", "POST", Cookie=cookie, **headers)[0] == 403
    assert page.ask("/", Cookie=cookie)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/view.json", "/page.js", "/reports/20261127-0.2.0.html", "/health"])
def test_nothing_but_login_and_logout_takes_more_than_get_and_head(
    page: Page, cookie: str, method: str, path: str
) -> None:
    status, headers, _ = page.ask(path, method, Cookie=cookie)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_logging_out_takes_a_form_only(page: Page, cookie: str) -> None:
    assert page.ask("/logout", Cookie=cookie)[0] == 405
    assert page.ask("/", Cookie=cookie)[0] == 200


def test_a_login_that_is_too_long_or_no_form_is_refused(page: Page) -> None:
    assert page.ask("/login", "POST", "name=" + "x" * 5000)[0] == 413
    assert page.ask("/login", "POST", "\0\xff=&&==")[0] == 401


@pytest.mark.parametrize("path", ["/", "/login", "/view.json", "/page.js", "/nothing"])
def test_every_answer_allows_its_own_scripts_only(page: Page, cookie: str, path: str) -> None:
    _, headers, body = page.ask(path, Cookie=cookie if path != "/login" else "")
    policy = headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert (
        "://" not in body.replace("http://www.w3.org/2000/svg", "").replace("https://runbook.example.com", "")
        or path == "/view.json"
    )


def test_reports_are_shown_to_those_who_are_logged_in_as_nobodys_pages(page: Page, cookie: str) -> None:
    assert [report["id"] for report in page.view(cookie)["reports"]] == ["20261127-0.2.0"]
    status, headers, body = page.ask("/reports/20261127-0.2.0.html", Cookie=cookie)
    assert (status, body) == (200, REPORT)
    assert "sandbox allow-scripts" in headers["content-security-policy"]
    assert "allow-same-origin" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "link.html",
        "../config.yaml",
        "..%2fconfig.yaml",
        "%2e%2e/users.yaml",
        ".html",
        "a/b.html",
        "",
    ],
)
def test_only_reports_are_served_from_their_directory(page: Page, cookie: str, name: str) -> None:
    assert page.ask(f"/reports/{name}", Cookie=cookie)[0] == 404


def test_a_span_that_is_none_is_refused_with_what_there_is(page: Page, cookie: str) -> None:
    status, _, body = page.ask("/view.json?span=1y", Cookie=cookie)
    assert (status, body) == (400, "span: expected one of 15m, 1h, 6h, 24h\n")


def test_while_prometheus_is_away_the_page_says_so_and_keeps_what_it_knew(
    fleet: Fleet, tmp_path: Path
) -> None:
    prometheus = Prometheus(tmp_path / "prometheus", fleet)
    prometheus.start()
    page = Page(tmp_path / "page", prometheus.url)
    page.start()
    try:
        cookie = page.cookie()
        known = shown(page, cookie, "the figures are there")
        prometheus.kill()
        away = until(lambda: (found := page.view(cookie))["trouble"] and found, 20, "trouble")
        assert "Prometheus" in away["trouble"]
        assert away["instances"] == known["instances"]
        assert away["at"] < away["served"]
        assert "page_prometheus_up 0" in page.ask("/metrics")[2]
        prometheus.start()
        assert until(lambda: not page.view(cookie)["trouble"], 20, "it is back")
    finally:
        page.kill()
        prometheus.kill()


def test_a_page_that_never_had_an_answer_says_why(tmp_path: Path) -> None:
    page = Page(tmp_path, f"http://127.0.0.1:{free_port()}")
    page.start()
    try:
        found = page.view(page.cookie())
        assert "Prometheus" in found["trouble"]
        assert "at" not in found
    finally:
        page.kill()


def test_what_hash_prints_is_taken_and_no_other_password_fits() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trading_bot", "page", "hash"],
        input=f"{PASSWORD}\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = done.stdout.strip()
    assert is_hash(found)
    assert fits(PASSWORD, found)
    assert not fits(PASSWORD + " ", found)
    short = subprocess.run(
        [sys.executable, "-m", "trading_bot", "page", "hash"],
        input="short\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert short.returncode == 2
    assert "12 characters or more" in short.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prometheus": "mon1:9090"}, "prometheus: expected an address such as http://10.0.0.71:9090"),
        ({"server": {"host": "127.0.0.1", "port": 70000}}, "server.port"),
        (
            {"server": {"host": "127.0.0.1", "port": 1, "key_file": "k"}},
            "certificate_file and key_file, or neither",
        ),
        ({"colour": "red"}, "colour"),
        ({"session": 1}, "session"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    file = tmp_path / "config.yaml"
    right = {
        "server": {"host": "127.0.0.1", "port": 9096},
        "users_file": "u",
        "prometheus": "http://10.0.0.71:9090",
    }
    file.write_text(yaml.safe_dump(right))
    assert settings.load(str(file)).session == 43200
    file.write_text(yaml.safe_dump({**right, **change}))
    with pytest.raises(ConfigError) as error:
        settings.load(str(file))
    assert said in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "one user or more"),
        ("- {name: desk, password_hash: plain}", "what `trading-bot page hash` prints"),
        ("- {name: desk}", "password_hash"),
        ("- [", "YAML"),
    ],
)
def test_a_wrong_users_file_is_refused_before_it_is_used(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "users.yaml"
    file.write_text(content)
    done = subprocess.run(
        [sys.executable, "-m", "trading_bot", "page", "check-users", "-config", str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, said in done.stderr) == (78, True), done.stderr


def test_over_tls_the_cookie_is_bound_to_it(prometheus: Prometheus, tmp_path: Path) -> None:
    import ssl
    import urllib.request

    certificate, key = tmp_path / "page.crt", tmp_path / "page.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    page = Page(tmp_path, prometheus.url)
    changed = yaml.safe_load(page.config.read_text())
    changed["server"] |= {"certificate_file": str(certificate), "key_file": str(key)}
    page.config.write_text(yaml.safe_dump(changed))
    page.start()
    try:
        trusted = ssl.create_default_context(cafile=str(certificate))

        class Stay(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *_: Any) -> None:
                return None

        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=trusted), Stay)
        with pytest.raises(urllib.error.HTTPError) as moved:
            opener.open(f"https://127.0.0.1:{page.port}/login", f"name=desk&password={PASSWORD}".encode(), 30)
        assert moved.value.code == 303
        kept = moved.value.headers["set-cookie"]
        moved.value.close()
        assert kept.startswith("__Host-session=")
        assert "Secure" in kept.split("; ")
    finally:
        page.kill()


def test_what_the_view_holds_is_json_whatever_a_label_says(page: Page, cookie: str) -> None:
    _, headers, body = page.ask("/view.json?span=15m", Cookie=cookie)
    assert headers["content-type"] == "application/json"
    json.loads(body)
