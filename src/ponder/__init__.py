"""ponder: small open models that think before they answer, under a hard budget."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ponder.solving import asolve, open_model, solve, stream
    from ponder.types import Budget, Message, Question, Trace

__all__ = ["Budget", "Message", "Question", "Trace", "asolve", "open_model", "solve", "stream"]

# The module is not called `solve`: importing it would hide the function of that name.
_SOLVING = ("asolve", "open_model", "solve", "stream")


def __getattr__(name: str) -> Any:
    # Loaded when first used, so that `import ponder` and `ponder --help` stay quick.
    if name not in __all__:
        raise AttributeError(f"module 'ponder' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("ponder.solving" if name in _SOLVING else "ponder.types"), name)
