"""The filter bcrypt_hash: a bcrypt hash that is the same on every run."""

from __future__ import annotations

import base64
import ctypes
import ctypes.util
import hashlib
import string

from ansible.errors import AnsibleFilterError

DOCUMENTATION = """
name: bcrypt_hash
author: Trading Bot Ops
version_added: "0.1.0"
short_description: A bcrypt hash that is the same on every run
description:
  - Hashes a password with the C library's crypt(3), which needs no package on the control node.
  - The salt comes from C(identity), never from the password, so that a second run changes nothing and the salt tells nothing.
positional: identity, cost
options:
  _input:
    description: The password, at most 72 bytes; bcrypt would ignore the rest.
    type: str
    required: true
  identity:
    description: Whose password it is; different for every user of a system.
    type: str
    required: true
  cost:
    description: The work is two to the power of this.
    type: int
    default: 10
"""

EXAMPLES = """
password: "{{ user.password | bcrypt_hash('nats/' ~ user.name, 8) }}"
"""

RETURN = """
_value:
  description: The hash, with the prefix C($2a$).
  type: str
"""

_BASE64 = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
_BCRYPT = "./" + string.ascii_uppercase + string.ascii_lowercase + string.digits


def bcrypt_hash(password: str, identity: str, cost: int = 10) -> str:
    """Return the bcrypt hash of `password`, salted with the digest of `identity`.

    Raises AnsibleFilterError for a password that bcrypt cannot hash whole, a cost out of 4..31, or a C library without bcrypt.
    """
    secret = password.encode()
    if not 0 < len(secret) <= 72 or b"\0" in secret:
        raise AnsibleFilterError("bcrypt_hash: a password has 1 to 72 bytes and no zero byte")
    if not 4 <= cost <= 31:
        raise AnsibleFilterError(f"bcrypt_hash: cost is 4 to 31, not {cost}")
    name = ctypes.util.find_library("crypt")
    if name is None:
        raise AnsibleFilterError("bcrypt_hash: the control node has no libcrypt")
    crypt = ctypes.CDLL(name).crypt
    crypt.restype = ctypes.c_char_p
    digest = base64.b64encode(hashlib.sha256(identity.encode()).digest()[:16]).decode().rstrip("=")
    setting = f"$2a${cost:02d}${digest.translate(str.maketrans(_BASE64, _BCRYPT))}"
    result = crypt(secret, setting.encode())
    if not result or not result.startswith(setting.encode()):
        raise AnsibleFilterError("bcrypt_hash: the control node's libcrypt has no bcrypt")
    return str(result.decode())


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, object]:
        """Return the filters by name."""
        return {"bcrypt_hash": bcrypt_hash}
