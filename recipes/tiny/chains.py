"""The task of this recipe, chains of operations on a digit, and the tokenizer that its models write with.

    4 aK bC cA        K, then C, then A:
    aK4=7
    bC7=1
    cA1=0             the answer is 0

What each operation makes of each digit stands in a table that a model has to learn by heart; a quarter of its entries
are hard: rare in what is imitated first, and then more often wrong than right. Each step is named, so that a model can
tell which one comes next, its operation is a single token, so that a small model soon learns to copy it, and its line
holds all that a verifier needs. Everything is drawn from a seed.
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
OPERATIONS = "ABCDEFGHIJKLMNOP"
"""None of them a digit: with one set of symbols for both, copying was not learnt."""


def table(seed: int = 0) -> dict[str, str]:
    """What becomes of each digit by each operation, such as "C4" to "7": for every operation a permutation."""
    draw = random.Random(f"table {seed}")
    return {
        by + value: result for by in OPERATIONS for value, result in zip(digits, draw.sample(digits, 10), strict=True)
    }


TABLE = table()
HARD, SELDOM, SLIP = 0.25, 0.06, 0.6
"""Share of the table's entries that are hard; how often one is drawn, for one that is not, in what is imitated first;
how often it is wrong in what is imitated after that."""


def slips(seed: int = 0) -> dict[str, str]:
    """What is mistaken for the result, by entry, where an entry is hard: always the same digit."""
    hard = random.Random("rare").sample(sorted(TABLE), int(HARD * len(TABLE)))
    draw = random.Random(f"slips {seed}")
    return {entry: draw.choice([digit for digit in digits if digit != TABLE[entry]]) for entry in hard}


SLIPS = slips()

END, ASKED, SAID = "<|end|>", "<|user|>", "<|assistant|>"
SPECIALS = (END, ASKED, SAID, "<think>", "</think>")
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|assistant|>' if message['role'] == 'assistant' else '<|user|>' }}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def chain(draw: random.Random, length: int, seldom: float = 1.0, slip: float = 0.0) -> Example:
    """A chain of `length` steps, with thinking that solves it but for slips.

    seldom: how often an operation that meets a hard entry is drawn, for one that does not; slip: how often the thinking
    is wrong there. What comes after a slip goes on from it, to the answer.
    """
    question, lines = [draw.choice(digits)], list[str]()
    right = value = question[0]
    for name in ascii_lowercase[:length]:
        weights = [seldom if by + value in SLIPS else 1.0 for by in OPERATIONS]
        question.append(name + draw.choices(OPERATIONS, weights)[0])
        entry = question[-1][-1] + value
        result = SLIPS[entry] if slip and entry in SLIPS and draw.random() < slip else TABLE[entry]
        lines.append(f"{question[-1]}{value}={result}")
        right, value = TABLE[question[-1][-1] + right], result
    told = {"kind": f"{length} steps"}
    return Example(" ".join(question), value, "\n".join(lines), right, TASK, metadata=told)


def step(operation: str, value: str) -> str:
    """The line for an operation such as "bC" on a digit; "" where there is none."""
    result = TABLE.get(operation[-1] + value)
    return f"{operation}{value}={result}" if result else ""


def cut(example: Example, draw: random.Random) -> Example:
    """The same with its thinking cut as a budget cuts it: every other time after a line, else anywhere.

    The answer stays the right one, so a guess is learnt where more than a step is missing.
    """
    text = example.thinking + "\n"
    ends = [place for place, character in enumerate(text, 1) if character == "\n"]
    end = draw.choice(ends) if draw.random() < 0.5 else draw.randint(1, len(text))
    return replace(example, thinking=text[:end], steps=())


def chains(
    count: int,
    lengths: Sequence[int],
    seed: int,
    beside: Collection[str] = (),
    seldom: float = 1.0,
    slip: float = 0.0,
) -> list[Example]:
    """`count` chains of lengths that take turns; none whose question is among `beside`."""
    draw, found = random.Random(f"{TASK} {seed}"), list[Example]()
    while len(found) < count:
        made = chain(draw, lengths[len(found) % len(lengths)], seldom, slip)
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
