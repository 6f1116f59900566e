"""The command line: every command of `ponder`, and what becomes of their errors."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import ponder
from ponder.commands import keys, models, prompts, runs, traces, train
from ponder.commands.ask import ask
from ponder.commands.asking import STOPPED
from ponder.commands.chat import chat
from ponder.commands.costs import costs
from ponder.commands.curve import curve
from ponder.commands.eval import evaluate
from ponder.commands.export import export
from ponder.commands.route import route
from ponder.commands.serve import serve
from ponder.commands.terminal import complain
from ponder.errors import PonderError

FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


class _Commands(TyperGroup):
    """Turns what ends a command into exit codes: a user's mistake gives one line on standard error and code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PonderError as error:
            complain(str(error))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            complain("stopped")
            raise typer.Exit(STOPPED) from None
        except OSError as error:
            # The reader of a pipe has left, as `| head` does: nobody is there to be told.
            gone = isinstance(error, BrokenPipeError)
            if not gone and error.errno not in FULL:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered cannot be written either
            if gone:
                raise typer.Exit(141) from None
            complain(f"the output cannot be written: {error.strerror}. Free disk space, or send it elsewhere.")
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Commands,
    help="Small open models that think before they answer, under a hard budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(ask)
app.command()(chat)
app.command()(serve)
app.command()(curve)
app.command("eval")(evaluate)
app.command()(route)
app.command()(export)
app.add_typer(train.app, name="train")
app.add_typer(models.app, name="models")
app.add_typer(traces.app, name="traces")
app.add_typer(runs.app, name="runs")
app.add_typer(prompts.app, name="prompts")
app.add_typer(keys.app, name="keys")
app.command()(costs)


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
    """Runs the command line."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as `<&-` does: its number must not go to the next file opened
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (lasts as long as we do)
    app()


if __name__ == "__main__":
    main()
