"""Which engine a known name is opened on: torch for many samples where it is the faster, and never a mixture."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.engine import many
from ponder.engine.many import SIDE_BY_SIDE, WORTH, Work, chosen, questions_at_once
from ponder.errors import InputError

MUCH = Work(WORTH, 8)
HF = "hf:ponder-135m"


def yes() -> bool:
    return True


def no() -> bool:
    return False


def test_many_samples_go_to_torch_and_a_line_says_so() -> None:
    uri, why = chosen("ponder-135m", MUCH, torch_here=yes)
    assert uri == HF
    assert f"{8 * WORTH:,} samples" in why
    assert "gguf:ponder-135m" in why
    assert "\n" not in why


def test_llama_cpp_has_them_where_torch_does_not_compute() -> None:
    assert chosen("ponder-135m", MUCH, torch_here=no) == ("ponder-135m", "")


@pytest.mark.parametrize(
    "work",
    [
        Work(1),
        Work(1, WORTH - 1),
        Work(WORTH - 1),
        Work(WORTH, 1, SIDE_BY_SIDE - 1),
        Work(WORTH, 8, SIDE_BY_SIDE // 8 - 1),
    ],
)
def test_few_samples_or_few_side_by_side_stay_with_llama_cpp_and_torch_is_not_even_looked_for(work: Work) -> None:
    def never() -> bool:
        raise AssertionError("looked for torch")

    assert chosen("ponder-135m", work, torch_here=never) == ("ponder-135m", "")


@pytest.mark.parametrize(
    "work", [Work(WORTH), Work(1, WORTH), Work(WORTH, 1, SIDE_BY_SIDE), Work(WORTH, 8, SIDE_BY_SIDE // 8)]
)
def test_the_thresholds_are_many(work: Work) -> None:
    assert chosen("ponder-135m", work, torch_here=yes)[0] == HF


@pytest.mark.parametrize(
    "uri", ["gguf:ponder-135m", HF, "openai:http://127.0.0.1:1/v1#m", "scripted:a.json", "weights.gguf", "new:folder"]
)
@pytest.mark.parametrize("begun", [(), ("gguf",), ("hf",)])
def test_what_names_an_engine_or_is_no_known_name_is_left_alone(uri: str, begun: tuple[str, ...]) -> None:
    assert chosen(uri, MUCH, begun, torch_here=yes) == (uri, "")


@given(
    st.integers(1, 3000),
    st.integers(1, 64),
    st.none() | st.integers(1, 99),
    st.booleans(),
    st.sampled_from(["gguf", "hf"]),
)
def test_what_was_begun_on_one_engine_goes_on_there(
    asks: int, samples: int, at_once: int | None, here: bool, begun: str
) -> None:
    if begun == "hf" and not many.installed():
        return
    uri, _ = chosen("ponder-135m", Work(asks, samples, at_once), {begun}, torch_here=lambda: here)
    assert uri == {"gguf": "ponder-135m", "hf": HF}[begun]


def test_begun_on_both_or_elsewhere_the_choice_is_free() -> None:
    for begun in ({"gguf", "hf"}, {"openai"}):
        assert chosen("ponder-135m", MUCH, begun, torch_here=yes)[0] == HF
        assert chosen("ponder-135m", Work(1), begun, torch_here=yes)[0] == "ponder-135m"


def test_begun_on_torch_which_is_gone_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else found(name, *rest))
    assert not many.computes_here()
    with pytest.raises(InputError, match="begun on hf:ponder-135m") as refused:
        chosen("ponder-135m", Work(1), {"hf"})
    assert "gguf:ponder-135m" in refused.value.mend


def test_few_samples_import_no_torch() -> None:
    code = (
        "import sys; from ponder.engine.many import *; "
        "chosen('ponder-135m', Work(10, 4)); assert 'torch' not in sys.modules, 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_engine_of_torch_is_kept_full_unless_somebody_says_how_many() -> None:
    for samples in (1, 3, 8, 32, 500):
        assert questions_at_once(HF, samples, None) * samples >= 2 * SIDE_BY_SIDE
        assert questions_at_once(HF, samples, 5) == questions_at_once("gguf:x", samples, 5) == 5
        assert questions_at_once("gguf:x", samples, None) == 8


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="nothing says what this processor can do")
def test_bfloat16_is_what_the_processor_says_it_is() -> None:
    torch = pytest.importorskip("torch")
    flags = set(Path("/proc/cpuinfo").read_text().split())
    instructions = bool(flags & {"avx512_bf16", "amx_tile"})
    assert many.computes_here() == (many.installed() and (torch.cuda.is_available() or instructions))
