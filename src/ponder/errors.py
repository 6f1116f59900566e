"""What can go wrong, one class a boundary. Every message says what is wrong and what mends it."""

from __future__ import annotations


class PonderError(Exception):
    """Anything that a user can mend. `exit_code` is what the command line ends with."""

    exit_code = 2

    def __init__(self, problem: str, mend: str = "") -> None:
        self.problem = problem
        self.mend = mend
        super().__init__(f"{problem}. {mend}".rstrip(". ") + "." if mend else problem)


class InputError(PonderError):
    """The question, a file or an option cannot be used."""


class BudgetTooSmall(InputError):
    """No answer fits into the budget."""


class ContextOverflow(InputError):
    """Prompt and answer do not fit into the model's context."""


class MissingExtra(PonderError):
    """A part of ponder needs a package that is not installed."""


class WeightsError(PonderError):
    """Weights are unknown, damaged, or cannot be fetched or stored."""


class StoreError(PonderError):
    """A file of ponder's own cannot be opened, read or written: traces, the ledger with its keys, prompts, drift."""


class TrainingError(PonderError):
    """Training cannot go on, or cannot be taken up again; what was done until then is kept."""


class Unsupported(PonderError):
    """The engine cannot do what was asked of it."""


class EngineError(PonderError):
    """The engine failed. `retryable` says whether the same call may succeed later."""

    retryable = False


class EngineUnavailable(EngineError):
    """Nothing answered where the engine should be."""

    retryable = True


class EngineDisconnected(EngineError):
    """The engine went away in the middle of a stream."""

    retryable = True


class EngineTimeout(EngineError):
    """The engine was silent for too long."""

    retryable = True


class RateLimited(EngineError):
    """The server asked to come back later; `after` holds the seconds, where it said."""

    retryable = True

    def __init__(self, problem: str, mend: str = "", after: float | None = None) -> None:
        super().__init__(problem, mend)
        self.after = after


class GarbledReply(EngineError):
    """The engine said something that cannot be understood."""


class NoAnswer(EngineError):
    """The model ended without an answer although the budget allowed one."""
