"""What was measured on a fleet becomes findings: causes first, each once, none of a healthy fleet."""

from __future__ import annotations

import copy
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.diagnose import findings, table
from plugin_testing import PLUGINS, load

reach_filter = load(PLUGINS / "filter" / "diagnose.py").diagnose_reach
report = load(PLUGINS / "action" / "diagnose_report.py")

NOW = 1_790_000_000.0
DAY = 86400
ADDRESSES = {"lb1": "10.0.0.11", "app1": "10.0.0.21", "app2": "10.0.0.22", "data1": "10.0.0.61"}


def unit(name: str, **other: Any) -> dict[str, Any]:
    return {
        **{
            "unit": f"{name}.service",
            "load": "loaded",
            "enabled": "enabled",
            "active": "active",
            "sub": "running",
            "restarts": 0,
        },
        **{"result": "success", "exit_status": 0, "oom_kills": 0, "vital": True, **other},
    }


def connection(to: str, service: str, port: int, slot: str = "", needs: str = "") -> dict[str, Any]:
    return {
        **{"to": to, "service": service, "needs": needs or service, "slot": slot, "vital": True},
        **{"address": ADDRESSES[to], "port": port, "outcome": "open", "milliseconds": 0.4},
    }


def host(services: dict[str, Any], listening: list[list[Any]], reach: list[dict[str, Any]], **other: Any) -> dict[str, Any]:
    return {
        "services": services,
        "listening": listening,
        "reach": reach,
        "disks": [{"path": "/", "used_percent": 40.0, "inodes_percent": 3.0, "free_mib": 50000}],
        "memory": {"total_mib": 16000, "available_mib": 12000, "kills": []},
        "load": {"one": 0.5, "five": 0.4, "fifteen": 0.3, "processors": 8, "busiest": []},
        "clock": {"container": False, "synchronized": True, "chrony_offset": 0.0004, "servers": []},
        "firewall": {"iptables": "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"},
        "certificates": [],
        "time": NOW + 2,
        **other,
    }


def app(name: str) -> dict[str, Any]:
    answer = {"error": "", "refused": False, "milliseconds": 0.3, "password_as_inventory": True, "file": "secrets/redis_password"}
    return host(
        {"Docker": unit("docker"), "The app": unit("trading-bot", sub="exited")},
        [[ADDRESSES[name], 18080]],
        [connection("data1", "Redis", 6379), connection("data1", "NATS", 4222)],
        slots={
            "blue": {
                "port": 18080,
                "unit": unit("trading-bot@blue"),
                "release_id": "1.4.0-3f2a9c01de",
                "image": {"reference": "trading-bot:3f2a9c01de00", "present": True, "error": ""},
                "container": {"present": True, "status": "running", "exit_status": 0, "oom_killed": False, "memory_mib": 512},
                "config": {"status": 0, "output": "ok"},
                "redis": dict(answer),
                "nats": {**answer, "file": "secrets/nats_password"},
                "ready": {"ready": True, "reason": ""},
            }
        },
    )


INFO = {
    **{"loading": "0", "used_memory": "1000000", "maxmemory": "1073741824"},
    **{"aof_last_write_status": "ok", "rdb_last_bgsave_status": "ok"},
}


@pytest.fixture
def fleet() -> dict[str, Any]:
    """A load balancer, two app hosts and a data host, all well."""
    slots = [connection(name, "The app in blue", 18080, "blue", "The app") for name in ("app1", "app2")]
    facts = {
        "lb1": host({"HAProxy": unit("haproxy")}, [["0.0.0.0", 8080]], [*slots, connection("data1", "NATS", 4222)]),
        "app1": app("app1"),
        "app2": app("app2"),
        "data1": host(
            {"Redis": unit("redis-server"), "NATS": unit("nats-server")},
            [["10.0.0.61", 6379], ["127.0.0.1", 6379], ["10.0.0.61", 4222]],
            [],
            redis={"error": "", "info": INFO, "slow": []},
            nats={"error": "", "healthy": True, "health": "ok", "lags": [{"stream": "EVENTS", "consumer": "desk", "pending": 3}]},
        ),
    }
    return {name: {"facts": each} for name, each in copy.deepcopy(facts).items()}


def judged(fleet: dict[str, Any], **limits: float) -> list[dict[str, Any]]:
    return findings(fleet, NOW, NOW + 5, limits)


