"""Adapters onto a checkpoint: which of its tensors each changes, and how."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.adapters.adapter import Adapter
from quantkit.adapters.matching import Matcher, Product, check_pairs
from quantkit.adapters.merging import AddBias, Change, Factor, LowRank, Merge, Replace, ReplaceTokens
from quantkit.checkpoint import Checkpoint, TensorInfo
from quantkit.checkpoint.jsonfile import shown
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families.base.output_head import untied


def apply_adapters(checkpoint: Checkpoint, adapters: Sequence[Adapter], *, bridged: bool = False) -> tuple[str, ...]:
    """From now on `checkpoint` reads merged weights: its own with all `adapters`, in order, as PEFT merges them.

    A tensor keeps its type. The checkpoint is named BASE-ADAPTER, and closes the adapters. `bridged`: it has no family,
    llama.cpp's converter reads it. Returns the names of the tensors that differ from the weight files.

    Raises:
        CheckpointError: an adapter does not fit the checkpoint: a name, a shape, a rank or a part.
        UnsupportedError: an adapter has an effect that no merged weight has.
    """
    before = set(checkpoint.tensors)
    merger = _Merger(checkpoint, bridged=bridged)
    for adapter in adapters:
        merger.add(adapter)
    merges = {
        name: Merge(tuple(changes), checkpoint.tensors[name].read_dtype) for name, changes in merger.changes.items()
    }

    def read(name: str, start: int, stop: int, stored: Callable[[str, int, int], NDArray[Any]]) -> NDArray[Any]:
        merge = merges.get(name)
        if merge is None:
            return stored(name, start, stop)
        return merge.rows(lambda first, last: stored(name, first, last), start, stop)

    checkpoint.overlay(read, tuple(adapters), "-".join((checkpoint.name, *(adapter.name for adapter in adapters))))
    return tuple(sorted(merges.keys() | checkpoint.tensors.keys() - before))


class _Merger:
    def __init__(self, checkpoint: Checkpoint, *, bridged: bool) -> None:
        self.checkpoint = checkpoint
        self.matcher = Matcher(checkpoint, bridged=bridged)
        self.changes: dict[str, list[Change]] = {}

    def add(self, adapter: Adapter) -> None:
        config = adapter.config
        if config.invocation_tokens:
            raise UnsupportedError(
                f"{adapter.source} is an aLoRA, which takes effect after its invocation tokens only; write it as an"
                " adapter GGUF with quantkit lora instead of merging it"
            )
        check_pairs(adapter)
        for module, parts in adapter.modules.items():
            if config.keeps_tied and self.matcher.is_tied_head(module):
                continue  # it is the embedding's, saved twice
            if "weight" in parts:
                self._replace(adapter, module, "weight", parts["weight"])
            if "saved_bias" in parts:
                self._replace(adapter, module, "bias", parts["saved_bias"])
            if "tokens" in parts:
                self._replace_tokens(adapter, module, parts["tokens"])
            if "A" in parts or "embedding_A" in parts:
                product = self.matcher.product(adapter, module, self._find(adapter, module, "weight"))
                assert product is not None
                self._add_product(adapter, product, parts.get("magnitude"))
            if "bias" in parts:
                name = self._find(adapter, module, "bias")
                self.matcher.check_shape(adapter, parts["bias"], name, parts["bias"].shape)
                self._change(name, AddBias(adapter, parts["bias"], config.scaling_of(module) * adapter.scale))

    def _change(self, name: str, change: Change) -> None:
        self.changes.setdefault(name, []).append(change)

    def _find(self, adapter: Adapter, module: str, leaf: str, *, stays_tied: bool = False) -> str:
        """The checkpoint's tensor that a module of the adapter is; a tied head becomes a separate tensor."""
        matcher = self.matcher
        name = matcher.find(module, leaf)
        if name is None and leaf == "weight" and matcher.is_tied_head(module):
            self._untie()
            return matcher.head
        if name is None:
            raise matcher.missing(adapter, module, leaf)
        is_tied = matcher.names.get(matcher.embedding) == name and matcher.head not in matcher.names
        if is_tied and not (stays_tied or adapter.config.keeps_tied):
            # The adapter was trained beside the base's head, which the change of the embedding must not reach.
            self._untie()
        return name

    def _untie(self) -> None:
        matcher = self.matcher
        source = self.checkpoint.tensors[matcher.names[matcher.embedding]]
        tensors = {**self.checkpoint.tensors, matcher.head: replace(source, name=matcher.head)}
        config = untied(self.checkpoint.config)
        if matcher.base.family is not None:
            matcher.family.sizes(config, tensors)
        self.checkpoint.amend(
            config, tensors, "the adapter changes the embedding or the output head alone; both are written, not tied"
        )
        matcher.update()

    def _replace(self, adapter: Adapter, module: str, leaf: str, tensor: TensorInfo) -> None:
        name = self._find(adapter, module, leaf)
        self.matcher.check_shape(adapter, tensor, name, tensor.shape)
        if name in self.changes:
            raise CheckpointError(
                f"{adapter.source} replaces {shown(name)}, which another adapter changes too; merge one of them only"
            )
        self._change(name, Replace(adapter, tensor))

    def _replace_tokens(self, adapter: Adapter, module: str, tensor: TensorInfo) -> None:
        rows = adapter.config.token_rows or {}
        tokens = next((ids for pattern, ids in rows.items() if module.endswith(pattern)), ())
        # PEFT trains the rows of a tied head with those of the embedding, so the two stay tied
        name = self._find(adapter, module, "weight", stays_tied=True)
        base = self.checkpoint.tensors[name]
        if tensor.shape != (len(tokens), base.row_length) or max(tokens, default=0) >= base.n_rows:
            raise CheckpointError(
                f"{shown(tensor.name)} of {adapter.source} has shape {list(tensor.shape)}, but {len(tokens)} tokens of"
                f" {shown(name)} {list(base.shape)} are trained; pass the base model that belongs to the adapter"
            )
        self._change(name, ReplaceTokens(adapter, tensor, tokens))

    def _add_product(self, adapter: Adapter, product: Product, magnitude: TensorInfo | None) -> None:
        a, b = Factor(adapter, product.a, product.by_column), Factor(adapter, product.b, product.by_column)
        left, right = (a, b) if product.by_column else (b, a)
        rows, width = self.checkpoint.tensors[product.name].shape
        scaling = adapter.config.scaling_of(product.module) * adapter.scale
        m = _magnitude(adapter, product, magnitude)
        self._change(product.name, LowRank(left, right, scaling, rows, width, m, product.by_column))


def _magnitude(adapter: Adapter, product: Product, tensor: TensorInfo | None) -> NDArray[np.float64] | None:
    """DoRA's magnitude of each output of a module. Raises CheckpointError if it does not fit the config."""
    module, out = shown(product.module), product.b.shape[0]
    if (tensor is None) == adapter.config.dora:
        state = "lacks" if tensor is None else "has"
        raise CheckpointError(
            f"{adapter.source} {state} the magnitude vector of {module}, but adapter_config.json has use_dora"
            f" {str(adapter.config.dora).lower()}; take the adapter_config.json that belongs to these weights"
        )
    if tensor is None:
        return None
    if tensor.n_params != out:
        raise CheckpointError(
            f"{shown(tensor.name)} of {adapter.source} has {tensor.n_params} values, but {module} has {out}"
            " outputs; save the adapter again"
        )
    return adapter.read(tensor).reshape(-1).astype(np.float64)
