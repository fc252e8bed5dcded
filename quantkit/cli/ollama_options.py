"""Read and check the options of `quantkit ollama`."""

from pathlib import Path

from quantkit.chat import BUILT_IN, built_in
from quantkit.errors import UsageError
from quantkit.publish.card.metadata import LICENSES
from quantkit.publish.ollama.overrides import Overrides, check_parameter, typed_parameter

NONE = "none"
_ROLES = ("system", "user", "assistant")


def read_overrides(
    parameters: list[str] | None,
    ctx: int | None,
    num_gpu: int | None,
    system: str | None,
    licenses: list[str] | None,
    messages: list[str] | None,
    chat_template: str | None,
) -> Overrides:
    """The overrides that the options give.

    Raises:
        UsageError: a parameter, message, template or file is not valid.
    """
    pairs = [typed_parameter(text, "--parameter") for text in parameters or ()]
    for option, key, value in (("--ctx", "num_ctx", ctx), ("--gpu-layers", "num_gpu", num_gpu)):
        if value is not None:
            if any(name == key for name, _ in pairs):
                raise UsageError(f"{option} and --parameter {key} set the same value; give one of them")
            pairs.append((key, check_parameter(key, value, option)))
    return Overrides(
        parameters=tuple(pairs),
        system=system,
        licenses=tuple(_license(text) for text in licenses or ()),
        messages=tuple(_message(text) for text in messages or ()),
        chat_template=_template(chat_template),
    )


def license_is_file(text: str) -> bool:
    """Whether a value of --license is a file: not an SPDX id, and a file of that name exists."""
    return text.lower() not in LICENSES and Path(text).is_file()


def license_name(text: str) -> str:
    """The name of the license in --license: the id or name itself, or the first line with text of the FILE."""
    if not license_is_file(text):
        return text
    lines = [line.strip() for line in _read(Path(text), "--license").splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"--license {text} is empty; pass an SPDX id or a file with text")
    return lines[0]


def _license(text: str) -> str:
    """The text of LICENSE in a Modelfile: an SPDX id as it is, else the content of a file."""
    return text if text.lower() in LICENSES else _read(Path(text), "--license")


def _template(name: str | None) -> str | None:
    if name is None or name == NONE:
        return None if name is None else ""
    if name in BUILT_IN:
        return BUILT_IN[name].text
    if not Path(name).is_file():
        return built_in(name).text  # its error lists the built-in names
    text = _read(Path(name), "--chat-template")
    if not text.strip():
        raise UsageError(f"the chat template {name} is empty; pass 'none' to leave the template out")
    return text


def _read(path: Path, option: str) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {option} {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {path} is not UTF-8 text; save it as UTF-8") from error


def _message(text: str) -> tuple[str, str]:
    role, equals, content = text.partition("=")
    if not equals or role not in _ROLES or not content:
        raise UsageError(f"--message {text!r} is not ROLE=TEXT; the role must be one of {', '.join(_ROLES)}")
    return role, content
