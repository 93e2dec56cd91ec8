#!/usr/bin/python
"""Walk a rollout; the work is done by the action plugin of the same name, this tells how to use it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_rollout
short_description: Walk a rollout, a step at a time
description:
  - Decides on the control node and has the load balancers' agents act, each reached as the inventory says. A step that
    does not pass has taken the canary's accounts back on every load balancer when it returns.
  - This is an action plugin. What it saw and decided is in the rollout's directory; C(module_utils/rollout.py) says how.
author: Trading Bot Ops (@trading-bot-ops)
options:
  step:
    description:
      - C(begin) takes the lock on every load balancer. C(shadow), C(stage) and C(warm) look until there is an answer.
        C(promote) makes the canary the stable release. C(rollback) takes all accounts back. C(end) gives the lock back.
      - C(command) tells a rollout in progress what an operator wants.
    type: str
    choices: [begin, shadow, stage, promote, warm, end, rollback, command]
    required: true
  directory:
    description: For C(begin), where rollouts are kept; for the other steps, what C(begin) returned.
    type: path
  rollout:
    description: For C(begin), what is to be rolled out, as C(module_utils/rollout.py) describes it.
    type: dict
  kind:
    description: For C(begin), what the lock is for, as others are told.
    type: str
    default: canary
  preempt:
    description: For C(begin), take the lock from whoever has it.
    type: bool
    default: false
  stage:
    description: For C(stage), its name, cut (in basis points), min_seconds and deadline.
    type: dict
  reasons:
    description: For C(rollback), C(end) and C(command), why.
    type: list
    elements: str
    default: []
  mark:
    description: For C(rollback), mark the release that is left as bad.
    type: bool
    default: false
  started:
    description: >-
      For C(rollback), on how many hosts the release was started for it and is ready. The load balancers are given up to 2 s to
      find them up, and go on in any case.
    type: int
    default: 0
  outcome:
    description: For C(end), how it ended.
    type: str
  action:
    description: For C(command), what is wanted.
    type: str
    choices: [pause, resume, promote, abort]
  load_balancers:
    description: For C(command), the load balancers to tell.
    type: list
    elements: str
  agent:
    description: The agent's path on a load balancer.
    type: path
    default: /usr/local/sbin/trading-bot-release
attributes:
  check_mode:
    support: none
"""

EXAMPLES = r"""
- name: Give the canary five percent
  release_rollout:
    step: stage
    directory: "{{ canary_begun.directory }}"
    stage: {name: 5%, cut: 500, min_seconds: 60, deadline: 1800}
  register: canary_step
"""

RETURN = r"""
outcome: {description: "Of shadow, stage and warm: pass, fail, insufficient or abort", type: str, returned: for these steps}
reasons: {description: Why, type: list, returned: for these steps}
seconds: {description: "Of rollback: how long it took until every load balancer said so", type: float, returned: for this step}
id: {description: The rollout's id, type: str, returned: for begin, promote and end}
directory: {description: The rollout's directory, type: str, returned: for begin, promote and end}
rollout: {description: The rollout, type: dict, returned: for begin, promote and end}
"""
