"""Takes what waits in the store to its channels, calls who has to be called, and listens to the ledger's
alerts."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import random
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping

from trading_bot.adapters.redis.connection import Client
from trading_bot.errors import Malformed, TradingError
from trading_bot.notify.channels import Channel, NotNow, Refused, Unknown
from trading_bot.notify.notice import Notice, from_ledger
from trading_bot.notify.settings import Contacts, Settings
from trading_bot.notify.store import CALL, Batch, Plan, Store
from trading_bot.notify.text import Message
from trading_bot.ports import Log

INSTEAD = {"slack": "email", "email": "slack", "sms": "email", "call": "sms"}
"""Where a message goes that its channel will never take."""
_IDLE = 1.0
_LEDGER = "ledger"


class Acknowledgements:
    """Links that need no login: a message's name with a signature."""

    def __init__(self, key: bytes, url: str) -> None:
        self._key = key
        self._url = url

    def link(self, message: str) -> str:
        return f"{self._url}/ack/{message}.{self._signature(message)}"

    def message(self, signed: str) -> str | None:
        """The message whose link this is the end of; None where the signature is another."""
        message, _, signature = signed.partition(".")
        expected = self._signature(message)
        return message if hmac.compare_digest(signature.encode(errors="replace"), expected.encode()) else None

    def _signature(self, message: str) -> str:
        return urlsafe_b64encode(hmac.digest(self._key, message.encode(), hashlib.sha256)[:12]).decode()


