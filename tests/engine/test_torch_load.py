"""Weights of any form become the same transformers model and tokenizer, and what is damaged is told in one line."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from safetensors.torch import load_file, save_file
from tiny import tiny_lora, tiny_model, tiny_tokenizer
from tokenizers import pre_tokenizers

from ponder.chat.model import model_of
from ponder.engine import catalogue, open_engine
from ponder.engine.llamacpp import LlamaEngine
from ponder.engine.torch_load import Loaded, load, seeded
from ponder.engine.torch_lora import with_adapter
from ponder.errors import InputError, MissingExtra, PonderError, WeightsError
from ponder.protocols import SamplingParams
from ponder.train.adapters import trainable, with_lora
from ponder.train.export import to_gguf, to_gguf_adapter, to_peft, to_safetensors
from ponder.types import system, user

TEXT = "Anna and the others. 5 + 7 = 12 <think> é日本 \n"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 60)[None]).logits


def folder_in(path: Path, **config: Any) -> Path:
    to_safetensors(tiny_model(**config), tiny_tokenizer(), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_in(tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---------------------------------------------------------------- the embedded model

PROMPTS = (
    "<|im_start|>system\nYou are<|im_end|>\n<|im_start|>assistant\n<think>\n12 + 345 = 357\n</think>\nThe answer is",
    "  leading", "\n\nhello\n \n  x", "1234567 8 ９ ٣ ½ 3.14", "x²³ ⅷ 一二", "naïve café 日本語 🙂👍🏽 \u200b", " ", "",
    "don't I'll we've I'M", "\t\ttabs\r\nx", "<|im_end|>  a<|endoftext|> b", "a" * 50, "<repo_name> x <|im_start|>x",
)  # fmt: skip
PIECES = (
    "a", "B", "7", "٣", "²", "'", "s", "ll", "é", "日", "🙂", "\u0301", "\u00a0", "\u3000", "<|im_end|>", "<think>",
    "=", ".", ",", "-", " ", "  ", "\n", "\n\n", "\t",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other are many times slower than one where other work takes a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def embedded(embedded_weights: Path) -> Loaded:
    """The default model, read without a network."""

    def refuse(self: socket.socket, address: object) -> None:
        raise AssertionError(f"a local model was looked for at {address}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setenv("PONDER_HOME", str(embedded_weights.parents[2]))
        return load(catalogue.DEFAULT_MODEL)


@pytest.mark.model
def test_the_embedded_tokenizer_gives_the_ids_of_llama_cpp(embedded: Loaded, llama: LlamaEngine):
    draw = random.Random(0)
    texts = [*PROMPTS, *("".join(draw.choices(PIECES, k=draw.randint(1, 30))) for _ in range(500))]

    async def tokenized() -> list[list[int]]:
        return [await llama.tokenize(text) for text in texts]

    assert [embedded.ids(text) for text in texts] == asyncio.run(tokenized())
    assert embedded.tokenizer.batch_decode([embedded.ids(text) for text in texts]) == texts
    named = ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id")
    assert [getattr(embedded.tokenizer, name) for name in named] == [1, 2, 0, 2]


@pytest.mark.model
def test_the_embedded_chat_template_renders_the_same_prompt(embedded: Loaded, llama: LlamaEngine):
    template = model_of(llama).template
    for messages in ([user("How much is 2 + 3?")], [system("Be brief."), user("Hello"), user("again")]):
        plain = [{"role": message.role, "content": message.text} for message in messages]
        rendered = embedded.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
        assert rendered == template.render(messages)


@pytest.mark.model
def test_the_embedded_model_scores_as_in_llama_cpp_with_and_without_its_adapter(embedded: Loaded, llama: LlamaEngine):
    question = {"role": "user", "content": "Anna has 5 apples and buys 7 more. How many apples does she have?"}
    prompt = embedded.tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    ids = embedded.ids(prompt + "<think>\nAnna has 5 + 7 = 12 apples.\n</think>\nThe answer is 12.<|im_end|>")
    start = len(embedded.ids(prompt))

    def scored(model: Any) -> torch.Tensor:
        with torch.no_grad():
            every = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1)
        return every[start - 1 : -1].gather(1, torch.tensor(ids[start:])[:, None])[:, 0]

    def theirs(**scales: float) -> torch.Tensor:
        params = SamplingParams(max_tokens=1, adapters=scales)
        return torch.tensor(asyncio.run(llama.score(ids, start, params)))

    model: Any = embedded.model
    on, theirs_on = scored(model), theirs(**{catalogue.DEFAULT_MODEL: 1.0})
    with model.disable_adapter():
        off, theirs_off = scored(model), theirs()
    model.set_adapter(
        catalogue.DEFAULT_MODEL, inference_mode=True
    )  # PEFT takes it for one to be trained once it is on again
    # llama.cpp rounds what it multiplies with weights of 4 bits to 8 bits, hence no closer.
    assert (on - theirs_on).abs().mean() < 0.1
    assert (off - theirs_off).abs().mean() < 0.2
    assert (on - off).abs().mean() > 1.0


@pytest.mark.model
def test_the_default_model_is_its_base_its_adapter_and_how_it_thinks(embedded: Loaded, tmp_path: Path):
    entry = catalogue.find(catalogue.DEFAULT_MODEL)
    assert entry is not None
    assert entry.adapter is not None
    assert embedded.sha256 == entry.base.sha256
    assert embedded.metadata["ponder.thinking"]["answer_opener"] == "The answer is"
    assert embedded.metadata["general.sampling.temp"] == entry.adapter.temperature
    assert not embedded.model.training
    assert not trainable(embedded.model)
    to_gguf_adapter(embedded.model, tmp_path / "adapter.gguf")  # type: ignore[arg-type]
    assert (tmp_path / "adapter.gguf").read_bytes() == entry.adapter.path.read_bytes()
    to_peft(embedded.model, tmp_path / "peft")  # type: ignore[arg-type]
    stated = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (stated["r"], stated["lora_alpha"]) == (16, 32)
    assert stated["base_model_name_or_path"] == entry.base.name
    to_gguf_adapter(tmp_path / "peft", tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == entry.adapter.path.read_bytes()


# ---------------------------------------------------------------- folders and files


def test_types_are_those_asked_for_and_adapters_stay_float32(folder, tmp_path):
    to_peft(tiny_lora(tiny_model(), "default"), tmp_path / "adapter")
    found = load(str(tmp_path / "adapter"), base=str(folder), dtype="bfloat16")
    kinds = {name: parameter.dtype for name, parameter in found.model.named_parameters()}
    assert {kind for name, kind in kinds.items() if "lora_" in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if "lora_" not in name} == {torch.bfloat16}
    assert {p.dtype for p in load(str(folder)).model.parameters()} == {torch.float32}


def test_a_peft_folder_finds_the_base_that_it_names(folder, tmp_path):
    model = with_lora(load(str(folder)).model, rank=4, alpha=8)
    with torch.no_grad():
        for _, parameter in trainable(model):
            parameter.add_(0.1)
    to_peft(model, tmp_path / "adapter", metadata={"general.sampling.temp": 0.5})
    found = load(str(tmp_path / "adapter"))
    assert torch.equal(logits(found.model), logits(model.eval()))
    assert not torch.equal(logits(found.model), logits(tiny_model()))
    assert found.metadata == {"general.sampling.temp": 0.5}
    assert str(folder) in found.source
    assert str(tmp_path / "adapter") in found.source


def test_new_weights_depend_on_the_seed_alone(folder):
    (folder / "model.safetensors").unlink()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, same, other = (load(f"new:{folder}", seed=seed).model.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(one[key], same[key])
    assert not torch.equal(one[key], other[key])
    with pytest.raises(InputError, match=r"holds no safetensors\. For new weights, give new:"):
        load(str(folder))


def test_a_tokenizer_splits_as_its_file_says_whatever_class_the_folder_names(tmp_path):
    tokenizer = tiny_tokenizer()
    digits = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.backend_tokenizer.pre_tokenizer = digits
    to_safetensors(tiny_model(), tokenizer, tmp_path / "model")
    edit(tmp_path / "model" / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    found = load(str(tmp_path / "model")).tokenizer.backend_tokenizer.pre_tokenizer
    assert [piece for piece, _ in found.pre_tokenize_str("a12 3")] == ["a", "1", "2", "Ġ", "3"]


def test_loading_prints_nothing(folder, tmp_path, capfd):
    to_gguf(tiny_model(), tiny_tokenizer(), tmp_path / "model.gguf")
    load(str(folder))
    load(str(tmp_path / "model.gguf"))
    assert capfd.readouterr() == ("", "")


def _lack(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def _nan(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    weights["model.norm.weight"][3] = float("inf")
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "lacking": (_lack, "lacks weights model.norm.weight"),
    "not finite": (_nan, "not finite, in model.norm.weight"),
    "cut short": (lambda path: (path / "model.safetensors").write_bytes(b"\0" * 100), "cannot be loaded"),
    "other size": (lambda path: edit(path / "config.json", intermediate_size=48), "do not fit their own configuration"),
    "more layers": (lambda path: edit(path / "config.json", num_hidden_layers=3), "lacks weights model.layers.2"),
    "fewer layers": (lambda path: edit(path / "config.json", num_hidden_layers=1), "unknown weights model.layers.1"),
    "no model": (lambda path: edit(path / "config.json", model_type="nothing"), "cannot be loaded"),
    "no configuration": (lambda path: (path / "config.json").unlink(), "holds no config.json"),
    "no JSON": (lambda path: (path / "config.json").write_text("{"), "cannot be loaded"),
    "no tokenizer": (lambda path: (path / "tokenizer.json").unlink(), "holds no tokenizer.json"),
    "metadata": (lambda path: (path / "ponder.json").write_text("[]"), "holds no JSON object"),
    "a folder of an adapter": (lambda path: (path / "adapter_config.json").write_text("{}"), "does not name the model"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_told_in_one_line(damage, folder):
    break_it, said = DAMAGE[damage]
    break_it(folder)
    with pytest.raises(PonderError) as caught:
        load(str(folder))
    assert said in str(caught.value)
    assert caught.value.mend
    assert "\n" not in str(caught.value)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path):
    folder = folder_in(tmp_path / "model", vocab_size=100, pad_token_id=None)
    with pytest.raises(WeightsError, match="has the token 271, and the model only 100 embeddings"):
        load(str(folder))


def _rewritten(source: Path, target: Path, numbers: dict[str, int] | None = None, **changes: Any) -> Path:
    """A copy of the GGUF file with other metadata."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, str(changes.pop("architecture", "llama")))
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and key.replace(".", "_") not in changes:
            of = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=of)
    for key, text in changes.items():
        writer.add_string(key.replace("_", "."), text)
    for key, number in (numbers or {}).items():
        writer.add_uint32(key, number)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer_ggml_pre": "poro-chat"}, "splits text in the way poro-chat, which only llama.cpp knows"),
        ({"tokenizer_ggml_model": "llama"}, "has a tokenizer of the kind llama, not byte-level BPE"),
        ({"llama_rope_scaling_type": "yarn"}, "scales its rotary positions"),
        ({"architecture": "nothing"}, "transformers cannot read"),
        ({"general_type": "adapter"}, "is an adapter, not a model"),
    ],
)
def test_a_gguf_file_that_would_be_read_wrongly_is_refused(changes, said, tmp_path):
    to_gguf(tiny_model(), tiny_tokenizer(), tmp_path / "model.gguf")
    file = _rewritten(tmp_path / "model.gguf", tmp_path / "other.gguf", **changes)
    with pytest.raises(InputError, match=said):
        load(str(file))


