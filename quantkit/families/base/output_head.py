"""Whether the output head is the embedding: config.json states it, and the weights may contradict it.

An adapter can train one of the two. Its merge leaves both in the checkpoint while config.json still ties them. The
choice is that of transformers 5 (`PreTrainedModel.tie_weights`): two different matrices are both kept; a single one
serves as both.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint import Checkpoint, TensorInfo
from quantkit.errors import QuantkitError, UnsupportedError
from quantkit.families.base.family import Family
from quantkit.families.base.mapping import renamed
from quantkit.families.base.registry import find_family

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_USUAL_HEAD = "lm_head.weight"
_PIECE = 1 << 20
"""Elements of each matrix that are compared at once."""


def resolve_output_head(checkpoint: Checkpoint) -> None:
    """Decide whether the head of an open checkpoint is its embedding; a change is noted in `checkpoint.notes`.

    Where config.json ties them and the weights differ, `tie_word_embeddings` becomes false. Where only the head is in
    the weight files, it serves as the embedding. Without weights (headers only) the matrices are not compared.

    Raises:
        UnsupportedError: the weights differ, and llama.cpp runs the family only with a tied head.
    """
    family = _family_of_tied(checkpoint.config)
    if family is None:
        return
    embedding, head = _names(family, checkpoint.tensors)
    if head is None:
        return
    if embedding is None:
        name = _source_of(family, _EMBEDDING)
        tensors = {**checkpoint.tensors, name: replace(checkpoint.tensors[head], name=name)}
        del tensors[head]
        checkpoint.amend(checkpoint.config, tensors, f"{head} serves as the embedding, which the weight files lack")
    elif checkpoint.has_weights and _differ(
        checkpoint.tensors[embedding], checkpoint.tensors[head], checkpoint.read_rows
    ):
        config = untied(checkpoint.config)
        _check_supported(family, config, embedding, head)
        checkpoint.amend(config, checkpoint.tensors, _note(embedding, head))


def untied_config(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], read_rows: Callable[[str, int, int], NDArray[Any]]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """config.json of a quantized folder, untied if the head differs from the embedding, and a note on that.

    `read_rows(name, start, stop)` reads rows of a tensor as (stop - start, shape[-1]).
    """
    family = _family_of_tied(config)
    embedding, head = _names(family, tensors) if family else (None, None)
    if embedding is None or head is None or not _differ(tensors[embedding], tensors[head], read_rows):
        return dict(config), ()
    return untied(config), (_note(embedding, head),)


def head_names(family: Family) -> tuple[str, str]:
    """The names of the embedding and of the output head in the family's rules."""
    return _source_of(family, _EMBEDDING), _source_of(family, _HEAD)


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with `tie_word_embeddings` false, in its text_config too."""
    result = {**config, "tie_word_embeddings": False}
    if isinstance(text := config.get("text_config"), Mapping):
        result["text_config"] = {**text, "tie_word_embeddings": False}
    return result


def _family_of_tied(config: Mapping[str, Any]) -> Family | None:
    """The family of a config that ties the head; None for another one, or one that no family accepts."""
    try:
        family = find_family(config)
        return family if family.complete(config).get("tie_word_embeddings") else None
    except QuantkitError:
        return None


def _names(family: Family, tensors: Mapping[str, TensorInfo]) -> tuple[str | None, str | None]:
    """The checkpoint's names of the embedding and of the head, None for one that it lacks."""
    names = {renamed(family, name): name for name in tensors}
    return names.get(_source_of(family, _EMBEDDING)), names.get(_source_of(family, _HEAD))


def _source_of(family: Family, target: str) -> str:
    return next((rule.source for rule in family.rules if rule.target == target), _USUAL_HEAD)


def _differ(one: TensorInfo, other: TensorInfo, read_rows: Callable[[str, int, int], NDArray[Any]]) -> bool:
    if one.shape != other.shape:
        return True
    step = max(1, _PIECE // max(one.row_length, 1))
    for start in range(0, one.n_rows, step):
        stop = min(start + step, one.n_rows)
        first, second = (read_rows(tensor.name, start, stop).astype(np.float32) for tensor in (one, other))
        if not np.array_equal(first, second):
            return True
    return False


def _check_supported(family: Family, config: Mapping[str, Any], embedding: str, head: str) -> None:
    try:
        family.sizes(config)
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{head} differs from {embedding}, but llama.cpp runs {family.name} only with the embedding as the head;"
            f" remove {head} from the weight files if the embedding is the right head"
        ) from error


def _note(embedding: str, head: str) -> str:
    return (
        f"config.json has tie_word_embeddings true, but {head} differs from {embedding}; both are kept, as in"
        " transformers 5; set tie_word_embeddings to false to avoid this warning"
    )
