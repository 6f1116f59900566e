"""Tiny training runs: a model, examples, traces and a recipe in a folder; steps take milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from tiny import END, tiny_model, tiny_tokenizer

from ponder.data.examples import Example, write_examples
from ponder.train.recipe import Recipe
from ponder.train.recipe_file import read
from ponder.types import Question, Sample, Score, Scored, Trace, to_json, user


def model_folder(folder: Path, **config: Any) -> Path:
    """A folder with the tiny model and its tokenizer."""
    path = folder / "tiny"
    tiny_model(**config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def examples_file(folder: Path, count: int = 12) -> Path:
    """Sums with their thinking."""
    made = [
        Example(f"{a}+1?", f"The answer is {a + 1}.", f"{a} + 1 = {a + 1}.", reference=str(a + 1)) for a in range(count)
    ]
    write_examples(folder / "examples.jsonl", made)
    return folder / "examples.jsonl"


def traces_file(folder: Path, count: int = 6) -> Path:
    """Traces of a right and a wrong sample each, both scored, in the tiny tokenizer's own tokens."""
    path = folder / "traces.jsonl"
    path.write_text("".join(to_json(_trace(number)) + "\n" for number in range(count)))
    return path


def _trace(number: int) -> Trace:
    tokenizer = tiny_tokenizer()
    prompt = tuple(tokenizer(f"{number}+1?<think>\n", add_special_tokens=False).input_ids)
    samples, events = [], []
    for index, right in enumerate((True, False)):
        said = number + (1 if right else 2)
        thinking, answer = f"{number} + 1 = {said}.", f"The answer is {said}."
        text = f"{thinking}\n</think>\n{answer}"
        ids = (*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.convert_tokens_to_ids(END))
        samples.append(
            Sample(index, text, prompt, ids, (True,) * len(ids), (None,) * len(ids), thinking=thinking, answer=answer)
        )
        events.append(Scored(Score(float(right), "math_answer"), index))
    return Trace(
        f"trace-{number}",
        Question((user(f"{number}+1?"),), reference=str(number + 1)),
        answer=samples[0].answer,
        samples=tuple(samples),
        events=tuple(events),
    )


def document(folder: Path, kind: str = "sft", **changes: Any) -> dict[str, Any]:
    """A recipe for the tiny model, as a TOML document; `changes` go over it, None takes a key away."""
    found = {
        "kind": kind,
        "model": str(folder / "tiny"),
        "thinking": "ponder",
        "steps": 6,
        "batch": 4,
        "longest": 128,
        "tokens": 512,
        "save_every": 2,
        "full": True,
        "optimizer": {"rate": 1e-3, "schedule": "constant"},
        "data": {"sources": [str(folder / "examples.jsonl")]},
    }
    found |= changes
    return {name: value for name, value in found.items() if value is not None}


def prepared(folder: Path, kind: str = "sft", **changes: Any) -> Recipe:
    """A recipe whose model and examples are in `folder`."""
    if not (folder / "tiny").exists():
        model_folder(folder)
        examples_file(folder)
        traces_file(folder)
    return read(document(folder, kind, **changes))


def recipe_file(folder: Path, kind: str = "sft", **changes: Any) -> Path:
    """The same as a file."""
    prepared(folder, kind, **changes)
    path = folder / f"{kind}.toml"
    path.write_text(tomli_w.dumps(document(folder, kind, **changes)))
    return path


def losses(lines: Sequence[dict[str, Any]]) -> list[float]:
    """The loss of each step."""
    return [line["loss"] for line in lines]
