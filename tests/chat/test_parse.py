"""Replies taken apart: nothing lost, the same for any split, thinking never in the answer."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.chat import formats
from ponder.chat.formats import FAMILIES, ThinkingFormat
from ponder.chat.parse import Parser, Piece, coalesce

# ---------------------------------------------------------------- helpers


def parse(
    format: ThinkingFormat, chunks: str | Sequence[str], inside: bool = False, tools: bool = True
) -> tuple[list[Piece], Parser]:
    parser = Parser(format, inside, tools)
    pieces: list[Piece] = []
    for chunk in [chunks] if isinstance(chunks, str) else chunks:
        pieces += parser.feed(chunk)
    pieces += parser.finish()
    return coalesce(pieces), parser


def parts(format: ThinkingFormat, text: str, inside: bool = False, tools: bool = True) -> tuple[str, str]:
    """Thinking and answer of a whole reply."""
    pieces, _ = parse(format, text, inside, tools)
    assert "".join(piece.text for piece in pieces) == text
    return tuple("".join(p.text for p in pieces if p.kind == kind) for kind in ("thinking", "answer"))  # type: ignore[return-value]


def calls(format: ThinkingFormat, text: str, inside: bool = False) -> list[tuple[str, str]]:
    pieces, _ = parse(format, text, inside)
    assert "".join(piece.text for piece in pieces) == text
    return [(piece.call.name, piece.call.arguments) for piece in pieces if piece.call]


FRAGMENTS = sorted(
    {
        *(m for each in FAMILIES.values() for m in (*each.open_markers, *each.close_markers, *each.ends)),
        *("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "<|tool_call>", "<tool_call|>"),
        *("<|start|>assistant", "<|channel|>", "<|message|>", "<|constrain|>json", "commentary to=functions.f "),
        *('{"name": "f", "arguments": {"x": "a"}}', '{"name": "f", "parameters": {}}', '[{"name": "f"}]'),
        *(
            "[f(a=1), g()]",
            "call:f{x:1}",
            "{",
            "[",
            '"',
            "\\",
            "}",
            "]",
            " ",
            "\n",
            "\n\n",
            "\t",
            "yes",
            "é",
            "<",
            "</",
        ),
    }
)
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=12).map("".join)
families = st.sampled_from(list(FAMILIES.values()))


@st.composite
def splits(draw: st.DrawFn) -> tuple[str, list[str]]:
    text = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return text, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


# ---------------------------------------------------------------- properties


@settings(max_examples=600, deadline=None)
@given(families, splits(), st.booleans(), st.booleans())
def test_any_split_gives_the_same_pieces_and_loses_nothing(
    format: ThinkingFormat, split: tuple[str, list[str]], inside: bool, tools: bool
) -> None:
    text, chunks = split
    whole, at_once = parse(format, text, inside, tools)
    pieces, in_parts = parse(format, chunks, inside, tools)
    letters, one_by_one = parse(format, list(text), inside, tools)
    assert pieces == whole == letters
    assert "".join(piece.text for piece in pieces) == text
    assert at_once.state == in_parts.state == one_by_one.state


@settings(max_examples=600, deadline=None)
@given(families, texts, st.booleans(), st.booleans())
def test_no_marker_is_in_the_answer(format: ThinkingFormat, text: str, inside: bool, tools: bool) -> None:
    markers = (*format.open_markers, *format.ends)
    if not format.keep_close:
        markers += format.close_markers
    pieces, _ = parse(format, text, inside, tools)
    for piece in pieces:
        if piece.kind in ("answer", "thinking"):
            assert not [marker for marker in markers if marker in piece.text]
            assert piece.text.strip()


@settings(max_examples=300, deadline=None)
@given(families, splits(), st.booleans())
def test_a_parser_can_be_resumed_anywhere(format: ThinkingFormat, split: tuple[str, list[str]], inside: bool) -> None:
    text, chunks = split
    cut = len(chunks[0])
    straight = Parser(format, inside)
    told = sum(len(piece.text) for piece in straight.feed(text[:cut]))
    resumed = Parser.resume(format, text[:cut], inside)
    assert resumed.state == straight.state
    held_back = cut - told
    expected = []
    for piece in [*straight.feed(text[cut:]), *straight.finish()]:
        new = piece.text[held_back:]
        held_back = max(0, held_back - len(piece.text))
        if new or piece.call:
            expected.append(Piece(piece.kind, new, piece.call))
    assert coalesce([*resumed.feed(text[cut:]), *resumed.finish()]) == coalesce(expected)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="<[{\"'"), max_size=40), families)
def test_text_without_markers_is_passed_on_at_once(text: str, format: ThinkingFormat) -> None:
    if not text.strip() or any(text[0] in m for m in (*format.open_markers, *format.close_markers)):
        text = "x" + text
    if any(marker[:1] in text for marker in (*format.open_markers, *format.close_markers)):
        return
    pieces = coalesce(Parser(format, tools=True).feed(text))
    assert "".join(piece.text for piece in pieces) == text.rstrip()


def test_every_word_of_an_ordinary_answer_comes_out_with_the_next_one() -> None:
    parser = Parser(formats.QWEN3)
    assert parser.feed("The") == [Piece("answer", "The")]
    assert parser.feed(" answer") == [Piece("answer", " answer")]
    assert parser.feed(" is <") == [Piece("answer", " is")]
    assert parser.feed(" 4") == [Piece("answer", " < 4")]
    assert parser.feed(".\n") == [Piece("answer", ".")]
    assert parser.finish() == [Piece("marker", "\n")]


# ---------------------------------------------------------------- each family's ordinary reply

REPLIES = [
    (formats.PONDER, True, "2 + 2 = 4\n</think>\nThe answer is 4.", "2 + 2 = 4", "The answer is 4."),
    (formats.PONDER, False, "The answer is 4.", "", "The answer is 4."),
    (formats.DEEPSEEK_R1, True, "Hm.\n\nYes.\n</think>\n\n**4**", "Hm.\n\nYes.", "**4**"),
    (formats.DEEPSEEK_V3_1, True, "Hm.</think>4<｜end▁of▁sentence｜>", "Hm.", "4"),
    (formats.QWQ, True, "\nHm\n</think>\n\n4<|im_end|>\n", "Hm", "4"),
    (formats.QWEN3, False, "<think>\nHm\n</think>\n\n4", "Hm", "4"),
    (formats.QWEN3, False, "<think>\n\n</think>\n\n4", "", "4"),
    (formats.MISTRAL, False, "[THINK]Hm[/THINK]4</s>", "Hm", "4"),
    (formats.GEMMA, False, "<|channel>thought\nHm\n<channel|>4<turn|>", "Hm", "4"),
    (formats.GRANITE, False, "<think>Hm</think>\n<response>4</response>", "Hm", "4"),
    (formats.GRANITE, False, "<think>Hm<response>4</response>", "Hm", "4"),
    (
        formats.GRANITE_PHRASES,
        False,
        "Here's my thought process:\n\nHm\n\nHere is my response:\n\n4",
        "Hm",
        "4",
    ),
    (
        formats.GPT_OSS,
        False,
        "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>",
        "Hm",
        "4",
    ),
    (formats.ELICIT, True, "2 + 2 = 4.\nThe answer is 4.", "2 + 2 = 4.", "The answer is 4."),
    (formats.ELICIT, True, "4, so the answer is 4. The answer is 4.", "4, so", "the answer is 4. The answer is 4."),
]


@pytest.mark.parametrize(("format", "inside", "text", "thinking", "answer"), REPLIES)
def test_thinking_and_answer_of_each_family(
    format: ThinkingFormat, inside: bool, text: str, thinking: str, answer: str
) -> None:
    assert parts(format, text, inside) == (thinking, answer)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_what_ponder_writes_closes_what_it_opens(family: ThinkingFormat) -> None:
    parser = Parser(family, inside=family.inside("" if family.opened_by_prompt else family.start))
    parser.feed(family.open_markers[0] if family.open_markers and parser.state == "before" else "")
    parser.feed("Hm")
    assert parser.state == "thinking"
    assert not [piece for piece in parser.feed(family.wait) if piece.kind == "answer"]
    parser.feed(family.closing)
    assert parser.feed("x ")[-1] == Piece("answer", "x") or family.keep_close
    assert parser.state == "answer"


# ---------------------------------------------------------------- mistakes of models


def test_a_prompt_that_opens_the_block_makes_thinking_without_an_opening_marker() -> None:
    """Not zero tokens of thinking, and no thinking in the answer."""
    assert parts(formats.QWQ, "so 4\n</think>\n\n4", inside=True) == ("so 4", "4")


def test_a_second_opening_marker_does_not_need_a_second_close() -> None:
    assert parts(formats.QWEN3, "<think>a<think>b</think>c") == ("ab", "c")
    assert parts(formats.QWQ, "<think>\na</think>c", inside=True) == ("a", "c")


def test_a_leftover_close_stays_out_of_the_answer() -> None:
    assert parts(formats.QWEN3, "<think>a</think>b\n</think>\nc") == ("a", "bc")
    assert parts(formats.QWEN3, "a </think> b") == ("", "ab")


def test_thinking_can_begin_again_after_the_answer_began() -> None:
    assert parts(formats.QWEN3, "<think>a</think>b<think>c</think>d") == ("ac", "bd")


def test_thinking_that_never_closes_is_no_answer() -> None:
    pieces, parser = parse(formats.QWEN3, "<think>a b </thin")
    assert parser.state == "thinking"
    assert [piece.kind for piece in pieces] == ["marker", "thinking"]
    assert pieces[-1].text == "a b </thin"


def test_state_follows_the_text() -> None:
    parser = Parser(formats.QWEN3)
    states = []
    for chunk in ("\n", "<think>", "a", "</think>", "b"):
        parser.feed(chunk)
        states.append(parser.state)
    assert states == ["before", "thinking", "thinking", "answer", "answer"]


def test_a_marker_may_be_split_at_every_byte() -> None:
    for format, text in ((formats.QWEN3, "<think>a</think>b"), (formats.MISTRAL, "[THINK]a[/THINK]b")):
        for cut in range(len(text)):
            pieces, _ = parse(format, [text[:cut], text[cut:]])
            assert [(p.kind, p.text) for p in pieces if p.kind != "marker"] == [("thinking", "a"), ("answer", "b")]


def test_of_markers_that_begin_alike_the_longest_wins() -> None:
    alike = ThinkingFormat("alike", open="<t>", close="</t>", closes=("</t>!",))
    for text, answer in (("<t>a</t>!b", "b"), ("<t>a</t>b", "b"), ("<t>a</t>", "")):
        assert parts(alike, text) == ("a", answer)
        assert parse(alike, list(text))[0] == parse(alike, text)[0]


def test_a_word_that_only_looks_like_a_marker_is_text() -> None:
    assert parts(formats.QWEN3, "a </thinker> b < think") == ("", "a </thinker> b < think")
    assert parts(formats.GRANITE_PHRASES, "Here is my cat") == ("", "Here is my cat")


@pytest.mark.parametrize("end", formats.ENDS)
def test_end_of_turn_tokens_stay_out_of_the_answer(end: str) -> None:
    assert parts(formats.PONDER, f"4\n{end}") == ("", "4")


def test_tags_in_an_elicited_reply_reach_neither_side() -> None:
    assert parts(formats.ELICIT, "<think>a</think>\nThe answer is 4", inside=True) == ("a", "The answer is 4")
    assert parts(formats.ELICIT, "The answer is 4", inside=False) == ("", "The answer is 4")


# ---------------------------------------------------------------- continued turns


def test_a_continued_turn_inside_thinking_goes_on_thinking() -> None:
    parser = Parser.resume(formats.QWQ, "step one\n\n", inside=True)
    assert parser.state == "thinking"
    # The white space belongs to the old text.
    assert parser.feed("step two\n</think>\n\n4") == [
        Piece("thinking", "step two"),
        Piece("marker", "\n</think>\n\n"),
        Piece("answer", "4"),
    ]


def test_a_continued_turn_past_thinking_goes_on_answering() -> None:
    parser = Parser.resume(formats.QWEN3, "<think>\na\n</think>\n\nThe answer")
    assert parser.state == "answer"
    assert parser.feed(" is 4") == [Piece("answer", " is 4")]


def test_a_marker_cut_by_the_continuation_is_still_a_marker() -> None:
    parser = Parser.resume(formats.QWEN3, "<think>a</thi")
    assert parser.feed("nk>b") == [Piece("marker", "nk>"), Piece("answer", "b")]


# ---------------------------------------------------------------- tool calls

WEATHER = '{"name": "weather", "arguments": {"city": "Oslo"}}'
CALLED = ("weather", '{"city": "Oslo"}')


def test_hermes_calls_after_thinking() -> None:
    text = f"<think>a</think>\n\nLet me see.\n<tool_call>\n{WEATHER}\n</tool_call>\n<tool_call>{WEATHER}</tool_call>"
    pieces, _ = parse(formats.QWEN3, text)
    assert [p.kind for p in pieces if p.kind != "marker"] == ["thinking", "answer", "tool_call", "tool_call"]
    assert [(p.call.name, p.call.arguments) for p in pieces if p.call] == [CALLED, CALLED]
    assert len({p.call.id for p in pieces if p.call}) == 2


def test_a_call_is_given_as_soon_as_it_ends() -> None:
    parser = Parser(formats.QWEN3)
    assert parser.feed(f"<tool_call>{WEATHER}") == []
    assert [piece.kind for piece in parser.feed("</tool_call>")] == ["tool_call"]
    assert parser.feed("ok") == [Piece("answer", "ok")]


def test_without_tools_calls_are_text() -> None:
    text = f"<tool_call>{WEATHER}</tool_call>"
    assert parts(formats.QWEN3, text, tools=False) == ("", text)
    assert Parser(formats.QWEN3, tools=False).feed('{"name"') == [Piece("answer", '{"name"')]
    addressed = "<|channel|>commentary to=functions.f<|message|>{}"
    assert parts(formats.GPT_OSS, addressed, tools=False) == ("", "{}")


def test_a_call_made_inside_thinking_is_not_lost() -> None:
    text = f"I need the weather.\n<tool_call>{WEATHER}</tool_call>"
    assert calls(formats.QWQ, text, inside=True) == [CALLED]
    assert parts(formats.QWQ, text, inside=True) == ("I need the weather.", "")


def test_a_call_only_spoken_of_in_thinking_stays_thinking() -> None:
    spoken = "I could write <tool_call> here, as <tool_call>{...</think>4"
    assert parts(formats.QWQ, spoken, inside=True) == (spoken[: spoken.index("</think>")], "4")
    # Nor does it hold back what comes after the thinking.
    parser = Parser(formats.QWQ, inside=True)
    parser.feed(spoken)
    assert parser.state == "answer"


def test_an_opener_only_spoken_of_in_the_answer_is_passed_on() -> None:
    parser = Parser(formats.QWEN3)
    said = parser.feed("Write <tool_call> first, then")
    assert coalesce(said) == [Piece("answer", "Write <tool_call> first, then")]


def test_a_malformed_call_is_kept_raw() -> None:
    pieces, _ = parse(formats.QWEN3, '<tool_call>{"name": weather}</tool_call>\nok')
    assert [(p.kind, p.text) for p in pieces] == [
        ("tool_call", '<tool_call>{"name": weather}</tool_call>'),
        ("marker", "\n"),
        ("answer", "ok"),
    ]
    assert pieces[0].call is not None
    assert (pieces[0].call.name, pieces[0].call.arguments) == ("", '{"name": weather}')


def test_a_call_cut_off_by_the_end_of_the_reply_is_kept() -> None:
    assert calls(formats.QWEN3, f"<tool_call>{WEATHER}") == [CALLED]
    assert calls(formats.QWEN3, f"<tool_call>{WEATHER}<|im_end|>") == [CALLED]
    assert calls(formats.QWEN3, f"<tool_call>{WEATHER[:19]}") == [("", WEATHER[:19])]


def test_a_closer_inside_a_string_does_not_end_the_call() -> None:
    arguments = json.dumps({"code": "print('</tool_call>')"})
    text = f'<tool_call>{{"name": "run", "arguments": {arguments}}}</tool_call>done'
    assert calls(formats.QWEN3, text) == [("run", arguments)]
    assert parts(formats.QWEN3, text) == ("", "done")
    assert parse(formats.QWEN3, list(text))[0] == parse(formats.QWEN3, text)[0]


def test_a_quote_that_never_closes_does_not_swallow_the_rest() -> None:
    text = '<tool_call>{"name": "f}</tool_call>done'
    assert calls(formats.QWEN3, text) == [("", '{"name": "f}')]
    assert parts(formats.QWEN3, text) == ("", "done")


def test_mistral_calls_end_with_the_turn() -> None:
    text = '[THINK]a[/THINK]Wait.[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[ARGS]{}</s>'
    assert calls(formats.MISTRAL, text) == [("f", '{"x": 1}'), ("g", "{}")]
    assert parts(formats.MISTRAL, text) == ("a", "Wait.")


def test_several_calls_of_one_block_share_its_text() -> None:
    text = '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]'
    pieces, _ = parse(formats.MISTRAL, text)
    assert [(p.kind, p.text, p.call and p.call.name) for p in pieces] == [
        ("tool_call", text, "f"),
        ("tool_call", "", "g"),
    ]


@pytest.mark.parametrize("text", ['{"name": "f", "parameters": {"x": 1}}<|eom_id|>', "[f(x=1)]", " [f(x=1)]\n"])
def test_bare_calls_that_are_the_whole_answer(text: str) -> None:
    assert calls(formats.ELICIT, text) == [("f", '{"x": 1}')]
    assert calls(formats.MISTRAL, "[THINK]a[/THINK]" + text) == [("f", '{"x": 1}')]


def test_a_bare_call_with_more_text_is_an_answer() -> None:
    text = '{"name": "f", "parameters": {"x": 1}} is what I would call'
    assert parts(formats.QWEN3, text) == ("", text)


def test_an_answer_that_begins_like_a_call_waits_only_while_it_may_be_one() -> None:
    parser = Parser(formats.QWEN3)
    assert parser.feed("[1, 2") == [Piece("answer", "[1, 2")]
    parser = Parser(formats.QWEN3)
    assert parser.feed('{"na') == []
    assert parser.feed("tion") == [Piece("answer", '{"nation')]
    parser = Parser(formats.QWEN3)
    parser.feed("So: ")
    assert parser.feed('{"name') == [Piece("answer", ' {"name')]


def test_gpt_oss_channels() -> None:
    text = (
        "<|channel|>analysis<|message|>Look it up.<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>One moment.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json"
        '<|message|>{"city": "Oslo"}<|call|>'
        "<|start|>assistant to=functions.now<|channel|>commentary json<|message|><|call|>"
    )
    assert parts(formats.GPT_OSS, text) == ("Look it up.", "One moment.")
    assert calls(formats.GPT_OSS, text) == [CALLED, ("now", "{}")]


def test_a_broken_header_of_a_channel_swallows_no_text() -> None:
    assert parts(formats.GPT_OSS, "<|channel|>analysis\nHm<|end|><|channel|>final 4") == ("Hm", "4")
    long = "word " * 100
    assert parts(formats.GPT_OSS, f"<|channel|>final {long}<|message|>") == ("", long.strip())
    assert Parser(formats.GPT_OSS).feed(f"<|channel|>final {long}")[-1] == Piece("answer", long.strip())


def test_gpt_oss_resumes_after_what_ponder_wrote() -> None:
    parser = Parser.resume(formats.GPT_OSS, formats.GPT_OSS.open + "Hm" + formats.GPT_OSS.closing)
    assert parser.state == "answer"
    assert parser.feed("4<|return|>") == [Piece("answer", "4"), Piece("marker", "<|return|>")]
