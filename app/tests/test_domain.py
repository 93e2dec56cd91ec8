"""The pure rules."""

from __future__ import annotations

import re
from decimal import Decimal
from importlib import resources

import msgspec
import pytest
import xxhash

from trading_bot import config
from trading_bot.domain import money
from trading_bot.domain.admission import Code, refusal_from
from trading_bot.domain.features import choose
from trading_bot.domain.instrument import instruments_from
from trading_bot.domain.lifecycle import FINAL, TRANSITIONS, State, legal
from trading_bot.domain.limits import Limits
from trading_bot.domain.order import (
    RESERVED,
    OrderRequest,
    OrderType,
    ReplaceRequest,
    Side,
    TimeInForce,
    fingerprint,
    order_from,
    order_from_fingerprint,
    replacement_from,
    valid_client_order_id,
)
from trading_bot.domain.position import Position, account_from, apply_fill
from trading_bot.domain.shadow import EXAMPLES, GROUPS, Decision, Differences
from trading_bot.domain.traffic import Traffic, TrafficGate, bucket, slot_of
from trading_bot.errors import Malformed


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 10**8),
        ("0.00000001", 1),
        ("0", 0),
        ("90000000", 9 * 10**15),
        ("90000000.00000001", None),
        ("1.000000001", None),
        ("-1", None),
        ("+1", None),
        ("1e3", None),
        (" 1", None),
        ("1.", None),
        (".5", None),
        ("", None),
        ("٣", None),
        ("NaN", None),
        ("1\n", None),
    ],
)
def test_an_amount_is_held_exactly_or_refused(text: str, value: int | None) -> None:
    assert money.parse(text) == value


@pytest.mark.parametrize("text", ["0", "1", "1.5", "0.00000001", "90000000", "12345.678"])
def test_an_amount_is_shown_as_it_was_written(text: str) -> None:
    value = money.parse(text)
    assert value is not None
    assert money.show(value) == text
    assert money.show(-value) == ("0" if text == "0" else f"-{text}")


def test_a_limit_is_scaled_towards_zero() -> None:
    assert money.scale(Decimal("1.999999999")) == 199999999


def request(**fields: object) -> OrderRequest:
    whole: dict[str, object] = {
        "client_order_id": "a", "symbol": "BTC-USDT", "side": Side.BUY, "type": OrderType.LIMIT,
        "quantity": "1", "price": "2", **fields,
    }  # fmt: skip
    return OrderRequest(**whole)  # type: ignore[arg-type]  # the fields are checked by what is tested


def test_the_fingerprint_of_an_order_never_changes() -> None:
    """Two versions must agree on it: this text may never be edited."""
    order = order_from("acc", request(quantity="0.10", price="50000.5", reduce_only=True))
    assert fingerprint(order) == "BTC-USDT|buy|limit|10000000|5000050000000||GTC|1"
    stop = order_from("acc", request(type=OrderType.STOP, price=None, stop_price="7", side=Side.SELL))
    assert fingerprint(stop) == "BTC-USDT|sell|stop|100000000||700000000|GTC|0"
    for one in (order, stop):
        assert order_from_fingerprint("acc", "a", fingerprint(one) + "|later=1") == one


def test_orders_that_mean_the_same_have_the_same_fingerprint() -> None:
    a = order_from("acc", request(quantity="1.0", time_in_force=TimeInForce.GTC))
    b = order_from("acc", request(quantity="1"))
    assert fingerprint(a) == fingerprint(b)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"quantity": "0"}, ["quantity"]),
        ({"quantity": "1e2", "price": "-1", "symbol": "btc"}, ["symbol", "quantity", "price"]),
        ({"price": None}, ["price"]),
        ({"type": OrderType.MARKET}, ["price"]),
        ({"type": OrderType.MARKET, "price": None, "time_in_force": TimeInForce.GTC}, ["time_in_force"]),
        ({"type": OrderType.STOP}, ["price", "stop_price"]),
        ({"type": OrderType.STOP_LIMIT}, ["stop_price"]),
        (
            {"type": OrderType.STOP_LIMIT, "stop_price": "1", "time_in_force": TimeInForce.IOC},
            ["time_in_force"],
        ),
        ({"stop_price": "1"}, ["stop_price"]),
        ({"client_order_id": "a b"}, ["client_order_id"]),
        ({"client_order_id": "a:b"}, ["client_order_id"]),
        ({"client_order_id": ""}, ["client_order_id"]),
        ({"client_order_id": "x" * 65}, ["client_order_id"]),
    ],
)
def test_a_malformed_order_names_every_wrong_field(fields: dict[str, object], wrong: list[str]) -> None:
    with pytest.raises(Malformed) as caught:
        order_from("acc", request(**fields))
    assert list(caught.value.errors) == wrong


