"""The tokens of fast tokenizers: their exact bytes, and which of them end a turn."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny import END, tiny_model, tiny_tokenizer
from tokenizers import AddedToken

from ponder.engine.llamacpp import LlamaSettings, open_llamacpp
from ponder.engine.torch_tokens import ENDS, Tokens, pieces_of
from ponder.errors import InputError
from ponder.train.export import to_gguf

# ---------------------------------------------------------------- bytes


def test_the_bytes_of_tokens_make_up_the_text() -> None:
    tokens = Tokens(tiny_tokenizer(), 300)
    text = "Größe: the 3 € — 😀 <think>\n\tand</think>\x00"
    assert b"".join(map(tokens.piece, tokens.tokenize(text))).decode() == text
    assert {tokens.piece(number) for number in range(5, 261)} == {bytes([byte]) for byte in range(256)}
    assert tokens.piece(2) == b"<|im_end|>"
    assert tokens.piece(299) == b""  # a row of the model that the tokenizer does not use
    with pytest.raises(InputError, match="300 is no token"):
        tokens.piece(300)
    assert Tokens(tiny_tokenizer(), 300, [7, 2, 999]).end_ids == (2, 7)


def test_the_bytes_of_tokens_as_sentencepiece_writes_them() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["<unk>", "▁the", "▁", "a", "ß", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE({word: at for at, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    pieces = pieces_of(backend, 261)
    assert pieces[1:5] == [b" the", b" ", b"a", "ß".encode()]
    assert pieces[5:] == [bytes([byte]) for byte in range(256)]
    ids = backend.encode("a😀").ids
    assert b"".join(pieces[token] for token in ids).decode() == " a😀"


def test_a_tokenizer_that_was_told_to_cut_and_pad_is_not_touched() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer("a", truncation=True, max_length=1, padding="max_length")
    tokens = Tokens(tokenizer, 272)
    assert len(tokens.tokenize("some text")) > 3
    assert tokenizer.backend_tokenizer.truncation is not None


# ---------------------------------------------------------------- ends


VARIANTS = ("<fim-pad>", "<fim_pad>", "<PAD>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")
"""llama.cpp takes one token of a file as padding of code, and one for repositories, whichever it finds first."""

HARMONY = ("<|end|>", "<|return|>", "<|call|>")


@pytest.mark.parametrize(
    "texts",
    [
        [*(text for text in ENDS if text not in (*VARIANTS, *HARMONY)), "<other>", "<|start|>"],
        *([variant] for variant in VARIANTS),
        HARMONY,
        HARMONY[:1],
        HARMONY[1:],
    ],
    ids=" ".join,
)
def test_the_tokens_that_end_a_turn_are_those_of_llama_cpp(texts: Sequence[str], tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    known = len(tokenizer)
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken(text, special=True) for text in texts if text != END])
    size = len(tokenizer)
    assert size > known
    to_gguf(tiny_model(vocab_size=size), tokenizer, tmp_path / "model.gguf")

    async def theirs() -> tuple[int, ...]:
        engine = await open_llamacpp(tmp_path / "model.gguf", settings=LlamaSettings(cells=256, threads=1))
        await engine.close()
        return tuple(engine.info.eos_ids)

    assert Tokens(tokenizer, size, [2]).end_ids == asyncio.run(theirs())
