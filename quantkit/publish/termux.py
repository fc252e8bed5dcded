"""Write the settings of a model into termux/termux.sh, the bash script that installs and runs it on a phone.

The settings are single-quoted, so bash does not interpret them. A character that a script cannot contain is an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path

from quantkit.errors import ModelfileError, OutputError, UsageError
from quantkit.files import make_folder, write_atomically
from quantkit.publish.ollama.modelfile import Modelfile, write_modelfile
from quantkit.publish.ollama.parameters import ParameterValue

BEGIN = "# >>> settings"
END = "# <<< settings"
PHONE_CHOOSES = {"num_ctx": "--ctx", "num_batch": "", "num_thread": "the script's --threads"}
"""Parameters that the script sets on the phone -> the option that sets them instead."""

_LLAMA = {
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "typical_p": "--typical",
    "repeat_last_n": "--repeat-last-n",
    "repeat_penalty": "--repeat-penalty",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
    "seed": "--seed",
    "num_predict": "--predict",
    "num_keep": "--keep",
}


@dataclass(frozen=True)
class Settings:
    """The settings of the script; comments in the script describe each one.

    Attributes:
        memory: (context in tokens, batch in tokens, bytes of the running model), smallest first.
    """

    name: str = ""
    gguf: str = ""
    model_bytes: int | None = None
    model_sha256: str = ""
    memory: Sequence[tuple[int, int, int]] = field(default=())
    ctx: int | None = None
    modelfile: str = ""
    llama_flags: str = ""

    def texts(self) -> dict[str, str]:
        """The values of the script's variables, by name."""
        values = {field.name.upper(): getattr(self, field.name) for field in fields(self)}
        values["MEMORY"] = " ".join(":".join(map(str, entry)) for entry in self.memory)
        return {name: "" if value is None else str(value) for name, value in values.items()}


def script() -> str:
    """The text of termux/termux.sh, without settings."""
    return (files("quantkit.publish") / "termux.sh").read_text("utf-8")


def fill_in(text: str, settings: Settings) -> str:
    """The script `text` with `settings` between its two marks.

    Raises:
        UsageError: a value has a character that a script cannot contain, or a name or address has two lines.
    """
    start, end = text.index(BEGIN), text.index(END)
    values = settings.texts()
    lines = text[start:end].splitlines()
    for number, line in enumerate(lines):
        name, equals, _ = line.partition("=")
        if equals and name in values:
            lines[number] = f"{name}={quote(values.pop(name), name)}"
    assert not values, f"the script has no {', '.join(values)}"
    return text[:start] + "\n".join(lines) + "\n" + text[end:]


def write_script(path: Path, text: str, *, force: bool) -> None:
    """Write the script as an executable file; a file with the same text stays unchanged.

    Raises:
        OutputError: the file cannot be written, or has another content (unless `force`).
    """
    try:
        if path.is_file() and not force:
            if path.read_bytes() == text.encode():
                return
            raise OutputError(f"{path} already exists with other content; add --force to overwrite it")
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}; choose another file with -o") from error
    make_folder(path.parent)
    write_atomically(path, text, mode=0o755)


def quote(value: str, name: str) -> str:
    """`value` in single quotes for bash; raises UsageError for a character that a script cannot contain."""
    has_lines = name == "MODELFILE"
    for character in value:
        if not character.isprintable() and not (has_lines and character in "\n\t\r\u3000\xa0"):
            raise UsageError(
                f"{name.lower()} has the character {character!r}, which a script cannot contain; remove it"
            )
    return "'" + value.replace("'", "'\\''") + "'"


def without_phone_parameters(modelfile: Modelfile) -> str:
    """The lines of a Modelfile without FROM, num_ctx, num_batch and num_thread, which the script writes itself."""
    kept = tuple(item for item in modelfile.parameters if item[0] not in PHONE_CHOOSES)
    text = write_modelfile(replace(modelfile, sources=("model",), parameters=kept))
    first, _, instructions = text.partition("\n")
    assert first == "FROM model"
    # Bash's <<< and $(<) change the last line end, so there is none here; put() of the script writes it.
    return instructions.removesuffix("\n")


def llama_flags(parameters: Sequence[tuple[str, ParameterValue]]) -> str:
    """The numeric parameters as flags of llama-server; it has the model's own stop words."""
    words = []
    for name, value in parameters:
        if name in _LLAMA and not isinstance(value, str | bool):
            words += [_LLAMA[name], repr(value)]
    return " ".join(words)


def check_parameters(parameters: Sequence[tuple[str, ParameterValue]]) -> None:
    """Raise UsageError for a parameter that the script sets on the phone."""
    for name, _ in parameters:
        if name in PHONE_CHOOSES and name != "num_ctx":
            how = PHONE_CHOOSES[name]
            raise UsageError(f"{name} is chosen on the phone; remove it{f' or use {how}' if how else ''}")


def modelfile_of_name(name: str, parameters: Sequence[tuple[str, ParameterValue]], system: str | None) -> Modelfile:
    """The Modelfile that adds parameters and a system message to a pulled model; raises ModelfileError for no name."""
    if not name:
        raise ModelfileError("the Modelfile needs a model in FROM; pass --model NS/MODEL")
    return Modelfile(sources=(name,), parameters=tuple(parameters), system=system)
