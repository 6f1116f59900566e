"""Models of any form as a transformers model in this process, and its tokenizer with the ids of the other engines."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ponder.engine import cache, catalogue, gguf_header, hub
from ponder.engine.download import Progress, silent
from ponder.engine.weights import NO_ADAPTER, Adapter, packaged_path, split, told, unknown
from ponder.errors import InputError, MissingExtra, WeightsError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    Model = PreTrainedModel | PeftModel

NEW = "new:"
METADATA_FILE = "ponder.json"
"""Beside safetensors: what a GGUF file says of its model beyond its weights."""

_ENDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
"""Tokens that a GGUF file may name, and that end a turn in llama.cpp."""


@dataclass(frozen=True)
class Loaded:
    """A model and its tokenizer.

    `source` says where the weights are from, `sha256` is the pinned hash of their file where there is one, and
    `metadata` holds what `Weights.metadata` does: `ponder.thinking`, how the model was taught to think. `adapters`
    are in the model under their names, frozen and switched on; their scales are the caller's business. `name` is
    short, and `place` the file, folder or repository of the weights below the adapters.
    """

    model: Model
    tokenizer: PreTrainedTokenizerFast
    source: str
    sha256: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    adapters: tuple[Adapter, ...] = ()
    name: str = "model"
    place: str = ""

    def ids(self, text: str) -> list[int]:
        """The ids that an engine's `tokenize` gives: special tokens are recognised, nothing is added."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


@dataclass(frozen=True)
class _Wish:
    """How to load, whatever is loaded. packaged: with the adapter that a model of the catalogue comes with."""

    dtype: torch.dtype
    seed: int
    packaged: bool
    progress: Progress


def load(
    name: str,
    *,
    dtype: torch.dtype | str = "float32",
    device: torch.device | str = "cpu",
    seed: int = 0,
    base: str | None = None,
    adapters: Sequence[str] = (),
    progress: Progress = silent,
) -> Loaded:
    """The model called `name`, in evaluation mode, with weights of `dtype` (those of adapters stay float32):

        ponder-135m             a name of the catalogue; an adapter that it comes with is applied
        PATH.gguf               a GGUF file
        FOLDER                  configuration, safetensors and tokenizer as transformers saves them, or an adapter
                                as PEFT does, on top of `base` (None: of the model that it names itself)
        new:FOLDER              new weights drawn from `seed`, for the configuration and tokenizer in the folder
        owner/repo              a repository on the model hub, or one file of it as `ponder.engine.weights` has it

    Each of `adapters` is a GGUF adapter or a folder of PEFT, optionally with `=SCALE`; "none" leaves out the one
    that a model of the catalogue comes with.

    Raises MissingExtra without the packages that are needed, InputError for a file or name that cannot be used,
    WeightsError for weights that are damaged, incomplete, or cannot be fetched.
    """
    require_packages()
    if not name.strip():
        raise InputError("the name of the model is empty", f"Give one, such as {catalogue.DEFAULT_MODEL}")
    wish = _Wish(_dtype(dtype), seed, NO_ADAPTER not in adapters, progress)
    found = _find(name, wish, base)
    for spec in adapters:
        if spec != NO_ADAPTER:
            found = _with(found, *split(spec))
    _check(found)
    try:
        found.model.to(device)  # type: ignore[arg-type]  # transformers wraps torch's method, and loses its types
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"there is no device {device}: {_first_line(error)}", "Try cpu or cuda") from error
    found.model.eval()
    return found


def require_packages(what: str = "training") -> None:
    """Raises MissingExtra unless everything that `what` needs is installed."""
    for package in ("torch", "transformers", "peft", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(f"{what} needs the package {package}", "Run: pip install 'ponder[train]'")


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What is drawn on the CPU inside depends on `seed` alone, and changes nothing that is drawn outside."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    import torch

    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"{dtype} is no type that weights can have", "Try float32 or bfloat16")
    return found


