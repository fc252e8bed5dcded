"""The registry of families: lookups by config.json, by GGUF architecture and by model_type."""

import difflib
import importlib
import importlib.util
import os
import pkgutil
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from quantkit import families
from quantkit.errors import UnknownArchitectureError, UnsupportedError, UsageError
from quantkit.families.base.family import Dropped, Family
from quantkit.families.base.multimodal import TEXT_PREFIXES, TOWERS, TOWERS_LEFT_OUT, nested_text_config
from quantkit.families.base.traits import Traits
from quantkit.forward.description import Architecture
from quantkit.tokenizer.roles import NO_ROLES, TokenRoles
from quantkit.units import listed

FOLDERS_VARIABLE = "QUANTKIT_FAMILIES"
"""Environment variable: folders of the user's own family files, separated as in PATH."""

# Classes that wrap a model when it is saved: before its own name, or in its place.
_WRAPPER = re.compile(r"^(FSDP|DDP|Peft)(?=[A-Z])")
_WRAPPER_CLASSES = (
    "DeepSpeedEngine",
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "OptimizedModule",
    "PeftModel",
    "PeftModelForCausalLM",
)
_ENDING = re.compile(r"(For[A-Z]\w+|LMHeadModel|Model)$")


def all_families() -> tuple[Family, ...]:
    """Every family by module name: quantkit's own, then those of the folders in QUANTKIT_FAMILIES.

    Raises:
        UsageError: a user's family file cannot be loaded.
    """
    return (*_own().values(), *_users(os.environ.get(FOLDERS_VARIABLE, "")).values())


@cache
def _own() -> dict[str, Family]:
    names = [entry.name for entry in pkgutil.iter_modules(families.__path__) if not entry.ispkg]
    modules = {name: importlib.import_module(f"{families.__name__}.{name}") for name in names}
    return {name: module.FAMILY for name, module in modules.items() if hasattr(module, "FAMILY")}


@cache
def _users(folders: str) -> dict[str, Family]:
    """The families of `folders`, by path of their file."""
    owners = {
        name: f"quantkit/families/{module}.py" for module, family in _own().items() for name in family.architectures
    }
    result: dict[str, Family] = {}
    for folder in filter(None, folders.split(os.pathsep)):
        if not Path(folder).is_dir():
            raise UsageError(f"{FOLDERS_VARIABLE} names {folder}, which is not a folder; correct or unset the variable")
        for path in sorted(Path(folder).glob("*.py")):
            family = _load(path)
            for name in family.architectures:
                if name in owners:
                    raise UsageError(
                        f"{path} defines architecture {name}, which {owners[name]} also defines; remove the name from"
                        " one of them"
                    )
                owners[name] = str(path)
            result[str(path)] = family
    return result


def _load(path: Path) -> Family:
    family = getattr(_import(path), "FAMILY", None)
    if not isinstance(family, Family):
        raise UsageError(f"{path} has no FAMILY; assign a quantkit.families.Family to FAMILY, or remove the file")
    return family


def _import(path: Path) -> ModuleType:
    name = f"quantkit_family_{sha256(os.fsencode(path.resolve())).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(
            f"family file {path} cannot be loaded ({type(error).__name__}: {error}); correct it, or remove it from the"
            f" folder that {FOLDERS_VARIABLE} names"
        ) from error
    return module


def find_family(config: Mapping[str, Any]) -> Family:
    """The family of the architecture that config.json names, see `complete_architecture`.

    Raises:
        UnsupportedError: no family has this architecture; the message names the nearest ones and the way to add one.
        UsageError: a user's family file cannot be loaded.
    """
    from quantkit.families.unconverted import CONVERTER, LEFT_TO_CONVERTER, LIMITS

    known = {name: family for family in all_families() for name in family.architectures}
    architecture = _architecture_name(complete_architecture(config))
    if (wrapped := _wrapped_family(config, architecture, known)) is not None:
        return wrapped
    if architecture in known:
        return known[architecture]
    if architecture is None:
        model_type = config.get("model_type")
        known_type = f" and its model_type {model_type!a} is not known" if isinstance(model_type, str) else ""
        raise UnsupportedError(
            f'config.json names no architecture{known_type}; add "architectures": ["NAME"] with the name of the'
            " model's class"
        )
    near = _nearest(architecture, known)
    hint = f"; the nearest by name {'are' if near[1:] else 'is'} {listed(near)}" if near else ""
    modules = {name: module for module, family in _own().items() for name in family.architectures}
    example = modules.get(near[0] if near else "", "llama")
    unsupported = f"architecture {architecture} of config.json is not supported yet"
    own_file = f"add a family file such as quantkit/families/{example}.py"
    if architecture not in LEFT_TO_CONVERTER:
        raise UnknownArchitectureError(
            f"{unsupported}, nor by llama.cpp's converter {CONVERTER}; if a newer llama.cpp runs it, {own_file}{hint}"
        )
    but = f", but {LIMITS[architecture]}" if architecture in LIMITS else ""
    raise UnknownArchitectureError(
        f"{unsupported}; llama.cpp's converter {CONVERTER} reads it{but}; for all else than a GGUF, {own_file}",
        for_converter=True,
    )


