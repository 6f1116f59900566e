"""What one step of GRPO takes, ours beside TRL's GRPOTrainer: the same weights, prompts, lengths, reward and loss.

    python benchmarks/grpo_step.py [--device cpu|cuda] [--model NAME_OR_PATH] [--prompts 2] [--samples 4] [--tokens 48]

Every sample has exactly `--tokens` tokens: what would end one is a token like any other, for both. The reward is cheap
and differs within each group, so no row is dropped, and what is timed is the trainers. Each peer runs in a process of
its own. The first step warms it up; of the others the shortest time of each part counts, since on a shared machine that
is the least disturbed one. With `--rounds` the peers take turns that often.

    sampling   prompts to samples and their text; for us also what a step changes for the sampler
    rewards    the reward's calls
    training   the pass forwards and backwards, and the optimiser; for TRL the whole step less what stands around it
    rest       the step less these: advantages, rows, padding, files

`core_seconds` are what the cores worked for a peer, whatever else ran beside it. A thread that waits by spinning counts
as working: OMP_WAIT_POLICY=passive lets torch's sleep.

In bfloat16 TRL keeps float32 weights and computes by autocast, its default; `trl-bfloat16` is TRL on bfloat16 weights,
without float32 masters, which is less work than ours. Its activation checkpointing, on by default, is off. `trl-vllm`
needs vLLM. `limit` is what the matrix products of the training pass take alone, forwards once and backwards twice.

On a GPU `utilisation` trains a new model of about a billion weights on a batch of 32,768 tokens in bfloat16: its
floating-point operations, 6 for each weight and token and 12 for each pair of tokens, width and layer of attention,
over time and the speed of a large product. What a checkpoint computes again is not in them. 135m and 1b as `--model`
are new weights of the shapes of SmolLM2-135M and TinyLlama-1.1B, tiny one of 2 layers: they need no files and no
network.

TRL needs trl 1.16, accelerate and datasets. Where there is no network carry their wheels (pip download --no-deps):
trl, accelerate, datasets, dill, multiprocess, xxhash, pyarrow, pandas, pytz, tzdata, python_dateutil, fsspec, aiohttp
and what it needs. Prints one line of JSON last.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hardware import hardware

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden": 32, "inner": 64, "layers": 2, "heads": 4, "groups": 2, "vocabulary": 300},
    "135m": {"hidden": 576, "inner": 1536, "layers": 30, "heads": 9, "groups": 3, "vocabulary": 49_152},
    "1b": {"hidden": 2048, "inner": 5632, "layers": 22, "heads": 32, "groups": 4, "vocabulary": 32_000},
}
RATE = 1e-6
PARTS = ("sampling", "rewards", "training", "rest")


def main() -> None:
    """Runs everything, each peer in a child."""
    asked = _arguments()
    if asked.peer:
        print(json.dumps(CHILDREN[asked.peer](asked)))
        return
    chosen = asked.peers.split(",") if asked.peers else peers(asked.device)
    needed = ["model"] if set(chosen) - {"utilisation"} else []
    needed += ["big"] if "utilisation" in chosen else []
    with tempfile.TemporaryDirectory() as folder:
        for name in needed:
            if getattr(asked, name) in SHAPES:
                setattr(asked, name, str(_new_folder(Path(folder, name), SHAPES[getattr(asked, name)])))
        found: dict[str, dict[str, Any]] = {}
        for _ in range(asked.rounds):
            for peer in chosen:
                if (reply := _run(peer, asked)) is not None:
                    print(f"{peer:13} {json.dumps(reply)}", flush=True)
                    found[peer] = _best(found.get(peer), reply)
    print(
        json.dumps(
            {
                "benchmark": "grpo_step",
                "model": _arguments().model,
                "device": asked.device,
                "hardware": hardware(asked.device),
                "load": round(os.getloadavg()[0], 2),
                **{name: getattr(asked, name) for name in ("precision", "prompts", "samples", "tokens", "steps")},
                "peers": found,
                "ratios": _ratios(found),
            }
        )
    )


def peers(device: str) -> list[str]:
    """Who runs here, as far as it is installed."""
    theirs = ["trl", "trl-bfloat16"] if importlib.util.find_spec("trl") else []
    vllm = ["trl-vllm"] if theirs and importlib.util.find_spec("vllm") else []
    return ["ponder", *theirs, *vllm, "limit", *(["utilisation"] if device == "cuda" else [])]


def _best(before: dict[str, Any] | None, reply: dict[str, Any]) -> dict[str, Any]:
    """The reply with the shortest times of both."""
    if before is None:
        return reply
    best = {
        kind: {name: min(value, before[kind][name]) for name, value in reply[kind].items()}
        for kind in ("seconds", "core_seconds")
        if kind in reply
    }
    return {**reply, **best, **(_rates(best["seconds"], reply) if best else {})}


def _ratios(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Each peer's time over ours: above 1 we are faster. Of the limit: its share of our training."""
    if "ponder" not in found:
        return {}
    ours, ratios = found["ponder"], {}
    for peer, reply in found.items():
        if peer.startswith("trl") or peer == "limit":
            ratios[peer] = {
                name + suffix: round(value / max(ours[kind][name], 1e-9), 2)
                for kind, suffix in (("seconds", ""), ("core_seconds", "_core"))
                for name, value in reply[kind].items()
            }
        if peer.startswith("trl"):
            ratios[peer]["peak_mib"] = round(reply["peak_mib"] / ours["peak_mib"], 2)
    return ratios


