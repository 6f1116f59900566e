"""What run.sh keeps of its stages: traces in small files, measurements with what they cost, model cards, a leaderboard.

    results.py pack TRACES.jsonl NAME       NAME-0.jsonl.xz, NAME-1.jsonl.xz, ...: what the later stages learn from
    results.py unpack NAME                  NAME.jsonl from them
    results.py measured FILE COMMAND ...    what the command prints as JSON, with the command, the machine and the time
    results.py report                       LEADERBOARD.md, and a MODEL_CARD.md beside either adapter

RUNS, DATA and DOLLARS are as run.sh has them. Each file is there as a whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PART = 15_000_000
"""Bytes of a part: what the compressor still holds back when it is closed stays below the 16 MB."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place beside `path`, which what was written there then takes."""
    part = path.with_name(f".{path.name}.part")
    yield part
    os.replace(part, path)


# ---------------------------------------------------------------- traces


def lean(line: str) -> str:
    """A trace without what no later stage reads: log-probabilities, and its samples a second time, as events."""
    from ponder.types import SampleFinished, Trace, from_json, to_json

    trace = from_json(Trace, line)
    samples = tuple(replace(each, logprobs=(None,) * len(each.ids)) for each in trace.samples)
    events = tuple(each for each in trace.events if not isinstance(each, SampleFinished))
    return to_json(replace(trace, samples=samples, events=events)) + "\n"


def pack(source: Path, name: Path, most: int = PART) -> None:
    """Compresses traces into parts of about `most` bytes; the first one comes last, and says that all are there."""
    first, number = b"", 0
    with source.open(encoding="utf-8") as lines:
        for packed in _packed(lines, most):
            if number:
                with whole(part_of(name, number)) as place:
                    place.write_bytes(packed)
            else:
                first = packed
            number += 1
    while part_of(name, number).exists():  # of an earlier start, with other traces
        part_of(name, number).unlink()
        number += 1
    with whole(part_of(name, 0)) as place:
        place.write_bytes(first)


def _packed(lines: Iterator[str], most: int) -> Iterator[bytes]:
    compressor, done = lzma.LZMACompressor(preset=4), bytearray()
    for line in lines:
        done += compressor.compress(lean(line).encode())
        if len(done) >= most:
            yield bytes(done + compressor.flush())
            compressor, done = lzma.LZMACompressor(preset=4), bytearray()
    yield bytes(done + compressor.flush())


def unpack(name: Path) -> None:
    """The parts as one file, unless that is there."""
    target, number = name.with_name(name.name + ".jsonl"), 0
    if target.exists():
        return
    if not part_of(name, 0).exists():
        sys.exit(f"results.py: there is no {part_of(name, 0)}: run the stage traces first")
    with whole(target) as place, place.open("wb") as file:
        while part_of(name, number).exists():
            file.write(lzma.decompress(part_of(name, number).read_bytes()))
            number += 1


def part_of(name: Path, number: int) -> Path:
    """Where a part is."""
    return name.with_name(f"{name.name}-{number}.jsonl.xz")


# ---------------------------------------------------------------- measurements


def measured(target: Path, command: list[str]) -> int:
    """Runs a command that prints JSON, and keeps that; gives the command's code where it fails."""
    began = time.perf_counter()
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if ran.returncode:
        return ran.returncode
    told = json.loads(ran.stdout)
    told["how"] = {
        "command": spelt(command),
        "hardware": hardware(),
        "minutes": round((time.perf_counter() - began) / 60, 2),
        "date": datetime.now(UTC).date().isoformat(),
    }
    with whole(target) as place:
        place.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    return 0


def spelt(command: list[str]) -> str:
    """The command as somebody else would write it: without the places of this machine."""
    words = [Path(command[0]).name, *command[1:]]
    for name in ("RUNS", "DATA"):
        words = [word.replace(os.environ[name], f"${name}") for word in words]
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    """Quotes where a shell needs them, and not about $RUNS."""
    if "'" in word:
        return '"' + word.replace('"', '\\"') + '"'
    return f"'{word}'" if set(word) & set('(" ') else word


def hardware() -> str:
    """The accelerator, or the processor and its cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {names[0] if names else platform.machine()}"


# ---------------------------------------------------------------- the report

STAGES = {"cold_start": "1-cold-start", "grpo": "2-grpo", "reward": "4-reward", "distill": "5-distill"}
"""The stages that train, and the folders of their runs."""


def report(runs: Path) -> None:
    """Writes LEADERBOARD.md and the model cards from what the stages left behind."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((runs / "6-measure").glob("*.json"))}
    if not found:
        sys.exit("results.py: nothing was measured yet: run the stage measure first")
    proof = PROOF if (runs / "small").exists() else ""
    stages, table = stage_table(runs), "\n".join([HEAD, *(row(name, each) for name, each in found.items())])
    leaderboard = f"# What was measured\n\n{proof}{table}\n\n{against(found)}\n# The stages\n\n{stages}\n"
    write(runs / "LEADERBOARD.md", leaderboard)
    final, process = runs / "5-distill" / "ponder-135m", runs / "4-reward" / "process"
    made = f"\n\n## How it was made\n\n{stages}\n"
    measures = f"\n## What was measured\n\n{table}\n"
    write(final / "MODEL_CARD.md", proof + card(final, FINAL) + made + measures + LIMITS)
    learnt = f"\nAt the end: {last_values(runs / '4-reward')}.\n"
    write(process / "MODEL_CARD.md", proof + card(process, PROCESS) + made + learnt + LIMITS)


