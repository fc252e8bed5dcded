"""The `general.*` keys: name, authors, licence and sampling parameters, read from the model card as in llama.cpp.

The heuristics are from the gguf package (gguf.Metadata). This module adds keys that its release does not have.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import yaml
from gguf import GGUFValueType

from quantkit.checkpoint.jsonfile import read_hints
from quantkit.errors import CheckpointError
from quantkit.gguf.keyvalues import KeyValue

_KINDS = {
    "u32": GGUFValueType.UINT32,
    "i32": GGUFValueType.INT32,
    "f32": GGUFValueType.FLOAT32,
    "str": GGUFValueType.STRING,
    "bool": GGUFValueType.BOOL,
}

# Keys that a quantized file replaces and writes at the end (llama.cpp, llama_model_quantize_impl).
QUANTIZATION_KEYS = ("general.quantization_version", "general.file_type")
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
QUANTIZATION_VERSION = 2
REORDERED_KEY = "quantkit.neurons_reordered"
"""The key of a GGUF in which neurons of feed-forwards may have another order than in the source."""


def plain_key(name: str, kind: str, value: Any) -> KeyValue:
    """A family's plain key as a GGUF key-value. `kind`: u32, i32, f32, str or bool; a final s makes it an array."""
    if kind in _KINDS:
        return KeyValue(name, _KINDS[kind], value)
    return KeyValue(name, GGUFValueType.ARRAY, list(value), _KINDS[kind.removesuffix("s")])


def general_keys(
    folder: Path,
    name: str,
    arch: str,
    shapes: Iterable[tuple[str, tuple[int, ...]]],
    type_: str = gguf.GGUFType.MODEL,
) -> list[KeyValue]:
    """The `general.*` keys of a model in the order of llama.cpp's converter, without the file type.

    `name`: the name of the model's folder or repository. `shapes`: (GGUF name, numpy shape) of every tensor. `type_`:
    general.type.

    Raises:
        CheckpointError: the front matter of the model card cannot be read, or has a value of a wrong type.
    """
    writer = gguf.GGUFWriter(path=None, arch=arch)
    for tensor, shape in shapes:
        writer.tensors[0][tensor] = gguf.TensorInfo(shape=shape, dtype=gguf.GGMLQuantizationType.F32, nbytes=0)
    total, shared, expert, n_expert = writer.get_total_parameter_count()
    metadata = _load_metadata(folder, name, total)
    if metadata.name is None:
        metadata.name = name
    if metadata.size_label is None and total > 0:
        metadata.size_label = gguf.size_label(total, shared, expert, n_expert)
    writer.add_type(type_)
    try:
        metadata.set_gguf_meta_model(writer)
        keys = [
            KeyValue(key, value.type, value.value, _item_type(value) if value.type == GGUFValueType.ARRAY else None)
            for key, value in writer.kv_data[0].items()
        ]
        for key in keys:
            key.pack()
    except (TypeError, ValueError, AttributeError, CheckpointError) as error:
        reason = error.__cause__ or error
        raise CheckpointError(
            f"the front matter of README.md or generation_config.json has a value of a wrong type ({reason}); fix it"
        ) from error
    return keys


def _item_type(value: Any) -> GGUFValueType:
    """The element type of an array of gguf's writer, which leaves it to the first element. Raises ValueError."""
    if value.sub_type is not None:
        return GGUFValueType(value.sub_type)
    types = {GGUFValueType.get_type(item) for item in value.value}
    if len(types) != 1:
        raise ValueError("a list mixes texts and numbers")
    return GGUFValueType(types.pop())


def _load_metadata(folder: Path, name: str, total: int) -> gguf.Metadata:
    try:
        card = gguf.Metadata.load_model_card(folder)
        parameters = gguf.Metadata.load_hf_parameters(folder)
        # A hub snapshot's folder is named by its commit, but the heuristics need the repository's name.
        metadata = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card, parameters, Path(name), total)
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, AttributeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"cannot read the front matter of README.md ({first}); fix or remove it") from error
    for field, names in _SAMPLING.items():
        for key in names:
            value = read_hints(folder / "generation_config.json").get(key)
            if value is not None:
                setattr(metadata, field, value)
                break
    return metadata


_SAMPLING = {
    "sampling_sequence": ("sequence",),
    "sampling_top_k": ("top_k",),
    "sampling_top_p": ("top_p",),
    "sampling_min_p": ("min_p",),
    "sampling_xtc_probability": ("xtc_probability",),
    "sampling_xtc_threshold": ("xtc_threshold",),
    "sampling_temp": ("temperature",),
    "sampling_penalty_last_n": ("penalty_last_n",),
    "sampling_penalty_repeat": ("penalty_repeat", "repetition_penalty"),
    "sampling_mirostat": ("mirostat",),
    "sampling_mirostat_tau": ("mirostat_tau",),
    "sampling_mirostat_eta": ("mirostat_eta",),
}


def quantization_keys(ftype: int) -> list[KeyValue]:
    """The two last keys of a quantized file."""
    version, file_type = QUANTIZATION_KEYS
    return [
        KeyValue(version, GGUFValueType.UINT32, QUANTIZATION_VERSION),
        KeyValue(file_type, GGUFValueType.UINT32, ftype),
    ]
