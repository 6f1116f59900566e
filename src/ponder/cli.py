"""The command line: `ponder ask`, `chat`, `models`, `traces`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import ponder
from ponder.commands import models, traces
from ponder.commands.ask import ask
from ponder.commands.asking import STOPPED
from ponder.commands.chat import chat
from ponder.commands.terminal import complain
from ponder.errors import PonderError

app = typer.Typer(
    help="Small open models that think before they answer, under a hard budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(ask)
app.command()(chat)
app.add_typer(models.app, name="models")
app.add_typer(traces.app, name="traces")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ponder {ponder.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line: a user's mistake gives one line on standard error and exit code 2."""
    try:
        app()
    except PonderError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        complain("stopped")
        sys.exit(STOPPED)
    except BrokenPipeError:
        # The reader has left, as `| head` does: nobody is there to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
