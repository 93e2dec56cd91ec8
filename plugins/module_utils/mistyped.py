"""Names that an operator typed and nobody reads: which they are, and which were meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

#: Keys whose values are expressions without braces.
EXPRESSIONS = frozenset({"when", "until", "failed_when", "changed_when", "that"})
#: What Ansible and Molecule bring themselves.
FOREIGN = re.compile(r"(ansible|molecule)_")
#: Tags that mean something to Ansible itself, and those that Molecule always skips.
RESERVED_TAGS = frozenset(
    {"all", "always", "never", "tagged", "untagged", "notest", "molecule-notest", "molecule-idempotence-notest"}
)

_NO_NAME = re.compile(r"'[^']*'|\"[^\"]*\"|\|\s*[\w.]+|\.\s*\w+|\bis\s+(?:not\s+)?\w+")
_WORDS = frozenset(
    [
        *("and", "or", "not", "in", "is", "if", "else", "elif", "endif", "for", "endfor", "set"),
        *("true", "false", "none", "True", "False", "None"),
    ]
)


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Each string of nested data, with the key that it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _strings(item, str(name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item, key)


def _values(data: Any, key: str) -> Iterator[Any]:
    """What stands under `key`, anywhere in nested data."""
    if isinstance(data, Mapping):
        for name, item in data.items():
            if name == key:
                yield item
            yield from _values(item, key)
    elif isinstance(data, (list, tuple)):
        for item in data:
            yield from _values(item, key)


def names_in(data: Any) -> set[str]:
    """The variables that a playbook, or the value of a variable, sets under `vars` or reads in its templates."""
    found = {str(name) for value in _values(data, "vars") if isinstance(value, Mapping) for name in value}
    for key, text in _strings(data):
        templates = [text] if key in EXPRESSIONS else re.findall(r"\{[{%](.*?)[%}]\}", text, re.DOTALL)
        for template in templates:
            found |= set(re.findall(r"\b[A-Za-z_]\w*", _NO_NAME.sub(" ", template))) - _WORDS
    return found


def tags_in(data: Any) -> set[str]:
    """The tags of plays and tasks."""
    found: set[str] = set()
    for value in _values(data, "tags"):
        for _, text in _strings(value):
            found |= {tag.strip() for tag in text.split(",")}
    return found


def unknown(kind: str, given: Iterable[str], known: Collection[str]) -> list[str]:
    """A sentence for each name that is not known, with those that are near."""
    told = []
    for name in sorted(set(given) - set(known)):
        near = difflib.get_close_matches(name, sorted(known), n=3)
        told.append(f"There is no {kind} {name}" + (f", did you mean {' or '.join(near)}?" if near else "."))
    return told


def unknown_variables(given: Iterable[str], known: Collection[str]) -> list[str]:
    """Sentences on `--extra-vars` that nothing reads."""
    typed = {name for name in given if not FOREIGN.match(name)}
    return unknown("variable", typed, {name for name in known if not FOREIGN.match(name) and not name.startswith("__")})


def unknown_tags(given: Iterable[str], known: Collection[str]) -> list[str]:
    """Sentences on `--tags` and `--skip-tags` that nothing has."""
    return unknown("tag", set(given) - RESERVED_TAGS, known)
