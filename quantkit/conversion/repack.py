"""An AWQ or GPTQ folder as a compressed-tensors folder: the same integers, scales and zero points, packed anew."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.checkpoint.quantized.awq_gptq import AwqGptqScheme
from quantkit.checkpoint.quantized.scheme import PackedLinear
from quantkit.conversion.output_record import OutputRecord, code_facts, record_outputs
from quantkit.errors import OutputError, QuantkitError, UnsupportedError, VerificationError
from quantkit.families import find_architecture
from quantkit.files import partial_path, refuse_existing, remove, require_space
from quantkit.machine import resident_memory
from quantkit.packed.formats import Names
from quantkit.packed.layout import Shard, Stated, plan_folder, total_bytes
from quantkit.packed.pack_quantized import PackQuantized, integer_config, pack_integers, stored_integers
from quantkit.packed.packing import pack_stream
from quantkit.packed.reader import QuantizedFolder, open_quantized
from quantkit.packed.registry import FORMATS
from quantkit.packed.writer import FolderWriter, publish
from quantkit.progress import SILENT, Progress
from quantkit.quant.grid import Grid, Quantized
from quantkit.system.python import file_sha256
from quantkit.verify.check import Check

_PIECE = 1 << 22


@dataclass(frozen=True)
class RepackPlan:
    """A folder that can be repacked. `origin` of the source, `shards` of the output, `names` of the linears."""

    opened: QuantizedFolder
    method: str
    name: str
    folder: Path
    grid: Grid
    dtype: str
    shards: tuple[Shard, ...]
    names: Names
    origin: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of the weight files."""
        return total_bytes(self.shards)

    @property
    def parameters(self) -> int:
        """The number of weights of the model before quantization."""
        kept = sum(self.opened.tensors[name].n_params for name in self.opened.names if name in self.opened.tensors)
        return kept + sum(linear.n_in * linear.n_out for linear in self.opened.linears.values())

    @property
    def memory(self) -> int:
        """Bytes of memory: the words of the largest linear, a piece of it in float32, or the largest other tensor."""
        opened = self.opened
        words = max(linear.n_in * linear.n_out for linear in opened.linears.values()) * self.grid.bits // 8
        kept = max(tensor.nbytes for tensor in opened.tensors.values())
        return resident_memory() + max(3 * words + 24 * _PIECE, 3 * kept)

    @property
    def label(self) -> str:
        """The format in folder names."""
        return FORMATS[self.method].label


@dataclass(frozen=True)
class Repacked:
    """A repacked folder; `seconds` of wall time."""

    plan: RepackPlan
    checks: tuple[Check, ...]
    seconds: float


def plan_repack(source: Path, method: str, output: Path, name: str | None = None) -> RepackPlan:
    """Check that the folder `source` can be repacked as `method` ("w4a16", "w8a16"), and lay out the files.

    The caller closes `opened`.

    Raises:
        UnsupportedError: another number of bits, groups by activation order, or zero points that do not fit.
        CheckpointError: the folder is damaged.
    """
    opened = open_quantized(source)
    try:
        scheme, kind = opened.scheme, FORMATS[method]
        assert isinstance(kind, PackQuantized)
        if not isinstance(scheme, AwqGptqScheme):
            raise UnsupportedError(f"{source} has the layout {scheme.layout}, or linears of several grids")
        if scheme.bits != kind.bits:
            raise UnsupportedError(f"{source} has weights of {scheme.bits} bits, and {method} stores {kind.bits}")
        if find_architecture(opened.config).attention.form.turned:
            raise UnsupportedError(f"{source} stores its linears transposed, which no loader of {method} reads")
        grid = Grid(scheme.bits, scheme.group, symmetric=_check_zeros(opened, scheme))
        for linear in opened.linears.values():
            reason = kind.why_not(grid, linear.n_in, linear.n_out)
            if reason:
                raise UnsupportedError(f"{linear.name} of {source} does not fit {kind.label}: {reason}")
        dtypes = {opened.tensors[f"{linear}.scales"].dtype for linear in opened.linears}
        dtype = dtypes.pop() if len(dtypes) == 1 else "F32"
        shards = plan_folder(list(_stated(opened, grid, dtype)))
        model_name = name or source.resolve().name.removesuffix(f"-{scheme.method.upper()}")
        names = Names(opened.linears.keys(), _kept(opened), find_architecture(opened.config).head)
        origin = {"source": source.resolve().name, "revision": None, "header_sha256": dict(opened.header_sha256)}
        return RepackPlan(
            opened, method, model_name, output / f"{model_name}-{kind.label}", grid, dtype, tuple(shards), names, origin
        )
    except BaseException:
        opened.close()
        raise


def repack(plan: RepackPlan, *, force: bool = False, progress: Progress = SILENT) -> Repacked:
    """Write the folder, compare every weight with the source's, and give it its name.

    It is read and written once, so a killed run starts over.

    Raises:
        OutputError: the folder exists (unless `force`), or cannot be written.
        VerificationError: a weight differs; nothing is left.
    """
    started, opened, partial = time.monotonic(), plan.opened, partial_path(plan.folder)
    refuse_existing([plan.folder], force=force)
    require_space(plan.folder.parent, plan.size, [partial])
    try:
        with FolderWriter(partial, plan.shards) as writer:
            progress.start("repacking", len(opened.linears))
            for name in sorted(opened.names):
                linear = opened.linears.get(name.removesuffix(".weight"))
                if linear is None:
                    writer.write(name, opened.stored(name))
                else:
                    _write_linear(plan, writer, linear)
                    progress.advance(1, name)
            writer.finish(_config(plan), opened.folder)
        checks = (_check_equal(plan, partial, progress),)
        seconds = time.monotonic() - started
        record_outputs(partial, {plan.folder.name: _record(plan, partial, checks, seconds)})
    except QuantkitError:
        remove(partial)
        raise
    publish(plan.folder)
    return Repacked(plan, checks, seconds)


