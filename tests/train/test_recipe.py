"""Recipes: what they say, what they refuse, and that they say it of the trainers as these are."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import InputError
from ponder.train import grpo as trainers_grpo
from ponder.train import optimizer, preference, recipe, rewards, teacher
from ponder.train.adapters import PROJECTIONS
from ponder.train.kinds_grpo import rewards_of, settings_of
from ponder.train.recipe import Grpo, Recipe
from ponder.train.recipe_file import difference, dump, load, read

SFT = """
kind = "sft"
model = "ponder-135m"
adapter = "own"
steps = 3

[data]
sources = ["traces", { from = "generated:word_problems", count = 20, difficulty = [1, 3], seed = 1 }]
"""
GRPO = SFT.replace("sft", "grpo") + "[grpo]\n"


def said(text: str) -> str:
    """What is wrong with a recipe."""
    with pytest.raises(InputError) as raised:
        read(tomllib.loads(text))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_is_left_out_has_its_default() -> None:
    found = read(tomllib.loads(SFT))
    assert (found.kind, found.steps, found.size, found.optimizer.rate) == ("sft", 3, 16, 1e-4)
    assert [each.source for each in found.data.sources] == ["traces", "generated:word_problems"]
    assert found.data.sources[1].difficulty == (1, 3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("steps", "stpes"), "there is no 'stpes'. Did you mean steps?"),
        (("steps = 3", 'steps = "3"'), "steps = '3'"),
        (("steps = 3", "steps = true"), "steps = True"),
        (("steps = 3", "steps = 0"), "steps = 0: it should be greater than or equal to 1"),
        (('"sft"', '"stf"'), "kind cannot be 'stf'. Did you mean sft?"),
        (("count = 20", "cuont = 20"), "[data.sources.1] has no 'cuont'. Did you mean count?"),
        (("[data]", "[optimizer]\nrtae = 1\n[data]"), "[optimizer] has no 'rtae'. Did you mean rate?"),
        (("[data]", "[optimizer]\nrate = -1\n[data]"), "optimizer.rate = -1"),
        (("[data]", "[optimizer]\nrate = nan\n[data]"), "optimizer.rate"),
        (('"ponder-135m"', "3"), "model = 3"),
        (('"ponder-135m"', '{ tokenizer = "x", hidden = 32, layer = 2, heads = 4 }'), "[model] has no 'layer'"),
        (('model = "ponder-135m"', ""), "model is missing"),
        (("[data]", "version = 2\n[data]"), "version cannot be 2"),
    ],
)
def test_a_mistake_is_named(change: tuple[str, str], told: str) -> None:
    assert told in said(SFT.replace(*change))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("steps = 3", "steps = 3\nepochs = 1"), "steps and epochs"),
        (("steps = 3", ""), "how long"),
        (('adapter = "own"', ""), "nothing is said to be trained"),
        (('adapter = "own"', 'adapter = "own"\nfull = true'), "full and adapter contradict each other"),
        (("steps = 3", 'steps = 3\nweights = "bfloat16"'), 'weights = "bfloat16"'),
        (("steps = 3", "steps = 3\ntokens = 100"), "longest = 1024 does not fit into tokens = 100"),
        (("[data]", "[optimizer]\nwarmup = 3\n[data]"), "optimizer.warmup = 3 leaves none of steps = 3"),
        (("[data]", '[optimizer]\nschedule = "constant"\nfloor = 0.1\n[data]'), "floor"),
        (("[data]", "[dpo]\nbeta = 0.2\n[data]"), "[dpo] is of another kind"),
        (('"traces",', '{ from = "traces", seed = 1 },'), "seed is of what is generated"),
        (('"traces",', '{ from = "a.jsonl", search = "x" },'), "search is of traces"),
        (('"ponder-135m"', '{ tokenizer = "x", hidden = 32, layers = 2, heads = 4 }'), "[model] draws new weights"),
        (('"ponder-135m"', '{ tokenizer = "x", hidden = 33, layers = 2, heads = 4 }'), "hidden = 33"),
    ],
)
def test_contradictions_are_named(change: tuple[str, str], told: str) -> None:
    assert told in said(SFT.replace(*change))


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("samples = 1", "grpo.samples = 1"),
        ('loss = "grppo"', "Did you mean grpo?"),
        ("rewards = {}", "rewards is empty"),
        ('rewards = { "math_anser()" = 1.0 }', "there is no verifier 'math_anser'"),
        ('rewards = { "math_answer(strct=True)" = 1.0 }', "strct"),
        ('rewards = { "judge()" = 1.0 }', "asks a model"),
        ('length_reward = "exact"', "budgets"),
        ("budgets = [64, 512]", "budgets go up to 512, beyond max_tokens = 256"),
        ("budgets = [64]\nthinking = 32", "thinking and budgets"),
        ("overlong = 300", "overlong = 300"),
        ("importance = 2.0", 'old = "sampler"'),
        ("ceiling = 5.0", "ceiling is of cispo"),
        ("process = 0.5", "process_reward"),
        ("minibatches = 1000", "minibatches = 1000"),
        ('tools = ["calcluator()"]\nturns = 3', "there is no tool 'calcluator'"),
        ('tools = ["calculator(2)"]\nturns = 3', "calculator(2) does not work"),
        ('tools = ["run_code(seconds=0)"]\nturns = 3', "seconds=0"),
        ('tools = ["calculator", "calculator()"]\nturns = 3', "calculator twice"),
        ('tools = ["calculator()"]', "tools are answered between turns, and turns = 1"),
        ("turns = 3", "turns = 3 says nothing without tools"),
    ],
)
def test_contradictions_of_reinforcement_learning(table: str, told: str) -> None:
    assert told in said(GRPO + table)


@pytest.mark.parametrize(
    ("kind", "table", "told"),
    [
        ("grpo", "", "batch says nothing to grpo"),
        ("distill", "", "[distill] table is missing"),
        ("distill", '[distill]\nway = "forward"', "teacher is missing"),
        ("distill", '[distill]\nway = "traces"\nteacher = "x"', "has its teacher in the data"),
        ("distill", '[distill]\nteacher = "x"\nmixture = 0.5', "mixture is of jensen_shannon"),
        ("distill", '[distill]\nteacher = "x"\non_policy = 0.5', "max_tokens"),
        ("distill", '[distill]\nteacher = "x.safetensors"\nway = "reverse"', "forward divergence alone"),
        ("dpo", '[dpo]\nkind = "ipo"\nsmoothing = 0.1', "smoothing says nothing"),
        ("reward", '[reward]\nminus = "+"', "plus and minus are both '+'"),
    ],
)
def test_contradictions_of_the_other_kinds(kind: str, table: str, told: str) -> None:
    assert told in said(SFT.replace("sft", kind).replace("steps = 3", "steps = 3\nbatch = 4") + table)


def test_a_local_sampler_and_shards_of_weights_are_refused() -> None:
    assert "reads whole weights" in said(SFT.replace("sft", "grpo").replace("steps = 3", 'steps = 3\nsharing = "fsdp"'))


@given(
    st.fixed_dictionaries(
        {
            "rate": st.floats(1e-7, 1.0),
            "decay": st.floats(0, 1),
            "warmup": st.integers(0, 2),
            "clip": st.floats(0.1, 10),
        }
    ),
    st.integers(-(2**40), 2**40),
)
def test_what_is_written_is_read(optimizing: dict[str, Any], seed: int) -> None:
    document = tomllib.loads(SFT) | {"optimizer": optimizing, "seed": seed}
    found = read(document)
    assert read(tomllib.loads(dump(found))) == found
    assert difference(found, read(tomllib.loads(dump(found)))) is None


def test_a_difference_is_named() -> None:
    one = read(tomllib.loads(SFT))
    assert difference(one, one.model_copy(update={"seed": 7})) == "seed = 0, not 7"


def test_settings_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(SFT)
    found = load(file, ["optimizer.rate=3e-5", "seed = 4", "precision=bfloat16", 'data.sources=["traces"]'], "sft")
    assert (found.optimizer.rate, found.seed, found.precision, len(found.data.sources)) == (3e-5, 4, "bfloat16", 1)
    for change, told in (
        ("optimizer.rte=1", "Did you mean rate?"),
        ("seed", "sets nothing"),
        ("steps.x=1", "no table"),
        ("=1", "sets nothing"),
    ):
        with pytest.raises(InputError) as raised:
            load(file, [change])
        assert told in str(raised.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    with pytest.raises(InputError, match="cannot read"):
        load(file)
    file.write_bytes(b"kind = \xff")
    with pytest.raises(InputError, match="is no TOML"):
        load(file)
    file.write_text(SFT)
    with pytest.raises(InputError, match=r'has kind = "sft". Run: ponder train sft '):
        load(file, kind="dpo")
    file.write_text(SFT.replace('kind = "sft"', ""))
    assert load(file, kind="sft").kind == "sft"


def test_paths_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's folder keeps the recipe, and is used from elsewhere."""
    monkeypatch.chdir(tmp_path)
    for name in ("model", "adapter", "traces"):
        (tmp_path / name).mkdir()
    (tmp_path / "rows.jsonl").write_text("{}")
    text = (
        'kind="sft"\nmodel="model"\nadapter="adapter"\nsteps=1\ndata.sources=["gsm8k:rows.jsonl", "traces", "gym:gcd"]'
    )
    found = read(tomllib.loads(text))
    assert (found.model, found.adapter) == (str(tmp_path / "model"), str(tmp_path / "adapter"))
    assert [each.source for each in found.data.sources] == [f"gsm8k:{tmp_path / 'rows.jsonl'}", "traces", "gym:gcd"]


