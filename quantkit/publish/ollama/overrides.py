"""Values from a command line or a recipe that override those of the GGUF file."""

from dataclasses import dataclass

from quantkit.errors import ModelfileError, UsageError
from quantkit.publish.ollama.parameters import DEPRECATED, ParameterValue, format_parameter, read_parameter

Parameters = tuple[tuple[str, ParameterValue], ...]


@dataclass(frozen=True)
class Overrides:
    """Values that one source, a command line or a recipe, sets in place of those of the GGUF file."""

    parameters: Parameters = ()
    """`stop` may repeat, and is added to the template's stops. `num_ctx` and `num_gpu` are among them."""
    system: str | None = None
    licenses: tuple[str, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()
    chat_template: str | None = None
    """A Jinja text in place of the file's; an empty text for none."""

    def over(self, other: "Overrides") -> "Overrides":
        """These overrides, completed by those of `other`; where both set a value, this object's is used."""
        overridden = {name for name, _ in self.parameters if name != "stop"}
        kept = tuple(item for item in other.parameters if item[0] not in overridden)
        return Overrides(
            parameters=(*kept, *self.parameters),
            system=other.system if self.system is None else self.system,
            licenses=self.licenses or other.licenses,
            messages=self.messages or other.messages,
            chat_template=other.chat_template if self.chat_template is None else self.chat_template,
        )


def check_parameter(name: str, value: object, where: str) -> ParameterValue:
    """The value itself, if Ollama has such a parameter of its type; raises UsageError naming `where`."""
    if not isinstance(value, str | int | float | bool):
        raise UsageError(f"{where}: PARAMETER {name} cannot be a {type(value).__name__}, such as {value!r}")
    try:
        format_parameter(name, value)
    except ModelfileError as error:
        raise UsageError(f"{where}: {error}") from error
    if name == "num_ctx" and isinstance(value, int) and value < 1:
        raise UsageError(f"{where}: num_ctx {value} must be greater than zero")
    if value == "":
        raise UsageError(f"{where}: {name} is empty; give a text or leave it out")
    return value


def typed_parameter(text: str, where: str) -> tuple[str, ParameterValue]:
    """`NAME=VALUE` as a user types it; raises UsageError naming `where`."""
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not name:
        raise UsageError(f"{where} {text!r} is not NAME=VALUE; write one such as temperature=0.5")
    try:
        parsed: ParameterValue = value if name in DEPRECATED else read_parameter(name, value)
    except ModelfileError as error:
        raise UsageError(f"{where} {text}: {error}") from error
    return name, check_parameter(name, parsed, f"{where} {text}")
