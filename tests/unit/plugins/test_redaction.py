"""What leaves the fleet has no secret in it."""

from __future__ import annotations

import base64

import pytest
from ansible.module_utils.redaction import MASK, SHORTEST, redacted, redacted_values, spellings

SECRET = 'x9/kT+q"2Zw'


@pytest.mark.parametrize(
    "text",
    [
        f"password is {SECRET}",
        '{"auth": "x9/kT+q\\"2Zw"}',
        "redis://trading_bot:x9%2FkT%2Bq%222Zw@10.0.0.1:6379/0",
        "Authorization: Basic " + base64.b64encode(SECRET.encode()).decode(),
        "blob " + base64.b64encode(SECRET.encode()).decode(),
    ],
)
def test_a_known_secret_is_gone_however_it_is_spelt(text: str) -> None:
    cleaned = redacted(text, [SECRET + "\n"])
    assert MASK in cleaned
    assert not [spelling for spelling in spellings([SECRET]) if spelling in cleaned]


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("redis://trading_bot:hunter2hunter2@10.0.0.1:6379/0 refused", "hunter2hunter2"),
        ("nats://:s3cr3t-word@data1:4222", "s3cr3t-word"),
        ("Authorization: Bearer abc.def-ghi_jkl", "abc.def-ghi_jkl"),
        ("redis_password: Vq8Xw0Pp", "Vq8Xw0Pp"),
        ('{"api_token": "Vq8Xw0Pp", "name": "desk"}', "Vq8Xw0Pp"),
        ("redis-cli --user operator --pass Vq8Xw0Pp ping", "Vq8Xw0Pp"),
        ("AGE-SECRET-KEY-1QQQQQQQQQQQQQQQQQQQQQQQQQQQQ", "QQQQQQQQ"),
        ("seed SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY", "SUACSSL3UAHUDXKF"),
        ("$2a$08$DU8T8BrwLfsJnUCuQoXbyuJVLBJjjwYXyXGE5nVvM5dC2g1JnSJBe", "DU8T8BrwLfsJ"),
    ],
)
def test_what_looks_like_a_secret_is_gone_and_the_rest_stays(text: str, secret: str) -> None:
    cleaned = redacted(text)
    assert secret not in cleaned
    assert MASK in cleaned


def test_a_private_key_is_gone_also_where_its_end_was_cut_off() -> None:
    block = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIB\n-----END EC PRIVATE KEY-----"
    assert redacted(f"a\n{block}\nb") == f"a\n-----{MASK} (a private key)-----\nb"
    assert "MHcCAQEEIB" not in redacted(block[:45])


def test_a_certificate_and_an_ordinary_line_stay_as_they_are() -> None:
    text = "WRONGPASS invalid username-password pair or user is disabled.\n10.0.0.1 GET /api/orders 201"
    text += "\n-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    assert redacted(text, ["", " ", "abc"]) == text
    assert len("abc") < SHORTEST


def test_of_a_structure_the_texts_are_redacted_and_all_else_stays() -> None:
    value = {"error": "WRONGPASS hunter2hunter2", "rows": [{"port": 6379, "ok": None}, ("hunter2hunter2",)]}
    assert redacted_values(value, ["hunter2hunter2"]) == {
        "error": f"WRONGPASS {MASK}",
        "rows": [{"port": 6379, "ok": None}, [MASK]],
    }
