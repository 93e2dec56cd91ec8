"""Loads the filters once, in the process that the processes of all tasks are forked from."""

from __future__ import annotations

from typing import Any

from ansible.plugins.callback import CallbackBase
from ansible.template import Templar, trust_as_template

DOCUMENTATION = """
name: preload
type: aggregate
short_description: Load filters and tests before the first task
description:
  - Ansible forks a process for each task and host. The first template with a filter in each of these loads every filter plugin
    that is in no collection, the project's own among them, which took most of the control node's time.
  - A template with a filter and a test, before the first process is forked, leaves them loaded for all.
author: Trading Bot Ops (@trading-bot-ops)
"""


class CallbackModule(CallbackBase):
    """A template at the beginning of a run."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "preload"

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Load them."""
        Templar(loader=playbook.get_loader()).template(trust_as_template("{{ 0 | abs is integer }}"))
