"""Prometheus and Alertmanager, asked over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec

from trading_bot.adapters.http_client import HttpClient
from trading_bot.errors import Unavailable

Series = list[dict[str, Any]]
DEADLINE = 10.0


class Source:
    """A few questions at a time to one server. Raises Unavailable, with what went wrong."""

    def __init__(self, name: str, url: str) -> None:
        self._name = name
        self._client = HttpClient(url)
        self._turn = asyncio.Semaphore(4)

    async def _ask(self, method: str, path: str, form: Mapping[str, str]) -> Any:
        body, kind = urlencode(form).encode(), "Content-Type: application/x-www-form-urlencoded\r\n"
        try:
            async with self._turn, asyncio.timeout(DEADLINE):
                status, answer = await self._client.request(method, path, body, kind if body else "")
        except TimeoutError:
            raise Unavailable(self._name, f"no answer within {DEADLINE:.0f} s") from None
        except OSError as error:
            raise Unavailable(self._name, error.strerror or str(error)) from None
        try:
            found = msgspec.json.decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Unavailable(self._name, f"status {status}, and no JSON") from None
        if status != 200:
            raise Unavailable(self._name, f"status {status}: {str(_member(found, 'error'))[:200]}")
        return found


class Prometheus(Source):
    async def instant(self, query: str) -> Series:
        return await self._series("/api/v1/query", {"query": query})

    async def over(self, query: str, times: Sequence[int]) -> Series:
        """``times``: first, last and step, in seconds since 1970."""
        first, last, step = map(str, times)
        return await self._series(
            "/api/v1/query_range", {"query": query, "start": first, "end": last, "step": step}
        )

    async def alerts(self) -> list[dict[str, Any]]:
        """Alerts that are pending or firing, as Prometheus tells them."""
        return _listed(_member(_member(await self._ask("GET", "/api/v1/alerts", {}), "data"), "alerts"))

    async def _series(self, path: str, form: Mapping[str, str]) -> Series:
        return _listed(_member(_member(await self._ask("POST", path, form), "data"), "result"))


class Alertmanager(Source):
    async def quiet(self) -> list[dict[str, str]]:
        """The labels of alerts that are silenced or inhibited."""
        found = _listed(await self._ask("GET", "/api/v2/alerts?active=false", {}))
        return [each["labels"] for each in found if isinstance(each.get("labels"), dict)]


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _listed(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