def write(path: Path, text: str) -> None:
    """Writes a text, and says where."""
    with whole(path) as place:
        place.write_text(text, "utf-8")
    print(path)


def row(name: str, told: dict[str, Any]) -> str:
    """A row of the leaderboard."""
    accuracy, how = told["accuracy"], told["how"]
    drawn = "greedy" if told["temperature"] == 0 else f"temperature {told['temperature']:g}"
    way = f"{told['strategy'].partition(',')[0].rstrip(')') + ')' * ('(' in told['strategy'])}, {drawn}"
    value = f"{accuracy['value']:.1%} [{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]"
    cells = (name, told["questions"], way, value, f"{told['cost']['tokens']:.0f}", told["seeds"], how["hardware"],
             f"{how['minutes']:.1f}", dollars(how["minutes"]), f"`{how['command']}`")  # fmt: skip
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def dollars(minutes: float) -> str:
    """What so many minutes cost, where DOLLARS says what an hour does."""
    price = os.environ.get("DOLLARS")
    return f"{float(price) * minutes / 60:.2f}" if price else "not told"


def against(found: dict[str, Any]) -> str:
    """What is gained over the majority of the same samples, paired by question."""
    lines = []
    for name, told in found.items():
        if other := told.get("against"):
            gain = other["difference"]
            points = f"{100 * gain['value']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}] points"
            lines.append(f"- {name}: {points} over {other['strategy']}, paired on {other['questions']} questions\n")
    return "".join(lines)


def stage_table(runs: Path) -> str:
    """Each stage: what it learnt from, its steps, and the minutes of all its starts, loading and exports included."""
    from ponder.train.run import notes_of, steps_of

    minutes: dict[str, float] = {}
    for line in (runs / "seconds.txt").read_text("utf-8").splitlines():
        stage, seconds = line.split()
        minutes[stage] = minutes.get(stage, 0.0) + float(seconds) / 60
    lines = ["| stage | data | steps | hardware | minutes | dollars |", "|---|---|---:|---|---:|---:|"]
    for stage, took in minutes.items():
        data, steps, machine = "", "", ""
        run = runs / STAGES.get(stage, "")
        if stage in STAGES and (run / "metrics.jsonl").exists():
            notes = notes_of(run)
            counts = {name: count for name, count in notes["data"].items() if name != "sha256"}
            data = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
            steps, machine = str(steps_of(run)[-1]["step"]), notes["machine"]["device"]
        lines.append(f"| {stage} | {data} | {steps} | {machine} | {took:.1f} | {dollars(took)} |")
    return "\n".join(lines)


def last_values(run: Path) -> str:
    """What the last step measured on what was held out, and else."""
    from ponder.train.run import steps_of

    values: dict[str, float] = {}
    for line in steps_of(run):
        values |= {name: value for name, value in line.items() if name == "loss" or name.startswith("held_out")}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())


def card(folder: Path, what: str) -> str:
    """The head of a model card: what the adapter is, and its files."""
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    files = [folder / f"{folder.name}.gguf", folder / "adapter_model.safetensors"]
    lines = [what, "", "| | |", "|---|---|", f"| base model | {config['base_model_name_or_path']} (Apache-2.0) |"]
    lines += [f"| adapter | LoRA, rank {config['r']}, alpha {config['lora_alpha']:g}, 16 bits |"]
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"| `{path.name}` | {path.stat().st_size:,} bytes, SHA-256 `{digest}` |")
    return "\n".join([*lines, "| licence | Apache-2.0 |"])


PROOF = (
    "**A proof that every stage runs, and nothing else: two steps of training, a handful of questions. "
    "No number below is a result.**\n\n"
)
HEAD = (
    "| what | n | way | accuracy, 95% interval | tokens an answer | seeds | hardware | minutes | dollars | command |\n"
    "|---|---:|---|---:|---:|---:|---|---:|---:|---|"
)
FINAL = """# ponder-135m: the adapter

A low-rank adapter that teaches SmolLM2-135M-Instruct to think in short steps before it answers arithmetic word
problems. The folder holds it as PEFT has it, and as a GGUF file for llama.cpp:

    ponder ask -m smollm2-135m-instruct --adapter ponder-135m.gguf "..."
    ponder ask -m hf:ponder-135m "..."

The turn opens with `<think>` and a line break, one step a line follows, then `</think>` on a line of its own, then
`The answer is N.` A direct answer starts with `The answer is` at once.
"""
PROCESS = """# ponder-135m: the process reward model

A low-rank adapter on SmolLM2-135M-Instruct that judges each step of a sample: after `Reward:` it says `+` or `-`. It is
switched on for these questions alone, beside the adapter that thinks:

    ponder eval FILE -m smollm2-135m-instruct --adapter ponder-135m.gguf --adapter process.gguf=0 \\
        --strategy "best_of_n(8, verifier='process_reward_model(adapters={\\"process\\": 1.0})')"

A step was labelled with the share of completions from there that came out right.
"""
LIMITS = """
## What it cannot do

It was trained on arithmetic in English and on nothing else. No test for harmful or biased answers was made. Do not
rely on what it says.
"""


def main(words: list[str]) -> int:
    """Does what the first word says."""
    match words:
        case ["pack", source, name]:
            pack(Path(source), Path(name))
        case ["unpack", name]:
            unpack(Path(name))
        case ["measured", target, *command] if command:
            return measured(Path(target), command)
        case ["report"]:
            report(Path(os.environ["RUNS"]))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