def test_a_gguf_file_names_more_tokens_that_end_a_turn_as_it_does_to_llama_cpp(tmp_path):
    to_gguf(tiny_model(), tiny_tokenizer(), tmp_path / "model.gguf")
    numbers = {
        "tokenizer.ggml.eot_token_id": 70,
        "tokenizer.ggml.eom_token_id": 71,
        "tokenizer.ggml.fim_sep_token_id": 72,
    }
    file = _rewritten(tmp_path / "model.gguf", tmp_path / "other.gguf", numbers)

    async def ends(uri: str) -> tuple[int, ...]:
        engine = await open_engine(uri)
        await engine.close()
        return tuple(engine.info.eos_ids)

    assert asyncio.run(ends(f"hf:{file}")) == asyncio.run(ends(f"gguf:{file}")) == (2, 70, 71, 72)


def test_names_that_mean_nothing_are_told(tmp_path):
    for name, said in (
        ("", "is empty"),
        ("ponder-135", "Did you mean ponder-135m"),
        (str(tmp_path / "none"), "there is no file or folder"),
        ("./none", "there is no file or folder"),
    ):
        with pytest.raises(PonderError, match=said):
            load(name)
    (tmp_path / "text.gguf").write_text("words")
    with pytest.raises(InputError, match="is not a GGUF file"):
        load(str(tmp_path / "text.gguf"))


