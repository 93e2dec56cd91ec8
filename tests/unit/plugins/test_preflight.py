"""What a host has against what it must have."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.preflight import (
    block_device,
    candidates,
    interface,
    memory_gib,
    newest,
    os_release,
    version,
)
from plugin_testing import PLUGINS, RunModule, load

preflight = load(PLUGINS / "filter" / "preflight.py")

FOUND: dict[str, Any] = {
    "distribution": {"id": "ubuntu", "version": "24.04"},
    "cpu_cores": 8,
    "memory_gib": 15.6,
    "disk_gib": 96.7,
    "ssd": True,
    "interface": "eth0",
    "network_mbit": 1000,
    "software": {"redis": {"installed": None, "candidate": "7.0.15"}},
}
REQUIRED: dict[str, Any] = {
    "distributions": {"Ubuntu": "20.04", "Debian": "13"},
    "cpu_cores": 8,
    "memory_gib": 16,
    "disk_gib": 93,
    "allowance_percent": 5,
    "ssd": True,
    "address": "10.0.0.11",
    "network_mbit": 1000,
    "software": {"redis": {}},
    "versions": {"redis": "7.0"},
    "on_unknown": "fail",
}


def verdict(what: str, found: dict[str, Any] | None = None, required: dict[str, Any] | None = None) -> str:
    """The verdict on one requirement, with some of what was found or is required replaced."""
    rows = preflight.preflight_rows({"found": {**FOUND, **(found or {})}}, {**REQUIRED, **(required or {})})
    verdicts: list[str] = [row["ok"] for row in rows if row["what"] == what]
    return verdicts[0]


def test_a_host_as_in_the_guide_is_good_enough() -> None:
    """8 cores, 16 GB as the kernel reports it, a 100 GB SSD, gigabit and a known distribution pass."""
    assert {row["ok"] for row in preflight.preflight_rows({"found": FOUND}, REQUIRED)} == {"yes"}


@pytest.mark.parametrize(
    ("what", "found"),
    [
        ("CPU cores", {"cpu_cores": 7}),
        ("memory", {"memory_gib": 15.1}),
        ("disk", {"disk_gib": 88.0}),
        ("kind of disk", {"ssd": False}),
        ("private_address", {"interface": None}),
        ("network", {"network_mbit": 100}),
        ("distribution", {"distribution": {"id": "ubuntu", "version": "18.04"}}),
        ("distribution", {"distribution": {"id": "debian", "version": "12"}}),
        ("distribution", {"distribution": {"id": "fedora", "version": "42"}}),
        ("distribution", {"distribution": {"id": "", "version": ""}}),
        ("redis", {"software": {"redis": {"installed": None, "candidate": "6.2.6"}}}),
        ("redis", {"software": {"redis": {"installed": "6.2.6", "candidate": "7.0.15"}}}),
        ("redis", {"software": {"redis": {"installed": None, "candidate": None}}}),
    ],
)
def test_a_shortfall_is_told(what: str, found: dict[str, Any]) -> None:
    """One value below what is required is a no in its row."""
    assert verdict(what, found) == "no"


def test_versions_are_compared_as_numbers() -> None:
    """Ubuntu 100.04 is later than 20.04, and Redis 10.0 than 7.0."""
    assert verdict("distribution", {"distribution": {"id": "ubuntu", "version": "100.04"}}) == "yes"
    assert verdict("redis", {"software": {"redis": {"installed": "10.0", "candidate": None}}}) == "yes"


def test_versions_side_by_side_count_what_apt_offers() -> None:
    """An old Python is no obstacle where apt has a newer one to install beside it."""
    software = {"redis": {"installed": "6.2.6", "candidate": "7.0.15"}}
    assert verdict("redis", {"software": software}, {"software": {"redis": {"side_by_side": True}}}) == "yes"


@pytest.mark.parametrize(("what", "found"), [("kind of disk", {"ssd": None}), ("network", {"network_mbit": None})])
def test_what_a_host_cannot_tell_is_decided_by_choice(what: str, found: dict[str, Any]) -> None:
    """Unknown fails, and passes as accepted when a person chose so."""
    assert verdict(what, found) == "no"
    assert verdict(what, found, {"on_unknown": "accept"}) == "accepted"


def test_a_choice_does_not_hide_what_is_known_to_be_short() -> None:
    """accept is for the unknown only."""
    assert verdict("network", {"network_mbit": 100}, {"on_unknown": "accept"}) == "no"


def test_what_is_not_required_passes_unknown() -> None:
    """No SSD and no speed required: an unknown disk and speed pass."""
    loose = {"ssd": False, "network_mbit": 0}
    assert verdict("kind of disk", {"ssd": None}, loose) == "yes"
    assert verdict("network", {"network_mbit": None}, loose) == "yes"


def test_every_shortfall_of_every_host_is_named() -> None:
    """Two short hosts and one that does not answer give one sentence for each shortfall, in the inventory's order."""
    rows = {
        "app1": preflight.preflight_rows({"found": {**FOUND, "cpu_cores": 2, "ssd": None}}, REQUIRED),
        "app2": preflight.preflight_rows({"unreachable": True, "msg": "Task failed: no\nroute"}, REQUIRED),
        "app3": preflight.preflight_rows({"failed": True, "msg": "no ip"}, REQUIRED),
        "app4": preflight.preflight_rows({"found": FOUND}, {**REQUIRED, "address": ""}),
    }
    assert preflight.preflight_shortfalls(rows) == [
        "app1: CPU cores: found 2, required 8",
        "app1: kind of disk: found unknown, required SSD"
        " (the host cannot tell; make sure yourself, then set preflight_on_unknown: accept)",
        "app2: reachable: found no, required yes (no route)",
        "app3: measurable: found no, required yes (no ip)",
        "app4: private_address: found not defined, required an address of this host",
    ]


