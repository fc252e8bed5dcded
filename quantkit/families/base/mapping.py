"""The mapping of a checkpoint's tensors by a family's rules, onto GGUF or onto the native architecture."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.cuts import STACKED, Cuts, stacked_over
from quantkit.families.base.family import Dropped, Family, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.mapped import MXFP4_BLOCK, MappedTensor, Part
from quantkit.families.base.multimodal import without_images
from quantkit.families.base.projector import Projector, Tower
from quantkit.families.base.unmatched import is_known, known_names, missing_tensor, unknown_tensors

# Buffers that old checkpoints carry and every runtime recomputes.
_BUFFERS = Dropped(r".*\.(rotary_emb\.inv_freq|attention\.masked_bias|attention\.bias|attn\.masked_bias|attn\.bias)")


class Shaped(Protocol):
    """A tensor with a shape."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def map_tensors(family: Family, sizes: Hyperparameters, tensors: Mapping[str, Shaped]) -> list[MappedTensor]:
    """Every tensor of the GGUF with where it comes from, in the order of the rules.

    Raises:
        CheckpointError: a tensor is missing, or its shape is at odds with config.json.
        UnsupportedError: the checkpoint holds a tensor the family does not know (dropping it would change the model).
    """
    mapped = _Mapper(family, sizes, tensors).map(family.rules)
    for extra in family.computed:
        values = extra.values(sizes)
        if values is not None:
            targets = [extra.target.format(layer=layer) for layer in range(sizes.n_layer)]
            mapped += [
                MappedTensor(target, values.shape, values=values)
                for target in (targets if "{layer}" in extra.target else [extra.target])
            ]
    return mapped


def map_projector(projector: Projector, tower: Tower, tensors: Mapping[str, Shaped]) -> list[MappedTensor]:
    """Every tensor of the projector's GGUF with where it comes from, in the order of the rules.

    Raises CheckpointError and UnsupportedError as `map_tensors`.
    """
    return _Mapper(projector, tower, tensors).map((*projector.rules, *projector.computed_rules(tower)))


def why_missing(family: Family, sizes: Hyperparameters, tensors: Mapping[str, Shaped], name: str) -> CheckpointError:
    """The error for a tensor that a forward needs under this name and the checkpoint lacks; see `missing_tensor`."""
    return _Mapper(family, sizes, tensors).missing(name)


def left_out(family: Family, sizes: Hyperparameters, tensors: Mapping[str, Shaped]) -> list[str]:
    """Sentences about the checkpoint's tensors that a GGUF of this family does not contain."""
    sentences = []
    for drop in family.dropped:
        expression = drop.expression(sizes) if drop.why else None
        names = [name for name in tensors if expression.fullmatch(name)] if expression else []
        if names:
            more = ", ..." if len(names) > 1 else ""
            sentences.append(f"left out {len(names)} tensors ({names[0]}{more}): {drop.why}")
    return sentences


def canonical_checkpoint(
    family: Family, sizes: Hyperparameters, tensors: Mapping[str, Shaped], *, nearest: bool = False
) -> tuple[dict[str, Any], list[MappedTensor]]:
    """The checkpoint as its native transformers architecture: config.json, and the source of each tensor.

    `nearest`: accept the nearest architecture if none is the same (see `Canonical`).

    Raises:
        UnsupportedError: transformers has no native architecture for this checkpoint.
        CheckpointError: see `map_tensors`.
    """
    mapper = _Mapper(family, sizes, tensors)
    if family.canonical is None:
        kept = {source: name for name, source in mapper.names.items() if not mapper.is_dropped(source)}
        return _text_config(family, sizes.config), [
            MappedTensor(native, tuple(tensors[source].shape), (Part(source),)) for source, native in kept.items()
        ]
    canonical = family.canonical(sizes)
    if canonical is None or not (canonical.native or nearest):
        raise UnsupportedError(
            f"transformers has no architecture for this {family.name} checkpoint; convert it to GGUF instead"
        )
    return canonical.config(sizes.config), mapper.map(canonical.rules)


