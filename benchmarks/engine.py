"""How fast the embedded engine is, beside the wheel's own server class on the same file in the same run.

    python benchmarks/engine.py [--quick] [--threads N]

Measures, each a median over rounds that alternate between the two so that both see the same machine:

- tokens per second at 1, 4 and 16 samples of one 400-token prompt, ponder over raw xllamacpp;
- the time of 8 samples of a 400-token prompt over the time of 1, for several lengths;
- tokens computed again when a sample is forked in mid-generation, four ways;
- time to the first token of a new prompt and of one seen before;
- `import ponder` and `ponder --help`.

Prints a table, what the arithmetic allows, and one line of JSON last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from hardware import machine

from ponder.engine.llamacpp import LlamaEngine, LlamaSettings, open_llamacpp
from ponder.engine.weights import resolve
from ponder.protocols import SamplingParams

PEER = r"""
import json, sys, time, xllamacpp as x
settings = json.loads(sys.stdin.readline())
p = x.CommonParams()
p.model.path = settings["path"]
p.lora_adapters = [x.CommonAdapterLoraInfo(path, 1.0) for path in settings["adapters"]]
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = settings["threads"]
p.n_ctx, p.n_parallel, p.kv_unified, p.n_batch = settings["cells"], 16, True, 512
p.flash_attn_type, p.verbosity = x.llama_flash_attn_type(1), 0
p.n_gpu_layers = 0
server = x.Server(p)
print("ready", flush=True)
for line in sys.stdin:
    ask = json.loads(line)
    times, start = [], time.perf_counter()
    server.handle_completions(
        {"prompt": ask["prompt"], "max_tokens": ask["tokens"], "n": ask["n"], "stream": True, "logprobs": 1,
         "ignore_eos": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        lambda reply: times.append(time.perf_counter() - start) and None,
    )
    print(json.dumps([times[0], times[-1]]), flush=True)
"""


class Peer:
    """xllamacpp's server class in a process of its own, called as its documentation shows."""

    def __init__(self, settings: dict[str, object]) -> None:
        command = [sys.executable, "-c", PEER]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]
        self._say(settings)
        while self.process.stdout.readline().strip() != "ready":
            if self.process.poll() is not None:
                raise SystemExit("xllamacpp's server did not start")

    def _say(self, line: object) -> None:
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()

    def time(self, prompt: list[int], n: int, tokens: int) -> tuple[float, float]:
        """Seconds to the first token and to the last."""
        self._say({"prompt": prompt, "n": n, "tokens": tokens})
        while True:
            line = self.process.stdout.readline()
            if line.startswith("["):
                first, last = json.loads(line)
                return first, last


async def timed(engine: LlamaEngine, prompt: list[int], n: int, tokens: int) -> tuple[float, float]:
    """Seconds to the first token and to the last, through ponder."""
    params = SamplingParams(tokens, temperature=0.7, seed=random.getrandbits(32), ignore_eos=True)
    start, first, last = time.perf_counter(), 0.0, 0.0
    async for chunk in engine.sample(prompt, n, params):
        if chunk.ids:
            last = time.perf_counter() - start
            first = first or last
    return first, last


def words(count: int) -> list[int]:
    """A prompt of random tokens: nothing of it can be cached."""
    return [random.randint(500, 40_000) for _ in range(count)]


def rate(n: int, tokens: int, first: float, last: float) -> float:
    """Tokens a second after the first token."""
    return n * (tokens - 1) / (last - first)


async def rates(engine: LlamaEngine, peer: Peer, rounds: int, tokens: int) -> dict[str, object]:
    """Tokens per second, ponder and the peer; the median of their ratios round by round, and its quartiles."""
    found: dict[str, object] = {}
    for n in (1, 4, 16):
        ours, theirs = [], []
        for turn in range(rounds * (3 if n == 1 else 1)):  # one sample is the shortest, and the noisiest
            for mine in (True, False) if turn % 2 else (False, True):
                if mine:
                    ours.append(rate(n, tokens, *await timed(engine, words(400), n, tokens)))
                else:
                    theirs.append(rate(n, tokens, *peer.time(words(400), n, tokens)))
        low, ratio, high = statistics.quantiles((a / b for a, b in zip(ours, theirs, strict=True)), n=4)
        found[str(n)] = {
            "ponder": round(statistics.median(ours), 1),
            "xllamacpp": round(statistics.median(theirs), 1),
            "ratio": round(ratio, 3),
            "quartiles": [round(low, 3), round(high, 3)],
        }
    return found


