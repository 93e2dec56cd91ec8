#!/usr/bin/python
"""Measure a host for the table of found against required."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_measure
short_description: Measure what a host has, change nothing
description:
  - Tells processors, memory, disk, network, distribution and versions of programs in one go.
  - What the host cannot tell is null, never a guess.
author:
  - Trading Bot Ops
options:
  path:
    description: A path on the file system that counts.
    type: path
    default: /var
  address:
    description: The host's address on the private interface.
    type: str
    default: ""
  software:
    description: Name to the programs that print its version, and to the apt packages that would bring it.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Measure the host
  preflight_measure:
    address: "{{ private_address }}"
    software:
      redis:
        programs: [redis-server --version]
        packages: [redis-server]
"""

RETURN = r"""
found:
  description: What was measured.
  returned: success
  type: dict
  sample:
    distribution: {id: ubuntu, version: "24.04"}
    cpu_cores: 8
    memory_gib: 15.6
    disk_gib: 96.7
    ssd: true
    interface: eth0
    network_mbit: 1000
    software:
      redis: {installed: null, candidate: 7.0.15}
"""

import json
import os
import shlex
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.preflight import (
    block_device,
    candidates,
    interface,
    memory_gib,
    newest,
    os_release,
    version,
)


def is_ssd(path: str) -> bool | None:
    """Whether the disk below a path has no turning parts; None where the kernel does not know of a disk."""
    device = block_device(Path("/proc/self/mountinfo").read_text(), os.path.realpath(path))
    if device is None or not device.startswith("/dev/") or not os.path.exists(device):
        return None
    number = os.stat(device).st_rdev
    node = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    for place in (node, node.parent):
        if (place / "queue/rotational").exists():
            return (place / "queue/rotational").read_text().strip() == "0"
    return None


def speed(name: str | None) -> int | None:
    """The speed of an interface in Mbit/s; None where the driver does not know, as in most virtual machines."""
    try:
        mbit = int(Path(f"/sys/class/net/{name}/speed").read_text())
    except (OSError, ValueError):
        return None
    return mbit if mbit > 0 else None


def installed(module: AnsibleModule, programs: list[str]) -> str | None:
    """The newest version that any of some command lines prints; None if none of them is there."""
    versions = []
    for program in programs:
        name, *arguments = shlex.split(program)
        path = module.get_bin_path(name, opt_dirs=["/usr/local/sbin", "/usr/sbin", "/sbin"])
        if path is not None:
            rc, out, _ = module.run_command([path, *arguments])
            versions.append(version(out) if rc == 0 else None)
    return newest(versions)


def measure(module: AnsibleModule) -> dict[str, object]:
    """Everything that the table needs of this host."""
    path, address, software = (module.params[key] for key in ("path", "address", "software"))
    disk = os.statvfs(path)
    links = json.loads(module.run_command(["ip", "-json", "address"], check_rc=True)[1])
    link = interface(links, address)
    packages = sorted({package for item in software.values() for package in item.get("packages", [])})
    policy = module.run_command(["apt-cache", "policy", *packages], check_rc=True)[1] if packages else ""
    offered = candidates(policy)
    return {
        "distribution": os_release(Path("/etc/os-release").read_text()),
        "cpu_cores": os.cpu_count(),
        "memory_gib": round(memory_gib(Path("/proc/meminfo").read_text()), 1),
        "disk_gib": round(disk.f_blocks * disk.f_frsize / 1024**3, 1),
        "ssd": is_ssd(path),
        "interface": link,
        "network_mbit": speed(link),
        "software": {
            name: {
                "installed": installed(module, item.get("programs", [])),
                "candidate": newest([offered.get(package) for package in item.get("packages", [])]),
            }
            for name, item in software.items()
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/var"},
            "address": {"type": "str", "default": ""},
            "software": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    try:
        found = measure(module)
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"cannot measure this host: {error}")
    module.exit_json(changed=False, found=found)


if __name__ == "__main__":
    main()
