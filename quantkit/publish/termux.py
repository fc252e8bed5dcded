"""termux/termux.sh with its settings filled in: one bash script that takes a phone from a bare Termux to a model.

The settings are single-quoted, so bash takes every byte of them as it is; what cannot stand in a script is refused.
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
"""Parameters that the script sets by what it finds, and what overrules it."""

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
    """What the script is told; its comments say what each is. `memory`: (context, batch, bytes), smallest first."""

    name: str = ""
    gguf: str = ""
    model_bytes: int | None = None
    model_sha256: str = ""
    memory: Sequence[tuple[int, int, int]] = field(default=())
    ctx: int | None = None
    modelfile: str = ""
    llama_flags: str = ""

    def texts(self) -> dict[str, str]:
        """The value of each of the script's variables."""
        found = {each.name.upper(): getattr(self, each.name) for each in fields(self)}
        found["MEMORY"] = " ".join(":".join(map(str, entry)) for entry in self.memory)
        return {name: "" if value is None else str(value) for name, value in found.items()}


def script() -> str:
    """The script as it stands in termux/, without settings."""
    return (files("quantkit.publish") / "termux.sh").read_text("utf-8")


def fill_in(text: str, settings: Settings) -> str:
    """The script `text` with `settings` between its two marks.

    Raises:
        UsageError: a value with characters that a script cannot hold, or a name or address of more than one line.
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
    """Write the script as an executable file; one that has the same text already stays.

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
    """`value` as bash takes it literally; raises UsageError for what no script or no setting may hold."""
    several = name == "MODELFILE"
    for character in value:
        if not character.isprintable() and not (several and character in "\n\t\r\u3000\xa0"):
            raise UsageError(f"{name.lower()} has the character {character!r}, which does not belong in a script")
    return "'" + value.replace("'", "'\\''") + "'"


def without_phone_parameters(modelfile: Modelfile) -> str:
    """The lines of a Modelfile that the script appends to its own FROM, num_ctx, num_batch and num_thread."""
    kept = tuple(item for item in modelfile.parameters if item[0] not in PHONE_CHOOSES)
    text = write_modelfile(replace(modelfile, sources=("model",), parameters=kept))
    first, _, rest = text.partition("\n")
    assert first == "FROM model"
    # Bash's <<< and $(<) take a last line end away or add one: none is kept here, put() writes it.
    return rest.removesuffix("\n")


def llama_flags(parameters: Sequence[tuple[str, ParameterValue]]) -> str:
    """The parameters as llama-server's flags: numbers only, its stops are the model's own."""
    words = []
    for name, value in parameters:
        if name in _LLAMA and not isinstance(value, str | bool):
            words += [_LLAMA[name], repr(value)]
    return " ".join(words)


def check_parameters(parameters: Sequence[tuple[str, ParameterValue]]) -> None:
    """Raises UsageError for what the script sets itself."""
    for name, _ in parameters:
        if name in PHONE_CHOOSES and name != "num_ctx":
            how = PHONE_CHOOSES[name]
            raise UsageError(
                f"{name} is chosen on the phone, by what it is; leave it out{f' or use {how}' if how else ''}"
            )


def modelfile_of_name(name: str, parameters: Sequence[tuple[str, ParameterValue]], system: str | None) -> Modelfile:
    """What is asked for beyond what a pulled model says; raises ModelfileError for what cannot be said."""
    if not name:
        raise ModelfileError("there is no model to make another of")
    return Modelfile(sources=(name,), parameters=tuple(parameters), system=system)
