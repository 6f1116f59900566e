"""What a sample may say next, where a grammar binds it.

A grammar is compiled to a parser over bytes, which tells of every token of the vocabulary whether the text can go on
with it. The parser and the walk over the tokens are llguidance's; this is one model's vocabulary in front of it, and
the state of one sample behind it.

Source: Koo, Liu, He, Automata-based constraints for language model decoding (2024); Earley, An Efficient
Context-Free Parsing Algorithm (1970).
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ponder.errors import InputError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

KEPT = 64
"""Compiled grammars that are kept: clients ask for the same one again and again."""


class Tokens(Protocol):
    """The vocabulary. `piece` gives the bytes of a token; special ones are no text, whatever their bytes."""

    @property
    def size(self) -> int: ...

    @property
    def end_ids(self) -> tuple[int, ...]: ...

    def tokenize(self, text: str) -> list[int]: ...

    def piece(self, token: int) -> bytes: ...

    def special_ids(self) -> tuple[int, ...]: ...


class Constraint:
    """Where one sample stands in its grammar. Samples that have said the same share one."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._allowed: npt.NDArray[np.bool_] | None = None

    def fork(self) -> Constraint:
        """Another one that goes on from here."""
        twin = Constraint(self._matcher.deep_copy(), self._vocabulary)
        twin._allowed = self._allowed
        return twin

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next (vocabulary,), ends of turn included. Raises InputError where none can."""
        if self._allowed is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            self._check()
            self._allowed = np.unpackbits(bits, bitorder="little")[: self._vocabulary.size].view(np.bool_)
            if not self._allowed.any():
                raise _no_token()
        return self._allowed

    def take(self, token: int) -> None:
        """Goes on by a token that is allowed. Raises InputError for another, or where the grammar is too hard."""
        self._matcher.consume_token(token)
        self._allowed = None
        self._check()

    @property
    def complete(self) -> bool:
        """The text is whole, and nothing but the end can follow."""
        if self._matcher.is_stopped():
            return True
        return self._matcher.is_accepting() and not self.allowed()[self._vocabulary.text_ids].any()

    def _check(self) -> None:
        if self._matcher.is_error():
            error = _line(self._matcher.get_error())
            raise _no_token() if error.startswith("NoExtension") else InputError(f"{_UNFOLLOWED}: {error}", _MEND)


class Vocabulary:
    """The tokens of a model as llguidance wants them: made once a model, since it takes a moment."""

    def __init__(self, tokens: Tokens) -> None:
        self.size = tokens.size
        ends = np.array(tokens.end_ids, dtype=np.int64)
        self.text_ids = np.setdiff1d(np.arange(tokens.size), ends)
        """Every token but the ends of turn."""
        self._tokenizer, self._tokenize = _tokenizer(tokens), tokens.tokenize
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def begin(self, grammar: str, consumed: Sequence[int] = ()) -> Constraint:
        """The state after the tokens `consumed`.

        Raises InputError, in one line, for what is no grammar, and for tokens that it does not allow.
        """
        constraint = Constraint(self._matcher(grammar).deep_copy(), self)
        matcher = constraint._matcher
        if consumed and not matcher.consume_tokens(list(consumed)):
            problem = f"the grammar does not begin with these {len(consumed)} tokens"
            raise InputError(problem, "continue what was sampled under the same grammar")
        return constraint

    def _matcher(self, grammar: str) -> LLMatcher:
        found = self._compiled.get(grammar)
        if found is None:
            found = self._compiled[grammar] = compiled(_marked(grammar, self._tokenize), self._tokenizer)
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return found


_UNFOLLOWED = "the grammar cannot be followed"
_MEND = "see docs of JSON schema and Lark in llguidance for what is supported"


def _no_token() -> InputError:
    return InputError("the grammar asks for text that this model has no token for", "correct the grammar")


def compiled(grammar: str, tokenizer: LLTokenizer) -> LLMatcher:
    """The parser of a grammar at its beginning. Raises InputError for what is none."""
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
    if matcher.is_error():
        raise InputError(f"the grammar cannot be used: {_line(matcher.get_error())}", _MEND)
    return matcher


_MARK = re.compile(r'@("(?:[^"\\]|\\.)*")')


def _marked(grammar: str, tokenize: Callable[[str], list[int]]) -> str:
    """Lark with `@"text"` written as the one token that it is in this model, or else as plain text."""

    def spelled(found: re.Match[str]) -> str:
        ids = tokenize(json.loads(found[1]))
        return f"<[{ids[0]}]>" if len(ids) == 1 else found[1]

    if grammar.startswith("{"):
        return grammar
    return "\n".join(line if "%json" in line else _MARK.sub(spelled, line) for line in grammar.split("\n"))


def _line(error: str) -> str:
    """The message of an error without the excerpts below it."""
    whole = [line.strip() for line in error.strip().splitlines()]
    told = [line for line in whole if line.startswith("error:")]
    return " ".join([*whole[:1], *told])[:300].rstrip(". ")


def _tokenizer(tokens: Tokens) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    if not tokens.end_ids:
        raise InputError("this model has no end-of-turn token, which a grammar needs", "take another model")

    class Wrapped:
        eos_token_id = tokens.end_ids[0]
        bos_token_id = None
        special_token_ids = sorted({*tokens.special_ids(), *tokens.end_ids})

        def __call__(self, text: Any) -> list[int]:
            return spelled(text if isinstance(text, bytes) else text.encode())

    wrapped: Any = Wrapped()
    wrapped.tokens = [tokens.piece(token) for token in range(tokens.size)]
    spelled = _Spelling(tokens, wrapped.tokens, wrapped.special_token_ids)
    return LLTokenizer(TokenizerWrapper(wrapped), n_vocab=tokens.size, eos_token=list(tokens.end_ids))


class _Spelling:
    """The tokens of a text that a grammar forces: as the model's tokenizer has them, but for special ones.

    A string that is spelled like a special token must not become one: it would end the turn. And some tokenizers
    put a space in front, which is not in the text.
    """

    def __init__(self, tokens: Tokens, pieces: Sequence[bytes], special: Sequence[int]) -> None:
        self._tokens, self._pieces, self._special = tokens, pieces, frozenset(special)
        self._ids = {piece: token for token, piece in enumerate(pieces) if piece and token not in self._special}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: bytes) -> list[int]:
        ids = self._tokens.tokenize(text.decode("utf-8", "replace"))
        if b"".join(self._pieces[token] for token in ids) == text and self._special.isdisjoint(ids):
            return ids
        return self._greedy(text)

    def _greedy(self, text: bytes) -> list[int]:
        """The longest token at each place; the rest is left to be sampled where there is none."""
        ids: list[int] = []
        place = 0
        while place < len(text):
            lengths = range(min(self._longest, len(text) - place), 0, -1)
            length = next((n for n in lengths if text[place : place + n] in self._ids), 0)
            if not length:
                break
            ids.append(self._ids[text[place : place + length]])
            place += length
        return ids
