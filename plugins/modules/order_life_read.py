#!/usr/bin/python
"""Read what a host knows of one order."""

from __future__ import annotations

import glob
import gzip
import json
import os
import urllib.error
from collections.abc import Callable, Iterator
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.order_life import (
    AFTER_END,
    ENDS,
    OrderLifeError,
    api_state,
    audit_event,
    check,
    is_of,
    ledger_state,
    log_events,
    pairs,
    stream_time,
    venue_events,
    venue_state,
)
from ansible.module_utils.redis_client import RedisConnection, RedisError
from ansible.module_utils.urls import open_url

DOCUMENTATION = r"""
module: order_life_read
short_description: Read what a host knows of one order
description:
  - Reads the lines of the instances' logs that name it, those that were rotated too; from the ledger the order, its lines in the
    audit and what waits for NATS; the API's answer; and the venue's. Each where this host has it. Changes nothing.
author: Trading Bot Ops (@trading-bot-ops)
options:
  account:
    description: The account.
    type: str
    required: true
  order:
    description: The client order id.
    type: str
    required: true
  logs:
    description: The directory of the instances' log files.
    type: path
    required: true
  redis:
    description: Address and port of the ledger's Redis. Empty for none.
    type: str
    default: ""
  redis_user:
    description: Who reads it.
    type: str
    default: ""
  redis_password:
    description: The password.
    type: str
    default: ""
  api:
    description: Address and port of the API. Empty for none.
    type: str
    default: ""
  api_token:
    description: A token that may observe the account.
    type: str
    default: ""
  venue:
    description: The URL of the paper venue. Empty for none.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Read what the instances logged of an order
  order_life_read:
    account: alice
    order: a1
    logs: /var/log/trading-bot
"""

RETURN = r"""
events: {description: "What happened to it: at, source and text", type: list, elements: dict, returned: always}
now: {description: What is said of it now, by who says it, type: dict, returned: always}
notes: {description: What could not be read, type: list, elements: str, returned: always}
"""

TIMEOUT = 10.0
#: Lines of the audit that are read at a time, and at most.
CHUNK = 1000
MOST = 2_000_000


class Told:
    """What was found."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.now: dict[str, str] = {}
        self.notes: list[str] = []


def read_logs(given: dict[str, Any], told: Told) -> None:
    """Files that are no instance's are left alone."""

    def lines() -> Iterator[str]:
        for path in sorted(glob.glob(os.path.join(glob.escape(given["logs"]), "trading-bot-*.log*"))):
            opener: Callable[..., Any] = gzip.open if path.endswith(".gz") else open
            with opener(path, "rt", encoding="utf-8", errors="replace") as file:
                yield from file

    told.events += log_events(lines(), given["account"], given["order"])


def read_ledger(given: dict[str, Any], told: Told) -> None:
    """The order itself, its lines in the audit from its decision to a minute after its end, and what waits for NATS."""
    host, _, port = given["redis"].rpartition(":")
    with RedisConnection((host.strip("[]"), int(port)), given["redis_user"], given["redis_password"], TIMEOUT) as redis:
        fields = pairs(redis.call("HGETALL", f"trading:order:{given['account']}:{given['order']}"))
        if not fields:
            told.now["ledger"] = "has no such order"
            return
        told.now["ledger"] = ledger_state(fields)
        begins = int(fields.get("at") or 0)
        read_audit(redis, begins, given, told)
        for entry, flat in redis.call("XRANGE", "trading:outbox", "-", "+", "COUNT", str(10 * CHUNK)):
            if is_of(pairs(flat), given["account"], given["order"]):
                told.events.append(audit_event(entry, pairs(flat), "waits for NATS"))


def read_audit(redis: RedisConnection, begins: int, given: dict[str, Any], told: Told) -> None:
    """The audit has one order of all accounts, so it is read through from the decision on."""
    start, until, seen, found = str(max(0, begins - 1000)), "+", 0, False
    while seen < MOST:
        chunk = redis.call("XRANGE", "trading:audit", start, until, "COUNT", str(CHUNK))
        for entry, flat in chunk:
            fields = pairs(flat)
            late = until != "+" and (stream_time(entry) or 0) * 1000 > int(until)
            if late or not is_of(fields, given["account"], given["order"]):
                continue
            found = True
            told.events.append(audit_event(entry, fields))
            if fields.get("e") in ENDS and fields.get("order") == given["order"] and until == "+":
                until = str(int((stream_time(entry) or 0) * 1000) + AFTER_END)
        seen += len(chunk)
        if len(chunk) < CHUNK:
            break
        start = f"({chunk[-1][0]}"
    else:
        told.notes.append(f"the audit after its first {MOST} lines since the order: it was never done in them")
    if not found:
        told.notes.append("the audit: its lines are older than redis.audit_retention and gone; TRADING_EVENTS may have them")


def ask(url: str, headers: dict[str, str]) -> tuple[int, Any]:
    """Status and JSON of an answer, refusals too; raises OSError or ValueError where there is none."""
    try:
        with open_url(url, headers=headers, timeout=TIMEOUT) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def read_api(given: dict[str, Any], told: Told) -> None:
    headers = {"Authorization": f"Bearer {given['api_token']}", "X-Account-Id": given["account"]}
    status, answer = ask(f"http://{given['api']}/api/orders/{given['order']}", headers)
    told.now["API"] = api_state(answer) if status == 200 else f"{status}: {(answer or {}).get('title')}"


def read_venue(given: dict[str, Any], told: Told) -> None:
    # An account has no dot, so the first one divides.
    status, answer = ask(f"{given['venue']}/v1/orders/{given['account']}.{given['order']}", {})
    told.now["venue"] = venue_state(answer) if status == 200 else f"{status}: {(answer or {}).get('error')}"
    told.events += venue_events(answer)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "account": {"type": "str", "required": True},
            "order": {"type": "str", "required": True},
            "logs": {"type": "path", "required": True},
            "redis": {"type": "str", "default": ""},
            "redis_user": {"type": "str", "default": ""},
            "redis_password": {"type": "str", "default": "", "no_log": True},
            "api": {"type": "str", "default": ""},
            "api_token": {"type": "str", "default": "", "no_log": True},
            "venue": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        check(given["account"], given["order"])
    except OrderLifeError as error:
        module.fail_json(msg=str(error))
    told = Told()
    readers: dict[str, tuple[Optional[str], Callable[[dict[str, Any], Told], None]]] = {
        "logs": (given["logs"], read_logs),
        "the ledger": (given["redis"], read_ledger),
        "the API": (given["api"], read_api),
        "the venue": (given["venue"], read_venue),
    }
    for name, (where, read) in readers.items():
        if where:
            try:
                read(given, told)
            except (OSError, ValueError, RedisError) as error:
                told.notes.append(f"{name} at {where}: {error}")
    module.exit_json(changed=False, events=told.events, now=told.now, notes=told.notes)


if __name__ == "__main__":
    main()
