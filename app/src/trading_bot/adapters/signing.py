"""Ed25519 signatures of hotfixes. Loaded only where a hotfix is seen."""

from __future__ import annotations

import base64
from pathlib import Path


def verify(public_key_file: str, payload: bytes, signature: bytes) -> bool:
    """Whether the key in ``public_key_file`` (32 bytes in base64) signed ``payload``. Raises OSError."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    raw = base64.b64decode(Path(public_key_file).read_text(encoding="ascii"))
    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, payload)
    except (InvalidSignature, ValueError):
        return False
    return True


def generate() -> tuple[str, str]:
    """A new private and public key, each as base64 of its 32 bytes."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    return (
        base64.b64encode(key.private_bytes_raw()).decode(),
        base64.b64encode(key.public_key().public_bytes_raw()).decode(),
    )


def sign(private_key_file: str, payload: bytes) -> bytes:
    """Raises OSError or ValueError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    raw = base64.b64decode(Path(private_key_file).read_text(encoding="ascii"))
    return Ed25519PrivateKey.from_private_bytes(raw).sign(payload)
