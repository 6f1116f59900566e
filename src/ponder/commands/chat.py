"""`ponder chat`: a conversation of many turns."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ponder.commands import asking
from ponder.commands.asking import Asking, Think, check_text, open_asked, opened_store, solved, stoppable, strategy_of
from ponder.commands.terminal import Display, complain, describe
from ponder.errors import InputError, PonderError
from ponder.types import Budget, Cost, Message, ask, assistant, from_dict, system, to_dict, user

if TYPE_CHECKING:
    from ponder.chat.model import Model
    from ponder.ops.store import Store
    from ponder.protocols import Strategy

HELP = """/budget N           tokens for each turn (now {budget})
/think WAY          on, off, trained or prompt (now {think})
/save FILE          write the conversation as JSON lines
/cost               what it has cost so far
/undo               forget the last turn
/help  /quit"""


@dataclass
class Conversation:
    """What has been said, how to go on, and what it has cost."""

    messages: list[Message]
    budget: int
    think: str
    strategy: Strategy | None = None
    """That of an effort; what is said about thinking later goes before it."""
    spent: list[Cost] = field(default_factory=list)
    over: bool = False

    def command(self, line: str) -> str:
        """Carries out a line that begins with a slash; returns what to print. Raises InputError."""
        name, _, argument = line[1:].strip().partition(" ")
        argument = argument.strip()
        match name:
            case "quit" | "exit" | "q":
                self.over = True
                return ""
            case "help" | "?":
                return HELP.format(budget=self.budget, think=self.think)
            case "cost":
                return describe(sum(self.spent, Cost()))
            case "budget":
                return self._budget(argument)
            case "think":
                return self._think(argument)
            case "save":
                return self._save(argument)
            case "undo":
                return self._undo()
        raise InputError(f"/{name} is no command", "see /help")

    def _budget(self, argument: str) -> str:
        try:
            tokens = int(argument)
            Budget(tokens)
        except ValueError:
            raise InputError(f"{argument!r} is no budget", "try /budget 1000") from None
        self.budget = tokens
        return f"{self.budget} tokens for each turn"

    def _think(self, argument: str) -> str:
        if argument not in ("on", "off", "trained", "prompt"):
            raise InputError(f"/think {argument} says nothing", "try /think on, off, trained or prompt")
        self.think, self.strategy = argument, None
        return f"thinking {argument}"

    def _save(self, argument: str) -> str:
        if not argument:
            raise InputError("/save needs a file", "try /save chat.jsonl")
        lines = "".join(json.dumps(to_dict(m), ensure_ascii=False) + "\n" for m in self.messages)
        try:
            Path(argument).expanduser().write_text(lines, encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {argument}: {error.strerror}", "choose another file") from None
        return f"{len(self.messages)} messages in {argument}"

    def _undo(self) -> str:
        while self.messages and self.messages[-1].role == "assistant":
            self.messages.pop()
        if self.messages and self.messages[-1].role == "user":
            self.messages.pop()
        return f"{len(self.messages)} messages"


def load(path: Path) -> list[Message]:
    """The messages of a conversation that /save wrote. Raises InputError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [from_dict(Message, json.loads(line)) for line in lines if line.strip()]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "give a file that /save wrote") from None
    except (ValueError, AttributeError):
        raise InputError(f"{path} is no saved conversation", "give a file that /save wrote") from None


def chat(
    context: typer.Context,
    model: asking.ModelOption = asking.DEFAULT_MODEL,
    budget: asking.BudgetOption = asking.DEFAULT_BUDGET,
    think: asking.ThinkOption = Think.auto,
    no_think: asking.NoThinkOption = False,
    effort: asking.EffortOption = None,
    policy: asking.PolicyOption = None,
    adapter: asking.AdapterOption = None,
    resume: Annotated[Path | None, typer.Option("--load", help="Go on with a conversation that /save wrote.")] = None,
    temperature: asking.TemperatureOption = None,
    seed: asking.SeedOption = None,
    system_message: asking.SystemOption = None,
    price: asking.PriceOption = None,
    quiet: asking.QuietOption = False,
    no_store: asking.NoStoreOption = False,
) -> None:
    """Talk with a model, turn by turn. /help lists what else can be said."""
    strategy_of(think, no_think)  # raises where they contradict each other
    wanted = asking.wanted_of(context, policy, effort, budget)
    budget = budget if wanted is None else wanted.tokens
    if budget < 1:
        raise InputError(f"a budget of {budget} tokens is none", "give at least 16")
    if resume and system_message:
        raise InputError("--load brings a system message of its own", "drop --system")
    check_text(system_message or "", "the system message")
    messages = load(resume) if resume else [system(system_message)] if system_message else []
    way = "off" if no_think else "on" if think is Think.auto else think.value
    conversation = Conversation(messages, budget, way, None if wanted is None else wanted.strategy)
    options = Asking(model, tuple(adapter or ()), temperature, seed, price, not no_store, quiet)
    stop = asyncio.Event()
    # A loop that only runs while a model works: at the prompt, Ctrl-C and Ctrl-D reach `input` as they always do.
    with opened_store(options) as store, asyncio.Runner() as runner:
        opened = runner.run(stoppable(open_asked(options, stop), stop))
        try:
            if wanted is not None and not quiet:
                wanted.check(opened)
            _talk(conversation, opened, stop, store, quiet, runner)
        finally:
            runner.run(opened.engine.close())


def _talk(
    conversation: Conversation, model: Model, stop: asyncio.Event, store: Store | None, quiet: bool,
    runner: asyncio.Runner,
) -> None:  # fmt: skip
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (arrow keys and history, by being imported)
        print(f"{model.name}: /help for help, Ctrl-D to leave", file=sys.stderr)
    while not conversation.over and (line := _read_line()) is not None:
        stop.clear()
        try:
            if line.startswith("/"):
                if said := conversation.command(line):
                    print(said, file=sys.stderr)
            elif line.strip():
                runner.run(stoppable(_turn(conversation, line, model, store, quiet), stop))
        except PonderError as error:
            complain(str(error))


def _read_line() -> str | None:
    """The next line, None at the end. On a terminal, Ctrl-C drops what was typed of it."""
    at_terminal = sys.stdin.isatty()
    try:
        return input("> " if at_terminal else "")
    except EOFError:
        if at_terminal:
            print(file=sys.stderr)
        return None
    except KeyboardInterrupt:
        if not at_terminal:
            raise
        print("\n/quit or Ctrl-D to leave", file=sys.stderr)
        return ""
    except UnicodeDecodeError:
        raise InputError("standard input is no UTF-8 text", "convert it to text first") from None


async def _turn(conversation: Conversation, line: str, model: Model, store: Store | None, quiet: bool) -> None:
    messages = [*conversation.messages, user(line)]
    think = Think(conversation.think) if conversation.think in ("trained", "prompt") else Think.auto
    strategy = conversation.strategy or strategy_of(think, conversation.think == "off")
    display = Display(quiet, several=getattr(strategy, "several", False))
    try:
        trace = await solved(ask(messages), model, strategy, Budget(conversation.budget), store, display.show)
    finally:
        display.end()
    conversation.spent.append(trace.cost)
    # The thinking stays out of the history: templates drop it, and it would fill the context.
    if trace.answer:
        conversation.messages = [*messages, assistant(trace.answer)]
