"""``ports.Venue`` over the paper exchange's HTTP API."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from trading_bot.adapters.http_client import HttpClient
from trading_bot.domain import money
from trading_bot.domain.instrument import Instrument
from trading_bot.domain.lifecycle import State
from trading_bot.domain.order import Order
from trading_bot.errors import VenueRefused, VenueTimeout
from trading_bot.ports import Fill, Report


class PaperVenueClient:
    def __init__(self, url: str, timeout: float) -> None:
        self._http = HttpClient(url, {"Content-Type": "application/json"})
        self._timeout = timeout

    @property
    def name(self) -> str:
        return "paper"

    async def submit(self, order: Order, deadline_ms: int) -> Report:
        body = {
            "id": venue_id(order),
            "symbol": order.symbol,
            "side": order.side.value,
            "type": order.type.value,
            "quantity": money.show(order.quantity),
            "price": None if order.price is None else money.show(order.price),
            "stop_price": None if order.stop_price is None else money.show(order.stop_price),
            "time_in_force": order.time_in_force.value,
            "deadline": deadline_ms,
        }
        status, answer = await self._call("POST", "/v1/orders", msgspec.json.encode(body))
        if status == 200:
            return report_from(answer)
        if status in (400, 409, 422):
            raise VenueRefused(str(answer.get("error", status)))
        raise VenueTimeout(f"the venue answered {status}: {answer}")

    async def query(self, order: Order) -> Report | None:
        status, answer = await self._call("GET", f"/v1/orders/{venue_id(order)}")
        return self._found(status, answer)

    async def cancel(self, order: Order) -> Report | None:
        status, answer = await self._call("DELETE", f"/v1/orders/{venue_id(order)}")
        return self._found(status, answer)

    async def reports(self, after: int, wait: float) -> tuple[int, list[Report]]:
        path = f"/v1/reports?after={after}&wait={round(wait * 1000)}"
        status, answer = await self._call("GET", path, extra=wait)
        if status != 200:
            raise VenueTimeout(f"the venue answered {status}")
        return int(answer["last"]), [report_from(report) for report in answer["reports"]]

    async def head(self) -> int:
        status, answer = await self._call("GET", "/v1/head")
        if status != 200:
            raise VenueTimeout(f"the venue answered {status}")
        return int(answer["last"])

    async def prices(self) -> dict[str, tuple[int, int]]:
        """None: they are published on the bus."""
        return {}

    async def instruments(self) -> list[Instrument]:
        status, answer = await self._call("GET", "/v1/instruments")
        if status != 200:
            raise VenueTimeout(f"the venue answered {status}")
        return [
            Instrument(i["symbol"], *(money.parse(i[k]) or 0 for k in ("tick", "lot", "minimum", "maximum")))
            for i in answer
        ]

    async def close(self) -> None:
        self._http.close()

    async def _call(self, method: str, path: str, body: bytes = b"", extra: float = 0) -> tuple[int, Any]:
        try:
            async with asyncio.timeout(self._timeout + extra):
                status, data = await self._http.request(method, path, body)
            return status, msgspec.json.decode(data)
        except TimeoutError:
            raise VenueTimeout(f"no answer within {self._timeout:g} s") from None
        except (OSError, msgspec.DecodeError) as error:
            raise VenueTimeout(f"{type(error).__name__}: {error}") from None

    @staticmethod
    def _found(status: int, answer: Any) -> Report | None:
        if status == 200:
            return report_from(answer)
        if status == 404:
            return None
        raise VenueTimeout(f"the venue answered {status}: {answer}")


def venue_id(order: Order) -> str:
    """Unique over all accounts; an account has no dot, so the first one divides."""
    return f"{order.account}.{order.client_order_id}"


def report_from(body: dict[str, Any]) -> Report:
    account, _, client_order_id = body["id"].partition(".")
    return Report(
        account,
        client_order_id,
        State(body["state"]) if body["state"] else None,
        money.parse(body["filled"]) if body["filled"] else None,
        tuple(
            Fill(
                fill["trade"],
                money.parse(fill["quantity"]) or 0,
                money.parse(fill["price"]) or 0,
                money.parse(fill["fee"]) or 0,
                fill["at"],
            )
            for fill in body["fills"]
        ),
        body["reason"],
    )
