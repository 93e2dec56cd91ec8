#!/usr/bin/python
"""Write the report of a rollout."""

from __future__ import annotations

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.report import write
from ansible.module_utils.rollout_record import decision, outcome_of, read, reasons_of

DOCUMENTATION = r"""
module: release_report
short_description: Write the report of a rollout, one HTML page that needs nothing else
description:
  - Runs on the control node. Reads what a rollout left in its directory (C(rollout.json), C(looks.jsonl), C(journal.jsonl),
    C(shadow.json)) and writes C(report.html) beside it. Each of them may be missing or cut off in the middle.
author: Trading Bot Ops (@trading-bot-ops)
options:
  directory:
    description: The rollout's directory.
    type: path
    required: true
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Write the report
  release_report:
    directory: "{{ release_store }}/../rollouts/2026-01-31T12-00-00-1.4.0"
  delegate_to: localhost
"""

RETURN = r"""
path: {description: The page, type: str, returned: always}
outcome: {description: "promoted, rolled_back, aborted, failed, cut_off or open", type: str, returned: always}
decision: {description: What became of the rollout in a sentence or two, type: str, returned: always}
reasons: {description: Why, type: list, returned: always}
notes: {description: What of the files could not be read, type: list, returned: always}
"""


def main() -> None:
    module = AnsibleModule(argument_spec={"directory": {"type": "path", "required": True}}, supports_check_mode=True)
    directory = module.params["directory"]
    if not os.path.isdir(directory):
        module.fail_json(msg=f"there is no rollout in {directory}")
    parts = read(directory)
    try:
        changed = write(directory, module.check_mode)
    except OSError as error:
        module.fail_json(msg=f"the report could not be written to {directory}: {error}")
    module.exit_json(
        changed=changed,
        path=os.path.join(directory, "report.html"),
        outcome=outcome_of(parts),
        decision=decision(parts),
        reasons=reasons_of(parts),
        notes=list(parts.notes),
    )


if __name__ == "__main__":
    main()
