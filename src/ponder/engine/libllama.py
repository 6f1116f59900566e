"""The C interface of llama.cpp, as compiled into the wheel of `xllamacpp`, bound with ctypes.

Why not the server class of that wheel: it loses the key-value cache of every sample but the first
when a request with several ends, drops the ids of tokens that end inside a UTF-8 character, stops
only between batches of prompt, and gives no log-probabilities of a given text. The C interface does
all of it. Its two parameter structures have no header in the wheel, so `check_layout` compares their
defaults with the ones this file was written for before anything is loaded, and refuses others.

Everything here is synchronous and belongs to one thread of one process (`llamacpp_worker`).
Source: `llama.h` of llama.cpp, build 11549.
"""

from __future__ import annotations

import ctypes as c
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ponder.errors import EngineError, InputError, WeightsError

_VOID = c.c_void_p
_PADDING = 512  # larger than either structure: the callee copies the part that it knows

_MODEL_DEFAULTS = {16: -1, 20: 1, 24: -1, 28: 1, 32: 0, 72: 0x10000}
_CONTEXT_DEFAULTS = {0: 512, 4: 2048, 8: 512, 12: 1, 16: 0, 24: 1, 28: 4, 32: 4, 52: -1, 104: 1, 108: 1, 136: 0x1010100}
_GPU_LAYERS, _N_CTX, _N_THREADS, _FLASH_ATTENTION, _TYPE_K, _KV_UNIFIED = 16, 0, 28, 52, 104, 141

CACHE_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2, "bf16": 30}
"""Names of the types that the key-value cache can have, and their numbers in ggml."""

ABORTED = 2
"""What `decode` returns when the abort callback stopped it."""


class _Parameters(c.Structure):
    _fields_ = [("raw", c.c_uint8 * _PADDING)]

    def set(self, offset: int, layout: str, *values: int) -> None:
        struct.pack_into(layout, self.raw, offset, *values)

    def get(self, offset: int) -> int:
        return int(struct.unpack_from("<i", self.raw, offset)[0])


class _Batch(c.Structure):
    _fields_ = [
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", _VOID),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    ]


_LOG = c.CFUNCTYPE(None, c.c_int, c.c_char_p, _VOID)
_WARNING, _ERROR = 3, 4

_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (_LOG, _VOID)),
    "llama_model_default_params": (_Parameters, ()),
    "llama_context_default_params": (_Parameters, ()),
    "llama_model_load_from_file": (_VOID, (c.c_char_p, _Parameters)),
    "llama_init_from_model": (_VOID, (_VOID, _Parameters)),
    "llama_model_free": (None, (_VOID,)),
    "llama_free": (None, (_VOID,)),
    "llama_model_get_vocab": (_VOID, (_VOID,)),
    "llama_model_n_params": (c.c_uint64, (_VOID,)),
    "llama_model_n_ctx_train": (c.c_int32, (_VOID,)),
    "llama_model_chat_template": (c.c_char_p, (_VOID, c.c_char_p)),
    "llama_model_meta_count": (c.c_int32, (_VOID,)),
    "llama_model_meta_key_by_index": (c.c_int32, (_VOID, c.c_int32, c.c_char_p, c.c_size_t)),
    "llama_model_meta_val_str_by_index": (c.c_int32, (_VOID, c.c_int32, c.c_char_p, c.c_size_t)),
    "llama_vocab_n_tokens": (c.c_int32, (_VOID,)),
    "llama_vocab_is_eog": (c.c_bool, (_VOID, c.c_int32)),
    "llama_vocab_is_control": (c.c_bool, (_VOID, c.c_int32)),
    "llama_vocab_bos": (c.c_int32, (_VOID,)),
    "llama_vocab_eos": (c.c_int32, (_VOID,)),
    "llama_tokenize": (
        c.c_int32,
        (_VOID, c.c_char_p, c.c_int32, c.POINTER(c.c_int32), c.c_int32, c.c_bool, c.c_bool),
    ),
    "llama_token_to_piece": (c.c_int32, (_VOID, c.c_int32, c.c_char_p, c.c_int32, c.c_int32, c.c_bool)),
    "llama_n_ctx": (c.c_uint32, (_VOID,)),
    "llama_n_ctx_seq": (c.c_uint32, (_VOID,)),
    "llama_get_memory": (_VOID, (_VOID,)),
    "llama_memory_seq_rm": (c.c_bool, (_VOID, c.c_int32, c.c_int32, c.c_int32)),
    "llama_memory_seq_cp": (None, (_VOID, c.c_int32, c.c_int32, c.c_int32, c.c_int32)),
    "llama_state_seq_get_size": (c.c_size_t, (_VOID, c.c_int32)),
    "llama_state_seq_get_data": (c.c_size_t, (_VOID, _VOID, c.c_size_t, c.c_int32)),
    "llama_state_seq_set_data": (c.c_size_t, (_VOID, _VOID, c.c_size_t, c.c_int32)),
    "llama_batch_init": (_Batch, (c.c_int32, c.c_int32, c.c_int32)),
    "llama_batch_free": (None, (_Batch,)),
    "llama_decode": (c.c_int32, (_VOID, _Batch)),
    "llama_get_logits_ith": (_VOID, (_VOID, c.c_int32)),
    "llama_model_n_embd_out": (c.c_int32, (_VOID,)),
    "llama_pooling_type": (c.c_int, (_VOID,)),
    "llama_set_embeddings": (None, (_VOID, c.c_bool)),
    "llama_get_embeddings_ith": (_VOID, (_VOID, c.c_int32)),
    "llama_set_abort_callback": (None, (_VOID, _VOID, _VOID)),
    "llama_adapter_lora_init": (_VOID, (_VOID, c.c_char_p)),
    "llama_set_adapters_lora": (c.c_int32, (_VOID, c.POINTER(_VOID), c.c_size_t, c.POINTER(c.c_float))),
}


