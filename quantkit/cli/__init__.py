"""The command line: one module per command, loaded when it runs. Only this room prints."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from importlib import import_module
from inspect import Parameter, signature
from io import TextIOWrapper
from shlex import quote
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from quantkit import __version__
from quantkit.cli.empty_values import refuse_empty
from quantkit.cli.errors import Interrupted, explain
from quantkit.cli.loading import begin_loading, end_loading
from quantkit.cli.option_numbers import wrong_number
from quantkit.cli.options import DebugOption, Format, FormatOption, MirrorOption, use_mirror
from quantkit.cli.output import Out
from quantkit.cli.signals import interruptible
from quantkit.errors import UsageError
from quantkit.system.memory import address_space_limit

_TYPERS_INTERRUPTED = 130
_LEAST_ADDRESS_SPACE, _ROOMY_ADDRESS_SPACE = 512_000_000, 4 << 30

COMMANDS = {
    "convert": "Convert a source to every listed type in one pass, checked.",
    "gguf": "Convert a source to GGUF: every listed type in one pass, checked.",
    "awq": "Quantize a checkpoint to AWQ, in AutoAWQ's GEMM format.",
    "gptq": "Quantize a checkpoint to GPTQ, in AutoGPTQ's format.",
    "imatrix": "Compute an importance matrix over a calibration text.",
    "lora": "Write a LoRA adapter as a GGUF that llama.cpp loads beside its base model.",
    "measure": "Measure what quantization cost: perplexity, KL divergence, memory, speed.",
    "plan": "Show which format and placement fit a machine, from headers alone.",
    "run": "Chat with a GGUF file, by llama.cpp.",
    "serve": "Serve a GGUF file with an OpenAI-compatible API and a web page to chat in.",
    "inspect": "Show what a checkpoint or an output is, from headers alone.",
    "ollama": "Write Modelfiles and publish a GGUF on Ollama.",
    "card": "Write a model card for a folder of outputs.",
    "termux": "Write the script that installs a model on an Android phone.",
    "bake": "Run a recipe: convert, measure, card and publish one model.",
}
"""The commands in the order of --help, each with the first line of its docstring."""
_OTHER_NAMES = {"chat": ["run"], "quantize": ["convert"], "perplexity": ["measure"], "info": ["inspect"]}
"""Names that other programs have for a command."""


class _Commands(TyperGroup):
    """Commands that are imported only when one of them is run: importing all of them takes a second."""

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        del ctx
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS:
            from difflib import get_close_matches

            for nearest in _OTHER_NAMES.get(args[0], []) or get_close_matches(args[0], COMMANDS, n=1):
                ctx.fail(f"No such command {args[0]!r}; the nearest is {nearest}.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            # typer would end it without a message
            raise Interrupted(getattr(interrupt, "number", signal.SIGINT)) from interrupt


class _Command(TyperCommand):
    """A command whose help shows its options under the headings that they name (typer's `rich_help_panel`)."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # a prompt without its option is told from other words that are too many
        ctx.allow_extra_args = any("--prompt" in parameter.opts for parameter in self.params)
        try:
            if not ctx.resilient_parsing:
                refuse_empty(self.params, self.make_parser(ctx).parse_args(args=list(args))[0])
            more = super().parse_args(ctx, args)
            if more and not ctx.resilient_parsing:  # a shell completes what is not whole yet
                raise UsageError(f"unexpected argument {more[0]!r}; pass the prompt with -p {quote(' '.join(more))}")
            return more
        except typer.BadParameter as error:
            sentence = wrong_number(error)
            if sentence is not None:
                raise UsageError(sentence) from error
            # what pydantic, by which typer reads values, puts before its sentence on a choice
            error.message = error.message.removeprefix("Value error, ")
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        # typer puts a required argument into braces, and dots after the dots of its name
        pieces = [piece.strip("{}").replace("}...", "") for piece in super().collect_usage_pieces(ctx)]
        return [piece.replace("...]...", "...]") for piece in pieces]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        headings: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            usual = "Options"
            if parameter.param_type_name == "argument":
                # typer adds the name of a Python type
                usual, record = "Arguments", (record[0].partition(" <")[0], record[1])
            headings.setdefault(getattr(parameter, "rich_help_panel", None) or usual, []).append(record)
        # what every command has comes last
        headings["Options"] = headings.pop("Options")
        for heading, records in headings.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def _typer(**settings: Any) -> typer.Typer:
    return typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


app = _typer(
    name="quantkit",
    cls=_Commands,
    help="Convert one Hugging Face checkpoint to every quantized format in one pass; measure, plan and publish the"
    " results.",
    no_args_is_help=True,
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but a check fell short.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"quantkit {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version


def load_command(name: str) -> TyperCommand:
    """The command NAME: function NAME of module quantkit.cli.NAME; the module's EPILOG follows its help."""
    module = import_module(f"quantkit.cli.{name}")
    single = _typer(add_completion=False)
    single.command(name, cls=_Command, epilog=getattr(module, "EPILOG", None))(_with_output(getattr(module, name)))
    command = typer.main.get_command(single)
    assert isinstance(command, TyperCommand)
    return command


def _with_output(function: Callable[..., None]) -> Callable[..., None]:
    """`function(out, ...)` as a command whose `out` comes from --format; every command has --format and --debug.

    A command that has --offline reads from the hub, so it has --mirror too.
    """

    @wraps(function)
    def command(format_: Format, debug: bool, **arguments: Any) -> None:
        if (mirror := arguments.pop("mirror", None)) is not None:
            use_mirror(mirror)
        del debug  # read by quantkit.cli.errors, which also sees errors of the parser
        end_loading()
        function(Out(format_), **arguments)

    _, *command_parameters = signature(function, eval_str=True).parameters.values()
    shared = [
        Parameter("format_", Parameter.KEYWORD_ONLY, default=Format.human, annotation=FormatOption),
        Parameter("debug", Parameter.KEYWORD_ONLY, default=False, annotation=DebugOption),
    ]
    if any(parameter.name == "offline" for parameter in command_parameters):
        shared.insert(0, Parameter("mirror", Parameter.KEYWORD_ONLY, default=None, annotation=MirrorOption))
    parameters = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in command_parameters] + shared
    command.__signature__ = signature(function).replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _refuse_other_bytes(words: Sequence[str]) -> None:
    """Raise UsageError for a word that is not UTF-8: a JSON document and a GGUF cannot hold it."""
    for word in words:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(f"{word} is not UTF-8 text; write UTF-8, or rename the file or the folder") from error


def _require_address_space() -> None:
    """Refuse a limit (ulimit -v) under which libraries abort while they load; let BLAS have one thread under a low one.

    OpenBLAS reserves memory for every thread when it is loaded, and ends the process where it gets none.
    """
    soft = address_space_limit()
    if soft is None:
        return
    if soft < _LEAST_ADDRESS_SPACE:
        raise UsageError(
            f"the address space is limited to {soft / 1e6:.0f} MB, and a command needs at least"
            f" {_LEAST_ADDRESS_SPACE / 1e6:.0f} MB; raise the limit with ulimit -v"
        )
    if soft < _ROOMY_ADDRESS_SPACE:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def _print_utf8() -> None:
    """Print UTF-8 and plain newlines on Windows too, whose pipes have an old code page and two characters a newline."""
    if os.name == "nt":
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(encoding="utf-8", newline="\n")


def _open_closed_streams() -> None:
    """Open the null device for a standard stream that is closed (`>&-`): no other file may get its descriptor."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            with suppress(OSError):
                os.fstat(number)
                number = null  # the descriptor has another file already
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - for the whole process


def main() -> None:
    """Run the command line; every failure becomes one sentence on stderr and an exit code."""
    _open_closed_streams()
    _print_utf8()
    begin_loading()
    with explain(), interruptible() as received:
        _refuse_other_bytes(sys.argv[1:])
        _require_address_space()
        try:
            app(prog_name="quantkit" if "_QUANTKIT_COMPLETE" not in os.environ else None, args=sys.argv[1:])
        except SystemExit as end:
            # typer ends without a message if the signal comes before or after the command itself
            if end.code == _TYPERS_INTERRUPTED and received.number is not None:
                raise Interrupted(received.number) from None
            raise
