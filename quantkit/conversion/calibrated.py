"""From a checkpoint to AWQ and GPTQ folders and importance matrices: one streamed forward feeds them all.

Work happens under `*.partial` names beside the final ones; a finished layer is a step of the journal, so a kill costs a
layer and the same command takes up the rest. A folder gets its name once it is whole and checked.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from quantkit.conversion.folder_record import write_folder_origin
from quantkit.conversion.packed_layers import WATCHERS, Keeper
from quantkit.conversion.work import check_space, clear, discard, name_folder, take_back
from quantkit.errors import CalibrationError, HubError, OutputError, QuantkitError, ReadError
from quantkit.journal import Journal
from quantkit.machine import peak_memory
from quantkit.outputs.calibration import CalibratedPlan
from quantkit.outputs.packed_folders import FolderPlan, in_file_order
from quantkit.packed.writer import FolderWriter, partial_folder, refuse_existing
from quantkit.stream.stream import Stream
from quantkit.verify.check import Check
from quantkit.verify.quantized import SourceLogits, verify_folder

Progress = Callable[[str, int], None]
_PIECE_ELEMENTS = 1 << 22

Squares = dict[tuple[str, int | None], tuple[NDArray[np.float64], int]]
"""(linear, its index in a stack) -> sums of squares of its input, tokens."""


@dataclass(frozen=True)
class Folder:
    """A written folder and what its checks saw. `errors`: each linear's relative output error over the text."""

    plan: FolderPlan
    checks: tuple[Check, ...]
    errors: Mapping[str, float]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == "failed")


@dataclass(frozen=True)
class Calibrated:
    """A finished calibration. `seconds` of wall time; `starved`: by layer, the experts that were sent few tokens."""

    plan: CalibratedPlan
    folders: tuple[Folder, ...]
    squares: Squares
    seconds: Mapping[str, float]
    peak_memory: int
    resumed: int = 0
    starved: Mapping[int, Sequence[str]] = field(default_factory=dict)


def calibrate(
    plan: CalibratedPlan,
    *,
    force: bool = False,
    logits: bool | None = None,
    progress: Progress = lambda _name, _amount: None,
    stage: Callable[[str], None] = lambda _text: None,
    then: Callable[[Squares], None] = lambda _squares: None,
    others: Sequence[Path] = (),
    others_size: int = 0,
) -> Calibrated:
    """Run a plan to its end. A run that was killed is taken up where it was.

    `then` gets the squares once every folder is checked, and before any gets its name; `others` are files it will make,
    `others_size` bytes in all, refused like folders when they are there beforehand. `progress(layer, 1)` counts.

    Raises:
        OutputError: the folder cannot be written, is too small, or holds the outputs already (unless `force`).
        CalibrationError: the text or the checkpoint gives statistics that cannot be used.
    """
    try:
        plan.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot create {plan.work}: {error.strerror or error}; choose another folder with -o"
        ) from error
    partial = [partial_folder(folder.folder).name for folder in plan.folders]
    journal = Journal(plan.work / "journal", plan.fingerprint, partial, force=force)
    complete = journal.finishing is not None
    try:
        with threadpool_limits(1, "blas"):
            if complete:
                take_back(plan)
            else:
                if not journal.resumed:
                    clear(plan, journal.stale)
                _refuse_existing(plan, others, force=force)
            check_space(plan, others, others_size)
            result = _Run(plan, journal, progress, stage).run(logits)
            complete = True
            then(result.squares)
        for each in result.folders:
            name_folder(each.plan.folder, failed=bool(each.failed))
        shutil.rmtree(plan.work)
    except MemoryError:
        raise CalibrationError(
            f"out of memory at about {peak_memory() / 1e9:.1f} GB; the same command with fewer --threads takes up the"
            " finished layers, one with a shorter --seq-len and --force starts anew"
        ) from None
    except (ReadError, HubError):
        raise
    except QuantkitError as error:
        # Where trying again would give the same, nothing is worth keeping.
        if not complete and not (journal.records and isinstance(error, OutputError)):
            discard(plan)
        raise
    finally:
        journal.close()
    return result


def _refuse_existing(plan: CalibratedPlan, others: Sequence[Path], *, force: bool) -> None:
    for folder in plan.folders:
        refuse_existing(folder.folder, force=force)
    there = next((path for path in others if path.exists()), None)
    if there is not None and not force:
        raise OutputError(f"{there} is there already; add --force to replace it")


