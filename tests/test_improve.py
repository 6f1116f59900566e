"""The second sentence, for each kind of training: from data to a result that loads, and on from a stop."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from teaching import losses, prepared, traces_file

from ponder.engine.torch_load import load
from ponder.errors import InputError
from ponder.improve import KINDS, improve, planned
from ponder.train import recipe as recipes
from ponder.train.run import notes_of, steps_of

LORA = {"full": None, "lora": {"rank": 2}}

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Threads that wait for each other are slow where other work takes a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_kind_of_recipe_is_taught() -> None:
    assert set(KINDS) == set(recipes.KINDS)


def test_a_cold_start_learns(tmp_path: Path) -> None:
    recipe = prepared(tmp_path, steps=12, optimizer={"rate": 3e-3, "schedule": "constant"})
    result = improve(recipe, tmp_path / "run")
    found = losses(steps_of(tmp_path / "run"))
    assert len(found) == 12
    assert found[-1] < found[0] / 2
    assert notes_of(tmp_path / "run")["data"]["examples"] == 12
    model = load(str(result))
    assert model.metadata["ponder.thinking"] == {"name": "ponder"}
    # The result is the last checkpoint, to the bit.
    kept = load_file(tmp_path / "run" / "checkpoints" / "step-00000012" / "training.safetensors")
    for name, parameter in model.model.named_parameters():
        assert torch.equal(parameter, kept[f"weight.{name}"])


@pytest.mark.parametrize("changes", [{}, LORA], ids=["whole", "adapter"])
def test_an_engine_opens_the_result(changes: dict[str, Any], tmp_path: Path) -> None:
    """And says what the trained model does, which is not what the model did before."""
    from ponder.engine import open_engine
    from ponder.protocols import SamplingParams

    recipe = prepared(tmp_path, steps=20, optimizer={"rate": 1e-2, "schedule": "constant"}, **changes)
    result = improve(recipe, tmp_path / "run")
    prompt = load(str(result)).ids("7+1?<think>\n")

    async def answer() -> list[int]:
        engine = await open_engine(f"hf:{result}")
        try:
            chunks = engine.sample(prompt, 1, SamplingParams(8, temperature=0.0, ignore_eos=True))
            return [token async for chunk in chunks for token in chunk.ids]
        finally:
            await engine.close()

    def greedy(name: Path) -> list[int]:
        model, ids = load(str(name)).model, list(prompt)
        for _ in range(8):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[len(prompt) :]

    assert asyncio.run(answer()) == greedy(result) != greedy(tmp_path / "tiny")


def test_an_adapter_is_the_result_of_training_one(tmp_path: Path) -> None:
    result = improve(prepared(tmp_path, **LORA), tmp_path / "run")
    assert json.loads((result / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tmp_path / "tiny")
    assert notes_of(tmp_path / "run")["parameters"]["trained"] < 5000
    # ... and training goes on from it.
    again = prepared(tmp_path, full=None, adapter=str(result), steps=1, optimizer={"rate": 1e-6})
    first = load_file(result / "adapter_model.safetensors")
    second = load_file(improve(again, tmp_path / "more") / "adapter_model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


def test_new_weights(tmp_path: Path) -> None:
    prepared(tmp_path)
    shape = {"tokenizer": str(tmp_path / "tiny"), "hidden": 16, "layers": 1, "heads": 2, "groups": 1, "context": 128}
    result = improve(prepared(tmp_path, model=shape, steps=2), tmp_path / "run")
    config = load(str(result)).model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_key_value_heads) == (16, 1, 1)


KINDS_OF_RUNS: dict[str, dict[str, Any]] = {
    "dpo": {"dpo": {"beta": 0.2, "matched": True}, **LORA},
    "reward": {"reward": {"kind": "outcome", "held_out": 0.2}},
    "reward of steps": {"reward": {"kind": "process"}},
    "distill": {"distill": {"teacher": "tiny"}, "model": "new"},
    "distill on policy": {"distill": {"teacher": "tiny", "on_policy": 1.0, "max_tokens": 8, "way": "reverse"}},
    "distill traces": {"distill": {"way": "traces"}},
    "grpo": {
        "grpo": {
            "prompts": 2, "samples": 2, "max_tokens": 24, "slots": 4, "answer": 4, "rewards": {"pattern('1')": 1.0}
        },
        "batch": None,
    },
    "grpo with budgets": {
        "grpo": {
            "prompts": 2, "samples": 2, "max_tokens": 24, "slots": 4, "answer": 4, "budgets": [4, 8], "beta": 0.1,
            "rewards": {"pattern('1')": 1.0}, "length_reward": "maximum",
        },
        "batch": None,
        **LORA,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS_OF_RUNS)
def test_each_kind_trains_and_resumes(name: str, tmp_path: Path) -> None:
    """A run that was cut after its second step ends as one that was not."""
    kind, changes = name.split()[0], dict(KINDS_OF_RUNS[name])
    prepared(tmp_path)
    if kind in ("dpo", "reward") or name == "distill traces":
        changes["data"] = {"sources": [str(traces_file(tmp_path))]}
    if "teacher" in changes.get("distill", {}):
        changes["distill"] = {**changes["distill"], "teacher": str(tmp_path / "tiny")}
    if changes.get("model") == "new":
        changes["model"] = {"tokenizer": str(tmp_path / "tiny"), "hidden": 16, "layers": 1, "heads": 2}
    recipe = prepared(tmp_path, kind, steps=4, **changes)

    class Cut(Exception):
        pass

    def cut(step: int, steps: int, values: object) -> None:
        if step == 3:
            raise Cut

    whole = improve(recipe, tmp_path / "whole")
    with pytest.raises(Cut):
        improve(recipe, tmp_path / "cut", shown=cut)
    again = improve(recipe, tmp_path / "cut")
    lines = [steps_of(tmp_path / each) for each in ("whole", "cut")]
    assert [line["step"] for line in lines[1]] == [1, 2, 3, 4]
    for mine, theirs in zip(*lines, strict=True):
        assert {k: v for k, v in mine.items() if k not in ("time", "seconds")} == {
            k: v for k, v in theirs.items() if k not in ("time", "seconds")
        }
    (file,) = whole.glob("*.safetensors")
    weights = [load_file(folder / file.name) for folder in (whole, again)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_run_that_ended_is_left_alone(tmp_path: Path) -> None:
    recipe = prepared(tmp_path, steps=2)
    result = improve(recipe, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert improve(recipe, tmp_path / "run", shown=lambda *_: pytest.fail("it trains again")) == result
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_pairs_that_are_written_down(tmp_path: Path) -> None:
    prepared(tmp_path)
    file = tmp_path / "pairs.jsonl"
    rows = [{"question": f"{a}+1?", "chosen": f"It is {a + 1}.", "rejected": "No."} for a in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = prepared(tmp_path, "dpo", steps=8, data={"sources": [str(file)]})
    improve(recipe, tmp_path / "run")
    lines = steps_of(tmp_path / "run")
    assert lines[-1]["margin"] > lines[0]["margin"]
    file.write_text('{"question": "?", "chosen": "a", "rejected": "b"}\n{"chosen": 1}\n')
    with pytest.raises(InputError, match="line 2 is no pair"):
        improve(recipe, tmp_path / "other")


# ---------------------------------------------------------------- what cannot be done


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("sft", {"data": {"sources": ["missing.jsonl"]}}, "missing.jsonl"),
        ("sft", {"data": {"sources": ["traces"]}}, "holds no example"),
        ("sft", {"longest": 4}, "no example has at most 4 tokens"),
        ("sft", {"thinking": "loudly"}, "no format of thinking"),
        ("sft", {"full": None, "adapter": "own"}, "no adapter of its own"),
        ("sft", {"steps": None, "epochs": 0.1, "optimizer": {"warmup": 5}}, "warmup=5 leaves none of 1 steps"),
        ("dpo", {}, "holds no traces with scores"),
        ("reward", {"data": {"sources": ["traces"]}}, "no trace has a sample with a score"),
        ("grpo", {"batch": None, "data": {"sources": ["generated:poems"]}}, "nothing to generate called 'poems'"),
        ("grpo", {"batch": None, "grpo": {"max_tokens": 1000}}, "the model has 256"),
        ("grpo", {"batch": None, "thinking": None, "grpo": {"thinking": 9}}, "has no markers of thinking"),
    ],
)
def test_what_does_not_fit_is_told(kind: str, changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    if changes.get("thinking", "") is None:
        prepared(tmp_path)
        (tmp_path / "tiny" / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(InputError) as raised:
        improve(prepared(tmp_path, kind, **changes), tmp_path / "run")
    assert told in str(raised.value)
    assert not (tmp_path / "run" / "model").exists()


def test_what_would_be_done(tmp_path: Path) -> None:
    told = planned(prepared(tmp_path, **LORA))
    assert told["data"]["examples"] == 12
    assert told["steps"] == 6
    assert told["epochs"] == 2
    assert 0 < told["parameters"]["trained"] < told["parameters"]["all"]
    assert told["memory"]["all"] == sum(size for name, size in told["memory"].items() if name != "all")
    assert told["memory"]["moments"] == 2 * told["memory"]["gradients"] == 8 * told["parameters"]["trained"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["sft", *KINDS_OF_RUNS, "dpo of pairs"])
def test_what_is_tested_on_is_kept_out_of_every_kind(name: str, tmp_path: Path) -> None:
    """And counted; what is left is fewer by that."""
    kind, changes = name.split()[0], dict(KINDS_OF_RUNS.get(name, {}))
    prepared(tmp_path)
    source = tmp_path / "examples.jsonl"
    if kind in ("dpo", "reward") or name == "distill traces":
        source = traces_file(tmp_path)
    if name == "dpo of pairs":
        source = tmp_path / "pairs.jsonl"
        rows = [{"question": f"{a}+1?", "chosen": f"It is {a + 1}.", "rejected": "No."} for a in range(6)]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if "teacher" in changes.get("distill", {}):
        changes["distill"] = {**changes["distill"], "teacher": str(tmp_path / "tiny")}
    if changes.get("model") == "new":
        changes["model"] = str(tmp_path / "tiny")
    (tmp_path / "test.jsonl").write_text('{"question": "3+1?", "answer": "4"}\n')
    told = {}
    for keep_out in ([], [str(tmp_path / "test.jsonl")]):
        data = {"sources": [str(source)], "keep_out": keep_out}
        told[len(keep_out)] = planned(prepared(tmp_path, kind, **changes, data=data))["data"]
    (counted,) = {"examples", "questions", "pairs"} & told[0].keys()
    assert "kept_out" not in told[0]
    assert told[1]["kept_out"] > 0
    assert told[1][counted] < told[0][counted]


def test_the_estimate_is_what_torch_keeps(tmp_path: Path) -> None:
    """Bytes that the forward pass of a full micro-batch keeps for the backward pass, against what was estimated."""
    from ponder.train.rows import Row, packed
    from ponder.train.scorer import Scorer, at_targets
    from ponder.train.start import loaded

    recipe = prepared(tmp_path, tokens=512, batch=8)
    model = loaded(recipe).model
    (pack,) = packed([Row([5] * 64, [False] + [True] * 63)] * 8, 512)
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = Scorer(model)(pack, at_targets(pack)).sum()
    measured = sum(kept.values())
    loss.backward()
    estimated = planned(recipe)["memory"]["activations"]
    assert 0.6 < estimated / measured < 1.7, (estimated, measured)
