"""The pooling of an embedding model: sentence-transformers' modules.json, and the key that llama.cpp has for it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quantkit.checkpoint import Checkpoint
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.family import Key
from quantkit.families.base.hyperparameters import Hyperparameters, size
from quantkit.forward.weights import Array, Weights

SETTING = "pooling"
"""The name under which the config holds the kind of pooling."""

LENGTH = "sentence_length"
"""The name under which the config holds the tokens to which sentence-transformers cuts a text."""

# llama.cpp's llama_pooling_type
RANK = "rank"
_KINDS = {"mean": 1, "cls": 2, "lasttoken": 3, RANK: 4}
_STATED = ("mean", "cls", "lasttoken")
# the modules of sentence-transformers that leave nothing out of a GGUF; llama.cpp's caller normalizes
_RUN = ("Transformer", "Pooling", "Normalize")
_DENSE = "Dense"
_IDENTITY = "torch.nn.modules.linear.Identity"
DENSE = "dense_modules"
"""The name under which the config holds (folder, inputs, outputs) of each Dense module after the pooling."""
_FLAGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken"}


def resolve_pooling(checkpoint: Checkpoint, *, dense: bool = False) -> None:
    """Add the pooling of an embedding model, and the length of its texts, to the config of an open checkpoint.

    `dense`: llama.cpp runs Dense modules after the pooling of this family; they are added too.

    Raises:
        CheckpointError: modules.json names a module without a readable config.json.
        UnsupportedError: a kind of pooling or a module that llama.cpp does not have.
    """
    kind = pooling_of(checkpoint.folder, dense=dense)
    length = _mapping(_read(checkpoint.folder / "sentence_bert_config.json")).get("max_seq_length")
    stated = {SETTING: kind, LENGTH: length, DENSE: dense_modules(checkpoint.folder) or None}
    checkpoint.config = {**checkpoint.config, **{name: value for name, value in stated.items() if value is not None}}


def pooling_of(folder: Path, *, dense: bool = False) -> str | None:
    """`mean`, `cls` or `lasttoken` by the modules.json or embedding_config.json in `folder`; None without them.

    `dense` and raises: see `resolve_pooling`.
    """
    modules = _read(folder / "modules.json")
    if not isinstance(modules, list):
        stated = _mapping(_read(folder / "embedding_config.json")).get("pooling")
        if stated not in (None, "last_token"):
            raise UnsupportedError(
                f"{folder / 'embedding_config.json'} states the pooling {stated!r}; llama.cpp's files of this kind have"
                " last_token only"
            )
        return "lasttoken" if stated else None
    _refuse_modules(modules, folder, (*_RUN, _DENSE) if dense else _RUN)
    paths = _paths(modules, "Pooling")
    if not paths:
        return None
    path = folder / paths[0] / "config.json"
    settings = _settings(path)
    kind = next((kind for flag, kind in _FLAGS.items() if settings.get(flag)), settings.get("pooling_mode"))
    if kind not in _STATED:
        raise UnsupportedError(
            f"{path} states another pooling than mean, cls or lasttoken; llama.cpp supports only these"
        )
    return str(kind)


def dense_modules(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """(folder, inputs, outputs) of each Dense module that modules.json names, in order.

    Raises:
        CheckpointError: a module has no readable config.json, or its sizes are not whole numbers.
        UnsupportedError: a module has a bias or an activation, which llama.cpp does not run.
    """
    modules = _read(folder / "modules.json")
    result = []
    for name in _paths(modules, _DENSE) if isinstance(modules, list) else []:
        path = folder / name / "config.json"
        settings = _settings(path)
        if settings.get("bias") or settings.get("activation_function", _IDENTITY) != _IDENTITY:
            raise UnsupportedError(
                f"{path} states a bias or an activation; llama.cpp runs a Dense module only without them"
            )
        try:
            result.append((name, size(settings, "in_features"), size(settings, "out_features")))
        except CheckpointError as error:
            raise CheckpointError(f"{path} lacks its sizes ({error}); download it again") from error
    return tuple(result)


def through_dense(states: Array, modules: Iterable[tuple[str, int, int]], weights: Weights) -> Array:
    """Hidden states or embeddings (n, inputs) through the Dense modules (see `dense_modules`): (n, outputs)."""
    for name, _, width in modules:
        states = weights.linear(f"{name}.linear", states, width)
    return states


def pooling_keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """The key for the pooling, if the checkpoint states one."""
    kind = sizes.config.get(SETTING)
    return [Key(f"{arch}.pooling_type", "u32", _KINDS[kind])] if kind in _KINDS else []


def as_bare_model(config: dict[str, Any]) -> None:
    """Give a model that was saved without a head its embedding as one, as llama.cpp does; a vector needs no head.

    Raises:
        UnsupportedError: attention to later tokens.
    """
    if config.get("is_causal") is False:
        raise UnsupportedError(
            "config.json: is_causal is false; quantkit converts models of this family with causal attention only"
        )
    name = str(config["architectures"][0])
    if name.endswith("Model"):
        config.update(architectures=[name.removesuffix("Model") + "ForCausalLM"], tie_word_embeddings=True)


def _paths(modules: list[Any], kind: str) -> list[str]:
    """The folders of the modules of a kind."""
    return [str(_mapping(module).get("path")) for module in modules if _kind(module) == kind]


def _kind(module: Any) -> str:
    return str(_mapping(module).get("type")).rpartition(".")[2]


def _settings(path: Path) -> Mapping[str, Any]:
    settings = _read(path) if ".." not in path.parts else None
    if not isinstance(settings, Mapping):
        raise CheckpointError(f"{path} cannot be read, but modules.json names it; download it again")
    return settings


def _refuse_modules(modules: list[Any], folder: Path, run: tuple[str, ...]) -> None:
    """Raise UnsupportedError for a module that changes the embedding and that llama.cpp does not run."""
    for module in modules:
        kind = _kind(module)
        if kind not in run:
            raise UnsupportedError(
                f"{folder / 'modules.json'} has a {kind} module, which llama.cpp does not run; a GGUF of this model"
                " would give other embeddings"
            )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