def blue(fleet: dict[str, Any], name: str) -> dict[str, Any]:
    slot: dict[str, Any] = fleet[name]["facts"]["slots"]["blue"]
    return slot


def not_ready(fleet: dict[str, Any], *names: str, reason: str = "503: redis: not connected") -> None:
    for name in names:
        blue(fleet, name)["ready"] = {"ready": False, "reason": reason}


def test_of_a_healthy_fleet_nothing_is_found(fleet: dict[str, Any]) -> None:
    assert judged(fleet) == []
    assert table([], list(fleet)) == "4 hosts measured: nothing found"


# the ten faults


def test_a_wrong_password_is_told_before_the_app_that_is_not_ready(fleet: dict[str, Any]) -> None:
    blue(fleet, "app1")["redis"].update(
        error="WRONGPASS invalid username-password pair", refused=True, password_as_inventory=False
    )
    not_ready(fleet, "app1")
    first, second = judged(fleet)
    assert (first["host"], first["kind"], first["severity"]) == ("app1", "password", "critical")
    assert first["cause"].startswith(
        "wrong password in secrets/redis_password of 1.4.0-3f2a9c01de: it is not what the inventory says"
    )
    assert second["cause"] == "follows from: Redis refuses the app (app1)"


def test_a_password_that_only_the_server_has_otherwise_is_told_once_for_all_hosts(fleet: dict[str, Any]) -> None:
    for name in ("app1", "app2"):
        blue(fleet, name)["nats"].update(error="Authorization Violation", refused=True)
    [found] = judged(fleet)
    assert found["host"] == "app1, app2"
    assert found["cause"].startswith("wrong password or user in NATS")
    assert "site.yml" in found["mend"]


def test_a_port_that_a_firewall_closes_is_told_with_the_rule(fleet: dict[str, Any]) -> None:
    fleet["lb1"]["facts"]["reach"][0]["outcome"] = "no answer"
    rule = "-A INPUT -s 10.0.0.11/32 -p tcp -m tcp --dport 18080 -j DROP"
    fleet["app1"]["facts"]["firewall"]["iptables"] = f"*filter\n{rule}\nCOMMIT\n"
    [found] = judged(fleet)
    assert (found["host"], found["what"]) == ("app1", "lb1 cannot reach The app in blue (app1:18080)")
    assert rule in found["cause"]
    assert found["mend"] == f"ansible app1 -b -a 'iptables {rule.replace('-A', '-D', 1)}'"


def test_a_port_that_is_closed_on_the_way_is_told_as_such(fleet: dict[str, Any]) -> None:
    for name in ("app1", "app2"):
        fleet[name]["facts"]["reach"][1]["outcome"] = "no answer"
    [found] = judged(fleet)
    assert found["what"] == "app1, app2 cannot reach NATS (data1:4222)"
    assert "on the way" in found["cause"]
    assert "let 4222/tcp from app1, app2 to 10.0.0.61 through" in found["mend"]


def test_a_service_that_listens_elsewhere_is_told_with_where(fleet: dict[str, Any]) -> None:
    fleet["app1"]["facts"]["reach"][0]["outcome"] = "refused"
    fleet["data1"]["facts"]["listening"].remove(["10.0.0.61", 6379])
    [found] = judged(fleet)
    assert found["cause"] == "Redis runs and listens on 127.0.0.1:6379 only"


def test_a_full_disk_comes_before_the_service_that_failed_on_it(fleet: dict[str, Any]) -> None:
    facts = fleet["data1"]["facts"]
    facts["disks"].append({"path": "/var/lib/redis", "used_percent": 100.0, "inodes_percent": 1.0, "free_mib": 0})
    facts["redis"]["info"]["aof_last_write_status"] = "err"
    found = judged(fleet)
    assert [item["what"] for item in found] == ["The disk below /var/lib/redis is full", "Redis cannot write to disk"]


def test_many_small_files_fill_a_disk_as_well(fleet: dict[str, Any]) -> None:
    fleet["app1"]["facts"]["disks"][0]["inodes_percent"] = 95.0
    [found] = judged(fleet)
    assert found["severity"] == "warning"
    assert "inodes" in found["cause"]


