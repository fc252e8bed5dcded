"""The part of a recipe that Ollama needs: [model], which model it is, and [ollama], how it is published.

Other tables of a recipe belong to others and are left alone. Files: recipes/NAME.toml.
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.chat import built_in
from quantkit.errors import UsageError
from quantkit.gguf.types import file_type
from quantkit.publish.bundle import make_bundle
from quantkit.publish.facts import Facts
from quantkit.publish.modelfile import write_modelfile
from quantkit.publish.parameters import ParameterValue
from quantkit.publish.tags import Name, parse_name, plan_tags
from quantkit.publish.wishes import Parameters, Wishes, wished_parameter

_Keys = Mapping[str, tuple[type, ...]]
_MODEL: _Keys = {
    "name": (str,),
    "source": (str,),
    "size": (str,),
    "context_length": (int,),
    "chat_template": (str,),
    "bos_token": (str,),
    "eos_token": (str,),
    "adds_bos": (bool,),
}
_OLLAMA: _Keys = {
    "name": (str,),
    "types": (list,),
    "system": (str,),
    "license": (str,),
    "messages": (list,),
    "parameters": (dict,),
}
_WORDS: dict[type, str] = {str: "a text", int: "a whole number", bool: "true or false", list: "a list", dict: "a table"}


@dataclass(frozen=True)
class OllamaRecipe:
    """A recipe's [model] as the facts of a file that is still to be made, and its [ollama]."""

    facts: Facts
    name: Name
    size: str | None
    types: tuple[str, ...]
    wishes: Wishes


def read_recipe(path: Path) -> OllamaRecipe:
    """The recipe in a file.

    Raises:
        UsageError: it cannot be read, or a key is unknown, missing or of the wrong kind.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"the recipe {path} is not TOML: {error}") from error
    model = _table(table, "model", _MODEL, path, needed=("name", "chat_template"))
    ollama = _table(table, "ollama", _OLLAMA, path, needed=("name",))
    types = tuple(file_type(str(each)).name for each in ollama.get("types", ["q4_0"]))
    if not types:
        raise UsageError(f"types of [ollama] in {path} is empty; name at least one, q4_0 perhaps")
    eos = model.get("eos_token", "")
    template = built_in(model["chat_template"])
    ends = (template.end_of_turn, eos) if template.end_of_turn else (eos,)
    facts = Facts(
        name=model["name"],
        files=(Path(f"{model['name']}.gguf"),),
        type=types[0],
        size_label=None,
        context_length=model.get("context_length"),
        chat_template=template.text,
        suggested=None,
        bos_token=model.get("bos_token", ""),
        eos_token=eos,
        special_tokens={},
        end_tokens=tuple(dict.fromkeys(end for end in ends if end)),
        adds_bos=model.get("adds_bos", False),
        sampling=(),
        license=None,
    )
    wishes = Wishes(
        parameters=_parameters(ollama.get("parameters", {}), path),
        system=ollama.get("system"),
        licenses=(ollama["license"],) if "license" in ollama else (),
        messages=tuple(_message(each, path) for each in ollama.get("messages", [])),
        chat_template=template.text,
    )
    return OllamaRecipe(facts, parse_name(ollama["name"]), model.get("size"), types, wishes)


def modelfiles(recipe: OllamaRecipe) -> dict[str, str]:
    """The texts of every Modelfile the recipe leads to, by file name, for GGUFs named NAME-TYPE.gguf beside them."""
    found = [(kind, (f"{recipe.facts.name}-{kind.upper()}.gguf",)) for kind in recipe.types]
    plan = plan_tags(recipe.name, found, size=recipe.size)
    texts: dict[str, str] = {}
    for each in plan.quantizations:
        sources = [f"./{file}" for file in each.files]
        bundle = make_bundle(recipe.facts, recipe.wishes, sources=sources, base=plan.name.tagged(each.tags[0]))
        texts[each.modelfile] = write_modelfile(bundle.modelfile)
        texts[each.gpu_modelfile] = write_modelfile(bundle.gpu)
    return texts


def _table(table: Mapping[str, Any], name: str, known: _Keys, path: Path, needed: tuple[str, ...]) -> dict[str, Any]:
    found = table.get(name)
    if not isinstance(found, dict):
        raise UsageError(f"the recipe {path} has no [{name}]")
    for key, value in found.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else f"; known are {', '.join(known)}"
            raise UsageError(f"[{name}] in {path} has the unknown key {key!r}{hint}")
        if type(value) not in known[key]:
            raise UsageError(f"{key} of [{name}] in {path} is {value!r}, not {_WORDS[known[key][0]]}")
    for key in needed:
        if key not in found:
            raise UsageError(f"[{name}] in {path} lacks {key}")
    return found


def _parameters(table: Mapping[str, Any], path: Path) -> Parameters:
    found: list[tuple[str, ParameterValue]] = []
    for name, value in table.items():
        for each in value if isinstance(value, list) else [value]:
            found.append((name, wished_parameter(name, each, f"[ollama.parameters] in {path}")))
    return tuple(found)


def _message(value: Any, path: Path) -> tuple[str, str]:
    if (
        isinstance(value, list)
        and len(value) == 2
        and value[0] in ("system", "user", "assistant")
        and isinstance(value[1], str)
    ):
        return value[0], value[1]
    raise UsageError(
        f'messages of [ollama] in {path} has {value!r}; each is ["ROLE", "TEXT"], the role system, user or assistant'
    )
