"""The calibration: one streamed forward gives every packed folder its layers and the importance matrix its sums."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from quantkit.conversion.asymmetric_layers import AsymmetricRounder
from quantkit.conversion.gguf_embedding import EMBEDDING, OF_STREAMED, GgufEmbedding
from quantkit.conversion.gguf_layers import FeedbackRounder
from quantkit.conversion.gguf_pass import has_all_files
from quantkit.conversion.layer_outputs import OUTSIDE_LAYERS, LayerOutputs, layer_step
from quantkit.conversion.layer_quantizer import LayerQuantizer
from quantkit.conversion.layer_statistics import (
    by_linear,
    first_layer,
    forget_layers,
    load_squares,
    neuron_orders,
    save_statistics,
)
from quantkit.conversion.packed_layers import LayerSums, quantizer_of
from quantkit.conversion.rounded_inputs import RoundedInputs
from quantkit.errors import PassingError
from quantkit.files import partial_path
from quantkit.forward.devices import is_full
from quantkit.forward.linears import AFTER_EXPERTS
from quantkit.imatrix.names import LinearKey, Squares
from quantkit.journal import Journal
from quantkit.machine import peak_memory
from quantkit.outputs.calibration import CalibrationPlan
from quantkit.outputs.packed_folders import in_file_order
from quantkit.outputs.plan import ConversionPlan
from quantkit.packed.writer import FolderWriter
from quantkit.progress import SILENT, Progress
from quantkit.quant.neurons import Moved
from quantkit.stream.rounded import EmbeddingRows, RoundedStream
from quantkit.stream.stream import Stream, StreamOptions
from quantkit.workers import Workers

_PIECE_ELEMENTS = 1 << 22

LayerRecord = dict[str, Any]
"""What the journal keeps of a layer: `tokens` of each expert, `starved` experts, and by method what
`LayerQuantizer.record` returns."""


@dataclass(frozen=True)
class Calibration:
    """A finished calibration. `squares`: linear -> sums of squares of its input, tokens. `resumed`: layers.

    `rounded`: GGUF tensor -> why some of its matrices were rounded without error feedback (see `FeedbackRounder`).
    `moved`: the matrices of GGUF tensors whose neurons have another order (see `quant.neurons`).
    """

    squares: Squares
    layers: tuple[LayerRecord, ...]
    outside: LayerRecord
    resumed: int
    rounded: Mapping[str, Sequence[str]]
    moved: Mapping[str, Moved]


def calibrate(
    plan: ConversionPlan,
    calibration: CalibrationPlan,
    journal: Journal,
    progress: Progress,
    others: LayerOutputs | None = None,
) -> Calibration:
    """Run the model over the samples layer by layer; write every packed folder, still under its partial name.

    `others`: the other outputs of a streamed source, of which each layer is written after its calibration.

    Raises:
        CalibrationError: the text or the checkpoint gives statistics that cannot be used.
        OutputError: a file cannot be written.
    """
    native, count = calibration.native, len(calibration.layers)
    with ExitStack() as stack:
        # BLAS would round its sums differently for each number of threads; the workers share the work instead
        stack.enter_context(threadpool_limits(1, "blas"))
        workers = stack.enter_context(Workers(plan.threads))
        quantizers = _quantizers(plan, calibration, journal, workers, stack)
        rounder = _rounder(plan, calibration, journal, workers, stack)
        device, hold = calibration.device, calibration.hold_states
        options = StreamOptions(
            calibration.gram, calibration.propagate, device, hold_states=hold, hold_values=plan.holds_values
        )
        stream = Stream(native, calibration.samples.tokens, plan.work, threads=plan.threads, options=options)
        stack.enter_context(stream)
        embedding = None if rounder is None else GgufEmbedding(rounder, stream)
        followers = _rounded_streams(plan, rounder, embedding, quantizers, stream, stack)
        progress.start("calibrating", count)
        first = first_layer(plan, count, journal, [stream, *followers])
        if OUTSIDE_LAYERS not in journal.records:
            journal.finished(OUTSIDE_LAYERS, _copy_outside_layers(calibration, quantizers))
        if others is not None:
            others.write_outside(journal, SILENT)
        if first == 0:
            # a source that is read as it is downloaded has written its embedding before its first layer is known
            if embedding is not None and EMBEDDING not in journal.records and embedding.comes_first:
                progress.advance(0, "the embedding")
                journal.finished(EMBEDDING, embedding.write())
            stream.embed()
            for follower in followers:
                follower.embed()
        else:
            progress.advance(first, f"layer {first} of {count}")
        for number in range(first, count):
            sums = LayerSums(quantizers if rounder is None else [rounder, *quantizers])
            with _full_device_explained(number):
                stream.layer(number, sums)
            save_statistics(plan, number, sums, rounder)
            for name, reasons in rounder.rounded.items() if rounder else ():
                journal.finished(name, reasons)
            record = {quantizer.plan.request.method: quantizer.record() for quantizer in quantizers}
            journal.finished(layer_step(number), {**record, "tokens": sums.tokens, "starved": sums.starved})
            if others is not None:
                others.write_layer(number, journal, SILENT, by_linear(calibration.layers[number], sums.squares))
            worst = [f", worst error {max(q.errors.values()):.1%}" for q in quantizers if q.errors]
            progress.advance(1, f"layer {number + 1} of {count}, {peak_memory() / 1e6:.0f} MB{max(worst, default='')}")
        for quantizer in quantizers:
            folder = quantizer.plan
            quantizer.writer.finish(folder.config(native.config), native.checkpoint.folder, folder.more_files())
        rounded = {name: journal.records[name] for name in sorted(rounder.covered)} if rounder else {}
        if embedding is not None and embedding.feeds_back:
            rounded[EMBEDDING] = journal.records[EMBEDDING] if others is None else [OF_STREAMED]
    layers = tuple(journal.records[layer_step(number)] for number in range(count))
    moved = {key: order for layer in calibration.layers for key, order in neuron_orders(plan, layer.number).items()}
    squares = load_squares(plan, calibration)
    return Calibration(squares, layers, journal.records[OUTSIDE_LAYERS], first, rounded, moved)


@contextmanager
def _full_device_explained(number: int) -> Iterator[None]:
    """Raise PassingError where the device's memory is full in a layer; the layers before it are kept."""
    try:
        yield
    except RuntimeError as error:
        if not is_full(error):
            raise
        raise PassingError(
            f"the GPU's memory is full in layer {number + 1} (--device cuda); end other programs on it and run the same"
            " command again, or add --device cpu: finished layers are kept"
        ) from error