@pytest.mark.parametrize(
    ("change", "what", "by"),
    [
        (
            {"servers": [{"server": "10.0.0.1", "error": "", "offset": 90.2}]},
            "The clock is off by 90.2 s",
            "ahead, says the time server",
        ),
        ({"chrony_offset": -3.5}, "The clock is off by 3.5 s", "behind, says chrony"),
    ],
)
def test_a_clock_that_is_off_is_told_by_who_says_so(fleet: dict[str, Any], change: dict[str, Any], what: str, by: str) -> None:
    fleet["app1"]["facts"]["clock"].update(change)
    [found] = judged(fleet)
    assert (found["host"], found["what"]) == ("app1", what)
    assert by in found["cause"]


@pytest.mark.parametrize(("off", "at_least"), [(60.0, "57.0"), (-60.0, "58.0")])
def test_a_clock_is_compared_with_the_control_nodes_as_far_as_that_can_tell(
    fleet: dict[str, Any], off: float, at_least: str
) -> None:
    """Between the beginning and the end of measuring, which took five seconds."""
    fleet["app1"]["facts"]["time"] += off
    [found] = judged(fleet)
    assert found["what"] == f"The clock is off by {at_least} s"


def test_a_bad_config_is_told_with_what_its_check_says(fleet: dict[str, Any]) -> None:
    blue(fleet, "app1").update(
        unit=unit("trading-bot@blue", active="failed", result="exit-code", exit_status=78),
        config={"status": 78, "output": "config.yaml: risk.max_leverage: expected a number, found 'banana'"},
    )
    not_ready(fleet, "app1", reason="no answer")
    [found] = judged(fleet)
    assert found["what"] == "The configuration of 1.4.0-3f2a9c01de is wrong"
    assert "risk.max_leverage" in found["cause"]


def test_a_slow_redis_is_told_with_the_command_that_holds_it_up(fleet: dict[str, Any]) -> None:
    for name in ("app1", "app2"):
        blue(fleet, name)["redis"]["milliseconds"] = 240.0
    fleet["data1"]["facts"]["redis"]["slow"] = [{"command": "EVAL", "count": 120, "seconds": 31.0}]
    [found] = judged(fleet)
    assert (found["host"], found["what"], found["severity"]) == ("data1", "Redis is slow", "critical")
    assert found["cause"] == "slow commands hold it up: EVAL took 31 s in 120 calls"


def test_a_slow_redis_without_slow_commands_is_told_by_where_the_time_goes(fleet: dict[str, Any]) -> None:
    blue(fleet, "app1")["redis"]["milliseconds"] = 80.0
    [held_up] = judged(fleet)
    assert "by no slow command" in held_up["cause"]
    fleet["app1"]["facts"]["reach"][0]["milliseconds"] = 75.0
    [network] = judged(fleet)
    assert "a connection alone takes 75 ms" in network["cause"]


def test_a_nats_that_is_down_is_told_once_and_not_as_closed_ports(fleet: dict[str, Any]) -> None:
    data1 = fleet["data1"]["facts"]
    data1["services"]["NATS"].update(active="inactive", sub="dead")
    data1["listening"].remove(["10.0.0.61", 4222])
    data1["nats"] = {"error": "Connection refused"}
    for name in ("lb1", "app1", "app2"):
        fleet[name]["facts"]["reach"][-1]["outcome"] = "refused"
    for name in ("app1", "app2"):
        blue(fleet, name)["nats"].update(error="Connection refused")
    not_ready(fleet, "app1", "app2", reason="503: nats: not connected")
    first, second = judged(fleet)
    assert (first["host"], first["what"]) == ("data1", "NATS does not run")
    assert first["mend"] == "ansible data1 -b -m ansible.builtin.systemd_service -a 'name=nats-server state=started'"
    assert (second["host"], second["severity"]) == ("app1, app2", "notice")


def test_a_missing_image_is_told_and_not_that_its_unit_failed(fleet: dict[str, Any]) -> None:
    blue(fleet, "app1").update(
        unit=unit("trading-bot@blue", active="failed", result="exit-code", exit_status=1, errors=["No such image"]),
        image={"reference": "trading-bot:3f2a9c01de00", "present": False, "error": "No such image"},
        container={"present": False},
    )
    not_ready(fleet, "app1", reason="no answer")
    [found] = judged(fleet)
    assert found["what"] == "The image of 1.4.0-3f2a9c01de is missing"
    assert "trading-bot:3f2a9c01de00" in found["cause"]


