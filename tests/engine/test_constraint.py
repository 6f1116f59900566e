"""What a grammar lets a sample say, token by token, over a vocabulary of bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.chat.answer_grammar import json_schema, regular
from ponder.engine.constraint import KEPT, Constraint, Vocabulary
from ponder.engine.guide import Guide
from ponder.errors import InputError

END, CALL, WORD, OPEN = 256, 257, 258, 259


class Bytes:
    """Every byte, an end of turn, a special token, and tokens of several bytes."""

    def __init__(self, pieces: Sequence[bytes] | None = None, ends: tuple[int, ...] = (END,)) -> None:
        self.pieces = (
            [*(bytes([i]) for i in range(256)), b"<end>", b"<call>", b"cde", b'{"'] if pieces is None else pieces
        )
        self.size, self.end_ids = len(self.pieces), ends

    def tokenize(self, text: str) -> list[int]:
        """The longest token at each place, special ones too; what has none is left out."""
        ids, rest = [], text.encode()
        while rest:
            longest = max((p for p in self.pieces if rest.startswith(p)), key=len, default=b"")
            ids += [self.pieces.index(longest)] if longest else []
            rest = rest[len(longest) or 1 :]
        return ids

    def piece(self, token: int) -> bytes:
        return self.pieces[token]

    def special_ids(self) -> tuple[int, ...]:
        return (CALL,) if self.size > CALL else ()


VOCABULARY = Vocabulary(Bytes())


def begun(grammar: str, said: bytes = b"") -> Constraint:
    return VOCABULARY.begin(grammar, list(said))


def allowed(constraint: Constraint) -> set[int]:
    return {int(token) for token in constraint.allowed().nonzero()[0]}


def test_only_tokens_that_the_text_can_go_on_with_are_allowed() -> None:
    assert allowed(begun(regular("a[bx]*(cde)?"))) == {ord("a")}
    assert allowed(begun(regular("a[bx]*(cde)?"), b"ab")) == {*b"bxc", WORD, END}
    assert allowed(begun(regular("a[bx]*(cde)?"), b"abc")) == {ord("d")}


def test_text_that_must_come_is_written_as_the_tokenizer_would() -> None:
    grammar = json_schema({"type": "object", "properties": {"a": {}}, "required": ["a"]})
    assert allowed(begun(grammar)) == {OPEN}
    assert allowed(begun(grammar, b"{")) == {ord('"')}  # another spelling may be gone on with


@given(st.lists(st.sampled_from([*b"abcde{", WORD, OPEN, CALL, END]), max_size=8))
def test_a_token_is_allowed_where_it_is_taken(said: list[int]) -> None:
    pattern = '(ab|cde|[{]"?)+'
    state = begun(regular(pattern))
    text = b""
    for token in said:
        if not state.allowed()[token]:
            with pytest.raises(InputError, match="cannot be followed"):
                state.fork().take(token)
            continue
        if token == END:
            assert re.fullmatch(pattern, text.decode())
            break
        state.take(token)
        text += Bytes().piece(token)
        assert state.allowed()[END] == bool(re.fullmatch(pattern, text.decode()))


def test_special_tokens_are_no_text() -> None:
    constraint = begun(json_schema({"type": "string"}), b'"a')
    assert {ord("<"), WORD} <= allowed(constraint)
    assert not {END, CALL} & allowed(constraint)


def test_a_marker_is_one_token_where_the_model_has_it_and_else_its_text() -> None:
    assert allowed(begun('start: @"<call>" "a"')) == {CALL}
    assert allowed(begun('start: @"<other>" "a"')) == {ord("<")}
    assert allowed(begun('start: x\nx: %json {"const": "@\\"<call>\\""}', b'"@\\"')) == {ord("<")}


def test_text_that_is_spelled_like_a_special_token_is_no_special_token() -> None:
    constraint = begun(json_schema({"const": "a<call><end>"}))
    for byte in b'"a<call><end>"':
        assert allowed(constraint) <= {byte, WORD, OPEN}
        constraint.take(byte)
    assert constraint.complete


def test_it_is_complete_where_nothing_can_follow() -> None:
    assert not begun(regular("ab"), b"a").complete
    assert begun(regular("ab"), b"ab").complete
    assert not begun(regular("ab(c|d)?"), b"ab").complete
    assert begun(regular("ab(c|d)?"), b"abd").complete
    assert not begun(regular("[0-9]+"), b"12").complete
    assert begun(regular("")).complete


def test_characters_of_several_bytes_are_taken_byte_by_byte() -> None:
    said = "é€😀".encode()
    constraint = begun(regular("é[€x]😀"))
    for place, byte in enumerate(said):
        others = {ord("x")} if place == 2 else set()
        assert allowed(constraint) == {byte} | others
        constraint.take(byte)
    assert constraint.complete
    strings = begun(json_schema({"type": "string"}), b'"\xe2\x82')
    assert allowed(strings) == set(range(0x80, 0xC0))


def test_a_fork_goes_its_own_way() -> None:
    constraint = begun(regular("(ab|ac)d"), b"a")
    constraint.allowed()
    twin = constraint.fork()
    twin.take(ord("b"))
    assert allowed(twin) == {ord("d")}
    assert allowed(constraint) == {*b"bc"}
    constraint.take(ord("c"))
    assert allowed(constraint) == {ord("d")}


@given(st.integers(0, 14))
def test_it_begins_anywhere_in_a_text(place: int) -> None:
    text = b'{"a": "xyz"}'
    grammar = json_schema(
        {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}, "required": ["a"]}
    )
    begin, rest = begun(grammar, text[:place]), begun(grammar)
    for byte in text[:place]:
        rest.take(byte)
    assert allowed(begin) == allowed(rest)
    assert begin.complete == rest.complete == (place >= len(text))


@pytest.mark.parametrize(
    "grammar",
    [
        "start: /[a/",
        "start: nowhere",
        "no grammar\nat all",
        '{"grammars": 3}',
        "{",
        json_schema({"type": "no type"}),
        json_schema({"not": {"type": "string"}}),
        json_schema({"$ref": "https://example.com/schema"}),
        json_schema({"type": "string", "pattern": "(?=a)"}),
    ],
)
def test_what_is_no_grammar_is_one_line(grammar: str) -> None:
    with pytest.raises(InputError) as raised:
        begun(grammar)
    assert "\n" not in str(raised.value)
    assert 20 < len(str(raised.value)) < 500
    assert raised.value.mend


def test_tokens_that_a_grammar_does_not_allow_are_refused() -> None:
    with pytest.raises(InputError, match=r"does not begin with these 2 tokens.* same grammar"):
        begun(regular("abc"), b"ax")


def test_a_vocabulary_without_a_needed_byte_is_told_of() -> None:
    few = Vocabulary(Bytes([b"a", b"b", b"<end>"], (2,)))
    constraint = few.begin(regular("ax"), [])
    constraint.take(0)
    with pytest.raises(InputError, match="no token for"):
        constraint.allowed()


def test_a_model_without_an_end_of_turn_is_refused() -> None:
    with pytest.raises(InputError, match="no end-of-turn"):
        Vocabulary(Bytes([b"a"], ()))


def test_several_ends_of_turn_are_allowed_together() -> None:
    two = Vocabulary(Bytes([b"a", b"<end>", b"b", b"<other end>"], (1, 3)))
    assert allowed(two.begin(regular("ab?"), [0])) == {1, 2, 3}
    assert two.begin(regular("a"), [0]).complete


def test_compiled_grammars_are_kept_but_not_for_ever() -> None:
    vocabulary = Vocabulary(Bytes())
    first = vocabulary.begin(regular("a"))
    first.take(ord("a"))
    assert allowed(vocabulary.begin(regular("a"))) == {ord("a")}  # what one sample said is not in another
    for number in range(2 * KEPT):
        vocabulary.begin(regular(f"a{number}"))
    assert len(vocabulary._compiled) == KEPT


# ---------------------------------------------------------------- with texts that end a sample


def followed(guide: Guide, text: bytes) -> list[str | None]:
    return [guide.take(byte) for byte in text]


def test_a_sample_ends_with_the_token_that_completes_a_stop() -> None:
    guide = Guide(Bytes().piece, stops=(b"</think>", "é".encode()))
    assert guide.allowed() is None
    assert not guide.complete
    assert followed(guide.fork(), b"a<</think") == [None] * 9
    assert followed(guide, b"a<</think>")[-2:] == [None, "length"]
    assert followed(Guide(Bytes().piece, stops=("é".encode(),)), "aé".encode()) == [None, None, "length"]
    assert Guide(Bytes().piece, stops=(b"d",)).take(WORD) == "length"


def test_forks_do_not_share_what_they_have_read() -> None:
    guide = Guide(Bytes().piece, stops=(b"ab",))
    guide.take(ord("a"))
    twin = guide.fork()
    assert twin.take(ord("x")) is None
    assert guide.take(ord("b")) == "length"


def test_what_is_complete_has_stopped_even_where_a_stop_comes_too() -> None:
    guide = Guide(Bytes().piece, begun(regular("abc")), (b"b", b"c"))
    assert followed(guide, b"abc") == [None, "length", "stop"]
    assert guide.complete