def _run(peer: str, asked: argparse.Namespace) -> Any:
    """The reply of a child; None, with the reason on stderr, where it failed."""
    passed = [sys.argv[0], "--peer", peer]
    for name in ("device", "model", "big", "precision", "prompts", "samples", "tokens", "steps", "pack", "batch"):
        passed += [f"--{name}", str(getattr(asked, name))]
    ended = subprocess.run([sys.executable, *passed], capture_output=True, text=True)
    if ended.returncode:
        print(f"{peer} failed: {(ended.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr)
        return None
    return json.loads(ended.stdout.strip().splitlines()[-1])


# ------------------------------------------------------------------------ in a child: what is measured


@dataclass(frozen=True)
class Spent:
    """Seconds that went by, and seconds that cores worked for this process in them."""

    seconds: float = 0.0
    core: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.core + other.core)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.seconds - other.seconds, self.core - other.core)


@dataclass
class Clock:
    """What the parts of each step take. On a GPU it waits for what was asked of it."""

    device: str
    steps: list[dict[str, Spent]] = field(default_factory=list)
    parts: dict[str, Spent] = field(default_factory=dict)
    began: Spent = Spent()

    def now(self) -> Spent:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        return Spent(time.perf_counter(), time.process_time())

    def start(self) -> None:
        self.began = self.now()

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted for `part`."""

        def timed(*given: Any, **named: Any) -> Any:
            began = self.now()
            try:
                return function(*given, **named)
            finally:
                self.parts[part] = self.parts.get(part, Spent()) + (self.now() - began)

        return timed

    def best(self, times: int, *work: Callable[[], Any]) -> Spent:
        """The least that the work takes, of `times` times."""
        took = []
        for _ in range(times):
            began = self.now()
            for one in work:
                one()
            took.append(self.now() - began)
        return Spent(min(one.seconds for one in took), min(one.core for one in took))

    def ended(self) -> None:
        """A step ended, and the next begins."""
        now = self.now()
        self.steps.append({**self.parts, "step": now - self.began})
        self.parts, self.began = {}, now


@dataclass(frozen=True)
class Task:
    """What all peers are given: a model, its tokenizer, and prompts that both sides read as the same tokens."""

    loaded: Any
    texts: Any
    questions: list[Any]
    prompts: list[list[int]]

    @property
    def model(self) -> Any:
        return self.loaded.model

    def longest(self, tokens: int) -> int:
        return max(map(len, self.prompts)) + tokens


def _task(asked: argparse.Namespace, dtype: str) -> Task:
    import torch

    from ponder.data.word_problems import word_problems
    from ponder.train.model import load
    from ponder.train.texts import Texts
    from ponder.types import Question, user

    if asked.device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    loaded = load(_base(asked.model), dtype=dtype, device=asked.device)
    texts = Texts.of(loaded)
    problems = word_problems(asked.prompts, seed=0, difficulty=(1, 2))
    questions = [Question((user(example.question),)) for example in problems]
    return Task(loaded, texts, questions, [texts.prompt(question.messages) for question in questions])


def reward_of(text: str) -> float:
    """The share of vowels: cheap, and hardly ever the same for two samples."""
    return sum(letter in "aeiouAEIOU" for letter in text) / max(1, len(text))


def _reply(asked: argparse.Namespace, clock: Clock, task: Task, **more: Any) -> dict[str, Any]:
    steps, counts = clock.steps[1:], _counts(asked, task)  # the first step warms up
    seconds = {name: round(min(step[name].seconds for step in steps), 4) for name in (*PARTS, "step")}
    core = {name: round(min(step[name].core for step in steps), 4) for name in (*PARTS, "step")}
    rates = _rates(seconds, counts)
    return {"seconds": seconds, "core_seconds": core, **counts, **rates, "peak_mib": _peak(asked.device), **more}


def _counts(asked: argparse.Namespace, task: Task) -> dict[str, int]:
    generated = asked.prompts * asked.samples * asked.tokens
    return {"generated": generated, "trained": generated + asked.samples * sum(map(len, task.prompts))}


def _rates(seconds: dict[str, float], counts: dict[str, Any]) -> dict[str, float]:
    """Tokens a second: generated ones, but in training all that went through it."""
    of = {"sampling": "generated", "training": "trained", "step": "generated"}
    return {
        f"{name}_tokens_per_second": round(counts[what] / seconds[name], 1)
        for name, what in of.items()
        if name in seconds
    }


def _forget_peak(device: str) -> None:
    """What loading took at most is not the step's."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _peak(device: str) -> int:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() >> 20
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) >> 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


