"""GGUF files read back: their headers, whether every block is finite, the error of sampled rows."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T

from quantkit.errors import VerificationError
from quantkit.files import partial_path
from quantkit.gguf.kernels import dequantize_rows, validate_rows
from quantkit.gguf.layout import FileLayout, Slot
from quantkit.gguf.reader import read_header
from quantkit.outputs.gguf_files import GgufOutput, GgufPlan
from quantkit.outputs.model import Model, ModelTensor, widen
from quantkit.system.descriptors import read_at
from quantkit.verify.check import Check, guard, sampled_rows

# The largest relative RMS error of a tensor's sampled rows, by type: about twice the error on Gaussian weights. The
# error of a misplaced row is 1.4.
ERROR_BOUND: dict[T, float] = {
    T.F32: 0.0,
    T.F16: 0.001,
    T.BF16: 0.005,
    T.Q8_0: 0.02,
    T.Q6_K: 0.05,
    T.Q5_K: 0.1,
    T.Q5_0: 0.1,
    T.Q5_1: 0.1,
    T.Q4_K: 0.2,
    T.Q4_0: 0.2,
    T.Q4_1: 0.2,
    T.IQ4_NL: 0.2,
    T.IQ4_XS: 0.2,
    T.MXFP4: 0.35,
    T.Q3_K: 0.4,
    T.IQ3_S: 0.4,
    T.IQ3_XXS: 0.5,
}
LOOSE_BOUND = 0.95
# scales are half precision: weights below their smallest step become zero in a sound block too
_HALF_STEP, _LEVELS = 6e-8, 1024
_READ = 8 << 20


def check_files(output: GgufOutput) -> tuple[list[Check], dict[str, str]]:
    """Headers against the plan, every block finite; the checks, and the sha256 of each file."""
    hashes: dict[str, str] = {}

    def structure() -> str:
        for file in output.files:
            header = read_header(partial_path(output.folder / file.name))
            if header.size != file.size:
                raise VerificationError(f"{file.name} has {header.size} bytes instead of {file.size}")
            if header.tensors != file.slots:
                raise VerificationError(f"{file.name} does not list its tensors as planned")
        return f"{sum(len(file.slots) for file in output.files)} tensors at their offsets"

    def content() -> str:
        for file in output.files:
            path = partial_path(output.folder / file.name)
            hashes[file.name] = _scan(path, file)
        return "every block of every tensor is finite"

    first = guard("structure", structure)
    return ([first], hashes) if first.status == "failed" else ([first, guard("finite", content)], hashes)


def _scan(path: Path, file: FileLayout) -> str:
    """sha256 of the file; ggml's own validation checks each tensor's blocks in the same read."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream, ThreadPoolExecutor(1) as hasher:
        position = 0
        pending = None
        for start, stop, slot in _pieces(file):
            data = read_at(stream.fileno(), stop - start, start)
            if len(data) != stop - start or start != position:
                raise VerificationError(f"{file.name} ends early at byte {start + len(data)}")
            if pending is not None:
                pending.result()
            pending = hasher.submit(digest.update, data)
            if slot is not None and not validate_rows(
                slot.type, np.frombuffer(data, np.uint8).reshape(-1, slot.row_bytes)
            ):
                raise VerificationError(f"tensor {slot.name} of {file.name} contains NaN or infinity")
            position = stop
        if pending is not None:
            pending.result()
    return digest.hexdigest()


def _pieces(file: FileLayout) -> Iterator[tuple[int, int, Slot | None]]:
    """The file's bytes from first to last: pieces of whole rows of a tensor, or header and padding."""
    position = 0
    for slot in file.slots:
        if slot.offset > position:
            yield position, slot.offset, None
        step = max(1, _READ // slot.row_bytes) * slot.row_bytes
        end = slot.offset + slot.nbytes
        for start in range(slot.offset, end, step):
            yield start, min(start + step, end), slot
        position = end
    if position < file.size:
        yield position, file.size, None


def check_error(plan: GgufPlan, output: GgufOutput) -> tuple[Check, dict[str, float]]:
    """Sampled rows of every tensor against the source; the check, and each tensor's relative RMS error."""
    errors: dict[str, float] = {}
    tensors = {tensor.name: tensor for tensor in plan.model.tensors}

    def compare() -> str:
        worst, worst_name = 0.0, ""
        for file in output.files:
            with partial_path(output.folder / file.name).open("rb", buffering=0) as stream:
                for slot in file.slots:
                    error, size = _sampled_error(plan.model, tensors[slot.name], slot, stream.fileno())
                    errors[slot.name] = error
                    bound = ERROR_BOUND.get(slot.type, LOOSE_BOUND)
                    faint = (size or 1.0) * error <= _HALF_STEP * (1 if slot.type in (T.F16, T.BF16) else _LEVELS)
                    if not (error <= bound or faint):
                        raise VerificationError(
                            f"tensor {slot.name} of {file.name} has an error of {error:.1%}, above the"
                            f" {bound:.1%} that {slot.type.name} allows"
                        )
                    if error >= worst:
                        worst, worst_name = error, slot.name
        return f"sampled rows within each type's bound, at worst {worst:.2%} ({worst_name})"

    return guard("error", compare), errors


def _sampled_error(model: Model, tensor: ModelTensor, slot: Slot, descriptor: int) -> tuple[float, float]:
    """Relative RMS error of a few row ranges spread over a tensor, and the RMS of the source there.

    The error of an all-zero sample is absolute: 0 if it stayed zero.
    """
    squared, total, count = 0.0, 0.0, 0
    for start, stop in sampled_rows(tensor.n_rows, tensor.n_columns):
        source = widen(model.read_rows(tensor.name, start, stop), tensor).astype(np.float64)
        data = read_at(descriptor, (stop - start) * slot.row_bytes, slot.offset + start * slot.row_bytes)
        rows = np.frombuffer(data, dtype=np.uint8).reshape(stop - start, slot.row_bytes)
        written = dequantize_rows(slot.type, rows, tensor.n_columns)
        squared += float(np.square(written - source).sum())
        total += float(np.square(source).sum())
        count += source.size
    return float(np.sqrt(squared / (total or 1.0))), float(np.sqrt(total / count))