def _quantizers(
    plan: ConversionPlan, calibration: CalibrationPlan, journal: Journal, workers: Workers, stack: ExitStack
) -> list[LayerQuantizer]:
    """The quantizer of each calibrated folder, with its files open. Files that are lost make the journal forget."""
    quantizers: list[LayerQuantizer] = []
    for folder in plan.calibrated_folders:
        writer = FolderWriter(partial_path(folder.folder), folder.shards, keep=journal.resumed)
        stack.enter_context(writer)
        method = quantizer_of(folder.request)
        quantizers.append(method(folder, writer, calibration.native.whole, workers, calibration.propagate))
    if not all(quantizer.writer.resumed for quantizer in quantizers):
        forget_layers(plan, journal)
    return quantizers


def _rounder(
    plan: ConversionPlan, calibration: CalibrationPlan, journal: Journal, workers: Workers, stack: ExitStack
) -> FeedbackRounder | None:
    """What rounds the GGUF types with error feedback, if they are asked for. Lost files make the journal forget."""
    if plan.gguf is None or plan.gguf.request.solver != "feedback":
        return None
    if not has_all_files(plan.gguf):
        forget_layers(plan, journal)
    sources, columns = calibration.imatrix_sources, calibration.imatrix_columns
    if plan.is_asymmetric:
        # what the linear back from a latent reads is known when the rounded stream has left the layer
        late = {
            (linear.name, linear.index)
            for layer in calibration.layers
            for entry in layer.inputs
            if entry.key == AFTER_EXPERTS
            for linear in entry.linears
        }
        sources = {name: keys for name, keys in sources.items() if late.isdisjoint(keys)}
    kind = AsymmetricRounder if plan.is_asymmetric else FeedbackRounder
    return stack.enter_context(kind(plan.gguf, sources, columns, workers, keep=journal.resumed))


