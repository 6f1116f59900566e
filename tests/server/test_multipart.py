"""Forms: what is in them, whatever the files hold, and the same form with another value."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_client import refused

from ponder.server.failures import Refusal
from ponder.server.multipart import form_of

BOUNDARY = "b0undary"
KIND = f"multipart/form-data; boundary={BOUNDARY}"
NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)


def written(fields: dict[str, bytes]) -> bytes:
    """As httpx writes it, every field a file."""
    request = httpx.Request("POST", "http://x", files=list(fields.items()), headers={"content-type": KIND})
    request.read()
    return request.content


@given(st.dictionaries(NAMES, st.binary(max_size=60), min_size=1, max_size=4), st.text(max_size=20))
def test_a_form_with_another_value_is_the_same_but_for_it(fields: dict[str, bytes], text: str) -> None:
    form = form_of(written(fields), KIND)
    assert {part.name: part.value for part in form.parts} == fields
    first = next(iter(fields))
    again = form_of(form.written(first, text), KIND)
    assert {part.name: part.value for part in again.parts} == fields | {first: text.encode()}
    assert [part.head for part in again.parts] == [part.head for part in form.parts]


@given(st.lists(st.sampled_from([b"\r\n", b"--b0undary", b"--", b"\r\n--b0undary", b"x", b"\n", b"b0undary"])))
def test_nothing_but_the_whole_boundary_ends_a_file(pieces: list[bytes]) -> None:
    value = b"".join(pieces)
    if b"\r\n--b0undary" not in b"\r\n" + value:
        assert form_of(written({"file": value}), KIND).parts[0].value == value


@given(st.binary(max_size=200), st.text(max_size=60))
def test_anything_is_a_form_or_a_refusal(body: bytes, kind: str) -> None:
    for each in (kind, KIND):
        refusal = refused(lambda each=each: form_of(body, each))
        assert refusal is None or refusal.status == 400


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", KIND),
        (b"--b0undary--", "application/json"),
        (b"--b0undary--", "multipart/form-data"),
        (b'--b0undary\r\ncontent-disposition: form-data; name="a"\r\n\r\nx', KIND),
        (b'--b0undary\r\ncontent-disposition: form-data; name="a"\r\n\r\nx\r\n--b0undary\r\n', KIND),
        (b"--b0undary\r\ncontent-disposition: form-data\r\n\r\nx\r\n--b0undary--", KIND),
        (b'--b0undary\r\ncontent-disposition: form-data; name="a"\r\n--b0undary--', KIND),
        (
            b"".join([b'--b0undary\r\ncontent-disposition: form-data; name="a"\r\n\r\nx\r\n'] * 257) + b"--b0undary--",
            KIND,
        ),
    ],
)
def test_what_is_no_whole_form(body: bytes, kind: str) -> None:
    with pytest.raises(Refusal) as caught:
        form_of(body, kind)
    assert (caught.value.status, caught.value.code) == (400, "invalid_form")


def test_a_field_that_is_there_twice_or_is_no_text() -> None:
    form = form_of(written({"a": b"x", "b": b"\xff"}), KIND)
    assert (form.text("a"), form.text("c")) == ("x", None)
    with pytest.raises(Refusal, match="no text"):
        form.text("b")
    twice = form_of(written({"a": b"x"}).replace(b"--b0undary--", b"") + written({"a": b"y"}), KIND)
    with pytest.raises(Refusal, match="2 times"):
        twice.text("a")


def test_a_quoted_boundary() -> None:
    assert form_of(written({"a": b"x"}), f'multipart/form-data; boundary="{BOUNDARY}"; charset=x').text("a") == "x"
