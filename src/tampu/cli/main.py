"""The `tampu` command: mounts the subcommands and turns our errors into one sentence and exit status 1."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tampu import __version__
from tampu.cli.messages import sentence
from tampu.cli.models import models
from tampu.cli.run import run
from tampu.cli.serve import serve
from tampu.cli.token import app as token_app
from tampu.cli.worker import worker
from tampu.core.errors import TampuError

app = typer.Typer(
    name="tampu",
    help="Cloudflare Workers AI's llama-3.1-8b-instruct-fast on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help, and 0.1 s less at every start
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(run)
app.command()(models)
app.command()(worker)
app.add_typer(token_app, name="token")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"tampu {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Cloudflare Workers AI's llama-3.1-8b-instruct-fast on your own machine."""


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except TampuError as error:
        typer.secho(f"tampu: {sentence(error)}", fg=typer.colors.RED, err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