def _load_library() -> c.CDLL:
    import xllamacpp

    library = c.CDLL(xllamacpp.xllamacpp.__file__)
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise EngineError(f"the llama.cpp of this xllamacpp lacks {name}", _REINSTALL) from None
        function.restype, function.argtypes = result, arguments
    return library


_heard: list[object] = []
"""Keeps what llama.cpp logs to: it goes on calling the last one, also once the model is gone."""

_REINSTALL = "reinstall the pinned version: pip install --force-reinstall ponder"


def check_layout(library: c.CDLL) -> None:
    """Raises EngineError where the parameter structures are not the ones this file was written for."""
    for function, defaults in (
        (library.llama_model_default_params, _MODEL_DEFAULTS),
        (library.llama_context_default_params, _CONTEXT_DEFAULTS),
    ):
        parameters = function()
        if any(parameters.get(offset) != value for offset, value in defaults.items()):
            raise EngineError("this xllamacpp has another layout than ponder was written for", _REINSTALL)


class Model:
    """Weights, a context with a unified key-value cache of `cells` tokens, and adapters.

    At most `sequences` sequences live in the cache at a time, each at most `context` tokens long.
    `log` receives the lines that llama.cpp would print. Raises WeightsError where the file cannot be
    loaded and EngineError where the context does not fit into memory.
    """

    def __init__(
        self,
        path: Path,
        *,
        cells: int,
        sequences: int,
        threads: int,
        batch: int,
        gpu_layers: int,
        flash_attention: bool,
        cache_type: str,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._library = _load_library()
        check_layout(self._library)
        self._say_to(log)
        self._library.llama_backend_init()
        parameters = self._library.llama_model_default_params()
        parameters.set(_GPU_LAYERS, "<i", gpu_layers)
        self._model = self._library.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise WeightsError(f"llama.cpp cannot load {path}", "fetch it again, or give the GGUF of a language model")
        self._vocabulary = self._library.llama_model_get_vocab(self._model)
        self.vocabulary_size = int(self._library.llama_vocab_n_tokens(self._vocabulary))
        self.context = min(cells, int(self._library.llama_model_n_ctx_train(self._model)))
        self._row = c.c_float * self.vocabulary_size
        self.batch = batch
        self._context = self._open_context(cells, sequences, threads, flash_attention, CACHE_TYPES[cache_type])
        self._memory = self._library.llama_get_memory(self._context)
        self._adapters: list[int] = []
        self._batch = self._library.llama_batch_init(batch, 0, 1)
        self._flag: c.Array[c.c_char] | None = None

    def _say_to(self, log: Callable[[str], None]) -> None:
        def heard(level: int, text: bytes | None, _: object) -> None:
            if level in (_WARNING, _ERROR):
                log((text or b"").decode("utf-8", "replace"))

        _heard.append(_LOG(heard))
        self._library.llama_log_set(_heard[-1], None)

    def _open_context(self, cells: int, sequences: int, threads: int, flash: bool, cache_type: int) -> int:
        parameters = self._library.llama_context_default_params()
        parameters.set(_N_CTX, "<IIII", cells, self.batch, self.batch, sequences)
        parameters.set(_N_THREADS, "<ii", threads, threads)
        parameters.set(_FLASH_ATTENTION, "<i", 1 if flash else 0)
        parameters.set(_TYPE_K, "<ii", cache_type, cache_type)
        parameters.set(_KV_UNIFIED, "<b", 1)
        context = self._library.llama_init_from_model(self._model, parameters)
        if not context:
            raise EngineError(f"no memory for a context of {cells} tokens", "lower the context, or free memory")
        if self._library.llama_n_ctx_seq(context) < cells:
            raise EngineError("this xllamacpp has another layout than ponder was written for", _REINSTALL)
        return int(context)

    # ------------------------------------------------------------ what the model is

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return int(self._library.llama_model_n_params(self._model))

    def chat_template(self) -> str | None:
        """Jinja source of the chat template, if the file holds one."""
        source = self._library.llama_model_chat_template(self._model, None)
        return source.decode("utf-8", "replace") if source else None

    def metadata(self, longest: int = 4096) -> dict[str, str]:
        """The scalar keys of the file; values longer than `longest` bytes are left out."""
        found: dict[str, str] = {}
        buffer = c.create_string_buffer(longest)
        for index in range(self._library.llama_model_meta_count(self._model)):
            self._library.llama_model_meta_key_by_index(self._model, index, buffer, longest)
            key = buffer.value.decode("utf-8", "replace")
            length = self._library.llama_model_meta_val_str_by_index(self._model, index, buffer, longest)
            if 0 <= length < longest and not key.startswith("tokenizer.ggml.") and key != "tokenizer.chat_template":
                found[key] = buffer.value.decode("utf-8", "replace")
        return found

    # ------------------------------------------------------------ tokens

    def special(self, which: str) -> int:
        """Id of the `bos` or `eos` token, -1 where there is none."""
        return int(getattr(self._library, f"llama_vocab_{which}")(self._vocabulary))

    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a turn."""
        is_end = self._library.llama_vocab_is_eog
        return tuple(token for token in range(self.vocabulary_size) if is_end(self._vocabulary, token))

    def control_ids(self) -> tuple[int, ...]:
        """Ids that are no text but say something to the model."""
        is_control = self._library.llama_vocab_is_control
        return tuple(token for token in range(self.vocabulary_size) if is_control(self._vocabulary, token))

    def tokenize(self, text: str) -> list[int]:
        """Ids of `text`: special tokens are recognised, nothing is added."""
        data = text.encode("utf-8", "surrogatepass")
        room = len(data) + 8
        ids = (c.c_int32 * room)()
        count = self._library.llama_tokenize(self._vocabulary, data, len(data), ids, room, False, True)
        if count < 0:
            raise InputError("the tokenizer refused the text")
        return list(ids[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of one token, special tokens included."""
        if not 0 <= token < self.vocabulary_size:
            raise InputError(f"{token} is no token of this model, which has {self.vocabulary_size}")
        room = 256
        while True:
            buffer = c.create_string_buffer(room)
            length = self._library.llama_token_to_piece(self._vocabulary, token, buffer, room, 0, True)
            if length >= 0:
                return buffer.raw[:length]
            room = -length

    # ------------------------------------------------------------ cache and computation

    def decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> int:
        """Computes (token, position, sequence, wants logits) rows; at most `batch` of them.

        Returns 0, 1 (no room in the cache), `ABORTED`, or a negative number for a failure.
        """
        batch = self._batch
        batch.n_tokens = len(tokens)
        for row, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[row] = token
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequence
            batch.logits[row] = wanted
        return int(self._library.llama_decode(self._context, batch))

    def logits(self, row: int) -> npt.NDArray[np.float32]:
        """Logits (vocabulary,) of row `row` of the last decode. A view: valid until the next one."""
        address = self._library.llama_get_logits_ith(self._context, row)
        return np.frombuffer(memoryview(self._row.from_address(address)), np.float32)

    @property
    def width(self) -> int:
        """Numbers in a hidden state; 0 where each token has none of its own, since the model pools them itself."""
        if self._library.llama_pooling_type(self._context) != 0:
            return 0
        return int(self._library.llama_model_n_embd_out(self._model))

    def embed(self, tokens: Sequence[tuple[int, int, int, bool]]) -> tuple[int, npt.NDArray[np.float32]]:
        """`decode` for the last hidden states (rows, width) of all of `tokens` in place of logits."""
        hidden = np.zeros((len(tokens), self.width), np.float32)
        self._library.llama_set_embeddings(self._context, True)
        try:
            code = self.decode([(token, position, sequence, True) for token, position, sequence, _ in tokens])
            for row in range(len(tokens) if code == 0 else 0):
                address = self._library.llama_get_embeddings_ith(self._context, row)
                hidden[row] = np.frombuffer(memoryview((c.c_float * hidden.shape[1]).from_address(address)), np.float32)
        finally:
            self._library.llama_set_embeddings(self._context, False)
        return code, hidden

    def copy(self, source: int, target: int, length: int) -> None:
        """Sequence `target` takes the first `length` positions of `source`, sharing their memory."""
        self._library.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def truncate(self, sequence: int, length: int) -> None:
        """Forgets the positions of `sequence` from `length` on."""
        self._library.llama_memory_seq_rm(self._memory, sequence, length, -1)

    def save(self, sequence: int) -> memoryview:
        """The keys and values of `sequence`, for `restore`. Empty where there is no memory for them."""
        size = self._library.llama_state_seq_get_size(self._context, sequence)
        try:
            state = np.empty(size, np.uint8)
        except MemoryError:
            return memoryview(b"")
        written = self._library.llama_state_seq_get_data(self._context, state.ctypes.data, size, sequence)
        return state[:written].data

    def restore(self, sequence: int, state: bytes | memoryview) -> bool:
        """`sequence` becomes what was saved; False, and empty, where the cache has no room for it."""
        data = np.frombuffer(state, np.uint8)
        read = self._library.llama_state_seq_set_data(self._context, data.ctypes.data, len(data), sequence)
        if not read:
            self.truncate(sequence, 0)
        return bool(read)

    def abort_on(self, flag: c.Array[c.c_char]) -> None:
        """`decode` stops soon after another thread sets the first byte of `flag`, and goes on once it is 0.

        The callback is `strlen`: it answers "not 0" of exactly that byte. llama.cpp asks it once a
        graph node, a thousand times a token, and a Python function there would cost a tenth of the speed.
        """
        self._flag = flag
        strlen = c.cast(c.CDLL(None).strlen, _VOID)
        self._library.llama_set_abort_callback(self._context, strlen, c.cast(flag, _VOID))

    # ------------------------------------------------------------ adapters

    def load_adapter(self, path: Path) -> int:
        """Loads a low-rank adapter; returns its number."""
        adapter = self._library.llama_adapter_lora_init(self._model, str(path).encode())
        if not adapter:
            raise WeightsError(f"{path} is no adapter for this model", "give one that was trained on this base")
        self._adapters.append(adapter)
        return len(self._adapters) - 1

    def use_adapters(self, scales: Sequence[float]) -> None:
        """Switches every loaded adapter to its scale, 0 for off. Cached tokens keep what computed them."""
        chosen = [(a, s) for a, s in zip(self._adapters, scales, strict=True) if s != 0.0]
        pointers = (_VOID * max(1, len(chosen)))(*[a for a, _ in chosen])
        factors = (c.c_float * max(1, len(chosen)))(*[s for _, s in chosen])
        if self._library.llama_set_adapters_lora(self._context, pointers, len(chosen), factors):
            raise EngineError("llama.cpp refused the adapters")

    def close(self) -> None:
        """Releases context and weights."""
        self._library.llama_batch_free(self._batch)
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)
