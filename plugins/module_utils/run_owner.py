"""Who runs a playbook, as a lock tells it, and whether that run is over."""

from __future__ import annotations

import getpass
import os
import socket


def owner() -> str:
    """Who runs this playbook: a user, a machine, and the playbook's process."""
    return f"{getpass.getuser()}@{socket.gethostname()} pid {os.getppid()}"


def gone(name: str) -> bool:
    """Whether an owner was a process of this machine that no longer exists."""
    who, _, number = name.partition(" pid ")
    if who != f"{getpass.getuser()}@{socket.gethostname()}" or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