def _wrapped_family(config: Mapping[str, Any], architecture: str | None, known: Mapping[str, Family]) -> Family | None:
    """The family of the text model that a wrapper's config.json names, with the wrapper's tensor names; else None."""
    from quantkit.families.wrappers import NAMES, PROJECTORS, WRAPPERS

    wrapper = next((wrapper for wrapper in WRAPPERS if wrapper.architecture == architecture), None)
    if wrapper is None:
        return None
    if architecture in known and _architecture_name(nested_text_config(config) or {}) is None:
        return None
    text = wrapper.text_config(config)
    name = _architecture_name(text) or _architecture_of_type(text) or str(text["model_type"])
    name = NAMES.get(name, name)
    if name not in known:
        raise UnknownArchitectureError(
            f"the text model of config.json is of architecture {name}, which is not supported yet; only the text model"
            f" of {architecture} is converted"
        )
    family = known[name]
    return replace(
        family,
        architectures=(wrapper.architecture,),
        text_models={wrapper.architecture: (name, text["model_type"])},
        text_defaults=text,
        projectors={key: projector for key, projector in PROJECTORS.items() if architecture in (key, key[0])},
        rename=(*((rf"^(?={name}\.)", "tower.") for name in wrapper.outside), *TEXT_PREFIXES, *family.rename),
        dropped=(
            *family.dropped,
            Dropped("|".join((TOWERS, *(rf"{name}\..*" for name in wrapper.outside))), TOWERS_LEFT_OUT),
        ),
    )


def complete_architecture(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json with the architecture of its model_type where it names none or the class of a wrapper.

    A wrapper before a known name (FSDPLlamaForCausalLM) is taken off. Other configs are returned as they are.
    """
    name = _architecture_name(config)
    known = [known for family in all_families() for known in family.architectures]
    if name in known:
        return config
    inner: str | None = None
    if name is not None:
        inner = _WRAPPER.sub("", name)
        if inner not in known:
            inner = None
    if inner is None and (name is None or name in _WRAPPER_CLASSES):
        inner = _architecture_of_type(config)
    return config if inner is None else {**config, "architectures": [inner]}


def _architecture_of_type(config: Mapping[str, Any]) -> str | None:
    """The architecture of a config that names none, by its model_type.

    First a family that recognises the config's settings, then the architecture whose name is that of the model_type
    ("qwen2_moe": Qwen2MoeForCausalLM), then the family with defaults for it.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return None
    for family in all_families():
        if model_type in family.defaults and family.recognises is not None and family.recognises(config):
            return family.architectures[0]
    plain = model_type.removesuffix("_text").replace("_", "").replace("-", "").lower()
    for family in all_families():
        named = [name for name in family.architectures if _ENDING.sub("", name).replace("_", "").lower() == plain]
        whole = [name for name in named if name.endswith("ForConditionalGeneration") == ("text_config" in config)]
        if named:
            return (whole or named)[0]
    return next((family.architectures[0] for family in all_families() if model_type in family.defaults), None)


def _architecture_name(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def _nearest(architecture: str, known: Iterable[str]) -> list[str]:
    """The known architectures with the most similar names, at most three; endings such as ForCausalLM are left out."""
    # of several classes of one model, the last one counts
    models = {_ENDING.sub("", name): name for name in sorted(known, key=lambda name: name.endswith("ForCausalLM"))}
    close = difflib.get_close_matches(_ENDING.sub("", architecture), models, n=3, cutoff=0.65)
    return [models[name] for name in close]


def check_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse a model that config.json alone shows to be unsupported, before any weights are fetched.

    Returns config.json with its architecture filled in, see `complete_architecture`.

    Raises:
        UnsupportedError: no family has the architecture, or a GGUF cannot express a setting.
        CheckpointError: a size is missing or inconsistent with another one.
    """
    completed = complete_architecture(config)
    family = find_family(completed)
    sizes = family.sizes(completed)
    family.keys(family.arch(sizes), sizes)
    return completed


def find_architecture(config: Mapping[str, Any]) -> Architecture:
    """The forward's description of the native architecture that config.json names.

    Raises:
        UnsupportedError: no family describes this architecture, or the forward does not support a setting.
    """
    name = _architecture_name(config) or "LlamaForCausalLM"
    architecture = forward_architectures().get(name)
    if architecture is None:
        raise UnsupportedError(f"the reference forward does not support architecture {name} of config.json")
    reason = architecture.refused(config)
    if reason:
        raise UnsupportedError(f"the reference forward of {name} does not support {reason}")
    return replace(architecture, **architecture.variant(config))


def forward_architectures() -> dict[str, Architecture]:
    """Every architecture of transformers that the forward runs, by its name in config.json."""
    described: dict[str, Architecture] = {}
    for family in all_families():
        if isinstance(family.forward, Architecture):
            described |= dict.fromkeys(family.architectures, family.forward)
        elif family.forward is not None:
            described |= family.forward
    return described


def token_roles(config: Mapping[str, Any]) -> TokenRoles:
    """The special tokens that the code of config.json's architecture fixes."""
    from quantkit.families.unconverted import TOKEN_ROLES

    architecture = _architecture_name(config)
    known = {name: family for family in all_families() for name in family.architectures}
    family = _wrapped_family(config, architecture, known) or known.get(architecture or "")
    return TOKEN_ROLES.get(architecture or "", NO_ROLES) if family is None else family.token_roles


def traits_of(gguf_arch: str) -> Traits:
    """The traits of a GGUF architecture; those of Llama for an unknown one."""
    from quantkit.families.unconverted import TRAITS

    for family in all_families():
        if gguf_arch in family.gguf_archs:
            return family.traits
    return TRAITS.get(gguf_arch, Traits())


def has_checked_plan(gguf_arch: str) -> bool:
    """Whether the tests compare the compute buffer of this GGUF architecture with llama.cpp's."""
    return any(gguf_arch in family.gguf_archs for family in _own().values())


def positions_of(model_type: str | None) -> str | None:
    """`alibi`, `learned` or `none` if the model_type of config.json alone decides it, else None."""
    from quantkit.families.unconverted import POSITIONS

    for family in all_families():
        if model_type in family.defaults and family.traits.positions in ("alibi", "learned", "none"):
            return family.traits.positions
    return POSITIONS.get(model_type or "")
