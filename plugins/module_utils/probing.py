"""Whether the load balancer sends the accounts where it should: asked at its own frontend. Standard library only."""

from __future__ import annotations

import http.client
import threading
import time
from typing import Any, Optional

from .traffic import Traffic

_CONNECTIONS = 4
_MOST_WRONG = 20


def probe(frontend: str, traffic: Traffic, accounts: int, timeout: float = 2.0, seconds: float = 10.0) -> dict[str, Any]:
    """Ask ``/health/live`` for the accounts probe-1 to probe-n; compare the slot that is named in the answer.

    Whoever was not asked within so many seconds in all is wrong, too. ``wrong`` has the first few of those that another
    slot answered, or nobody: account, expected, answered, error.
    """
    names = [f"probe-{number}" for number in range(1, accounts + 1)]
    answered: dict[str, Optional[str]] = {}
    errors: dict[str, str] = {}
    deadline = time.monotonic() + seconds

    def ask(share: list[str]) -> None:
        connection = http.client.HTTPConnection(frontend, timeout=timeout)
        for name in share:
            if time.monotonic() > deadline:
                errors[name] = f"not asked: the others have taken {seconds:g} s"
                continue
            try:
                connection.request("GET", "/health/live", headers={"X-Account-Id": name})
                reply = connection.getresponse()
                reply.read()
                answered[name] = reply.getheader("X-Release-Slot")
            except (OSError, http.client.HTTPException) as error:
                errors[name] = str(error) or type(error).__name__
                connection.close()
        connection.close()

    threads = [threading.Thread(target=ask, args=(names[at::_CONNECTIONS],)) for at in range(_CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {name: traffic.slot_of(name) for name in names}
    wrong = [
        {"account": name, "expected": expected[name], "answered": answered.get(name), "error": errors.get(name)}
        for name in names
        if answered.get(name) != expected[name]
    ]
    canary = traffic.canary if traffic.canary != traffic.stable else ""
    return {
        "asked": len(answered),
        "on_canary": sum(slot == canary for slot in answered.values()),
        "expected_on_canary": sum(slot == canary for slot in expected.values()),
        "wrong": wrong[:_MOST_WRONG],
        "wrong_count": len(wrong),
    }
