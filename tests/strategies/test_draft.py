"""What one sample does under its plan: landing softly, waiting, closing, answering, whatever the model says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from drive import (
    SEVEN,
    Outcome,
    Wasteful,
    Watched,
    answering,
    babbler,
    check,
    of,
    think,
    turn_of,
)

from ponder.chat.formats import FAMILIES, THINK_TAGS
from ponder.engine.scripted import EOS, TOKENIZER, ScriptedEngine
from ponder.errors import (
    BudgetTooSmall,
    NoAnswer,
)
from ponder.protocols import Chunk, SamplingParams
from ponder.strategies.draft import LEAST_ANSWER, Draft, Generate, Plan, Restore, Write, Written, plan
from ponder.types import Budget, ThinkingDelta

PONDER, ELICIT, GPT_OSS = FAMILIES["ponder"], FAMILIES["elicit"], FAMILIES["gpt-oss"]
CLOSING = len(PONDER.closing)
OPENER = len(PONDER.answer_opener)
LAST = OPENER + LEAST_ANSWER
RAMBLE = "thinking and " * 100


def drafted(tokens: int = 100, **how: Any) -> Draft:
    """A draft of `tokens` tokens that begins inside thinking."""
    return Draft(0, (1, 2), PONDER, planned(tokens, **how), how.get("think", True), frozenset({EOS}))


def written(text: str) -> Written:
    return Written(text, tuple(TOKENIZER.encode(text)))


def planned(tokens: int, reserve: int = 16, thinking: int | None = None, least: int = 0, think: bool = True) -> Plan:
    texts = [written(text) for text in (PONDER.closing, PONDER.answer_opener, PONDER.wait)]
    return plan(tokens, reserve, thinking, least, think, *texts)


# ---------------------------------------------------------------- the plan


def test_the_plan_follows_its_equations() -> None:
    made = planned(100, reserve=26)  # K = 100 - 26 - 10
    assert (CLOSING, OPENER) == (10, 13)
    assert (made.thinking, made.reserve, made.grace, made.last) == (64, 26, 16, 17)
    assert made.think


def test_the_reserve_never_falls_below_what_forces_an_answer() -> None:
    made = planned(64, reserve=1)
    assert (made.reserve, made.thinking, made.grace) == (17, 64 - 17 - 10, 9)


def test_a_cap_on_thinking_bounds_grace_and_minimum() -> None:
    made = planned(500, thinking=10, least=50)
    assert (made.thinking, made.grace, made.min_thinking) == (10, 2, 10)


def test_an_opener_that_does_not_fit_is_left_out() -> None:
    made = planned(16)
    assert (made.opener.ids, made.reserve, made.last) == ((), 16, 4)
    assert not made.think, "no room is left for thinking"
    assert (made.thinking, made.grace) == (0, 0)


def test_a_reserve_of_everything_leaves_no_thinking() -> None:
    made = planned(40, reserve=400)
    assert (made.reserve, made.think, made.min_thinking) == (40, False, 0)


def test_a_direct_plan_has_no_grace_and_no_minimum() -> None:
    made = planned(100, least=20, think=False)
    assert (made.think, made.grace, made.min_thinking) == (False, 0, 0)


def test_a_budget_without_room_for_an_answer_is_refused() -> None:
    with pytest.raises(BudgetTooSmall, match=r"a budget of 3 tokens leaves no room for an answer\. give at least 4"):
        planned(3)
    assert planned(4).reserve == 4


# ---------------------------------------------------------------- soft landing


def landed(thinking: str, tokens: int = 100) -> Outcome:
    """K = 64 of 100, and the grace begins at 48."""
    engine = babbler("<think>\n" + thinking + "x" * 300)
    outcome = think(of(engine), Budget(tokens=tokens, answer=26))
    check(engine, outcome, tokens)
    return outcome


def test_thinking_ends_with_the_sentence_where_that_ends_within_the_grace() -> None:
    outcome = landed("x" * 50 + ". And then")
    assert outcome.sample.thinking == "x" * 50 + "."
    assert outcome.total.thinking == 51


@pytest.mark.parametrize("end", ["?", "!", '."', "…", "。", "\n", ".\n\n"])
def test_sentences_end_in_many_ways(end: str) -> None:
    outcome = landed("x" * 50 + end + " And then")
    assert outcome.sample.thinking.strip() == ("x" * 50 + end).strip()[: len(outcome.sample.thinking)]
    assert 50 <= len(outcome.sample.thinking) <= 52


def test_thinking_without_a_sentence_end_is_cut_at_the_cap() -> None:
    outcome = landed("x" * 300)
    assert outcome.total.thinking == 64
    assert outcome.sample.thinking == "x" * 64


def test_a_sentence_that_ends_before_the_grace_is_not_the_end() -> None:
    assert landed("x" * 30 + ". " + "x" * 300).total.thinking == 64


def test_a_sentence_that_ends_where_the_grace_begins_is_the_end_at_once() -> None:
    outcome = landed("x" * 47 + ".")
    assert outcome.total.thinking == 48
    assert outcome.total.calls == 3, "thinking, answer, and the end of the answer"


def test_the_answer_has_at_least_its_reserve() -> None:
    engine = babbler("x" * 1000)
    outcome = think(of(engine), Budget(tokens=200, answer=90))
    check(engine, outcome, 200)
    assert outcome.total.thinking == 200 - 90 - CLOSING
    assert outcome.total.answer == 90


def test_a_cap_on_thinking_leaves_the_rest_to_the_answer() -> None:
    engine = babbler("x" * 1000)
    outcome = think(of(engine), Budget(tokens=200, thinking=20))
    assert (outcome.total.thinking, outcome.total.answer) == (20, 200 - 20 - CLOSING)


# ---------------------------------------------------------------- a minimum of thinking


def waits(turn: str) -> str:
    """Closes its thinking at once, again after each "Wait", and answers then."""
    return "4" if "</think>" in turn else "Hm." * (not turn.endswith("Hm.")) + "</think>4"


@pytest.mark.parametrize("burst", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("specials", [(), ("<think>", "</think>")])
def test_thinking_that_closes_too_early_waits(burst: int, specials: Sequence[str]) -> None:
    engine = answering(waits, burst=burst, specials=specials)
    outcome = think(of(engine), Budget(tokens=300, min_thinking=12))
    check(engine, outcome, 300)
    # What a large chunk held beside the marker is written again, and counts as written.
    waited = 2 if burst < 4 and not (burst == 3 and specials) else outcome.sample.thinking.count("Wait")
    assert outcome.sample.thinking == "Hm." + waited * "\nWaitHm."
    assert waited >= 2
    assert outcome.sample.answer == "4"
    assert outcome.total.cancelled >= 1, "the markers that were taken back cost"
    assert len(outcome.sample.thinking) >= 12


def test_thinking_that_is_long_enough_is_left_alone() -> None:
    engine = answering(waits)
    outcome = think(of(engine), Budget(tokens=300, min_thinking=3))
    assert (outcome.sample.thinking, outcome.total.cancelled) == ("Hm.", 0)


def test_a_turn_that_ends_too_early_waits_too() -> None:
    engine = answering(lambda turn: "4" if "</think>" in turn else "Hm.")
    outcome = think(of(engine), Budget(tokens=300, min_thinking=12))
    check(engine, outcome, 300)
    assert outcome.sample.thinking.count("Wait") == 2
    assert outcome.sample.answer == "4"


def test_waiting_takes_nothing_from_the_answer() -> None:
    # K = 80 - 40 - 11 = 29: room for some waiting, and then for none.
    engine = answering(waits)
    outcome = think(of(engine), Budget(tokens=80, answer=40, min_thinking=29))
    check(engine, outcome, 80)
    assert outcome.sample.answer == "4"
    waited = outcome.sample.thinking.count("Wait")
    assert waited >= 1
    spent = outcome.total.tokens - outcome.total.answer
    assert spent + len(PONDER.wait) + 40 + CLOSING > 80, "there was room for another"


def test_tokens_that_nobody_read_leave_no_room_for_waiting() -> None:
    """A server goes on for a while after it was told to stop; what it wastes is not there any more."""
    engine = Wasteful(answering(waits), 60)
    outcome = think(of(engine), Budget(tokens=100, min_thinking=30, answer=25))
    assert outcome.total.tokens <= 100
    assert outcome.total.generated == engine.generated + engine.wasted
    assert engine.wasted == 60
    assert "Wait" not in outcome.sample.thinking
    assert outcome.sample.answer == "4"


@pytest.mark.parametrize("said", ["Hm.</think>", "Hm."])
def test_in_a_hurry_nothing_waits(said: str) -> None:
    draft = drafted(least=30)
    draft.next()
    draft.hurry = True
    draft.feed(Chunk(0, tuple(said.encode()), said))
    assert not draft.deaf
    draft.feed(Chunk(0, (EOS,), "", finish="stop"))
    action = draft.next()
    assert isinstance(action, Write)
    assert action.written in (draft.plan.closing, draft.plan.opener)


def test_a_turn_that_ended_waits_only_where_the_answer_keeps_its_share() -> None:
    for spare, waits_ in ((len(PONDER.wait), False), (len(PONDER.wait) + 1, True)):
        draft = drafted(least=30)
        draft.next()
        draft.feed(Chunk(0, (*b"Hm.", EOS), "Hm.", finish="stop"))
        kept = draft.plan.reserve + CLOSING
        draft.wasted(draft.plan.tokens - draft.used - kept - spare)
        action = draft.next()
        assert isinstance(action, Write)
        assert (action.written is draft.plan.wait) == waits_


# ---------------------------------------------------------------- closing and answering


def test_a_turn_that_ends_inside_thinking_is_closed_and_answered() -> None:
    engine = answering(lambda turn: "4" if "</think>" in turn else "Hm")
    outcome = think(of(engine), 200)
    check(engine, outcome, 200)
    assert (outcome.sample.thinking, outcome.sample.answer, outcome.sample.finish) == ("Hm", "4", "stop")
    assert EOS not in outcome.sample.ids[:-1], "the end of the turn stayed in the middle of it"


def test_an_empty_answer_is_begun_for_the_model() -> None:
    def reply(turn: str) -> str:
        return " 7." if turn.endswith("The answer is") else "" if "</think>" in turn else "Hm.</think>\n"

    engine = answering(reply)
    outcome = think(of(engine), 200)
    check(engine, outcome, 200)
    assert outcome.sample.answer == "The answer is 7."
    assert outcome.sample.finish == "stop"


def test_a_model_that_will_not_answer_is_forced_to() -> None:
    engine = answering(lambda turn: "" if "</think>" in turn else "Hm.</think>")
    watched = Watched(engine)
    outcome = think(of(watched), 200)
    check(engine, outcome, 200)
    assert outcome.sample.answer == "The answer is7"
    assert [params.ignore_eos for _, _, params in watched.asked].count(True) == 1


def test_white_space_is_no_answer() -> None:
    engine = babbler("Hm.</think>", eos=False)
    outcome = think(of(engine), 100)
    check(engine, outcome, 100)
    assert isinstance(outcome.error, NoAnswer)
    assert "the model gave no answer" in str(outcome.error)
    assert outcome.total.tokens == 100, "it was not tried to the end"


@pytest.mark.parametrize("burst", [1, 3, 100])
def test_a_direct_answer_that_opens_thinking_is_begun_for_the_model(burst: int) -> None:
    engine = answering(lambda turn: " 7" if turn.endswith("The answer is") else "<think>Hm, let me see.", burst=burst)
    outcome = think(of(engine, THINK_TAGS), 200, think=False)
    check(engine, outcome, 200)
    assert (outcome.sample.thinking, outcome.sample.answer) == ("", "The answer is 7")
    assert outcome.total.thinking == 0


def test_a_model_that_insists_on_thinking_directly_is_kept_within_the_budget() -> None:
    engine = answering(lambda turn: "<think>" + RAMBLE)
    outcome = think(of(engine, THINK_TAGS), 200, think=False)
    check(engine, outcome, 200)
    assert outcome.sample.answer.startswith("The answer is")


def test_a_second_block_of_thinking_is_thinking() -> None:
    engine = answering(lambda turn: "" if turn.endswith("5") else "one</think>4 <think>two</think> and 5")
    outcome = think(of(engine), 200)
    check(engine, outcome, 200)
    assert outcome.sample.thinking == "onetwo"
    assert "4" in outcome.sample.answer
    assert outcome.sample.answer.endswith("5")


@pytest.mark.parametrize("tokens", range(40, 100, 3))
def test_a_second_block_that_takes_all_leaves_the_first_answer(tokens: int) -> None:
    engine = answering(
        lambda turn: "4<think>" + RAMBLE if turn.endswith("</think>\n") else "one</think>\n4<think>" + RAMBLE
    )
    outcome = think(of(engine), tokens)
    check(engine, outcome, tokens)
    assert outcome.error is None
    assert outcome.sample.answer


def test_without_room_for_the_closing_marker_the_answer_still_comes() -> None:
    """The model closes its thinking, says nothing, and thinks again until no closing marker fits any more."""
    for tokens in range(45, 80):
        engine = answering(lambda turn: RAMBLE if "</think>" in turn else "x</think><think>" + RAMBLE)
        outcome = think(of(engine), tokens)
        check(engine, outcome, tokens)
        assert outcome.error is None, tokens
        assert outcome.sample.answer, tokens


def test_closing_leaves_room_for_the_least_answer_or_is_left_out() -> None:
    for room, closes in ((LEAST_ANSWER, True), (LEAST_ANSWER - 1, False)):
        draft = drafted()
        draft.next()
        draft.feed(Chunk(0, (120,), "x"))
        draft.wasted(draft.plan.tokens - draft.used - CLOSING - room)
        action = draft.next()
        assert (isinstance(action, Write) and action.written is draft.plan.closing) == closes
        assert closes or action == Generate(1, ignore_eos=True)


def test_what_is_forced_is_not_asked_for_politely_in_between() -> None:
    """Forced to go on the model gives a line break first; asked politely it would only end its turn again."""

    def source(prefix: tuple[int, ...], index: int, params: SamplingParams) -> Iterator[int]:
        blank = len(turn_of(prefix)) - len(bytes(b for b in turn_of(prefix) if b < 256).rstrip(b"\n"))
        yield from ([10] if blank < 3 else [SEVEN]) * 9 if params.ignore_eos else [EOS]

    engine = ScriptedEngine(source)
    watched = Watched(engine)
    outcome = think(of(watched), 200)
    check(engine, outcome, 200)
    assert outcome.sample.answer.endswith("7")
    forced = [params.ignore_eos for _, _, params in watched.asked]
    assert (forced[:-1], forced[-1]) == (sorted(forced[:-1]), False), "the last is the rest of the answer"
    assert len(forced) < 8


def test_where_thinking_is_asked_for_in_words_the_closing_begins_the_answer() -> None:
    engine = answering(lambda turn: " 7." if turn.endswith("The answer is") else RAMBLE)
    watched = Watched(engine)
    outcome = think(of(watched, ELICIT), 200)
    check(engine, outcome, 200)
    assert outcome.sample.answer == "The answer is 7."
    assert outcome.sample.thinking.startswith("thinking and thinking")
    prompt = engine.tokenizer.decode(watched.asked[0][0]).decode()
    assert "step by step" in prompt


@pytest.mark.parametrize("said", ["The answer is", "the answer is", "The final answer is", "the final answer is:"])
def test_the_words_that_announce_an_answer_are_none(said: str) -> None:
    engine = answering(lambda turn: "" if "nswer is" in turn else f"3 + 4 makes seven. So {said}")
    outcome = think(of(engine, ELICIT), 200)
    check(engine, outcome, 200)
    assert outcome.sample.answer.endswith("7")
    assert outcome.sample.answer.startswith(said.rstrip(":"))


def test_channels_are_closed_by_their_own_markers() -> None:
    specials = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
    engine = answering(
        lambda turn: "4<|return|>" if "final" in turn else "<|channel|>analysis<|message|>" + RAMBLE, specials=specials
    )
    outcome = think(of(engine, GPT_OSS), 200)
    check(engine, outcome, 200)
    assert outcome.sample.answer == "4"
    assert outcome.sample.thinking.startswith("thinking and")
    assert GPT_OSS.closing in outcome.sample.text
    assert "<|" not in outcome.sample.thinking + outcome.sample.answer


# ---------------------------------------------------------------- half characters


def test_no_request_continues_inside_a_character() -> None:
    """Servers decode each request anew: the half that came before would be lost, or spoil what follows."""
    engine = babbler("漢字🤔" * 40)
    watched = Watched(engine)
    for tokens in range(60, 90):
        watched.asked.clear()
        engine.generated = 0
        outcome = think(of(watched), tokens)
        check(engine, outcome, tokens)
        assert "\ufffd" not in outcome.sample.text
        for prefix, _, _ in watched.asked:
            engine.tokenizer.decode(prefix).decode()  # raises within a character


def test_a_dropped_character_is_asked_for_as_a_whole() -> None:
    """K = 64, and the grace begins at 48: three more characters at 4 tokens, and one for each first byte."""
    engine = babbler("🤔" * 100)
    outcome = think(of(engine), Budget(tokens=100, answer=26))
    check(engine, outcome, 100)
    assert outcome.sample.thinking == "🤔" * 15


def test_an_answer_that_ends_in_half_a_character_without_room_to_write_it_again_is_over() -> None:
    draft = drafted(40, think=False)
    assert draft.next() == Generate(40 - LAST)
    draft.feed(Chunk(0, (120,) * 38, "x" * 38, pending=True))
    assert draft.next() is None
    assert draft.sample().finish == "length"


@pytest.mark.parametrize("burst", [2, 3, 5])
def test_text_that_came_with_half_a_character_is_written_again(burst: int) -> None:
    """K = 64: after 48 tokens a chunk holds letters and the first bytes of a character."""
    engine = babbler("ab漢c🤔" * 60, burst=burst)
    for tokens in range(80, 120):
        engine.generated = 0
        outcome = think(of(engine), tokens)
        check(engine, outcome, tokens)


def test_a_restored_text_is_told_once() -> None:
    draft = drafted()
    assert isinstance(draft.next(), Generate)
    first = draft.feed(Chunk(0, (65, 0xE6), "A", (None, None), pending=True))
    assert first == [ThinkingDelta("A")]
    restore = draft.next()
    assert restore == Restore("A")
    assert (draft.ids, draft.used) == ([], 2)
    draft.restore("A", [65])
    assert (draft.ids, draft.written, draft.used) == ([65], 1, 3)
    assert draft.end() == []
    assert draft.sample().text == "A"


def test_half_a_character_at_the_end_is_dropped_and_costs() -> None:
    draft = drafted()
    draft.next()
    draft.feed(Chunk(0, (65,), "A"))
    draft.feed(Chunk(0, (0xE6,), "", pending=True))
    assert draft.end() == []
    assert (draft.ids, draft.cost().cancelled, draft.sample().text) == ([65], 1, "A")


# ---------------------------------------------------------------- in a hurry, at the end


def test_a_terse_draft_looks_for_no_end_of_a_sentence() -> None:
    for terse in (False, True):
        draft = drafted()
        draft.terse = terse
        action = draft.next()
        assert isinstance(action, Generate)
        draft.feed(Chunk(0, (120,) * action.tokens, "x" * action.tokens, finish="length"))
        assert draft.next() == (Write(draft.plan.closing) if terse else Generate(1))


def test_a_halted_draft_asks_for_nothing() -> None:
    draft = drafted()
    draft.halted = True
    assert draft.next() is None
    assert draft.sample().finish == "cancelled"


def test_a_draft_in_a_hurry_closes_at_once() -> None:
    draft = drafted()
    draft.hurry = True
    action = draft.next()
    assert isinstance(action, Write)
    assert action.written.text == PONDER.closing
    draft.write(action.written)
    assert draft.next() == Generate(100 - CLOSING - LAST)
    draft.final = True
    assert draft.next() == Generate(100 - CLOSING), "the last request keeps nothing back"


def test_a_failure_right_after_an_unwanted_marker_tells_what_was_said() -> None:
    draft = drafted(200, least=20)
    assert isinstance(draft.next(), Generate)
    said = "Hm.</think>4"
    events = [event for byte in said.encode() for event in draft.feed(Chunk(0, (byte,), chr(byte)))]
    assert draft.deaf
    assert events == [ThinkingDelta("H"), ThinkingDelta("m"), ThinkingDelta(".")]
    assert draft.end() == []
    assert draft.sample().text == "Hm.</think>"
    assert draft.cost().cancelled == 1
