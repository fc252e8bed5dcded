"""Logits of a checkpoint or of a folder of AWQ or GPTQ weights, in the memory of one layer.

`prepare` computes all windows layer by layer and reads each layer once. It leaves two files in its work folder:

    scored         float32 (windows, scored positions, hidden): the states after the last layer that need logits
    journal        the finished layers (see `quantkit.journal`)

While it runs, the folder also holds the states between two layers (see `stream.states`). `logits` computes the head on
one window of `scored`.
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from quantkit.checkpoint import Checkpoint
from quantkit.errors import CalibrationError, MeasureError, OutputError
from quantkit.files import make_folder
from quantkit.forward.arrays import Array, fetch, place
from quantkit.forward.forward import Decoder
from quantkit.journal import Journal
from quantkit.machine import cores, memory_limit
from quantkit.measurement.folder_sources import open_source, parameter_count, source_of, weight_bytes
from quantkit.packed.reader import QuantizedFolder
from quantkit.packed.registry import type_of
from quantkit.progress import Progress
from quantkit.stream.layer import LayerWeights
from quantkit.stream.shared import bytes_per_token, shared_file
from quantkit.stream.states import States, states_file
from quantkit.stream.stream import Stream, StreamOptions
from quantkit.units import human_bytes

_SCORED = "scored"
_MEMORY = memory_limit()
# A head that takes less of the machine's memory than this is read once for all windows.
_HEAD_SHARE = 8
_SLICE_ELEMENTS = 1 << 22


class FolderEngine:
    """The `Engine` of a folder.

    Attributes:
        opened: the checkpoint or the quantized folder; `close` closes it.
        kind: "hf", or the name of a format of quantized folders (`packed.registry`).
        folder: the folder with the tokenizer.
        config: config.json as the forward reads it.
        n_vocab: the number of logits of a position.
        n_bytes: size of the weight files.
        n_parameters: the number of parameters before quantization.
    """

    def __init__(self, opened: Checkpoint | QuantizedFolder, *, threads: int = 0, device: object = None) -> None:
        """An engine that has not read weights yet.

        Args:
            threads: 0 for all cores.
            device: a torch device; None for numpy (see `find_device`).

        Raises:
            UnsupportedError: the forward does not support the architecture or a setting of config.json.
        """
        self.opened, self.device = opened, device
        self.threads = threads or cores()
        self.source = source_of(opened)
        self.kind = type_of(_stated_config(opened)) or "hf"
        self.folder, self.config = opened.folder, self.source.config
        self.n_vocab = int(self.config["vocab_size"])
        self.n_bytes, self.n_parameters = weight_bytes(opened), parameter_count(self.source)
        self._states: States | None = None
        self._last: Decoder | None = None
        self._blas = ThreadpoolController()
        self._closed = False

    @property
    def resident_bytes(self) -> int:
        """Bytes of the head in float32; 0 if the head is too large to stay in memory between two calls of `logits`."""
        size = self.n_vocab * self.source.decoder.hidden * 4
        return size if size < _MEMORY // _HEAD_SHARE else 0

    def work_bytes(self, n_windows: int, n_ctx: int) -> int:
        """Bytes of disk that `prepare` needs in its work folder; less than half of them remain afterwards."""
        return n_windows * n_ctx * bytes_per_token(self.source.decoder, n_ctx)

    def prepare(self, windows: NDArray[np.int32], work: Path, progress: Progress) -> None:
        """Compute all layers for `windows`, int32 (n, n_ctx). After a kill, a call with the same `work` resumes.

        Args:
            progress: receives one stage, "layers".

        Raises:
            MeasureError: a hidden state is not finite; the message names the layer and the window ("chunk", from 1).
            OutputError: the disk is too small, or `work` is not writable.
        """
        self._check(windows)
        count, n_ctx = windows.shape
        decoder, first = self.source.decoder, n_ctx // 2
        make_folder(work)
        fingerprint = hashlib.sha256(repr(windows.shape).encode() + windows.tobytes()).hexdigest()
        self._forget_states()
        self._states = States(work, count, n_ctx - 1 - first, decoder.width)
        journal = Journal(work / "journal", fingerprint, [], force=True)
        try:
            if _SCORED not in journal.done or not self._states.holds(_SCORED):
                self._check_space(work, count, n_ctx)
                self._through_layers(windows, work, journal, progress)
            else:
                progress.start("layers", decoder.n_layers)
                progress.advance(decoder.n_layers, f"{decoder.n_layers} of {decoder.n_layers}")
        except CalibrationError as error:
            raise MeasureError(f"{self.folder.name}: {error}") from error
        finally:
            journal.close()

    def _through_layers(self, windows: NDArray[np.int32], work: Path, journal: Journal, progress: Progress) -> None:
        layers = self.source.decoder.n_layers
        options = StreamOptions(gram=False, device=self.device, sample_name="chunk")
        with Stream(self.source, windows, work, threads=self.threads, options=options) as stream:
            done = 0
            while _step(done) in journal.done:
                done += 1
            if done and not stream.can_start_at(done):
                journal.forget()
                done = 0
            if done == 0:
                stream.embed()
            progress.start("layers", layers)
            progress.advance(done, f"{done} of {layers}")
            for number in range(done, layers):
                stream.layer(number)
                journal.finished(_step(number))
                progress.advance(1, f"{number + 1} of {layers}")
        self._keep_scored(windows.shape, work, layers, journal)

    def _keep_scored(self, shape: tuple[int, ...], work: Path, layers: int, journal: Journal) -> None:
        """Write the last states of the scored positions: the second half of a window without its last token."""
        assert self._states is not None
        last = states_file(layers)
        decoder = self.source.decoder
        shared = {shared_file(number) for number in decoder.shared_layers | decoder.choosing_layers(shape[1])}
        for name in {states_file(layers + 1), "middle", "seen", "fed"} | shared:
            (work / name).unlink(missing_ok=True)
        count, n_ctx = shape
        states = States(work, count, n_ctx, self.source.decoder.width)
        try:
            for window in range(count):
                self._states.write(_SCORED, window, states.read(last, window)[n_ctx // 2 : n_ctx - 1])
        finally:
            states.close()
        journal.finished(_SCORED)
        (work / last).unlink()

    def logits(self, window: int) -> NDArray[np.float32]:
        """Logits of the scored positions of one window, (n_ctx - 1 - n_ctx // 2, n_vocab). Call `prepare` before."""
        assert self._states is not None
        x = place(self._states.read(_SCORED, window), self.device)
        with self._blas.limit(limits=self.threads, user_api="blas"):
            logits: NDArray[np.float32] = fetch(self._head().logits(x))
        return logits

    def _head(self) -> Decoder:
        """The decoder with its last norm in memory; with its head too if the head is small."""
        if self._last is None:
            source, decoder = self.source, self.source.decoder
            weights = {}
            small = self.resident_bytes > 0
            norm = decoder.base + decoder.architecture.last_norm
            for name in (norm + ".weight", norm + ".bias", *([decoder.head + ".bias"] if small else [])):
                if name in source.tensors:
                    weights[name] = np.asarray(source.whole(name), np.float32)
            if small:
                weights[decoder.head + ".weight"] = self._matrix(decoder.head + ".weight", decoder.hidden)
            placed = {name: place(values, self.device) for name, values in weights.items()}
            self._last = Decoder(
                LayerWeights(source.whole, source.rows, source.tensors.keys(), tensors=placed),
                source.config,
                source.architecture,
            )
        return self._last

    def _matrix(self, name: str, n_in: int) -> Array:
        matrix, step = np.empty((self.n_vocab, n_in), np.float32), max(1, _SLICE_ELEMENTS // n_in)
        for start in range(0, self.n_vocab, step):
            stop = min(start + step, self.n_vocab)
            matrix[start:stop] = self.source.rows(name, start, stop)
        return matrix

    def _check(self, windows: NDArray[np.int32]) -> None:
        largest = int(windows.max())
        if largest >= self.n_vocab:
            raise MeasureError(
                f"the text has token {largest}, but {self.folder.name} has a vocabulary of {self.n_vocab}; measure"
                " models of one vocabulary"
            )
        positions = self.source.architecture.positions
        if positions:
            n_positions = len(self.source.whole(self.source.decoder.base + positions + ".weight"))
            if windows.shape[1] > n_positions:
                raise MeasureError(
                    f"{self.folder.name} has {n_positions} positions, fewer than a window of {windows.shape[1]} tokens;"
                    " use a smaller --ctx"
                )

    def _check_space(self, work: Path, count: int, n_ctx: int) -> None:
        existing = sum(path.stat().st_size for path in work.iterdir())
        needed, free = self.work_bytes(count, n_ctx) - existing, shutil.disk_usage(work).free
        if needed > free:
            raise OutputError(
                f"{work} needs {human_bytes(needed)} for the hidden states of {count} windows, {human_bytes(free)} are"
                " free; free some space or use a smaller --chunks"
            )

    def _forget_states(self) -> None:
        if self._states is not None:
            self._states.close()
            self._states = None

    def release(self) -> None:
        """Free the head; the next call of `logits` reads it again."""
        self._last = None

    def close(self) -> None:
        """Close the files; the work folder remains. A second call has no effect."""
        self._forget_states()
        self.release()
        if not self._closed:
            self._closed = True
            self.opened.close()

    def __enter__(self) -> "FolderEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_folder(path: Path, *, threads: int = 0, device: object = None) -> FolderEngine:
    """The engine of a local folder: a checkpoint, AWQ or GPTQ weights. Arguments as of `FolderEngine`.

    Raises:
        CheckpointError, UnsupportedError: the folder holds no such weights, or the forward does not support them.
    """
    opened = open_source(path)
    try:
        return FolderEngine(opened, threads=threads, device=device)
    except BaseException:
        opened.close()
        raise


def _stated_config(opened: Checkpoint | QuantizedFolder) -> Mapping[str, Any]:
    """config.json with what it states of the quantization."""
    if isinstance(opened, QuantizedFolder):
        named = {"quant_method": opened.scheme.method} if opened.scheme.method in ("awq", "gptq") else {}
        return {"quantization_config": {**opened.quantization, **named}}
    return opened.config


def _step(number: int) -> str:
    return f"layer {number}"
