"""Who may do what: tokens from a file that holds only their SHA-256."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec

from trading_bot.errors import AccessDenied, ConfigError, ConfigIssue
from trading_bot.ports import Role


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    sha256: str
    roles: frozenset[Role]
    accounts: frozenset[str] = frozenset()
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    """From when on it is not let in any more; None for never."""

    def owns(self, account: str) -> bool:
        return "*" in self.accounts or account in self.accounts


class _File(msgspec.Struct, forbid_unknown_fields=True):
    tokens: list[Token]


class Tokens:
    """Answers each request's first question. Without a file nobody is let in."""

    def __init__(self, tokens: list[Token], clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._by_digest = {bytes.fromhex(token.sha256): token for token in tokens}
        self._seen: dict[str, Token] = {}

    @classmethod
    def from_file(cls, path: str) -> Tokens:
        """Raises ConfigError. An empty path means no tokens."""
        if not path:
            return cls([])
        try:
            file = msgspec.json.decode(Path(path).read_bytes(), type=_File)
            return cls(file.tokens)
        except OSError as error:
            found = error.strerror or "error"
        except (msgspec.DecodeError, ValueError) as error:
            found = str(error)
        raise ConfigError(path, [ConfigIssue("server.tokens_file", "a readable list of tokens", found)])

    def expiry(self) -> dict[str, float]:
        """By name, in seconds since 1970, of those that expire."""
        return {token.name: token.expires.timestamp() for token in self._by_digest.values() if token.expires}

    def require(self, authorization: str, role: Role, account: str | None = None, /) -> str:
        """The token of an ``Authorization`` header. Raises AccessDenied with 401 or 403."""
        token = self._seen.get(authorization)
        if token is None:
            scheme, _, secret = authorization.partition(" ")
            if scheme.lower() != "bearer" or not secret:
                raise AccessDenied(401, "send Authorization: Bearer <token>")
            # A lookup by digest: how long it takes says nothing about any stored token.
            token = self._by_digest.get(hashlib.sha256(secret.encode()).digest())
            if token is None:
                raise AccessDenied(401, "the token is not known here")
            self._seen[authorization] = token
        if token.expires is not None and self._clock() >= token.expires.timestamp():
            raise AccessDenied(401, f"the token {token.name!r} expired at {token.expires.isoformat()}")
        if role not in token.roles:
            raise AccessDenied(403, f"the token {token.name!r} lacks the role {role!r}")
        if account is not None and not token.owns(account):
            raise AccessDenied(403, f"the token {token.name!r} does not own the account")
        return token.name
