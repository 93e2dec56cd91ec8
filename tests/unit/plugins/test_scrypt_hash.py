"""The filter that hashes the page's passwords."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

PATH = Path(__file__).resolve().parents[3] / "plugins/filter/scrypt_hash.py"


@pytest.fixture(scope="module")
def scrypt_hash() -> Any:
    spec = importlib.util.spec_from_file_location("scrypt_hash", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.scrypt_hash


def test_the_page_takes_its_hashes_and_no_other_password(scrypt_hash: Any) -> None:
    from trading_bot.page.login import fits, is_hash

    found = scrypt_hash("a-password-for-tests", "fleet_page/desk")
    assert is_hash(found)
    assert fits("a-password-for-tests", found)
    assert not fits("another-password", found)


def test_a_hash_is_the_same_on_every_run_and_another_for_another_user(scrypt_hash: Any) -> None:
    found = [scrypt_hash("a-password-for-tests", identity) for identity in ("a", "a", "b")]
    assert found[0] == found[1]
    assert found[0].split(":")[4] != found[2].split(":")[4]


def test_a_short_password_is_refused(scrypt_hash: Any) -> None:
    with pytest.raises(AnsibleFilterError, match="12 characters or more"):
        scrypt_hash("short", "a")
