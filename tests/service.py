"""The whole server as `ponder serve` has it, with scripted engines, for clients of any kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from serving import Serving, served

from ponder.chat.model import model_of
from ponder.engine.scripted import Reply, ScriptedEngine, script
from ponder.server import build
from ponder.server.app import App
from ponder.server.backend import Backend
from ponder.server.local import Local
from ponder.strategies.policy import Policy

THOUGHT = "<think>2 + 2 is 4.</think>The answer is 4."


def scripted(reply: Reply | str, name: str = "m", **settings: Any) -> Local:
    """A backend of ours whose model says `reply`, or the same text always."""
    if isinstance(reply, str):
        reply = script({"version": 1, "otherwise": reply})
    return Local(model_of(ScriptedEngine(reply, **settings)), name=name)


def answers(replies: dict[str, str | Sequence[str]], otherwise: str = THOUGHT, **settings: Any) -> Local:
    """A backend that says what belongs to the first of some words that its prompt holds; sample i its i-th text."""
    entries = [{"when": word, "say": text} for word, text in replies.items()]
    return scripted(script({"version": 1, "replies": entries, "otherwise": otherwise}), **settings)


@contextmanager
def service(
    make: Callable[[], Sequence[Backend]] = tuple, models: Sequence[str] = (), **settings: Any
) -> Iterator[Serving]:
    """A server of the backends that `make` makes, and of models by name; closed with everything in it."""
    real = build._local

    async def begin() -> tuple[App, Callable[[bool], None]]:
        own = {backend.name: backend for backend in make()}

        async def local(name: str, settings: build.Settings, policy: Policy | None) -> Backend:
            return own.get(name) or await real(name, settings, policy)

        stack = AsyncExitStack()
        with patch.object(build, "_local", local):
            server = await stack.enter_async_context(build.built(build.Settings(models=(*own, *models), **settings)))
        server.app.on_close.append(stack.aclose)
        return server.app, server.on_signal

    with served(begin) as serving:
        yield serving
