"""`quantkit run`: talk to a GGUF file in the terminal, for a quick look."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.cli.conversion_options import ThreadsOption
from quantkit.cli.options import Format, parse_gpu_layers
from quantkit.cli.output import Out, human_bytes, printable
from quantkit.errors import QuantkitError, UsageError
from quantkit.llamacpp.conversation import Answer, Conversation, converse
from quantkit.measurement.memory import gpu_devices
from quantkit.planning.layers import layers_or_all

_HELP = """/clear  forget what was said     /system TEXT  another system prompt
/bye    leave (or Ctrl-D)        Ctrl-C ends an answer
\"\"\" begins and ends a text of several lines"""
_QUOTES = '"""'
_WHY = {"length": "--max-tokens reached", "context": "the context is full", "asked": "stopped"}


def run(
    out: Out,
    model: Annotated[Path, typer.Argument(metavar="MODEL.gguf", help="A GGUF file.", show_default=False)],
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="Answer this and leave.", show_default="a conversation"),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", "-s", metavar="TEXT", help="The system prompt.", show_default="none")
    ] = None,
    gpu_layers: Annotated[
        str, typer.Option("--gpu-layers", metavar="auto|all|N", help="Layers on the GPU; auto: as many as fit.")
    ] = "auto",
    ctx: Annotated[
        int | None,
        typer.Option("--ctx", metavar="N", min=16, help="Tokens of context.", show_default="4096 or the model's"),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", metavar="N", min=1, help="Longest answer, in tokens.")
    ] = 1024,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0, help="0 is greedy.", show_default="the model's, or 0.8")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=0, show_default="the model's, or 40")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", min=0, max=1, show_default="the model's, or 0.95")] = None,
    min_p: Annotated[float | None, typer.Option("--min-p", min=0, max=1, show_default="the model's, or 0.05")] = None,
    repeat_penalty: Annotated[
        float | None, typer.Option("--repeat-penalty", min=0, show_default="the model's, or 1")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="The same answer every time.", show_default="random")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="No chat template: the model goes on where the text ends.")
    ] = False,
    threads: ThreadsOption = None,
    rpc: Annotated[
        list[str] | None,
        typer.Option("--rpc", metavar="HOST:PORT", help="A llama.cpp rpc-server whose devices count as GPUs; repeat."),
    ] = None,
) -> None:
    """Chat with a GGUF file, by llama.cpp.

    For a quick look at what was converted; it is no server. Without -p a conversation begins; text from a pipe is
    answered like -p. The answer alone goes to stdout.

    Example: quantkit run NAME-Q4_0.gguf -p "Why is the sky blue?"
    """
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().removesuffix("\n")
    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty; say something with -p TEXT")
    if prompt is None and out.format != Format.human:
        raise UsageError(f"--format {out.format.value} is for one answer; give a prompt with -p TEXT")
    asked = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "seed": seed,
    }
    fit_layers = gpu_layers == "auto"
    layers = None if fit_layers else parse_gpu_layers(gpu_layers, "auto, all, or a number")
    with converse(model, n_ctx=ctx, system=system, raw=raw, asked=asked) as conversation:
        if conversation.template is None and not raw:
            out.warn(f"{model.name} has no chat template: the text goes in as it is, and the model goes on with it")
        if fit_layers:
            layers = _layers_that_fit(model, conversation.n_ctx, rpc or [], out)
        out.note(f"loading {model.name} ...")
        conversation.open(gpu_layers=layers, n_threads=threads, rpc=rpc or [])
        if prompt is None:
            _converse(conversation, out, max_tokens)
        else:
            _answer(conversation, out, prompt, max_tokens)


def _answer(conversation: Conversation, out: Out, prompt: str, most: int) -> None:
    answer = conversation.say(prompt, most=most, show=_show if out.format == Format.human else lambda piece: None)
    if out.format == Format.human:
        print()
    out.note(_told(answer), "dim")
    out.document({"command": "run", "model": str(conversation.model), "prompt": prompt, **_document(answer)})


def _converse(conversation: Conversation, out: Out, most: int) -> None:
    """Until the user leaves."""
    _editing()
    out.note(f"{conversation.n_ctx} tokens of context; /help says what else there is", "dim")
    while True:
        try:
            text = _read()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        command, _, rest = text.strip().partition(" ")
        if command in ("/bye", "/exit", "/quit"):
            return
        if command == "/clear":
            conversation.clear()
        elif command == "/system":
            conversation.system = rest or None
        elif command in ("/help", "/?"):
            out.say(_HELP)
        elif command.startswith("/") and command[1:].isalpha() and not rest:
            out.warn(f"there is no {command}; /help says what there is")
        elif text.strip():
            _turn(conversation, out, text, most)


def _turn(conversation: Conversation, out: Out, text: str, most: int) -> None:
    try:
        with _interrupt_stops(conversation):
            answer = conversation.say(text, most=most, show=_show)
    except QuantkitError as error:
        if not conversation.alive:
            raise
        out.warn(str(error))
        return
    print()
    out.note(_told(answer), "dim")


@contextmanager
def _interrupt_stops(conversation: Conversation) -> Iterator[None]:
    """Ctrl-C ends the answer, not the conversation."""
    before = signal.signal(signal.SIGINT, lambda *_: conversation.stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _show(piece: str) -> None:
    sys.stdout.write(printable(piece).replace("\\t", "\t"))
    sys.stdout.flush()


def _read() -> str:
    line = input(">>> ")
    if not line.startswith(_QUOTES):
        return line
    lines = [line.removeprefix(_QUOTES)]
    while not lines[-1].endswith(_QUOTES) or (len(lines) == 1 and not lines[0]):
        lines.append(input("... "))
    return "\n".join(lines).removesuffix(_QUOTES)


def _editing() -> None:
    """Arrow keys and history in `input`, where Python was built with them."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return


def _told(answer: Answer) -> str:
    told = [f"{answer.tokens} tokens, {answer.tokens / max(answer.seconds, 1e-9):.1f} tokens/s"]
    told.append(
        f"prompt {answer.prompt_tokens} tokens, {answer.prompt_tokens / max(answer.prompt_seconds, 1e-9):.1f}/s"
    )
    return "; ".join(told + ([_WHY[answer.reason]] if answer.reason in _WHY else []))


def _document(answer: Answer) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "ended": answer.reason,
        "tokens": answer.tokens,
        "seconds": round(answer.seconds, 3),
        "prompt_tokens": answer.prompt_tokens,
        "prompt_seconds": round(answer.prompt_seconds, 3),
    }


def _layers_that_fit(model: Path, n_ctx: int, rpc: Sequence[str], out: Out) -> int | None:
    """The layers that the plan finds room for on the devices that llama.cpp sees."""
    devices = gpu_devices(model, rpc=rpc)
    if not devices:
        return 0
    free = sum(device.free for device in devices)
    layers = layers_or_all(model, n_ctx=n_ctx, vram=free, op_offload=not rpc)
    if layers is not None:
        names = ", ".join(device.name for device in devices)
        out.note(f"{layers} layers on {names}, which has {human_bytes(free)} free")
    return layers
