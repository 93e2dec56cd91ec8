"""Who may change a load balancer's traffic: a lock with an owner, an expiry and a fencing number. Pure: a lock and a time
in, a lock or a refusal out.

The fencing number, the token, only rises. Whoever takes the lock gets a higher one, and every change names the token that
it was given; so one who was overtaken, or whom the watchdog gave up, can change nothing any more, however late he wakes up.

Time is the machine's since its start, which nobody sets; a clock that is stepped makes no lock live longer or die sooner.
After a reboot, only the clock on the wall tells, and where it makes no sense the lock has expired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import ceil
from typing import Any, Optional


class Refused(Exception):
    """A command that is not carried out; `code` is one word for programs, the message one sentence for the operator."""

    def __init__(self, code: str, text: str, **more: Any) -> None:
        super().__init__(text)
        self.code = code
        self.more = more


@dataclass(frozen=True)
class Now:
    """A moment: seconds since 1970, seconds since the machine's start, and which start that was."""

    wall: float
    uptime: float
    boot: str


@dataclass(frozen=True)
class Lock:
    """Who holds the load balancer. The times are seconds since 1970, for people; `uptime` is what counts within one boot."""

    owner: str
    token: int
    rollout: str
    kind: str
    ttl: float
    acquired_at: float
    renewed_at: float
    expires_at: float
    uptime: float
    boot: str

    def as_dict(self) -> dict[str, Any]:
        """As it lies on disk and as it is told."""
        return asdict(self)

    def since_heartbeat(self, now: Now) -> float:
        """Seconds since the owner was last heard of; infinite where no clock can tell."""
        if now.boot == self.boot:
            return now.uptime - self.uptime
        return now.wall - self.renewed_at if now.wall >= self.renewed_at else float("inf")

    def expired(self, now: Now) -> bool:
        """Whether anybody may take it."""
        return self.since_heartbeat(now) >= self.ttl

    def left(self, now: Now) -> float:
        """Seconds until it expires, 0 if it has."""
        return max(0.0, self.ttl - self.since_heartbeat(now))


def lock_from(values: Optional[Mapping[str, Any]]) -> Optional[Lock]:
    """The lock that a file has, None where it has none or nothing that could be one."""
    try:
        found = {field.name: (values or {})[field.name] for field in fields(Lock)}
        numbers = ("ttl", "acquired_at", "renewed_at", "expires_at", "uptime")
        return Lock(**{**found, "token": int(found["token"]), **{name: float(found[name]) for name in numbers}})
    except (KeyError, TypeError, ValueError):
        return None


def describe(lock: Lock, now: Now) -> str:
    """``the rollout 7 of ann@desk holds this load balancer for 12 s more``."""
    return f"the {lock.kind} {lock.rollout} of {lock.owner} holds this load balancer for {ceil(lock.left(now))} s more"


def acquire(
    held: Optional[Lock],
    last_token: int,
    now: Now,
    *,
    owner: str,
    rollout: str,
    kind: str,
    ttl: float,
    at_least: int = 0,
    preempt: bool = False,
) -> Lock:
    """The lock for this owner, with a token above every one before; his own stays his, with the same token or `at_least`.

    Raises Refused `locked` while another's lock is alive, unless he is to be overtaken.
    """
    if held is not None and (held.owner, held.rollout) == (owner, rollout) and held.token == last_token:
        return renew(replace(held, kind=kind, token=max(held.token, at_least)), now, ttl)
    if held is not None and not held.expired(now) and not preempt:
        raise Refused("locked", describe(held, now), lock=held.as_dict())
    token = max(last_token + 1, at_least)
    return Lock(owner, token, rollout, kind, ttl, now.wall, now.wall, now.wall + ttl, now.uptime, now.boot)


def renew(held: Lock, now: Now, ttl: Optional[float] = None) -> Lock:
    """The lock, alive for its ttl from now. One that has expired is revived: nobody took it, or the token would be another."""
    ttl = held.ttl if ttl is None else ttl
    return replace(held, ttl=ttl, renewed_at=now.wall, expires_at=now.wall + ttl, uptime=now.uptime, boot=now.boot)


def check(held: Optional[Lock], last_token: int, token: int, now: Now) -> Lock:
    """The lock of who has this token; raises Refused `fenced` for any other token than the current one."""
    if held is None or token != held.token or token != last_token:
        if held is not None and not held.expired(now):
            why = describe(held, now)
        elif token >= last_token:
            why = "it does not hold this load balancer"
        else:
            why = "it was given up after it was not heard of, or has ended"
        more = {"lock": held.as_dict()} if held is not None else {}
        raise Refused("fenced", f"the token {token} is no longer the one that may change things here: {why}", **more)
    return held


def heartbeat_lost(held: Optional[Lock], now: Now, watchdog_after: float) -> bool:
    """Whether nobody looks after the canary: there is no lock, it has expired, or its owner was silent for too long."""
    return held is None or held.expired(now) or held.since_heartbeat(now) >= watchdog_after


def refuses_strangers(held: Optional[Lock], now: Now, token: Optional[int]) -> Optional[str]:
    """The sentence that keeps somebody without this lock's token from changing the traffic, None if he may."""
    if held is None or held.expired(now) or held.token == token:
        return None
    rolls_out = held.kind in ("canary", "rollout", "rollback")
    end = "end it with rollback.yml" if rolls_out else "take it over with -e release_preempt=true if it died"
    return f"{describe(held, now)}; wait for its end, or {end}"
