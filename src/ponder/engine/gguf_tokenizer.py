"""Byte-level BPE tokenizers between GGUF and transformers, so that both give the same ids for the same text.

A GGUF file holds vocabulary and merges, and of the way that text is split before the merges apply nothing but a
name, which stands for regular expressions inside llama.cpp (`llama-vocab.cpp`). A reader that knows the name too
little is wrong without a word: splitting `smollm` as GPT-2 does gives other ids where digits of other scripts
follow a space. So names are known here one by one, and others are refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ponder.errors import InputError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace("{1,3}", "")


@dataclass(frozen=True)
class Splitting:
    """How text is cut before the merges apply.

    patterns: regular expressions, each applied to the pieces that the last one left. gpt2: whether GPT-2's own
    comes after them. whole: whether a piece that is a token stays one, whatever the merges say.
    """

    patterns: tuple[str, ...] = ()
    gpt2: bool = False
    whole: bool = False


SPLITTINGS = {
    "gpt-2": Splitting(gpt2=True),
    "smollm": Splitting((r"\p{N}",), gpt2=True),
    "qwen2": Splitting((_QWEN_2,)),
    "llama-bpe": Splitting((_LLAMA_3,), whole=True),
}
"""By llama.cpp's names, the ones that have been compared with it."""

_SAME = {"deepseek-r1-qwen": "qwen2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_NAMED = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
"""Names that GGUF and transformers have for the same special tokens."""


# ---------------------------------------------------------------- reading


def read_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file. Raises InputError where it is no byte-level BPE, or splits in an unknown way."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf.reader import read_gguf_metadata

    prefix = "tokenizer.ggml."
    metadata, _ = read_gguf_metadata(str(path), (f"{prefix}tokens", f"{prefix}merges"))
    stated = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    splitting = _splitting(path, stated)
    tokens: list[str] = stated["tokens"]
    kinds = stated.get("token_type") or [_NORMAL] * len(tokens)
    backend = Tokenizer(
        models.BPE(
            {token: number for number, token in enumerate(tokens)},
            [tuple(merge.split(" ")) for merge in stated.get("merges", ())],
            ignore_merges=splitting.whole,
        )
    )
    backend.pre_tokenizer = pre_tokenizer(splitting)
    backend.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    plain = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED]
    backend.add_tokens([AddedToken(token, normalized=False) for token in plain])
    named = {f"{own}_token": stated.get(f"{theirs}_token_id") for theirs, own in _NAMED.items()}
    build: Any = PreTrainedTokenizerFast
    built = build(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        chat_template=metadata.get("tokenizer.chat_template"),
        **{name: tokens[number] for name, number in named.items() if number is not None},
    )
    return cast("PreTrainedTokenizerFast", built)


def _splitting(path: Path, stated: dict[str, Any]) -> Splitting:
    mend = "Give the Hugging Face folder of that model, which holds its own tokenizer"
    if stated.get("model") != "gpt2":
        raise InputError(f"{path} has a tokenizer of the kind {stated.get('model')}, not byte-level BPE", mend)
    name = stated.get("pre", "default")
    if _SAME.get(name, name) not in SPLITTINGS:
        raise InputError(f"{path} splits text in the way {name}, which only llama.cpp knows", mend)
    return SPLITTINGS[_SAME.get(name, name)]


def pre_tokenizer(splitting: Splitting) -> Any:
    """The pre-tokenizer of `tokenizers` that splits in this way and spells bytes as letters."""
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splitting.patterns]
    return pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting.gpt2)]
    )


# ---------------------------------------------------------------- writing


def write_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, rows: int) -> None:
    """Adds the tokenizer to a GGUF file of a model with `rows` embeddings.

    Unicode normalisation (NFC, in Qwen's) has no place in GGUF: text that is not in that form gets other ids.
    Raises InputError for what llama.cpp would split otherwise.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    name = splitting_name(tokenizer.backend_tokenizer)
    vocabulary = tokenizer.get_vocab()
    if rows <= max(vocabulary.values()):
        raise InputError(
            f"the tokenizer has the token {max(vocabulary.values())}, and the model only {rows} embeddings",
            "Give the model's own tokenizer",
        )
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer names no token that ends a text", "Set its eos_token")
    added = tokenizer.added_tokens_decoder
    texts = {number: text for text, number in vocabulary.items()}
    kinds = [
        _UNUSED if i not in texts else _NORMAL if i not in added else _CONTROL if added[i].special else _USER_DEFINED
        for i in range(rows)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list([texts.get(i, f"[PAD{i}]") for i in range(rows)])
    writer.add_token_types(kinds)
    merges = state["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    numbers = {theirs: getattr(tokenizer, f"{own}_token_id") for theirs, own in _NAMED.items()}
    # Where a file names none, llama.cpp takes the token 11 for it.
    numbers["bos"] = tokenizer.eos_token_id if numbers["bos"] is None else numbers["bos"]
    for theirs, number in numbers.items():
        if number is not None:
            writer.add_uint32(f"tokenizer.ggml.{theirs}_token_id", number)
    writer.add_add_bos_token(tokenizer("a").input_ids[:1] == [numbers["bos"]])
    writer.add_add_space_prefix(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def splitting_name(backend: Tokenizer) -> str:
    """llama.cpp's name for the way that `backend` splits text. Raises InputError where it has none."""
    state = json.loads(backend.to_str())
    found = _stated_splitting(state)
    for name, known in SPLITTINGS.items():
        if found == known:
            return name
    raise InputError(
        "llama.cpp has no name for the way that this tokenizer splits text",
        f"Use byte-level BPE that splits as {', '.join(SPLITTINGS)} do",
    )


def _stated_splitting(state: dict[str, Any]) -> Splitting | None:
    model, before, normalizer = state["model"], state["pre_tokenizer"] or {}, state["normalizer"] or {}
    plain = not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    if model["type"] != "BPE" or not plain or model.get("byte_fallback") or normalizer.get("type", "NFC") != "NFC":
        return None
    *splits, last = before.get("pretokenizers", [before])
    patterns = tuple(_pattern(split) for split in splits)
    if None in patterns or last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    return Splitting(tuple(map(str, patterns)), last.get("use_regex", True), bool(model.get("ignore_merges")))


def _pattern(split: dict[str, Any]) -> str | None:
    if split["type"] == "Digits" and split["individual_digits"]:
        return r"\p{N}"
    isolated = split["type"] == "Split" and split["behavior"] == "Isolated" and not split["invert"]
    return split["pattern"].get("Regex") if isolated else None
