"""The split by account, the map files, and the order of a change."""

from __future__ import annotations

from itertools import pairwise

import pytest
import xxhash
from ansible.module_utils.traffic import (
    BUCKETS,
    Step,
    Traffic,
    TrafficError,
    UnsafeChange,
    bucket,
    describe,
    differences,
    gaining,
    other_slot,
    parse_map,
    plan_steps,
    traffic_from,
    traffic_of_maps,
    wanted,
    with_value,
    xxh32,
)
from hypothesis import given, settings
from hypothesis import strategies as st

SLOT = st.sampled_from(["blue", "green"])
SALTS = ("none", "1.0.0-aaaaaaaaaa", "1.1.0-bbbbbbbbbb")
SALT = st.sampled_from(SALTS)
CUT = st.one_of(st.sampled_from([0, 1, 500, 2000, 5000, 9999, BUCKETS]), st.integers(0, BUCKETS))
TRAFFIC = st.builds(Traffic, stable=SLOT, canary=SLOT, salt=SALT, cut=CUT)
ACCOUNTS = [f"acct-{number}" for number in range(400)]
BUCKETS_OF = {salt: [bucket(a, salt) for a in ACCOUNTS] for salt in SALTS}


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2**32 - 1))
def test_the_hash_is_the_one_that_xxhash_computes(data: bytes, seed: int) -> None:
    assert xxh32(data, seed) == xxhash.xxh32(data, seed).intdigest()


def test_the_bucket_is_the_hash_of_account_and_salt() -> None:
    assert bucket("acct-7", "1.0.0-abc") == xxhash.xxh32(b"acct-7:1.0.0-abc").intdigest() % 10000


def test_the_canary_grows_only() -> None:
    at_5 = {a for a in ACCOUNTS if Traffic("blue", "green", "r", 500).slot_of(a) == "green"}
    at_20 = {a for a in ACCOUNTS if Traffic("blue", "green", "r", 2000).slot_of(a) == "green"}
    assert at_5 < at_20


def walk(traffic: Traffic, steps: tuple[Step, ...]) -> list[Traffic]:
    """Every traffic that is in force on the way."""
    maps = {"release.map": {"stable": traffic.stable, "canary": traffic.canary, "salt": traffic.salt}}
    maps["cut.map"] = {"canary": str(traffic.cut)}
    found = [traffic]
    for step in steps:
        maps[step.map][step.key] = step.value
        now = traffic_of_maps(maps)
        assert now is not None
        found.append(now)
    return found


@settings(max_examples=300, deadline=None)
@given(TRAFFIC, TRAFFIC)
def test_on_the_way_nobody_is_on_a_slot_that_is_neither_the_old_nor_the_new_one(before: Traffic, after: Traffic) -> None:
    try:
        way = walk(before, plan_steps(before, after))
    except UnsafeChange:
        # Refused only where two things change at once while a canary serves, before and after.
        assert min(before.cut, after.cut) > 0
        roles_change = (before.stable, before.canary) != (after.stable, after.canary)
        assert roles_change or (before.salt != after.salt and before.cut != after.cut)
        return
    assert way[-1] == after
    for at in range(len(ACCOUNTS)):
        slots = [state.slot_of_bucket(BUCKETS_OF[state.salt][at]) for state in way]
        moves = sum(one != two for one, two in pairwise(slots))
        assert moves == (slots[0] != slots[-1])


@settings(deadline=None)
@given(SALT, SLOT, SLOT, SLOT, SLOT, CUT, CUT)
def test_the_order_is_safe_for_every_bucket(salt: str, s1: str, c1: str, s2: str, c2: str, cut1: int, cut2: int) -> None:
    before, after = Traffic(s1, c1, salt, cut1), Traffic(s2, c2, salt, cut2)
    try:
        way = walk(before, plan_steps(before, after))
    except UnsafeChange:
        return
    for number in {0, cut1 - 1, cut1, cut2 - 1, cut2, BUCKETS - 1} & set(range(BUCKETS)):
        assert {state.slot_of_bucket(number) for state in way} <= {
            before.slot_of_bucket(number),
            after.slot_of_bucket(number),
        }


@settings(deadline=None)
@given(TRAFFIC)
def test_back_to_nothing_on_the_canary_is_always_one_step(before: Traffic) -> None:
    after = wanted(before, {"cut": 0})
    assert plan_steps(before, after) == ((Step("cut.map", "canary", "0"),) if before.cut else ())


