"""What is exported runs in llama.cpp as it does in torch, and comes back bit for bit."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file
from tiny import SPECIALS, START, tiny_lora, tiny_model, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from ponder.chat.model import model_of
from ponder.engine import catalogue
from ponder.engine.gguf_header import read_header
from ponder.engine.gguf_layout import Layout
from ponder.engine.gguf_tokenizer import SPLITTINGS, pre_tokenizer, splitting_name
from ponder.engine.gguf_weights import read_adapter, read_by_transformers
from ponder.engine.llamacpp import LlamaEngine, LlamaSettings, open_llamacpp
from ponder.engine.torch_load import load
from ponder.engine.torch_lora import base_of, with_adapter
from ponder.engine.weights import Adapter, packaged_path
from ponder.errors import InputError, WeightsError
from ponder.protocols import SamplingParams
from ponder.train.adapters import plain_weights
from ponder.train.export import to_gguf, to_gguf_adapter, to_peft, to_safetensors

TEXT = "Anna and the others are in the house. 5 + 7 = 12 <think> é日本 \n" * 3
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("llama", {"tie_word_embeddings": True}),
    "untied": ("llama", {"tie_word_embeddings": False}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "wide heads": ("llama", {"head_dim": 16}),
    "one group": ("llama", {"num_key_value_heads": 4}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "llama3": (
        "llama",
        {"rope_parameters": LLAMA_3 | {"original_max_position_embeddings": 64, "rope_theta": 1e4}},
    ),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other are many times slower than one where other work takes a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_called(name: str) -> Any:
    """A tiny model whose attention and outputs are uneven, yet not so much that f16 keys and values show."""
    kind, config = MODELS[name]
    model = tiny_model(kind, **config)
    with torch.no_grad():
        for key, values in model.named_parameters():
            if "_proj.weight" in key:
                values.mul_(0.5)
    return model


def ids_of(text: str = TEXT) -> list[int]:
    return list(tiny_tokenizer()(text).input_ids)


def torch_scores(model: Any, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        every = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), -1)
    return every[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def opened(file: Path, *adapters: Path, then: Callable[[LlamaEngine], Any]) -> Any:
    async def run() -> Any:
        settings = LlamaSettings(cells=512, threads=1, flash_attention=False)
        loaded = [Adapter(path.stem, path) for path in adapters]
        engine = await open_llamacpp(file, adapters=loaded, settings=settings)
        try:
            return await then(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def engine_scores(file: Path, *adapters: Path, scales: Sequence[Mapping[str, float] | None] = (None,)) -> Any:
    """Log-probabilities of `TEXT`, once for each scales of adapters."""

    async def then(engine: LlamaEngine) -> list[torch.Tensor]:
        params = [SamplingParams(max_tokens=1, adapters=None if s is None else dict(s)) for s in scales]
        return [torch.tensor(await engine.score(ids_of(), 1, each)) for each in params]

    return opened(file, *adapters, then=then)


def tensors_of(file: Path) -> dict[str, np.ndarray]:
    return {t.name: dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in GGUFReader(file).tensors}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(
        values.dtype == other[key].dtype and torch.equal(values, other[key]) for key, values in one.items()
    )


# ---------------------------------------------------------------- whole models in GGUF


@pytest.mark.parametrize("name", MODELS)
def test_a_model_written_as_gguf_gives_the_log_probabilities_of_torch(name, tmp_path):
    model, file = model_called(name), tmp_path / "model.gguf"
    to_gguf(model, tiny_tokenizer(), file, kind="f32")
    wanted = torch_scores(model, ids_of())
    assert wanted.std() > 1
    assert (engine_scores(file)[0] - wanted).abs().max() < 1e-2
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(("kind", "near"), [("f16", 1e-2), ("q8_0", 0.2)])
def test_matrices_are_stored_in_the_kind_asked_for(kind, near, tmp_path):
    model, file = model_called("untied"), tmp_path / "model.gguf"
    to_gguf(model, tiny_tokenizer(), file, kind=kind)
    kinds = {t.name: t.tensor_type.name.lower() for t in GGUFReader(file).tensors}
    assert {t for name, t in kinds.items() if "norm" in name} == {"f32"}
    assert {t for name, t in kinds.items() if "norm" not in name} == {kind}
    assert (engine_scores(file)[0] - torch_scores(model, ids_of())).abs().max() < near
    # A block of Q8_0 holds numbers in steps of its largest over 127, which is an f16 itself; f16 has 11 bits.
    wanted = model.model.layers[0].mlp.up_proj.weight.detach().numpy()
    step = np.abs(wanted).max(axis=1, keepdims=True) / (127 if kind == "q8_0" else 1024)
    assert (np.abs(tensors_of(file)["blk.0.ffn_up.weight"] - wanted) <= 0.6 * step).all()


@pytest.mark.parametrize("name", ["tied", "untied", "biases", "wide heads", "qwen2", "qwen3"])
def test_a_model_comes_back_from_gguf_bit_for_bit(name, tmp_path):
    model, file = model_called(name), tmp_path / "model.gguf"
    metadata = {"ponder.thinking": {"name": "ponder"}, "general.sampling.temp": 0.25}
    to_gguf(model, tiny_tokenizer(), file, kind="f32", metadata=metadata)
    found = load(str(file))
    assert same(found.model.state_dict(), model.state_dict())
    if name == "biases":
        with pytest.raises(WeightsError, match="transformers takes 36000 of the 36512 numbers"):
            read_by_transformers(file, torch.float32)
    else:
        theirs = read_by_transformers(file, torch.float32)
        assert same(theirs.state_dict(), model.state_dict())
        assert not hasattr(theirs.config, "quantization_config")
    assert torch.equal(torch_scores(found.model, ids_of()), torch_scores(model, ids_of()))
    for key in ("rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "eos_token_id", "hidden_size"):
        assert getattr(found.model.config, key) == getattr(model.config, key)
    assert found.ids(TEXT) == ids_of()
    assert found.tokenizer.chat_template == tiny_tokenizer().chat_template
    assert found.tokenizer.pad_token == tiny_tokenizer().pad_token
    assert found.metadata == {"ponder.thinking": '{"name": "ponder"}', "general.sampling.temp": 0.25}


def test_the_engine_finds_template_markers_and_temperature_in_an_exported_model(tmp_path):
    file = tmp_path / "small.gguf"
    thinking = {"name": "ponder", "answer_opener": "So it is"}
    metadata = {"ponder.thinking": thinking, "general.sampling.temp": 0.25}
    to_gguf(tiny_model(), tiny_tokenizer(), file, metadata=metadata)

    async def then(engine: LlamaEngine) -> Any:
        return engine.info, model_of(engine)

    info, model = opened(file, then=then)
    assert (info.name, info.bos, info.eos) == ("small", START, "<|im_end|>")
    assert info.chat_template == tiny_tokenizer().chat_template
    assert info.eos_ids == (SPECIALS.index("<|im_end|>"),)
    assert info.context == 256
    assert model.format.answer_opener == "So it is"
    assert model.params.temperature == 0.25


def test_a_sliding_window_bounds_the_context(tmp_path):
    to_gguf(tiny_model("mistral", sliding_window=100), tiny_tokenizer(), tmp_path / "a.gguf")
    assert read_header(tmp_path / "a.gguf").context == 100


@pytest.mark.parametrize(
    ("kind", "config", "said"),
    [
        ("llama", {"hidden_act": "gelu"}, "silu, not gelu"),
        ("gpt_neox", {}, "architecture gpt_neox"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
        ("qwen2", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "linear"),
        ("llama", {"vocab_size": 100}, "only 100 embeddings"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(kind, config, said, tmp_path):
    with pytest.raises(InputError, match=said):
        to_gguf(tiny_model(kind, **config), tiny_tokenizer(), tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_or_too_large_leave_the_earlier_file(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"earlier")
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(InputError, match=r"blk\.1\.ffn_up\.weight are too large for f16"):
        to_gguf(model, tiny_tokenizer(), file)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"blk\.1\.ffn_up\.weight are not finite"):
        to_gguf(model, tiny_tokenizer(), file, kind="f32")
    with pytest.raises(InputError, match="q4_0 is no kind"):
        to_gguf(model, tiny_tokenizer(), file, kind="q4_0")  # type: ignore[arg-type]
    assert file.read_bytes() == b"earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


# ---------------------------------------------------------------- tokenizers in GGUF

POOLS = (
    "abcXYZ 0123456789", " \n\t\r  \u3000\u00a0\u0085", "'sdmtlrve", "éüñßÀ日本語한국어ελλ", "²³½ⅷ٣９一๕",
    "🙂👍🏽\u200d", ".,;:!?()[]{}<>|/\\-+=*", "<|im_end|><think>",
)  # fmt: skip


def random_texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    known = [c for c in map(chr, range(32, 0x20000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]

    def letter() -> str:
        return draw.choice(draw.choice(POOLS)) if draw.random() < 0.93 else draw.choice(known)

    ends = ["", "<|im_end|>", "<think>\n", " <|im_start|> "]
    return ["".join(letter() for _ in range(draw.randint(1, 40))) + draw.choice(ends) for _ in range(count)]


def trained_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Splits as `name` does, but was trained without any splitting: every cut that is elsewhere changes ids.

    No merges lead to its token " Unmerged".
    """
    backend = Tokenizer(models.BPE(ignore_merges=SPLITTINGS[name].whole))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(random_texts(1000, seed=1), trainer)
    state = json.loads(backend.to_str())
    state["model"]["vocab"]["ĠUnmerged"] = len(state["model"]["vocab"])
    backend = Tokenizer.from_str(json.dumps(state))
    backend.pre_tokenizer = pre_tokenizer(SPLITTINGS[name])
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", unk_token="<|endoftext|>")


