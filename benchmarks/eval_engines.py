"""How fast an evaluation is from end to end on either embedded engine, and how much of the bulk sampler's speed it has.

    python benchmarks/eval_engines.py [--questions 48] [--strategy 'vote(8)'] [--tokens 96] [--rounds 2] FILE

What `ponder eval` does once its model is open: questions of FILE, each under a strategy of several samples with
`--tokens` tokens a sample, results and samples kept in a database. `sampler` draws as many samples of the same prompts,
of as many tokens at most, in one call and without anything around it: no more than that is to be had.

Each peer runs in a process of its own, and they take turns, round by round, so that all see the same machine; no round
has the questions of another. The first one warms up and is not counted; of the others the medians are told.
`tokens_per_core_second` counts the time that the cores spent, for machines that others use too. Tokens are those drawn.
Prints one line of JSON last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hardware import machine
from sampler import _peak, _worked

PEERS = ("hf", "gguf", "sampler")

Work = Callable[[int], Awaitable[int]]
"""Does a round, and says how many tokens were drawn."""


def main() -> None:
    """Opens every peer in a child, and lets them take turns."""
    asked = _arguments()
    if asked.peer:
        asyncio.run(child(asked))
        return
    peers = {name: _Peer(name) for name in asked.peers.split(",")}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in peers}
    for number in range(asked.rounds + 1):
        for name, peer in peers.items():
            found[name].append(peer.ask(number))
            print(f"{name:8} round {number} {json.dumps(found[name][-1])}", flush=True)
    told = {name: _told(rounds[1:]) for name, rounds in found.items()}
    for peer in peers.values():
        peer.close()
    result = {
        "benchmark": "eval_engines",
        "model": asked.model,
        "hardware": machine(),
        "load": os.getloadavg()[0],
        **{name: getattr(asked, name) for name in ("questions", "strategy", "tokens", "rounds")},
        "peers": told,
        "ratios": {
            f"hf/{other}": {kind: round(told["hf"][kind] / told[other][kind], 2) for kind in RATES}
            for other in told
            if "hf" in told and other != "hf"
        },
    }
    print(json.dumps(result))


RATES = ("tokens_per_second", "tokens_per_core_second")


def _told(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {
        "tokens_per_second": round(statistics.median(each["tokens"] / each["seconds"] for each in rounds), 1),
        "tokens_per_core_second": round(statistics.median(each["tokens"] / each["busy"] for each in rounds), 1),
        "tokens": statistics.median(each["tokens"] for each in rounds),
        "peak_mib": max(each["peak_mib"] for each in rounds),
    }


class _Peer:
    """A child that does a round for every line it gets."""

    def __init__(self, name: str) -> None:
        command = [sys.executable, *sys.argv, "--peer", name]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, number: int) -> dict[str, float]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{number}\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"a child ended with {self._child.wait()}")
        found: dict[str, float] = json.loads(line)
        return found

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()


# ------------------------------------------------------------------------ in a child


async def child(asked: argparse.Namespace) -> None:
    """Opens a peer, and does a round for each line on standard input."""
    work = await (open_sampler(asked) if asked.peer == "sampler" else open_evaluation(asked))
    while line := await asyncio.to_thread(sys.stdin.readline):
        start, worked = time.perf_counter(), _worked()
        tokens = await work(int(line))
        seconds, busy = time.perf_counter() - start, _worked() - worked
        print(json.dumps({"tokens": tokens, "seconds": seconds, "busy": busy, "peak_mib": _peak("cpu")}), flush=True)


def _tasks(asked: argparse.Namespace) -> Callable[[int], Any]:
    """The questions of each round."""
    from ponder.tasks import load

    whole = load(asked.file)

    def task(number: int) -> Any:
        questions = whole.questions[number * asked.questions : (number + 1) * asked.questions]
        if len(questions) < asked.questions:
            raise SystemExit(f"{asked.file} has not enough questions for so many rounds")
        return replace(whole, questions=questions)

    return task


async def _model(name: str, temperature: float = 0.6) -> Any:
    from ponder.chat.model import model_of
    from ponder.engine import open_engine

    model = model_of(await open_engine(name))
    return replace(model, params=replace(model.params, temperature=temperature))


async def open_evaluation(asked: argparse.Namespace) -> Work:
    """`ponder eval` on the engine of this name."""
    from ponder.engine.many import questions_at_once
    from ponder.evals.cached import Account
    from ponder.evals.results import Setting
    from ponder.evals.run import evaluate
    from ponder.ops.store import Store
    from ponder.strategies.naming import strategy_named
    from ponder.types import Budget

    task, model = _tasks(asked), await _model(f"{asked.peer}:{asked.model}")
    samples = strategy_named(asked.strategy).at_once  # type: ignore[attr-defined]
    setting = Setting(asked.strategy, Budget(asked.tokens * samples))
    at_once = questions_at_once(model.engine.uri, samples, asked.at_once)
    folder = tempfile.TemporaryDirectory()

    async def work(number: int) -> int:
        account = Account()
        with Store.open(Path(folder.name, "ponder.db")) as store:
            await evaluate(task(number), model, setting, at_once=at_once, store=store, account=account)
        return account.tokens

    return work


async def open_sampler(asked: argparse.Namespace) -> Work:
    """The bulk sampler on the same weights, prompts and numbers, and nothing else."""
    import torch

    from ponder.engine.torch_load import load
    from ponder.engine.torch_projection import narrowest
    from ponder.engine.torch_sampler import Job, Sampler
    from ponder.strategies.naming import strategy_named

    task, model = _tasks(asked), await _model(f"hf:{asked.model}")
    samples = strategy_named(asked.strategy).at_once  # type: ignore[attr-defined]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    loaded = load(asked.model, dtype=narrowest(torch.device("cpu")), device=torch.device("cpu"))
    end_ids = model.engine.info.eos_ids
    sampler = Sampler(
        loaded.model.to(narrowest(torch.device("cpu"))),
        end_ids=end_ids,
        pieces=[b""] * loaded.model.get_input_embeddings().weight.shape[0],
        slots=asked.slots,
        context=1024,
        temperature=model.params.temperature,
        top_p=model.params.top_p,
        top_k=model.params.top_k,
        min_p=model.params.min_p,
        fold=True,
    )

    async def work(number: int) -> int:
        prompts = [await model.prompt(question.messages, True) for question in task(number).questions]
        jobs = [Job(prompt.ids, samples, asked.tokens, seed=seed) for seed, prompt in enumerate(prompts)]
        return sum(len(one.ids) for drawn in sampler.sample(jobs) for one in drawn)

    return work


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="questions with answers, such as MAWPS or GSM8K")
    parser.add_argument("--model", default="ponder-135m", help="a name of the catalogue")
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--strategy", default="vote(8)")
    parser.add_argument("--tokens", type=int, default=96, help="of a sample")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--at-once", type=int, default=None, help="questions side by side, where not the default")
    parser.add_argument("--slots", type=int, default=128, help="rows of the sampler")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--peer", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
