"""What a gateway adds: `ponder serve` before an upstream of a fixed pace, beside other gateways in the same run.

    python benchmarks/gateway.py [--quick] [--litellm PATH] [--optillm PATH] [--rounds N] [--seconds S]
    python benchmarks/gateway.py --embedded [--quick]

The upstream, the generator of load and each gateway are processes of their own. All gateways stay up through the run,
and rounds go over them in turn, the upstream itself first, so that all see the same machine:

- the latency that a gateway adds: its quantile less the upstream's own in the same round, then the median of rounds;
- its ceiling: answers a second to 64 clients who ask again as soon as they have their answer;
- the processor time that an answer costs, and the peak of its memory.

Ours has its ledger, its keys with a limit, and its metrics on. `generator` tells how busy the generator was, and `lag`
how late: what it measures is the gateway only while both are small. With --embedded, 16 clients at once on the embedded
model, through our server and through the server of llama.cpp with the same weights.

Prints a table and one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hardware import machine

HERE = Path(__file__).parent
PATIENCE = 180.0
"""Seconds that a gateway has to come up in."""
SHAPES = {
    "whole_50": {"rate": 50}, "whole_200": {"rate": 200}, "stream_50": {"rate": 50}, "stream_200": {"rate": 200},
    "whole_1": {"streams": 1}, "whole_64": {"streams": 64}, "stream_1": {"streams": 1}, "stream_64": {"streams": 64},
}  # fmt: skip
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France, and why is it there?"},
]
Figures = dict[str, Any]


@dataclass
class Target:
    """Something to send requests to. command: None for what runs already."""

    name: str
    url: str
    key: str = ""
    model: str = "mock"
    command: Sequence[str] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self, log: Path) -> None:
        """Starts it and waits until it answers."""
        if self.command is None:
            return
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                self.command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **self.environment},
                start_new_session=True, cwd=log.parent,
            )  # fmt: skip
        until = time.monotonic() + PATIENCE
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{self.name} did not come up: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        body = json.dumps({"model": self.model, "messages": MESSAGES, "max_tokens": 2}).encode()
        asked = urllib.request.Request(f"{self.url}/v1/chat/completions", body, self.headers)
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    @property
    def headers(self) -> dict[str, str]:
        """Those of each request."""
        return {"content-type": "application/json", **({"authorization": f"Bearer {self.key}"} if self.key else {})}

    def stop(self) -> None:
        """Ends it and all that it started."""
        if self.process is not None:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(self.process.pid, sign)
                    self.process.wait(20)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue

    def processor(self) -> float:
        """Seconds of processor time until now, of its whole session."""
        ticks = [float(line[11]) + float(line[12]) for _, line in self._stats()]
        return sum(ticks) / os.sysconf("SC_CLK_TCK")

    def peak(self) -> float:
        """The most memory that it has held, in MiB; of several processes the sum of their peaks."""
        return sum(_peak(pid) for pid, _ in self._stats()) / 1024

    def _stats(self) -> list[tuple[int, list[str]]]:
        if self.process is None:
            return []
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                line = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(line[3]) == self.process.pid:
                found.append((int(path.parent.name), line))
        return found


def _peak(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


class Generator:
    """The generator of load, in a process of its own."""

    def __init__(self) -> None:
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, str(HERE / "load.py")], **pipes)

    def run(self, target: Target, seconds: float, stream: bool, how: Mapping[str, int], **body: Any) -> Figures:
        """One run; see load.py. Adds the processor time of an answer, in milliseconds."""
        asked = {
            "url": f"{target.url}/v1/chat/completions",
            "headers": target.headers,
            "seconds": seconds,
            "body": {"model": target.model, "stream": stream, "messages": MESSAGES, **body},
            **how,
        }
        before = target.processor()
        self._process.stdin.write(json.dumps(asked) + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        found: Figures = json.loads(self._process.stdout.readline())  # type: ignore[union-attr]
        found["processor"] = 1000 * (target.processor() - before) / max(1, found["answers"])
        return found

    def stop(self) -> None:
        """Ends it."""
        self._process.kill()


# ---------------------------------------------------------------- who takes part


@contextmanager
def upstream(folder: Path) -> Iterator[Target]:
    """The mock, as a target itself."""
    process = subprocess.Popen([sys.executable, str(HERE / "mock_upstream.py")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Target("direct", process.stdout.readline().strip())
    finally:
        process.kill()


def ponder(folder: Path, at: Target) -> Target:
    """Ours, with a key that has a limit, and a home of its own."""
    from ponder.ops.keys import Keys
    from ponder.ops.limits import parse_limits

    home = folder / "home"
    with Keys.open(home / "ledger.db") as keys:
        _, secret = keys.add("benchmark", limits=parse_limits("1000000000 tokens/day"))
    config, port = folder / "serve.toml", free_port()
    config.write_text(
        f'[[upstream]]\nname = "mock"\ndialect = "openai"\nurl = "{at.url}/v1"\nmodels = ["mock"]\n', encoding="utf-8"
    )
    command = [sys.executable, "-m", "ponder.cli", "serve", "--config", str(config), "--port", str(port), "--keys"]
    return Target("ponder", f"http://127.0.0.1:{port}", secret, "mock", command, {"PONDER_HOME": str(home)})


def litellm(folder: Path, at: Target, program: str) -> Target:
    """litellm's proxy with a key, one process, without a database: it keeps no ledger."""
    config, port = folder / "litellm.yaml", free_port()
    config.write_text(
        "model_list:\n- model_name: mock\n  litellm_params:\n    model: openai/mock\n"
        f"    api_base: {at.url}/v1\n    api_key: none\ngeneral_settings:\n  master_key: sk-benchmark\n",
        encoding="utf-8",
    )
    command = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    return Target("litellm", f"http://127.0.0.1:{port}", "sk-benchmark", "mock", command, quiet)


