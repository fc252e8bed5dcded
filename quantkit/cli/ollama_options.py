"""What the options of `quantkit ollama` ask for, read and judged."""

from pathlib import Path

from quantkit.chat import BUILT_IN, built_in
from quantkit.errors import UsageError
from quantkit.publish.ollama.overrides import Overrides, check_parameter, typed_parameter

NONE = "none"
_ROLES = ("system", "user", "assistant")


def read_overrides(
    parameters: list[str] | None,
    ctx: int | None,
    num_gpu: int | None,
    system: str | None,
    licenses: list[Path] | None,
    messages: list[str] | None,
    chat_template: str | None,
) -> Overrides:
    """The options as one thing.

    Raises:
        UsageError: a parameter, message, template or file that is none.
    """
    found = [typed_parameter(text, "--parameter") for text in parameters or ()]
    for option, key, value in (("--ctx", "num_ctx", ctx), ("--num-gpu", "num_gpu", num_gpu)):
        if value is not None:
            if any(each == key for each, _ in found):
                raise UsageError(f"{option} and --parameter {key} both say it; give one")
            found.append((key, check_parameter(key, value, option)))
    return Overrides(
        parameters=tuple(found),
        system=system,
        licenses=tuple(_read(path, "--license") for path in licenses or ()),
        messages=tuple(_message(text) for text in messages or ()),
        chat_template=_template(chat_template),
    )


def _template(asked: str | None) -> str | None:
    if asked is None or asked == NONE:
        return None if asked is None else ""
    if asked in BUILT_IN:
        return BUILT_IN[asked].text
    if not Path(asked).is_file():
        return built_in(asked).text  # says which there are
    text = _read(Path(asked), "--chat-template")
    if not text.strip():
        raise UsageError(f"the chat template {asked} is empty; 'none' leaves the template out")
    return text


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {option} {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {path} is not UTF-8 text") from error


def _message(text: str) -> tuple[str, str]:
    role, equals, content = text.partition("=")
    if not equals or role not in _ROLES or not content:
        raise UsageError(f"--message {text!r} is not ROLE=TEXT with the role {', '.join(_ROLES)}")
    return role, content