@pytest.mark.parametrize(
    "state",
    [
        {"container": {"oom_killed": True, "exit_status": 137, "memory_mib": 24}},
        {"container": {"oom_killed": False, "oom_events": 4, "exit_status": 137, "memory_mib": 24}},
        {"unit": unit("trading-bot@blue", active="failed", result="oom-kill", exit_status=9), "container": {"memory_mib": 24}},
    ],
)
def test_an_app_that_ran_out_of_memory_is_told_with_what_it_may_have(fleet: dict[str, Any], state: dict[str, Any]) -> None:
    blue(fleet, "app1").update(state)
    not_ready(fleet, "app1", reason="no answer")
    [found] = judged(fleet)
    assert (found["what"], found["severity"]) == ("The app ran out of memory in blue", "critical")
    assert "24 MiB" in found["cause"]


def test_a_service_that_was_killed_for_want_of_memory_is_told_as_that(fleet: dict[str, Any]) -> None:
    fleet["data1"]["facts"]["services"]["Redis"].update(active="failed", result="oom-kill")
    assert judged(fleet)[0]["what"] == "Redis ran out of memory"


def test_an_expired_certificate_is_critical_and_one_that_ends_soon_is_a_warning(fleet: dict[str, Any]) -> None:
    fleet["lb1"]["facts"]["certificates"] = [
        {"path": "/etc/haproxy/api.pem", "ends": NOW - 3 * DAY, "error": ""},
        {"path": "/etc/ssl/page.pem", "ends": NOW + 3 * DAY, "error": ""},
        {"path": "/etc/ssl/later.pem", "ends": NOW + 300 * DAY, "error": ""},
        {"path": "/etc/ssl/gone.pem", "ends": None, "error": "No such file"},
    ]
    assert [(item["severity"], item["what"]) for item in judged(fleet)] == [
        ("critical", "The certificate /etc/haproxy/api.pem has expired"),
        ("warning", "The certificate /etc/ssl/page.pem ends soon"),
        ("warning", "The certificate /etc/ssl/gone.pem cannot be read"),
    ]


# the rest


def test_a_host_that_does_not_answer_is_the_first_finding_and_its_ports_are_none(fleet: dict[str, Any]) -> None:
    fleet["data1"] = {"unreachable": True, "msg": "Task failed: No route to host"}
    for name in ("lb1", "app1", "app2"):
        for item in fleet[name]["facts"]["reach"]:
            item["outcome"] = "no answer" if item["to"] == "data1" else "open"
    not_ready(fleet, "app1", "app2")
    first, second = judged(fleet)
    assert (first["host"], first["what"], first["evidence"]) == ("data1", "The host does not answer", ["No route to host"])
    assert second["cause"] == "follows from: The host does not answer (data1)"


def test_a_host_that_was_left_out_is_named_where_its_port_is_closed(fleet: dict[str, Any]) -> None:
    del fleet["data1"]
    fleet["app1"]["facts"]["reach"][0]["outcome"] = "refused"
    [found] = judged(fleet)
    assert found["mend"] == "ansible-playbook diagnose.yml -l 'app1,data1'"


def test_of_a_fleet_with_nothing_on_it_one_line_is_told(fleet: dict[str, Any]) -> None:
    for result in fleet.values():
        facts = result["facts"]
        facts["services"] = {name: unit(name, load="not-found", active="inactive") for name in facts["services"]}
        facts.update(listening=[], firewall={})
        facts["reach"] = [{**item, "outcome": "refused"} for item in facts["reach"]]
        for probe, empty in {"slots": {}, "redis": {"error": "refused"}, "nats": {"error": "refused"}}.items():
            if probe in facts:
                facts[probe] = empty
    [found] = judged(fleet)
    assert (found["severity"], found["what"]) == ("notice", "Nothing is installed")
    assert found["mend"] == "ansible-playbook site.yml -l lb1,app1,app2,data1"


def test_a_slot_that_is_not_ready_for_no_known_cause_is_critical(fleet: dict[str, Any]) -> None:
    not_ready(fleet, "app2", reason="503: venue: timed out")
    [found] = judged(fleet)
    assert (found["severity"], found["host"]) == ("critical", "app2")
    assert found["evidence"] == ["blue: 503: venue: timed out"]


