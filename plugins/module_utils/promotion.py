"""What a built image has been through: the environments it was brought out in and the marks that people gave it.

Pure: the lines of a version's `promotions.jsonl` in, what is missing out. A line is about one image, so what was built again
under the same version has been through nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

#: What makes two lines tell the same.
_SAME = ("image", "event", "environment", "release_id", "mark", "by")


class PromotionError(ValueError):
    """The record or a request makes no sense; the text says what and where."""


def identity(artifact: Mapping[str, Any]) -> str:
    """What a built version is known by: the digest of its image; without an image its wheel's."""
    return str(artifact.get("image") or f"sha256:{artifact['wheel_sha256']}")


def parse(text: str, path: str) -> list[dict[str, Any]]:
    """The lines of a record; raises PromotionError with the number of one that is none."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            told = json.loads(line)
            found.append({**told, "image": told["image"], "event": told["event"], "at": told["at"]})
        except (ValueError, KeyError, TypeError) as error:
            raise PromotionError(f"{path}, line {number} is no line of a record ({error!r}): {line[:80]}") from error
    return found


def already(lines: Iterable[Mapping[str, Any]], line: Mapping[str, Any]) -> bool:
    """Whether the record tells it, whenever that was."""
    return any(all(one.get(key) == line.get(key) for key in _SAME) for one in lines)


def missing(
    lines: Sequence[Mapping[str, Any]],
    image: str,
    version: str,
    environments: Sequence[str],
    marks: Sequence[str],
    own: str = "",
) -> list[str]:
    """What the image has to go through before it may be brought out in `own`, a sentence each; none where it was there before."""
    if own and _brought_out(lines, image, own):
        return []
    found = []
    for environment in environments:
        if _brought_out(lines, image, environment):
            continue
        other = _brought_out(lines, None, environment)
        again = f" (another image of {version} was, on {other['at']}: it was built again)" if other else ""
        bring = f"ansible-playbook -i inventories/{environment} deploy.yml -e release_version={version}"
        found.append(f"{environment}: this image was not brought out there{again}; {bring}, or canary.yml where there is traffic")
    for mark in marks:
        if not _marked(lines, image, mark):
            found.append(
                f"{mark}: nobody has given this mark; once it is so, ansible-playbook release-gate.yml"
                f" -e release_version={version} -e release_mark={mark}"
            )
    return found


def table(
    lines: Sequence[Mapping[str, Any]], image: str, version: str, environments: Sequence[str], marks: Sequence[str]
) -> list[str]:
    """What the image has been through, for a person: a line for each thing that is required, then all else."""
    told = [f"{version}, {image}"]
    for environment in environments:
        line = _brought_out(lines, image, environment)
        told.append(
            f"{environment}: " + (f"{line['event']} of {line['release_id']}, {line['at']}, {line['by']}" if line else "missing")
        )
    for mark in marks:
        line = _marked(lines, image, mark)
        told.append(f"{mark}: " + (f"{line['by']}, {line['at']}" if line else "missing"))
    for line in lines:
        wanted = environments if line["event"] != "mark" else marks
        name = line.get("environment") if line["event"] != "mark" else line.get("mark")
        if line["image"] == image and name not in wanted:
            told.append(f"{name}: {line['by']}, {line['at']}")
    return told


def _brought_out(lines: Iterable[Mapping[str, Any]], image: Optional[str], environment: str) -> Optional[Mapping[str, Any]]:
    """The last time that an image, or any, served everybody in an environment."""
    found = None
    for line in lines:
        if line["event"] != "mark" and line.get("environment") == environment and image in (None, line["image"]):
            found = line
    return found


def _marked(lines: Iterable[Mapping[str, Any]], image: str, mark: str) -> Optional[Mapping[str, Any]]:
    found = None
    for line in lines:
        if line["event"] == "mark" and line.get("mark") == mark and line["image"] == image:
            found = line
    return found
