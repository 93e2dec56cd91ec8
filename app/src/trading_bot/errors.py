"""Everything that can be wrong, in one tree. The edges turn it into answers (see ``entrypoints``)."""

from __future__ import annotations

from dataclasses import dataclass


class TradingError(Exception):
    """The root: whatever the executor raises on purpose."""


@dataclass(frozen=True)
class ConfigIssue:
    """One thing wrong with a config file."""

    key: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.key}: expected {self.expected}, found {self.found}"


class ConfigError(TradingError):
    """The config cannot be used. ``issues`` holds everything that is wrong, not just the first."""

    def __init__(self, file: str, issues: list[ConfigIssue]) -> None:
        self.file = file
        self.issues = issues
        super().__init__("\n".join(f"{file}: {issue}" for issue in issues))


class Malformed(TradingError):
    """A request that no rule can be applied to. ``errors`` maps a field to what was expected of it."""

    def __init__(self, errors: dict[str, str]) -> None:
        self.errors = errors
        super().__init__("; ".join(f"{field}: {expected}" for field, expected in errors.items()))


class AccessDenied(TradingError):
    """No usable token (401), or a token without the right (403)."""

    def __init__(self, status: int, detail: str) -> None:
        self.status = status
        super().__init__(detail)


class Unavailable(TradingError):
    """A dependency is away, so nothing was decided; the same request may be sent again."""

    def __init__(self, dependency: str, reason: str) -> None:
        self.dependency = dependency
        self.reason = reason
        super().__init__(f"{dependency}: {reason}")


class TooMany(TradingError):
    """A bound on how many there may be at once was reached."""

    def __init__(self, what: str, limit: int) -> None:
        self.what = what
        self.limit = limit
        super().__init__(f"at most {limit} {what}")


class VenueTimeout(TradingError):
    """The venue gave no usable answer: whether it did what was asked is not known."""


class VenueRefused(TradingError):
    """The venue said no, for good."""


class CannotListen(TradingError):
    """The address that the config names is not to be had."""


class LedgerError(TradingError):
    """The ledger refused a command in a way that no version should see: a defect, not a state."""