def test_settings_that_cannot_be_are_told(folder):
    with pytest.raises(InputError, match="float12 is no type that weights can have"):
        load(str(folder), dtype="float12")
    with pytest.raises(InputError, match="int64 is no type"):
        load(str(folder), dtype=torch.int64)
    with pytest.raises(InputError, match="there is no device nowhere"):
        load(str(folder), device="nowhere")


@pytest.mark.parametrize("package", ["torch", "transformers", "peft", "safetensors"])
def test_a_missing_package_names_what_to_install(package, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"needs the package {package}\. Run: pip install 'ponder\[train\]'"):
        load(str(folder))


def test_a_repository_of_the_hub_is_taken_from_its_cache_or_told_in_one_line(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--some--tiny"
    folder_in(repository / "snapshots" / "0123456789012345678901234567890123456789")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456789012345678901234567890123456789")
    found = load("some/tiny")
    assert torch.equal(logits(found.model), logits(tiny_model()))
    assert found.ids(TEXT) == list(tiny_tokenizer()(TEXT).input_ids)
    with pytest.raises(WeightsError, match=r"some/other cannot be loaded: .*Check the name and the network") as caught:
        load("some/other")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- adapters


def test_a_new_adapter_changes_nothing_yet_and_alone_is_trained():
    model = tiny_model()
    before = logits(model)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    adapted = with_lora(model, rank=4, alpha=8, targets=("q_proj", "up_proj"), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(adapted), before)
    names = [name for name, _ in trainable(adapted)]
    assert len(names) == 2 * 2 * 2
    assert all("lora_" in name and ("q_proj" in name or "up_proj" in name) for name in names)
    again = dict(trainable(with_lora(tiny_model(), 4, 8, ("q_proj", "up_proj"), seed=3)))
    other = dict(trainable(with_lora(tiny_model(), 4, 8, ("q_proj", "up_proj"), seed=4)))
    assert all(torch.equal(values, again[name]) for name, values in trainable(adapted))
    assert not all(torch.equal(values, other[name]) for name, values in trainable(adapted))


def test_a_second_adapter_is_active_and_the_first_stays(tmp_path):
    to_peft(tiny_lora(tiny_model(), "default"), tmp_path / "first")
    model = with_adapter(tiny_model(), tmp_path / "first", trainable=True)
    first = logits(model)
    assert {name.split(".")[-2] for name, _ in trainable(model)} == {"default"}
    model = with_lora(model, 2, 4, name="second")
    assert {name.split(".")[-2] for name, _ in trainable(model)} == {"second"}
    assert torch.equal(logits(model), logits(tiny_model()))
    model = with_adapter(model, tmp_path / "first", name="reference")
    assert not trainable(model)
    assert torch.equal(logits(model), first)
    with pytest.raises(InputError, match="'second' already exists"):
        with_lora(model, 2, 4, name="second")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 0}, "rank 0"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"targets": ()}, "0 targets"),
        ({"targets": ("nothing",)}, "no adapter can be added: .*nothing"),
    ],
)
def test_settings_of_an_adapter_that_cannot_be_are_told(settings, said):
    with pytest.raises(InputError, match=said):
        with_lora(tiny_model(), **({"rank": 2, "alpha": 4} | settings))