@pytest.fixture(scope="module")
def ids_by_splitting() -> dict[str, list[list[int]]]:
    return {}


@pytest.mark.parametrize("name", SPLITTINGS)
def test_a_tokenizer_in_gguf_gives_the_same_ids_in_llama_cpp_and_when_loaded(name, tmp_path, ids_by_splitting):
    tokenizer, file, texts = (
        trained_tokenizer(name),
        tmp_path / "model.gguf",
        [*random_texts(500, seed=2), "An Unmerged word"],
    )
    to_gguf(tiny_model(vocab_size=len(tokenizer) + 7), tokenizer, file)
    assert splitting_name(tokenizer.backend_tokenizer) == name

    async def then(engine: LlamaEngine) -> list[list[int]]:
        return [await engine.tokenize(text) for text in texts]

    wanted = [list(tokenizer(text).input_ids) for text in texts]
    assert (tokenizer.get_vocab()["ĠUnmerged"] in wanted[-1]) is SPLITTINGS[name].whole
    assert opened(file, then=then) == wanted
    found = load(str(file))
    assert [found.ids(text) for text in texts] == wanted
    assert found.tokenizer.batch_decode(wanted) == texts
    assert all(other != wanted for other in ids_by_splitting.values())  # else nothing was tested
    ids_by_splitting[name] = wanted


