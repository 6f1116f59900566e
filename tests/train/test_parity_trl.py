"""Our losses beside TRL's own, run by its trainers on the same tokens: values and gradients of a small random Llama.

TRL gets the rollouts by its public `rollout_func` and does all the rest itself: padding, masks, rewards to
advantages, log-probabilities before and after an update of the weights, importance ratios, the loss. Ours run the
model on each sequence alone, without padding, and pack what comes out.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func calls itself experimental
trl = pytest.importorskip("trl", minversion="1.16", reason="the parity with TRL needs trl: pip install trl==1.16.0")

from datasets import Dataset  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402
from trl.rewards import get_soft_overlong_punishment  # noqa: E402
from trl.trainer.distillation_trainer import _chunked_divergence_loss  # noqa: E402
from trl.trainer.utils import split_tensor_dict  # noqa: E402

from ponder.train import divergence, loss  # noqa: E402
from ponder.train.advantage import group_advantages, leave_one_out_advantages  # noqa: E402
from ponder.train.length_reward import soft_overlong  # noqa: E402
from ponder.train.preference import Pair, preference, sequence_logprobs  # noqa: E402

# TRL 1.16 asks transformers for attributes by names that transformers 5.23 calls by newer ones.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")

torch.set_num_threads(1)  # more of them wait for each other in products as small as these

END, VOCABULARY, TEMPERATURE, LONGEST = 1, 32, 0.8, 9
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["<pad>", "<end>", "<unk>", *(f"w{i}" for i in range(3, VOCABULARY))])}
    whole = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=whole, padding_side="left", **special)


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama on disk, from where TRL loads its reference model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def open_model(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).train()


def update(model: LlamaForCausalLM, seed: int, size: float = 0.03) -> None:
    """What a step of training does to weights, here at random."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=drawn)


def gradient(model: LlamaForCausalLM, value: Tensor) -> Tensor:
    """Of all weights, one after the other."""
    return torch.cat([each.flatten() for each in torch.autograd.grad(value, list(model.parameters()))])