class Rate:
    """So many a minute, and at first as many at once as come in six seconds."""

    def __init__(self, per_minute: float) -> None:
        self._each = 60 / per_minute
        self._most = max(1.0, per_minute / 10)
        self._left = self._most
        self._at = time.monotonic()

    def wait(self) -> float:
        """Seconds until the next may go; 0 counts it as gone."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) / self._each)
        self._at = now
        if self._left < 1:
            return (1 - self._left) * self._each
        self._left -= 1
        return 0.0


class Delivery:
    """The notifier's work. ``channels`` holds those that are set up."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        channels: Mapping[str, Channel],
        links: Acknowledgements,
        log: Log,
    ) -> None:
        self._settings = settings
        self._store = store
        self._channels = channels
        self._links = links
        self._log = log
        self._wakes = {name: asyncio.Event() for name in channels}
        self.failed: dict[str, int] = dict.fromkeys(channels, 0)
        self.refused: dict[str, int] = dict.fromkeys(channels, 0)
        self.confirmed: dict[str, int] = dict.fromkeys(channels, 0)
        self.malformed = 0

    # what comes in

    def take(self, notices: list[Notice], mark: tuple[str, str] | None = None) -> int:
        """Keep notices on disk and begin to tell of them; gives how many are news."""
        news = self._store.take(notices, self.plan, mark)
        if news:
            self._log(
                "notices",
                taken=len(notices),
                news=news,
                rules=sorted({notice.rule for notice in notices})[:20],
            )
            self.wake()
        return news

    def plan(self, notice: Notice) -> Plan:
        """Whom a notice goes to: the first contacts, on the channels of its severity; the phone comes
        last."""
        routes = self._settings.routes[notice.severity]
        contacts = self._settings.contacts[:1]
        calls = CALL in routes and any(each.call for each in self._settings.contacts)
        return Plan(
            [pair for each in contacts for pair in _of(each, [name for name in routes if name != CALL])],
            self._settings.calls.after
            if calls or (notice.severity == "critical" and len(self._settings.contacts) > 1)
            else None,
        )

    def wake(self) -> None:
        for wake in self._wakes.values():
            wake.set()

    # what goes out

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for name in self._channels:
                tasks.create_task(self._serve(name))
            tasks.create_task(self._look_around())

    async def _serve(self, name: str) -> None:
        channel, wake = self._channels[name], self._wakes[name]
        rate = Rate(self._settings.per_minute.get(name, 30))
        while True:
            due = self._store.next_due(name)
            wait = _IDLE if due is None else due - time.time()
            if wait > 0:
                wake.clear()
                try:
                    async with asyncio.timeout(min(wait, _IDLE)):
                        await wake.wait()
                except TimeoutError:
                    pass
                continue
            # What comes while this waits goes out with it.
            pause = rate.wait()
            if pause > 0:
                await asyncio.sleep(pause)
                continue
            if (batch := self._store.begin(name, channel.fits)) is not None:
                await self._send(name, channel, batch)

    async def _send(self, name: str, channel: Channel, batch: Batch) -> None:
        message = Message(batch.told, batch.message, self._links.link(batch.message), batch.doubtful)
        about = {
            "channel": name,
            "message": batch.message,
            "notices": len(batch.told),
            "attempt": batch.attempts,
        }
        try:
            await asyncio.to_thread(channel.send, batch, message)
        except Refused as error:
            instead = self._instead(name)
            self._store.refused(batch, str(error), instead)
            self.failed[name] += 1
            self.refused[name] += 1
            self._log(
                "refused", **about, error=str(error), instead=sorted({channel for channel, _ in instead})
            )
            self.wake()
        except (NotNow, Unknown) as error:
            after = error.after if isinstance(error, NotNow) else 0.0
            wait = max(after, self._backoff(batch.attempts))
            # Once in doubt, always: a later "not now" does not say that the first try failed.
            doubtful = batch.doubtful or isinstance(error, Unknown)
            self._store.later(batch, str(error), wait, doubtful=doubtful)
            self.failed[name] += 1
            self._log("not_sent", **about, error=str(error), doubtful=doubtful, again_in=round(wait, 1))
        except Exception as error:
            # A defect of ours or of a library must not stop the channel, and nothing may be lost by it.
            self._store.later(batch, repr(error), self._backoff(batch.attempts), doubtful=True)
            self.failed[name] += 1
            self._log("not_sent", **about, error=repr(error), doubtful=True)
        else:
            self._store.sent(batch)
            self.confirmed[name] += 1
            self._log("sent", **about, rules=sorted({told.notice.rule for told in batch.told})[:20])

    def _backoff(self, attempts: int) -> float:
        longest = min(self._settings.retry_longest, self._settings.retry_first * 2.0 ** min(attempts - 1, 20))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, no secret

    def _instead(self, name: str) -> list[tuple[str, str]]:
        return [
            pair
            for each in self._settings.contacts
            for pair in _of(each, [INSTEAD[name]])
            if pair[0] in self._channels
        ]

    # who is called, and what time changes

    async def _look_around(self) -> None:
        while True:
            for id, level, calls in self._store.to_call():
                self._escalate(id, level, calls)
            if self._store.unsilence(self.plan):
                self.wake()
            self._store.forget()
            await asyncio.sleep(_IDLE / 2)

    def _escalate(self, id: int, level: int, calls: int) -> None:
        """Call the list that it is at; after ``times`` calls go to the next one, which is told on all
        channels first."""
        settings, contacts = self._settings.calls, self._settings.contacts
        rounds = settings.times if contacts[level].call else 0
        if calls - sum(settings.times if each.call else 0 for each in contacts[:level]) < rounds:
            recipients = _of(contacts[level], [CALL])
            self._store.escalate(id, level, calls + 1, settings.every, recipients)
            self._log("calling", notice=id, contacts=contacts[level].name, call=calls + 1)
        elif level + 1 < len(contacts):
            recipients = _of(
                contacts[level + 1], [name for name in self._settings.routes["critical"] if name != CALL]
            )
            self._store.escalate(id, level + 1, calls, settings.after, recipients)
            self._log("escalated", notice=id, contacts=contacts[level + 1].name)
        else:
            self._store.escalate(id, level, calls, None, [])
            self._log("nobody_acknowledged", notice=id, calls=calls)
        self.wake()

    # the ledger's alerts

    async def follow(self, client: Client, channel: str) -> None:
        """Read the stream of the ledger's alerts from where it was left, for ever."""
        stream = f"{channel}:history"
        while True:
            try:
                await client.usable()
                last = self._store.mark(_LEDGER)
                if last is None:
                    # A new notifier tells of what comes from now on.
                    newest = await client.call("XREVRANGE", stream, "+", "-", "COUNT", 1)
                    last = newest[0][0].decode() if newest else "0-0"
                    self.take([], (_LEDGER, last))
                found = await client.call("XREAD", "COUNT", 100, "BLOCK", 2000, "STREAMS", stream, last)
                for _, entries in found or []:
                    self._heard(entries)
            except TradingError as error:
                self._log("ledger_away", error=str(error))
                await asyncio.sleep(_IDLE)

    def _heard(self, entries: list[tuple[bytes, list[bytes]]]) -> None:
        notices = []
        for id, fields in entries:
            line = dict(zip(fields[::2], fields[1::2], strict=False)).get(b"json", b"")
            try:
                notices.append(from_ledger(id.decode(), line))
            except Malformed as error:
                self.malformed += 1
                self._log("malformed", where="ledger", entry=id.decode(), error=str(error))
        self.take(notices, (_LEDGER, entries[-1][0].decode()))


def _of(contacts: Contacts, channels: list[str]) -> list[tuple[str, str]]:
    return [(name, recipient) for name in channels for recipient in getattr(contacts, name)]