# ------------------------------------------------------------------------ our step


class _Enough(Exception):
    """The last step that is measured ended."""


class _TimedRewards:
    """What `grpo` asks of rewards, with a clock."""

    def __init__(self, rewards: Any, clock: Clock) -> None:
        self.of = clock.around("rewards", rewards.of)


def run_ponder(asked: argparse.Namespace) -> dict[str, Any]:
    """`ponder.train.grpo` as `ponder train` sets it up, but that nothing ends a sample and nothing is saved."""
    import torch

    from ponder.engine.torch_sampler import Sampler
    from ponder.train.adapters import trainable
    from ponder.train.devices import Devices
    from ponder.train.grpo import Settings, grpo
    from ponder.train.optimizer import Optimizer, Schedule
    from ponder.train.rewards import Rewards
    from ponder.train.rollout import local
    from ponder.train.run import METRICS, Run
    from ponder.train.trainer import Trainer
    from ponder.verifiers.reward_model import from_function

    task, clock = _task(asked, asked.precision), Clock(asked.device)
    task.model.requires_grad_(True)
    _forget_peak(asked.device)
    sampler = Sampler(
        task.model,
        end_ids=(),
        pieces=[b""] * task.model.config.vocab_size,
        slots=asked.prompts * asked.samples,
        context=task.longest(asked.tokens),
    )
    verifier = from_function("vowels", lambda question, sample: reward_of(sample.text))

    def ended(step: int, steps: int, values: Any) -> None:
        clock.ended()
        if step > asked.steps:
            raise _Enough

    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), shown=ended)
        trainer = Trainer(
            task.model,
            Optimizer(trainable(task.model)),
            Schedule(RATE, asked.steps + 2),
            Devices(torch.device(asked.device)),
            run,
            tokens=asked.pack,
            precision=getattr(torch, asked.precision),
        )
        trainer.update = clock.around("training", trainer.update)  # type: ignore[method-assign]
        clock.start()
        with contextlib.suppress(_Enough):
            grpo(
                trainer,
                task.questions,
                task.texts,
                clock.around("sampling", local(sampler, task.texts)),
                _TimedRewards(Rewards({"vowels": (verifier, 1.0)}), clock),  # type: ignore[arg-type]
                Settings(prompts=asked.prompts, samples=asked.samples, max_tokens=asked.tokens),
                refresh=clock.around("sampling", sampler.refresh),
            )
        lines = [json.loads(line) for line in Path(folder, METRICS).read_text().splitlines()]
    counts = _counts(asked, task)
    for line in lines:
        if (line["learnt"], line["tokens"]) != (counts["generated"], counts["trained"]):
            raise SystemExit(f"a step learnt from {line['learnt']} tokens, not {counts['generated']}")
    for step in clock.steps:
        step["rest"] = step["step"] - step["sampling"] - step["rewards"] - step["training"]
    kl = max(line["sampler_kl"] for line in lines)
    return _reply(asked, clock, task, sampler_kl=kl, ratio=lines[-1]["ratio"])