def optillm(folder: Path, at: Target, program: str) -> Target:
    """optillm's proxy, passing requests on as they are, with a key."""
    port = free_port()
    command = [program, "--approach", "none", "--base-url", f"{at.url}/v1", "--port", str(port), "--log", "error"]
    command += ["--optillm-api-key", "sk-benchmark"]
    return Target(
        "optillm", f"http://127.0.0.1:{port}", "sk-benchmark", "none-mock", command, {"OPENAI_API_KEY": "none"}
    )


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# ---------------------------------------------------------------- measuring


def measured(targets: Sequence[Target], generator: Generator, shape: str, rounds: int, seconds: float) -> Figures:
    """One shape of load on every target, in turn."""
    stream, how = shape.startswith("stream"), SHAPES[shape]
    runs: dict[str, list[Figures]] = {target.name: [] for target in targets}
    for _ in range(rounds):
        for target in targets:
            runs[target.name].append(generator.run(target, seconds, stream, how))
    direct = runs["direct"]
    return {name: _summary(each, direct) for name, each in runs.items()}


def _summary(runs: Sequence[Figures], direct: Sequence[Figures]) -> Figures:
    pairs = list(zip(runs, direct, strict=True))
    errors = sum(sum(run["errors"].values()) for run in runs)
    found: Figures = {
        "per_second": round(statistics.median(run["per_second"] for run in runs), 1),
        "processor_ms": round(statistics.median(run["processor"] for run in runs), 3),
        "errors": errors,
        "generator": round(max(run["busy"] for run in runs), 3),
    }
    for what in ("latency", "first"):
        for place in ("p50", "p99"):
            value = statistics.median(run[what][place] - base[what][place] for run, base in pairs)
            if runs is direct:
                value = statistics.median(run[what][place] for run in runs)
            found[f"{what}_{place}" if runs is direct else f"added_{what}_{place}"] = round(value, 2)
    found["lag_p99"] = round(statistics.median(run["lag"]["p99"] for run in runs), 2)
    return found


def gateways(asked: argparse.Namespace) -> Figures:
    """All gateways, all shapes."""
    rounds, seconds = (1, 0.5) if asked.quick else (asked.rounds, asked.seconds)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        at = stack.enter_context(upstream(folder))
        targets = [at, ponder(folder, at)]
        if asked.litellm:
            targets.append(litellm(folder, at, asked.litellm))
        if asked.optillm:
            targets.append(optillm(folder, at, asked.optillm))
        for target in targets:
            stack.callback(target.stop)
            target.start(folder / f"{target.name}.log")
        generator = Generator()
        stack.callback(generator.stop)
        for target in targets:  # connections, compiled paths, caches
            for stream in (False, True):
                generator.run(target, min(2.0, seconds), stream, {"streams": 8})
        shapes = {}
        for shape in asked.shapes or SHAPES:
            shapes[shape] = measured(targets, generator, shape, rounds, seconds)
            for who, figures in shapes[shape].items():
                print(f"{shape:12} {who:10} {figures}", flush=True)
        found: Figures = {"shapes": shapes, "peak_MiB": {each.name: round(each.peak()) for each in targets[1:]}}
        for peer in targets[2:]:
            found[f"ceiling_over_{peer.name}"] = {
                shape: round(each["ponder"]["per_second"] / max(0.01, each[peer.name]["per_second"]), 2)
                for shape, each in shapes.items()
                if shape.endswith("_64")
            }
    return {"rounds": rounds, "seconds": seconds, **found}


# ---------------------------------------------------------------- the embedded model


