"""The page's own configuration file, checked whole before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

import msgspec
import yaml

from trading_bot.errors import ConfigError, ConfigIssue
from trading_bot.page.login import is_hash

T = TypeVar("T")


class Shape(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class Server(Shape):
    """``certificate_file`` and ``key_file``: with both it speaks TLS."""

    host: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    certificate_file: str = ""
    key_file: str = ""


class User(Shape):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    password_hash: str


class Settings(Shape):
    """``session`` is in seconds. ``alertmanager`` empty: silences are not known. ``reports``: a directory.
    ``slots``: their ports, by which a slot is known where nothing runs."""

    server: Server
    users_file: str
    prometheus: str
    alertmanager: str = ""
    reports: str = ""
    slots: dict[str, int] = msgspec.field(default_factory=lambda: {"blue": 18080, "green": 18081})
    title: Annotated[str, msgspec.Meta(min_length=1, max_length=80)] = "Trading Bot"
    session: Annotated[int, msgspec.Meta(ge=60, le=30 * 86400)] = 12 * 3600


def load(path: str) -> Settings:
    """The settings in the file at ``path``. Raises ConfigError."""
    settings = _read(path, Settings)
    issues = [
        ConfigIssue(key, "an address such as http://10.0.0.71:9090", repr(found))
        for key, found in (("prometheus", settings.prometheus), ("alertmanager", settings.alertmanager))
        if (found or key == "prometheus") and not _is_url(found)
    ]
    if bool(settings.server.certificate_file) != bool(settings.server.key_file):
        issues.append(ConfigIssue("server", "certificate_file and key_file, or neither", "one of them"))
    if issues:
        raise ConfigError(path, issues)
    return settings


def users(path: str) -> dict[str, str]:
    """Password hashes by name, from the file at ``path``. Raises ConfigError."""
    found = _read(path, list[User])
    issues = [
        ConfigIssue(f"[{number}].password_hash", "what `trading-bot page hash` prints", "something else")
        for number, user in enumerate(found)
        if not is_hash(user.password_hash)
    ]
    if not found:
        issues.append(ConfigIssue("(file)", "one user or more", "none"))
    if issues:
        raise ConfigError(path, issues)
    return {user.name: user.password_hash for user in found}


def _read(path: str, shape: type[T]) -> T:
    try:
        return msgspec.convert(yaml.safe_load(Path(path).read_bytes()), shape)
    except OSError as error:
        problem = ConfigIssue("(file)", "a readable file", error.strerror or "error")
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "(file)"
        problem = ConfigIssue(where, "YAML", getattr(error, "problem", None) or "none")
    except msgspec.ValidationError as error:
        said, _, where = str(error).partition(" - at ")
        problem = ConfigIssue(where.strip("`").removeprefix("$.") or "(file)", "a valid value", said)
    raise ConfigError(path, [problem])


def _is_url(text: str) -> bool:
    split = urlsplit(text)
    return split.scheme == "http" and bool(split.hostname) and not text.endswith("/")
