"""Signatures and seals of thinking: what was changed anywhere is not taken."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.server.signatures import MARK, SignedThinking, Signer, ours
from ponder.types import Message, Question, Thinking, Trace, from_json, to_json

SIGNER = Signer(b"a secret of the server")
OTHER = Signer(b"another server's secret")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@given(TEXTS, TEXTS, st.integers(0, 50))
def test_a_signature_is_for_one_text_one_model_and_one_position(text: str, model: str, position: int) -> None:
    signature = SIGNER.sign(text, model, position)
    assert ours(signature)
    assert SIGNER.verified(signature, text, model, position)
    assert not SIGNER.verified(signature, text + "x", model, position)
    assert not SIGNER.verified(signature, text, model + "x", position)
    assert not SIGNER.verified(signature, text, model, position + 1)
    assert not SIGNER.verified(signature[:-2], text, model, position)
    assert not OTHER.verified(signature, text, model, position)


def test_parts_cannot_be_moved_from_one_field_to_the_next() -> None:
    assert SIGNER.sign("b", "a", 1) != SIGNER.sign("ab", "", 1)
    assert SIGNER.sign("1", "m", 0) != SIGNER.sign("", "m", 1)


@given(TEXTS, TEXTS, TEXTS)
def test_what_was_sealed_opens_as_it_was(text: str, signature: str, redacted: str) -> None:
    thinking = SignedThinking(text, signature=signature, redacted=redacted)
    sealed = SIGNER.seal(thinking, "m")
    opened = SIGNER.opened(sealed, "m")
    assert opened == (thinking if signature or redacted else Thinking(text))
    assert SIGNER.seal(thinking, "m") == sealed
    assert OTHER.opened(sealed, "m") is None


def test_for_another_model_the_upstreams_signature_stays_behind() -> None:
    sealed = SIGNER.seal(SignedThinking("so", signature="EqQB"), "m")
    assert SIGNER.opened(sealed, "n") == Thinking("so")


def test_a_seal_hides_its_text() -> None:
    text = "the launch code is 0000 0000"
    sealed = SIGNER.seal(Thinking(text), "m")
    raw = base64.urlsafe_b64decode(sealed.removeprefix(MARK))
    for word in text.split():
        assert word.encode() not in raw


@given(st.data())
def test_no_changed_seal_opens(data: st.DataObject) -> None:
    raw = bytearray(base64.urlsafe_b64decode(SIGNER.seal(Thinking("some thinking"), "m").removeprefix(MARK)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert SIGNER.opened(MARK + base64.urlsafe_b64encode(bytes(raw)).decode(), "m") is None


@given(st.text(max_size=80) | st.text("ABCDab01-_=", max_size=200).map(lambda text: MARK + text))
def test_anything_else_opens_as_nothing_and_raises_nothing(sealed: str) -> None:
    assert SIGNER.opened(sealed, "m") is None
    assert not SIGNER.verified(sealed, "text", "m", 0)


def test_a_signature_is_no_seal_and_a_seal_no_signature() -> None:
    assert SIGNER.opened(SIGNER.sign("t", "m", 0), "m") is None
    assert not SIGNER.verified(SIGNER.seal(Thinking("t"), "m"), "t", "m", 0)


def test_other_versions_are_ours_and_an_upstreams_is_not() -> None:
    assert ours("ponder2.abc")
    assert not ours("EqQBCkYIARgCKkBx")
    assert not ours("")


def test_short_secrets_are_refused_and_none_shows() -> None:
    with pytest.raises(ValueError, match="at least 16 bytes"):
        Signer(b"short")
    assert "secret" not in repr(SIGNER)


def test_a_trace_keeps_the_text_and_no_signature() -> None:
    parts = (SignedThinking("thought", signature="EqQB"),)
    told = to_json(Trace("t1", Question((Message("assistant", parts),))))
    assert "EqQB" not in told
    assert from_json(Trace, told).question.messages[0].parts == (Thinking("thought"),)
