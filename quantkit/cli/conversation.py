"""The terminal loop of `quantkit run`: read a line, stream the answer, obey the commands that begin with a slash."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from quantkit.cli.options import Format
from quantkit.cli.output import Out, printable
from quantkit.errors import QuantkitError
from quantkit.llamacpp.conversation import Answer, Conversation

_HELP = """/clear  clear the conversation   /system TEXT  set the system prompt
/bye    leave (or Ctrl-D)        Ctrl-C ends an answer
\"\"\" begins and ends a text of several lines"""
_QUOTES = '"""'
_REASONS = {"length": "--max-tokens reached", "context": "the context is full", "asked": "stopped"}


def answer_once(conversation: Conversation, out: Out, prompt: str, max_tokens: int) -> None:
    """Answer one prompt: the text for people as it comes, or one document."""
    human = out.format == Format.human
    answer = conversation.say(prompt, most=max_tokens, show=_show if human else lambda piece: None)
    if human:
        print()
    out.note(_speed(answer), "dim")
    paths_by_kind = {"images": conversation.images, "sounds": conversation.sounds}
    files: dict[str, Any] = {kind: [str(path) for path in paths] for kind, paths in paths_by_kind.items() if paths}
    files |= {"mmproj": str(conversation.mmproj)} if files else {}
    facts = {"model": str(conversation.model), "prompt": prompt, **files}
    out.document({"command": "run", **facts, **_document(answer)})


def talk(conversation: Conversation, out: Out, max_tokens: int) -> None:
    """Converse at a terminal until the user leaves."""
    _enable_line_editing()
    out.note(f"{conversation.n_ctx} tokens of context; /help lists the commands", "dim")
    while True:
        try:
            text = _read()
            text.encode()  # raises UnicodeError for bytes that Python kept
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        except UnicodeError:
            out.warn("this line is not UTF-8 text; type it again, or set the terminal to UTF-8")
            continue
        command, _, argument = text.strip().partition(" ")
        if command in ("/bye", "/exit", "/quit"):
            return
        if command == "/clear":
            conversation.clear()
        elif command == "/system":
            conversation.system = argument or None
        elif command in ("/help", "/?"):
            out.say(_HELP)
        elif command.startswith("/") and command[1:].isalpha() and not argument:
            out.warn(f"unknown command {command}; /help lists the commands")
        elif text.strip():
            _turn(conversation, out, text, max_tokens)


def _turn(conversation: Conversation, out: Out, text: str, max_tokens: int) -> None:
    try:
        with _interrupt_stops(conversation):
            answer = conversation.say(text, most=max_tokens, show=_show)
    except QuantkitError as error:
        if not conversation.alive:
            raise
        out.warn(str(error))
        return
    print()
    out.note(_speed(answer), "dim")


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


def _enable_line_editing() -> None:
    """Enable arrow keys and history in `input`, if Python is built with readline."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return


def _speed(answer: Answer) -> str:
    """Tokens and tokens per second of an answer and its prompt, and why the answer ended."""
    parts = [
        f"{answer.tokens} tokens, {answer.tokens / max(answer.seconds, 1e-9):.1f} tokens/s",
        f"prompt {answer.prompt_tokens} tokens, {answer.prompt_tokens / max(answer.prompt_seconds, 1e-9):.1f}/s",
    ]
    if answer.drafted:
        share = f"{answer.accepted / answer.drafted:.0%}"
        parts.append(f"{answer.accepted} of {answer.drafted} drafted tokens accepted ({share})")
    return "; ".join(parts + ([_REASONS[answer.reason]] if answer.reason in _REASONS else []))


def _document(answer: Answer) -> dict[str, Any]:
    drafts = {"drafted": answer.drafted, "accepted": answer.accepted} if answer.drafted else {}
    return {
        "answer": answer.text,
        "ended": answer.reason,
        "tokens": answer.tokens,
        "seconds": round(answer.seconds, 3),
        "prompt_tokens": answer.prompt_tokens,
        "prompt_seconds": round(answer.prompt_seconds, 3),
        **drafts,
    }