async def many_against_one(engine: LlamaEngine, peer: Peer, rounds: int) -> dict[str, object]:
    """Time of 8 samples over time of 1, prompt of 400 tokens, for several lengths of the samples.

    `limit` is what it would be if a token of a sample cost no more than a token of the prompt.
    """
    found: dict[str, object] = {}
    for tokens in (8, 16, 32):
        ours, theirs = [], []
        for _ in range(rounds):
            one, eight = [(await timed(engine, words(400), n, tokens))[1] for n in (1, 8)]
            ours.append(eight / one)
            one, eight = [peer.time(words(400), n, tokens)[1] for n in (1, 8)]
            theirs.append(eight / one)
        found[str(tokens)] = {
            "ponder": round(statistics.median(ours), 2),
            "xllamacpp": round(statistics.median(theirs), 2),
            "limit": round((400 + 8 * tokens) / (400 + tokens), 2),
        }
    return found


async def forks(engine: LlamaEngine) -> dict[str, object]:
    """Tokens computed again by forking each of 4 samples 4 ways at a random token."""
    prompt, sequences = words(300), {i: list[int]() for i in range(4)}
    async for chunk in engine.sample(prompt, 4, SamplingParams(48, temperature=1.0, seed=1, ignore_eos=True)):
        sequences[chunk.index] += chunk.ids

    async def fork(ids: list[int]) -> int:
        prefix = prompt + ids[: random.randint(1, len(ids))]
        return sum([c.prompt_computed async for c in engine.sample(prefix, 4, SamplingParams(4, seed=2))])

    start = time.perf_counter()
    computed = await asyncio.gather(*[fork(ids) for ids in sequences.values()])
    return {"forks": 16, "computed_again": max(computed), "seconds": round(time.perf_counter() - start, 3)}


async def first_token(engine: LlamaEngine, rounds: int) -> dict[str, float]:
    """Median seconds to the first token: a new prompt of 60 tokens, of 400, and one of 400 seen before."""
    found: dict[str, list[float]] = {"new_60": [], "new_400": [], "seen_400": []}
    for _ in range(rounds):
        prompt = words(400)
        found["new_60"].append((await timed(engine, words(60), 1, 1))[0])
        found["new_400"].append((await timed(engine, prompt, 1, 1))[0])
        found["seen_400"].append((await timed(engine, prompt, 1, 1))[0])
    return {name: round(statistics.median(times), 4) for name, times in found.items()}


def start_up(rounds: int) -> dict[str, float]:
    """Median seconds of whole processes."""
    commands = {
        "python": ["-c", "pass"],
        "import_ponder": ["-c", "import ponder"],
        "help": ["-m", "ponder.cli", "--help"],
    }
    found = {}
    for name, command in commands.items():
        times = []
        for _ in range(rounds + 2):
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
        found[name] = round(statistics.median(times), 3)
    return found


async def main() -> None:
    """Runs everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ponder-135m")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="three rounds of short samples: a check, no figures")
    asked = parser.parse_args()
    rounds, tokens = (3, 16) if asked.quick else (asked.rounds, asked.tokens)
    weights = await asyncio.to_thread(resolve, asked.model)
    start = time.perf_counter()
    settings = LlamaSettings(threads=asked.threads, cells=16_384, gpu_layers=0)
    engine = await open_llamacpp(weights.path, adapters=weights.adapters, settings=settings)
    opened = time.perf_counter() - start
    adapters = [str(a.path) for a in weights.adapters]
    peer = Peer({"path": str(weights.path), "adapters": adapters, "threads": asked.threads, "cells": 16_384})
    result: dict[str, object] = {
        "benchmark": "engine",
        "model": asked.model,
        "file": Path(weights.path).name,
        "adapters": len(adapters),
        "hardware": machine(),
        "threads": asked.threads,
        "tokens": tokens,
        "rounds": rounds,
        "open_seconds": round(opened, 2),
        "tokens_per_second": await rates(engine, peer, rounds, tokens),
        "eight_over_one": await many_against_one(engine, peer, rounds),
        "fork": await forks(engine),
        "first_token_seconds": await first_token(engine, rounds),
        "start_up_seconds": start_up(rounds),
    }
    peer.process.kill()
    await engine.close()
    for name, value in result.items():
        print(f"{name:22} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    asyncio.run(main())