class _Run:
    def __init__(
        self, plan: CalibratedPlan, journal: Journal, progress: Progress, stage: Callable[[str], None]
    ) -> None:
        self.plan, self.journal, self.progress, self.stage = plan, journal, progress, stage
        self.native = plan.native
        self.source = SourceLogits(plan.native)
        self.writers = [
            FolderWriter(partial_folder(folder.folder), folder.shards, keep=journal.resumed) for folder in plan.folders
        ]
        if not all(writer.resumed for writer in self.writers):
            journal.forget()
        self.watchers = [
            WATCHERS[folder.request.method](folder, writer, self.native.whole, plan.propagate)
            for folder, writer in zip(plan.folders, self.writers, strict=True)
        ]

    def run(self, logits: bool | None) -> Calibrated:
        plan, journal = self.plan, self.journal
        started = time.monotonic()
        with Stream(
            self.native,
            plan.samples.tokens,
            plan.work,
            threads=plan.threads,
            gram=bool(plan.folders),
            propagate=plan.propagate,
            device=plan.device,
        ) as stream:
            first = self._first_layer(stream)
            if first == 0:
                stream.embed()
            if "ends" not in journal.done:
                self._write_ends()
            for number in range(first, len(plan.layers)):
                self._layer(stream, number)
        calibrated = time.monotonic()
        folders = tuple(self._check(index, logits) for index in range(len(plan.folders)))
        seconds = {"calibrate": calibrated - started, "verify": time.monotonic() - calibrated}
        notes = {number: journal.records[_step(number)] for number in range(len(plan.layers))}
        result = Calibrated(
            plan,
            folders,
            self._squares(),
            seconds,
            peak_memory(),
            first,
            {number: note["starved"] for number, note in notes.items() if note["starved"]},
        )
        for folder in folders:
            write_folder_origin(plan, folder.plan, folder.checks, folder.errors, notes, seconds)
        for writer in self.writers:
            writer.close()
        journal.start_finishing({})
        return result

    def _first_layer(self, stream: Stream) -> int:
        """The first layer that is not finished; 0, and the journal forgotten, where its states are gone."""
        done = 0
        while done < len(self.plan.layers) and _step(done) in self.journal.done:
            done += 1
        if done and (
            (done < len(self.plan.layers) and not stream.can_start_at(done))
            or not all(self._squares_file(number).exists() for number in range(done))
        ):
            self.journal.forget()
            return 0
        for number in range(done):
            self.progress(f"layer {number + 1}", 1)
        return done

    def _layer(self, stream: Stream, number: int) -> None:
        plan = self.plan
        for watcher in self.watchers:
            watcher.begin()
        keeper = Keeper(self.watchers)
        stream.layer(number, keeper)
        partial = self._squares_file(number).with_suffix(".new.npz")
        try:
            np.savez(partial, **keeper.squares)  # type: ignore[arg-type]
            partial.replace(self._squares_file(number))
        except OSError as error:
            raise OutputError(
                f"cannot write into {plan.work}: {error.strerror or error}; free some space and run the command again"
            ) from error
        note = {
            "errors": {
                w.plan.request.method: {name: round(e, 6) for name, e in w.notes.items()} for w in self.watchers
            },
            "damping": {w.plan.request.method: dict(w.damping) for w in self.watchers if w.damping},
            "sha256": {w.plan.request.method: w.hashes() for w in self.watchers},
            "tokens": keeper.tokens,
            "starved": keeper.starved,
        }
        self.journal.finished(_step(number), note)
        worst = max((error for w in self.watchers for error in w.notes.values()), default=None)
        text = f"layer {number + 1} of {len(self.plan.layers)}, {peak_memory() / 1e6:.0f} MB"
        self.progress(text if worst is None else f"{text}, worst error {worst:.1%}", 1)

    def _write_ends(self) -> None:
        """What is outside the layers, as it stands."""
        names = [name for name in in_file_order(self.native) if self.native.decoder.layer_of(name) is None]
        for name in names:
            tensor = self.native.tensors[name]
            rows = tensor.part_rows * len(tensor.parts)
            step = max(1, _PIECE_ELEMENTS // tensor.shape[-1])
            for start in range(0, rows, step):
                piece = self.native.rows(name, start, min(rows, start + step))
                for writer in self.writers:
                    if len(tensor.shape) == 1:
                        writer.write(name, piece.reshape(-1))
                    else:
                        writer.write(name, piece, first_row=start)
        note = {w.plan.request.method: {name: w.writer.sha256(name) for name in names} for w in self.watchers}
        self.journal.finished("ends", {"sha256": note})

    def _check(self, index: int, logits: bool | None) -> Folder:
        plan, writer = self.plan.folders[index], self.writers[index]
        method = plan.request.method
        self.stage(f"checking {plan.request.label}")
        writer.finish(plan.config(self.native.config), self.native.checkpoint.folder, plan.more_files())
        records = [
            self.journal.records["ends"],
            *(self.journal.records[_step(n)] for n in range(len(self.plan.layers))),
        ]
        hashes = {name: digest for record in records for name, digest in record["sha256"][method].items()}
        errors = {name: error for record in records[1:] for name, error in record["errors"][method].items()}
        checks = verify_folder(writer.folder, plan, self.native, hashes, logits=logits, source=self.source)
        return Folder(plan, tuple(checks), errors)

    def _squares(self) -> Squares:
        found: Squares = {}
        for layer in self.plan.layers:
            with np.load(self._squares_file(layer.number)) as squares:
                for each in layer.inputs:
                    if each.key in squares:
                        values = squares[each.key]
                        for linear in each.linears:
                            found[linear.name, linear.index] = values[:-1], int(values[-1])
        return found

    def _squares_file(self, number: int) -> Path:
        return self.plan.work / f"squares-{number}.npz"


def _step(number: int) -> str:
    return f"layer {number}"
