"""Forms with files (multipart/form-data): what is in one, and the same form with another value of a field.

Nothing is decoded or written anew but the one field, so that files pass as they came.

Source: RFC 7578, and RFC 2046, section 5.1.1, for what separates the parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ponder.server.failures import Refusal, invalid

MOST_PARTS = 256

_BOUNDARY = re.compile(r'boundary=(?:"([^"\r\n]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'^content-disposition:[^\r\n]*?;[ \t]*name="([^"\r\n]*)"', re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """A field: its header lines as they came, its name, and its value."""

    head: bytes
    name: str
    value: bytes


@dataclass(frozen=True)
class Form:
    """Its parts, and what separates them."""

    boundary: bytes
    parts: tuple[Part, ...]

    def text(self, name: str) -> str | None:
        """The value of a field, None where it is left out. Raises Refusal for one that is there twice, or no text."""
        found = [part.value for part in self.parts if part.name == name]
        if len(found) > 1:
            raise invalid(f"{name}: is there {len(found)} times", "send it once", name)
        try:
            return found[0].decode() if found else None
        except UnicodeDecodeError:
            raise invalid(f"{name}: is no text in UTF-8", "send a text", name) from None

    def written(self, name: str, value: str) -> bytes:
        """The form with another value of the field `name`."""
        pieces = []
        for part in self.parts:
            data = value.encode() if part.name == name else part.value
            pieces += [b"--", self.boundary, b"\r\n", part.head, b"\r\n\r\n", data, b"\r\n"]
        return b"".join([*pieces, b"--", self.boundary, b"--\r\n"])


def form_of(body: bytes, kind: str) -> Form:
    """The form in a body with the content type `kind`. Raises Refusal for anything else."""
    found = _BOUNDARY.search(kind)
    if not kind.lower().startswith("multipart/form-data") or found is None:
        raise invalid("the body is no form", "send multipart/form-data with a boundary", code="invalid_form")
    boundary = (found[1] or found[2]).encode("latin-1", "replace")
    # The line break before a boundary belongs to it, and before the first there may be none.
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise _cut()
    if len(pieces) - 2 > MOST_PARTS:
        raise invalid(f"the form has more than {MOST_PARTS} parts", "send fewer", code="invalid_form")
    return Form(boundary, tuple(_part(piece) for piece in pieces[1:-1]))


def _part(piece: bytes) -> Part:
    padding, line, rest = piece.partition(b"\r\n")
    head, blank, value = rest.partition(b"\r\n\r\n")
    name = _NAME.search(head)
    if padding.strip(b" \t") or not line or not blank or name is None:
        raise _cut()
    return Part(head, name[1].decode("utf-8", "replace"), value)


def _cut() -> Refusal:
    return invalid("the form is not whole", "send multipart/form-data as RFC 7578 has it", code="invalid_form")
