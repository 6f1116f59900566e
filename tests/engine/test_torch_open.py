"""Opening `hf:`: folders, adapters, what was trained, one line for what is wrong; and the embedded model."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_requests import BARE, QUESTION, take
from tiny import tiny_lora, tiny_model, tiny_tokenizer, torch

from ponder.chat.formats import FAMILIES
from ponder.chat.model import model_of
from ponder.engine import open_engine
from ponder.engine.llamacpp import LlamaEngine, LlamaSettings
from ponder.engine.torch_adapters import evaluating
from ponder.engine.torch_engine import TorchSettings
from ponder.engine.torch_load import load
from ponder.engine.weights import Adapter
from ponder.errors import InputError, MissingExtra, PonderError
from ponder.evals.identity import identity_of
from ponder.protocols import SamplingParams
from ponder.train.adapters import trainable, with_lora
from ponder.train.export import to_gguf, to_gguf_adapter, to_peft, to_safetensors

WIDE = TorchSettings(dtype="float32", threads=1)
IDS = [5 + at * at % 250 for at in range(30)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "own")
    tiny_tokenizer().save_pretrained(tmp_path / "own")
    (tmp_path / "own" / "ponder.json").write_text(json.dumps({"general.sampling.temp": 0.25}))
    return tmp_path / "own"


def scores(uri: str, scales: dict[str, float] | None = None, **options: Any) -> tuple[Any, list[float]]:
    """The engine's description, and how it scores the ids."""

    async def run() -> tuple[Any, list[float]]:
        engine = await open_engine(uri, **({"settings": WIDE} | options))
        try:
            return engine, await engine.score(IDS, 1, SamplingParams(1, adapters=scales))
        finally:
            await engine.close()

    return asyncio.run(run())


def wanted(model: Any, scales: dict[str, float] | None = None) -> Any:
    with torch.no_grad(), evaluating(model, scales or {}):
        every = model(torch.tensor([IDS])).logits[0].log_softmax(-1)
    return pytest.approx([float(every[at - 1, IDS[at]]) for at in range(1, len(IDS))], abs=1e-4)


# ---------------------------------------------------------------- files


def test_a_folder_of_transformers(folder: Path) -> None:
    engine, found = scores(f"hf:{folder}")
    assert found == wanted(tiny_model())
    assert engine.uri == f"hf:{folder}"
    assert engine.info.name == "own"
    assert engine.info.context == 256
    assert engine.info.metadata["general.sampling.temp"] == 0.25
    assert engine.info.eos_ids == (2,)
    assert "assistant" in engine.info.chat_template
    assert scores(f"hf:{folder}", settings=TorchSettings(context=40))[0].info.context == 40


def test_adapters_of_peft_on_top(folder: Path, tmp_path: Path) -> None:
    model = tiny_lora(tiny_model(), "left", "right")
    model.save_pretrained(tmp_path / "adapters")
    left, right = tmp_path / "adapters" / "left", tmp_path / "adapters" / "right"
    engine, found = scores(f"hf:{folder}", adapters=[str(left), f"{right}=0.5"])
    assert engine.capabilities.adapters == ("left", "right")
    assert [adapter.path for adapter in engine.adapters] == [left, right]
    assert engine.info.metadata["ponder.adapters"] == {"left": 1.0, "right": 0.5}
    assert found == wanted(model, {"left": 1.0, "right": 0.5})
    assert scores(f"hf:{folder}", {"right": 1.0}, adapters=[str(left), str(right)])[1] == wanted(model, {"right": 1.0})
    # The folder of an adapter names its base, and the same one twice gets two names.
    config = left / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(folder)}))
    engine, found = scores(f"hf:{left}", adapters=[str(left)])
    assert engine.capabilities.adapters == ("left", "left-2")
    assert found == wanted(model, {"left": 2.0})


