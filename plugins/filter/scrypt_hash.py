"""The filter scrypt_hash: a scrypt hash that is the same on every run."""

from __future__ import annotations

import base64
import hashlib

from ansible.errors import AnsibleFilterError

DOCUMENTATION = """
name: scrypt_hash
author: Trading Bot Ops
version_added: "0.1.0"
short_description: A scrypt hash that is the same on every run
description:
  - Hashes a password as C(trading-bot page hash) does.
  - The salt comes from C(identity), never from the password, so that a second run changes nothing and the salt tells nothing.
positional: identity
options:
  _input:
    description: The password, of 12 characters or more.
    type: str
    required: true
  identity:
    description: Whose password it is; different for every user of a system.
    type: str
    required: true
"""

EXAMPLES = """
password_hash: "{{ user.password | scrypt_hash('fleet_page/' ~ user.name) }}"
"""

RETURN = """
_value:
  description: The cost, the salt and the hash, as C(scrypt:15:8:1:<salt>:<hash>).
  type: str
"""

#: N as a power of two, r and p: 32 MiB and some 0.1 s.
_COST = (15, 8, 1)


def scrypt_hash(password: str, identity: str) -> str:
    """Return the scrypt hash of `password`, salted with the digest of `identity`.

    Raises AnsibleFilterError for a password of fewer than 12 characters.
    """
    if len(password) < 12:
        raise AnsibleFilterError("scrypt_hash: a password has 12 characters or more")
    power, r, p = _COST
    salt = hashlib.sha256(identity.encode()).digest()[:16]
    found = hashlib.scrypt(password.encode(), salt=salt, n=1 << power, r=r, p=p, maxmem=1 << 26, dklen=32)
    return ":".join(("scrypt", *map(str, _COST), *(base64.b64encode(part).decode() for part in (salt, found))))


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, object]:
        """Return the filters by name."""
        return {"scrypt_hash": scrypt_hash}
