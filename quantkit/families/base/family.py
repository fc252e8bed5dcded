"""What a family file is made of: plain data about names, shapes, keys and what happens to a tensor on the way."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.families.base.hyperparameters import ROPE_KINDS, Hyperparameters, read_hyperparameters
from quantkit.families.base.traits import LLAMA_TRAITS, Traits
from quantkit.forward.description import Architecture
from quantkit.tokenizer.roles import NO_ROLES, TokenRoles

Adjust = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Take:
    """A matrix cut out of a source tensor, which is seen as (prod(shape[:-1]), shape[-1]); a vector as one row.

    `rows` and `columns` say which, in which order (None: all, as they stand); of a vector `rows` are its elements.
    `transposed` turns the cut on its side. `step` is how many rows of the result belong together: within a step the
    order of rows is closed, so that a step is read at once (1 where rows stand in the source's order).
    """

    rows: NDArray[np.int64] | None = None
    columns: NDArray[np.int64] | None = None
    transposed: bool = False
    step: int = 1


@dataclass(frozen=True)
class Rule:
    """One tensor of the family: its names, its shape, and what happens to its rows on the way.

    `source` and `target` may hold `{layer}`; a `source` with `{expert}`, `{head}` or `{kv_head}` is stacked over all of
    them. `shape` names the dimensions of one source tensor (see `Family.dimension`). `heads` names the count of
    attention heads whose rows go from Hugging Face's half-split rotary order to llama.cpp's interleaved one.

    Several rules may have the same target: the first whose source is in the checkpoint is used. `layers` restricts a
    rule to some layers, `when` to some configs. `take` cuts the target out of the source: one matrix, or several that
    are stacked along a new first axis (the experts of a fused tensor). `adjust` computes new float32 rows out of the
    (n, columns) rows taken; a tensor so changed is float32 from there on. `scales` names the scale tensor of a source
    in MXFP4 blocks: `shape` is then that of the blocks (..., blocks of a row, 16 bytes) and the target has rows of 32
    values a block.
    """

    source: str
    target: str
    shape: tuple[str, ...]
    heads: str | None = None
    required: bool = True
    tied_to_embedding: bool = False
    layers: Callable[[Hyperparameters], Iterable[int]] | None = None
    take: Callable[[Hyperparameters], "Take | tuple[Take, ...]"] | None = None
    adjust: Adjust | None = None
    scales: str | None = None
    when: Callable[[Hyperparameters], bool] | None = None


@dataclass(frozen=True)
class Key:
    """A GGUF key as plain data. `kind`: `u32`, `f32`, `str`, `bool`, or `u32s`, `i32s`, `f32s`, `bools` for arrays."""

    name: str
    kind: str
    value: Any


@dataclass(frozen=True)
class Computed:
    """A tensor that is derived from config.json instead of read: float32 values or None where it does not apply."""

    target: str
    values: Callable[[Hyperparameters], NDArray[np.float32] | None]


@dataclass(frozen=True)
class Canonical:
    """The native transformers architecture that a checkpoint of remote code is the same model as.

    `config` makes the native config.json out of the checkpoint's own (completed) one; `rules` map the checkpoint's
    tensors onto the native names, in the order and layout transformers has. Where not `native`, transformers has no
    such model, but the architecture that `config` names is the nearest, and `config` says in a key of our own what sets
    it apart (`alibi`): quantkit's reference forward follows that.
    """

    config: Callable[[Mapping[str, Any]], dict[str, Any]]
    rules: tuple[Rule, ...]
    native: bool = True


@dataclass(frozen=True)
class Dropped:
    """Source tensors that no GGUF of the family carries: a regular expression over whole names, and why.

    `why` is told to the user, as the end of "left out N tensors (FIRST, ...): "; an empty one is not worth telling.
    `layers` are the numbers that `{layer}` in the pattern stands for.
    """

    pattern: str
    why: str = ""
    layers: Callable[[Hyperparameters], Iterable[int]] | None = None

    def matches(self, sizes: Hyperparameters, name: str) -> bool:
        """Whether the source tensor `name` is left out."""
        layers = "|".join(map(str, self.layers(sizes))) if self.layers else ""
        # a pattern for layers that a config has none of matches nothing
        return bool(re.fullmatch(self.pattern.replace("{layer}", f"(?:{layers or '(?!)'})"), name))


@dataclass(frozen=True)
class Family:
    """A model family as data.

    `keys` gives the architecture's GGUF keys in the order of llama.cpp's converter. `models` is what users call it.
    `defaults` maps each model_type to what its transformers config class takes for a key that config.json leaves out;
    a `head_dim` there, whatever its value, says that the class states one even where config.json does not.
    `prepare` turns a completed config into the standard names (hidden_size, num_attention_heads, intermediate_size...)
    and refuses what a GGUF cannot express. `rename` are (regular expression, replacement) pairs applied to source
    names before the rules: prefixes that differ by the class a checkpoint was saved from. `dimensions` gives sizes that
    rules name and `Hyperparameters` does not know. `canonical` tells of the native architecture of a checkpoint that
    needs remote code, or None where it has none; families without it are native themselves. `cautions` are sentences
    for the user about a GGUF that is true to the checkpoint only with a restriction.
    """

    name: str
    models: str
    architectures: tuple[str, ...]
    gguf_arch: str
    rules: tuple[Rule, ...]
    keys: Callable[[str, Hyperparameters], list[Key]]
    computed: tuple[Computed, ...] = ()
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    rename: tuple[tuple[str, str], ...] = ()
    dropped: tuple[Dropped, ...] = ()
    dimensions: Callable[[Hyperparameters], Mapping[str, int]] | None = None
    rope_kinds: tuple[str, ...] = ROPE_KINDS
    canonical: Callable[[Hyperparameters], Canonical | None] | None = None
    cautions: Callable[[Hyperparameters], Iterable[str]] = lambda sizes: ()
    forward: Architecture | Mapping[str, Architecture] | None = None
    traits: Traits = LLAMA_TRAITS
    token_roles: TokenRoles = NO_ROLES

    def sizes(self, config: Mapping[str, Any]) -> Hyperparameters:
        """The sizes that a config.json of this family states.

        Raises:
            CheckpointError, UnsupportedError: see `read_hyperparameters`, or what the family itself refuses.
        """
        return read_hyperparameters(self.complete(config), self.rope_kinds)

    def dimension(self, sizes: Hyperparameters, name: str) -> int:
        """Size of a dimension named by a rule: a number, the family's own, a field of `sizes`, `q` or `kv`."""
        own = self.dimensions(sizes) if self.dimensions else {}
        return own[name] if name in own else sizes.dimension(name)

    def complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A config.json with its gaps filled as transformers fills them, which is also what llama.cpp's converter sees.

        A config of another model_type, or of none, gets no defaults.
        """
        full = self._with_defaults(config)
        return self.prepare(full) if self.prepare else full

    def _with_defaults(self, config: Mapping[str, Any]) -> dict[str, Any]:
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
