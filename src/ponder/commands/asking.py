"""What `ask` and `chat` share: options, opening the model, stopping softly at Ctrl-C, the store."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ponder.errors import InputError

if TYPE_CHECKING:
    from ponder.chat.model import Model, Price
    from ponder.ops.store import Store
    from ponder.protocols import Strategy
    from ponder.types import Budget, Event, Question, Trace

DEFAULT_MODEL = "ponder-135m"
DEFAULT_BUDGET = 2048
LONGEST_INPUT = 4 * 2**20
"""Bytes of standard input or of a file; no model here reads more."""

STOPPED = 130
"""Exit code after Ctrl-C, as shells have it."""


class Think(StrEnum):
    """How to think."""

    auto = "auto"
    trained = "trained"
    prompt = "prompt"


def _complete_model(incomplete: str) -> list[str]:
    from ponder.engine.catalogue import names

    return [name for name in [*names(), "openai:http://", "scripted:"] if name.startswith(incomplete)]


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="PONDER_MODEL",
        help="A known name, a GGUF file, openai:URL#NAME or scripted:FILE.",
        autocompletion=_complete_model,
    ),
]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", help="A GGUF adapter, as PATH or PATH=SCALE; several may be given; none for the bare model."
    ),
]
BudgetOption = Annotated[
    int, typer.Option("--budget", "-b", help="Tokens for the whole request, thinking and answer together.")
]
ThinkOption = Annotated[
    Think,
    typer.Option(
        "--think", help="trained: the model's own way; prompt: asked for in words; auto: the first it can do."
    ),
]
NoThinkOption = Annotated[bool, typer.Option("--no-think", help="Answer at once.")]
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", help="0 is greedy; by default what the model recommends, else 0.6.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="For the same answer again.")]
PriceOption = Annotated[
    str | None,
    typer.Option(
        "--price", help="Dollars per million tokens, as PROMPT,OUTPUT or PROMPT,CACHED,OUTPUT.", metavar="P,O"
    ),
]
SystemOption = Annotated[str | None, typer.Option("--system", help="A system message.")]
NoStoreOption = Annotated[bool, typer.Option("--no-store", help="Keep no trace of it.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print the answer alone.")]


@dataclass(frozen=True)
class Asking:
    """The options that `ask` and `chat` have in common."""

    model: str
    adapters: tuple[str, ...]
    temperature: float | None
    seed: int | None
    price: str | None
    store: bool
    quiet: bool


def strategy_of(think: Think, no_think: bool) -> Strategy:
    """The strategy that the options name."""
    from ponder.strategies.chain_of_thought import chain_of_thought
    from ponder.strategies.direct import direct

    return direct() if no_think else chain_of_thought(think.value)


def price_of(text: str | None) -> Price | None:
    """Reads --price. Raises InputError."""
    from ponder.chat.model import Price

    if text is None:
        return None
    try:
        numbers = [float(each) for each in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3) or not all(0 <= number < 1e9 for number in numbers):
        raise InputError(f"--price {text!r} is no price", "give dollars per million tokens, such as --price 0.15,0.60")
    return Price(numbers[0], numbers[-2] if len(numbers) == 3 else numbers[0], numbers[-1])


async def open_asked(asking: Asking, stop: asyncio.Event) -> Model:
    """Opens the model, fetching weights with a progress bar where they are missing."""
    from ponder.chat.model import model_of
    from ponder.commands.progress import progress_bar
    from ponder.engine import open_engine
    from ponder.protocols import SamplingParams

    price = price_of(asking.price)
    with progress_bar() as progress:
        engine = await open_engine(asking.model, adapters=asking.adapters, progress=None if asking.quiet else progress)
    recommended = engine.info.metadata.get("general.sampling.temp", 0.6)
    temperature = float(recommended) if asking.temperature is None else asking.temperature
    try:
        params = SamplingParams(max_tokens=1, temperature=temperature, seed=asking.seed)
    except ValueError as error:
        raise InputError(str(error)) from None
    return replace(model_of(engine, price), params=params, stop=stop)


@contextlib.contextmanager
def opened_store(asking: Asking) -> Iterator[Store | None]:
    """The database of traces, unless none is wanted."""
    if not asking.store:
        yield None
        return
    from ponder.ops.store import Store

    with Store.open() as store:
        yield store


def run(work: Callable[[asyncio.Event], object]) -> None:
    """Runs a coroutine function with an event that Ctrl-C sets; a second Ctrl-C ends the program."""

    async def main() -> None:
        stop = asyncio.Event()
        with stopping(stop):
            await work(stop)  # type: ignore[misc]

    asyncio.run(main())


@contextlib.contextmanager
def stopping(stop: asyncio.Event) -> Iterator[None]:
    """While it lasts, Ctrl-C sets `stop`; pressed again, it interrupts as usual."""
    loop = asyncio.get_running_loop()

    def pressed() -> None:
        if stop.is_set():
            loop.remove_signal_handler(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        stop.set()

    try:
        loop.add_signal_handler(signal.SIGINT, pressed)
    except (NotImplementedError, RuntimeError):  # not the main thread, or Windows: Ctrl-C raises KeyboardInterrupt
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def events_of(
    question: Question, model: Model, strategy: Strategy, budget: Budget, store: Store | None
) -> AsyncIterator[Event]:
    """The events of one request."""
    from ponder.solving import stream

    async for event in stream(question, model=model, strategy=strategy, budget=budget, store=store):
        yield event


async def solved(
    question: Question,
    model: Model,
    strategy: Strategy,
    budget: Budget,
    store: Store | None,
    show: Callable[[Event], None] = lambda event: None,
) -> Trace:
    """The trace of one request, whose events are shown as they come."""
    from ponder.types import Done

    async for event in events_of(question, model, strategy, budget, store):
        show(event)
        if isinstance(event, Done):
            return event.trace
    raise AssertionError("a stream ends with Done")


def read_input(files: Sequence[Path], stdin: bool) -> str:
    """The text of files, and of standard input where something is piped in.

    Raises InputError for what is missing, no text, or larger than any model reads.
    """
    texts = [_read_file(path) for path in files]
    if stdin:
        texts.append(_decode(sys.stdin.buffer.read(LONGEST_INPUT + 1), "standard input"))
    return "\n\n".join(text for text in texts if text.strip())


def _read_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return _decode(file.read(LONGEST_INPUT + 1), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "give the path of a text file") from None


def _decode(data: bytes, name: str) -> str:
    if len(data) > LONGEST_INPUT:
        raise InputError(f"{name} has more than {LONGEST_INPUT // 2**20} MiB", "give the part of it that matters")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{name} is no UTF-8 text", "convert it to text first") from None
    if "\0" in text:
        raise InputError(f"{name} is binary", "convert it to text first")
    return text
