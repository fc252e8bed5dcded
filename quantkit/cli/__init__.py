"""What the user types: this room registers the commands and is the only one that prints."""

from typing import Annotated

import typer

from quantkit import __version__
from quantkit.cli import awq as awq_command
from quantkit.cli import convert as convert_command
from quantkit.cli import gguf as gguf_command
from quantkit.cli import gptq as gptq_command
from quantkit.cli import imatrix as imatrix_command
from quantkit.cli import inspect as inspect_command
from quantkit.cli import measure as measure_command
from quantkit.cli import ollama as ollama_command
from quantkit.cli import plan as plan_command
from quantkit.cli import run as run_command
from quantkit.cli import termux as termux_command
from quantkit.cli.errors import explain

app = typer.Typer(
    name="quantkit",
    help="One Hugging Face checkpoint in, every quantized format out: one pass, the memory of a few rows, and nothing"
    " unverified leaves.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but a check fell short.",
)


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


app.command("convert")(convert_command.convert)
app.command("gguf", epilog=gguf_command.EPILOG)(gguf_command.gguf)
app.command("awq")(awq_command.awq)
app.command("gptq")(gptq_command.gptq)
app.command("imatrix")(imatrix_command.imatrix)
app.command("measure")(measure_command.measure)
app.command("run")(run_command.run)
app.command("inspect")(inspect_command.inspect)
app.command("plan")(plan_command.plan)
app.command("ollama")(ollama_command.ollama)
app.command("termux")(termux_command.termux)


def main() -> None:
    """Run the command line; every failure becomes one sentence on stderr and an exit code."""
    with explain():
        app()
