"""The notifier's own configuration file, checked whole before it starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
import yaml

from trading_bot import config
from trading_bot.errors import ConfigError, ConfigIssue
from trading_bot.notify.notice import SEVERITIES

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
CHANNELS = ("slack", "email", "sms", "call")
ROUTES = {
    "info": ("slack",),
    "warning": ("slack", "email"),
    "critical": ("slack", "email", "sms", "call"),
}
PER_MINUTE = {"email": 30.0, "slack": 30.0, "sms": 10.0, "call": 10.0}
_MAIL = re.compile(r"[^@\s<>,;:\"()\[\]\\]+@[^@\s<>,;:\"()\[\]\\]+")
_PHONE = re.compile(r"\+[1-9][0-9]{6,14}")


class Shape(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class Server(Shape):
    """``url`` is where people reach it: the links in messages begin with it."""

    host: str
    port: Port
    url: str
    token_file: str
    acknowledge_key_file: str


class Redis(Shape):
    """Where the ledger's alerts are; ``channel`` is the app's ``monitoring.alerts_channel``."""

    url: str
    username: str = ""
    password_file: str = ""
    channel: str = "trading:alerts"


class Mail(Shape):
    host: str
    sender: str
    port: Port = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str = ""
    password_file: str = ""
    ca_file: str = ""
    timeout: Seconds = 10


class Slack(Shape):
    """``webhooks``: by a name, the file that holds a webhook's URL."""

    webhooks: dict[str, str]
    timeout: Seconds = 10


class Twilio(Shape):
    """``sender``: the number that messages and calls come from. ``url``: another address than Twilio's
    own."""

    account: str
    token_file: str
    sender: str
    url: str = "https://api.twilio.com"
    timeout: Seconds = 10


class Contacts(Shape):
    """People who are told together: addresses, numbers as +491701234567, and names of Slack's webhooks."""

    name: str
    email: list[str] = []
    slack: list[str] = []
    sms: list[str] = []
    call: list[str] = []


class Calls(Shape):
    """The phone rings after ``after``, then every ``every``, ``times`` times for each list of contacts."""

    after: Seconds = 60
    every: Seconds = 300
    times: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3


class Settings(Shape):
    server: Server
    state: str
    language: Literal["en", "zh"] = "en"
    redis: Redis | None = None
    email: Mail | None = None
    slack: Slack | None = None
    twilio: Twilio | None = None
    contacts: list[Contacts] = []
    routes: dict[str, list[str]] = msgspec.field(
        default_factory=lambda: {each: [*to] for each, to in ROUTES.items()}
    )
    calls: Calls = msgspec.field(default_factory=Calls)
    per_minute: dict[str, Annotated[float, msgspec.Meta(gt=0)]] = msgspec.field(
        default_factory=lambda: dict(PER_MINUTE)
    )
    repeat_after: Seconds = 3000
    keep: Seconds = 30 * 86400
    retry_first: Annotated[float, msgspec.Meta(gt=0)] = 1
    retry_longest: Annotated[float, msgspec.Meta(gt=0)] = 300


def load(path: str) -> Settings:
    """The settings in the file at ``path``. Raises ConfigError."""
    try:
        return parse(path, Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(
            path, [ConfigIssue("(file)", "a readable file", error.strerror or "error")]
        ) from None


def parse(path: str, content: bytes) -> Settings:
    """As ``load``, from bytes."""
    try:
        found = yaml.safe_load(content)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "(file)"
        raise ConfigError(
            path, [ConfigIssue(where, "YAML", getattr(error, "problem", None) or "none")]
        ) from None
    try:
        settings = msgspec.convert(found, Settings)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at ")
        raise ConfigError(
            path, [ConfigIssue(where.strip("`").removeprefix("$.") or "(file)", "a valid value", problem)]
        ) from None
    if issues := list(_issues(settings)):
        raise ConfigError(path, issues)
    return settings


def _issues(settings: Settings) -> Any:
    """What the types do not say."""
    if not _is_url(settings.server.url):
        yield ConfigIssue("server.url", "an address such as http://mon1:9095", repr(settings.server.url))
    if settings.twilio and not _is_url(settings.twilio.url):
        yield ConfigIssue(
            "twilio.url", "an address such as https://api.twilio.com", repr(settings.twilio.url)
        )
    if settings.twilio and not _PHONE.fullmatch(settings.twilio.sender):
        yield ConfigIssue("twilio.sender", "a number such as +491701234567", repr(settings.twilio.sender))
    if settings.email and not _MAIL.fullmatch(settings.email.sender):
        yield ConfigIssue(
            "email.sender", "an address such as alerts@example.com", repr(settings.email.sender)
        )
    if settings.email and settings.email.user and not settings.email.password_file:
        yield ConfigIssue("email.password_file", "a file, with a user", "none")
    for severity, channels in settings.routes.items():
        if severity not in SEVERITIES:
            yield ConfigIssue(f"routes.{severity}", f"one of {', '.join(SEVERITIES)}", "an unknown severity")
        for channel in channels:
            if channel not in CHANNELS:
                yield ConfigIssue(f"routes.{severity}", f"of {', '.join(CHANNELS)}", repr(channel))
    for channel in settings.per_minute:
        if channel not in CHANNELS:
            yield ConfigIssue(f"per_minute.{channel}", f"one of {', '.join(CHANNELS)}", "an unknown channel")
    for severity in SEVERITIES:
        if severity not in settings.routes:
            yield ConfigIssue(f"routes.{severity}", f"a list of {', '.join(CHANNELS)}", "none")
    for number, contacts in enumerate(settings.contacts):
        where = f"contacts[{number}]"
        for address in contacts.email:
            if not _MAIL.fullmatch(address):
                yield ConfigIssue(f"{where}.email", "an address such as desk@example.com", repr(address))
        for phone in [*contacts.sms, *contacts.call]:
            if not _PHONE.fullmatch(phone):
                yield ConfigIssue(f"{where}.sms and .call", "a number such as +491701234567", repr(phone))
        for name in contacts.slack:
            if settings.slack is None or name not in settings.slack.webhooks:
                yield ConfigIssue(f"{where}.slack", "the name of one of slack.webhooks", repr(name))
        for section, wanted in (("email", contacts.email), ("twilio", contacts.sms or contacts.call)):
            if wanted and getattr(settings, section) is None:
                yield ConfigIssue(section, f"how it is reached, since {where} names whom", "nothing")
    if settings.redis is not None:
        try:
            config.value("redis", "url", settings.redis.url)
        except ConfigError:
            yield ConfigIssue("redis.url", "an address such as redis://10.0.0.40:6379/0", "another one")


def _is_url(text: str) -> bool:
    split = urlsplit(text)
    return split.scheme in ("http", "https") and bool(split.hostname) and not text.endswith("/")