def test_the_table_has_a_line_for_each_row_with_its_columns_aligned() -> None:
    """Header and rows put their bars below each other."""
    table = preflight.preflight_table({"app1": preflight.preflight_rows({"found": FOUND}, REQUIRED)}).splitlines()
    assert len(table) == 9
    assert len({tuple(i for i, letter in enumerate(line) if letter == "|") for line in table}) == 1
    assert table[0].split() == ["host", "|", "requirement", "|", "found", "|", "required", "|", "ok"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Docker version 26.1.5+dfsg1, build a72d7cd", "26.1.5"),
        ("2.26.1-4", "2.26.1"),
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64", "7.0.15"),
        ("nats-server: v2.10.27", "2.10.27"),
        ("5:7.0.15-1~deb12u1", "7.0.15"),
        ("(none)", None),
    ],
)
def test_a_version_is_read_from_what_a_program_says(text: str, expected: str | None) -> None:
    """Programs and apt write versions in their own ways."""
    assert version(text) == expected


def test_the_newest_of_versions_is_by_number() -> None:
    """3.11 is newer than 3.9, and nothing known is None."""
    assert newest(["3.9", None, "3.11", "3.10.4"]) == "3.11"
    assert newest([None]) is None


def test_the_distribution_is_read_quoted_or_not() -> None:
    """Ubuntu quotes the version and Debian the other fields; a file that says nothing gives empty fields."""
    assert os_release('# x\nID=ubuntu\nVERSION_ID="24.04"\n') == {"id": "ubuntu", "version": "24.04"}
    assert os_release("") == {"id": "", "version": ""}


def test_memory_is_what_the_kernel_manages() -> None:
    """MemTotal counts, in GiB; without it there is an error and no guess."""
    assert memory_gib("MemTotal:       16384000 kB\nMemFree: 1 kB\n") == 15.625
    with pytest.raises(ValueError, match="MemTotal"):
        memory_gib("")


def test_candidates_of_apt() -> None:
    """Each package has its own candidate, (none) is None."""
    policy = "redis-server:\n  Installed: (none)\n  Candidate: 5:8.0.2-3\n  Version table:\nnats:\n  Candidate: (none)\n"
    assert candidates(policy) == {"redis-server": "8.0.2", "nats": None}


def test_the_interface_that_holds_an_address() -> None:
    """An address on none of the interfaces has none."""
    links: list[dict[str, object]] = [
        {"ifname": "lo", "addr_info": [{"local": "127.0.0.1"}]},
        {"ifname": "eth1", "addr_info": [{"local": "10.0.0.11"}]},
        {"ifname": "bare"},
    ]
    assert interface(links, "10.0.0.11") == "eth1"
    assert interface(links, "10.0.0.1") is None


def test_the_disk_below_a_path_is_that_of_the_closest_mount() -> None:
    """/variety is not below /var; the last mount over a place counts."""
    mounts = (
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "2 1 8:2 / /var rw - ext4 /dev/sda2 rw\n"
        "3 1 0:9 / /var rw shared:5 - overlay overlay rw\n"
    )
    assert block_device(mounts, "/var/lib") == "overlay"
    assert block_device(mounts, "/variety") == "/dev/sda1"
    assert block_device("", "/") is None


def test_the_module_measures_this_machine(run_module: RunModule) -> None:
    """On a real host it tells processors, memory and disk, and of a program that is not there no version."""
    software = {"python": {"programs": ["python3 --version"]}, "none": {"programs": ["no-such-program"]}}
    answer = run_module("preflight_measure", {"path": "/", "address": "127.0.0.1", "software": software})
    found = answer["found"]
    assert answer["changed"] is False
    assert found["interface"] == "lo"
    assert found["cpu_cores"] >= 1
    assert found["memory_gib"] > 0
    assert found["disk_gib"] > 0
    assert found["software"]["python"]["installed"].startswith("3.")
    assert found["software"]["none"] == {"installed": None, "candidate": None}
