"""The files that a calibration keeps of each layer: sums of squares of its inputs, and the orders of its neurons.

With the journal they tell which layers are finished.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from quantkit.conversion.gguf_layers import FeedbackRounder
from quantkit.conversion.layer_outputs import layer_step
from quantkit.conversion.neurons import load_orders, save_orders
from quantkit.conversion.packed_layers import LayerSums
from quantkit.errors import OutputError, PassingError
from quantkit.forward.linears import LayerLinears
from quantkit.imatrix.names import LinearKey, Squares
from quantkit.journal import Journal
from quantkit.outputs.calibration import CalibrationPlan
from quantkit.outputs.plan import ConversionPlan
from quantkit.quant.neurons import Moved
from quantkit.stream.rounded import RoundedStream
from quantkit.stream.stream import Stream


def first_layer(plan: ConversionPlan, count: int, journal: Journal, streams: Sequence[Stream | RoundedStream]) -> int:
    """The first unfinished layer; 0, with an empty journal, when its states or sums of squares are lost."""
    first = next((number for number in range(count) if layer_step(number) not in journal.records), count)
    states = first == count or all(stream.can_start_at(first) for stream in streams)
    reorders = plan.gguf is not None and plan.gguf.request.reorder
    squares = [
        _squares_file(plan, number).exists() and (not reorders or _orders_file(plan, number).exists())
        for number in range(count)
    ]
    # A later layer was run, although the journal does not have it: it has overwritten the states of this one.
    overwritten = any(squares[first + 1 :])
    if not (states and all(squares[:first])) or overwritten:
        forget_layers(plan, journal)
        return 0
    return first


def forget_layers(plan: ConversionPlan, journal: Journal) -> None:
    """Empty the journal, and remove the sums of squares, which are evidence of finished layers."""
    journal.forget()
    for pattern in ("squares-*.npz", "neurons-*.npz"):
        for path in plan.work.glob(pattern):
            path.unlink()


def save_statistics(plan: ConversionPlan, number: int, sums: LayerSums, rounder: FeedbackRounder | None) -> None:
    """Keep the sums of squares of a layer, and the orders of its neurons, for a later run and for the checks."""
    path = _squares_file(plan, number)
    partial = path.with_suffix(".new.npz")
    try:
        if rounder is not None and rounder.plan.request.reorder:
            save_orders(_orders_file(plan, number), rounder.moved)
        np.savez(partial, **sums.squares)  # type: ignore[arg-type]
        partial.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write into {plan.work}: {error.strerror or error}; free some space and rerun the command"
        ) from error


def load_squares(plan: ConversionPlan, calibration: CalibrationPlan) -> Squares:
    """The sums of squares of every linear, from the files of all layers. Raises PassingError, OutputError."""
    sums: dict[LinearKey, tuple[NDArray[np.float64], int]] = {}
    for layer in calibration.layers:
        with _open_squares(_squares_file(plan, layer.number)) as squares:
            sums |= by_linear(layer, dict(squares))
    return sums


def _open_squares(path: Path) -> Any:
    """The arrays of a file of `save_statistics`. Raises PassingError, or OutputError when the file is damaged."""
    try:
        # zipfile would take a disk error for the end of a damaged file
        return np.load(BytesIO(path.read_bytes()))
    except OSError as error:
        raise PassingError(f"cannot read {path} ({error.strerror or error}); run the same command again") from error
    except (ValueError, BadZipFile) as error:
        raise OutputError(f"{path} is damaged; add --force to start over") from error


def neuron_orders(plan: ConversionPlan, number: int) -> dict[str, Moved]:
    """The orders of a layer's neurons in the GGUF files; none without --reorder-neurons."""
    wanted = plan.gguf is not None and plan.gguf.request.reorder
    return load_orders(_orders_file(plan, number)) if wanted else {}


def _orders_file(plan: ConversionPlan, number: int) -> Path:
    return plan.work / f"neurons-{number}.npz"


def _squares_file(plan: ConversionPlan, number: int) -> Path:
    return plan.work / f"squares-{number}.npz"


def by_linear(
    layer: LayerLinears, squares: Mapping[str, NDArray[np.float64]]
) -> dict[LinearKey, tuple[NDArray[np.float64], int]]:
    """Sums of squares and tokens of each linear of a layer, from those of its inputs."""
    return {
        (linear.name, linear.index): (squares[entry.key][:-1], int(squares[entry.key][-1]))
        for entry in layer.inputs
        if entry.key in squares
        for linear in entry.linears
    }
