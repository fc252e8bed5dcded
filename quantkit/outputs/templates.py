"""The chat template of an output: the checkpoint's own, the requested one, or a built-in that fits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit.chat import BUILT_IN, BuiltIn, Suggestion, built_in, render_sample, suggestions
from quantkit.checkpoint import Checkpoint
from quantkit.checkpoint.jsonfile import read_hints
from quantkit.errors import TemplateError, UsageError
from quantkit.gguf.keyvalues import KeyValue, string, uint32
from quantkit.gguf.vocabulary import TEMPLATE_KEY, token_texts
from quantkit.outputs.model import Model, Mtp, model_from_checkpoint
from quantkit.units import listed

NONE = "none"
_EOT, _EOS = "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eos_token_id"


@dataclass(frozen=True)
class Template:
    """A requested chat template: the text of a built-in or of a file, or None for no template."""

    text: str | None
    built_in: BuiltIn | None = None


def choose_template(name: str) -> Template:
    """A built-in by name, `none`, or a file; a file with the name of a built-in is written ./NAME.

    The text is rendered on a sample conversation first.

    Raises:
        UsageError: `name` is not a built-in, and not a readable file.
        TemplateError: the template is malformed or fails.
    """
    if name == NONE:
        return Template(None)
    if name in BUILT_IN:
        return Template(BUILT_IN[name].text, BUILT_IN[name])
    try:
        text = Path(name).read_text("utf-8")
    except FileNotFoundError:
        built_in(name)  # raises with the list of built-ins
        raise
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read the chat template {name}: {why}; check the path, or save it as UTF-8") from error
    if not text.strip():
        raise UsageError(f"the chat template {name} is empty; 'none' leaves the template out")
    try:
        render_sample(text, bos_token="<s>", eos_token="</s>", special_tokens={"unk_token": "<unk>", "pad_token": ""})
    except TemplateError as error:
        raise TemplateError(f"{name}: {error}") from error
    return Template(text)


def model_with_template(
    checkpoint: Checkpoint,
    choice: Template | None,
    *,
    name: str | None = None,
    pre: str | None = None,
    mtp: Mtp = "keep",
) -> tuple[Model, str | None]:
    """The model with its chat template, and a note for the user or None.

    Without a choice the checkpoint's own template stays; a checkpoint without one gets the built-in that its files
    indicate, with a note. A built-in also sets the token that ends a turn: runtimes stop only at a token that the file
    names.

    Raises as `model_from_checkpoint` does.
    """
    if choice is not None and choice.text is not None:
        model = model_from_checkpoint(checkpoint, pre=pre, name=name, chat_template=choice.text, mtp=mtp)
        origin = f"built-in '{choice.built_in.name}', requested" if choice.built_in else "a file, requested"
        return _recorded(_ending_turns(model, choice.built_in), origin), _missing_marks(model, choice.built_in)
    model = model_from_checkpoint(checkpoint, pre=pre, name=name, mtp=mtp)
    has_template = any(key.key.startswith(TEMPLATE_KEY) for key in model.keys)
    if choice is not None:
        without = tuple(key for key in model.keys if not key.key.startswith(TEMPLATE_KEY))
        return _recorded(replace(model, keys=without), "none, requested"), None
    if has_template:
        return _recorded(model, "the checkpoint's"), None
    fitting = fitting_templates(model.keys, checkpoint.folder, checkpoint.name)
    if len(fitting) != 1:
        names = listed(f"'{suggestion.template.name}' (its {suggestion.evidence})" for suggestion in fitting)
        each = "all" if fitting[2:] else "both"
        note = f"the checkpoint has no chat template, and {names} {each} fit; none was written, see --chat-template"
        return _recorded(model, "none"), note if fitting else None
    template, evidence = fitting[0].template, fitting[0].evidence
    # at the position that `model_from_checkpoint` gives it, without reading the vocabulary again
    model = replace(model, keys=(*model.keys, string(TEMPLATE_KEY, template.text)))
    note = f"the checkpoint has no chat template; wrote the built-in '{template.name}' (its {evidence})"
    return _recorded(_ending_turns(model, template), f"built-in '{template.name}', its {evidence}"), note


def _recorded(model: Model, template: str) -> Model:
    """The model with the origin of its template in its own origin."""
    return replace(model, origin={**model.origin, "chat_template": template})


def fitting_templates(keys: Sequence[KeyValue], folder: Path, name: str) -> list[Suggestion]:
    """The built-in templates that fit a checkpoint, by its GGUF keys, its generation_config.json and its name.

    A missing or malformed generation_config.json counts as empty, because it only has hints. Raises ReadError.
    """
    architecture = next((str(key.value) for key in keys if key.key == "general.architecture"), None)
    return suggestions(token_texts(keys), read_hints(folder / "generation_config.json"), name, architecture)


def _missing_marks(model: Model, template: BuiltIn | None) -> str | None:
    texts = set(token_texts(model.keys)) if template else set()
    missing = [mark for mark in template.marks if mark not in texts] if template else []
    if template is None or not missing:
        return None
    return f"the vocabulary has no token {missing[0]}; the template '{template.name}' will be read as plain text"


def _ending_turns(model: Model, template: BuiltIn | None) -> Model:
    """The model with its built-in's end of turn as EOT, unless it is the EOS or an EOT is set."""
    present = {key.key: key.value for key in model.keys if key.key in (_EOT, _EOS)}
    if template is None or template.end_of_turn is None or _EOT in present:
        return model
    texts = token_texts(model.keys)
    if template.end_of_turn not in texts or texts.index(template.end_of_turn) == present.get(_EOS):
        return model
    keys = list(model.keys)
    last = max((i for i, key in enumerate(keys) if key.key.endswith("_token_id")), default=len(keys) - 1)
    keys.insert(last + 1, uint32(_EOT, texts.index(template.end_of_turn)))
    return replace(model, keys=tuple(keys))