# ------------------------------------------------------------------------ TRL's


def run_trl(asked: argparse.Namespace) -> dict[str, Any]:
    """TRL's trainer and its own loop."""
    import warnings

    warnings.simplefilter("ignore")
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback

    narrow = asked.peer == "trl-bfloat16" or (asked.peer == "trl-vllm" and asked.precision == "bfloat16")
    task, clock = _task(asked, "bfloat16" if narrow else "float32"), Clock(asked.device)
    texts = [task.loaded.tokenizer.decode(ids) for ids in task.prompts]
    if task.loaded.tokenizer(text=texts)["input_ids"] != task.prompts:
        raise SystemExit("TRL reads other tokens in the prompts")
    _forget_peak(asked.device)

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *given: Any, **named: Any) -> None:
            clock.start()

        def on_step_end(self, *given: Any, **named: Any) -> None:
            clock.ended()

    def vowels(completions: list[str], **columns: Any) -> list[float]:
        return [reward_of(text) for text in completions]

    with tempfile.TemporaryDirectory() as folder:
        if asked.peer == "trl-vllm" and not Path(asked.model).is_dir():
            task.model.save_pretrained(Path(folder, "model"))
            task.loaded.tokenizer.save_pretrained(Path(folder, "model"))
            task.model.name_or_path = str(Path(folder, "model"))  # from where vLLM reads it
        trainer = trl.GRPOTrainer(
            task.model.train(),
            [vowels],
            trl.GRPOConfig(folder, **_trl_settings(asked, task, trl.GRPOConfig)),
            Dataset.from_dict({"prompt": texts * (asked.steps + 1)}),
            processing_class=task.loaded.tokenizer,
            callbacks=[Steps()],
        )
        trainer.eos_token_ids = [-1]  # no token ends a sample, as in ours
        made = trainer._generate

        def generate(prompts: list[str]) -> Any:
            found = made(prompts)
            if [len(ids) for ids in found[1]] != [asked.tokens] * (asked.prompts * asked.samples):
                raise SystemExit(f"TRL made samples of {sorted({len(ids) for ids in found[1]})} tokens")
            return found

        trainer._generate = clock.around("sampling", generate)
        trainer._calculate_rewards = clock.around("rewards", trainer._calculate_rewards)
        trainer._generate_and_score_completions = clock.around("all", trainer._generate_and_score_completions)
        trainer.train()
    for step in clock.steps:
        step["training"] = step["step"] - step["all"]
        step["rest"] = step["all"] - step["sampling"] - step["rewards"]
    return _reply(asked, clock, task)