PEER = r"""
import json, sys, xllamacpp as x
settings = json.loads(sys.stdin.readline())
p = x.CommonParams()
p.model.path = settings["path"]
p.lora_adapters = [x.CommonAdapterLoraInfo(path, 1.0) for path in settings["adapters"]]
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = settings["threads"]
p.n_ctx, p.n_parallel, p.kv_unified, p.n_batch = settings["cells"], 16, True, 512
p.flash_attn_type, p.verbosity = x.llama_flash_attn_type(1), 0
p.n_gpu_layers = 0
server = x.Server(p)
print(server.listening_address, flush=True)
sys.stdin.readline()
"""


def embedded(asked: argparse.Namespace) -> Figures:
    """16 clients at once on the embedded model: tokens a second of ours over llama.cpp's own server."""
    from ponder.engine.weights import resolve

    rounds, tokens = (1, 8) if asked.quick else (asked.rounds, asked.tokens)
    weights = resolve(asked.model)
    cells, threads = 16_384, len(os.sched_getaffinity(0))  # as many as our server takes
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        home, port = Path(name), free_port()
        (home / "models").symlink_to(Path(weights.path).parent.parent)
        command = [sys.executable, "-m", "ponder.cli", "serve", "-m", asked.model, "--port", str(port), "--no-store"]
        ours = Target("ponder", f"http://127.0.0.1:{port}", "", asked.model, command, {"PONDER_HOME": str(home)})
        stack.callback(ours.stop)
        ours.start(home / "ponder.log")
        theirs = _llama(stack, {"path": str(weights.path), "adapters": [str(a.path) for a in weights.adapters],
                                "threads": threads, "cells": cells})  # fmt: skip
        kinds = {kind: _side_by_side(ours, theirs, kind, rounds, tokens) for kind in ("chat", "completions")}
    return {"model": asked.model, "threads": threads, "tokens": tokens, "clients": 16, "rounds": rounds, **kinds}


def _side_by_side(ours: Target, theirs: Target, kind: str, rounds: int, tokens: int) -> Figures:
    speeds: dict[str, list[float]] = {"ponder": [], "llama.cpp": []}
    generated = dict.fromkeys(speeds, 0)
    for turn in range(rounds):
        for target in (ours, theirs) if turn % 2 else (theirs, ours):
            made, seconds = _burst(target, kind, 16, tokens)
            speeds[target.name].append(made / seconds)
            generated[target.name] += made
    ratios = [mine / their for mine, their in zip(speeds["ponder"], speeds["llama.cpp"], strict=True)]
    return {
        "tokens_per_second": {name: round(statistics.median(each), 1) for name, each in speeds.items()},
        "generated": generated,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(each, 3) for each in ratios],
    }


def _llama(stack: ExitStack, settings: Figures) -> Target:
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen([sys.executable, "-c", PEER], **pipes)
    stack.callback(process.kill)
    process.stdin.write(json.dumps(settings) + "\n")
    process.stdin.flush()
    while not (line := process.stdout.readline()).startswith("http"):
        if process.poll() is not None:
            raise SystemExit("llama.cpp's server did not start")
    return Target("llama.cpp", line.strip())


def _burst(target: Target, kind: str, clients: int, tokens: int) -> tuple[int, float]:
    """Tokens of as many different requests at once, and seconds from the first request to the last answer."""
    import concurrent.futures

    def one(number: int) -> int:
        # No answer ends before its last token on either side: both do the same work.
        common = {"model": target.model, "max_tokens": tokens, "temperature": 0.7, "ignore_eos": True}
        if kind == "chat":
            question = f"Write a long story about a fox, a crow and {number + 3} apples. Tell every detail of it."
            messages = [{"role": "user", "content": question}]
            body = {**common, "messages": messages, "reasoning_effort": "none"}
            path = "/v1/chat/completions"
        else:
            prompt = f"A long story about a fox and {number + 3} apples. One day in the year {1800 + number},"
            body, path = {**common, "prompt": prompt}, "/v1/completions"
        asked = urllib.request.Request(f"{target.url}{path}", json.dumps(body).encode(), target.headers)
        with urllib.request.urlopen(asked, timeout=300) as answer:
            return int(json.load(answer)["usage"]["completion_tokens"])

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        made = sum(pool.map(one, range(clients)))
        return made, time.perf_counter() - began


def main() -> None:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half a second each, once: a check, no figures")
    parser.add_argument("--litellm", metavar="PATH", default="", help="litellm's program, to measure it beside")
    parser.add_argument("--optillm", metavar="PATH", default="", help="optillm's program")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--shapes", nargs="*", choices=[*SHAPES], default=None)
    parser.add_argument("--embedded", action="store_true", help="the embedded model in the place of an upstream")
    parser.add_argument("--model", default="ponder-135m")
    parser.add_argument("--tokens", type=int, default=64)
    asked = parser.parse_args()
    before = os.getloadavg()[0]
    found = embedded(asked) if asked.embedded else gateways(asked)
    result = {
        "benchmark": "gateway_embedded" if asked.embedded else "gateway",
        "hardware": machine(),
        "load_before": round(before, 2),
        **found,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
