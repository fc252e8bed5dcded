"""The plan of a calibration that llama.cpp runs, for a source without a forward of ours: a GGUF, or a bridged model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from quantkit.errors import UsageError
from quantkit.gguf.file_types import FileType, file_type
from quantkit.gguf.layout import lay_out
from quantkit.imatrix.file import Imatrix
from quantkit.imatrix.names import as_imatrix
from quantkit.llamacpp.grams import BYTES_OF_PAIR
from quantkit.llamacpp.session import require_llama_cpp
from quantkit.llamacpp.squares import TensorSums
from quantkit.llamacpp.tokenizing import gguf_tokenizer
from quantkit.machine import memory_limit, resident_memory
from quantkit.outputs.calibration import CalibrationRequest
from quantkit.outputs.calibration_memory import GRAM_COPIES
from quantkit.outputs.model import Model, ModelTensor
from quantkit.quant.feedback import working_memory
from quantkit.scratch import scratch_folder
from quantkit.texts.samples import SampleRequest, Samples, make_samples
from quantkit.units import human_bytes

# Weights that llama.cpp does not multiply with rows of tokens: convolutions, norms, states.
_NOT_MULTIPLIED = re.compile(r"conv|norm|ssm_[ad]\b|rel_b|time_mix_(first|lerp|decay|ln)")
_BATCH = 512
# Keys and small float32 tensors of the temporary GGUF.
_HEADER = 64 << 20
# The process in which llama.cpp runs, beside what is counted.
_CHILD_MEMORY = 200 << 20
# Rows of the model's width that the graph of one batch holds at once, attention's products beside them.
_ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class CallbackPlan:
    """A calibration by llama.cpp's evaluation callback.

    `file`: the GGUF that llama.cpp runs; None: the model is written as a GGUF of `file_type` first, and removed at the
    end. `sums`: what the calibration gave, None before it. `memory` in bytes, of both processes, without the file,
    which is mapped. `gram_memory`: bytes for the Gram matrices of a batch of inputs, 0 without error feedback.
    """

    model: Model
    samples: Samples
    file: Path | None
    file_type: FileType
    memory: int
    gram_memory: int = 0
    sums: Mapping[str, TensorSums] | None = None

    @property
    def disk(self) -> int:
        """Bytes of temporary files: the sums, and the GGUF where it must be written."""
        sums = sum(8 * count * width for count, width in self.shapes.values())
        return 2 * sums + self.gram_memory + (2 * self._weights + _HEADER if self.file is None else 0)

    @property
    def _weights(self) -> int:
        return sum(tensor.n_elements for tensor in self.model.tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Tensors that llama.cpp is expected to multiply -> (matrices, inputs)."""
        return {
            tensor.name: (tensor.n_rows // tensor.matrix_rows, tensor.n_columns)
            for tensor in self.model.tensors
            if _multiplied(tensor)
        }

    def imatrix(self) -> Imatrix:
        """The importance matrix of `sums`; before the calibration one of the expected shapes, to plan with."""
        arrays, counts = imatrix_arrays(self.sums or self._ones())
        chunks, chunk_size = self.samples.tokens.shape
        return as_imatrix(arrays, counts, datasets=self.samples.names, chunks=chunks, chunk_size=chunk_size)

    def _ones(self) -> dict[str, TensorSums]:
        return {
            name: TensorSums(np.ones((count, width)), np.ones(count)) for name, (count, width) in self.shapes.items()
        }


def imatrix_arrays(
    sums: Mapping[str, TensorSums],
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """Sums and counts as `write_imatrix` takes them: float32, and one count for each matrix."""
    values = {name: entry.sums.astype(np.float32) for name, entry in sums.items()}
    counts = {name: np.broadcast_to(entry.counts, len(entry.sums)).astype(np.float32) for name, entry in sums.items()}
    return values, counts


def plan_callback(
    model: Model,
    request: CalibrationRequest,
    samples: Samples | None,
    *,
    gram: bool,
    threads: int,
    max_ram: int | None,
) -> CallbackPlan:
    """What a calibration of `model` by llama.cpp takes. `samples` replace those of `request.text`.

    `gram`: Gram matrices are needed, too. As many inputs at once have theirs as `max_ram` allows, or a quarter of the
    machine's memory.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        UsageError: an option needs a family, or the calibration needs more memory than `max_ram`.
        CalibrationError, HubError, TemplateError: see `make_samples`.
    """
    require_llama_cpp()
    if request.propagate or request.device == "cuda":
        option = "--propagate quantized" if request.propagate else f"--device {request.device}"
        raise UsageError(f"{option} needs a family, and {model.name} is calibrated by llama.cpp; leave it out")
    if model.draft_only:
        raise UsageError("--mtp only gives a file that llama.cpp does not run alone; leave out --calibrate")
    file = model.weight_files[0] if model.folder is None else None
    if samples is None:
        sample_request = SampleRequest(
            request.text, request.samples, request.seq_len, request.chat, offline=request.offline
        )
        with scratch_folder() as folder:
            samples = make_samples(sample_request, lambda: gguf_tokenizer(file or _vocabulary_file(model, folder)))
    memory = resident_memory() + _CHILD_MEMORY + _graph_memory(model, samples.tokens.shape[1], threads)
    gram_memory = 0
    if gram:
        gram_memory = _gram_memory(model, memory_limit() // 4 if max_ram is None else max_ram - memory)
        widest = max((tensor.n_columns for tensor in model.tensors if _multiplied(tensor)), default=0)
        rounding = resident_memory() + GRAM_COPIES * 4 * widest**2 + working_memory(widest, threads)
        memory = max(memory + gram_memory, rounding)
    if max_ram is not None and memory > max_ram:
        raise UsageError(
            f"--max-ram {human_bytes(max_ram)} is too small; the calibration by llama.cpp needs about"
            f" {human_bytes(memory)} beside the mapped file; use a smaller --seq-len, or pass --imatrix FILE"
        )
    return CallbackPlan(model, samples, file, _half(model), memory, gram_memory)


def _vocabulary_file(model: Model, folder: Path) -> Path:
    """A GGUF of the model's keys without tensors, from which llama.cpp reads the tokenizer."""
    file = folder / f"{model.name}.gguf"
    file.write_bytes(lay_out(model.name, model.keys, [])[0].header)
    return file


def _multiplied(tensor: ModelTensor) -> bool:
    parts = tensor.name.split(".")
    inside = parts[0] == "blk" and parts[-1] == "weight" and len(tensor.shape) > 1
    return inside and not _NOT_MULTIPLIED.search(tensor.name)


def _half(model: Model) -> FileType:
    """The 16-bit type of the most weights; bf16 where the source has another type."""
    sizes = {GGMLQuantizationType.F16: 0, GGMLQuantizationType.BF16: 1}
    for tensor in model.tensors:
        if tensor.type in sizes:
            sizes[tensor.type] += tensor.n_elements
    return file_type(max(sizes, key=lambda kind: sizes[kind]).name.lower())


def _gram_memory(model: Model, allowed: int) -> int:
    """Bytes for the Gram matrices of a batch of inputs: all of them, or what is allowed, at least for the widest."""
    sizes = [
        (tensor.n_rows // tensor.matrix_rows, BYTES_OF_PAIR * tensor.n_columns**2)
        for tensor in model.tensors
        if _multiplied(tensor)
    ]
    whole, widest = sum(count * size for count, size in sizes), max((size for _, size in sizes), default=0)
    return min(whole, max(widest, allowed))


def _graph_memory(model: Model, n_ctx: int, threads: int) -> int:
    """Bytes of llama.cpp's cache, graph and logits for windows of `n_ctx` tokens, and of the sums of squares."""
    multiplied = [tensor for tensor in model.tensors if _multiplied(tensor)]
    widths = [max(tensor.n_columns, tensor.matrix_rows) for tensor in multiplied]
    width = max(widths, default=0)
    vocab = next((tensor.n_rows for tensor in model.tensors if tensor.name == "token_embd.weight"), 0)
    batch = min(n_ctx, _BATCH)
    cache = sum(tensor.matrix_rows for tensor in multiplied if tensor.name.endswith(("attn_k.weight", "attn_v.weight")))
    heads = max(model.sizes.n_head, 1)
    graph = batch * (_ROWS_AT_ONCE * width + 3 * heads * n_ctx + vocab)
    sums = sum(2 * tensor.n_rows // tensor.matrix_rows * tensor.n_columns for tensor in multiplied)
    return 4 * (cache * n_ctx + graph + n_ctx * vocab + 2 * sums)
