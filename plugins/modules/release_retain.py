#!/usr/bin/python
"""Keep the last releases on an app host, and remove what none of them needs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.retention import OnDisk, surplus

DOCUMENTATION = r"""
module: release_retain
short_description: Keep the last releases on an app host, and remove what none of them needs
description:
  - Removes all but the last releases, by when they last were in a slot or, if they never were, by when they were put there.
    One that is linked (in a slot, or as C(previous)) stays, whatever its age.
  - Then removes virtual environments and images that no release on the host needs any more. An image that a container uses
    stays, and so does everything if a release that stays cannot be read.
author: Trading Bot Ops (@trading-bot-ops)
options:
  root:
    description: Where releases, slots and virtual environments are.
    type: path
    default: /opt/trading-bot
  keep:
    description: How many releases stay, the linked ones included; at least 2.
    type: int
    required: true
  repository:
    description: The name under which the engine has the app's images.
    type: str
    default: trading-bot
  docker:
    description: The Docker client; a host without one has no images.
    type: str
    default: docker
  links:
    description: Further links into virtual environments.
    type: list
    elements: path
    default: [/usr/local/bin/trading-bot]
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Keep the last releases
  release_retain:
    keep: 5
"""

RETURN = r"""
kept: {description: The releases that stay, type: list, returned: always}
versions: {description: The versions of those, type: list, returned: always}
removed: {description: "releases, venvs and images that were removed, or would be", type: dict, returned: always}
"""


class Host:
    """What lies on the host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.root = Path(module.params["root"]).resolve()

    def links(self) -> list[Path]:
        """What makes a release one that is in use."""
        return [*sorted((self.root / "slots").glob("*")), self.root / "previous"]

    def releases(self) -> dict[str, OnDisk]:
        """The releases that are there."""
        linked = {link.resolve() for link in self.links() if link.is_symlink()}
        return {
            path.name: OnDisk(
                path.name, path.resolve() in linked, path.stat().st_mtime, str(self.described(path).get("created_at") or "")
            )
            for path in (self.root / "releases").glob("[!.]*")
            if path.is_dir() and not path.is_symlink()
        }

    def described(self, path: Path) -> dict[str, Any]:
        """A release's own description; empty where it has none that can be read."""
        try:
            found = json.loads((path / "release.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def stamp(self, releases: dict[str, OnDisk]) -> None:
        """Write down when the linked ones were last seen so: the time of their directories, which never change otherwise."""
        for release in releases.values():
            if release.linked:
                os.utime(self.root / "releases" / release.id)

    def remove(self, path: Path) -> None:
        """Remove a directory; it is never there by half under its name."""
        aside = path.with_name(f".{path.name}.removed")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside)

    def venvs_without_release(self, kept: set[str]) -> list[Path]:
        """The complete environments that no link leads to, but for those of releases that go."""
        leading = [self.root / "releases" / name / "venv" for name in kept]
        leading += [path for path in self.root.glob("*") if path.is_symlink()]
        leading += [Path(path) for path in self.module.params["links"]]
        needed = {str(link.resolve()) + os.sep for link in leading if link.is_symlink()}
        return [
            path
            for path in sorted((self.root / "venvs").glob("[!.]*"))
            if (path / ".complete").exists() and not any(link.startswith(f"{path}{os.sep}") for link in needed)
        ]

    def images_without_release(self, kept: list[dict[str, Any]]) -> list[str]:
        """The names of the app's images that no release needs."""
        docker: Optional[str] = self.module.get_bin_path(self.module.params["docker"])
        if docker is None:
            return []
        command = [docker, "image", "ls", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"]
        code, out, error = self.module.run_command([*command, self.module.params["repository"]])
        if code:
            self.module.warn(f"the engine does not tell its images, so none is removed: {error.strip()}")
            return []
        needed = {release.get(key) for release in kept for key in ("image", "image_manifest")}
        images = [line.split(" ", 1) for line in out.splitlines() if " " in line]
        return [name for identity, name in images if identity not in needed and not name.endswith("<none>")]

    def remove_image(self, name: str) -> bool:
        """Remove an image by its name; not one that a container uses."""
        return bool(self.module.run_command([self.module.params["docker"], "image", "rm", name])[0] == 0)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/opt/trading-bot"},
            "keep": {"type": "int", "required": True},
            "repository": {"type": "str", "default": "trading-bot"},
            "docker": {"type": "str", "default": "docker"},
            "links": {"type": "list", "elements": "path", "default": ["/usr/local/bin/trading-bot"]},
        },
        supports_check_mode=True,
    )
    host = Host(module)
    try:
        releases = host.releases()
        gone = [release.id for release in surplus(releases.values(), module.params["keep"])]
        kept = sorted(set(releases) - set(gone))
        described = [host.described(host.root / "releases" / name) for name in kept]
        unreadable = [name for name, told in zip(kept, described) if not told]
        venvs, images = host.venvs_without_release(set(kept)), host.images_without_release(described)
        if unreadable:
            module.warn(f"release.json of {', '.join(unreadable)} cannot be read, so no environment and no image is removed")
            venvs, images = [], []
        if not module.check_mode:
            host.stamp(releases)
            for name in gone:
                host.remove(host.root / "releases" / name)
            for path in venvs:
                host.remove(path)
            images = [name for name in images if host.remove_image(name)]
    except (OSError, ValueError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(gone or venvs or images),
        kept=kept,
        # By the names: they hold for a release whose description cannot be read, too.
        versions=sorted({name.rpartition("-")[0] for name in kept}),
        removed={"releases": gone, "venvs": [path.name for path in venvs], "images": images},
    )


if __name__ == "__main__":
    main()