def test_an_account_is_a_token_of_subjects_and_keys() -> None:
    with pytest.raises(Malformed) as caught:
        order_from("a.b", request())
    assert list(caught.value.errors) == ["account"]


def test_a_client_order_id_fits_a_url() -> None:
    assert valid_client_order_id("A-1_b.c")
    assert not valid_client_order_id("a/b")


def test_defaults_of_time_in_force() -> None:
    assert order_from("acc", request()).time_in_force is TimeInForce.GTC
    market = order_from("acc", request(type=OrderType.MARKET, price=None))
    assert market.time_in_force is TimeInForce.IOC


def test_the_split_is_the_load_balancers() -> None:
    traffic = Traffic("blue", "green", "r7", 500)
    for n in range(2000):
        account = f"account-{n}"
        expected = xxhash.xxh32(f"{account}:r7".encode()).intdigest() % 10000
        assert bucket(account, "r7") == expected
        assert slot_of(account, traffic) == ("green" if expected < 500 else "blue")


def test_a_growing_cut_only_adds_accounts() -> None:
    accounts = [f"a{n}" for n in range(3000)]
    before: set[str] = set()
    for cut in (0, 500, 2000, 5000, 10000):
        now = {a for a in accounts if slot_of(a, Traffic("blue", "green", "s", cut)) == "green"}
        assert before <= now
        before = now
    assert len(before) == len(accounts)


@pytest.mark.parametrize(
    ("slot", "release", "traffic", "member"),
    [
        ("blue", "r1", Traffic("blue", "green", "s", 0), True),
        ("green", "r2", Traffic("blue", "green", "s", 0), False),
        ("green", "r2", Traffic("blue", "green", "s", 1), True),
        ("blue", "r1", Traffic("blue", "green", "s", 10_000), True),
        ("blue", "r1", Traffic("green", "green", "s", 0), False),
        ("blue", "r1", Traffic("blue", "green", "s", 0, {"blue": "r1"}), True),
        ("blue", "r1", Traffic("blue", "green", "s", 0, {"blue": "r3"}), False),
        ("green", "r2", Traffic("blue", "green", "s", 500, {"blue": "r1", "green": "r3"}), False),
        ("green", "r2", Traffic("blue", "green", "s", 500, {"blue": "r1"}), True),
        ("blue", "r1", None, True),
    ],
)
def test_a_member_is_an_instance_that_the_map_gives_traffic_to(
    slot: str, release: str, traffic: Traffic | None, member: bool
) -> None:
    """Of the named release, in the stable slot or a canary's with a cut; anyone where there is no map."""
    gate = TrafficGate(slot, release)
    assert not gate.member(), "before a map was looked for"
    gate.begin(traffic)
    assert gate.member() is member
    gate.update(Traffic(slot, slot, "s", 0, {slot: release}), now=1)
    assert gate.member()


@pytest.mark.parametrize(
    ("named", "takes"), [({}, True), ({"blue": ""}, True), ({"blue": "r1"}, True), ({"blue": "r2"}, False)]
)
def test_requests_are_for_who_may_be_of_the_named_release(named: dict[str, str], takes: bool) -> None:
    gate = TrafficGate("blue", "r1")
    assert gate.takes(), "a single instance without a fleet"
    gate.begin(Traffic("green", "green", "s", 0, named))
    assert gate.takes() is takes, "whether or not its slot has accounts"
    gate.release = "r2"
    assert gate.takes() is (named.get("blue") != "r1"), "after a reload"


def test_a_gate_without_a_map_answers_everything() -> None:
    gate = TrafficGate("blue", "r1")
    assert gate.current is None
    assert gate.answers("a", 0)
    gate.begin(Traffic("green", "blue", "s", 0))
    assert not gate.answers("a", 0)


def test_a_gained_account_is_answered_at_once_and_a_lost_one_a_second_longer() -> None:
    blue, green = TrafficGate("blue", "r1"), TrafficGate("green", "r2")
    before, after = Traffic("blue", "green", "s", 0), Traffic("blue", "green", "s", 10000)
    for gate in (blue, green):
        gate.begin(before)
        assert gate.update(after, now=100)
        assert not gate.update(after, now=100)
    assert green.answers("a", 100)
    assert blue.answers("a", 100.9)
    assert not blue.answers("a", 101.1)
    assert green.answers("a", 101.1)


def test_no_account_is_ever_without_an_answer_while_the_map_changes_fast() -> None:
    blue, green = TrafficGate("blue", "r1"), TrafficGate("green", "r2")
    for gate in (blue, green):
        gate.begin(Traffic("blue", "green", "s", 0))
    for step in range(50):
        now = step * 0.1
        for gate in (blue, green):
            gate.update(Traffic("blue", "green", "s", step % 3 * 5000), now)
        assert all(blue.answers(a, now) or green.answers(a, now) for a in ("a", "b", "c"))


