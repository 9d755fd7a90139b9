"""Confirm tokens: what a second tap must bring, bound to one action, person, patient and context.

A token is ``base64url(nonce | expiry | MAC)`` without padding: 16 random bytes, 8 bytes of milliseconds since 1970
(big-endian) and the 32 bytes of an HMAC-SHA256 over both and over what it is bound to. It is a capability for one
tap: the ledger keeps the nonce of each preparation and takes the first confirmation only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from datetime import UTC, datetime, timedelta

import msgspec

#: Long enough to read the sheet and tap, short enough that a phone left on a desk does not confirm.
TOKEN_TTL = timedelta(minutes=2)
NONCE_BYTES = 16
_EXPIRY_BYTES = 8
_MAC_BYTES = 32
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


class Binding(msgspec.Struct, frozen=True, kw_only=True):
    """What a token is good for, and nothing else."""

    action_id: str
    user_id: str
    patient_id: str | None
    context_hash: str


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token whose MAC is right; whether it is spent or too old is for the rules to say."""

    nonce: bytes
    expires_at: datetime


def issue(key: bytes, binding: Binding, *, nonce: bytes, expires_at: datetime) -> str:
    """The token's text, 75 characters; the same arguments give the same token.

    ``nonce``: 16 random bytes. ``expires_at`` is rounded down to the millisecond.
    """
    head = nonce + ((expires_at - _EPOCH) // _MS).to_bytes(_EXPIRY_BYTES, "big")
    return _text(head + _mac(key, head, binding))


def verify(key: bytes, binding: Binding, token: str) -> Token | None:
    """The token's content if it was issued for ``binding`` with ``key``; None for anything else."""
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    head, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    if len(head) != NONCE_BYTES + _EXPIRY_BYTES or not hmac.compare_digest(mac, _mac(key, head, binding)):
        return None
    if _text(raw) != token:
        return None  # base64 has several spellings of the same bytes; one token has one
    expires_ms = int.from_bytes(head[NONCE_BYTES:], "big")
    return Token(nonce=head[:NONCE_BYTES], expires_at=_EPOCH + expires_ms * _MS)


def _text(raw: bytes) -> str:
    """The one spelling of a token's bytes."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _mac(key: bytes, head: bytes, binding: Binding) -> bytes:
    # JSON of the fields in their fixed order: no two bindings give the same bytes, as bare concatenation could.
    message = b"chatd confirm token 1\n" + head + msgspec.json.encode(msgspec.structs.astuple(binding))
    return hmac.new(key, message, hashlib.sha256).digest()
