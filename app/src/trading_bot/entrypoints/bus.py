"""Orders that come as NATS requests on ``trading.orders.submit.<account>``.

Every slot hears every request; the one that the traffic map gives the account answers it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import traceback

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from trading_bot.domain.order import valid_account
from trading_bot.domain.traffic import TrafficGate
from trading_bot.entrypoints import answers
from trading_bot.entrypoints.answers import Answer
from trading_bot.errors import Malformed, TradingError
from trading_bot.ports import Access, Log
from trading_bot.service.submit import OrderDesk


class BusApi:
    """The body is that of ``POST /api/orders``, the ``Authorization`` header as there. The reply's body is
    that of the HTTP answer, its ``Http-Status`` header the HTTP status (``Status`` is NATS's own)."""

    def __init__(self, gate: TrafficGate, desk: OrderDesk, access: Access, prefix: str, log: Log) -> None:
        self._gate = gate
        self._desk = desk
        self._access = access
        self._prefix = prefix
        self._log = log
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    async def handle(self, message: Msg) -> None:
        account = message.subject.rpartition(".")[2]
        if message.reply and self._gate.answers(account, time.monotonic()):
            task = asyncio.create_task(self._serve(account, message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait for the answers that are being worked out."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, account: str, message: Msg) -> None:
        answer = await self._answer(account, message)
        headers = {"Http-Status": str(answer.status)}
        if answer.retry_after is not None:
            headers["Retry-After"] = str(answer.retry_after)
        try:
            await message._client.publish(message.reply, answer.body, headers=headers)
        except NatsError as error:
            self._log("reply", account=account, outcome="lost", reason=repr(error))

    async def _answer(self, account: str, message: Msg) -> Answer:
        request_id = f"{self._prefix}-n{next(self._numbers)}"
        try:
            if not valid_account(account):
                raise Malformed({"account": "1 to 64 of A-Z a-z 0-9 _ -"})
            authorization = (message.headers or {}).get("Authorization", "")
            self._access.require(authorization, "trade", account)
            order, admission = await self._desk.submit(account, message.data, "nats", request_id)
            return answers.of_admission(order, admission)
        except TradingError as error:
            answer = answers.of_error(error)
            if answer.status == 500:
                self._log("defect", request=request_id, error=repr(error))
            return answer
        except Exception as error:
            self._log("defect", request=request_id, error=repr(error), trace=traceback.format_exc())
            return answers.internal()
