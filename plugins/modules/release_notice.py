#!/usr/bin/python
"""Tell the notifier what happened to a release."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Optional
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: release_notice
short_description: Tell the notifier what happened to a release
description:
  - Posts one JSON object. Never fails and never takes longer than O(timeout), whatever the notifier does, so that no rollout
    waits for it; that a notice was not taken is said as a warning.
author: Trading Bot Ops (@trading-bot-ops)
options:
  url:
    description: Where notices are taken, asked directly, without a proxy. Empty sends nothing.
    type: str
    default: ""
  notice:
    description: >-
      What happened. C(event) is one of start, stage, fail, rollback, end; further C(rollout), C(from), C(to), C(stage),
      C(summary), C(reasons), C(report), C(by), and C(at), which is now if it is left out.
    type: dict
    required: true
  token:
    description: What the notifier knows the release engine by.
    type: str
    default: ""
  timeout:
    description: Seconds for all of it, the name's look-up included.
    type: float
    default: 3.0
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Say that a stage has begun
  release_notice:
    url: http://mon1:9095/api/notices
    notice: {event: stage, rollout: 2026-01-31T12-00-00-1.4.0, to: 1.4.0-3f2a9c01de, stage: 20%}
  delegate_to: localhost
"""

RETURN = r"""
notice: {description: What was sent, type: dict, returned: always}
sent: {description: Whether the notifier took it, type: bool, returned: always}
error: {description: Why it did not, type: str, returned: when it did not}
"""

EVENTS = ("start", "stage", "fail", "rollback", "end")
_FIELDS = {"event", "rollout", "from", "to", "stage", "summary", "reasons", "report", "at", "by"}


class _Stay(urllib.request.HTTPRedirectHandler):
    """Takes no redirect: it would turn the notice into a question."""

    def redirect_request(self, *_: Any) -> None:
        return None


def post(url: str, notice: Mapping[str, Any], timeout: float, token: str = "") -> Optional[str]:
    """Post the notice; why it was not taken, or None if it was."""
    body = json.dumps(notice).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "trading-bot-ops"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310 - main has checked the scheme
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay)
    try:
        with opener.open(request, timeout=timeout) as answer:
            answer.read(1)
        return None
    except urllib.error.HTTPError as error:
        error.close()
        return f"it answers {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__


def post_in_time(url: str, notice: Mapping[str, Any], timeout: float, token: str = "") -> Optional[str]:
    """``post``, given up after so many seconds in all: a server that sends a byte now and then has a limit, too."""
    told = [f"no answer within {timeout:g} s"]

    def run() -> None:
        told[0:] = [post(url, notice, timeout, token) or ""]

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout)
    return told[0] or None


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": ""},
            "notice": {"type": "dict", "required": True},
            "token": {"type": "str", "default": "", "no_log": True},
            "timeout": {"type": "float", "default": 3.0},
        },
        supports_check_mode=True,
    )
    url, notice = module.params["url"], {k: v for k, v in module.params["notice"].items() if v is not None}
    # These two are mistakes of a playbook, found before anything depends on it.
    if notice.get("event") not in EVENTS or set(notice) - _FIELDS:
        module.fail_json(
            msg=f"a notice has an event of {', '.join(EVENTS)} and of {', '.join(sorted(_FIELDS - {'event'}))}: {notice}"
        )
    if url and urlsplit(url).scheme not in ("http", "https"):
        module.fail_json(msg=f"{url!r} is no address of a notifier, expected something such as http://mon1:9095/api/notices")
    notice.setdefault("at", datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"))
    if not url or module.check_mode:
        module.exit_json(changed=False, notice=notice, sent=False)
    error = post_in_time(url, notice, module.params["timeout"], module.params["token"])
    if error:
        module.warn(f"{url} did not take the notice of {notice['event']}: {error}")
        module.exit_json(changed=False, notice=notice, sent=False, error=error)
    module.exit_json(changed=True, notice=notice, sent=True)


if __name__ == "__main__":
    main()
