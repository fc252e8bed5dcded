"""Outputs of a streamed source, layer by layer: they are written while the weights of the layer are still in memory.

So range requests fetch the source once, although the calibration, the folders and the GGUF files each read it. Rows
that checks and the embedding of samples read a second time are kept in the work folder.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint import Checkpoint, TensorInfo
from quantkit.checkpoint.kept_rows import Span
from quantkit.conversion.direct_folders import direct_step, write_direct_tensors
from quantkit.conversion.gguf_pass import run_pass
from quantkit.errors import QuantkitError
from quantkit.imatrix.names import LinearKey
from quantkit.journal import Journal
from quantkit.outputs.gguf_files import GgufPlan
from quantkit.outputs.importance import column_weights
from quantkit.outputs.packed_folders import in_file_order
from quantkit.outputs.plan import ConversionPlan
from quantkit.progress import Progress
from quantkit.verify.check import sampled_rows

if TYPE_CHECKING:
    # needs the hub's client, which is slow to import
    from quantkit.checkpoint.streamed import StreamedWeights

OUTSIDE_LAYERS = "ends"
"""The step of the journal for the tensors outside the layers, in the folders that a calibration writes."""
_PIECE = 8 << 20
_LAYER = re.compile(r"blk\.(\d+)\.")


class LayerOutputs:
    """Writes the tensors of one layer at a time into the direct folders and the GGUF files of a plan."""

    def __init__(
        self, plan: ConversionPlan, checkpoint: Checkpoint, streamed: "StreamedWeights", journal: Journal
    ) -> None:
        """Raises OutputError."""
        self.plan, self._checkpoint, self._streamed = plan, checkpoint, streamed
        self._embedded = self._spans_of_samples()
        streamed.keep([*self._embedded, *checkpoint.spans_of(self._read_samples)], plan.work)
        needed = _needed(plan, journal)
        order = [name for name in _in_order(plan, checkpoint) if name in needed]
        streamed.expect([tensor for name in order for tensor in _stored(checkpoint, name)])

    def write_outside(self, journal: Journal, progress: Progress) -> None:
        """Write the tensors outside the layers, and keep the rows of the embedding that the samples need."""
        self._write(None, self.plan.gguf, journal, progress)
        if self._embedded and not self._streamed.keeps(self._embedded):
            self._sweep()

    def write_layer(
        self,
        number: int,
        journal: Journal,
        progress: Progress,
        squares: Mapping[LinearKey, tuple[NDArray[np.float64], int]] | None = None,
    ) -> None:
        """Write the tensors of a layer. `squares` of the inputs of its linears are the importance of GGUF types."""
        gguf, calibration = self.plan.gguf, self.plan.calibration
        if gguf is not None and gguf.request.calibrate and squares is not None and calibration is not None:
            imatrix = calibration.imatrix(squares)
            weights = column_weights(gguf.model, imatrix, gguf.request.imatrix_name) if imatrix.values else {}
            gguf = replace(gguf, weights=weights)
        self._write(number, gguf, journal, progress)

    def write_all(self, journal: Journal, progress: Progress) -> None:
        """Write everything, without a calibration."""
        plan = self.plan
        assert plan.native is not None
        progress.start("converting", plan.parameters)
        self.write_outside(journal, progress)
        for number in range(plan.native.decoder.n_layers):
            self.write_layer(number, journal, progress)

    def _write(self, number: int | None, gguf: GgufPlan | None, journal: Journal, progress: Progress) -> None:
        plan = self.plan
        if plan.direct_folders:
            assert plan.native is not None
            decoder = plan.native.decoder
            names = {name for name in plan.native.tensors if decoder.layer_of(name) == number}
            write_direct_tensors(plan, journal, progress, names)
        if gguf is not None and _has_types(gguf):
            names = {tensor.name for tensor in gguf.model.tensors if _layer_of(tensor.name) == number}
            run_pass(gguf, journal, progress, names)

    def _spans_of_samples(self) -> list[Span]:
        """The rows of the embedding that the calibration samples read."""
        calibration = self.plan.calibration
        if calibration is None:
            return []
        tokens = np.unique(calibration.samples.tokens)
        length = calibration.samples.tokens.shape[1]
        decoder = calibration.native.decoder
        return self._checkpoint.spans_of(
            lambda: [decoder.embed(tokens[at : at + length].tolist()) for at in range(0, len(tokens), length)]
        )

    def _read_samples(self) -> None:
        """Read what the checks of the outputs read of the source."""
        plan = self.plan
        if plan.gguf is not None:
            for tensor in plan.gguf.model.tensors:
                for start, stop in sampled_rows(tensor.n_rows, tensor.n_columns):
                    with suppress(QuantkitError):  # a scheme may refuse the zeros that stand for its scales
                        plan.gguf.model.read_rows(tensor.name, start, stop)
        for folder in plan.folders:
            assert plan.native is not None
            for name, linear in folder.quantized.items():
                turned = linear.form.turned
                shape = (linear.n_in, linear.n_out) if turned else (linear.n_out, linear.n_in)
                for start, stop in sampled_rows(*shape):
                    with suppress(QuantkitError):
                        plan.native.rows(name + linear.form.weight, start, stop)

    def _sweep(self) -> None:
        """Read the tensors that the samples read once, from first to last."""
        spans = {(span.file, span.start) for span in self._embedded}
        for name, tensor in self._checkpoint.tensors.items():
            end = tensor.offset + tensor.nbytes
            if any(file == tensor.file and tensor.offset <= start < end for file, start in spans):
                step = max(1, _PIECE * tensor.n_rows // max(tensor.nbytes, 1))
                for start in range(0, tensor.n_rows, step):
                    self._checkpoint.read_rows(name, start, min(start + step, tensor.n_rows))


def layer_step(number: int) -> str:
    """The step of the journal for a calibrated layer."""
    return f"layer {number}"


def _has_types(gguf: GgufPlan) -> bool:
    """Whether the types are known before the calibration ends."""
    return gguf.request.target is None or gguf.request.solver == "feedback"


def _layer_of(name: str) -> int | None:
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def _needed(plan: ConversionPlan, journal: Journal) -> set[str]:
    """The tensors of the checkpoint that an unfinished step reads."""
    native, gguf, done = plan.native, plan.gguf, journal.records
    needed = set()
    if gguf is not None:
        needed |= {source for t in gguf.model.tensors if t.name not in done for source in t.sources}
    for name, tensor in native.tensors.items() if native is not None else ():
        assert native is not None
        number = native.decoder.layer_of(name)
        step = layer_step(number) if number is not None else OUTSIDE_LAYERS
        if (plan.direct_folders and direct_step(name) not in done) or (plan.calibration and step not in done):
            needed |= {part.source for part in tensor.parts}
    return needed


def _stored(checkpoint: Checkpoint, name: str) -> list[TensorInfo]:
    """The tensors in the weight files that a tensor is read from: several for a quantized linear."""
    tensor = checkpoint.tensors[name]
    if tensor.linear is None:
        return [tensor]
    assert checkpoint.quantized is not None
    at = checkpoint.quantized.linears[tensor.linear].stored
    return [part for stored, part in checkpoint.stored_tensors.items() if stored.startswith(f"{at}.")]


def _in_order(plan: ConversionPlan, checkpoint: Checkpoint) -> Sequence[str]:
    """The tensors of the checkpoint in the order in which they are read."""
    native, gguf = plan.native, plan.gguf
    if native is not None:
        names = in_file_order(native)
        layers = {name: native.decoder.layer_of(name) for name in names}
        ordered = sorted(names, key=lambda name: -1 if layers[name] is None else layers[name] or 0)
        sources = [part.source for name in ordered for part in native.tensors[name].parts]
    elif gguf is not None:
        sources = [source for tensor in gguf.model.tensors for source in tensor.sources]
    else:
        sources = []
    return [name for name in dict.fromkeys(sources) if name in checkpoint.tensors]
