"""Text without its secrets, so that it may leave the fleet. Pure, standard library only."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from .slots import masked

#: What stands where a secret was.
MASK = "********"
#: A known secret shorter than this is left to the patterns: it would be found in the middle of words.
SHORTEST = 6

_KEY_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL)
_AGE_KEY = re.compile(r"AGE-SECRET-KEY-1[0-9A-Z]+")
_NATS_SEED = re.compile(r"\bS[UAOCXN][A-Z2-7]{56}\b")
_ARGUMENT = re.compile(r"(?P<keep>(?<!\S)--?(?i:pass|password|token|secret|auth|requirepass)(?:[ =]+))(?!\*{8})[^\s\"']+")
_HASH = re.compile(r"(?P<keep>\$2[aby]\$\d\d\$)[./A-Za-z0-9]{53}")


def spellings(secrets: Iterable[str]) -> list[str]:
    """Each secret as it may be spelt in a log: as it is, in JSON, in a URL, in base64. Longest first, none twice."""
    found: set[str] = set()
    for secret in secrets:
        for line in [secret.strip(), *secret.split()]:
            if len(line) >= SHORTEST:
                found |= {line, json.dumps(line)[1:-1], quote(line, safe=""), base64.b64encode(line.encode()).decode()}
    return sorted(found, key=lambda text: (-len(text), text))


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without these secrets, and without what looks like one.

    That is: a private key's block, the value of a key named like a password or token, credentials in an address or a header,
    and a password on a command line.
    """
    for secret in spellings(secrets):
        text = text.replace(secret, MASK)
    text = _KEY_BLOCK.sub(f"-----{MASK} (a private key)-----", text)
    for pattern in (_AGE_KEY, _NATS_SEED):
        text = pattern.sub(MASK, text)
    for pattern in (_ARGUMENT, _HASH):
        text = pattern.sub(rf"\g<keep>{MASK}", text)
    return masked(text)


def redacted_values(value: Any, secrets: Iterable[str] = ()) -> Any:
    """A structure of dictionaries and lists, each of its texts redacted; keys are left as they are."""
    known = list(secrets)
    if isinstance(value, str):
        return redacted(value, known)
    if isinstance(value, dict):
        return {key: redacted_values(item, known) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted_values(item, known) for item in value]
    return value
