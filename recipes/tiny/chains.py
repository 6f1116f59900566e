"""The task of this recipe, chains of small sums, and the tokenizer that its models write with.

    4 a:3* b:3+ c:5+        from left to right, of each result the last digit carried on:
    a:3*4=12
    b:3+2=5
    c:5+5=10                the answer is 0

Each step is named, so that a model can tell which one comes next. Everything is drawn from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from pathlib import Path
from string import ascii_lowercase, digits
from typing import TYPE_CHECKING

from ponder.data.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TASK = "chains"
FACTORS = (3, 7, 9)
"""They lose nothing: from what comes out one can tell what went in, so no step can be left out."""

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
        sign, by = ("*", draw.choice(FACTORS)) if draw.random() < 0.3 else ("+", draw.randint(1, 9))
        question.append(f"{name}:{by}{sign}")
        lines.append(step(question[-1], value))
        value = lines[-1][-1]
    metadata = {"kind": f"{length} steps"}
    return Example(" ".join(question), value, "\n".join(lines), value, TASK, metadata=metadata)


def step(operation: str, value: str) -> str:
    """The line for an operation such as "b:7*" on a digit; "" where that is no digit."""
    if not (len(value) == 1 and value in digits):
        return ""
    by = int(operation[-2])
    return f"{operation}{value}={by * int(value) if operation.endswith('*') else by + int(value)}"


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
