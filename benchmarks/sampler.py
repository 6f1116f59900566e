"""How fast the bulk sampler is, beside transformers' `generate` and llama.cpp or vLLM, on the same prompts.

    python benchmarks/sampler.py [--device cpu|cuda] [--model NAME_OR_PATH] [--samples 8,32,...] [--tokens 64]

Eight samples of each prompt of random tokens, at temperature 1, every one of exactly `--tokens` tokens: nothing ends
early. Each peer runs in a process of its own, which also gives its peak memory; the first round warms it up, and the
best of the others counts, since on a shared machine the shortest time is the least disturbed one. Seconds are of the
whole call, prompts included.

`tokens_per_core_second` counts the time that the cores spent on a peer rather than the time that went by, for machines
that others use too. A thread that waits by spinning is counted as busy: OMP_WAIT_POLICY=passive lets torch's sleep.

On a GPU the table adds what the memory allows: weights and cached tokens read once a step at the measured speed of a
copy. On a processor it adds what the matrix products alone would take. Prints one line of JSON last.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hardware import hardware

GROUP = 8
"""Samples of a prompt."""

Sampled = Callable[[list[list[int]], int, int], int]
"""Samples (prompts, samples of each, tokens) -> tokens generated."""


def main() -> None:
    """Runs everything, each peer in a child."""
    asked = _arguments()
    if asked.peer:
        print(json.dumps(child(asked)))
        return
    samples = [int(number) for number in asked.samples.split(",")] if asked.samples else DEFAULT[asked.device]
    found: dict[str, dict[str, Any]] = {}
    for peer in asked.peers.split(",") if asked.peers else peers(asked.device):
        found[peer] = {}
        for count in samples:
            if (reply := _run(peer, count, asked)) is not None:
                found[peer][str(count)] = reply
                print(f"{peer:16} {count:5} samples {json.dumps(reply)}", flush=True)
    limit = _run("limit", samples[-1], asked, every=samples)
    result = {
        "benchmark": "sampler",
        "model": asked.model,
        "device": asked.device,
        "hardware": hardware(asked.device),
        "load": os.getloadavg()[0],
        "prompt": asked.prompt,
        "tokens": asked.tokens,
        "group": GROUP,
        "rounds": asked.rounds,
        "peers": found,
        "limit": limit,
        "ratios": _ratios(found),
    }
    print(json.dumps(result))


DEFAULT = {"cpu": [8, 32, 64, 128], "cuda": [64, 256, 1024, 2048]}


def peers(device: str) -> list[str]:
    """Who runs on this device, as far as it is installed."""
    if device == "cpu":
        return ["ponder", "llama.cpp", "generate"]
    return ["ponder", "generate", "generate-static", *(["vllm"] if importlib.util.find_spec("vllm") else [])]


def _ratios(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The sampler's best rate over each peer's best, whatever number of samples each is best at."""
    best = {
        peer: max((reply["tokens_per_second"] for reply in replies.values()), default=0.0)
        for peer, replies in found.items()
    }
    return {
        peer: round(best["ponder"] / rate, 2)
        for peer, rate in best.items()
        if peer != "ponder" and "ponder" in best and rate
    }


def _run(peer: str, count: int, asked: argparse.Namespace, every: list[int] | None = None) -> Any:
    """The reply of a child; None, with the reason on stderr, where it failed."""
    passed = [sys.argv[0], "--peer", peer, "--samples", ",".join(map(str, every or [count]))]
    for name in ("device", "model", "tokens", "prompt", "rounds"):
        passed += [f"--{name}", str(getattr(asked, name))]
    ended = subprocess.run([sys.executable, *passed], capture_output=True, text=True)
    if ended.returncode:
        print(
            f"{peer} with {count} samples failed: {(ended.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr
        )
        return None
    return json.loads(ended.stdout.strip().splitlines()[-1])


# ------------------------------------------------------------------------ in a child


