"""The two Modelfiles of a GGUF: one made from the file, and `:gpu`, the same weights with every layer on the GPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from quantkit.errors import TemplateError
from quantkit.publish.ollama.facts import Facts
from quantkit.publish.ollama.go_template import GoTemplate, synthesize
from quantkit.publish.ollama.modelfile import Modelfile
from quantkit.publish.ollama.overrides import Overrides, Parameters

NUM_CTX = 4096
"""Pinned where nobody asks for another: Ollama's own default is 4k, 32k or 256k by the memory it finds."""
ALL_LAYERS = 999
REQUIRES_JINJA = "0.30.0"
"""From this version on Ollama renders the GGUF's own Jinja template where the model has no TEMPLATE."""
RAW_TEMPLATE = "{{ .Prompt }}"


@dataclass(frozen=True)
class Bundle:
    """Both Modelfiles, and what there is to say about them."""

    modelfile: Modelfile
    gpu: Modelfile
    template: str
    """"exact", "refused" (Ollama renders the file's own Jinja) or "none"."""
    reason: str | None
    """Why it was refused."""
    notes: tuple[str, ...]


def make_bundle(facts: Facts, overrides: Overrides, *, sources: Sequence[str], base: str) -> Bundle:
    """The Modelfiles of one model file.

    `sources` are the FROM lines of the first (paths of the file or its shards), `base` is the name with the tag that it
    is published under, from which the second is made.

    Raises:
        TemplateError: the template that was asked for cannot be exact, or there is none and nobody said so.
    """
    template, state, reason, notes = _template(facts, overrides)
    asked = dict(item for item in overrides.parameters if item[0] != "stop")
    num_ctx = asked.pop("num_ctx", None)
    if num_ctx is None:
        num_ctx = min(facts.context_length or NUM_CTX, NUM_CTX)
        known = f"; the model has {facts.context_length}" if facts.context_length else ""
        notes.append(f"num_ctx is pinned to {num_ctx}{known}, --ctx sets another")
    elif facts.context_length and int(num_ctx) > facts.context_length:
        notes.append(f"num_ctx {num_ctx} is more than the {facts.context_length} tokens the model was made for")
    stops = [
        *(template.stops if template else ()),
        *facts.end_tokens,
        *(str(value) for name, value in overrides.parameters if name == "stop"),
    ]
    parameters: Parameters = (
        *{**dict(facts.sampling), **asked}.items(),
        ("num_ctx", num_ctx),
        *(("stop", stop) for stop in dict.fromkeys(stops)),
    )
    made = Modelfile(
        sources=tuple(sources),
        parameters=parameters,
        template=template.text if template else None,
        system=overrides.system,
        licenses=overrides.licenses or ((facts.license,) if facts.license else ()),
        messages=overrides.messages,
        requires=REQUIRES_JINJA if state == "refused" else None,
    )
    gpu = Modelfile(
        sources=(base,),
        parameters=(("num_gpu", ALL_LAYERS), ("num_ctx", num_ctx)),
        requires=made.requires,
    )
    return Bundle(made, gpu, state, reason, tuple(dict.fromkeys(notes)))


def _template(facts: Facts, overrides: Overrides) -> tuple[GoTemplate | None, str, str | None, list[str]]:
    if overrides.chat_template == "":
        # Without a TEMPLATE Ollama would take the file's own, or ChatML.
        return GoTemplate(RAW_TEMPLATE, (), ()), "none", None, []
    text = overrides.chat_template or facts.chat_template
    notes: list[str] = []
    if text is None and facts.suggested is not None:
        text = facts.suggested.text
        notes.append(f"no chat template in the file; took the built-in '{facts.suggested.name}', which fits it")
    if text is None:
        raise TemplateError(
            f"{facts.files[0].name} has no chat template and none is known for it; give one with --chat-template"
            " FILE|NAME, or none for a model that only completes text"
        )
    try:
        special = tuple(sorted(facts.special_tokens.items()))
        made = _synthesized(text, facts.bos_token, facts.eos_token, special, facts.adds_bos)
    except TemplateError as error:
        if text != facts.chat_template:
            raise TemplateError(
                f"the chat template cannot become one of Ollama's ({error}), and {facts.files[0].name} does not carry"
                " it for Ollama to render; convert the model with --chat-template, then publish it"
            ) from error
        return None, "refused", str(error), notes
    return made, "exact", None, [*notes, *(f"template: {limit}" for limit in made.limits)]


@cache
def _synthesized(
    text: str, bos_token: str, eos_token: str, special: tuple[tuple[str, str], ...], adds_bos: bool
) -> GoTemplate:
    """Every quantization of a model has the same template, and probing one takes a second."""
    return synthesize(text, bos_token=bos_token, eos_token=eos_token, special_tokens=dict(special), adds_bos=adds_bos)