def test_an_instance_that_runs_another_release_than_its_slot_has_no_accounts() -> None:
    left_behind, current = TrafficGate("blue", "r1"), TrafficGate("blue", "r3")
    for gate in (left_behind, current):
        gate.begin(Traffic("blue", "green", "none", 0, {"blue": "r3"}))
    assert not left_behind.answers("a", 0)
    assert current.answers("a", 0)


def test_only_the_table_moves_an_order() -> None:
    assert legal(State.ACCEPTED, State.DISPATCHED)
    assert not legal(State.FILLED, State.OPEN)
    assert {state for state, after in TRANSITIONS.items() if not after} == FINAL


@pytest.mark.parametrize(
    "text", ["BTC-USDT", "btc:1:1:1:1", "A:0:1:1:1", "A:0.00001:0.00001:1:1", "A:1:1:2:1", "A:1:1:1.5:2", ""]
)
def test_an_instrument_with_steps_that_do_not_fit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not SYMBOL|do not fit"):
        instruments_from(text)


def test_instruments_are_read_from_the_config() -> None:
    (found,) = instruments_from("BTC-USDT:0.01:0.00001:0.0001:100")
    assert found.text() == "1000000|1000|10000|10000000000"


def test_features_are_chosen_by_name_or_all_that_are_not_core() -> None:
    assert "order_entry" not in choose(None)[0]
    assert choose(["order_listing", "order_listing"]) == (["order_listing"], {})
    assert choose(["shadow_orders", "x", "order_entry"])[1].keys() == {"shadow_orders", "x", "order_entry"}


E8 = 10**8


def test_a_position_is_the_fold_of_its_fills() -> None:
    opened = apply_fill(Position(), Side.BUY, 2 * E8, 100 * E8, 5)
    assert (opened.quantity, opened.cost, opened.average_price) == (2 * E8, 200 * E8, 100 * E8)
    half = apply_fill(opened, Side.SELL, E8, 110 * E8, 5)
    assert (half.quantity, half.cost, half.realised, half.fees) == (E8, 100 * E8, 10 * E8, 10)
    flipped = apply_fill(half, Side.SELL, 3 * E8, 90 * E8, 0)
    assert (flipped.quantity, flipped.cost, flipped.realised) == (-2 * E8, -180 * E8, 0)
    closed = apply_fill(flipped, Side.BUY, 2 * E8, 80 * E8, 0)
    assert (closed.quantity, closed.cost, closed.realised, closed.average_price) == (0, 0, 20 * E8, 0)


def test_a_short_mirrors_a_long_to_the_last_digit() -> None:
    long = short = Position()
    for side, other, quantity, price in (
        (Side.BUY, Side.SELL, 3, 33333333),
        (Side.SELL, Side.BUY, 1, 77777777),
        (Side.BUY, Side.SELL, 7 * E8, 12345678),
        (Side.SELL, Side.BUY, 5 * E8 + 1, 12345679),
    ):
        long = apply_fill(long, side, quantity, price, 0)
        short = apply_fill(short, other, quantity, price, 0)
        assert (short.quantity, short.cost, short.realised) == (-long.quantity, -long.cost, -long.realised)


def test_an_account_is_worth_its_cash_and_what_its_positions_would_bring() -> None:
    account = account_from(
        {
            "cash": str(1000 * E8),
            "q:A": str(2 * E8), "c:A": str(200 * E8), "q:B": str(-E8), "c:B": str(-50 * E8),
            "bn:A": str(30 * E8), "bq:A": str(E8), "sn:C": str(7 * E8), "open": "2", "peak": str(1100 * E8),
            "latched": "1", "a_later_field": "x",
        }
    )  # fmt: skip
    marks = {"A": 110 * E8, "B": 60 * E8}
    assert account.unrealised(marks) == 10 * E8
    assert account.equity(marks) == 1010 * E8
    assert account.exposure(marks) == (220 + 30 + 60 + 7) * E8
    assert (account.open_orders, account.peak, account.latched) == (2, 1100 * E8, True)
    assert account.unrealised({"A": 1}) is None
    assert account.equity({"A": 1}) is None
    assert account.exposure({"B": 1}) is None
    closed = account_from({"cash": "5", "q:A": "0", "r:A": "7"})
    assert (closed.unrealised({}), closed.exposure({})) == (0, 0)