def same(found: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 1e-3, "nothing agrees with everything"
    torch.testing.assert_close(found, expected, **CLOSE)


# ------------------------------------------------------------------ rollouts, and both sides' view of them


@dataclass(frozen=True)
class Rollout:
    prompt: list[int]
    completion: list[int]
    sampled: list[bool]
    """Which tokens of the completion the policy sampled; a tool wrote the others."""
    sampler: list[float]
    """The sampling engine's log-probabilities; not quite ours."""
    reward: float | None


def rollouts(tools: bool = False) -> list[Rollout]:
    """Two groups of four: prompts and completions of different lengths, one without a reward, some without an end."""
    drawn = torch.Generator().manual_seed(7)

    def ids(n: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (n,), generator=drawn).tolist()

    prompts = [ids(2)] * 4 + [ids(5)] * 4
    rewards = [1.0, 0.0, 0.3, None, 0.5, 2.0, 1.0, 0.7]
    made = []
    for prompt, reward, length in zip(prompts, rewards, (5, 1, 9, 3, 4, 8, 2, 6), strict=True):
        completion = ids(length)
        if length != LONGEST:
            completion[-1] = END
        sampled = [not (tools and place % 4 in (1, 2)) for place in range(length)]
        sampler = (-3.0 + torch.randn(length, generator=drawn)).tolist()
        made.append(Rollout(prompt, completion, sampled, sampler, reward))
    if tools:  # one of which the policy sampled nothing
        made[6] = Rollout(made[6].prompt, made[6].completion, [False] * 2, made[6].sampler, made[6].reward)
    return made


@dataclass(frozen=True)
class Packed:
    """All tokens of all rollouts, prompts included, one after the other."""

    mask: Tensor
    sequence: Tensor
    sampler: Tensor
    rewards: Tensor  # (groups, 4)

    @staticmethod
    def of(made: list[Rollout]) -> Packed:
        mask = [on for each in made for on in [False] * len(each.prompt) + each.sampled]
        sequence = [i for i, each in enumerate(made) for _ in each.prompt + each.completion]
        sampler = [x for each in made for x in [0.0] * len(each.prompt) + each.sampler]
        rewards = torch.tensor([torch.nan if each.reward is None else each.reward for each in made])
        return Packed(torch.tensor(mask), torch.tensor(sequence), torch.tensor(sampler), rewards.view(-1, 4))


def packed_logprobs(model: LlamaForCausalLM, sequences: list[list[int]], temperature: float = TEMPERATURE) -> Tensor:
    """The log-probability of each token given those before it, each sequence run alone; 0 for the first."""
    parts = []
    for ids in sequences:
        one = torch.tensor([ids])
        logprobs = (model(one).logits[0, :-1] / temperature).log_softmax(-1)
        parts += [torch.zeros(1), logprobs.gather(1, one[0, 1:, None])[:, 0]]
    return torch.cat(parts)


def policy_logprobs(model: LlamaForCausalLM, made: list[Rollout]) -> Tensor:
    return packed_logprobs(model, [each.prompt + each.completion for each in made])


def grpo_trainer(folder: Path, tokenizer: Any, output: Path, made: list[Rollout], **settings: Any) -> Any:
    tools = any(not all(each.sampled) for each in made)

    def roll_out(prompts: list[str], trainer: Any) -> dict[str, Any]:
        told = {
            "prompt_ids": [each.prompt for each in made],
            "completion_ids": [each.completion for each in made],
            "logprobs": [each.sampler for each in made],
        }
        return told | ({"env_mask": [[int(on) for on in each.sampled] for each in made]} if tools else {})

    def reward(completions: list[str], **columns: Any) -> list[float | None]:
        return [each.reward for each in made]

    steps = settings.pop("gradient_accumulation_steps", 1)
    args = trl.GRPOConfig(
        str(output),
        report_to="none",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        per_device_train_batch_size=len(made) // steps,
        gradient_accumulation_steps=steps,
        num_generations=4,
        num_iterations=2,  # so that TRL keeps the log-probabilities of before the update
        max_completion_length=LONGEST,
        temperature=TEMPERATURE,
        **settings,
    )
    questions = Dataset.from_dict({"prompt": ["w3 w4"] * len(made)})
    trainer = trl.GRPOTrainer(
        open_model(folder), [reward], args, questions, processing_class=tokenizer, rollout_func=roll_out
    )
    trainer.current_gradient_accumulation_steps = steps  # as its training loop would
    return trainer


@dataclass
class Case:
    """TRL's settings, and ours that should come to the same."""

    trl: dict[str, Any]
    kind: str = "ppo"
    aggregation: str = "dapo"
    clips: dict[str, float] | None = None
    beta: float = 0.0
    kl_ratio: bool = True
    scale: str = "group"
    tools: bool = False


def our_loss(
    case: Case, model: LlamaForCausalLM, old: Tensor, reference: Tensor, made: list[Rollout]
) -> tuple[Tensor, Tensor, loss.Surrogate]:
    """Each token's loss, its weight in the batch, and what the surrogate says about it."""
    batch = Packed.of(made)
    where = (batch.mask, batch.sequence, len(made))
    advantages = group_advantages(batch.rewards, scale=case.scale).flatten()[batch.sequence]
    logprobs = policy_logprobs(model, made)
    result = loss.surrogate(logprobs, old, advantages, *where, kind=case.kind, **(case.clips or {}))
    each = result.loss
    if case.beta:
        ratio = result.ratio if case.kl_ratio else None
        each = each + case.beta * loss.kl(logprobs, reference, mask=batch.mask, ratio=ratio)
    return each, loss.weights(*where, case.aggregation, longest=LONGEST), result


SEQUENCE = {"importance_sampling_level": "sequence", "epsilon": 0.005}
NARROW = {"clip_low": 0.005, "clip_high": 0.005}
CASES = {
    "grpo": Case({"loss_type": "grpo"}, aggregation="grpo"),
    "bnpo": Case({"loss_type": "bnpo"}, aggregation="bnpo"),
    "dr_grpo": Case({"loss_type": "dr_grpo", "scale_rewards": "none"}, aggregation="dr_grpo", scale="none"),
    "dapo": Case({"loss_type": "dapo"}),
    "cispo": Case({"loss_type": "cispo", "epsilon_high": 1.1}, kind="cispo", clips={"ceiling": 1.1}),
    "gspo": Case({"loss_type": "grpo"} | SEQUENCE, "gspo", "grpo", NARROW),
    "gspo of bnpo": Case({"loss_type": "bnpo"} | SEQUENCE, "gspo", "bnpo", NARROW),
    "gspo of dr_grpo": Case({"loss_type": "dr_grpo"} | SEQUENCE, "gspo", "dr_grpo", NARROW),
    "gspo of dapo": Case({"loss_type": "dapo"} | SEQUENCE, "gspo", "dapo", NARROW),
    # Advantages are those of sequences here, where GSPO-token has GSPO's gradient if sequences weigh alike.
    "gspo_token": Case({"loss_type": "grpo"} | SEQUENCE, "gspo_token", "grpo", NARROW),
    "clip-higher": Case({"epsilon": 0.1, "epsilon_high": 0.28}, clips={"clip_low": 0.1, "clip_high": 0.28}),
    "dual clip": Case({"epsilon": 0.1, "delta": 1.3}, clips={"clip_low": 0.1, "clip_high": 0.1, "ceiling": 1.3}),
    "kl": Case({"beta": 0.5}, beta=0.5),
    "kl by k3 alone": Case({"beta": 0.5, "use_bias_correction_kl": False}, beta=0.5, kl_ratio=False),
    "gspo with kl": Case({"loss_type": "grpo", "beta": 0.5} | SEQUENCE, "gspo", "grpo", NARROW, 0.5),
    "scaled by the batch": Case({"scale_rewards": "batch"}, scale="batch"),
    "grpo, tools": Case({"loss_type": "grpo"}, aggregation="grpo", tools=True),
    "dapo, tools, kl": Case({"beta": 0.1}, beta=0.1, tools=True),
    "cispo, tools": Case({"loss_type": "cispo", "epsilon_high": 1.1}, "cispo", clips={"ceiling": 1.1}, tools=True),
    "gspo, tools": Case({"loss_type": "grpo"} | SEQUENCE, "gspo", "grpo", NARROW, tools=True),
}


@pytest.mark.parametrize("steps", [1, 2], ids=["whole", "accumulated"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_policy_losses(case, steps, weights_folder, tokenizer, tmp_path):
    made = rollouts(case.tools)
    settings = case.trl | {"gradient_accumulation_steps": steps}
    trainer = grpo_trainer(weights_folder, tokenizer, tmp_path, made, **settings)
    reference = policy_logprobs(trainer.model, made).detach()
    update(trainer.model, 1)
    old = policy_logprobs(trainer.model, made).detach()
    batch = trainer._generate_and_score_completions([{"prompt": "w3 w4"}] * len(made))
    update(trainer.model, 4)
    theirs = sum(trainer._compute_loss(trainer.model, part) for part in split_tensor_dict(batch, steps))

    each, weights, result = our_loss(case, trainer.model, old, reference, made)
    packed = Packed.of(made)
    if case.aggregation == "bnpo" and steps > 1:
        # TRL's is the mean of its micro-batches' means, which is not that of the batch. Ours would be; do as it does.
        weights = torch.cat(
            [
                loss.weights(packed.mask[half], packed.sequence[half], len(made), "bnpo") / steps
                for half in (packed.sequence < 4, packed.sequence >= 4)
            ]
        )
    ours = (weights * each).sum()
    same(ours, theirs)
    same(gradient(trainer.model, ours), gradient(trainer.model, theirs))

    told = loss.measures(result, packed.mask).means()
    assert told["clip_high"] > 0, "the clip, which is half of the loss, was not tried"
    assert case.kind == "cispo" or told["clip_low"] > 0
    if steps == 1 and case.kind == "ppo" and "delta" not in case.trl:
        for name in ("low", "high"):
            (theirs_told,) = trainer._metrics["train"][f"clip_ratio/{name}_mean"]
            assert told[f"clip_{name}"] == pytest.approx(theirs_told, abs=1e-6)


@pytest.mark.parametrize("bounds", [(None, 1.5), (0.5, 1.5), (0.7, None)])
@pytest.mark.parametrize("rule", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_importance_of_another_engines_samples(level, rule, bounds, weights_folder, tokenizer, tmp_path):
    made = rollouts(tools=True)
    if level == "sequence":  # products of ratios near 1, so that some stay within the bounds
        model = open_model(weights_folder)
        own = policy_logprobs(model, made).detach()
        logprobs = own.split([len(each.prompt + each.completion) for each in made])
        for each, values in zip(made, logprobs, strict=True):
            noise = 0.2 * torch.tensor(each.sampler).add(3.0)
            each.sampler[:] = (values[len(each.prompt) :] + noise).tolist()
    low, high = bounds
    correction = {
        "vllm_importance_sampling_mode": f"{level}_{rule}",
        "vllm_importance_sampling_clip_min": low,
        "vllm_importance_sampling_clip_max": high,
    }
    made[0].sampler[0] = float("nan")  # a token that the sampler gave no log-probability
    trainer = grpo_trainer(weights_folder, tokenizer, tmp_path, made, **correction)
    # There is no vLLM here; its rollouts come from `rollout_func`, and no weights have to be brought to it.
    trainer.use_vllm, trainer._last_loaded_step = True, trainer.state.global_step
    old = policy_logprobs(trainer.model, made).detach()
    batch = trainer._generate_and_score_completions([{"prompt": "w3 w4"}] * len(made))
    update(trainer.model, 4)
    theirs = trainer._compute_loss(trainer.model, batch)

    packed = Packed.of(made)
    where = (packed.mask, packed.sequence, len(made))
    importance = loss.importance_weights(old, packed.sampler, *where, level=level, rule=rule, low=low, high=high)
    inside = importance[packed.mask]
    assert inside.unique().numel() > 2
    assert bool((inside == 0).any()) == (rule == "mask")
    advantages = group_advantages(packed.rewards).flatten()[packed.sequence]
    result = loss.surrogate(policy_logprobs(trainer.model, made), old, advantages, *where, importance=importance)
    ours = (loss.weights(*where) * result.loss).sum()
    same(ours, theirs)
    same(gradient(trainer.model, ours), gradient(trainer.model, theirs))


# ------------------------------------------------------------------ advantages and rewards

TABLES = {
    "plain": [1.0, 0.0, 0.0, 1.0, 0.2, 0.4, 0.9, -3.0],
    "all alike in one group": [0.1, 0.1, 0.1, 0.1, 0.0, 1.0, 1.0, 1.0],
    "some without a reward": [1.0, None, 0.0, 0.5, None, None, 0.3, 0.9],
    "one or none with a reward": [None, None, None, None, None, 0.7, None, None],
}


def rewarded(rewards: list[float | None]) -> list[Rollout]:
    return [
        Rollout(each.prompt, each.completion, each.sampled, each.sampler, reward)
        for each, reward in zip(rollouts(), rewards, strict=True)
    ]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_group_advantages(table, scale, weights_folder, tokenizer, tmp_path):
    made = rewarded(table)
    trainer = grpo_trainer(weights_folder, tokenizer, tmp_path, made, scale_rewards=scale)
    theirs = trainer._generate_and_score_completions([{"prompt": "w3 w4"}] * len(made))["advantages"]
    # Equal rewards of 0.1 differ from their mean by TRL's rounding, which 1 / 1e-4 enlarges: ours are exactly 0.
    ours = group_advantages(Packed.of(made).rewards, scale=scale).flatten()
    torch.testing.assert_close(
        ours, theirs, rtol=1e-5, atol=1e-4 if table == TABLES["all alike in one group"] else 1e-5
    )


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_leave_one_out_advantages(table, weights_folder, tokenizer, tmp_path):
    made = rewarded(table)
    args = trl.RLOOConfig(
        str(tmp_path),
        report_to="none",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=2,
        beta=0.0,
    )

    def reward(completions: list[str], **columns: Any) -> list[float | None]:
        return table

    questions = Dataset.from_dict({"prompt": ["w3 w4"] * 8})
    trainer = trl.RLOOTrainer(open_model(weights_folder), [reward], args, questions, processing_class=tokenizer)
    theirs = trainer._generate_and_score_completions([{"prompt": "w3 w4"}] * 8)["advantages"]
    ours = leave_one_out_advantages(Packed.of(made).rewards).flatten()
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("cache", [1, 20, 100])
def test_soft_overlong(cache):
    lengths = list(range(130))
    theirs = get_soft_overlong_punishment(100, cache)([[0] * length for length in lengths])
    assert [soft_overlong(length, 100, cache) for length in lengths] == pytest.approx(theirs)


# ------------------------------------------------------------------ preferences

PREFERENCES = {
    "sigmoid": ({"loss_type": ["sigmoid"]}, {"kind": "sigmoid"}),
    "sigmoid of averages": ({"loss_type": ["sigmoid_norm"]}, {"kind": "sigmoid", "average": True}),
    "ipo": ({"loss_type": ["ipo"]}, {"kind": "ipo", "average": True}),
    "hinge": ({"loss_type": ["hinge"], "beta": 1.0}, {"kind": "hinge", "beta": 1.0}),
    "robust": (
        {"loss_type": ["robust"], "label_smoothing": 0.2},
        {"kind": "robust", "label_smoothing": 0.2},
    ),
    # TRL's sigmoid takes no label smoothing. Its `aot` does, and on a batch of one pair that is the same loss.
    "smoothed": (
        {"loss_type": ["aot"], "label_smoothing": 0.2, "per_device_train_batch_size": 1},
        {"kind": "sigmoid", "label_smoothing": 0.2},
    ),
}


@pytest.mark.parametrize(("theirs_set", "ours_set"), PREFERENCES.values(), ids=PREFERENCES)
def test_preference_losses(theirs_set, ours_set, weights_folder, tokenizer, tmp_path):
    pairs = {
        "prompt": ["w3 w4", "w5 w6 w7", "w8"],
        "chosen": [" w9 w10 w11", " w12", " w13 w14 w15 w16 w17"],
        "rejected": [" w18", " w19 w20 w21 w22", " w23 w24"],
    }
    settings = {"per_device_train_batch_size": 3, "beta": 0.3} | theirs_set
    args = trl.DPOConfig(
        str(tmp_path),
        report_to="none",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        dataloader_pin_memory=False,
        **settings,
    )
    trainer = trl.DPOTrainer(
        open_model(weights_folder), args=args, train_dataset=Dataset.from_dict(pairs), processing_class=tokenizer
    )
    reference_model = open_model(weights_folder)
    update(trainer.model, 3)
    ours_set = {"beta": 0.3} | ours_set
    average = ours_set.pop("average", False)
    ours, theirs, seen = [], [], 0
    for inputs in trainer.get_train_dataloader():
        theirs.append(trainer._compute_loss(trainer.model, inputs, return_outputs=False))
        alive = inputs["attention_mask"].bool()
        sequences = [ids[on].tolist() for ids, on in zip(inputs["input_ids"], alive, strict=True)]
        mask = inputs["completion_mask"].bool()[alive]
        sequence = torch.arange(len(sequences)).repeat_interleave(alive.sum(1))

        def pair(model: LlamaForCausalLM, sequences=sequences, mask=mask, sequence=sequence) -> Pair:
            logprobs = packed_logprobs(model, sequences, temperature=1.0)
            sums = sequence_logprobs(logprobs, mask, sequence, len(sequences), average=average)
            return Pair(*sums.chunk(2))

        ours.append(preference(pair(trainer.model), pair(reference_model), **ours_set).loss.mean())
        seen += len(sequences) // 2
    assert seen == 3
    for our, their in zip(ours, theirs, strict=True):
        same(our, their)
        same(gradient(trainer.model, our), gradient(trainer.model, their))


# ------------------------------------------------------------------ distillation


@pytest.mark.parametrize("temperature", [0.7, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_divergences(beta, temperature):
    """TRL's is of hidden states; its beta of 0 is the forward divergence, 1 the reverse."""
    drawn = torch.Generator().manual_seed(11)
    hidden, teacher_hidden = torch.randn(2, 2, 7, 8, generator=drawn)
    head, teacher_head = torch.randn(2, VOCABULARY, 8, generator=drawn)
    head.requires_grad_()
    mask = torch.rand(2, 7, generator=drawn) < 0.7
    theirs, _, tokens = _chunked_divergence_loss(
        hidden, teacher_hidden, head, teacher_head, mask.int(), beta, temperature=temperature
    )
    student, teacher = (hidden @ head.T)[mask], (teacher_hidden @ teacher_head.T)[mask]
    if beta in (0.0, 1.0):
        measured = divergence.reverse_kl if beta else divergence.forward_kl
        each = measured(student, teacher, temperature=temperature, chunk=4)
    else:
        each = divergence.jensen_shannon(student, teacher, beta=beta, temperature=temperature, chunk=4)
    sequence = torch.arange(2)[:, None].expand(2, 7)[mask]
    ours = (loss.weights(torch.ones(len(each)).bool(), sequence, 2) * each).sum()
    assert len(each) == tokens
    same(ours, theirs)
    same(torch.autograd.grad(ours, head)[0], torch.autograd.grad(theirs, head)[0])
