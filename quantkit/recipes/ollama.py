"""What of a recipe Ollama needs: [model], which model it is, and [ollama], how it is published."""

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
from quantkit.publish.ollama.parameters import ParameterValue
from quantkit.publish.ollama.tags import Name, parse_name, plan_tags
from quantkit.recipes.reading import Opened, open_recipe

NONE = "none"


@dataclass(frozen=True)
class OllamaRecipe:
    """A recipe's [model] as the facts of a file that is still to be made, and its [ollama]."""

    facts: Facts
    name: Name
    size: str | None
    types: tuple[str, ...]
    overrides: Overrides


def read_ollama(path: Path) -> OllamaRecipe:
    """What the recipe in a file says for Ollama. Raises UsageError with file and line, as `open_recipe`."""
    return ollama_recipe(open_recipe(path))


def ollama_recipe(opened: Opened) -> OllamaRecipe:
    """The same of a recipe that is open. Without chat_template the model keeps its own, and `facts` have none."""
    model, ollama = opened.get("model") or {}, opened.get("ollama") or {}
    for table, name, found in (("model", "name", model), ("ollama", "name", ollama)):
        if name not in found:
            opened.fail((table, name), f"[{table}] lacks {name}")
    types = ollama.get("types", opened.get("formats", "gguf") or ["q4_0"])
    types = tuple(dict.fromkeys(file_type(each).name for each in types))
    asked = model.get("chat_template")
    template, mark = _template(opened, asked)
    eos = model.get("eos_token", "")
    ends = (mark, eos) if mark else (eos,)
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
    """The texts of every Modelfile the recipe leads to, by file name, for GGUFs named NAME-TYPE.gguf beside them."""
    found = [(kind, (f"{recipe.facts.name}-{kind.upper()}.gguf",)) for kind in recipe.types]
    plan = plan_tags(recipe.name, found, size=recipe.size)
    texts: dict[str, str] = {}
    for each in plan.quantizations:
        sources = [f"./{file}" for file in each.files]
        bundle = make_bundle(recipe.facts, recipe.overrides, sources=sources, base=plan.name.tagged(each.tags[0]))
        texts[each.modelfile] = write_modelfile(bundle.modelfile)
        texts[each.gpu_modelfile] = write_modelfile(bundle.gpu)
    return texts


def _template(opened: Opened, asked: str | None) -> tuple[str | None, str | None]:
    """The text ("" for none at all, None where the model's own stays) and what ends a turn where not EOS."""
    if asked is None:
        return None, None
    if asked == NONE:
        return "", None
    if asked in BUILT_IN:
        return BUILT_IN[asked].text, BUILT_IN[asked].end_of_turn
    try:
        return Path(asked).read_text("utf-8"), None
    except (OSError, ValueError) as error:
        opened.fail(
            ("model", "chat_template"), f"chat_template of [model] names {asked}, which cannot be read: {error}"
        )


def _parameters(opened: Opened, table: Mapping[str, Any]) -> Parameters:
    found: list[tuple[str, ParameterValue]] = []
    for name, value in table.items():
        for each in value if isinstance(value, list) else [value]:
            try:
                found.append((name, check_parameter(name, each, "[ollama.parameters]")))
            except UsageError as error:
                opened.fail(("ollama", "parameters", name), str(error))
    return tuple(found)
