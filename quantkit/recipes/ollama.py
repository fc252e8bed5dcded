"""The part of a recipe for Ollama: [model] describes the model, [ollama] describes its publication."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.chat import BUILT_IN
from quantkit.errors import UsageError
from quantkit.gguf.file_types import file_type
from quantkit.publish.ollama.bundle import make_bundle
from quantkit.publish.ollama.facts import Facts
from quantkit.publish.ollama.modelfile import write_modelfile
from quantkit.publish.ollama.overrides import Overrides, Parameters, check_parameter
from quantkit.publish.ollama.parameters import PARAMETERS, ParameterValue
from quantkit.publish.ollama.tags import Name, parse_name, plan_tags
from quantkit.recipes.reading import Opened, open_recipe

NONE = "none"


@dataclass(frozen=True)
class OllamaRecipe:
    """[model] as the facts of a GGUF file that does not exist yet, and [ollama]."""

    facts: Facts
    name: Name
    size: str | None
    types: tuple[str, ...]
    overrides: Overrides


def read_ollama(path: Path) -> OllamaRecipe:
    """Read the part of a recipe file for Ollama; raises UsageError with file and line, as `open_recipe`."""
    return ollama_recipe(open_recipe(path))


def ollama_recipe(opened: Opened) -> OllamaRecipe:
    """The part of an open recipe for Ollama.

    Without the key `chat_template` the model keeps its own template, and `facts.chat_template` is None.

    Raises:
        UsageError: [model] or [ollama] has no name, a template is not readable, or a parameter is wrong.
    """
    model, ollama = opened.get("model") or {}, opened.get("ollama") or {}
    for table, values in (("model", model), ("ollama", ollama)):
        if "name" not in values:
            opened.fail((table, "name"), f"[{table}] lacks the key name; add it")
    types = ollama.get("types", opened.get("formats", "gguf") or ["q4_0"])
    types = tuple(dict.fromkeys(file_type(name).name for name in types))
    template, end_of_turn = _template(opened, model.get("chat_template"))
    eos = model.get("eos_token", "")
    ends = (end_of_turn, eos) if end_of_turn else (eos,)
    facts = Facts(
        name=model["name"],
        files=(Path(f"{model['name']}.gguf"),),
        type=types[0],
        size_label=None,
        context_length=model.get("context_length"),
        chat_template=template or None,
        suggested=None,
        bos_token=model.get("bos_token", ""),
        eos_token=eos,
        special_tokens={},
        end_tokens=tuple(dict.fromkeys(end for end in ends if end)),
        adds_bos=model.get("adds_bos", False),
        sampling=(),
        license=None,
    )
    overrides = Overrides(
        parameters=_parameters(opened, ollama.get("parameters", {})),
        system=ollama.get("system"),
        licenses=(ollama["license"],) if "license" in ollama else (),
        messages=tuple((role, text) for role, text in ollama.get("messages", [])),
        chat_template=template,
    )
    return OllamaRecipe(facts, parse_name(ollama["name"]), model.get("size"), types, overrides)


def modelfiles(recipe: OllamaRecipe) -> dict[str, str]:
    """The text of each Modelfile of the recipe, by file name; the GGUF files NAME-TYPE.gguf are in the same folder."""
    files = [(kind, (f"{recipe.facts.name}-{kind.upper()}.gguf",)) for kind in recipe.types]
    plan = plan_tags(recipe.name, files, size=recipe.size)
    texts: dict[str, str] = {}
    for quantization in plan.quantizations:
        sources = [f"./{file}" for file in quantization.files]
        base = plan.name.tagged(quantization.tags[0])
        bundle = make_bundle(recipe.facts, recipe.overrides, sources=sources, base=base)
        texts[quantization.modelfile] = write_modelfile(bundle.modelfile)
        texts[quantization.gpu_modelfile] = write_modelfile(bundle.gpu)
    return texts


def _template(opened: Opened, value: str | None) -> tuple[str | None, str | None]:
    """The template's text, "" for none or None for the model's own; and its end of turn if it is not EOS."""
    if value is None:
        return None, None
    if value == NONE:
        return "", None
    if value in BUILT_IN:
        return BUILT_IN[value].text, BUILT_IN[value].end_of_turn
    try:
        return Path(value).read_text("utf-8"), None
    except (OSError, ValueError) as error:
        opened.fail(("model", "chat_template"), f"chat_template of [model]: cannot read {value}: {error}")


def _parameters(opened: Opened, table: Mapping[str, Any]) -> Parameters:
    parameters: list[tuple[str, ParameterValue]] = []
    for name, values in table.items():
        listed = values if isinstance(values, list) else [values]
        if not listed and name not in PARAMETERS:
            listed = [""]  # the name is wrong, whatever the value
        for value in listed:
            try:
                parameters.append((name, check_parameter(name, value, "[ollama.parameters]")))
            except UsageError as error:
                opened.fail(("ollama", "parameters", name), str(error))
    return tuple(parameters)