def test_a_replacement_keeps_what_it_does_not_name() -> None:
    replaced = order_from(
        "acc",
        OrderRequest(
            "a", "BTC-USDT", Side.SELL, OrderType.STOP_LIMIT, "1", "50000", "49000", True, TimeInForce.DAY
        ),
    )
    kept = replacement_from(ReplaceRequest("b"), replaced, 3 * money.SCALE)
    assert kept == msgspec.structs.replace(replaced, client_order_id="b", quantity=3 * money.SCALE)
    amended = replacement_from(ReplaceRequest("b", "2", "1", "3"), replaced, 0)
    assert (amended.quantity, amended.price, amended.stop_price) == (
        2 * money.SCALE,
        money.SCALE,
        3 * money.SCALE,
    )
    market = msgspec.structs.replace(
        replaced, type=OrderType.MARKET, price=None, stop_price=None, time_in_force=TimeInForce.IOC
    )
    assert replacement_from(ReplaceRequest("b"), market, 1).price is None


def test_an_order_is_not_replaced_by_itself() -> None:
    replaced = order_from("acc", OrderRequest("a", "BTC-USDT", Side.BUY, OrderType.MARKET, "1"))
    with pytest.raises(Malformed, match="client_order_id"):
        replacement_from(ReplaceRequest("a"), replaced, 1)


def test_a_canary_is_held_to_a_fraction_of_what_bounds_its_exposure_and_of_nothing_else() -> None:
    risk = config.parse("config.yaml", b"risk: {max_open_orders: 7, max_position_size: 0.00000003}", {}).risk
    whole, half = Limits.of(risk), Limits.of(risk, Decimal("0.5"))
    assert (whole.max_open_orders, half.max_open_orders) == (7, 3)
    assert (whole.max_position_size, half.max_position_size) == (3, 1)
    for name in ("max_order_notional", "max_leverage", "max_drawdown"):
        assert 0 < getattr(half, name) == getattr(whole, name) // 2
    bounded = {"max_open_orders", "max_position_size", "max_order_notional", "max_leverage", "max_drawdown"}
    for name in set(Limits.__struct_fields__) - bounded:
        assert getattr(half, name) == getattr(whole, name)
    assert Limits.of(risk, Decimal("0.01")).max_open_orders == 1
    assert whole.arguments()[:3] == (3, whole.max_order_notional, 7)


def test_the_script_takes_the_limits_in_their_order_and_answers_with_the_codes() -> None:
    """Which is what the header of admit.lua says: 14 position size, 15 order notional, and so on."""
    text = (resources.files("trading_bot.adapters.redis") / "admit.lua").read_text(encoding="utf-8")
    limits = text.partition("limits (see")[2].partition("decide only")[0]
    numbers = [int(number) for number in re.findall(r"(?<=[ -])(\d\d) [a-z]", limits)]
    assert numbers[: len(Limits.__struct_fields__)] == list(range(14, 14 + len(Limits.__struct_fields__)))
    names, values = re.findall(r"^local ([A-Z, ]+) = ([0-9, ]+)$", text, re.MULTILINE)[0]
    codes = dict(zip(names.split(", "), map(int, values.split(", ")), strict=True))
    assert len(codes) == 5
    assert codes.items() <= {code.name: code.value for code in Code}.items()


def test_differences_are_counted_by_kind_with_a_few_examples_and_never_grow_without_bound() -> None:
    found = Differences()
    refused = Decision("refused", "max_leverage", "1", "2")
    for n in range(5):
        found.add("a", f"twice-{n}", "limit", "buy", Decision("accepted"), refused)
    for n in range(GROUPS + 5):
        found.add("a", f"once-{n}", "limit", "buy", Decision("accepted"), Decision("refused", f"rule{n}"))
    shown = found.shown()
    assert found.count == GROUPS + 10
    assert len(shown) == GROUPS
    assert shown[0]["count"] == 5
    assert [example["client_order_id"] for example in shown[0]["examples"]] == [
        f"twice-{n}" for n in range(EXAMPLES)
    ]
    assert shown[0]["stable"] == {"outcome": "accepted", "rule": ""}
    assert shown[0]["canary"] == {"outcome": "refused", "rule": "max_leverage"}
    assert shown[0]["examples"][0]["canary"]["limit"] == "1"


def test_no_order_takes_the_name_of_one_of_the_apis_paths() -> None:
    for name in RESERVED:
        with pytest.raises(Malformed) as caught:
            order_from("a", OrderRequest(name, "BTC-USDT", Side.BUY, OrderType.MARKET, "1"))
        assert list(caught.value.errors) == ["client_order_id"]


@pytest.mark.parametrize(
    ("rule", "value", "shown"),
    [
        ("max_leverage", "150000000", "1.5"),
        ("max_leverage", "200000000/100000000", "2.000000"),
        ("max_leverage", "1/0", "undefined"),
        ("max_leverage", "1/-1", "undefined"),
        ("price_collar", "9000000000..11000000000", "90..110"),
        ("max_order_notional", "beyond what can be held", "beyond what can be held"),
        ("mark_missing", "none", "none"),
    ],
)
def test_a_refusal_shows_amounts_and_ratios_as_people_write_them(rule: str, value: str, shown: str) -> None:
    assert refusal_from(rule, "0", value).value == shown
