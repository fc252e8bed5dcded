"""The sizes of a model in each GGUF type, and as folders of quantized weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from quantkit.checkpoint import Checkpoint
from quantkit.errors import QuantkitError, UsageError
from quantkit.gguf.file_types import FILE_TYPES, FileType, file_type
from quantkit.gguf.layout import lay_out
from quantkit.gguf.metadata import quantization_keys
from quantkit.gguf.mix import MixOptions, MixTensor, choose_types
from quantkit.imatrix.file import Imatrix
from quantkit.outputs.gguf_files import FLOATS, GgufRequest, plan_gguf
from quantkit.outputs.importance import column_weights
from quantkit.packed.registry import FORMATS
from quantkit.planning.planned_tensors import PlannedTensor, PlannedTensors
from quantkit.planning.sources import Source, tensors_as_they_are

FOLDERS = tuple(FORMATS)
DEFAULT_GROUP = 128
"""The group size of AWQ and GPTQ without --group-size."""
USUAL = ("bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k", "awq", "gptq")
"""The types of a plan without -t."""
_FLOATS = ("f32", "f16", "bf16")
_KEPT = Path("unused")


@dataclass(frozen=True)
class Matrix:
    """An importance matrix and its file, whose name is stored in a GGUF."""

    path: Path
    values: Imatrix


@dataclass(frozen=True)
class Offer:
    """One form of the model. `label`: the value of -t; `size`: bytes on disk; `tensors`: empty for a folder.

    `file`: name of the file or folder. `bits`: bits per weight. `why_not`: the reason why this
    form is impossible; the other fields are then empty. `needs_imatrix`: it requires --imatrix or --calibrate. `group`:
    inputs that share a scale in a folder; 0 where --group-size has no effect.
    """

    label: str
    size: int = 0
    bits: float = 0.0
    tensors: PlannedTensors = field(default_factory=PlannedTensors)
    file: str = ""
    needs_imatrix: bool = False
    why_not: str = ""
    group: int = 0

    @property
    def is_folder(self) -> bool:
        """Whether the offer is a folder of quantized weights."""
        return self.label in FOLDERS

    @property
    def usual_group(self) -> int:
        """The group size of a folder without --group-size."""
        return FORMATS[self.label].group or DEFAULT_GROUP

    @property
    def is_float(self) -> bool:
        """Whether the offer is an unquantized type."""
        return self.label in _FLOATS


def known_types(names: Sequence[str]) -> tuple[str, ...]:
    """The checked names of `-t`, in their order.

    Raises:
        UsageError: a name that is neither a GGUF type nor a folder.
    """
    known = []
    for name in names:
        key = name.strip().lower()
        if key not in FOLDERS:
            key = file_type(key, FOLDERS).name
        known.append(key)
    return tuple(dict.fromkeys(known))


def offers(
    source: Source, names: Sequence[str] | None, matrix: Matrix | None = None, *, calibrated: bool = False
) -> tuple[Offer, ...]:
    """The forms of `names`, or the usual ones, best first; a quantized GGUF has only its own form.

    `matrix`: the GGUF types are quantized with it. `calibrated`: the command that makes them computes one.

    Raises:
        UsageError: an unknown type, or an option that does not apply to a quantized GGUF or to folders.
        ImatrixError: `matrix` belongs to another model.
    """
    if source.is_gguf and any(t.type.name not in ("F32", "F16", "BF16") for t in source.model.tensors):
        if names:
            raise UsageError(
                f"{source.model.name} is quantized already, so -t {names[0]} does not apply; remove -t, or plan for the"
                " original checkpoint"
            )
        if matrix is not None:
            raise UsageError(
                f"{source.model.name} is quantized already, so --imatrix does not apply; remove --imatrix, or plan for"
                " the original checkpoint"
            )
        return (as_it_is(source),)
    type_names = known_types(names) if names else _usual(source)
    if matrix is not None:
        if all(name in FOLDERS for name in type_names):
            raise UsageError("--imatrix has no effect without a GGUF type; leave it out, or add a type such as -t q4_0")
        column_weights(source.model, matrix.values, matrix.path.name)
    forms = [
        _folder(source, name) if name in FOLDERS else _gguf(source, file_type(name), matrix, calibrated=calibrated)
        for name in type_names
    ]
    return tuple(sorted(forms, key=lambda offer: (offer.is_folder, -_quality(offer))))


def _usual(source: Source) -> tuple[str, ...]:
    return tuple(name for name in USUAL if not (source.is_gguf and name in FOLDERS))


def _quality(offer: Offer) -> float:
    """Rank of a type: its bits per weight in an 8B model, which is also the order of llama.cpp's perplexity tables."""
    legacy = {"q4_1": 4.55, "q5_0": 5.5, "q5_1": 5.65}
    return (
        legacy.get(offer.label, FILE_TYPES[offer.label].bits)
        if offer.label in FILE_TYPES
        else -FOLDERS.index(offer.label)
    )


