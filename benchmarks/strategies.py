"""Strategies beside their peers: the same model file, questions and verifier, in the same run.

    python benchmarks/strategies.py [--questions 24] [--n 8] [--adaptive 300] [--parts peers,adaptive,tree]

peers     self-consistency, best-of-N and beam search against optillm and its_hub (benchmarks/peers says how they are
          installed and what was made alike): wall time, tokens and accuracy, all programs in turn on every block of
          questions, one question at a time
adaptive  the vote of 32 samples against the vote that stops at a risk of 0.1: tokens, and the paired difference of
          accuracy with its interval. Both draw the same samples, so what is compared is the rule
tree      tokens that searches make the engine compute, over the distinct tokens of their trees, and beside all sampled

Prints a table each, and one line of JSON last.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ponder.chat.model import Model
from ponder.engine.llamacpp import LlamaEngine
from ponder.evals.results import Result, Run, Setting
from ponder.evals.run import evaluate
from ponder.evals.statistics import mean_interval, paired_difference
from ponder.ops.store import Store
from ponder.protocols import SamplingParams
from ponder.solving import asolve, open_model
from ponder.strategies.naming import strategy_named
from ponder.tasks import load
from ponder.types import Budget, Question, Sample
from ponder.verifiers.math_answer import math_answer

HERE = Path(__file__).parent
BLOCK = 6
"""Questions that each program answers before the next one's turn, so that all see the same machine."""

RISK = 0.1


def problem_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Word problems from recipes/problems.py."""
    spec = importlib.util.spec_from_file_location("problems", HERE.parent / "recipes/problems.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.rows(count, seed))[1:]


# ---------------------------------------------------------------- the peers


@dataclass(frozen=True)
class Contestant:
    """Somebody who answers questions: ponder with a strategy, or a peer's program with a method."""

    name: str
    kind: str
    strategy: str = ""
    command: tuple[str, ...] = ()


def contestants(peers: Path, n: int) -> list[Contestant]:
    optillm = (str(peers / "optillm/bin/python"), str(HERE / "peers/run_optillm.py"))
    its_hub = (str(peers / "its_hub/bin/python"), str(HERE / "peers/run_its_hub.py"))
    return [
        Contestant("ponder vote", "self-consistency", f"vote({n})"),
        Contestant("ponder vote, stopping", "self-consistency", f"vote({n}, risk={RISK})"),
        Contestant("optillm self_consistency", "self-consistency", command=(*optillm, "self_consistency")),
        Contestant("optillm majority_voting", "self-consistency", command=(*optillm, "majority_voting")),
        Contestant("its_hub self_consistency", "self-consistency", command=(*its_hub, "self_consistency")),
        Contestant("ponder best_of_n", "best-of-N", f"best_of_n({n})"),
        Contestant("ponder best_of_n, enough", "best-of-N", f"best_of_n({n}, enough=1.0)"),
        Contestant("optillm bon", "best-of-N", command=(*optillm, "best_of_n")),
        Contestant("its_hub best_of_n", "best-of-N", command=(*its_hub, "best_of_n")),
        Contestant("ponder beam_search", "beam search", f"beam_search({n}, 2, aggregate='value')"),
        Contestant("its_hub beam", "beam search", command=(*its_hub, "beam")),
    ]