def test_a_probe_that_failed_hides_nothing_else(fleet: dict[str, Any]) -> None:
    for result in fleet.values():
        for probe in ("disks", "memory", "load", "clock", "certificates", "firewall", "reach"):
            result["facts"][probe] = {"error": "OSError: no"}
    fleet["data1"]["facts"]["services"]["NATS"].update(active="failed", result="exit-code", exit_status=1, errors=["bad config"])
    assert [item["what"] for item in judged(fleet)] == ["NATS does not run"]


def test_limits_are_the_inventorys(fleet: dict[str, Any]) -> None:
    fleet["data1"]["facts"]["nats"]["lags"][0]["pending"] = 500
    assert judged(fleet) == []
    [found] = judged(fleet, stream_lag=100)
    assert found["what"] == "desk is behind on the stream EVENTS"


def test_an_overloaded_host_is_told_with_what_keeps_it_busy(fleet: dict[str, Any]) -> None:
    load = fleet["app1"]["facts"]["load"]
    load.update(five=2.0 * load["processors"])
    assert judged(fleet, load_per_processor=2) == []
    load.update(five=2.0 * load["processors"] + 0.1, busiest=["98.0 python3 backtest.py"])
    [found] = judged(fleet, load_per_processor=2)
    assert (found["host"], found["what"]) == ("app1", "The host is overloaded")
    assert "98.0 python3 backtest.py" in found["evidence"]


def test_the_table_tells_each_finding_with_cause_command_and_what_was_seen(fleet: dict[str, Any]) -> None:
    fleet["data1"]["facts"]["services"]["NATS"].update(active="inactive")
    text = table(judged(fleet), list(fleet), "/tmp/archive.tar.gz")
    assert text.splitlines()[:6] == [
        "4 hosts measured: 1 critical",
        "",
        " 1. critical data1: NATS does not run",
        "    cause    it was stopped, or never started",
        "    mend     ansible data1 -b -m ansible.builtin.systemd_service -a 'name=nats-server state=started'",
        "    seen     nats-server: inactive, result success, exit status 0",
    ]
    assert text.endswith("Logs, figures and versions, without secrets: /tmp/archive.tar.gz")


def test_a_host_needs_the_ports_of_its_groups() -> None:
    rows = [
        {"service": "Redis", "from": ["app", "monitoring"], "to": "redis", "port": "6379", "vital": True},
        {"service": "The app in blue", "needs": "The app", "slot": "blue", "from": ["lb"], "to": "app", "port": 18080},
    ]
    groups = {"app": ["app1", "app2"], "lb": ["lb1"], "redis": ["data1", "data2"]}
    assert [(item["to"], item["port"], item["vital"]) for item in reach_filter(rows, "app1", groups, ADDRESSES)] == [
        ("data1", 6379, True)
    ]
    assert [(item["to"], item["needs"], item["slot"]) for item in reach_filter(rows, "lb1", groups, ADDRESSES)] == [
        ("app1", "The app", "blue"),
        ("app2", "The app", "blue"),
    ]
    assert reach_filter(rows, "data1", groups, ADDRESSES) == []
    to_a_host = [{"service": "ssh for backups", "from": ["app"], "to": to, "port": 22} for to in ("data1", "", "elsewhere")]
    assert [item["to"] for item in reach_filter(to_a_host, "app1", groups, ADDRESSES)] == ["data1"]


def test_an_archive_has_report_facts_figures_and_logs_and_no_secret(fleet: dict[str, Any], tmp_path: Path) -> None:
    fleet["data1"]["facts"]["series"] = {"up": {"result": []}}
    fleet["data1"]["logs"] = {"nats-server.service": "password: hunter2hunter2", "trading-bot-blue.log": "x"}
    fleet["app2"] = {"unreachable": True, "msg": "No route to host"}
    path = tmp_path / "new" / "20261128T000000Z.tar.gz"
    report.write(path, report.files_of(fleet, [], "nothing found"), NOW)
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        texts = {}
        for name in archive.getnames():
            member = archive.extractfile(name)
            assert member is not None
            texts[name.removeprefix("20261128T000000Z/")] = member.read().decode()
    assert {
        "report.txt",
        "findings.json",
        "data1/figures.json",
        "data1/nats-server.service.log",
        "data1/trading-bot-blue.log",
    } <= set(texts)
    assert json.loads(texts["app2/facts.json"]) == {"error": "No route to host"}
    assert not [name for name, text in texts.items() if "hunter2" in text]
