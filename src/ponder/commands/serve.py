"""`ponder serve`: one endpoint for OpenAI's and Anthropic's clients, that thinks under a budget and keeps the books."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ponder.commands.asking import DEFAULT_MODEL, AdapterOption, _complete_model, _was_given
from ponder.commands.terminal import complain

HOST, PORT = "127.0.0.1", 8333


def serve(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Upstreams, routes, and these options: TOML.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            envvar="PONDER_MODEL",
            help="A known name, a GGUF file, hf:FOLDER, openai:URL#NAME or scripted:FILE; again for more.",
            autocompletion=_complete_model,
        ),
    ] = None,
    adapters: AdapterOption = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="What each effort means, as ponder curve found it.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Where to listen; beyond this machine only with keys.")] = HOST,
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="0 takes a free one.")] = PORT,
    keys: Annotated[
        bool | None, typer.Option("--keys/--no-keys", help="Ask for a key; by default where there are any.")
    ] = None,
    running: Annotated[int, typer.Option("--running", min=1, help="Requests at work at once.")] = 64,
    waiting: Annotated[int, typer.Option("--waiting", min=0, help="Requests that may wait; more are refused.")] = 256,
    drain: Annotated[float, typer.Option("--drain", min=0, help="Seconds for requests at work to end in.")] = 30.0,
    store: Annotated[bool, typer.Option("--store/--no-store", help="Keep a trace of each answer.")] = True,
    reasoning: Annotated[
        str, typer.Option("--reasoning-field", help="reasoning_content, reasoning, or both: where thinking is told.")
    ] = "reasoning_content",
    log: Annotated[
        Path | None, typer.Option("--log", metavar="FILE", help="A JSON line a request; - is standard error.")
    ] = None,
) -> None:
    """Serve models to OpenAI and Anthropic clients.

    ponder serve
    ponder serve -m ponder-135m -m openai:http://127.0.0.1:8000/v1#Qwen/Qwen3-4B --policy policy.toml

    Then: base_url=http://127.0.0.1:8333/v1 for OpenAI's clients, http://127.0.0.1:8333 for Anthropic's, and a browser.
    """
    from ponder.server import config as configuration
    from ponder.server.build import Settings, serving

    told: dict[str, Any] = {
        "models": tuple(models or ()),
        "adapters": tuple(adapters or ()),
        "policy": policy,
        "host": host,
        "port": port,
        "keys": keys,
        "running": running,
        "waiting": waiting,
        "drain": drain,
        "store": store,
        "reasoning_field": reasoning,
        "log": log,
    }
    read = None if config is None else configuration.read(config)
    if read is not None:  # what stands on the command line goes before the file
        option = {"reasoning_field": "reasoning"}
        given = {name: value for name, value in told.items() if _was_given(context, option.get(name, name))}
        told = {**read.settings(), **given}
    if not told["models"] and (read is None or not read.upstream):
        told["models"] = (DEFAULT_MODEL,)
    serving(Settings(**told, config=read), told=complain)
