"""Conversations as tokens: what is learnt, and what is read back."""

from __future__ import annotations

import pytest
from policies import tiny_texts
from tiny import tiny_tokenizer

from ponder.errors import InputError
from ponder.train.model import Loaded
from ponder.train.texts import Texts
from ponder.types import Sample, user

ASKED = (user("What is 2 + 3?"),)


def test_all_but_the_prompt_is_learnt_and_the_end_of_the_turn_too() -> None:
    texts = tiny_texts()
    row = texts.row(ASKED, "2 + 3 = 5.", "The answer is 5.")
    learnt = [token for token, mask in zip(row.ids, row.mask, strict=True) if mask]
    assert texts.decode(learnt) == "2 + 3 = 5.\n</think>\nThe answer is 5.<|im_end|>"
    assert learnt[-1] == texts.end  # it is also what pads elsewhere, and is learnt all the same
    assert list(row.ids[: -len(learnt)]) == texts.prompt(ASKED)
    assert texts.decode(row.ids).endswith("<|im_start|>assistant\n<think>\n" + texts.decode(learnt))


def test_an_answer_without_thinking_is_asked_for_without_it() -> None:
    texts = tiny_texts()
    row = texts.row(ASKED, "", "The answer is 5.")
    assert "<think>" not in texts.decode(row.ids)
    assert list(row.ids[: len(texts.prompt(ASKED, think=False))]) == texts.prompt(ASKED, think=False)


def test_a_trace_is_read_as_it_was_written() -> None:
    texts = tiny_texts()
    prompt, said = texts.trace(ASKED, "2 + 3 = 5.\nSo 5.", "The answer is 5.")
    sample = texts.read(Sample(0, "", tuple(prompt), tuple(said), (True,) * len(said), (None,) * len(said)))
    assert (sample.thinking, sample.answer) == ("2 + 3 = 5.\nSo 5.", "The answer is 5.")
    assert "".join(sample.text[span.start : span.end] for span in sample.spans) == sample.text
    assert not sample.text.endswith("<|im_end|>")


def test_a_budget_is_told_in_the_prompt() -> None:
    texts = tiny_texts()
    assert "at most 64 tokens" in texts.decode(texts.prompt(ASKED, budget=64))
    assert "at most" not in texts.decode(texts.prompt(ASKED))


def test_a_tokenizer_without_an_end_of_turn_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-turn token"):
        Texts.of(Loaded(None, tokenizer, "tiny"))  # type: ignore[arg-type]