def _find(name: str, wish: _Wish, base: str | None = None) -> Loaded:
    if entry := catalogue.find(name):
        return _known(entry, wish)
    if name.startswith(NEW):
        return _new(Path(name.removeprefix(NEW)).expanduser(), wish)
    path = Path(name).expanduser()
    if (path / "adapter_config.json").is_file():
        return _adapted(path, wish, base)
    if path.is_dir():
        return _folder(path, wish.dtype)
    if path.exists():
        return _gguf(path, wish.dtype)
    if path.is_absolute() or name.startswith((".", "~")):
        raise InputError(f"there is no file or folder {path}", "Check the path, or see `ponder models list`")
    wanted = hub.parse(name)
    if wanted is None:
        raise unknown(name)
    if wanted.file or wanted.quant:
        return _gguf(hub.fetch(wanted, progress=wish.progress), wish.dtype)
    return _hub(name, wish.dtype)


def _known(entry: catalogue.Entry, wish: _Wish) -> Loaded:
    path = cache.require(entry.base, entry.name, wish.progress)
    plain = _gguf(path, wish.dtype)
    # Adapters trained on top name their base: this name means the same weights on every machine.
    plain.model.name_or_path = entry.base.name
    found = replace(plain, source=entry.base.source, sha256=entry.base.sha256, name=entry.name)
    if entry.adapter is None or not wish.packaged:
        return found
    metadata = {"ponder.thinking": dict(entry.adapter.thinking), "general.sampling.temp": entry.adapter.temperature}
    adapted = _with(found, packaged_path(entry.adapter), name=entry.adapter.name)
    return replace(adapted, source=f"{found.source}, and {entry.adapter.source}", metadata=metadata)


def _gguf(path: Path, dtype: torch.dtype) -> Loaded:
    from ponder.engine.gguf_tokenizer import read_tokenizer
    from ponder.engine.gguf_weights import read_model

    header = gguf_header.read_header(path)
    if header.is_adapter:
        raise InputError(f"{path} is an adapter, not a model", f"Give the model it is for, and `--adapter {path}`")
    path = path.absolute()
    with _quiet():
        tokenizer, model = read_tokenizer(path), read_model(path, dtype)
    model.name_or_path = str(path)
    ends = {header.metadata.get(f"tokenizer.ggml.{end}_token_id") for end in _ENDS} - {None}
    if model.generation_config is not None and ends:
        model.generation_config.eos_token_id = sorted(ends)
    return Loaded(model, tokenizer, f"the GGUF file {path}", metadata=told(header), name=path.stem, place=str(path))


def _new(path: Path, wish: _Wish) -> Loaded:
    from transformers import AutoConfig, AutoModelForCausalLM

    with _quiet(), _reading(path):
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        draw: Any = AutoModelForCausalLM.from_config
        with seeded(wish.seed):
            model = draw(config, dtype=wish.dtype)
        return _in_folder(path, model, f"new weights (seed {wish.seed}) for {path}")


def _folder(path: Path, dtype: torch.dtype) -> Loaded:
    from transformers import AutoModelForCausalLM

    from ponder.engine.gguf_weights import complete

    if not (path / "config.json").is_file():
        raise InputError(f"{path} holds no config.json", "Give a folder that transformers has saved")
    if not list(path.glob("*.safetensors")):
        raise InputError(f"{path} holds no safetensors", f"For new weights, give {NEW}{path}")
    path = path.absolute()
    with _quiet(), _reading(path):
        settings = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
        return _in_folder(path, complete(path, AutoModelForCausalLM, path, **settings), f"the folder {path}")


def _in_folder(path: Path, model: Any, source: str) -> Loaded:
    place = path.absolute()
    return Loaded(model, _tokenizer(path), source, metadata=_metadata(path), name=place.name, place=str(place))


def _hub(name: str, dtype: torch.dtype) -> Loaded:
    from transformers import AutoModelForCausalLM

    from ponder.engine.gguf_weights import complete

    with _reading(name, "Check the name and the network; a private repository needs `hf auth login`"):
        model = complete(name, AutoModelForCausalLM, name, dtype=dtype, use_safetensors=True)
        return Loaded(model, _tokenizer(name), f"{name} on the model hub", name=name, place=name)