def as_it_is(source: Source) -> Offer:
    """The source's own files and tensors."""
    tensors = tensors_as_they_are(source.model)
    size = sum(path.stat().st_size for path in source.model.weight_files)
    elements = sum(tensor.n_elements for tensor in tensors)
    return Offer(
        "as it is",
        size,
        8 * sum(tensor.nbytes for tensor in tensors) / elements,
        tensors,
        source.model.weight_files[0].name,
    )


def _gguf(source: Source, kind: FileType, matrix: Matrix | None, *, calibrated: bool) -> Offer:
    model = source.model
    try:
        if matrix is None and (kind.needs_imatrix or (calibrated and kind.tensor_type not in FLOATS)):
            return _calibrated(source, kind)
        request = GgufRequest(types=(kind,), folder=_KEPT, allow_requantize=model.checkpoint is not None)
        if matrix is not None:
            mix = MixOptions(has_imatrix=True)
            request = replace(request, mix=mix, imatrix=matrix.values, imatrix_name=matrix.path.name)
        plan = plan_gguf(model, request)
    except QuantkitError as error:
        return Offer(kind.name, why_not=str(error))
    output = plan.outputs[0]
    tensors = PlannedTensors(
        PlannedTensor(tensor.name, tensor.shape, choice.type)
        for tensor, choice in zip(model.tensors, output.choices, strict=True)
    )
    size, bits = output.size + source.vocabulary, plan.bits_per_weight(output)
    return Offer(kind.name, size, bits, tensors, output.files[0].name, needs_imatrix=kind.needs_imatrix)


def _calibrated(source: Source, kind: FileType) -> Offer:
    """A type whose importance matrix is not computed yet; its keys in the file (about 200 bytes) are not counted."""
    model = source.model
    plain = [MixTensor(tensor.name, tensor.shape, tensor.type) for tensor in model.tensors]
    choices = choose_types(model.sizes, kind, plain, MixOptions(has_imatrix=True))
    tensors = PlannedTensors(
        PlannedTensor(tensor.name, tensor.shape, choice.type) for tensor, choice in zip(plain, choices, strict=True)
    )
    keys = [*model.keys, *quantization_keys(kind.ftype)]
    (file,) = lay_out(f"{model.name}-{kind.label}", keys, [(t.name, t.shape, t.type) for t in tensors])
    bits = 8 * sum(tensor.nbytes for tensor in tensors) / sum(tensor.n_elements for tensor in tensors)
    size = file.size + source.vocabulary
    return Offer(kind.name, size, bits, tensors, file.name, needs_imatrix=kind.needs_imatrix)


@lru_cache(maxsize=1)
def _linears(checkpoint: Checkpoint) -> tuple[Any, tuple[Any, ...]]:
    """The native model and the linears of its layers, cached for both methods."""
    from quantkit.families.base.native import Native
    from quantkit.outputs.packed_folders import all_layers

    native = Native(checkpoint)
    return native, all_layers(native)


def _folder(source: Source, method: str) -> Offer:
    """A folder: the sizes of its weight files, without the few kB of config and the tokenizer."""
    checkpoint = source.model.checkpoint
    if checkpoint is None:
        return Offer(method, why_not=f"{FORMATS[method].label} needs a checkpoint, not a GGUF")
    # imported here because a plan for GGUF alone does not need these formats
    from quantkit.outputs.packed_folders import FolderRequest, plan_folder_of

    folder_format = FORMATS[method]
    usual, label = folder_format.group or DEFAULT_GROUP, folder_format.label
    try:
        native, layers = _linears(checkpoint)
        widths = {linear.n_in for layer in layers for layer_input in layer.inputs for linear in layer_input.linears}
        group = next(
            (size for size in (usual, 64, 32) if size > 0 and not any(width % size for width in widths)), usual
        )
        grid = folder_format.grid(4, group, symmetric=True)
        request = FolderRequest(method, grid, dtype=folder_format.dtype)
        plan = plan_folder_of(native, layers, request, _KEPT)
    except QuantkitError as error:
        return Offer(method, why_not=str(error))
    elements = sum(tensor.n_elements for tensor in source.model.tensors)
    shown = 0 if folder_format.group_sizes == () else group
    bits = 8 * plan.tensor_bytes / elements
    return Offer(method, plan.size, bits, file=f"{source.model.name}-{label}", group=shown)
