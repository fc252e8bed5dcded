"""The data types of a family file: names, shapes, keys and transforms of its tensors."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import UsageError
from quantkit.families.base.hyperparameters import ROPE_KINDS, Hyperparameters, check_counts, read_hyperparameters
from quantkit.families.base.multimodal import as_text_model
from quantkit.families.base.traits import LLAMA_TRAITS, Traits
from quantkit.forward.description import Architecture
from quantkit.tokenizer.roles import NO_ROLES, TokenRoles

if TYPE_CHECKING:
    from quantkit.families.base.projector import Projector

Adjust = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Factor = float | NDArray[np.float32]


@dataclass(frozen=True)
class Take:
    """A matrix cut from a source tensor of shape (prod(shape[:-1]), shape[-1]); a vector counts as one row.

    `rows` and `columns` are indices in their new order; None takes all in order. For a vector, `rows` are its elements.
    `transposed` transposes the cut. Rows of the result come in groups of `step`: a group's source rows are read
    together (1 where rows keep the source's order).
    """

    rows: NDArray[np.int64] | None = None
    columns: NDArray[np.int64] | None = None
    transposed: bool = False
    step: int = 1


@dataclass(frozen=True)
class Rule:
    """One tensor of the family: its names, its shape, and the transform of its rows.

    `source` and `target` may hold `{layer}`; a `source` with `{expert}`, `{head}`, `{kv_head}` or `{stream}` (AltUp's
    streams but the first) is stacked over all of them, one with `{part}` over the names in `parts`. `shape` names the
    dimensions of one source tensor (see `Family.dimension`). `heads` names the count of attention heads whose rows go
    from Hugging Face's half-split rotary order to llama.cpp's interleaved one.

    Several rules may have the same target: the first whose source is in the checkpoint is used. `layers` restricts a
    rule to some layers, `when` to some configs. `take` cuts the target from the source: one matrix, or several
    stacked along a new first axis (the experts of a fused tensor); `half` cuts the first (0) or the second half (1) of
    the source's rows. `adjust` computes float32 rows from the
    (n, columns) rows of the cut; the tensor is then float32. `factors` make it float32 too: numbers, or one number per
    row of the cut, which multiply it one after the other. `scales` names the scale tensor of a source in MXFP4 blocks,
    with the placeholders of the source.
    Then `shape` is (..., blocks of a row, 16 bytes), and a block gives 32 values of a target row. `reshaped` names the
    dimensions of the target where they differ from those of the source or the cut; the elements keep their order.
    `times` names a second tensor of as many elements: the target is the product, in float32.

    `draft`: the tensor belongs to the layers that predict a later token (multi-token prediction). `{draft}` in its
    source counts them from 0; `{layer}` in its target goes on after the model's own layers.
    """

    source: str
    target: str
    shape: tuple[str, ...]
    heads: str | None = None
    required: bool = True
    tied_to_embedding: bool = False
    layers: Callable[[Hyperparameters], Iterable[int]] | None = None
    take: Callable[[Hyperparameters], "Take | tuple[Take, ...]"] | None = None
    half: int | None = None
    adjust: Adjust | None = None
    factors: Callable[[Hyperparameters], "tuple[Factor, ...]"] | None = None
    scales: str | None = None
    when: Callable[[Hyperparameters], bool] | None = None
    reshaped: tuple[str, ...] | None = None
    draft: bool = False
    parts: tuple[str, ...] = ()
    times: str | None = None


@dataclass(frozen=True)
class Key:
    """A GGUF key as plain data. `kind`: `u32`, `f32`, `str`, `bool`, or `u32s`, `i32s`, `f32s`, `bools` for arrays.

    `first`: the converter writes it before all but general.architecture.
    """

    name: str
    kind: str
    value: Any
    first: bool = False


@dataclass(frozen=True)
class Computed:
    """A tensor that is derived from config.json instead of read: float32 values or None if it does not apply.

    Every layer has one if `target` holds `{layer}`.
    """

    target: str
    values: Callable[[Hyperparameters], NDArray[np.float32] | None]


@dataclass(frozen=True)
class Canonical:
    """The native transformers architecture that computes the same as a checkpoint of remote code.

    `config` makes the native config.json from the checkpoint's completed one. `rules` map the checkpoint's tensors onto
    the native names, in transformers' order and layout. With `native` False, transformers has no such model. Then
    `config` names the nearest architecture, and a key of ours in it (`alibi`) describes the difference; our forward
    follows that key.
    """

    config: Callable[[Mapping[str, Any]], dict[str, Any]]
    rules: tuple[Rule, ...]
    native: bool = True


@dataclass(frozen=True)
class Dropped:
    """Source tensors that the GGUF does not have: a regular expression for whole names, and the reason.

    `why` ends the message "left out N tensors (FIRST, ...): "; an empty `why` gives no message. `layers` are the
    numbers that `{layer}` in the pattern stands for. `when` restricts it to some configs.
    """

    pattern: str
    why: str = ""
    layers: Callable[[Hyperparameters], Iterable[int]] | None = None
    when: Callable[[Hyperparameters], bool] | None = None

    def matches(self, sizes: Hyperparameters, name: str) -> bool:
        """Whether the source tensor `name` is left out."""
        expression = self.expression(sizes)
        return expression is not None and bool(expression.fullmatch(name))

    def expression(self, sizes: Hyperparameters) -> re.Pattern[str] | None:
        """What the whole name of a source tensor that is left out matches; None if none is left out."""
        if self.when is not None and not self.when(sizes):
            return None
        layers = "|".join(map(str, self.layers(sizes))) if self.layers else ""
        # without such layers in the config the pattern matches nothing
        return re.compile(self.pattern.replace("{layer}", f"(?:{layers or '(?!)'})"))


@dataclass(frozen=True)
class Family:
    """A model family as data.

    Attributes:
        name: the family's name.
        models: what users call the models.
        architectures: names in `architectures` of config.json.
        gguf_arch: `general.architecture` of the GGUF.
        arch_of: the same by config, where llama.cpp runs some models of the family as another architecture.
        other_archs: the further architectures that `arch_of` gives for this family alone; the family's traits apply.
        rules: the tensors of the GGUF.
        keys: the architecture's GGUF keys, in the order of llama.cpp's converter.
        computed: tensors that are computed from config.json.
        defaults: by model_type, the transformers config class's default of a key that config.json lacks. A `head_dim`
            entry, even None, marks a class that always has a head_dim.
        observe: completes a config by settings that only the names of the checkpoint's tensors show; applied before
            `prepare` wherever the tensors are known.
        recognises: whether a config that names no architecture is of this family, where several families share its
            model_type.
        prepare: turns a completed config into the standard names (hidden_size, num_attention_heads,
            intermediate_size...); refuses what a GGUF cannot express.
        rename: (regular expression, replacement) pairs for source names, applied before the rules: prefixes that depend
            on the class a checkpoint was saved from.
        dropped: source tensors that the GGUF does not have.
        scalars: a regular expression for names of tensors of one number that the GGUF has as keys; the number is in
            the config under `scalars` (see `with_scalars`).
        dimensions: sizes that rules name and `Hyperparameters` does not have.
        layer_dimensions: those of one layer, where layers differ.
        rope_kinds: the rope scalings that llama.cpp runs for this architecture.
        canonical: for a checkpoint of remote code, its native architecture, or None if it has none. Without
            `canonical` the family is native.
        cautions: sentences for the user about restrictions under which the GGUF equals the checkpoint.
        graph_differs: how llama.cpp's graph differs from the model, whatever config.json states: a sentence for the
            user; the logits of a GGUF are then not compared with the model's.
        text_models: by the architecture of a multimodal checkpoint, architecture and model_type of its text model; the
            config within its config.json is then the one that all else sees. None: the model_type that it states.
        text_defaults: what the nested config may leave out.
        no_effect: settings of its transformers config class that do not change the result of the GGUF. `settings` has
            those that all classes share.
        forward: the forward's description for all `architectures`, or one by name; None: no forward.
        traits: what the memory plan needs beyond tensors and keys.
        token_roles: special tokens that the family's code fixes.
        rerankers: names, in lower case, of published models of the family that are rerankers (see `resolve_reranker`).
        dense: llama.cpp runs Dense modules of sentence-transformers after the pooling (see `resolve_pooling`).
        projectors: by architecture of a checkpoint that sees images, its projector (mmproj); by architecture and
            model_type of the tower where several towers occur.
    """

    name: str
    models: str
    architectures: tuple[str, ...]
    gguf_arch: str
    rules: tuple[Rule, ...]
    keys: Callable[[str, Hyperparameters], list[Key]]
    arch_of: Callable[[Hyperparameters], str] | None = None
    other_archs: tuple[str, ...] = ()
    computed: tuple[Computed, ...] = ()
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    observe: Callable[[dict[str, Any], Collection[str]], dict[str, Any]] | None = None
    recognises: Callable[[Mapping[str, Any]], bool] | None = None
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    rename: tuple[tuple[str, str], ...] = ()
    dropped: tuple[Dropped, ...] = ()
    scalars: str | None = None
    dimensions: Callable[[Hyperparameters], Mapping[str, int]] | None = None
    layer_dimensions: Callable[[Hyperparameters, int], Mapping[str, int]] | None = None
    rope_kinds: tuple[str, ...] = ROPE_KINDS
    canonical: Callable[[Hyperparameters], Canonical | None] | None = None
    cautions: Callable[[Hyperparameters], Iterable[str]] = lambda sizes: ()
    graph_differs: str | None = None
    text_models: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    text_defaults: Mapping[str, Any] = field(default_factory=dict)
    no_effect: tuple[str, ...] = ()
    forward: Architecture | Mapping[str, Architecture] | None = None
    traits: Traits = LLAMA_TRAITS
    token_roles: TokenRoles = NO_ROLES
    rerankers: tuple[str, ...] = ()
    dense: bool = False
    projectors: Mapping[str | tuple[str, str], "Projector"] = field(default_factory=dict)

    def sizes(self, config: Mapping[str, Any], tensors: Collection[str] | None = None) -> Hyperparameters:
        """The sizes that a config.json of this family states.

        `tensors`: the names of the checkpoint's tensors, if they are known (see `observe`).

        Raises:
            CheckpointError, UnsupportedError: from `read_hyperparameters` or from the family's `prepare`.
        """
        sizes = read_hyperparameters(self.complete(config, tensors), self.rope_kinds)
        # other classes ignore such layers, whatever config.json states
        return sizes if any(rule.draft for rule in self.rules) else replace(sizes, n_draft=0)

    @property
    def gguf_archs(self) -> tuple[str, ...]:
        """Values of `general.architecture` whose traits are the family's."""
        return (self.gguf_arch, *self.other_archs)

    def arch(self, sizes: Hyperparameters) -> str:
        """`general.architecture` of the GGUF of a model of these sizes."""
        return self.arch_of(sizes) if self.arch_of else self.gguf_arch

    def dimension(self, sizes: Hyperparameters, name: str, layer: int | None = None) -> int:
        """Size of a dimension named by a rule: a number, the family's own, a field of `sizes`, `q` or `kv`.

        `layer`: the number of the rule's layer, where it has one. Raises UsageError for a name that is none of these.
        """
        if layer is not None and self.layer_dimensions:
            of_layer = self.layer_dimensions(sizes, layer)
            if name in of_layer:
                return of_layer[name]
        dims = self.dimensions(sizes) if self.dimensions else {}
        if name in dims:
            return dims[name]
        if not sizes.has_dimension(name):
            raise UsageError(
                f"family {self.name} has a rule with the dimension {name!r}, which is not a field of Hyperparameters;"
                " add it to the family's dimensions"
            )
        return sizes.dimension(name)

    def complete(self, config: Mapping[str, Any], tensors: Collection[str] | None = None) -> dict[str, Any]:
        """config.json with the defaults of transformers for missing keys; llama.cpp's converter reads the same.

        A config of another model_type, or of none, gets no defaults.
        """
        full = self._with_defaults(self._text(config))
        check_counts(full)
        if self.observe and tensors is not None:
            full = self.observe(full, tensors)
        return self.prepare(full) if self.prepare else full

    def _text(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        names = config.get("architectures")
        text = self.text_models.get(str(names[0])) if isinstance(names, list) and names else None
        return as_text_model(config, *text, self.text_defaults) if text else config

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
