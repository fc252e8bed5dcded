"""The two Modelfiles of a GGUF: one made from the file, and `:gpu`, the same weights with every layer on the GPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from quantkit.errors import TemplateError
from quantkit.publish.ollama.facts import Facts
from quantkit.publish.ollama.go_template import GoTemplate, synthesize
from quantkit.publish.ollama.modelfile import Modelfile
from quantkit.publish.ollama.overrides import Overrides, Parameters
from quantkit.units import listed

NUM_CTX = 4096
"""The default of num_ctx: Ollama's own default is 4k, 32k or 256k by the memory it finds."""
ALL_LAYERS = 999
REQUIRES_JINJA = "0.30.0"
"""From this version on Ollama renders the GGUF's own Jinja template if the model has no TEMPLATE."""
RAW_TEMPLATE = "{{ .Prompt }}"
EXACT, REFUSED, NONE = "exact", "refused", "none"


@dataclass(frozen=True)
class Bundle:
    """Both Modelfiles of one model file, and the notes about them."""

    modelfile: Modelfile
    gpu: Modelfile
    template: str
    """EXACT, REFUSED (Ollama renders the file's own Jinja) or NONE (the model only completes text)."""
    reason: str | None
    """Why the template was refused."""
    notes: tuple[str, ...]
    replaces_jinja: bool = False
    """Whether TEMPLATE differs from the chat template in the file."""


@dataclass(frozen=True)
class _Template:
    """The TEMPLATE of a Modelfile: `state` and `reason` as in Bundle."""

    go: GoTemplate | None
    state: str
    reason: str | None
    notes: tuple[str, ...]
    replaces_jinja: bool = False


def make_bundle(facts: Facts, overrides: Overrides, *, sources: Sequence[str], base: str) -> Bundle:
    """The Modelfiles of one model file.

    `sources` are the FROM lines of the first (paths of the file or its shards). `base` is the name with the tag that
    it is published under; the second is made from it.

    Raises:
        TemplateError: the template that was passed cannot be exact, or none is known for the file.
    """
    template = _template(facts, overrides)
    num_ctx, notes = _num_ctx(facts, overrides)
    stops = [
        *(template.go.stops if template.go else ()),
        *facts.end_tokens,
        *(str(value) for name, value in overrides.parameters if name == "stop"),
    ]
    single = {name: value for name, value in overrides.parameters if name not in ("stop", "num_ctx")}
    parameters: Parameters = (
        *{**dict(facts.sampling), **single}.items(),
        ("num_ctx", num_ctx),
        *(("stop", stop) for stop in dict.fromkeys(stops)),
    )
    modelfile = Modelfile(
        sources=tuple(sources),
        parameters=parameters,
        template=template.go.text if template.go else None,
        system=overrides.system,
        licenses=overrides.licenses or ((facts.license,) if facts.license else ()),
        messages=overrides.messages,
        requires=REQUIRES_JINJA if template.state == REFUSED else None,
    )
    gpu = Modelfile(
        sources=(base,),
        parameters=(("num_gpu", ALL_LAYERS), ("num_ctx", num_ctx)),
        requires=modelfile.requires,
    )
    return Bundle(
        modelfile,
        gpu,
        template.state,
        template.reason,
        tuple(dict.fromkeys((*template.notes, *notes))),
        template.replaces_jinja,
    )


def jinja_features(jinja: str) -> list[str]:
    """Which of "tools" and "thinking" Ollama finds in a Jinja template.

    Ollama looks for words in the text (server/images.go, chatTemplateHasToolSupport and the test for thinking).
    """
    tools = "tools" in jinja or "tool_call" in jinja
    strips = "content.split('</think>')" in jinja or 'content.split("</think>")' in jinja
    strips = strips and "reasoning_content" not in jinja and "<SPECIAL_12>" not in jinja
    thinking = ("<think>" in jinja and "</think>" in jinja) or strips
    return [name for name, present in (("tools", tools), ("thinking", thinking)) if present]


def _num_ctx(facts: Facts, overrides: Overrides) -> tuple[int, list[str]]:
    trained = facts.context_length
    for name, value in overrides.parameters:
        if name == "num_ctx":
            if trained and int(value) > trained:
                return int(value), [f"num_ctx {value} is more than the {trained} tokens the model was made for"]
            return int(value), []
    num_ctx = min(trained or NUM_CTX, NUM_CTX)
    trained_note = f"; the model has {trained}" if trained else ""
    return num_ctx, [f"num_ctx is pinned to {num_ctx}{trained_note}, --ctx sets another"]


def _template(facts: Facts, overrides: Overrides) -> _Template:
    notes: list[str] = []
    if overrides.chat_template == "":
        # Without a TEMPLATE Ollama would take the file's own, or ChatML.
        go = GoTemplate(RAW_TEMPLATE, (), ())
        notes += _ignored_notes(facts, replaces=True)
        return _Template(go, NONE, None, tuple(notes), replaces_jinja=facts.chat_template is not None)
    text = overrides.chat_template or facts.chat_template
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
        go = _synthesized(text, facts.bos_token, facts.eos_token, special, facts.adds_bos)
    except TemplateError as error:
        if text != facts.chat_template:
            raise TemplateError(
                f"the chat template cannot become one of Ollama's ({error}), and {facts.files[0].name} does not carry"
                " it for Ollama to render; convert the model with --chat-template, then publish it"
            ) from error
        return _Template(None, REFUSED, str(error), tuple(notes))
    replaces = facts.chat_template is not None and text != facts.chat_template
    notes += [f"template: {limit}" for limit in go.limits]
    notes += _ignored_notes(facts, replaces=replaces)
    return _Template(go, EXACT, None, tuple(notes), replaces)


def _ignored_notes(facts: Facts, *, replaces: bool) -> list[str]:
    """The servers that ignore a TEMPLATE; `replaces`: it differs from the GGUF's Jinja."""
    features = jinja_features(facts.chat_template or "")
    if not features:
        return []
    note = (
        f"template: only Ollama before {REQUIRES_JINJA} uses TEMPLATE; later servers render the GGUF's own chat"
        f" template, because it has {listed(features)}"
    )
    return [f"{note}; convert the model with --chat-template to change that one" if replaces else note]


@cache
def _synthesized(
    text: str, bos_token: str, eos_token: str, special: tuple[tuple[str, str], ...], adds_bos: bool
) -> GoTemplate:
    """Every quantization of a model has the same template, and probing one takes a second."""
    return synthesize(text, bos_token=bos_token, eos_token=eos_token, special_tokens=dict(special), adds_bos=adds_bos)
