"""What `ask` and `chat` share: options, opening the model, stopping softly at Ctrl-C, the store."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ponder.commands.terminal import complain
from ponder.errors import InputError, PonderError

if TYPE_CHECKING:
    from ponder.chat.model import Model, Price
    from ponder.engine.download import Progress
    from ponder.ops.store import Store
    from ponder.protocols import Engine, Strategy
    from ponder.types import Budget, Event, Question, Trace

T = TypeVar("T")

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

    torch = [f"hf:{name}" for name in names()]
    return [name for name in (*names(), *torch, "openai:http://", "scripted:") if name.startswith(incomplete)]


def _complete_effort(incomplete: str) -> list[str]:
    from ponder.strategies.policy import AUTO, EFFORTS

    return [name for name in (*EFFORTS, AUTO) if name.startswith(incomplete)]


def _complete_strategy(incomplete: str) -> list[str]:
    from ponder.strategies.naming import names

    return [name for name in names() if name.startswith(incomplete)]


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="PONDER_MODEL",
        help="A known name, a GGUF file, hf:FOLDER, openai:URL#NAME or scripted:FILE.",
        autocompletion=_complete_model,
    ),
]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="PATH",
        help="A GGUF adapter (hf: a PEFT folder, too), as PATH or PATH=SCALE; again for more; none for the bare model.",
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
STRATEGY = typer.Option(
    "--strategy",
    "-s",
    metavar="NAME",
    help="direct, chain_of_thought, vote(8), best_of_n(8), ...: how the budget is spent.",
    autocompletion=_complete_strategy,
)
SystemOption = Annotated[str | None, typer.Option("--system", help="A system message.")]
PolicyOption = Annotated[
    Path | None,
    typer.Option("--policy", metavar="FILE", help="What each effort means, as ponder curve has measured it."),
]
EffortOption = Annotated[
    str | None,
    typer.Option(
        "--effort",
        "-e",
        metavar="low|medium|high|auto",
        help="How much thinking to buy, strategy and budget; auto is chosen by a policy's router.",
        autocompletion=_complete_effort,
    ),
]
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


class Stopped(PonderError):
    """Ctrl-C while there was nothing to show yet."""

    exit_code = STOPPED


def strategy_of(think: Think, no_think: bool) -> Strategy:
    """The strategy that the options name. Raises InputError where they contradict each other."""
    from ponder.strategies.chain_of_thought import chain_of_thought
    from ponder.strategies.direct import direct

    if no_think and think is not Think.auto:
        raise InputError("--no-think and --think contradict each other", "drop one of them")
    return direct() if no_think else chain_of_thought(think.value)


@dataclass(frozen=True)
class Wanted:
    """What --policy and --effort ask for; `model` is the one that the policy was measured on, "" if none."""

    strategy: Strategy
    tokens: int
    model: str

    def check(self, model: Model) -> None:
        """Says so where another model is asked: what was measured may not hold for it."""
        name = str(model.engine.info.metadata.get("ponder.name", model.name))
        if self.model not in ("", name):
            complain(f"the policy was measured on {self.model}, not on {name}")


def wanted_of(context: typer.Context, policy: Path | None, effort: str | None, budget: int) -> Wanted | None:
    """The effort of a policy, or of what efforts mean without one; None where neither option was given.

    A `budget` that was given itself goes before the policy's. Raises InputError for a policy or effort that
    cannot be, and beside other options that say how to think.
    """
    if policy is None and effort is None:
        return None
    from ponder.strategies.policy import BUILT_IN, load

    clash = [name for name in ("strategy", "think", "no_think", "compare") if _was_given(context, name)]
    if clash:
        named = "--policy" if effort is None else "--effort"
        raise InputError(f"{named} says how to think already", f"drop --{clash[0].replace('_', '-')}")
    chosen = BUILT_IN if policy is None else load(policy)
    strategy, bounds = chosen.chosen(effort)
    measured = None if _was_given(context, "budget") else bounds.tokens
    return Wanted(strategy, measured or budget, chosen.model)


def _was_given(context: typer.Context, option: str) -> bool:
    """Whether an option stands on the command line, and is not its default alone."""
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def check_finite(**numbers: float | None) -> None:
    """Raises InputError for an option that is no number: "nan" and "inf" can be typed too."""
    for name, number in numbers.items():
        if number is not None and not math.isfinite(number):
            raise InputError(f"--{name} {number} is no number", f"give one, such as --{name} 1")


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
    """Opens the model, fetching weights with a progress bar where they are missing.

    Raises InputError for options that cannot be, `Stopped` as soon as `stop` is set, and as engines do.
    """
    from ponder.chat.model import model_of
    from ponder.protocols import SamplingParams

    price = price_of(asking.price)
    check_finite(temperature=asking.temperature)
    try:
        SamplingParams(max_tokens=1, temperature=asking.temperature or 0.0)
    except ValueError as error:
        raise InputError(str(error), "give a --temperature such as 0.6") from None
    model = model_of(await _open(asking, stop), price)
    temperature = model.params.temperature if asking.temperature is None else asking.temperature
    params = replace(model.params, seed=asking.seed, temperature=temperature)
    return replace(model, params=params, stop=stop)


async def _open(asking: Asking, stop: asyncio.Event) -> Engine:
    from ponder.commands.progress import progress_bar
    from ponder.engine import open_engine
    from ponder.engine.download import silent

    with progress_bar() as bar:
        progress = _ending(silent if asking.quiet else bar, stop)
        opening = asyncio.ensure_future(open_engine(asking.model, adapters=asking.adapters, progress=progress))
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({opening, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not opening.done():
            opening.cancel()
            raise Stopped("stopped")
    return opening.result()


def _ending(report: Progress, stop: asyncio.Event) -> Progress:
    """`report`, but a download that it is called from ends once `stop` is set: its thread cannot be cancelled."""

    def reporting(what: str, done: int, total: int | None) -> None:
        if stop.is_set():
            raise Stopped("stopped")
        report(what, done, total)

    return reporting


@contextlib.contextmanager
def opened_store(asking: Asking) -> Iterator[Store | None]:
    """The database of traces, unless none is wanted."""
    if not asking.store:
        yield None
        return
    from ponder.ops.store import Store

    with Store.open() as store:
        yield store


def run(work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Runs a coroutine function with an event that Ctrl-C sets; a second Ctrl-C ends the program."""
    stop = asyncio.Event()
    asyncio.run(stoppable(work(stop), stop))


async def stoppable(work: Awaitable[T], stop: asyncio.Event) -> T:
    """The result of `work`, during which Ctrl-C sets `stop`."""
    with stopping(stop):
        return await work


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


def ignore(event: Event) -> None:
    """Shows nothing."""


async def solved(
    question: Question,
    model: Model,
    strategy: Strategy,
    budget: Budget,
    store: Store | None,
    show: Callable[[Event], None],
) -> Trace:
    """The trace of one request, whose events are shown as they come."""
    from ponder.solving import stream
    from ponder.types import Done

    events = stream(question, model=model, strategy=strategy, budget=budget, store=store)
    # Where showing fails, as into a closed pipe, the trace must be stored before the store is closed.
    async with contextlib.aclosing(events):
        async for event in events:
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


def check_text(text: str, name: str) -> None:
    """Raises InputError for bytes of the command line that are no UTF-8: Python keeps them as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name} is no UTF-8 text", "convert it to text first") from None


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