def test_a_promotion_makes_the_canary_stable_before_the_cut_goes() -> None:
    steps = plan_steps(Traffic("blue", "green", "r", BUCKETS), Traffic("green", "blue", "none", 0))
    order = [(step.map, step.key) for step in steps]
    assert order.index(("release.map", "stable")) < order.index(("cut.map", "canary"))


def test_a_new_release_is_named_before_it_gets_its_share() -> None:
    steps = plan_steps(Traffic("blue", "green", "old", 0), Traffic("blue", "green", "new", 500))
    assert [step.value for step in steps] == ["new", "500"]


def test_another_release_while_the_canary_serves_is_refused_with_the_way_out() -> None:
    with pytest.raises(UnsafeChange, match="set the cut to 0 first"):
        plan_steps(Traffic("blue", "green", "old", 500), Traffic("blue", "green", "new", 2000))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"stable": "red"}, "stable is 'red', expected one of: blue, green"),
        ({"canary": "x"}, "canary is 'x'"),
        ({"salt": "a b"}, "salt is 'a b'"),
        ({"salt": "a;b"}, "salt is 'a;b'"),
        ({"cut": 10001}, "cut is 10001"),
        ({"cut": -1}, "cut is -1"),
        ({"cut": True}, "cut is True"),
        ({"cut": "5%"}, "cut is '5%'"),
        ({"cut": None}, "lacks cut"),
        ({"colour": "red"}, "has unknown colour"),
    ],
)
def test_a_traffic_that_cannot_be_is_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(TrafficError, match=says):
        traffic_from({"stable": "blue", "canary": "green", "salt": "none", "cut": 0, **values})


def test_omitted_values_stay() -> None:
    current = Traffic("green", "blue", "r", 500)
    assert wanted(current, {"stable": None, "cut": 2000}) == Traffic("green", "blue", "r", 2000)


def test_first_contact_needs_the_stable_slot_only() -> None:
    assert wanted(None, {"stable": "green", "cut": None}) == Traffic("green", "blue", "none", 0)
    with pytest.raises(TrafficError, match="say which slot is stable"):
        wanted(None, {"cut": 0})


def test_the_other_slot() -> None:
    assert (other_slot("blue"), other_slot("green")) == ("green", "blue")


def test_a_map_is_read_as_haproxy_reads_it() -> None:
    assert parse_map("# note\n\n  stable   blue \ncanary\tgreen\n") == {"stable": "blue", "canary": "green"}


@pytest.mark.parametrize(
    ("text", "says"), [("stable\n", "line 1 has the key 'stable' without"), ("a 1\na 2\n", "line 2 repeats")]
)
def test_a_broken_map_is_refused_with_its_line(text: str, says: str) -> None:
    with pytest.raises(TrafficError, match=says):
        parse_map(text)


def test_setting_a_key_leaves_every_other_line() -> None:
    assert with_value("# note\nstable blue\ncanary green", "stable", "green") == "# note\nstable green\ncanary green\n"
    assert with_value("", "canary", "0") == "canary 0\n"


def test_maps_without_anything_say_nothing() -> None:
    assert traffic_of_maps({}) is None


def test_what_a_running_map_lacks_is_haproxys_default() -> None:
    assert traffic_of_maps({"release.map": {"canary": "green"}}, defaults=True) == Traffic("blue", "green", "none", 0)


def test_the_differences_name_map_key_and_both_values() -> None:
    disk = {"release.map": {"stable": "blue"}, "cut.map": {"canary": "500"}}
    running = {"release.map": {"stable": "blue"}, "cut.map": {"canary": "0"}}
    assert differences(disk, running) == [{"map": "cut.map", "key": "canary", "disk": "500", "running": "0"}]


@pytest.mark.parametrize(
    ("before", "after", "slots"),
    [
        (Traffic("blue", "green"), Traffic("blue", "green"), []),
        (Traffic("blue", "green"), Traffic("blue", "green", "r", 500), ["green"]),
        (Traffic("blue", "green", "r", 500), Traffic("blue", "green"), ["blue"]),
        (Traffic("blue", "blue"), Traffic("green", "green", "r", 500), ["green"]),
        (Traffic("blue", "green", "r", 10000), Traffic("green", "blue"), []),
        (Traffic("blue", "blue", "r", 500), Traffic("blue", "green"), []),
    ],
)
def test_the_slots_that_get_more_accounts(before: Traffic, after: Traffic, slots: list[str]) -> None:
    assert gaining(before, after) == slots


def test_a_traffic_is_described_in_percent() -> None:
    assert describe(Traffic("blue", "green", "r", 250)) == "stable blue, canary green 2.5% (salt r)"
