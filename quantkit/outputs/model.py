"""A source as an unquantized GGUF that exists only as a description.

A checkpoint becomes a `Model`: the keys of its unquantized GGUF, its tensors with their types there, in llama.cpp's
order, and a function that reads rows. The GGUF is never written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.checkpoint import Checkpoint
from quantkit.errors import TokenizerError, UnsupportedError, UsageError
from quantkit.families import MappedTensor, cautions, find_family, left_out, map_tensors, read_mapped
from quantkit.families.base.family import Key
from quantkit.families.base.scalars import with_scalars
from quantkit.gguf.kernels import dequantize_rows
from quantkit.gguf.keyvalues import KeyValue
from quantkit.gguf.metadata import general_keys, plain_key
from quantkit.gguf.mix import MixModel, sort_key
from quantkit.tokenizer import Vocabulary, load_vocabulary

FLOAT_TYPES: dict[Any, GGMLQuantizationType] = {
    np.dtype(np.float32): GGMLQuantizationType.F32,
    np.dtype(np.float16): GGMLQuantizationType.F16,
    np.dtype(ml_dtypes.bfloat16): GGMLQuantizationType.BF16,
}
# a GGUF has them as 32-bit integers: DeepSeek-V4's tables of experts
_INTEGERS = {np.dtype(np.int32), np.dtype(np.int64)}
_F32_NAMES = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "position_embd.weight",
    "token_types.weight",
    "ssm_conv1d.weight",
    *(f"ssm_conv1d_{part}.weight" for part in "qkv"),
    "shortconv.conv.weight",
    "indexer.q_proj.weight",
    "indexer.k_proj.weight",
    *(f"time_mix_{part}.weight" for part in ("first", "w1", "w2", "decay_w1", "decay_w2", "lerp_fused")),
)
_ENDS = ("token_embd.weight", "output_norm.weight", "output.weight")
Mtp = Literal["keep", "only", "drop"]
"""What happens to layers that predict a later token: kept, written without the model's own layers, or left out."""


