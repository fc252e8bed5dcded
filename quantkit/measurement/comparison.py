"""Compare models on the same windows: the reference and every candidate evaluate a window, then its logits are freed.

Only the records of the tokens are kept (see scores.RECORD), which are small. Models that do not fit in memory together
take turns. A turn has as many windows as the disk has space for their logits.
"""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import MeasureError
from quantkit.files import reserve
from quantkit.machine import available_memory
from quantkit.measurement.engine import Array, Engine
from quantkit.measurement.record_file import RecordFile
from quantkit.measurement.scores import Scored, Scorer, records
from quantkit.progress import SILENT, Progress
from quantkit.texts.windows import Windows

_SPOOL_BYTES = 8 << 30
_MEMORY_SHARE = 0.7


class ComparedModel(NamedTuple):
    """A model of a comparison: its engine, its name for messages, and a short label for the progress."""

    engine: Engine
    name: str
    label: str = ""


class Comparison:
    """The records of `models` over the windows of `texts`. The first model is the reference.

    The texts have windows of one n_ctx. The records are written to the folder `work` window by window, so a killed run
    resumes at its window.
    """

    def __init__(self, models: Sequence[ComparedModel], texts: Sequence[Windows], work: Path, *, threads: int) -> None:
        self.models, self.texts, self.work, self.threads = models, texts, work, threads
        self.engines = [model.engine for model in models]
        self.tokens = np.concatenate([text.tokens for text in texts])
        self.targets = np.concatenate([text.targets for text in texts])
        work.mkdir(parents=True, exist_ok=True)
        shape = self.targets.shape
        self._files = [RecordFile(work / f"model-{number}.records", *shape) for number in range(len(models))]

    def close(self) -> None:
        """Close the files of records; the records remain."""
        for file in self._files:
            file.close()

    @property
    def n_windows(self) -> int:
        """The windows of all texts."""
        return len(self.tokens)

    def records(self, model: int, text: int) -> NDArray[np.void]:
        """The RECORD of each scored token of a text, (n_tokens,)."""
        start = sum(len(windows.tokens) for windows in self.texts[:text])
        return np.array(self._files[model].values[start : start + len(self.texts[text].tokens)]).reshape(-1)

    def perplexity_so_far(self, model: int) -> float:
        """exp of the mean loss of the measured tokens of a model; NaN before the first window."""
        losses = self._files[model].values["loss"]
        known = losses[~np.isnan(losses)]
        return float(np.exp(known.mean())) if known.size else float("nan")

    def run(self, progress: Progress = SILENT) -> None:
        """Measure the windows that are not measured yet.

        Args:
            progress: receives the stages of `Engine.prepare`, with the name of the model, and then one stage "chunks".

        Raises:
            MeasureError: a logit is not finite; the message names the model, the chunk and the text.
        """
        remaining = [window for window in range(self.n_windows) if not self._is_done(window)]
        try:
            for number, model in enumerate(self.models if remaining else ()):
                folder = self.work / f"model-{number}"
                folder.mkdir(exist_ok=True)
                model.engine.prepare(self.tokens, folder, _StagesOf(model.name, progress))
            progress.start("chunks", self.n_windows)
            self._measured = 0
            self._advance(self.n_windows - len(remaining), progress)
            with Scorer(self.threads) as scorer:
                if self._fit_together():
                    self._side_by_side(remaining, scorer, progress)
                else:
                    self._in_turns(remaining, scorer, progress)
        finally:
            for engine in self.engines:
                engine.release()

    def _advance(self, count: int, progress: Progress) -> None:
        self._measured += count
        values = [(model.label, self.perplexity_so_far(number)) for number, model in enumerate(self.models)]
        # a line has space for a few models
        known = [f" {label} {value:.4g}" for label, value in values if not np.isnan(value)][:4]
        progress.advance(count, f"{self._measured} of {self.n_windows}:{''.join(known)}")

    def _side_by_side(self, windows: Sequence[int], scorer: Scorer, progress: Progress) -> None:
        for window in windows:
            rows = self.engines[0].logits(window)
            scored = self._score(0, window, rows, scorer)
            for number in range(1, len(self.engines)):
                self._compare(number, window, rows, scored, scorer)
            self._files[0].keep(window, records(scored))
            self._advance(1, progress)

    def _in_turns(self, windows: Sequence[int], scorer: Scorer, progress: Progress) -> None:
        at_once = self._windows_at_once()
        for start in range(0, len(windows), at_once):
            batch = windows[start : start + at_once]
            shape = (len(batch), self.targets.shape[1], self.engines[0].n_vocab)
            reserve(self.work / "logits", 4 * math.prod(shape))
            spool = np.memmap(self.work / "logits", np.float32, "r+", 0, shape)
            scored = []
            for slot, window in enumerate(batch):
                spool[slot] = self.engines[0].logits(window)
                scored.append(self._score(0, window, spool[slot], scorer))
            self.engines[0].release()
            for number in range(1, len(self.engines)):
                for slot, window in enumerate(batch):
                    self._compare(number, window, spool[slot], scored[slot], scorer)
                self.engines[number].release()
            for slot, window in enumerate(batch):
                self._files[0].keep(window, records(scored[slot]))
            del spool
            (self.work / "logits").unlink()
            self._advance(len(batch), progress)

    def _compare(self, number: int, window: int, reference: Array, scored: Scored, scorer: Scorer) -> None:
        if not np.isnan(self._files[number].values["loss"][window]).any():
            return
        rows = self.engines[number].logits(window)
        candidate = self._score(number, window, rows, scorer)
        self._files[number].keep(window, scorer.compare(reference, scored, rows, candidate))

    def _score(self, number: int, window: int, rows: Array, scorer: Scorer) -> Scored:
        scored = scorer.score(rows, self.targets[window])
        if not scored.finite:
            text = 0
            while window >= len(self.texts[text].tokens):
                window -= len(self.texts[text].tokens)
                text += 1
            raise MeasureError(
                f"{self.models[number].name} gives logits that are not finite (NaN or infinite) in chunk {window + 1}"
                f" of {self.texts[text].name}; the file is damaged, or a weight overflows its type: convert it again"
            )
        return scored

    def _is_done(self, window: int) -> bool:
        return not any(np.isnan(file.values["loss"][window]).any() for file in self._files)

    def _fit_together(self) -> bool:
        return sum(engine.resident_bytes for engine in self.engines) < _MEMORY_SHARE * available_memory()

    def _windows_at_once(self) -> int:
        room = min(_SPOOL_BYTES, shutil.disk_usage(self.work).free // 2)
        return max(1, room // (4 * int(self.targets.shape[1]) * self.engines[0].n_vocab))


class _StagesOf:
    """A Progress that adds the name of a model to each stage."""

    def __init__(self, name: str, progress: Progress) -> None:
        self._name, self._progress = name, progress

    def start(self, stage: str, total: int = 0) -> None:
        self._progress.start(f"{stage} of {self._name}", total)

    def advance(self, amount: int = 1, item: str = "") -> None:
        self._progress.advance(amount, item)
