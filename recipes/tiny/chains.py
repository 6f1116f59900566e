"""The task of this recipe, chains of small sums, and the tokenizer that its models write with.

    4 a* b3 c5        times three, then 3 more, then 5 more; of each result the last digit is carried on:
    a*:4=12
    b3:2=5
    c5:5=10           the answer is 0

Each step is named, so that a model can tell which one comes next, and its operation is a single token, so that a small
model soon learns to copy it. Everything is drawn from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase, digits
from typing import TYPE_CHECKING

from ponder.data.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TASK = "chains"
TIMES, FACTOR = "*", 3
"""Multiplying by three loses nothing: from the last digit that comes out one can tell the one that went in."""

END, ASKED, SAID = "<|end|>", "<|user|>", "<|assistant|>"
SPECIALS = (END, ASKED, SAID, "<think>", "</think>")
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|assistant|>' if message['role'] == 'assistant' else '<|user|>' }}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def chain(draw: random.Random, length: int) -> Example:
    """A chain of `length` steps, with the thinking that solves it."""
    question, lines = [str(draw.randrange(10))], list[str]()
    value = question[0]
    for name in ascii_lowercase[:length]:
        question.append(name + (TIMES if draw.random() < 0.3 else str(draw.randint(1, 9))))
        lines.append(step(question[-1], value))
        value = lines[-1][-1]
    metadata = {"kind": f"{length} steps"}
    return Example(" ".join(question), value, "\n".join(lines), value, TASK, metadata=metadata)


def step(operation: str, value: str) -> str:
    """The line for an operation such as "b7" on a digit; "" where that is no digit."""
    if not (len(value) == 1 and value in digits):
        return ""
    by, number = operation[-1], int(value)
    return f"{operation}:{value}={FACTOR * number if by == TIMES else number + int(by)}"


def cut(example: Example, draw: random.Random) -> Example:
    """The same with its thinking cut as a budget cuts it: every other time after a line, else anywhere.

    The answer stays the right one, so a guess is learnt where more than a step is missing.
    """
    text = example.thinking + "\n"
    ends = [place for place, character in enumerate(text, 1) if character == "\n"]
    end = draw.choice(ends) if draw.random() < 0.5 else draw.randint(1, len(text))
    return replace(example, thinking=text[:end], steps=())


def chains(count: int, lengths: Sequence[int], seed: int, beside: Collection[str] = ()) -> list[Example]:
    """`count` chains of lengths that take turns; none whose question is among `beside`."""
    draw, found = random.Random(f"{TASK} {seed}"), list[Example]()
    while len(found) < count:
        made = chain(draw, lengths[len(found) % len(lengths)])
        if made.question not in beside:
            found.append(made)
    return found


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and five special ones: any text has ids."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    found = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in SPECIALS])
    return PreTrainedTokenizerFast(tokenizer_object=found, eos_token=END, chat_template=TEMPLATE)


def write_tokenizer(folder: Path) -> None:
    """The tokenizer as a folder that transformers reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer().save_pretrained(folder)
