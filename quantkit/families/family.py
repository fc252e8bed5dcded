"""What a family file is made of, and the mapping of a checkpoint's tensors by its rules."""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.hyperparameters import Hyperparameters

# Buffers that old checkpoints carry and every runtime recomputes.
IGNORED = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")


@dataclass(frozen=True)
class Rule:
    """One tensor of the family: its names, its shape, and what happens to its rows on the way.

    `source` and `target` may hold `{layer}`; a `source` with `{expert}` is stacked over all experts. `shape` names the
    dimensions of one source tensor (see `Hyperparameters.dimension`). `heads` names the count of attention heads whose
    rows go from Hugging Face's half-split rotary order to llama.cpp's interleaved one.
    """

    source: str
    target: str
    shape: tuple[str, ...]
    heads: str | None = None
    required: bool = True
    tied_to_embedding: bool = False


@dataclass(frozen=True)
class Key:
    """A GGUF key as plain data. `kind` is one of `u32`, `f32`, `str`, `bool`."""

    name: str
    kind: str
    value: Any


@dataclass(frozen=True)
class Computed:
    """A tensor that is derived from config.json instead of read: float32 values or None where it does not apply."""

    target: str
    values: Callable[[Hyperparameters], NDArray[np.float32] | None]


@dataclass(frozen=True)
class Family:
    """A model family as data.

    `keys` gives the architecture's GGUF keys in the order of llama.cpp's converter. `models` is what users call it.
    `defaults` maps each model_type to what its transformers config class takes for a key that config.json leaves out;
    a `head_dim` there, whatever its value, says that the class states one even where config.json does not.
    """

    name: str
    models: str
    architectures: tuple[str, ...]
    gguf_arch: str
    rules: tuple[Rule, ...]
    keys: Callable[[str, Hyperparameters], list[Key]]
    computed: tuple[Computed, ...] = ()
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A config.json with its gaps filled as transformers fills them, which is also what llama.cpp's converter sees.

        A config of another model_type, or of none, is returned as it stands.
        """
        defaults = self.defaults.get(str(config.get("model_type")))
        if defaults is None:
            return dict(config)
        full = {**defaults, **config}
        heads, hidden = full.get("num_attention_heads"), full.get("hidden_size")
        if full.get("num_key_value_heads") is None:
            full["num_key_value_heads"] = heads
        if "head_dim" in defaults and full["head_dim"] is None and isinstance(heads, int) and isinstance(hidden, int):
            full["head_dim"] = hidden // max(heads, 1) if hidden % max(heads, 1) == 0 else None
        return full


@dataclass(frozen=True)
class Part:
    """A source tensor, and which of its rows in which order (None: all, as they stand)."""

    source: str
    rows: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class MappedTensor:
    """A tensor of the GGUF: `parts` stacked along a new first axis, or `values` computed.

    `shape` is in numpy order. Rows may be taken in steps of `row_step`: within a step the order of rows is closed.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...] = ()
    values: NDArray[np.float32] | None = None
    row_step: int = 1


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


def map_tensors(family: Family, sizes: Hyperparameters, tensors: Mapping[str, _Shaped]) -> list[MappedTensor]:
    """Every tensor of the GGUF with where it comes from, in the order of the rules.

    Raises:
        CheckpointError: a tensor is missing, or its shape is at odds with config.json.
        UnsupportedError: the checkpoint holds a tensor the family does not know (dropping it would change the model).
    """
    used: set[str] = set()
    mapped: list[MappedTensor] = []
    for rule in family.rules:
        for layer in range(sizes.n_layer) if "{layer}" in rule.source else (None,):
            tensor = _apply(rule, layer, sizes, tensors, used)
            if tensor is not None:
                mapped.append(tensor)
    for extra in family.computed:
        values = extra.values(sizes)
        if values is not None:
            mapped.append(MappedTensor(extra.target, values.shape, values=values))
    unknown = [name for name in tensors if name not in used and not name.endswith(IGNORED)]
    if unknown:
        _refuse_unknown(family, sizes, unknown)
    return mapped


def _apply(
    rule: Rule,
    layer: int | None,
    sizes: Hyperparameters,
    tensors: Mapping[str, _Shaped],
    used: set[str],
) -> MappedTensor | None:
    experts = range(sizes.n_expert) if "{expert}" in rule.source else (None,)
    names = [rule.source.format(layer=layer, expert=expert) for expert in experts]
    present = [name for name in names if name in tensors]
    if not present and not (rule.required or (rule.tied_to_embedding and not sizes.tied)):
        return None
    shape = tuple(sizes.dimension(name) for name in rule.shape)
    for name in names:
        if name not in tensors:
            raise CheckpointError(
                f"tensor {name} is missing from the checkpoint; config.json asks for {sizes.n_layer} layers"
                + (f" of {sizes.n_expert} experts" if sizes.n_expert else "")
                + (
                    ""
                    if not rule.tied_to_embedding
                    else " and an output head of its own (tie_word_embeddings is false)"
                )
            )
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(
                f"tensor {name} has shape {list(tensors[name].shape)}, but config.json makes it {list(shape)}"
                f" ({' x '.join(rule.shape)}); the weights and config.json do not belong together"
            )
    used.update(names)
    rows = interleave_rotary_rows(getattr(sizes, rule.heads), shape[0]) if rule.heads else None
    return MappedTensor(
        name=rule.target.format(layer=layer),
        shape=shape if experts == (None,) else (len(names), *shape),
        parts=tuple(Part(name, rows) for name in names),
        row_step=sizes.head_dim if rule.heads else 1,
    )


def interleave_rotary_rows(n_head: int, n_rows: int) -> NDArray[np.int64]:
    """Row order from half-split rotary pairs (i, i + d/2) to neighbours (2i, 2i + 1), head by head.

    Returns int64 (n_rows,): row r of the result is row `order[r]` of the source. llama.cpp's converter calls this
    `permute`; its "norm" rope rotates neighbouring values, transformers rotates halves.
    """
    return np.arange(n_rows, dtype=np.int64).reshape(n_head, 2, -1).swapaxes(1, 2).reshape(-1)


def _refuse_unknown(family: Family, sizes: Hyperparameters, unknown: list[str]) -> None:
    beyond = [name for name in unknown if any(int(n) >= sizes.n_layer for n in re.findall(r"layers\.(\d+)\.", name))]
    if beyond:
        raise CheckpointError(
            f"tensor {beyond[0]} is beyond the {sizes.n_layer} layers of config.json;"
            " the weights and config.json do not belong together"
        )
    known = [rule.source.format(layer=0, expert=0) for rule in family.rules]
    close = difflib.get_close_matches(re.sub(r"\.\d+\.", ".0.", unknown[0]), known, n=1)
    more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    hint = f"; the nearest it knows is {close[0]}" if close else ""
    raise UnsupportedError(f"tensor {unknown[0]}{more} is not part of the {family.name} family{hint}")