def _trl_settings(asked: argparse.Namespace, task: Task, config: Any) -> dict[str, Any]:
    """As ours are: the same loss, rate and micro-batches, as far as padding lets them be."""
    count = asked.prompts * asked.samples
    fitting = max(1, asked.pack // task.longest(asked.tokens))
    micro = max(size for size in range(1, min(count, fitting) + 1) if count % size == 0)
    names = config.__dataclass_fields__
    settings = {
        # Its name changed with transformers.
        "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing": False,
        "use_cpu": asked.device == "cpu",
        "bf16": asked.precision == "bfloat16",
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": count // micro,
        "num_generations": asked.samples,
        "max_completion_length": asked.tokens,
        "max_steps": asked.steps + 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "temperature": 1.0,
        "loss_type": "dapo",
        "beta": 0.0,
        "shuffle_dataset": False,
        "dataloader_pin_memory": asked.device == "cuda",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "generation_kwargs": {"eos_token_id": None},
    }
    if asked.peer == "trl-vllm":
        settings |= {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": 0.3,
            "vllm_max_model_length": task.longest(asked.tokens),
            "generation_kwargs": {"ignore_eos": True},
        }
    return settings


# ------------------------------------------------------------------------ what the machine could do


def run_limit(asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the training pass if it were its matrix products, in micro-batches like ours."""
    import torch

    task = _task(asked, asked.precision)
    dtype, clock, counts = getattr(torch, asked.precision), Clock(asked.device), _counts(asked, task)
    seconds = core = 0.0
    for (width_out, width_in), (times, what) in _products(task.model).items():
        tokens = counts[what]
        rows = min(tokens, asked.pack)
        x = torch.randn(rows, width_in, device=asked.device, dtype=dtype)
        weight = torch.randn(width_out, width_in, device=asked.device, dtype=dtype)
        gradient = torch.randn(rows, width_out, device=asked.device, dtype=dtype)
        took = clock.best(
            20,
            partial(torch.nn.functional.linear, x, weight),
            partial(torch.matmul, gradient, weight),
            partial(torch.matmul, gradient.T, x),
        )
        seconds += took.seconds * times * tokens / rows
        core += took.core * times * tokens / rows
    return {"seconds": {"training": round(seconds, 4)}, "core_seconds": {"training": round(core, 4)}, **counts}


def _products(model: Any) -> dict[tuple[int, int], tuple[int, str]]:
    """For each shape of a matrix how often it is there, and which tokens go through it: of the head, learnt ones."""
    import torch

    found: dict[tuple[int, int], tuple[int, str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            shape = (module.out_features, module.in_features)
            what = "generated" if name.endswith("lm_head") else "trained"
            found[shape] = (found.get(shape, (0, what))[0] + 1, what)
    return found


def run_utilisation(asked: argparse.Namespace) -> dict[str, Any]:
    """The share of the machine's speed in bfloat16 that the training pass has, at a size that can reach it."""
    import torch

    from ponder.train.adapters import trainable
    from ponder.train.devices import Devices
    from ponder.train.grpo import Settings, _loss, _reduce
    from ponder.train.model import load
    from ponder.train.optimizer import Optimizer, Schedule
    from ponder.train.rows import Row
    from ponder.train.run import Run
    from ponder.train.trainer import Trainer

    model = load(asked.big, dtype="bfloat16", device=asked.device).model.requires_grad_(True)
    length = min(1024, asked.batch)
    draw = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(asked.batch // length):
        ids = torch.randint(0, model.config.vocab_size, (length,), generator=draw).tolist()
        values = {"advantage": [1.0] * length, "weight": [1 / asked.batch] * length, "drawn": [math.nan] * length}
        rows.append(Row(ids, [True] * length, values))
    settings, clock = Settings(), Clock(asked.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            Optimizer(trainable(model)),
            Schedule(RATE, 10**6),
            Devices(torch.device(asked.device)),
            Run(Path(folder)),
            precision=torch.bfloat16,
        )
        for micro in _halves(asked.batch, length):
            trainer.tokens = micro
            try:
                update = partial(trainer.update, rows, _reduce(settings), _loss(settings, 1.0, fresh=True))
                update()
                seconds = clock.best(asked.steps, update).seconds
                break
            except torch.cuda.OutOfMemoryError:
                pass
            trainer.optimizer.forget()  # out here, where the failed pass holds nothing any more
            torch.cuda.empty_cache()
        else:
            raise SystemExit("not even one sequence fits into the memory")
    config = model.config
    operations = 6 * _multiplied(model) * asked.batch
    operations += 6 * config.num_hidden_layers * config.hidden_size * length * asked.batch  # causal: half of all pairs
    peak = _product_speed(asked.device)
    return {
        "weights": sum(p.numel() for p in model.parameters()),
        "batch": asked.batch,
        "length": length,
        "micro_batch": micro,
        "update_seconds": round(seconds, 4),
        "trained_tokens_per_second": round(asked.batch / seconds),
        "operations_per_second": operations / seconds,
        "product_operations_per_second": peak,
        "utilisation": round(operations / seconds / peak, 3),
        "peak_mib": _peak(asked.device),
    }


def _halves(batch: int, least: int) -> Iterator[int]:
    while batch >= least:
        yield batch
        batch //= 2


def _multiplied(model: Any) -> int:
    """Weights that each token is multiplied with: those of linear layers, and the head's, tied or not."""
    import torch

    return sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))


def _product_speed(device: str) -> float:
    """Operations a second of a large product in bfloat16."""
    import torch

    size = 8192 if device == "cuda" else 1024
    x = torch.randn(size, size, device=device).bfloat16()
    return 2.0 * size**3 / Clock(device).best(20, partial(torch.matmul, x, x)).seconds


CHILDREN: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "ponder": run_ponder,
    "trl": run_trl,
    "trl-bfloat16": run_trl,
    "trl-vllm": run_trl,
    "limit": run_limit,
    "utilisation": run_utilisation,
}

