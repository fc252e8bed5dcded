"""What the user types: this room registers the commands and is the only one that prints."""

import importlib
import os
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from quantkit import __version__
from quantkit.cli.errors import Interrupted, explain


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Interrupted from interrupt


app = typer.Typer(
    name="quantkit",
    cls=_Commands,
    help="One Hugging Face checkpoint in, every quantized format out: one pass, the memory of a few rows, and nothing"
    " unverified leaves.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but a check fell short.",
)


COMMANDS = (
    "convert",
    "gguf",
    "awq",
    "gptq",
    "imatrix",
    "measure",
    "plan",
    "run",
    "inspect",
    "ollama",
    "card",
    "termux",
    "bake",
)
"""In the order of --help."""


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"quantkit {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    del version


def _register(names: Iterable[str]) -> None:
    """Make these commands known: NAME is the function NAME of the module NAME, its EPILOG follows its help."""
    known = {command.name for command in app.registered_commands}
    for name in names:
        if name not in known:
            module = importlib.import_module(f"quantkit.cli.{name}")
            app.command(name, epilog=getattr(module, "EPILOG", None))(getattr(module, name))


def main() -> None:
    """Run the command line; every failure becomes one sentence on stderr and an exit code.

    Only the command that is asked for is loaded: all of them take a second.
    """
    with explain():
        asked = sys.argv[1] if len(sys.argv) > 1 else ""
        completing = "_QUANTKIT_COMPLETE" in os.environ
        _register([asked] if asked in COMMANDS and not completing else [] if asked == "--version" else COMMANDS)
        app()
