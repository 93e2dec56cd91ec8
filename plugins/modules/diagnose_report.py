#!/usr/bin/python
"""Say what is wrong with a fleet; the work is done by the action plugin of the same name, this tells how to use it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: diagnose_report
short_description: Say what is wrong with a fleet, and keep what was measured
description:
  - Judges what M(diagnose_measure) found on each host; keeps it, with the findings, in one archive on the control node.
  - This is an action plugin; it asks no host, and in check mode it writes nothing.
author: Trading Bot Ops (@trading-bot-ops)
options:
  measured:
    description: By host, what M(diagnose_measure) returned, also where the host was unreachable or the module failed.
    type: dict
    required: true
  before:
    description: When measuring began, in seconds since 1970 by the control node's clock.
    type: float
    required: true
  limits:
    description: From which value on something is a finding, over the defaults.
    type: dict
    default: {}
  archive_to:
    description: The directory on the control node that archives go to, made where it is missing; empty keeps none.
    type: path
    default: ""
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Judge
  diagnose_report:
    measured: "{{ measured_by_host }}"
    before: "{{ began }}"
    archive_to: .diagnoses
"""

RETURN = r"""
findings: {description: "severity, kind, host, what, cause, mend and evidence of each, worst first", type: list, returned: always}
text: {description: The same as a person reads it, type: str, returned: always}
archive: {description: The archive's path. Empty if none was kept, type: str, returned: always}
"""
