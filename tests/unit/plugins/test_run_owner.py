"""Who runs a playbook, and whether that run is over."""

from __future__ import annotations

import subprocess

from ansible.module_utils.run_owner import gone, owner


def test_a_process_of_this_machine_that_is_no_more_is_gone_and_no_other() -> None:
    who, _, number = owner().partition(" pid ")
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert not gone(f"{who} pid {number}")
    assert gone(f"{who} pid {ended.pid}")
    for other in ("", "ann@desk", f"somebody@elsewhere pid {ended.pid}", f"{who} pid one"):
        assert not gone(other)
