"""What proves that thinking which a client sends back is what it was given, and what hides it on the way.

    signature = "ponder1." + base64(HMAC-SHA256(k_sign, model, position, text))
    sealed    = "ponder1." + base64(tag + (text XOR keystream)),  tag = HMAC-SHA256(k_seal, text),
                keystream = SHAKE-256(k_cipher, tag)

Sealing is deterministic authenticated encryption: the tag over the text is both its proof and the start of the key
stream, so that no nonce can be used twice (Rogaway and Shrimpton 2006, "A Provable-Security Treatment of the Key-Wrap
Problem", the construction SIV). The keys come from one secret, each by an HMAC of its purpose.

A signature without our mark is an upstream's own. It is kept as it came and goes back to the upstream, which alone can
check it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import zlib
from dataclasses import dataclass

from ponder.types import Thinking

MARK = "ponder1."
SHORTEST_SECRET = 16
"""Bytes of a secret, at the least."""

_OURS = re.compile(r"ponder\d+\.")
_TAG = 32


@dataclass(frozen=True)
class SignedThinking(Thinking):
    """Thinking with an upstream's signature or, where the upstream hid the text, what it `redacted`.

    Templates and strategies see its text alone; the upstream gets it back untouched.
    """

    signature: str = ""
    redacted: str = ""


class Signer:
    """Signs and seals with a secret of the server. Raises ValueError where it is shorter than 16 bytes."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < SHORTEST_SECRET:
            raise ValueError(f"a secret must have at least {SHORTEST_SECRET} bytes, not {len(secret)}")
        self._sign, self._seal, self._cipher = (
            _mac(secret, f"ponder thinking {purpose} 1".encode()) for purpose in ("sign", "seal", "cipher")
        )

    def sign(self, text: str, model: str, position: int) -> str:
        """The signature of the thinking that is number `position` in its message."""
        document = json.dumps([model, position, text]).encode()
        return MARK + _encoded(_mac(self._sign, document))

    def verified(self, signature: str, text: str, model: str, position: int) -> bool:
        """Whether `sign` gave this signature for the same text, model and position."""
        return hmac.compare_digest(signature.encode(errors="replace"), self.sign(text, model, position).encode())

    def seal(self, thinking: Thinking, model: str) -> str:
        """Thinking of a model, an upstream's signature included, as something that only this server reads."""
        signed = thinking if isinstance(thinking, SignedThinking) else SignedThinking(thinking.text)
        plain = zlib.compress(json.dumps([model, signed.text, signed.signature, signed.redacted]).encode())
        tag = _mac(self._seal, plain)
        return MARK + _encoded(tag + self._mixed(plain, tag))

    def opened(self, sealed: str, model: str) -> Thinking | None:
        """The thinking that was sealed; None where it was not sealed here, or was changed.

        For another model than the one that thought it, it comes without the upstream's signature.
        """
        data = _decoded(sealed.removeprefix(MARK)) if sealed.startswith(MARK) else b""
        plain = self._mixed(data[_TAG:], data[:_TAG])
        if len(data) <= _TAG or not hmac.compare_digest(data[:_TAG], _mac(self._seal, plain)):
            return None
        thinker, text, signature, redacted = json.loads(zlib.decompress(plain))
        if thinker != model or not (signature or redacted):
            return Thinking(text)
        return SignedThinking(text, signature=signature, redacted=redacted)

    def _mixed(self, data: bytes, tag: bytes) -> bytes:
        """`data` XOR the key stream that begins with `tag`; twice gives `data` again."""
        stream = hashlib.shake_256(self._cipher + tag).digest(len(data))
        return (int.from_bytes(data) ^ int.from_bytes(stream)).to_bytes(len(data))

    def __repr__(self) -> str:
        return "Signer()"


def ours(signature: str) -> bool:
    """Whether a ponder, this one or another, made the signature."""
    return _OURS.match(signature) is not None


def _mac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode(), b"-_", validate=True)
    except (binascii.Error, ValueError):
        return b""