async def against_peers(model: Model, rows: Sequence[dict[str, Any]], n: int, most: int, peers: Path) -> dict[str, Any]:
    """Every contestant on every block of questions, in an order that turns from block to block."""
    racing = contestants(peers, n)
    found: dict[str, list[dict[str, Any]]] = {each.name: [] for each in racing}
    async with served() as url:
        for begin in range(0, len(rows), BLOCK):
            block, turn = rows[begin : begin + BLOCK], (begin // BLOCK) % len(racing)
            for one in racing[turn:] + racing[:turn]:
                asked = ours(model, one, block, n * most) if one.strategy else theirs(one, block, n, most, url)
                found[one.name] += await asked
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    right = {name: await judged(rows, answers) for name, answers in found.items()}
    kinds: dict[str, Any] = {}
    for one in racing:
        seconds = sum(answer["seconds"] for answer in found[one.name])
        tokens = sum(answer["tokens"] for answer in found[one.name])
        mean = mean_interval([[each] for each in right[one.name]])
        kinds.setdefault(one.kind, {})[one.name] = {
            "seconds": round(seconds / len(rows), 3),
            "tokens": round(tokens / len(rows), 1),
            "accuracy": round(mean.value, 3),
            "interval": [round(end, 3) for end in mean.interval],
        }
    for kind in kinds.values():
        mine = [name for name in kind if name.startswith("ponder")]
        for name in mine:
            kind[name]["against"] = {
                peer: {
                    "time": round(kind[name]["seconds"] / kind[peer]["seconds"], 3),
                    "difference": difference(right[name], right[peer]),
                }
                for peer in kind
                if peer not in mine
            }
    return kinds


def difference(mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Accuracy of ours minus theirs on the same questions: value, low, high."""
    found = paired_difference([[each] for each in mine], [[each] for each in theirs])
    return [round(each, 3) for each in (found.value, *found.interval)]


async def judged(rows: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]]) -> list[float]:
    verify = math_answer()
    texts = {answer["id"]: answer["answer"] for answer in answers}
    samples = [Sample(0, texts[row["id"]], answer=texts[row["id"]], exact=False) for row in rows]
    return [(await verify(Question((), str(r["answer"])), s)).value for r, s in zip(rows, samples, strict=True)]


async def ours(model: Model, one: Contestant, rows: Sequence[dict[str, Any]], budget: int) -> list[dict[str, Any]]:
    answers = []
    for row in rows:
        started = time.perf_counter()
        trace = await asolve(row["question"], model=model, strategy=strategy_named(one.strategy), budget=budget)
        seconds = time.perf_counter() - started
        answers.append({"id": row["id"], "answer": trace.answer, "seconds": seconds, "tokens": trace.cost.tokens})
    return answers


async def theirs(one: Contestant, rows: Sequence[dict[str, Any]], n: int, most: int, url: str) -> list[dict[str, Any]]:
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as questions:
        questions.write("\n".join(json.dumps({"id": row["id"], "question": row["question"]}) for row in rows))
        questions.flush()
        extra = ["--aggregate", "value", "--beam-width", "2"] if one.command[-1] == "beam" else []
        command = [*one.command, questions.name, "--url", url, "--n", str(n), "--max-tokens", str(most), *extra]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent / "src")}
        program = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, errors = await program.communicate()
    if program.returncode:
        raise SystemExit(f"{one.name} failed: {errors.decode()[-600:]}")
    return [json.loads(line) for line in out.decode().splitlines() if line.startswith("{")]


@asynccontextmanager
async def served() -> AsyncIterator[str]:
    """The peers' server, which ends with its input."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "peers/serve.py"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        if not line:
            raise SystemExit("the peers' server did not start")
        yield json.loads(line)["url"]
    finally:
        process.stdin.close()
        await process.wait()


# ---------------------------------------------------------------- the vote that stops


async def adaptive(model: Model, rows: Sequence[dict[str, Any]], most: int, folder: Path) -> dict[str, Any]:
    """The fixed vote of 32 against the one that stops, which draws the first samples of the other."""
    questions = folder / f"problems-{len(rows)}.jsonl"
    questions.write_text("\n".join(map(json.dumps, rows)))
    task = load(questions)
    runs: dict[str, Run] = {}
    with Store.open(folder / "strategies.db") as store:
        for name, expression in (("fixed", "vote(32)"), ("stopping", f"vote(32, risk={RISK})")):
            setting = Setting(expression, Budget(tokens=32 * most))
            runs[name] = await evaluate(task, model, setting, store=store, at_once=2, progress=Counter(name))
    fixed, stopping = runs["fixed"], runs["stopping"]
    compared = paired_difference(stopping.scores(), fixed.scores())
    spent = {name: sum(result.cost.tokens for result in run.results) for name, run in runs.items()}
    return {
        "questions": len(rows),
        "risk": RISK,
        "accuracy": {name: round(mean_interval(run.scores()).value, 4) for name, run in runs.items()},
        "tokens": round(spent["stopping"] / spent["fixed"], 3),
        "samples": round(_drawn(stopping.results) / _drawn(fixed.results), 3),
        "difference": round(compared.value, 4),
        "interval": [round(end, 4) for end in compared.interval],
        "changed": compared.better + compared.worse,
    }


def _drawn(results: Sequence[Result]) -> int:
    return sum(len(result.samples) for result in results)


@dataclass
class Counter:
    """Progress on standard error."""

    name: str

    def __call__(self, done: int, total: int) -> None:
        if done % 20 == 0 or done == total:
            print(f"{self.name}: {done}/{total} {time.strftime('%H:%M:%S')}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- trees


async def trees(model: Model, rows: Sequence[dict[str, Any]], budget: int) -> dict[str, Any]:
    """Tokens that the engine computed, by its own count, over the distinct beginnings of all that was said."""
    engine, found = cast(LlamaEngine, model.engine), {}
    for expression in ("beam_search(8, 2)", "diverse_tree_search(8, 2)", "tree_search(12, 2)", "vote(8)"):
        computed = distinct = said = 0
        for row in rows:
            before = (await engine.counts())["computed"]
            trace = await asolve(row["question"], model=model, strategy=strategy_named(expression), budget=budget)
            computed += (await engine.counts())["computed"] - before
            beginnings = {sample.ids[: i + 1] for sample in trace.samples for i in range(len(sample.ids))}
            distinct += trace.cost.prompt_computed + len(beginnings)
            said += trace.cost.prompt_computed + trace.cost.tokens
        ratio = round(computed / distinct, 3)
        found[expression] = {"computed": computed, "distinct": distinct, "ratio": ratio, "sampled": said}
    return found


# ---------------------------------------------------------------- all of it


def show(title: str, told: dict[str, Any]) -> None:
    print(f"\n{title}")
    for name, values in told.items():
        print(f"  {name:28} {json.dumps(values)}")


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--questions", type=int, default=24, help="against the peers, and for trees")
    options.add_argument("--n", type=int, default=8)
    options.add_argument("--adaptive", type=int, default=300, help="questions of the vote that stops")
    options.add_argument("--most", type=int, default=96, help="tokens a sample")
    options.add_argument("--peers", type=Path, default=Path("peers"), help="the folder of the peers' environments")
    options.add_argument("--parts", default="peers,adaptive,tree")
    options.add_argument("--work", type=Path, default=None, help="where the samples are kept, so that it can go on")
    chosen = options.parse_args()
    parts = chosen.parts.split(",")
    model = await open_model("ponder-135m", params=SamplingParams(1, temperature=0.7, seed=0))
    result: dict[str, Any] = {"benchmark": "strategies", "hardware": f"{os.cpu_count()} cores, {platform.machine()}"}
    rows = problem_rows(chosen.questions, seed=1)
    if "tree" in parts:
        result["tree"] = await trees(model, rows, chosen.n * chosen.most)
        show("tokens computed over tokens of the tree", result["tree"])
    if "peers" in parts:
        result["n"], result["questions"] = chosen.n, len(rows)
        result["peers"] = await against_peers(model, rows, chosen.n, chosen.most, chosen.peers)
        for kind, told in result["peers"].items():
            show(kind, told)
    if "adaptive" in parts:
        folder = chosen.work or Path(tempfile.mkdtemp(prefix="ponder-strategies-"))
        folder.mkdir(parents=True, exist_ok=True)
        result["adaptive"] = await adaptive(model, problem_rows(chosen.adaptive, seed=5), chosen.most, folder)
        show("the vote that stops, against the one that does not", {"vote(32)": result["adaptive"]})
    await model.engine.close()
    print(json.dumps(result))


if __name__ == "__main__":
    asyncio.run(main())