def test_digits_by_another_name_are_the_splitting_of_smollm():
    backend = tiny_tokenizer().backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert splitting_name(backend) == "smollm"


@pytest.mark.parametrize(
    "splitting",
    [
        pre_tokenizers.Whitespace(),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split("-", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
    ],
)
def test_a_splitting_that_llama_cpp_has_no_name_for_is_refused(splitting, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = splitting
    with pytest.raises(InputError, match=r"llama\.cpp has no name"):
        to_gguf(tiny_model(), tokenizer, tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no token that ends a text"):
        to_gguf(tiny_model(), tokenizer, tmp_path / "a.gguf")


# ---------------------------------------------------------------- adapters


def test_an_adapter_in_gguf_works_in_llama_cpp_as_in_torch_at_every_scale(tmp_path):
    plain, adapted = model_called("tied"), tiny_lora(model_called("tied"), "math", rank=4, alpha=6.0)
    to_gguf(plain, tiny_tokenizer(), tmp_path / "base.gguf", kind="f32")
    to_gguf_adapter(adapted, tmp_path / "math.gguf", kind="f32")
    scales = [None, {"math": 0.5}, {"math": 0.0}]
    on, half, off = engine_scores(tmp_path / "base.gguf", tmp_path / "math.gguf", scales=scales)
    assert (on - off).abs().mean() > 0.1
    assert (on - torch_scores(adapted, ids_of())).abs().max() < 1e-2
    assert (off - torch_scores(plain, ids_of())).abs().max() < 1e-2
    for module in adapted.modules():
        if hasattr(module, "lora_A"):
            module.scaling["math"] *= 0.5
    assert (half - torch_scores(adapted, ids_of())).abs().max() < 1e-2


def test_exported_whole_an_adapted_model_has_its_adapter_merged_and_stays_as_it_was(tmp_path):
    model = tiny_lora(model_called("qwen2"), "math")
    before = {key: values.clone() for key, values in model.state_dict().items()}
    wanted = torch_scores(model, ids_of())
    to_gguf(model, tiny_tokenizer(), tmp_path / "model.gguf", kind="f32")
    to_safetensors(model, tiny_tokenizer(), tmp_path / "folder")
    assert same(model.state_dict(), before)
    assert (engine_scores(tmp_path / "model.gguf")[0] - wanted).abs().max() < 1e-2
    found = load(str(tmp_path / "folder")).model
    assert type(found).__name__ == "Qwen2ForCausalLM"
    assert (torch_scores(found, ids_of()) - wanted).abs().max() < 1e-3
    plain = torch_scores(model_called("qwen2"), ids_of())
    assert (wanted - plain).abs().mean() > 0.1


def test_the_active_adapter_is_what_is_merged():
    model = tiny_lora(tiny_model(), "one", "two")
    key = "model.layers.0.self_attn.q_proj.weight"
    layer = base_of(model).model.layers[0].self_attn.q_proj
    model.set_adapter("two")
    wanted = layer.base_layer.weight + layer.get_delta_weight("two")
    assert torch.allclose(plain_weights(model)[key], wanted, atol=1e-6)
    with model.disable_adapter():
        assert torch.equal(plain_weights(model)[key], layer.base_layer.weight)


def packaged() -> Path:
    entry = catalogue.find(catalogue.DEFAULT_MODEL)
    assert entry is not None
    assert entry.adapter is not None
    return packaged_path(entry.adapter)


def test_the_packaged_adapter_comes_back_from_peft_byte_for_byte(tmp_path):
    found = read_adapter(packaged(), Layout("llama", heads=9, kv_heads=3))
    base, folder = tmp_path / "base", tmp_path / "peft"
    LlamaConfig(hidden_size=576, num_attention_heads=9, num_key_value_heads=3).save_pretrained(base)
    folder.mkdir()
    save_file(
        {f"base_model.model.{k}": v.half() for k, v in found.tensors.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(
        f'{{"peft_type": "LORA", "r": {found.rank}, "lora_alpha": {found.alpha}, "base_model_name_or_path": "{base}"}}'
    )
    to_gguf_adapter(folder, tmp_path / "adapter.gguf")
    one, other = tensors_of(packaged()), tensors_of(tmp_path / "adapter.gguf")
    assert list(one) == list(other)
    assert all((one[name] == other[name]).all() for name in one)
    assert (tmp_path / "adapter.gguf").read_bytes() == packaged().read_bytes()


@pytest.mark.parametrize(("letter", "heads"), [("q", 9), ("k", 3)])
def test_rows_of_q_and_k_are_in_the_order_of_the_equation(letter, heads):
    found = read_adapter(packaged(), Layout("llama", heads=9, kv_heads=3))
    own = found.tensors[f"model.layers.4.self_attn.{letter}_proj.lora_B.weight"].numpy()
    file = tensors_of(packaged())[f"blk.4.attn_{letter}.weight.lora_b"]
    size = len(own) // heads
    for head in range(heads):
        for pair in range(size // 2):
            for half in range(2):
                row, other = head * size + 2 * pair + half, head * size + half * (size // 2) + pair
                assert (file[row] == own[other]).all()
    a = found.tensors[f"model.layers.4.self_attn.{letter}_proj.lora_A.weight"].numpy()
    assert (tensors_of(packaged())[f"blk.4.attn_{letter}.weight.lora_a"] == a).all()


def test_a_peft_folder_comes_back_bit_for_bit(tmp_path):
    model = tiny_lora(tiny_model(), "one", "two")
    to_peft(model, tmp_path / "two", name="two", metadata={"ponder.thinking": {"name": "ponder"}})
    fresh = with_adapter(tiny_model(), tmp_path / "two", name="again", trainable=True)
    wanted = {k.replace(".two.", "."): v for k, v in model.state_dict().items() if ".two." in k}
    found = {k.replace(".again.", "."): v for k, v in fresh.state_dict().items() if ".again." in k}
    assert len(wanted) == 2 * 2 * 7
    assert same(found, wanted)
    to_peft(fresh, tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_scale_of_rank_stabilised_adapters_is_kept(tmp_path):
    model = tiny_lora(tiny_model(), "default", rank=4, alpha=6.0)
    model.peft_config["default"].use_rslora = True
    to_gguf_adapter(model, tmp_path / "a.gguf")
    assert read_header(tmp_path / "a.gguf").metadata["adapter.lora.alpha"] == 12.0
    model.peft_config["default"].alpha_pattern = {"q_proj": 3}
    with pytest.raises(InputError, match="scales some layers otherwise"):
        to_gguf_adapter(model, tmp_path / "b.gguf")


def test_an_adapter_that_llama_cpp_cannot_express_or_that_is_not_there_is_refused(tmp_path):
    import peft

    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):  # PEFT's own use of transformers
        dora = peft.get_peft_model(tiny_model(), settings)
    with pytest.raises(InputError, match=r"no adapter for .*lora_magnitude_vector"):
        to_gguf_adapter(dora, tmp_path / "a.gguf")
    with pytest.raises(InputError, match=r"has no adapter none.*It has default"):
        to_gguf_adapter(dora, tmp_path / "a.gguf", name="none")
    with pytest.raises(InputError, match=r"has no adapter\. It has none"):
        to_peft(tiny_model(), tmp_path / "a")
    with pytest.raises(InputError, match="holds no PEFT adapter"):
        to_gguf_adapter(tmp_path, tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_a_folder_adapter_needs_a_base_that_can_be_looked_up(tmp_path):
    folder = tmp_path / "adapter"
    to_peft(tiny_lora(tiny_model(), "default"), folder)
    with pytest.raises(InputError, match="does not name the model that it adapts"):
        to_gguf_adapter(folder, tmp_path / "a.gguf")
    with pytest.raises(WeightsError, match="which cannot be looked up"):
        to_gguf_adapter(folder, tmp_path / "a.gguf", base=str(tmp_path / "nowhere"))
    to_gguf(tiny_model(), tiny_tokenizer(), tmp_path / "base.gguf")
    to_gguf_adapter(folder, tmp_path / "a.gguf", base=str(tmp_path / "base.gguf"))
    assert read_header(tmp_path / "a.gguf").is_adapter


# ---------------------------------------------------------------- folders and disks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_of_safetensors_comes_back_bit_for_bit(dtype, tied, tmp_path):
    model = tiny_model(tie_word_embeddings=tied, dtype=dtype)
    metadata = {"ponder.thinking": {"name": "ponder"}}
    to_safetensors(model, tiny_tokenizer(), tmp_path / "model", metadata=metadata)
    found = load(str(tmp_path / "model"), dtype=dtype)
    assert same(found.model.state_dict(), model.state_dict())
    assert ("lm_head.weight" in load_file(tmp_path / "model" / "model.safetensors")) is not tied
    assert found.ids(TEXT) == ids_of()
    assert found.tokenizer.chat_template == tiny_tokenizer().chat_template
    assert found.metadata == metadata
    to_safetensors(found.model, found.tokenizer, tmp_path / "model", metadata=found.metadata)  # over the earlier one
    assert same(load(str(tmp_path / "model"), dtype=dtype).model.state_dict(), model.state_dict())


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds other files, such as thesis\.tex"):
        to_safetensors(tiny_model(), tiny_tokenizer(), tmp_path)
    with pytest.raises(InputError, match="is a folder, and a file is to be written"):
        to_gguf(tiny_model(), tiny_tokenizer(), tmp_path)
    with pytest.raises(InputError, match=r"thesis\.tex is a file, and a folder"):
        to_peft(tiny_lora(tiny_model(), "default"), tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(WeightsError, match="cannot be written"):
        to_gguf(tiny_model(), tiny_tokenizer(), tmp_path / "thesis.tex" / "model.gguf")


def _adapted() -> Any:
    return tiny_lora(tiny_model(), "default", rank=64)


WRITERS: dict[str, Callable[[Path], None]] = {
    "to_peft": lambda place: to_peft(_adapted(), place),
    "to_safetensors": lambda place: to_safetensors(tiny_model(), tiny_tokenizer(), place),
    "to_gguf_adapter": lambda place: to_gguf_adapter(_adapted(), place),
    "to_gguf": lambda place: to_gguf(tiny_model(), tiny_tokenizer(), place),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_the_earlier_export(name, tmp_path):
    place = tmp_path / "export"
    WRITERS[name](place)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert max(map(len, before.values())) > 60_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(WeightsError) as caught:
            WRITERS[name](place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value).startswith(f"the disk is full: {tmp_path} has no room for export. Free space")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
