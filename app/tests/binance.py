"""Binance's spot protocol on a free port, as ccxt speaks it: signatures, clock and ids are checked, and
things go wrong on demand. Like the real one it takes the client order id of a *finished* order again, for a
second order."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import threading
import time
from collections import Counter
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

KEY, SECRET = "the-key", "the-secret"
PRICE = Decimal(50_000)
LATE_SECONDS = 3.0
"""Longer than anybody waits in a test."""


class Binance:
    """``faults`` maps a request such as ``POST order`` to what goes wrong with each of them."""

    def __init__(self) -> None:
        self.orders: list[dict[str, Any]] = []
        self.trades: list[dict[str, Any]] = []
        self.faults: dict[str, str] = {}
        self.ahead_ms = 0
        self.secret = SECRET
        self.requests: Counter[str] = Counter()
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/api/v3/{what:.+}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def _now(self) -> int:
        return int(time.time() * 1000) + self.ahead_ms

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        name = f"{request.method} {request.match_info['what']}"
        self.requests[name] += 1
        text = await request.text() or request.query_string
        fault = self.faults.get(name, "")
        if fault == "late":
            await asyncio.sleep(LATE_SECONDS)
        if fault == "limit":
            return web.json_response(
                {"code": -1003, "msg": "Too many requests."}, status=429, headers={"Retry-After": "1"}
            )
        if fault == "broken before":
            return web.json_response({"code": -2010, "msg": "an unreliable word"}, status=503)
        status, answer = self._answer(request, name, text)
        if fault == "silent after":
            await asyncio.sleep(LATE_SECONDS)
        if fault == "broken after":
            return web.json_response({"code": -2010, "msg": "an unreliable word"}, status=502)
        if fault == "cut off after":
            assert request.transport is not None
            request.transport.close()
        if fault == "unknown after":
            return web.json_response({"code": -1007, "msg": "Send status unknown."}, status=408)
        return web.json_response(answer, status=status)

    def _answer(self, request: web.Request, name: str, text: str) -> tuple[int, Any]:
        if name == "GET time":
            return 200, {"serverTime": self._now()}
        if name == "GET exchangeInfo":
            return 200, EXCHANGE_INFO
        if name == "GET ticker/24hr":
            price = f"{PRICE:.8f}"
            return 200, [{"symbol": "BTCUSDT", "lastPrice": price, "closeTime": self._now()}]
        refused = self._refused(request, text)
        if refused:
            return 400, {"code": refused[0], "msg": refused[1]}
        given = dict(parse_qsl(text))
        if name == "GET account":
            return 200, {"balances": [], "canTrade": True, "accountType": "SPOT", "updateTime": 1}
        if name == "POST order":
            return self._new(given)
        if name == "GET myTrades":
            return 200, [t for t in self.trades if str(t["orderId"]) == given["orderId"]]
        found = next(
            (o for o in reversed(self.orders) if o["clientOrderId"] == given["origClientOrderId"]), None
        )
        if name == "GET order":
            return (200, found) if found else (400, {"code": -2013, "msg": "Order does not exist."})
        if name == "DELETE order":
            if found is None or found["status"] not in ("NEW", "PARTIALLY_FILLED"):
                return 400, {"code": -2011, "msg": "Unknown order sent."}
            found["status"] = "CANCELED"
            return 200, found
        return 404, {"code": -1, "msg": name}

    def _refused(self, request: web.Request, text: str) -> tuple[int, str] | None:
        signed, _, signature = text.rpartition("&signature=")
        given = dict(parse_qsl(signed))
        wanted = hmac.new(self.secret.encode(), signed.encode(), hashlib.sha256).hexdigest()
        if request.headers.get("X-MBX-APIKEY") != KEY:
            return -2015, "Invalid API-key, IP, or permissions for action."
        if not hmac.compare_digest(signature, wanted):
            return -1022, "Signature for this request is not valid."
        sent, window, now = int(given["timestamp"]), int(given.get("recvWindow", 5000)), self._now()
        if sent >= now + 1000 or now - sent > window:
            return -1021, "Timestamp for this request is outside of the recvWindow."
        return None

    def _new(self, given: dict[str, str]) -> tuple[int, Any]:
        id = given["newClientOrderId"]
        if len(id) > 36 or any(o["clientOrderId"] == id and o["status"] == "NEW" for o in self.orders):
            return 400, {"code": -2010, "msg": "Duplicate order sent."}
        quantity = Decimal(given["quantity"])
        if quantity > 9:
            return 400, {"code": -2010, "msg": "Account has insufficient balance for requested action."}
        if quantity % Decimal("0.00001"):
            return 400, {"code": -1013, "msg": "Filter failure: LOT_SIZE"}
        price = Decimal(given.get("price", "0"))
        crosses = given["type"] == "MARKET" or (price >= PRICE if given["side"] == "BUY" else price <= PRICE)
        now = self._now()
        order = {
            "symbol": given["symbol"], "orderId": len(self.orders) + 1, "clientOrderId": id,
            "transactTime": now, "time": now, "updateTime": now, "price": str(price),
            "origQty": given["quantity"], "executedQty": given["quantity"] if crosses else "0.00000000",
            "cummulativeQuoteQty": str(quantity * PRICE) if crosses else "0.00000000",
            "status": "FILLED" if crosses else "EXPIRED" if given.get("timeInForce") == "IOC" else "NEW",
            "timeInForce": given.get("timeInForce", "GTC"), "type": given["type"], "side": given["side"],
            "isWorking": True, "fills": [],
        }  # fmt: skip
        self.orders.append(order)
        for part in (quantity / 4, quantity * 3 / 4) if crosses else ():
            buys = given["side"] == "BUY"
            fee = part / 1000 if buys else part * PRICE / 1000
            self.trades.append(
                {
                    "symbol": given["symbol"], "id": len(self.trades) + 1, "orderId": order["orderId"],
                    "price": f"{PRICE:.8f}", "qty": f"{part:.8f}", "quoteQty": f"{part * PRICE:.8f}",
                    "commission": f"{fee:.8f}", "commissionAsset": "BTC" if buys else "USDT", "time": now,
                    "isBuyer": buys, "isMaker": False, "isBestMatch": True,
                }
            )  # fmt: skip
        return 200, order


EXCHANGE_INFO = {
    "timezone": "UTC", "serverTime": 1, "rateLimits": [], "exchangeFilters": [],
    "symbols": [
        {
            "symbol": "BTCUSDT", "status": "TRADING", "baseAsset": "BTC", "baseAssetPrecision": 8,
            "quoteAsset": "USDT", "quotePrecision": 8, "quoteAssetPrecision": 8,
            "baseCommissionPrecision": 8, "quoteCommissionPrecision": 8,
            "orderTypes": ["LIMIT", "MARKET"], "isSpotTradingAllowed": True, "isMarginTradingAllowed": False,
            "permissions": ["SPOT"], "permissionSets": [["SPOT"]],
            "filters": [
                {"filterType": "PRICE_FILTER", "minPrice": "0.01000000", "maxPrice": "1000000.00000000",
                 "tickSize": "0.01000000"},
                {"filterType": "LOT_SIZE", "minQty": "0.00001000", "maxQty": "9000.00000000",
                 "stepSize": "0.00001000"},
                {"filterType": "NOTIONAL", "minNotional": "5.00000000"},
            ],
        }
    ],
}  # fmt: skip
