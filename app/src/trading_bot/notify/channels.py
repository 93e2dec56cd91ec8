"""How a message leaves: by mail, to Slack, as an SMS, as a phone call. Each waits for the other side's
yes, and says which it was: sent, refused for good, not now, or unknown. These calls block, so they run in
a thread."""

from __future__ import annotations

import smtplib
import socket
import ssl
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any, Protocol

from trading_bot.config import read_secret
from trading_bot.notify.settings import Mail, Slack, Twilio
from trading_bot.notify.store import Batch
from trading_bot.notify.text import MOST, Message, Writer

_CLOCKS_APART = 120.0
"""Seconds by which a provider's clock may differ from ours."""


class Refused(Exception):
    """The other side will never take this message."""


class NotNow(Exception):
    """The other side has not taken it; it may be tried again, not before so many seconds."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        self.after = after
        super().__init__(reason)


class Unknown(Exception):
    """Nobody knows whether the other side took it."""


class Channel(Protocol):
    """``send`` returns once the other side has confirmed, and raises Refused, NotNow or Unknown. A message
    that is doubtful may have arrived before: ``send`` finds out, or sends it in a way that its reader can
    tell."""

    def send(self, batch: Batch, message: Message) -> None: ...

    def fits(self, told: Any) -> int:
        """How many of these one message has room for."""
        ...


class MailChannel:
    """SMTP. A message has the same Message-ID whenever it is sent, so that a mail server or reader drops a
    second copy."""

    def __init__(self, settings: Mail, writer: Writer) -> None:
        self._settings = settings
        self._writer = writer

    def fits(self, told: Any) -> int:
        return min(len(told), MOST)

    def message(self, batch: Batch, message: Message) -> EmailMessage:
        """The mail to one recipient."""
        written = self._writer.mail(message)
        mail = EmailMessage()
        mail["Subject"] = written.subject
        mail["From"] = Address(addr_spec=self._settings.sender)
        mail["To"] = Address(addr_spec=batch.recipient)
        mail["Date"] = format_datetime(datetime.fromtimestamp(batch.at, UTC))
        mail["Message-ID"] = f"<{batch.message}.{self._settings.sender}>"
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(written.plain)
        mail.add_alternative(written.html, subtype="html")
        return mail

    def send(self, batch: Batch, message: Message) -> None:
        settings = self._settings
        mail = self.message(batch, message)
        try:
            server = self._connect()
        except smtplib.SMTPAuthenticationError as error:
            # Whoever reads the logs mends it; the message waits.
            raise NotNow(f"login refused: {error.smtp_code}", 60) from None
        except (OSError, smtplib.SMTPException) as error:
            raise NotNow(_said(error)) from None
        with server:
            try:
                server.send_message(mail, settings.sender, [batch.recipient])
            except smtplib.SMTPRecipientsRefused as error:
                code, text = error.recipients[batch.recipient]
                raise _by_code(code, text) from None
            except smtplib.SMTPResponseException as error:
                raise _by_code(error.smtp_code, error.smtp_error) from None
            except (OSError, smtplib.SMTPException) as error:
                # It may have been taken: the connection ended before the answer came.
                raise Unknown(_said(error)) from None

    def _connect(self) -> smtplib.SMTP:
        settings = self._settings
        context = ssl.create_default_context(cafile=settings.ca_file or None)
        if settings.security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                settings.host, settings.port, timeout=settings.timeout, context=context
            )
        else:
            server = smtplib.SMTP(settings.host, settings.port, timeout=settings.timeout)
        try:
            if settings.security == "starttls":
                server.starttls(context=context)
            if settings.user:
                server.login(settings.user, read_secret(settings.password_file))
        except BaseException:
            server.close()
            raise
        return server


def _by_code(code: int, text: bytes | str) -> Exception:
    said = f"{code} {text.decode(errors='replace') if isinstance(text, bytes) else text}"
    return Refused(said) if 500 <= code < 600 else NotNow(said)


class SlackChannel:
    """Incoming webhooks, which cannot be asked what they took: a doubtful message is sent again and says
    so."""

    def __init__(self, settings: Slack, writer: Writer) -> None:
        self._settings = settings
        self._writer = writer

    def fits(self, told: Any) -> int:
        return min(len(told), MOST // 2)

    def send(self, batch: Batch, message: Message) -> None:
        from urllib.error import HTTPError

        from slack_sdk.webhook import WebhookClient

        payload = self._writer.slack(message)
        url = read_secret(self._settings.webhooks[batch.recipient])
        try:
            answer = WebhookClient(url, timeout=int(self._settings.timeout), retry_handlers=[]).send_dict(
                payload
            )
        except HTTPError as error:
            raise NotNow(f"{error.code}") from None
        except (ConnectionRefusedError, socket.gaierror) as error:
            raise NotNow(_said(error)) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, (ConnectionRefusedError, socket.gaierror, ssl.SSLError)):
                raise NotNow(_said(reason)) from None
            raise Unknown(_said(error)) from None
        except Exception as error:  # its own, of an answer that is none
            raise Unknown(_said(error)) from None
        if answer.status_code == 200:
            return
        said = f"{answer.status_code} {answer.body[:200]}"
        if answer.status_code == 429:
            raise NotNow(
                said, _seconds(answer.headers.get("retry-after") or answer.headers.get("Retry-After"))
            )
        if 400 <= answer.status_code < 500 and answer.status_code != 408:
            raise Refused(said)
        raise NotNow(said)


class TwilioChannel:
    """SMS and calls over Twilio, which can be asked: a doubtful message is looked for in its list before
    anything is sent."""

    def __init__(self, settings: Twilio, writer: Writer, *, call: bool) -> None:
        self._settings = settings
        self._writer = writer
        self._call = call

    def fits(self, told: Any) -> int:
        return len(told) if self._call else self._writer.fits_sms(told)

    def send(self, batch: Batch, message: Message) -> None:
        import requests
        from twilio.base.exceptions import TwilioException, TwilioRestException

        client = self._client()
        try:
            if message.doubtful and self._arrived(client, batch):
                return
        except (TwilioException, requests.RequestException, ValueError, KeyError, TypeError) as error:
            # Not asked, so still not known.
            raise Unknown(f"could not be asked: {_said(error)}") from None
        try:
            if self._call:
                client.calls.create(
                    to=batch.recipient, from_=self._settings.sender, twiml=self._writer.speech(message)
                )
            else:
                client.messages.create(
                    to=batch.recipient, from_=self._settings.sender, body=self._writer.sms(message)
                )
        except TwilioRestException as error:
            said = f"{error.status} {error.msg}"
            if error.status == 429:
                raise NotNow(said, 1) from None
            if error.status in (401, 403):
                raise NotNow(said, 60) from None
            if 400 <= error.status < 500 and error.status != 408:
                raise Refused(said) from None
            raise Unknown(said) from None
        except requests.ConnectTimeout as error:
            raise NotNow(_said(error)) from None
        except requests.ConnectionError as error:
            if "NewConnectionError" in repr(error) or "NameResolutionError" in repr(error):
                raise NotNow("no connection") from None
            raise Unknown(_said(error)) from None
        except (requests.RequestException, TwilioException, ValueError, KeyError, TypeError) as error:
            raise Unknown(_said(error)) from None

    def _arrived(self, client: Any, batch: Batch) -> bool:
        """Whether Twilio has it: a message by the reference in its text, a call by its time, since nobody
        else calls from here."""
        since = datetime.fromtimestamp(batch.at - _CLOCKS_APART, UTC)
        if self._call:
            return any(
                call.date_created and call.date_created >= datetime.fromtimestamp(batch.at - 1, UTC)
                for call in client.calls.list(to=batch.recipient, from_=self._settings.sender, limit=20)
            )
        return any(
            f"[{batch.message}]" in (found.body or "")
            for found in client.messages.list(to=batch.recipient, date_sent_after=since, limit=1000)
        )

    def _client(self) -> Any:
        from twilio.http.http_client import TwilioHttpClient
        from twilio.rest import Client

        settings = self._settings

        class Elsewhere(TwilioHttpClient):  # type: ignore[misc]  # it has no types here
            """Twilio's own client, towards another address where one is set."""

            def request(self, method: str, url: str, *rest: Any, **more: Any) -> Any:
                return super().request(
                    method, url.replace("https://api.twilio.com", settings.url, 1), *rest, **more
                )

        http = Elsewhere(pool_connections=False, timeout=settings.timeout)
        return Client(settings.account, read_secret(settings.token_file), http_client=http)


def _seconds(found: Any) -> float:
    """What Retry-After says, in seconds, as far as it is a number."""
    value = found[0] if isinstance(found, list) and found else found
    try:
        return min(max(float(value), 0.0), 3600.0)
    except (TypeError, ValueError):
        return 0.0


def _said(error: object) -> str:
    return f"{type(error).__name__}: {error}"[:300]