def _rounded_streams(
    plan: ConversionPlan,
    rounder: FeedbackRounder | None,
    embedding: GgufEmbedding | None,
    quantizers: Sequence[LayerQuantizer],
    stream: Stream,
    stack: ExitStack,
) -> list[RoundedStream]:
    """The streams of rounded layers that are followed, one for each file or folder."""

    def followed(label: str, *, hold_out: bool, rows: EmbeddingRows | None = None) -> RoundedStream:
        folder = plan.work / f"rounded-{label}"
        return stack.enter_context(RoundedStream(stream, folder, hold_out=hold_out, embedding=rows))

    streams: dict[str, RoundedStream] = {}
    if isinstance(rounder, AsymmetricRounder):
        assert embedding is not None
        streams = {label: followed(label, hold_out=True, rows=embedding.rows(label)) for label in rounder.labels}
        rounder.follow(streams)
    own = [followed(folder.label, hold_out=False) for folder in plan.following_folders]
    following = (quantizer for quantizer in quantizers if quantizer.plan.request.follows_rounded)
    for quantizer, of_folder in zip(following, own, strict=True):
        quantizer.follower = RoundedInputs(of_folder)
    return [*streams.values(), *own]


def survey(plan: ConversionPlan, calibration: CalibrationPlan, progress: Progress) -> Squares:
    """The sums of squares of every input, from a separate run: error feedback needs the types before it begins.

    Raises as `calibrate` does. A killed survey starts over.
    """
    folder = plan.work / "survey"
    squares: dict[LinearKey, tuple[NDArray[np.float64], int]] = {}
    folder.mkdir(exist_ok=True)
    tokens, options = (
        calibration.samples.tokens,
        StreamOptions(gram=False, device=calibration.device, hold_states=calibration.hold_states),
    )
    with (
        threadpool_limits(1, "blas"),
        Stream(calibration.native, tokens, folder, threads=plan.threads, options=options) as stream,
    ):
        progress.start("measuring inputs", len(calibration.layers))
        stream.embed()
        for layer in calibration.layers:
            sums = LayerSums([])
            stream.layer(layer.number, sums)
            squares |= by_linear(layer, sums.squares)
            progress.advance(1, f"layer {layer.number + 1} of {len(calibration.layers)}")
    shutil.rmtree(folder)
    return squares


def _copy_outside_layers(calibration: CalibrationPlan, quantizers: list[LayerQuantizer]) -> LayerRecord:
    """Write the tensors outside the layers (embedding, last norm, head) as they are; their sha256 by method."""
    native = calibration.native
    names = [name for name in in_file_order(native) if native.decoder.layer_of(name) is None]
    for name in names:
        tensor = native.tensors[name]
        rows = tensor.part_rows * len(tensor.parts)
        step = max(1, _PIECE_ELEMENTS // tensor.shape[-1])
        for start in range(0, rows, step):
            piece = native.rows(name, start, min(rows, start + step))
            for quantizer in quantizers:
                if len(tensor.shape) == 1:
                    quantizer.writer.write(name, piece.reshape(-1))
                else:
                    quantizer.writer.write(name, piece, first_row=start)
    return {q.plan.request.method: {"sha256": {name: q.writer.sha256(name) for name in names}} for q in quantizers}
