"""Bring an image from the control node to a host, sending only the layers that the host lacks."""

from __future__ import annotations

import re
import shlex
import tempfile
from pathlib import Path
from typing import Any, Optional

import ansible.module_utils
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase

_MODULE_UTILS = str(Path(__file__).resolve().parents[1] / "module_utils")
if _MODULE_UTILS not in ansible.module_utils.__path__:
    # On the control node nobody lays the project's module_utils beside Ansible's own, as it is done for hosts.
    ansible.module_utils.__path__.append(_MODULE_UTILS)

from ansible.module_utils import image_store

_ARGUMENTS = {
    "image_dir": {"type": "path", "required": True},
    "repository": {"type": "str", "default": "trading-bot"},
    "registry": {"type": "str"},
    "docker": {"type": "str", "default": "docker"},
}


class ActionModule(ActionBase):
    """The action; see modules/release_image.py for what it takes and gives."""

    TRANSFERS_FILES = True
    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """Make sure that the host has the image under its tag."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(argument_spec=_ARGUMENTS)
        if self._task.check_mode and not Path(given["image_dir"]).exists():
            result.update(changed=True, method="unknown", note="the image is not built yet")
            return result
        try:
            image = image_store.read(Path(given["image_dir"]))
        except image_store.ImageError as error:
            raise AnsibleActionFail(str(error)) from error
        self._docker = given["docker"]
        reference = f"{given['repository']}:{image.short}"
        names = {image.id, image.manifest_digest}
        tagged, ids, chains = self._look(reference)
        result.update(
            changed=False,
            image=image.id,
            host_image=tagged,
            reference=reference,
            bytes_moved=0,
            bytes_complete=sum(layer.size for layer in image.layers),
            layers_present=len(image.layers),
            layers_moved=0,
            method="present",
            note="",
        )
        if tagged in names:
            return result
        result["changed"] = True
        known = sorted(names & ids)
        if known:
            result.update(note="the image was there without its tag", host_image=known[0])
            if not self._task.check_mode:
                self._must(f"{self._docker} tag {known[0]} {shlex.quote(reference)}", "naming the image")
            return result
        if given["registry"]:
            result.update(method="registry", note=f"pulled from {given['registry']}", layers_present=None, layers_moved=None)
            if not self._task.check_mode:
                self._must(f"{self._docker} pull --quiet {shlex.quote(given['registry'])}", "pulling the image")
                self._must(f"{self._docker} tag {shlex.quote(given['registry'])} {shlex.quote(reference)}", "naming the image")
                result["host_image"] = self._verified(reference, names, image)
            return result
        present = image_store.layers_present(image.diff_ids, chains)
        result.update(
            method="partial" if present else "complete",
            layers_present=present,
            layers_moved=len(image.layers) - present,
            bytes_moved=sum(layer.size for layer in image.layers[present:]),
        )
        if self._task.check_mode:
            return result
        moved, refused = self._send(image, reference, present)
        if refused and present:
            result.update(
                method="complete",
                layers_moved=len(image.layers),
                note=f"the engine did not take the archive of the missing layers alone ({refused}); all were sent",
            )
            complete, refused = self._send(image, reference, 0)
            moved += complete
        if refused:
            raise AnsibleActionFail(f"the host's engine refused the image: {refused}")
        result.update(bytes_moved=moved, host_image=self._verified(reference, names, image))
        return result

    def _run(self, command: str) -> tuple[int, str, str]:
        done = self._low_level_execute_command(command)
        return int(done["rc"]), str(done["stdout"]), str(done["stderr"]).strip()

    def _must(self, command: str, what: str) -> str:
        status, out, err = self._run(command)
        if status:
            # Where sudo has a terminal, what the command said of its failure is in its output, and ssh adds that it hung up.
            said = re.sub(r"Shared connection to \S+ closed\.", "", f"{out} {err}").strip()
            raise AnsibleActionFail(f"{what} failed: {said or f'exit status {status}'}")
        return out

    def _look(self, reference: str) -> tuple[Optional[str], set[str], list[tuple[str, ...]]]:
        """What the tag names on the host, and the ids and layer chains of all its images; in one command."""
        # No module can list the layers of every image, so the client is asked; the inspection may miss an image that
        # is removed at the same moment, which its exit status tells and which does not matter.
        form = shlex.quote("{{.Id}} {{json .RootFS.Layers}}")
        docker = self._docker
        command = (
            f"ids=$({docker} image ls --all --quiet --no-trunc) || exit 1;"
            f" echo tagged $({docker} image inspect --format '{{{{.Id}}}}' {shlex.quote(reference)} 2>/dev/null);"
            f' test -z "$ids" || {docker} image inspect --format {form} $ids 2>/dev/null; true'
        )
        out = self._must(command, "asking the host for its images")
        first, _, rest = out.partition("\n")
        tagged = first.partition("tagged")[2].strip()
        ids, chains = image_store.parse_present(rest)
        return tagged or None, ids, chains

    def _send(self, image: Any, reference: str, skip: int) -> tuple[int, str]:
        """Send the archive without its lowest layers and have it loaded: bytes sent, and what the engine said against it."""
        remote = self._make_tmp_path()
        try:
            with tempfile.NamedTemporaryFile(prefix="release-image-") as file:
                image_store.write_archive(image, reference, file, skip)
                file.flush()
                size = file.tell()
                archive = self._connection._shell.join_path(remote, "image.tar")
                try:
                    self._transfer_file(file.name, archive)
                except AnsibleError as error:
                    raise AnsibleActionFail(f"sending {size} bytes of the image failed: {error}") from error
            status, out, err = self._run(f"{self._docker} load --quiet --input {shlex.quote(archive)}")
        finally:
            self._remove_tmp_path(remote)
        if status and "no space left" in (out + err).lower():
            raise AnsibleActionFail(f"the host's disk is full: {err or out.strip()}")
        return size, (err or out.strip() or f"exit status {status}") if status else ""

    def _verified(self, reference: str, names: set[str], image: Any) -> str:
        """What the host calls the image under the tag; it must be the one that was built."""
        tagged, _, _ = self._look(reference)
        if tagged not in names:
            raise AnsibleActionFail(f"the host has {tagged} under {reference}, expected {image.id}")
        return str(tagged)
