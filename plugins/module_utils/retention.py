"""Which releases and built versions stay, and which may go.

Pure: what is there in, names out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class OnDisk:
    """A release on a host. ``linked``: in a slot, or as the one before; ``served_at``: when it last was, or was put there."""

    id: str
    linked: bool
    served_at: float
    created_at: str = ""


def surplus(releases: Iterable[OnDisk], keep: int) -> list[OnDisk]:
    """The releases that may go, the oldest first: all but the last ``keep``, and never one that is linked.

    Those that are linked count among the ones that are kept. Raises ValueError unless at least 2 are to be kept: what
    serves, and what one can go back to.
    """
    if keep < 2:
        raise ValueError(f"{keep} releases to keep are too few: what serves and the one before are two")
    newest = sorted(releases, key=lambda one: (one.linked, one.served_at, one.created_at, one.id), reverse=True)
    return [one for one in reversed(newest[keep:]) if not one.linked]


def surplus_versions(built: Mapping[str, float], needed: Mapping[str, Sequence[str]], keep: int) -> list[str]:
    """The built versions that may go, the oldest first.

    ``built``: when each version in the store was built; ``needed``: by inventory, the versions of the releases that its
    hosts keep. What any of them needs stays, and so do the last ``keep`` that were built: one of them may be on its way
    to hosts that have told nothing yet.
    """
    wanted = {version for versions in needed.values() for version in versions}
    newest = sorted(built, key=lambda version: (built[version], version), reverse=True)
    return [version for version in reversed(newest[max(keep, 1) :]) if version not in wanted]
