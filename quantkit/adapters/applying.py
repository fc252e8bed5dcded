"""Adapters onto a checkpoint: which of its tensors each changes, and how."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.adapters.adapter import Adapter
from quantkit.adapters.merging import AddBias, Change, Factor, LowRank, Merge, Replace, ReplaceTokens
from quantkit.checkpoint import Checkpoint, TensorInfo
from quantkit.checkpoint.jsonfile import shown
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.families import Family, find_family, map_tensors
from quantkit.families.base.mapping import renamed
from quantkit.families.base.output_head import head_names, untied

_NEEDED = {"A": "B", "B": "A", "embedding_A": "embedding_B", "embedding_B": "embedding_A"}


def apply_adapters(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> None:
    """From now on `checkpoint` reads merged weights: its own with all `adapters`, in order, as PEFT merges them.

    A tensor keeps its type. The checkpoint is named BASE-ADAPTER, and closes the adapters.

    Raises:
        CheckpointError: an adapter does not fit the checkpoint: a name, a shape, a rank or a part.
        UnsupportedError: an adapter has an effect that no merged weight has.
    """
    merger = _Merger(checkpoint)
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


class _Merger:
    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.family: Family = find_family(checkpoint.config)
        self.changes: dict[str, list[Change]] = {}
        self._transposed: frozenset[str] | None = None
        self.names = self._names()

    def _names(self) -> dict[str, str]:
        """The checkpoint's names by the family's."""
        return {renamed(self.family, name): name for name in self.checkpoint.tensors}

    def add(self, adapter: Adapter) -> None:
        if adapter.config.invocation_tokens:
            raise UnsupportedError(
                f"{adapter.source} is an aLoRA, which takes effect after its invocation tokens only; write it as an"
                " adapter GGUF with quantkit lora instead of merging it"
            )
        for module, parts in adapter.modules.items():
            if adapter.config.keeps_tied and self._is_tied_head(module):
                continue  # it is the embedding's, saved twice
            for part, other in _NEEDED.items():
                if part in parts and other not in parts:
                    raise CheckpointError(
                        f"{adapter.source} has {shown(parts[part].name)} without its other matrix; save the adapter"
                        " again"
                    )
            if "weight" in parts:
                self._replace(adapter, module, "weight", parts["weight"])
            if "saved_bias" in parts:
                self._replace(adapter, module, "bias", parts["saved_bias"])
            if "tokens" in parts:
                self._replace_tokens(adapter, module, parts["tokens"])
            if "A" in parts:
                self._add_product(adapter, module, parts["A"], parts["B"], parts.get("magnitude"))
            if "embedding_A" in parts:
                self._add_product(
                    adapter, module, parts["embedding_A"], parts["embedding_B"], parts.get("magnitude"), embedding=True
                )
            if "bias" in parts:
                name = self._find(adapter, module, "bias")
                self._check_shape(adapter, parts["bias"], name, parts["bias"].shape)
                scaling = adapter.config.scaling_of(module) * adapter.scale
                self.changes.setdefault(name, []).append(AddBias(adapter, parts["bias"], scaling))

    def _find(self, adapter: Adapter, module: str, leaf: str, *, stays_tied: bool = False) -> str:
        """The checkpoint's tensor that a module of the adapter is; a tied head becomes a separate tensor."""
        wanted = f"{module}.{leaf}"
        name = self.names.get(renamed(self.family, wanted)) or (wanted if wanted in self.checkpoint.tensors else None)
        if name is not None:
            if not (stays_tied or adapter.config.keeps_tied):
                self._keep_head(name)
            return name
        embedding, head = head_names(self.family)
        if renamed(self.family, wanted) == head and embedding in self.names:
            self._untie()
            return head
        close = difflib.get_close_matches(wanted, self.checkpoint.tensors, n=1)
        hint = f" (the nearest is {close[0]})" if close else ""
        base = f"; the adapter was made for {shown(adapter.config.base)}" if adapter.config.base else ""
        raise CheckpointError(
            f"{adapter.source} changes {shown(wanted)}, which {self.checkpoint.source} does not have{hint}{base}; pass"
            " the base model that belongs to the adapter"
        )

    def _is_tied_head(self, module: str) -> bool:
        _, head = head_names(self.family)
        return renamed(self.family, f"{module}.weight") == head and head not in self.names

    def _keep_head(self, name: str) -> None:
        """Before the embedding alone changes, a head that is tied to it becomes a separate tensor.

        The adapter was trained beside the base's head, which the change of the embedding must not reach.
        """
        embedding, head = head_names(self.family)
        if self.names.get(embedding) == name and head not in self.names:
            self._untie()

    def _untie(self) -> None:
        embedding, head = head_names(self.family)
        source = self.checkpoint.tensors[self.names[embedding]]
        tensors = {**self.checkpoint.tensors, head: replace(source, name=head)}
        config = untied(self.checkpoint.config)
        self.family.sizes(config, tensors)
        self.checkpoint.amend(
            config, tensors, "the adapter changes the embedding or the output head alone; both are written, not tied"
        )
        self.names = self._names()

    def _replace(self, adapter: Adapter, module: str, leaf: str, tensor: TensorInfo) -> None:
        name = self._find(adapter, module, leaf)
        self._check_shape(adapter, tensor, name, tensor.shape)
        if name in self.changes:
            raise CheckpointError(
                f"{adapter.source} replaces {shown(name)}, which another adapter changes too; merge one of them only"
            )
        self.changes[name] = [Replace(adapter, tensor)]

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
        self.changes.setdefault(name, []).append(ReplaceTokens(adapter, tensor, tokens))

    def _add_product(
        self,
        adapter: Adapter,
        module: str,
        a: TensorInfo,
        b: TensorInfo,
        magnitude: TensorInfo | None,
        *,
        embedding: bool = False,
    ) -> None:
        rank = adapter.config.rank_of(module)
        if len(a.shape) != 2 or len(b.shape) != 2:
            raise UnsupportedError(
                f"{shown(a.name)} of {adapter.source} has shape {list(a.shape)}; only adapters of linears and"
                " embeddings are merged"
            )
        if a.shape[0] != rank or b.shape[1] != rank:
            raise CheckpointError(
                f"{shown(module)} of {adapter.source} has matrices of rank {a.shape[0]} and {b.shape[1]}, but"
                f" adapter_config.json makes it {rank}; take the adapter_config.json that belongs to these weights"
            )
        name = self._find(adapter, module, "weight")
        out, inputs = b.shape[0], a.shape[1]
        by_column = embedding or self._is_stored_transposed(name, (inputs, out))
        self._check_shape(adapter, a, name, (inputs, out) if by_column else (out, inputs))
        left, right = (
            (Factor(adapter, a, True), Factor(adapter, b, True))
            if by_column
            else (Factor(adapter, b), Factor(adapter, a))
        )
        rows, width = (inputs, out) if by_column else (out, inputs)
        change = LowRank(
            left,
            right,
            adapter.config.scaling_of(module) * adapter.scale,
            rows,
            width,
            self._magnitude(adapter, module, magnitude, out),
            by_column,
        )
        self.changes.setdefault(name, []).append(change)

    def _magnitude(
        self, adapter: Adapter, module: str, tensor: TensorInfo | None, out: int
    ) -> NDArray[np.float64] | None:
        if (tensor is None) == adapter.config.dora:
            state = "lacks" if tensor is None else "has"
            raise CheckpointError(
                f"{adapter.source} {state} the magnitude vector of {shown(module)}, but adapter_config.json has"
                f" use_dora {str(adapter.config.dora).lower()}; take the adapter_config.json that belongs to these"
                " weights"
            )
        if tensor is None:
            return None
        if tensor.n_params != out:
            raise CheckpointError(
                f"{shown(tensor.name)} of {adapter.source} has {tensor.n_params} values, but {shown(module)} has {out}"
                " outputs; save the adapter again"
            )
        return adapter.read(tensor).reshape(-1).astype(np.float64)

    def _check_shape(self, adapter: Adapter, tensor: TensorInfo, name: str, shape: tuple[int, ...]) -> None:
        actual = self.checkpoint.tensors[name].shape
        if tuple(actual) != tuple(shape):
            base = f" ({shown(adapter.config.base)})" if adapter.config.base else ""
            raise CheckpointError(
                f"{shown(tensor.name)} of {adapter.source} is for a tensor of shape {list(shape)}, but {shown(name)} of"
                f" {self.checkpoint.source} has {list(actual)}; pass the base model that belongs to the adapter{base}"
            )

    def _is_stored_transposed(self, name: str, shape: tuple[int, int]) -> bool:
        """Whether the checkpoint stores a linear as (in, out), as GPT-2's Conv1D; `shape` is (in, out)."""
        if tuple(self.checkpoint.tensors[name].shape) != shape:
            return False
        if self._transposed is None:
            sizes = self.family.sizes(self.checkpoint.config, self.checkpoint.tensors)
            mapped = map_tensors(self.family, sizes, self.checkpoint.tensors)
            self._transposed = frozenset(
                part.source for tensor in mapped for part in tensor.parts if part.take.transposed
            )
        return name in self._transposed