def _check_zeros(opened: QuantizedFolder, scheme: AwqGptqScheme) -> bool:
    """Whether every zero point is the middle one. Raises UnsupportedError for what the format cannot store."""
    top, middle, symmetric = (1 << scheme.bits) - 1, 1 << (scheme.bits - 1), True
    for linear in opened.linears.values():
        integers = scheme.integers(opened, linear, 0, linear.n_out, with_values=False)
        if integers.groups is not None:
            raise UnsupportedError(
                f"{linear.name} of {opened.folder} has groups by activation order, which compressed-tensors dropped"
            )
        if integers.zeros.min() < 0 or integers.zeros.max() > top:
            raise UnsupportedError(f"{linear.name} of {opened.folder} has zero points above {top}, which do not fit")
        symmetric &= bool((integers.zeros == middle).all())
    return symmetric


def _stated(opened: QuantizedFolder, grid: Grid, dtype: str) -> Iterator[Stated]:
    for name in sorted(opened.names):
        linear = opened.linears.get(name.removesuffix(".weight"))
        if linear is None:
            yield name, opened.tensors[name].dtype, opened.tensors[name].shape
            continue
        for suffix, (stored, shape) in stored_integers(grid, linear.n_in, linear.n_out, dtype).items():
            yield f"{linear.name}.{suffix}", stored, shape


def _kept(opened: QuantizedFolder) -> list[str]:
    matrices = [name for name in opened.names if name.endswith(".weight") and name in opened.tensors]
    return sorted(name.removesuffix(".weight") for name in matrices if len(opened.tensors[name].shape) == 2)


def _config(plan: RepackPlan) -> dict[str, Any]:
    return {**plan.opened.config, "quantization_config": integer_config(plan.grid, plan.names)}


def _pieces(linear: PackedLinear) -> Iterator[tuple[int, int]]:
    step = max(1, _PIECE // linear.n_in)
    return ((start, min(start + step, linear.n_out)) for start in range(0, linear.n_out, step))


def _write_linear(plan: RepackPlan, writer: FolderWriter, linear: PackedLinear) -> None:
    scheme, grid = plan.opened.scheme, plan.grid
    assert isinstance(scheme, AwqGptqScheme)
    zeros = []
    for start, stop in _pieces(linear):
        integers = scheme.integers(plan.opened, linear, start, stop)
        zeros.append(integers.zeros.astype(np.uint8))
        scales = integers.scales.astype(np.float32)
        packed = pack_integers(Quantized(grid, integers.q, scales, zeros[-1], grid.groups(linear.n_in)))
        for suffix in ("weight_packed", "weight_scale"):
            writer.write(f"{linear.name}.{suffix}", packed[suffix], first_row=start)
    writer.write(f"{linear.name}.weight_shape", np.array([linear.n_out, linear.n_in], np.int64))
    if not grid.symmetric:
        packed_zeros = pack_stream(np.concatenate(zeros).T, grid.bits).T
        writer.write(f"{linear.name}.weight_zero_point", np.ascontiguousarray(packed_zeros))


def _check_equal(plan: RepackPlan, partial: Path, progress: Progress) -> Check:
    """Every weight of the reloaded folder against the source's, bit by bit. Raises VerificationError."""
    source = plan.opened
    with open_quantized(partial) as opened:
        if opened.linears.keys() != source.linears.keys() or opened.names != source.names:
            raise VerificationError(f"{partial.name} does not have the tensors of {source.folder}")
        progress.start("checking", len(source.linears))
        for name in sorted(source.names):
            linear = source.linears.get(name.removesuffix(".weight"))
            if linear is None:
                is_equal = np.array_equal(opened.stored(name).view(np.uint8), source.stored(name).view(np.uint8))
            else:
                is_equal = all(
                    np.array_equal(opened.dequantized(linear.name, *piece), source.dequantized(linear.name, *piece))
                    for piece in _pieces(linear)
                )
                progress.advance(1, name)
            if not is_equal:
                raise VerificationError(f"tensor {name} of {partial.name} is not that of {source.folder}")
    return Check("lossless", "passed", f"{len(source.linears)} linears and all other tensors equal the source's")


def _record(plan: RepackPlan, partial: Path, checks: tuple[Check, ...], seconds: float) -> OutputRecord:
    grid = plan.grid
    return OutputRecord(
        origin=plan.origin,
        type=plan.label,
        files={shard.name: (shard.size, _sha256(partial / shard.name)) for shard in plan.shards},
        checks=checks,
        seconds={"repack": seconds},
        seconds_cover=[plan.label],
        error_method="none: the integers are the source's",
        facts={
            "architecture": (plan.opened.config.get("architectures") or [None])[0],
            "options": {"bits": grid.bits, "group_size": grid.group, "symmetric": grid.symmetric},
            "quantized_linears": len(plan.opened.linears),
            "kept_linears": list(plan.names.kept),
            **code_facts(partial, plan.opened.config),
        },
    )


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return file_sha256(stream)
    except OSError as error:
        raise OutputError(f"{path} cannot be read back ({error.strerror or error}); check the disk") from error