# ---------------------------------------------------------------- the trainers have the same words


def choices(table: Any, name: str) -> set[str]:
    return set(get_args(table.model_fields[name].annotation))


def test_the_choices_are_those_of_the_trainers() -> None:
    assert choices(recipe.Optimizing, "schedule") == set(get_args(optimizer.Kind))
    assert choices(recipe.Dpo, "kind") == set(get_args(preference.Kind))
    assert choices(recipe.Grpo, "loss") == set(get_args(trainers_grpo.Name))
    assert choices(recipe.Grpo, "length_reward") == set(get_args(rewards.LengthReward))
    assert choices(recipe.Distill, "way") == {"traces", *get_args(teacher.Kind)}
    assert recipe.PROJECTIONS == PROJECTIONS


def test_every_setting_of_reinforcement_learning_has_a_place() -> None:
    names = {each.name for each in fields(trainers_grpo.Settings)}
    assert names <= set(Grpo.model_fields)
    assert settings_of(Grpo()) == trainers_grpo.Settings()
    assert settings_of(Grpo(loss="cispo", ceiling=3.0, prompts=2)).ceiling == 3.0


def test_rewards_have_their_weights() -> None:
    found = rewards_of(Grpo(rewards={"math_answer()": 1.0, "arithmetic_steps()": 0.25}, budgets=(64,), overlong=9))
    assert {name: weight for name, (_, weight) in found.verifiers.items()} == {
        "math_answer()": 1.0,
        "arithmetic_steps()": 0.25,
    }
    assert found.overlong == 9


def test_a_recipe_is_a_value() -> None:
    found = read(tomllib.loads(SFT))
    assert isinstance(found, Recipe)
    assert hash(found.optimizer) == hash(read(tomllib.loads(SFT)).optimizer)


def test_every_key_is_told() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([a-z_]+)", text))
    tables = [Recipe, recipe.NewModel, recipe.Lora, recipe.Optimizing, recipe.Data, recipe.Tracking]
    tables += [recipe.Grpo, recipe.Dpo, recipe.Distill, recipe.Reward]
    keys = {name for table in tables for name in table.model_fields}
    assert keys - told == {"grpo", "dpo", "distill", "reward"} - told
    for source in recipe.Source.model_fields.values():
        assert source.alias is None or source.alias in text