def _text_config(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    if not family.text_models:
        return dict(config)
    own_class = any(architecture in family.architectures for architecture, _ in family.text_models.values())
    return without_images(config, keep_sections=own_class)


def numbered_layers(rule: Rule, sizes: Hyperparameters) -> range:
    """The layers that a rule may have tensors in: the model's, or those that predict a later token."""
    return range(sizes.n_layer, sizes.n_layer + sizes.n_draft) if rule.draft else range(sizes.n_layer)


def names_at(rule: Rule, template: str, sizes: Hyperparameters, layer: int | None) -> list[str]:
    """The names that `template`, the rule's source or its scales, stands for in one layer."""
    over = stacked_over(rule)
    numbers = {"layer": layer, "draft": None if layer is None else layer - sizes.n_layer}
    if rule.parts:
        return [template.format(**numbers, part=part) for part in rule.parts]
    if over is None:
        return [template.format(**numbers)]
    return [template.format(**numbers, **{over: n}) for n in range(getattr(sizes, STACKED[over]))]


def renamed(family: Family | Projector, name: str) -> str:
    """A tensor's name in the checkpoint as the family's rules have it."""
    return _renamer(family)(name)


def _renamer(family: Family | Projector) -> Callable[[str], str]:
    """`renamed` for many names: re.sub would look each pattern up again for each of 60,000."""
    substitutions = [(re.compile(pattern).sub, replacement) for pattern, replacement in family.rename]

    def rename(name: str) -> str:
        for substitute, replacement in substitutions:
            name = substitute(replacement, name)
        return name

    return rename


class _Mapper:
    def __init__(self, family: Family | Projector, sizes: Hyperparameters, tensors: Mapping[str, Shaped]) -> None:
        self.family, self.sizes, self.tensors = family, sizes, tensors
        self.rules = family.rules
        # name as the rules have it -> name in the checkpoint
        rename = _renamer(family)
        self.names = {rename(name): name for name in tensors}
        self.used: set[str] = set()
        self.cuts = Cuts(family, sizes)
        expressions = (drop.expression(sizes) for drop in (*family.dropped, _BUFFERS))
        self.dropped = [expression.fullmatch for expression in expressions if expression is not None]
        self.sources: dict[tuple[int, int | None], list[str]] = {}

    @property
    def _whole(self) -> str:
        """What the rules describe."""
        return self.family.name if isinstance(self.family, Projector) else f"the {self.family.name} family"

    def missing(self, name: str, *, head: bool = False) -> CheckpointError:
        """The error for a tensor that the checkpoint lacks under this name; see `missing_tensor`."""
        if name in self.names:
            unknown = [self.names[name]]
        else:
            known = known_names(self.rules)
            unknown = [
                source
                for other, source in self.names.items()
                if not (is_known(other, known) or self.is_dropped(source) or self._is_scalar(other))
            ]
        return missing_tensor(name, self.sizes, unknown, head=head)

    def map(self, rules: tuple[Rule, ...]) -> list[MappedTensor]:
        self.rules = rules
        by_target: dict[tuple[str, bool], list[Rule]] = {}
        for rule in rules:
            if rule.when is None or rule.when(self.sizes):
                by_target.setdefault((rule.target, rule.draft), []).append(rule)
        mapped = []
        for candidates in by_target.values():
            for layer in self._layers(candidates[0]):
                tensor = self._first(candidates, layer)
                if tensor is not None:
                    mapped.append(tensor)
        unknown = [
            source
            for name, source in self.names.items()
            if name not in self.used and not self.is_dropped(source) and not self._is_scalar(name)
        ]
        if unknown:
            raise unknown_tensors(unknown, rules, self.sizes.n_layer, self._whole)
        return mapped

    def _layers(self, rule: Rule) -> Iterable[int | None]:
        return numbered_layers(rule, self.sizes) if rule.draft or "{layer}" in rule.source else (None,)

    def is_dropped(self, source: str) -> bool:
        return any(matches(source) for matches in self.dropped)

    def _is_scalar(self, name: str) -> bool:
        return self.family.scalars is not None and bool(re.fullmatch(self.family.scalars, name))

    def _first(self, candidates: list[Rule], layer: int | None) -> MappedTensor | None:
        """By the first rule for this layer with a source, in the right shape if possible; else by the first rule."""
        at_layer = [
            rule for rule in candidates if layer is None or rule.layers is None or layer in set(rule.layers(self.sizes))
        ]
        if not at_layer:
            return None
        present = [rule for rule in at_layer if any(name in self.names for name in self._sources(rule, layer))]
        fitting = (rule for rule in present if len(present) > 1 and self._fits(rule, layer))
        return self._apply(next(fitting, (present or at_layer)[0]), layer)

    def _fits(self, rule: Rule, layer: int | None) -> bool:
        """Whether the rule's first source is there in its shape; layouts may differ in the shape alone."""
        name = self._sources(rule, layer)[0]
        return name in self.names and tuple(self.tensors[self.names[name]].shape) == self._shape(rule, layer)

    def _shape(self, rule: Rule, layer: int | None) -> tuple[int, ...]:
        return tuple(self.family.dimension(self.sizes, name, layer) for name in rule.shape)

    def _sources(self, rule: Rule, layer: int | None) -> list[str]:
        key = (id(rule), layer)
        if key not in self.sources:
            self.sources[key] = self._sources_of(rule, layer)
        return self.sources[key]

    def _sources_of(self, rule: Rule, layer: int | None) -> list[str]:
        return self._names_of(rule, rule.source, layer)

    def _names_of(self, rule: Rule, template: str, layer: int | None) -> list[str]:
        """The names of a rule's sources, or of their scales."""
        return names_at(rule, template, self.sizes, layer)

    def _apply(self, rule: Rule, layer: int | None) -> MappedTensor | None:
        sizes = self.sizes
        names = self._sources(rule, layer)
        present = [name for name in names if name in self.names]
        if not present and not (rule.required or (rule.tied_to_embedding and not sizes.tied)):
            return None
        shape = self._shape(rule, layer)
        for name in names:
            if name not in self.names:
                raise self.missing(name, head=rule.tied_to_embedding)
            actual = tuple(self.tensors[self.names[name]].shape)
            if actual != shape:
                raise CheckpointError(
                    f"tensor {name} has shape {list(actual)}, but config.json makes it {list(shape)}"
                    f" ({' x '.join(rule.shape)}); use the config.json that belongs to these weights"
                )
        self.used.update(names)
        scales = self._names_of(rule, rule.scales, layer) if rule.scales else []
        for scale, name in zip(scales, names, strict=False):
            if scale not in self.names:
                raise CheckpointError(
                    f"tensor {scale} is missing from the checkpoint; without it {name} cannot be read"
                )
        if scales:
            self.used.update(scales)
            shape = (*shape[:-2], shape[-2] * MXFP4_BLOCK)
        stored_scales: list[str] | list[None] = [self.names[name] for name in scales] or [None] * len(names)
        tensor = self.cuts.tensor(
            rule, zip([self.names[name] for name in names], stored_scales, strict=True), shape, layer
        )
        if rule.times is None:
            return tensor
        times = self._factor(rule.times.format(layer=layer), names[0], shape)
        return replace(tensor, parts=tuple(replace(part, times=times) for part in tensor.parts))

    def _factor(self, name: str, of: str, shape: tuple[int, ...]) -> str:
        """The checkpoint's name of the tensor `name`, which multiplies the vector `of`."""
        if name not in self.names:
            raise CheckpointError(f"tensor {name} is missing from the checkpoint; without it {of} cannot be used")
        actual = tuple(self.tensors[self.names[name]].shape)
        if actual not in (shape, (1, *shape)):
            raise CheckpointError(
                f"tensor {name} has shape {list(actual)}, but it multiplies {of} of shape {list(shape)}; download the"
                " checkpoint again"
            )
        self.used.add(name)
        return self.names[name]
