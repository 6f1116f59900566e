"""`ponder train sample`: a model's own verified traces, for rejection sampling and for reward models."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ponder.commands.terminal import console, plain
from ponder.errors import InputError

if TYPE_CHECKING:
    from ponder.train.harvest import Harvest

JUDGED = "math_answer()"


def sample(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name, a GGUF file, or a run's model folder.")],
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Questions: files, gsm8k:FILE, generated:word_problems."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where traces are appended: JSONL.")],
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Samples for each question.")] = 8,
    completions: Annotated[
        int, typer.Option("--completions", min=0, help="Completions that label each step; 0 labels none.")
    ] = 0,
    questions: Annotated[int | None, typer.Option("--questions", min=1, help="Of each source, at the most.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Of a sample, thinking included.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", help="Of the samples, above 0.")] = 1.0,
    verifier: Annotated[str, typer.Option("--verifier", help="What says whether an answer is right.")] = JUDGED,
    seed: Annotated[int, typer.Option("--seed", help="Of questions that are generated, and of the samples.")] = 0,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Samples that are drawn side by side.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Sample a model's answers to questions with references, and keep each as a verified trace.

    Right ones teach (`ponder train distill` with way = "traces"); with --completions, steps are labelled for a process
    reward model (`ponder train reward`). What is in the file is not sampled again.

    ponder train sample ponder-135m generated:word_problems --questions 500 -o traces.jsonl
    ponder train sample runs/grpo/model questions.jsonl --n 4 --completions 8 -o labelled.jsonl
    """
    from ponder.commands import training

    training.require_packages()
    if not temperature > 0:
        raise InputError("samples at temperature 0 are all the same", "Give --temperature above 0, such as 1.0")
    with training.progress_bar(output.name) as bar:

        def show(done: int, total: int, found: Harvest) -> None:
            bar(done, total, {"accuracy": found.right / max(1, found.samples)})

        found = _harvested(
            model, sources, output, n, completions, questions, max_tokens, temperature, verifier, seed, slots, show
        )
    told = {"version": 1, "output": str(output), **asdict(found)}
    if as_json:
        print(json.dumps(told))
        return
    share = f"{found.right:,} of {found.samples:,} right ({found.right / max(1, found.samples):.0%})"
    labels = f" · {found.steps:,} steps labelled" if found.steps else ""
    console().print(f"{plain(str(output))}: {found.questions:,} questions · {share}{labels} · {found.tokens:,} tokens")


def _harvested(
    model: str,
    sources: list[str],
    output: Path,
    n: int,
    completions: int,
    questions: int | None,
    max_tokens: int,
    temperature: float,
    verifier: str,
    seed: int,
    slots: int,
    show: Callable[[int, int, Harvest], None],
) -> Harvest:
    from ponder.engine.torch_load import load
    from ponder.engine.torch_projection import narrowest
    from ponder.train.devices import find_devices
    from ponder.train.harvest import harvest, questions_asked
    from ponder.train.recipe import Source
    from ponder.train.rewards import Rewards
    from ponder.train.rollout import local
    from ponder.train.sampling import sampler_of
    from ponder.train.sources import questions as read
    from ponder.train.texts import Texts
    from ponder.verifiers.naming import verifier_named

    judged = verifier_named(verifier)
    if hasattr(judged, "with_model"):
        raise InputError(f"{verifier} asks a model, and none is at hand here", "Take a verifier that reads the answer")
    found = read([_source(Source, name, questions, seed) for name in sources])
    device = find_devices().device
    start = load(model, device=device, dtype=narrowest(device))
    texts = Texts.of(start)
    asks = questions_asked(found, texts, n, max_tokens, seed)
    context = max(len(ask.prompt) for ask in asks) + max_tokens
    sampler = sampler_of(start, texts, context, slots, temperature=temperature)
    rewards = Rewards({verifier: (judged, 1.0)})
    part = max(1, 4 * slots // n)
    name = model if not Path(model).exists() else str(Path(model).resolve())
    return harvest(
        output,
        asks,
        local(sampler, texts),
        rewards,
        texts,
        model=name,
        completions=completions,
        part=part,
        shown=show,
    )


def _source(kind: Any, name: str, limit: int | None, seed: int) -> Any:
    generated = name.startswith(("generated:", "gym:"))
    told: dict[str, Any] = {"from": name}
    if limit is not None:
        told["count" if generated else "limit"] = limit
    return kind(**told, **({"seed": seed} if generated else {}))
