"""Judge what was measured on a fleet, and keep it in one archive."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import ansible.module_utils
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

_MODULE_UTILS = str(Path(__file__).resolve().parents[1] / "module_utils")
if _MODULE_UTILS not in ansible.module_utils.__path__:
    # On the control node nobody lays the project's module_utils beside Ansible's own, as it is done for hosts.
    ansible.module_utils.__path__.append(_MODULE_UTILS)

from ansible.module_utils import diagnose, redaction

_ARGUMENTS = {
    "measured": {"type": "dict", "required": True},
    "before": {"type": "float", "required": True},
    "limits": {"type": "dict", "default": {}},
    "archive_to": {"type": "str", "default": ""},
}


def files_of(measured: Mapping[str, Any], found: Sequence[Mapping[str, Any]], text: str) -> dict[str, str]:
    """What an archive holds, by name. The hosts left out the secrets that they know; here goes what looks like one."""
    files = {"report.txt": text + "\n", "findings.json": json.dumps(found, indent=2)}
    for host, result in sorted(measured.items()):
        facts = dict(result.get("facts") or {"error": result.get("msg", "no answer")})
        figures = facts.pop("series", None)
        files[f"{host}/facts.json"] = json.dumps(facts, indent=2)
        if figures is not None:
            files[f"{host}/figures.json"] = json.dumps(figures, indent=1)
        for name, log in sorted((result.get("logs") or {}).items()):
            files[f"{host}/{Path(name).name.removesuffix('.log')}.log"] = log
    return {name: redaction.redacted(content) for name, content in files.items()}


def write(path: Path, files: Mapping[str, str], now: float) -> None:
    """All of it in one archive that only its owner may read. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.touch(mode=0o600)
    with tarfile.open(partial, "w:gz") as archive:
        for name, content in files.items():
            data = content.encode()
            about = tarfile.TarInfo(f"{path.name.removesuffix('.tar.gz')}/{name}")
            about.size, about.mode, about.mtime = len(data), 0o600, int(now)
            archive.addfile(about, io.BytesIO(data))
    partial.replace(path)


class ActionModule(ActionBase):
    """The action; see modules/diagnose_report.py for what it takes and gives."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """Judge, and keep what was measured."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(argument_spec=_ARGUMENTS)
        now = time.time()
        measured = given["measured"]
        limits = {name: float(value) for name, value in given["limits"].items()}
        unknown = sorted(set(limits) - set(diagnose.LIMITS))
        if unknown:
            raise AnsibleActionFail(f"there is no limit {', '.join(unknown)}; there are {', '.join(sorted(diagnose.LIMITS))}")
        found = diagnose.findings(measured, given["before"], now, limits)
        path = None
        if given["archive_to"] and not self._task.check_mode:
            path = Path(given["archive_to"]).expanduser() / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}.tar.gz"
            text = diagnose.table(found, list(measured))
            try:
                write(path, files_of(measured, found, text), now)
            except OSError as error:
                raise AnsibleActionFail(f"the archive {path} cannot be written: {error.strerror}") from error
        text = diagnose.table(found, list(measured), str(path or ""))
        result.update(changed=False, findings=found, text=text, archive=str(path or ""))
        return result