def test_what_was_trained_opens_in_every_form_and_thinks_as_it_was_taught(folder: Path, tmp_path: Path) -> None:
    metadata = {"ponder.thinking": {"name": "ponder"}, "general.sampling.temp": 0.5}
    model = with_lora(load(str(folder)).model, rank=4, alpha=8)
    with torch.no_grad():
        for _, weight in trainable(model):
            weight.add_(torch.randn_like(weight) * 0.1)
    model.eval()
    tokenizer: Any = tiny_tokenizer()
    to_peft(model, tmp_path / "run" / "model", metadata=metadata)
    to_safetensors(model, tokenizer, tmp_path / "whole" / "model", metadata=metadata)
    to_gguf(model, tokenizer, tmp_path / "model.gguf", kind="f32", metadata=metadata)
    to_gguf(tiny_model(), tokenizer, tmp_path / "base.gguf", kind="f32")
    to_gguf_adapter(model, tmp_path / "adapter.gguf", kind="f32", metadata=metadata)
    expected, seen = wanted(model, {"default": 1.0}), []
    assert expected != wanted(tiny_model())
    for uri, adapters in (
        (f"hf:{tmp_path}/run/model", []),
        (f"hf:{tmp_path}/whole/model", []),
        (f"hf:{tmp_path}/model.gguf", []),
        (f"hf:{folder}", [f"{tmp_path}/run/model"]),
        (f"hf:{tmp_path}/base.gguf", [f"{tmp_path}/adapter.gguf"]),
        (f"gguf:{tmp_path}/base.gguf", [f"{tmp_path}/adapter.gguf"]),
        (f"gguf:{tmp_path}/model.gguf", []),
    ):
        settings = WIDE if uri.startswith("hf:") else LlamaSettings(cells=512, threads=1)
        engine, found = scores(uri, settings=settings, adapters=adapters)
        assert found == (expected if uri.startswith("hf:") else pytest.approx(expected.expected, abs=0.05))
        seen.append(model_of(engine))
    assert {each.params.temperature for each in seen} == {0.5}
    assert all(each.format == seen[0].format for each in seen)
    assert (seen[0].format.name, seen[0].format.open) == ("ponder", FAMILIES["ponder"].open)
    # One run's adapter is never taken for another's, though both lie in folders of the same name.
    to_peft(tiny_lora(tiny_model(), "default"), tmp_path / "other" / "model")
    config = tmp_path / "other" / "model" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(folder)}))
    other, _ = scores(f"hf:{config.parent}")
    assert identity_of(other) != identity_of(seen[0].engine)


def test_an_adapter_of_another_model_is_one_line(folder: Path, tmp_path: Path) -> None:
    wide = tiny_lora(tiny_model(intermediate_size=96), "left")
    wide.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"left has 96 for the 64 of model\.layers\.0\.mlp\."):
        scores(f"hf:{folder}", adapters=[str(tmp_path / "left")])


@pytest.mark.parametrize(
    ("name", "adapters", "message"),
    [
        ("./none", [], "there is no file or folder none"),
        ("ponder-135n", [], "Did you mean ponder-135m"),
        ("OWN", ["none.gguf"], r"there is no adapter .*none\.gguf"),
        ("OWN", ["OWN"], "holds no PEFT adapter"),
        ("OWN", ["OWN=x"], "the scale 'x' of adapter"),
        ("OWN", ["OWN/config.json"], "is not a GGUF file"),
    ],
)
def test_what_is_not_there_is_one_line(folder: Path, name: str, adapters: list[str], message: str) -> None:
    put = [each.replace("OWN", str(folder)) for each in (name, *adapters)]
    with pytest.raises(PonderError, match=message):
        scores(f"hf:{put[0]}", adapters=put[1:])


def test_without_torch_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"hf: needs the package torch\. Run: pip install 'ponder\[train\]'"):
        asyncio.run(open_engine("hf:anything"))


def test_the_other_engines_load_no_torch() -> None:
    code = "import ponder.engine, ponder.engine.llamacpp, ponder.cli, sys; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"


# ---------------------------------------------------------------- the embedded model


@pytest.mark.model
def test_the_embedded_model_thinks_as_it_does_in_llama_cpp(llama: LlamaEngine, thinking_adapter: Adapter) -> None:
    async def run() -> None:
        engine = await open_engine("hf:ponder-135m", settings=TorchSettings(dtype="float32"))
        name = thinking_adapter.name
        assert engine.capabilities.adapters == (name,)
        for key in ("ponder.name", "ponder.thinking", "general.sampling.temp"):
            assert key in engine.info.metadata
        assert (engine.info.bos, engine.info.eos) == (llama.info.bos, llama.info.eos)
        assert engine.info.chat_template == llama.info.chat_template
        assert engine.info.parameters == llama.info.parameters
        assert engine.info.eos_ids == llama.info.eos_ids
        texts = [QUESTION, "1234 + 5678.9 =  12,5\n\n\tGrößen 😀 ٣٤ <|im_end|><|im_start|>x", " a  b   c\r\n 99"]
        for text in texts:
            assert await engine.tokenize(text) == await llama.tokenize(text)
        # Questions exist on which two tokens are as likely, and quantised products decide otherwise.
        asked = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
        prompt = await llama.tokenize(asked)
        for adapters in (BARE, {name: 1.0}):
            params = {"max_tokens": 24, "temperature": 0.0, "adapters": adapters}
            ours, theirs = [await take(each, prompt, **params) for each in (engine, llama)]
            ids = prompt + theirs.ids()
            scored = [
                np.array(await each.score(ids, 1, SamplingParams(1, adapters=adapters))) for each in (engine, llama)
            ]
            difference = np.abs(scored[0] - scored[1])
            assert difference.mean() < 0.06
            assert difference.max() < 0.6
            assert ours.ids() == theirs.ids()
        await engine.close()

    asyncio.run(run())