@dataclass(frozen=True)
class ModelTensor:
    """A tensor of the unquantized GGUF. `shape` as numpy's; rows are read in multiples of `row_step`.

    `source` names the checkpoint's tensor in messages; `sources`: all that the rows are read from.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    row_step: int
    source: str
    sources: tuple[str, ...] = ()

    @property
    def n_rows(self) -> int:
        """Rows of the tensor seen as a matrix."""
        return int(np.prod(self.shape[:-1], dtype=np.int64)) if len(self.shape) > 1 else 1

    @property
    def n_columns(self) -> int:
        """Columns: the last dimension."""
        return self.shape[-1]

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return self.n_rows * self.n_columns

    @property
    def matrix_rows(self) -> int:
        """Rows of one matrix; of stacked experts, those of one expert; of a convolution, all."""
        if len(self.shape) > 3:
            return self.n_rows
        return self.shape[-2] if len(self.shape) > 1 else 1


@dataclass(frozen=True)
class Model:
    """A source that can be converted.

    Attributes:
        read_rows: read_rows(name, start, stop) returns rows (stop - start, n_columns) in the type of the tensor; uint8
            rows of blocks for a quantized source.
        origin: goes into the records of outputs.
        weight_files: the files with the weights.
        draft_only: the model has only the layers that predict a later token.
        folder: the folder with the checkpoint's tokenizer files; None for a GGUF.
        in_order: rows are read fastest tensor by tensor.
        reader_memory: bytes of another process that reads the rows.
        probe_ids: token ids of PROBE by the checkpoint's own tokenizer, where it was loaded for the vocabulary.
    """

    name: str
    keys: tuple[KeyValue, ...]
    tensors: tuple[ModelTensor, ...]
    sizes: MixModel
    read_rows: Callable[[str, int, int], NDArray[Any]]
    origin: Mapping[str, Any]
    family: str
    warnings: tuple[str, ...] = ()
    checkpoint: Checkpoint | None = None
    weight_files: tuple[Path, ...] = ()
    close: Callable[[], None] = field(default=lambda: None)
    draft_only: bool = False
    folder: Path | None = None
    in_order: bool = False
    reader_memory: int = 0
    probe_ids: list[list[int]] | None = None


def model_from_checkpoint(
    checkpoint: Checkpoint,
    *,
    pre: str | None = None,
    chat_template: str | None = None,
    name: str | None = None,
    vocabulary: Vocabulary | None = None,
    mtp: Mtp = "keep",
) -> Model:
    """A checkpoint as the GGUF that llama.cpp's converter writes, in the source's own precision.

    `vocabulary` replaces that of the tokenizer files, which are then not read. `mtp`: what happens to the layers that
    predict a later token (multi-token prediction).

    Raises:
        UsageError: the layers of `mtp` "only" do not exist.
        CheckpointError, TokenizerError, UnsupportedError: the checkpoint or its tokenizer cannot be converted.
    """
    checkpoint.require_shapes()
    config = with_scalars(checkpoint)
    family = find_family(config)
    sizes = family.sizes(config, checkpoint.tensors)
    if mtp == "only" and not sizes.n_draft:
        raise UsageError(
            f"--mtp only: {checkpoint.name} has no layer that predicts a later token; leave the option out"
        )
    mapped = _without_draft(map_tensors(family, sizes, checkpoint.tensors), sizes.n_layer, mtp)
    if mtp == "drop":
        sizes = replace(sizes, n_draft=0)
    if vocabulary is None:
        # config.json may leave the size of the vocabulary to the default of its class, which `sizes` has
        stated = {**config, "vocab_size": sizes.vocab}
        roles = family.token_roles
        vocabulary = load_vocabulary(checkpoint.folder, stated, roles=roles, pre=pre, chat_template=chat_template)
    _require_size(vocabulary, sizes.vocab)
    by_name = {tensor.name: tensor for tensor in mapped}
    tensors = [describe(tensor, checkpoint) for tensor in sorted(mapped, key=lambda tensor: sort_key(tensor.name))]
    arch = family.arch(sizes)
    arch_keys = family.keys(arch, sizes)
    general = general_keys(checkpoint.folder, checkpoint.name, arch, [(t.name, t.shape) for t in mapped])

    def read_rows(tensor: str, start: int, stop: int) -> NDArray[Any]:
        rows = read_mapped(checkpoint.read_rows, by_name[tensor], start, stop)
        return rows.astype(np.int32) if rows.dtype == np.int64 else rows

    return Model(
        name=name or checkpoint.name,
        # the tokenizer's chat template replaces a family's, in its place
        keys=tuple({key.key: key for key in (*_in_order(general, arch_keys), *vocabulary.keys)}.values()),
        tensors=tuple(tensors),
        sizes=mix_model(arch, {key.name: key.value for key in arch_keys}),
        read_rows=read_rows,
        origin=origin_of(checkpoint),
        family=family.name,
        warnings=(*left_out(family, sizes, checkpoint.tensors), *cautions(family, sizes), *vocabulary.warnings),
        checkpoint=checkpoint,
        weight_files=weight_files_of(checkpoint),
        close=checkpoint.close,
        draft_only=mtp == "only",
        folder=checkpoint.folder,
        probe_ids=vocabulary.probe_ids,
    )


def _require_size(vocabulary: Vocabulary, rows: int) -> None:
    if len(vocabulary.tokens) != rows:
        raise TokenizerError(
            f"the tokenizer has {len(vocabulary.tokens)} tokens but the embedding has {rows} rows (vocab_size of"
            " config.json); the tokenizer files and the weights belong to different models"
        )


def _without_draft(mapped: list[MappedTensor], n_layer: int, mtp: Mtp) -> list[MappedTensor]:
    """The tensors that `mtp` leaves in the file.

    A file of the draft layers alone has these layers, the embedding, the last norm, the head, and Llama 3's divisors of
    the rotary frequencies.
    """
    if mtp == "only":
        return [
            tensor
            for tensor in mapped
            if tensor.name in (*_ENDS, "rope_freqs.weight") or sort_key(tensor.name)[0] >= n_layer
        ]
    if mtp == "drop":
        return [tensor for tensor in mapped if sort_key(tensor.name)[0] < n_layer]
    return mapped


def _in_order(general: Sequence[KeyValue], arch_keys: Sequence[Key]) -> list[KeyValue]:
    """The keys in the converter's order: general.architecture, a family's first keys, the other ones of both."""
    first = [plain_key(key.name, key.kind, key.value) for key in arch_keys if key.first]
    later = [plain_key(key.name, key.kind, key.value) for key in arch_keys if not key.first]
    return [general[0], *first, *general[1:], *later]


def origin_of(source: "Checkpoint | Model") -> Mapping[str, Any]:
    """The origin of a source, for the records of its outputs."""
    if isinstance(source, Model):
        return source.origin
    origin = {
        "source": source.repo_id or (Path(source.source).name if source.base else source.folder.name),
        "revision": source.revision,
        "header_sha256": dict(source.header_sha256),
    }
    if source.base:
        origin["base"] = source.base
    return origin | ({"adapters": [adapter.record for adapter in source.adapters]} if source.adapters else {})


def weight_files_of(source: "Checkpoint | Model") -> tuple[Path, ...]:
    """The files that hold a source's weights."""
    if isinstance(source, Model):
        return source.weight_files
    return tuple(source.folder / file for file in sorted({tensor.file for tensor in source.tensors.values()}))


