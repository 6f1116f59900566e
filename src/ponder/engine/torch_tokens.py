"""The tokens of a fast tokenizer of transformers: their exact bytes, and which of them end a turn."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from ponder.errors import InputError

ENDS = (
    *(
        "<|im_end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
    ),
    *("<end_of_turn>", "<end_of_utterance>", "<EOT>", "_<EOT>"),
    *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>"),
    *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"),
)
"""Special tokens that end a turn in whatever model has them, as llama.cpp has it (`llama-vocab.cpp`).

Configurations name one of several at times. The last two lines part files of code.
"""

_HARMONY = {"<|end|>", "<|return|>", "<|call|>"}
"""In a model that has all three, the first ends a message, and the turn goes on."""

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"
"""What sentencepiece writes in place of a space."""


class Tokens:
    """Implements `serving.Vocabulary` for `size` ids, some of which may have no text. Raises InputError for a slow one.

    `end_ids` are those of the model; special tokens that always end a turn are added.
    """

    def __init__(self, tokenizer: Any, size: int, end_ids: Iterable[int] = ()) -> None:
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise InputError(f"{type(tokenizer).__name__} is no fast tokenizer", "give one with a tokenizer.json")
        self.size = size
        self._backend = Tokenizer.from_str(backend.to_str())  # the other one may be told to pad, and to cut
        self._backend.no_padding()
        self._backend.no_truncation()
        self._pieces = pieces_of(self._backend, size)
        special = {token.content: number for number, token in self._backend.get_added_tokens_decoder().items()}
        harmony = special.keys() >= _HARMONY
        ends = (text for text in ENDS if text in special and not (harmony and text == "<|end|>"))
        own = {*end_ids, *(special[text] for text in ends)}
        self.end_ids = tuple(sorted(token for token in own if token is not None and 0 <= token < size))

    def tokenize(self, text: str) -> list[int]:
        """Ids of `text`: special tokens are recognised, nothing is added."""
        whole = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")  # lone surrogates are no text
        ids: list[int] = self._backend.encode(whole, add_special_tokens=False).ids
        return ids

    def piece(self, token: int) -> bytes:
        """The bytes of one token, special tokens included. Raises InputError for what is no token."""
        if not 0 <= token < self.size:
            raise InputError(f"{token} is no token of this model, which has {self.size}")
        return self._pieces[token]

    def special_ids(self) -> tuple[int, ...]:
        """Tokens that are no text but say something to the model."""
        added = self._backend.get_added_tokens_decoder().items()
        return tuple(number for number, token in added if token.special and number < self.size)


def pieces_of(backend: Any, size: int) -> list[bytes]:
    """The bytes of each id below `size` of a `tokenizers.Tokenizer`; none for ids that it does not know."""
    to_bytes = _byte_level if "ByteLevel" in str(backend.decoder) else _plain
    added = {number: token.content for number, token in backend.get_added_tokens_decoder().items()}
    pieces = [b""] * size
    for text, number in backend.get_vocab(with_added_tokens=True).items():
        if number < size:
            pieces[number] = added[number].encode() if number in added else to_bytes(text)
    return pieces


def _byte_level(text: str) -> bytes:
    """Of GPT-2's alphabet, in which each byte is one printable character."""
    letters = _letters()
    return b"".join(letters[letter] if letter in letters else letter.encode() for letter in text)


@cache
def _letters() -> dict[str, bytes]:
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    found = {chr(byte): bytes([byte]) for byte in printable}
    return found | {chr(256 + place): bytes([byte]) for place, byte in enumerate(others)}


def _plain(text: str) -> bytes:
    """As sentencepiece writes tokens: a mark for a space, and bytes by their numbers."""
    if byte := _BYTE.fullmatch(text):
        return bytes([int(byte[1], 16)])
    return text.replace(_SPACE, " ").encode()