# ---------------------------------------------------------------- adapters


def _adapted(path: Path, wish: _Wish, base: str | None) -> Loaded:
    own = base or _json(path / "adapter_config.json").get("base_model_name_or_path")
    if not own:
        raise InputError(
            f"{path} does not name the model that it adapts", f"Give that as the model, and `--adapter {path}`"
        )
    return _with(_find(own, wish), path)


def _with(found: Loaded, path: Path, scale: float = 1.0, name: str | None = None) -> Loaded:
    """`found` with one more adapter, all being switched on."""
    from ponder.engine.torch_lora import with_adapter

    if not path.exists():
        raise InputError(
            f"there is no adapter {path}", 'Check the path; "none" leaves out the one the model comes with'
        )
    path = path.absolute()
    adapter = Adapter(name or _free_name(path.stem, found.adapters), path, scale)
    adapters = (*found.adapters, adapter)
    model: Any = with_adapter(found.model, path, adapter.name)
    model.base_model.set_adapter([each.name for each in adapters], inference_mode=True)
    metadata = {**found.metadata, **(_told(path) if scale else {})}
    source = f"{found.source}, and the adapter {path}"
    return replace(found, model=model, adapters=adapters, metadata=metadata, source=source)


def _told(adapter: Path) -> dict[str, Any]:
    """What an adapter says of the model that it makes: how it thinks, at which temperature."""
    return _metadata(adapter) if adapter.is_dir() else told(gguf_header.read_header(adapter))


def _free_name(stem: str, taken: Sequence[Adapter]) -> str:
    plain = stem.replace(".", "-") or "adapter"  # to torch, a dot parts names
    name, number = plain, 1
    while name in {adapter.name for adapter in taken}:
        number += 1
        name = f"{plain}-{number}"
    return name


# ---------------------------------------------------------------- files


def _tokenizer(source: Path | str) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast
    from transformers.utils.hub import cached_file

    if isinstance(source, str):
        cached_file(source, "tokenizer.json")  # raises OSError where there is none
    elif not (source / "tokenizer.json").exists():
        raise InputError(f"{source} holds no tokenizer.json", "Give the folder of a model with a fast tokenizer")
    # Not AutoTokenizer: some classes build their own splitting anew and ignore the one that the file states.
    read: Any = PreTrainedTokenizerFast.from_pretrained
    return cast("PreTrainedTokenizerFast", read(source, local_files_only=isinstance(source, Path)))


def _check(found: Loaded) -> None:
    """Raises WeightsError for weights that no training could start from."""
    import torch

    for name, parameter in found.model.named_parameters():
        # Many times as fast as a look at each of them, and NaN is the least and the greatest of whatever has one.
        if parameter.numel() and not torch.stack(torch.aminmax(parameter.detach())).isfinite().all():
            raise WeightsError(f"{found.source} holds numbers that are not finite, in {name}", "Take another copy")
    table: Any = found.model.get_input_embeddings()
    rows = table.weight.shape[0]
    highest = max(found.tokenizer.get_vocab().values())
    if highest >= rows:
        raise WeightsError(
            f"the tokenizer of {found.source} has the token {highest}, and the model only {rows} embeddings",
            "Give a model with its own tokenizer",
        )


@contextlib.contextmanager
def _reading(source: Path | str, mend: str = "Give a folder that transformers has saved") -> Iterator[None]:
    """Turns what transformers raises into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise WeightsError(f"{source} cannot be loaded: {_first_line(error)}", mend) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and reports of transformers: what matters in them is raised here.

    Not for what is fetched: there the bars say how long it takes.
    """
    from transformers.utils import logging as module

    logging: Any = module
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def _metadata(path: Path) -> dict[str, Any]:
    return _json(path / METADATA_FILE) if (path / METADATA_FILE).exists() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {_first_line(error)}", "Write the folder again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object", "Write the folder again")
    return found