def test_an_adapter_of_another_model_leaves_the_model_as_it_was(tmp_path):
    other = tiny_lora(tiny_model(hidden_size=48), "default")
    to_peft(other, tmp_path / "peft")
    to_gguf_adapter(other, tmp_path / "other.gguf")
    to_peft(tiny_lora(tiny_model(num_hidden_layers=3), "default"), tmp_path / "deeper")
    broken = tiny_lora(tiny_model(), "default")
    with torch.no_grad():
        trainable(broken)[0][1].fill_(float("nan"))
    to_peft(broken, tmp_path / "nan")
    model = tiny_model()
    for name, said in (
        ("peft", "has 48 for the 32 of model.layers.0"),
        ("other.gguf", "has 48 for the 32 of model.layers.0"),
        ("deeper", "adapts model.layers.2.* which the model does not have"),
        ("nan", "numbers that are not finite, in model.layers.0"),
        ("none", "cannot be read"),
    ):
        with pytest.raises(InputError, match=said):
            with_adapter(model, tmp_path / name)
    assert not any("lora_" in name for name, _ in model.named_parameters())
    to_gguf_adapter(tiny_lora(tiny_model("qwen2"), "default"), tmp_path / "qwen.gguf")
    with pytest.raises(InputError, match="is for qwen2 models, not llama"):
        with_adapter(model, tmp_path / "qwen.gguf")


def test_an_adapter_that_is_incomplete_or_no_lora_is_refused(tmp_path):
    to_peft(tiny_lora(tiny_model(), "default"), tmp_path / "peft")
    weights = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    first = min(weights)
    del weights[first]
    save_file(weights, tmp_path / "peft" / "adapter_model.safetensors")
    with pytest.raises(InputError, match="not those that its configuration states"):
        with_adapter(tiny_model(), tmp_path / "peft")
    edit(tmp_path / "peft" / "adapter_config.json", peft_type="IA3", target_modules=["k_proj"], feedforward_modules=[])
    with pytest.warns(UserWarning, match="Unexpected keyword arguments"), pytest.raises(InputError, match="not LoRA"):
        with_adapter(tiny_model(), tmp_path / "peft")


def test_what_is_drawn_outside_is_not_touched_by_a_seed():
    torch.manual_seed(5)
    wanted = torch.rand(4)
    torch.manual_seed(5)
    one = torch.rand(2)
    with seeded(9):
        inside = torch.rand(2)
    assert torch.equal(torch.cat([one, torch.rand(2)]), wanted)
    with seeded(9):
        assert torch.equal(torch.rand(2), inside)
