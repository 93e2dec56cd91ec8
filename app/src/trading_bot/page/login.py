"""Who may look: passwords as scrypt hashes, sessions, and how often somebody may try."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections import deque
from collections.abc import Callable, Mapping

_HASH = re.compile(r"scrypt:([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2}):([A-Za-z0-9+/]+=*):([A-Za-z0-9+/]+=*)")
COST = (15, 8, 1)
"""N as a power of two, r and p: 32 MiB and some 0.1 s a password."""
TRIES, WINDOW = 10, 300.0
"""Failures that an address or a name may have in so many seconds."""
SESSIONS = 1000


def hashed(password: str, salt: bytes = b"") -> str:
    """``scrypt:15:8:1:<salt>:<hash>``; with a salt of its own where none is given."""
    salt = salt or secrets.token_bytes(16)
    found = _scrypt(password, salt, *COST)
    return ":".join(("scrypt", *map(str, COST), _text(salt), _text(found)))


def is_hash(text: str) -> bool:
    match = _HASH.fullmatch(text)
    return match is not None and int(match[1]) <= 17 and 1 <= int(match[2]) <= 16 and 1 <= int(match[3]) <= 4


def fits(password: str, wanted: str) -> bool:
    """Whether ``wanted``, a hash as ``hashed`` makes it, is that of ``password``."""
    match = _HASH.fullmatch(wanted)
    if match is None:
        return False
    cost = int(match[1]), int(match[2]), int(match[3])
    return hmac.compare_digest(
        _scrypt(password, base64.b64decode(match[4]), *cost), base64.b64decode(match[5])
    )


def _scrypt(password: str, salt: bytes, power: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(
        password.encode(),
        salt=salt,
        n=1 << power,
        r=r,
        p=p,
        maxmem=(129 << power) * r * p + (1 << 20),
        dklen=32,
    )


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


class Door:
    """Sessions by the digest of their secret; they end with the process. ``clock`` is in seconds."""

    def __init__(self, users: Mapping[str, str], session: float, clock: Callable[[], float]) -> None:
        self._users = users
        self._session = session
        self._clock = clock
        self._open: dict[bytes, tuple[str, float]] = {}
        self._failures: dict[str, deque[float]] = {}
        # Checked for a name that nobody has, so that it takes as long.
        self._nobody = hashed(secrets.token_hex(16))

    def wait(self, address: str, name: str) -> float:
        """Seconds until they may try again; 0: now."""
        return max(self._wait(f"address {address}"), self._wait(f"name {name}"))

    def _wait(self, who: str) -> float:
        times = self._failures.get(who, deque())
        now = self._clock()
        while times and times[0] <= now - WINDOW:
            times.popleft()
        if not times:
            self._failures.pop(who, None)
        return times[0] + WINDOW - now if len(times) >= TRIES else 0.0

    def failed(self, address: str, name: str) -> None:
        if len(self._failures) > 10 * SESSIONS:
            for who in list(self._failures):
                self._wait(who)
        for who in (f"address {address}", f"name {name}"):
            self._failures.setdefault(who, deque(maxlen=TRIES)).append(self._clock())

    def knows(self, name: str, password: str) -> bool:
        """Takes some 0.1 s of a processor."""
        known = fits(password, self._users.get(name, self._nobody))
        return known and name in self._users

    def enter(self, name: str) -> str:
        """A session's secret."""
        now = self._clock()
        self._open = {key: value for key, value in self._open.items() if value[1] > now}
        while len(self._open) >= SESSIONS:
            del self._open[next(iter(self._open))]
        secret = secrets.token_urlsafe(32)
        self._open[_digest(secret)] = (name, now + self._session)
        return secret

    def who(self, secret: str) -> str | None:
        name, ends = self._open.get(_digest(secret), ("", 0.0))
        return name if ends > self._clock() else None

    def leave(self, secret: str) -> None:
        self._open.pop(_digest(secret), None)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