def describe(tensor: MappedTensor, checkpoint: Checkpoint) -> ModelTensor:
    """The tensor in the unquantized GGUF. Raises UnsupportedError if its weights are not floats of one type."""
    source = tensor.parts[0].source if tensor.parts else "config.json"
    if tensor.is_mxfp4:
        kind = GGMLQuantizationType.MXFP4
    elif tensor.values is not None or _is_computed(tensor) or _stays_f32(tensor.name, tensor.shape):
        kind = GGMLQuantizationType.F32
    else:
        dtypes = {np.dtype(checkpoint.tensors[part.source].read_dtype) for part in tensor.parts}
        if dtypes <= _INTEGERS:
            return ModelTensor(tensor.name, tensor.shape, GGMLQuantizationType.I32, tensor.row_step, source, (source,))
        if len(dtypes) > 1 or not dtypes <= FLOAT_TYPES.keys():
            names = ", ".join(sorted(str(dtype) for dtype in dtypes))
            raise UnsupportedError(
                f"tensor {source} is stored as {names}; only float weights of one type can be converted"
            )
        kind = FLOAT_TYPES[dtypes.pop()]
    return ModelTensor(
        tensor.name,
        tensor.shape,
        kind,
        tensor.row_step,
        source,
        tuple(dict.fromkeys(name for part in tensor.parts for name in (part.source, part.times) if name)),
    )


def _is_computed(tensor: MappedTensor) -> bool:
    """Whether the values differ from the checkpoint's; they are then computed in float32."""
    return tensor.adjust is not None or bool(tensor.factors) or tensor.is_product


def _stays_f32(name: str, shape: Sequence[int]) -> bool:
    """Vectors, norms, routers and positions are float32 in every GGUF (conversion/base.py, prepare_tensors)."""
    return len(shape) < 2 or name.endswith(_F32_NAMES) or not name.endswith(".weight")


def mix_model(arch: str, keys: Mapping[str, Any]) -> MixModel:
    """The facts that decide the type mix, from the architecture's keys."""

    def number(key: str) -> int:
        value = keys.get(f"{arch}.{key}", 0)
        # some architectures have a count for each layer; llama.cpp's rules use the first
        return int(value if np.ndim(value) == 0 else np.asarray(value).flat[0])

    n_head = number("attention.head_count")
    return MixModel(
        arch=arch,
        # llama.cpp counts each run of a layer that runs several times
        n_layer=number("block_count") * (number("num_loops") or 1),
        n_head=n_head,
        n_head_kv=number("attention.head_count_kv") or n_head,
        n_expert=number("expert_count"),
    )


def widen(rows: NDArray[np.generic], tensor: ModelTensor) -> NDArray[np.float32]:
    """Source rows as float32 (n, n_columns): exact for floats, dequantized for a quantized source."""
    if rows.dtype == np.float32:
        return np.ascontiguousarray(rows, dtype=np.float32)
    if rows.dtype in _INTEGERS:
        return rows.astype(np.float32)
    kind = GGMLQuantizationType.BF16 if rows.dtype.name == "bfloat16" else GGMLQuantizationType.F16
    if rows.dtype == np.uint8:
        kind = tensor.type
    data = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    return dequantize_rows(kind, data, tensor.n_columns)