def child(asked: argparse.Namespace) -> dict[str, Any]:
    """Opens one peer, and measures it."""
    if asked.peer == "limit":
        return bandwidth_limit(asked) if asked.device == "cuda" else product_limit(asked)
    count = int(asked.samples)
    chance = random.Random(0)
    prompts = [[chance.randint(500, 40_000) for _ in range(asked.prompt)] for _ in range(max(1, count // GROUP))]
    each = count // len(prompts)
    sampled = OPEN[asked.peer](asked, count)
    seconds, busy, generated = [], [], 0
    for _ in range(asked.rounds + 1):
        start, worked = time.perf_counter(), _worked()
        generated = sampled(prompts, each, asked.tokens)
        seconds.append(time.perf_counter() - start)
        busy.append(_worked() - worked)
    wanted = each * len(prompts) * asked.tokens
    if generated != wanted:
        raise SystemExit(f"{asked.peer} generated {generated} tokens, not {wanted}")
    return {
        "tokens_per_second": round(generated / min(seconds[1:]), 1),
        "tokens_per_core_second": round(generated / min(busy[1:]), 1),
        "peak_mib": _peak(asked.device),
    }


def _peak(device: str) -> int:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() >> 20
    return sum(_high_water(Path("/proc", process, "status")) for process in _processes()) >> 10


def _processes() -> list[str]:
    """This one, and the workers that it started."""
    workers = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    return ["self", *(worker for started in workers for worker in started)]


def _worked() -> float:
    """Seconds that all cores together spent on this process and its workers: other programs' share is not in it."""
    if not Path("/proc/self/stat").exists():
        return time.process_time()
    fields = [Path("/proc", process, "stat").read_text().rpartition(") ")[2].split() for process in _processes()]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def _high_water(status: Path) -> int:
    """KiB of main memory that a process took at most."""
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def _torch_model(asked: argparse.Namespace) -> Any:
    """The model in bfloat16, without its adapters: every peer runs the same weights."""
    import torch

    from ponder.train.model import load

    if asked.device == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    return load(_base(asked.model), dtype=torch.bfloat16, device=asked.device).model


def _base(model: str) -> str:
    """The weights under a name of the catalogue, or the path as it is."""
    if Path(model).exists():
        return model
    from ponder.engine.weights import resolve

    return str(resolve(model).path)


def open_ponder(asked: argparse.Namespace, count: int) -> Sampled:
    """The bulk sampler."""
    from ponder.engine.torch_sampler import Job, Sampler

    model = _torch_model(asked)
    pieces = [b""] * model.config.vocab_size
    sampler = Sampler(model, end_ids=(), pieces=pieces, slots=count, context=asked.prompt + asked.tokens)

    def sampled(prompts: list[list[int]], n: int, tokens: int) -> int:
        jobs = [Job(tuple(prompt), n, tokens, seed=seed) for seed, prompt in enumerate(prompts)]
        return sum(len(one.ids) for samples in sampler.sample(jobs) for one in samples)

    return sampled


def open_generate(asked: argparse.Namespace, count: int) -> Sampled:
    """transformers' generate, with its dynamic cache or a static one."""
    import torch

    model = _torch_model(asked)
    static = {"cache_implementation": "static"} if asked.peer == "generate-static" else {}

    def sampled(prompts: list[list[int]], n: int, tokens: int) -> int:
        ids = torch.tensor(prompts, device=asked.device)
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=n, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0, **static,
        )  # fmt: skip
        return int(made.shape[0] * (made.shape[1] - ids.shape[1]))

    return sampled


def open_llamacpp(asked: argparse.Namespace, count: int) -> Sampled:
    """The embedded engine on llama.cpp."""
    from ponder.engine.llamacpp import LlamaSettings, open_llamacpp
    from ponder.protocols import SamplingParams

    prompts_of = max(1, count // GROUP)
    cells = max(1024, prompts_of * asked.prompt + count * asked.tokens + 1024)
    sequences = min(256, count + prompts_of + 2)
    settings = LlamaSettings(cells=cells, sequences=sequences, gpu_layers=0, threads=len(os.sched_getaffinity(0)))
    loop = asyncio.new_event_loop()
    engine = loop.run_until_complete(open_llamacpp(Path(_base(asked.model)), adapters=(), settings=settings))
    turn = iter(range(10**6))

    async def one(prompt: list[int], n: int, tokens: int) -> int:
        params = SamplingParams(tokens, temperature=1.0, seed=next(turn), ignore_eos=True)
        return sum([len(chunk.ids) async for chunk in engine.sample(prompt, n, params)])

    async def all_of(prompts: list[list[int]], n: int, tokens: int) -> int:
        first = next(turn) % 1000  # a prompt seen before would cost nothing
        return sum(await asyncio.gather(*[one([first + 500, *prompt[1:]], n, tokens) for prompt in prompts]))

    return lambda prompts, n, tokens: loop.run_until_complete(all_of(prompts, n, tokens))


def open_vllm(asked: argparse.Namespace, count: int) -> Sampled:
    """vLLM, in this process."""
    import vllm

    model = vllm.LLM(asked.model, dtype="bfloat16", max_num_seqs=count, max_model_len=asked.prompt + asked.tokens)

    def sampled(prompts: list[list[int]], n: int, tokens: int) -> int:
        params = vllm.SamplingParams(n=n, temperature=1.0, max_tokens=tokens, ignore_eos=True)
        made = model.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return sum(len(one.token_ids) for request in made for one in request.outputs)

    return sampled


OPEN: dict[str, Callable[[argparse.Namespace, int], Sampled]] = {
    "ponder": open_ponder,
    "generate": open_generate,
    "generate-static": open_generate,
    "llama.cpp": open_llamacpp,
    "vllm": open_vllm,
}


def product_limit(asked: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second if a step were its matrix products, in the order and the packing of the sampler's."""
    import torch

    from ponder.engine.torch_decoder import Decoder
    from ponder.engine.torch_projection import packs

    model = _torch_model(asked)
    decoder = Decoder(model, 1, 64, pack=packs(model.device, torch.bfloat16))
    limit = {}
    for count in map(int, asked.samples.split(",")):
        width, inner, heads = (
            model.config.hidden_size,
            model.config.intermediate_size,
            decoder.head_dim * model.config.num_attention_heads,
        )
        x, fed, mixed = (torch.randn(count, size).bfloat16() for size in (width, inner, heads))
        seconds = []
        for _ in range(asked.rounds * 5):
            start = time.perf_counter()
            with torch.no_grad():
                for layer in decoder._layers:
                    layer.qkv(x), layer.out(mixed), layer.gate_up(x), layer.down(fed)
                decoder._head(x)
            seconds.append(time.perf_counter() - start)
        limit[str(count)] = round(count / min(seconds), 1)
    return {"what": "matrix products alone, tokens a second", "tokens_per_second": limit}


def bandwidth_limit(asked: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second if a step were one reading of the weights and of what is cached, at the speed of a copy."""
    import torch

    from ponder.engine.torch_decoder import Decoder

    model = _torch_model(asked)
    weights = sum(parameter.numel() * 2 for parameter in model.parameters())
    cached = Decoder(model, 1, 128).bytes_a_token * (asked.prompt + asked.tokens / 2)
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = []
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    speed = 2 * 2**30 / min(seconds)
    limit = {
        str(count): round(count / ((weights + count * cached) / speed)) for count in map(int, asked.samples.split(","))
    }
    return {
        "what": "weights and cache read at the speed of a copy",
        "bytes_per_second": round(speed),
        "tokens_per_second": limit,
    }


# ------------------------------------------------------------------------ the rest


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None)
    parser.add_argument("--model", default="ponder-135m", help="a name of the catalogue, a GGUF file or a folder")
    parser.add_argument("--samples", default="", help="numbers of samples, with commas")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default="", help="ponder,llama.cpp,generate,generate-static,vllm")
    parser.add_argument("--peer", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.device is None:
        import torch

        asked.device = "cuda" if torch.cuda.is_available() else "cpu"
    return asked


if __name__ == "__main__":
    main()