# ------------------------------------------------------------------------ the rest


def _base(model: str) -> str:
    """The weights under a name of the catalogue without its adapter, or the path as it is."""
    if Path(model).exists():
        return model
    from ponder.engine.weights import resolve

    return str(resolve(model).path)


def _new_folder(folder: Path, shape: dict[str, int]) -> Path:
    """A new model of the Llama line, and a tokenizer that knows every byte, and words enough for its vocabulary."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*special, *letters, *_words(shape["vocabulary"] - len(letters) - len(special))]
    tokenizer = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in special])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], pad_token=special[1]
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["inner"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["groups"],
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def _words(count: int) -> Sequence[str]:
    """Made-up words of three letters and more, all different."""
    consonants, vowels = "bcdfghjklmnpqrstvwxz", "aeiou"
    syllables = [c + v for c in consonants for v in vowels]
    return [
        syllables[number % 100] + syllables[number // 100 % 100] + syllables[number // 10_000]
        for number in range(count)
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None)
    parser.add_argument("--model", default="ponder-135m", help="a name of the catalogue, a path, tiny, 135m or 1b")
    parser.add_argument("--prompts", type=int, default=None, help="questions of a step (2; on a GPU 32)")
    parser.add_argument("--samples", type=int, default=None, help="of each (4; on a GPU 8)")
    parser.add_argument("--tokens", type=int, default=None, help="of each sample (48; on a GPU 256)")
    parser.add_argument("--steps", type=int, default=3, help="measured ones; one more warms up")
    parser.add_argument("--rounds", type=int, default=1, help="how often the peers take turns")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--pack", type=int, default=None, help="tokens of a micro-batch (8192; on a GPU 16384)")
    parser.add_argument("--peers", default="", help="ponder,trl,trl-bfloat16,trl-vllm,limit,utilisation")
    parser.add_argument("--big", default="1b", help="the model of utilisation")
    parser.add_argument("--batch", type=int, default=32_768, help="tokens of the batch of utilisation")
    parser.add_argument("--peer", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.device is None:
        import torch

        asked.device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, value in DEFAULT[asked.device].items():
        if getattr(asked, name) is None:
            setattr(asked, name, value)
    return asked


DEFAULT = {
    "cpu": {"prompts": 2, "samples": 4, "tokens": 48, "pack": 8192},
    "cuda": {"prompts": 32, "samples": 8, "tokens": 256, "pack": 16_384},
}

if __name__ == "__main__":
    main()
