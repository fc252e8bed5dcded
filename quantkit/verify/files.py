"""GGUF files read back: their headers, whether every block is finite, the error of sampled rows."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
from gguf import GGMLQuantizationType as T
from numpy.typing import NDArray

from quantkit.errors import VerificationError
from quantkit.files import partial_path
from quantkit.gguf.blocks import FORMATS
from quantkit.gguf.kernels import dequantize_rows, validate_rows
from quantkit.gguf.layout import FileLayout, Slot
from quantkit.gguf.reader import read_header
from quantkit.outputs.gguf_files import GgufOutput, GgufPlan, GgufRequest
from quantkit.outputs.model import Model, ModelTensor, widen
from quantkit.quant.neurons import Moved, matrix_key
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
ASYMMETRIC_BOUND = 0.6
"""Of matrices that make up for the errors of earlier layers, and are meant to differ from the source's."""
EMBEDDING_FACTOR = 2.0
"""Of an embedding that is rounded for what the first layer reads of it: its own error rises, up to 1.9 times."""
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


def check_errors(
    plan: GgufPlan, outputs: Sequence[GgufOutput], moved: Mapping[str, Moved] = MappingProxyType({})
) -> list[tuple[Check, dict[str, float]]]:
    """Sampled rows of every tensor against the source, which is read once for all outputs.

    `moved`: matrices whose neurons have another order, by `matrix_key`. Returns for each output the check, and each
    tensor's relative RMS error.
    """
    runs = [_ErrorCheck(output, moved, plan.request) for output in outputs]
    with ExitStack() as stack:
        for run in runs:
            stack.callback(run.close)
        for tensor in plan.model.tensors:
            samples = functools.cache(functools.partial(_samples, plan.model, tensor))
            for run in runs:
                run.compare(tensor, samples)
    return [(run.check, run.errors) for run in runs]


class _ErrorCheck:
    """The check of errors of one output, tensor after tensor."""

    def __init__(self, output: GgufOutput, moved: Mapping[str, Moved], request: GgufRequest) -> None:
        self._request = request
        self._moved = {key: entry for key, entry in moved.items() if output.label in entry.labels}
        self.errors: dict[str, float] = {}
        self._output = output
        self._slots = {slot.name: (file, slot) for file in output.files for slot in file.slots}
        self._worst, self._worst_name = 0.0, ""
        self._failed: Check | None = None
        self._open: tuple[FileLayout, BinaryIO] | None = None

    @property
    def check(self) -> Check:
        """The result; a tensor that was not compared has no error."""
        detail = f"sampled rows within each type's bound, at worst {self._worst:.2%} ({self._worst_name})"
        return self._failed or Check("error", "passed", detail)

    def compare(self, tensor: ModelTensor, samples: Callable[[], "_Samples"]) -> None:
        """Compare one tensor, unless an earlier one failed; `samples` reads the source's rows."""
        if self._failed is not None or tensor.name not in self._slots:
            return
        check = guard("error", lambda: self._compared(tensor, samples()))
        if check.status != "passed":
            self._failed = check

    def _compared(self, tensor: ModelTensor, source: "_Samples") -> str:
        file, slot = self._slots[tensor.name]
        written = self._written(tensor, slot, self._file(file).fileno(), source.ranges)
        error, size = _sampled_error(written, source)
        self.errors[slot.name] = error
        bound = self._bound(slot)
        faint = (size or 1.0) * error <= _HALF_STEP * (1 if slot.type in (T.F16, T.BF16) else _LEVELS)
        if not (error <= bound or faint):
            raise VerificationError(
                f"tensor {slot.name} of {file.name} has an error of {error:.1%}, above the"
                f" {bound:.1%} that {slot.type.name} allows"
            )
        if error >= self._worst:
            self._worst, self._worst_name = error, slot.name
        return ""

    def _bound(self, slot: Slot) -> float:
        bound = ERROR_BOUND.get(slot.type, LOOSE_BOUND)
        if slot.type in FORMATS and self._request.asymmetric and slot.name.startswith("blk."):
            return max(bound, ASYMMETRIC_BOUND)
        if slot.type in FORMATS and self._request.solver == "feedback" and slot.name == "token_embd.weight":
            return EMBEDDING_FACTOR * bound
        return bound

    def _written(
        self, tensor: ModelTensor, slot: Slot, descriptor: int, ranges: Sequence[tuple[int, int]]
    ) -> NDArray[np.float32]:
        """The written rows of some ranges, dequantized and in the source's order."""
        rows = []
        for start, stop in ranges:
            # a range may cross from one matrix to the next
            for number in range(start // tensor.matrix_rows, (stop - 1) // tensor.matrix_rows + 1):
                first = number * tensor.matrix_rows
                some = max(start, first), min(stop, first + tensor.matrix_rows)
                moved = self._moved.get(matrix_key(tensor.name, number))
                if moved is None:
                    rows.append(_read(tensor, slot, descriptor, *some))
                elif moved.part == "down":
                    rows.append(moved.restored(_read(tensor, slot, descriptor, *some)))
                else:
                    whole = moved.restored(_read(tensor, slot, descriptor, first, first + tensor.matrix_rows))
                    rows.append(whole[some[0] - first : some[1] - first])
        return np.concatenate(rows)

    def _file(self, file: FileLayout) -> BinaryIO:
        """The open file of a layout; the one before it is closed."""
        if self._open is None or self._open[0] is not file:
            self.close()
            stream = partial_path(self._output.folder / file.name).open("rb", buffering=0)
            self._open = (file, stream)
        return self._open[1]

    def close(self) -> None:
        """Close the open file."""
        if self._open is not None:
            self._open[1].close()
            self._open = None


@dataclass(frozen=True)
class _Samples:
    """Row ranges (start, stop) of a tensor, its rows there (n, n_columns), and the sum of their squares."""

    ranges: list[tuple[int, int]]
    rows: NDArray[np.float32]
    squares: float


def _samples(model: Model, tensor: ModelTensor) -> _Samples:
    """A few row ranges spread over a tensor of the source."""
    ranges = sampled_rows(tensor.n_rows, tensor.n_columns)
    parts = [widen(model.read_rows(tensor.name, start, stop), tensor) for start, stop in ranges]
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return _Samples(ranges, rows, _squares(rows))


def _squares(values: NDArray[np.float32]) -> float:
    """The sum of squares, in float64: those of float32 can be outside its range."""
    return float(np.square(values, dtype=np.float64).sum())


def _read(tensor: ModelTensor, slot: Slot, descriptor: int, start: int, stop: int) -> NDArray[np.float32]:
    """Written rows start..stop, dequantized."""
    data = read_at(descriptor, (stop - start) * slot.row_bytes, slot.offset + start * slot.row_bytes)
    return dequantize_rows(slot.type, np.frombuffer(data, np.uint8).reshape(-1, slot.row_bytes), tensor.n_columns)


def _sampled_error(written: NDArray[np.float32], source: _Samples) -> tuple[float, float]:
    """Relative RMS error of the written rows that `source` samples, and the RMS of the source there.

    The error of an all-zero sample is absolute: 0 if it stayed zero. `written` is changed.
    """
    np.subtract(written, source.rows, out=written)
    error, rms = np.sqrt(_squares(written) / (source.squares or 1.0)), np.sqrt(source.squares / written.size)
    return float(error), float(rms)
