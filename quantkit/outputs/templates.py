"""The chat template of an output: the checkpoint's own, the one the user asked for, or a built-in that fits."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.chat import BUILT_IN, BuiltIn, built_in, render_sample, suggestions
from quantkit.checkpoint import Checkpoint
from quantkit.errors import TemplateError, UsageError
from quantkit.gguf.keyvalues import string, uint32
from quantkit.gguf.vocabulary import TEMPLATE_KEY, token_texts
from quantkit.outputs.model import Model, model_from_checkpoint

NONE = "none"
_EOT, _EOS = "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eos_token_id"


@dataclass(frozen=True)
class Template:
    """What --chat-template asked for: a text (of a built-in or a file), or none at all."""

    text: str | None
    built_in: BuiltIn | None = None


def choose_template(asked: str) -> Template:
    """A built-in by name, `none`, or a file; a name wins over a file so called, which is written ./NAME.

    The text is rendered on a sample conversation before anything else is done with it.

    Raises:
        UsageError: neither a built-in nor a file that can be read.
        TemplateError: the template is malformed or fails.
    """
    if asked == NONE:
        return Template(None)
    if asked in BUILT_IN:
        return Template(BUILT_IN[asked].text, BUILT_IN[asked])
    try:
        text = Path(asked).read_text("utf-8")
    except FileNotFoundError:
        built_in(asked)  # says which there are
        raise
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read the chat template {asked}: {why}") from error
    if not text.strip():
        raise UsageError(f"the chat template {asked} is empty; 'none' leaves the template out")
    try:
        render_sample(text, bos_token="<s>", eos_token="</s>", special_tokens={"unk_token": "<unk>", "pad_token": ""})
    except TemplateError as error:
        raise TemplateError(f"{asked}: {error}") from error
    return Template(text)


def model_with_template(
    checkpoint: Checkpoint, choice: Template | None, *, name: str | None = None, pre: str | None = None
) -> tuple[Model, str | None]:
    """The model with its chat template settled, and a sentence for the user where there is something to say.

    Without a choice the checkpoint's own template stays; one that has none gets the built-in its files point to, which
    is said. With a built-in comes the token that ends a turn: runtimes stop at it only if the file names it.

    Raises:
        as `model_from_checkpoint`.
    """
    if choice is not None and choice.text is not None:
        model = model_from_checkpoint(checkpoint, pre=pre, name=name, chat_template=choice.text)
        said = f"built-in '{choice.built_in.name}', asked for" if choice.built_in else "a file, asked for"
        return _recorded(_ending_turns(model, choice.built_in), said), _missing_marks(model, choice.built_in)
    model = model_from_checkpoint(checkpoint, pre=pre, name=name)
    own = any(key.key.startswith(TEMPLATE_KEY) for key in model.keys)
    if choice is not None:
        without = tuple(key for key in model.keys if not key.key.startswith(TEMPLATE_KEY))
        return _recorded(replace(model, keys=without), "none, asked for"), None
    if own:
        return _recorded(model, "the checkpoint's"), None
    found = suggestions(token_texts(model.keys), generation_config(checkpoint.folder), checkpoint.name)
    if len(found) != 1:
        fitting = " and ".join(f"'{each.template.name}' (its {each.evidence})" for each in found)
        note = f"no chat template in the checkpoint, and {fitting} both fit; none was written, see --chat-template"
        return _recorded(model, "none"), note if found else None
    template = found[0].template
    # where `model_from_checkpoint` would put it, without reading the vocabulary again
    model = replace(model, keys=(*model.keys, string(TEMPLATE_KEY, template.text)))
    note = f"no chat template in the checkpoint; wrote the built-in '{template.name}' (its {found[0].evidence})"
    return _recorded(_ending_turns(model, template), f"built-in '{template.name}', its {found[0].evidence}"), note


def _recorded(model: Model, said: str) -> Model:
    """The model with its origin telling where the template is from."""
    return replace(model, origin={**model.origin, "chat_template": said})


def generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json; {} where it is missing or broken, for it only holds hints."""
    try:
        loaded = json.loads((folder / "generation_config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _missing_marks(model: Model, template: BuiltIn | None) -> str | None:
    texts = set(token_texts(model.keys)) if template else set()
    missing = [mark for mark in template.marks if mark not in texts] if template else []
    if template is None or not missing:
        return None
    return (
        f"the vocabulary has no token {missing[0]}: the model will read the template '{template.name}' as plain words"
    )


def _ending_turns(model: Model, template: BuiltIn | None) -> Model:
    """The model with its built-in's end of turn as EOT, if that is neither the EOS nor an EOT stated already."""
    stated = {key.key: key.value for key in model.keys if key.key in (_EOT, _EOS)}
    if template is None or template.end_of_turn is None or _EOT in stated:
        return model
    texts = token_texts(model.keys)
    if template.end_of_turn not in texts or texts.index(template.end_of_turn) == stated.get(_EOS):
        return model
    keys = list(model.keys)
    last = max((i for i, key in enumerate(keys) if key.key.endswith("_token_id")), default=len(keys) - 1)
    keys.insert(last + 1, uint32(_EOT, texts.index(template.end_of_turn)))
    return replace(model, keys=tuple(keys))
