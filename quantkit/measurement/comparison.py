"""Compares models on the same windows. The reference and every candidate evaluate a window, then its logits are freed.

No file of logits is kept; the records of the tokens (see scores.RECORD) are small. Models that do not fit in memory
together take turns, over as many windows as the disk has space for their logits.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import MeasureError
from quantkit.files import reserve
from quantkit.machine import available_memory
from quantkit.measurement.engine import Array, Engine
from quantkit.measurement.record_file import RecordFile
from quantkit.measurement.scores import Scored, Scorer, records
from quantkit.texts.windows import Windows

_SPOOL_BYTES = 8 << 30
_MEMORY_SHARE = 0.7


class Comparison:
    """The records of `engines` (the first is the reference) over the windows of `texts`, all of one n_ctx.

    They are written to the folder `work` window by window, so a killed run resumes at its window. `names`: of the
    engines, for messages.
    """

    def __init__(
        self, engines: Sequence[Engine], names: Sequence[str], texts: Sequence[Windows], work: Path, *, threads: int
    ) -> None:
        self.engines, self.names, self.texts, self.work, self.threads = engines, names, texts, work, threads
        self.tokens = np.concatenate([text.tokens for text in texts])
        self.targets = np.concatenate([text.targets for text in texts])
        work.mkdir(parents=True, exist_ok=True)
        shape = self.targets.shape
        self._files = [RecordFile(work / f"model-{number}.records", *shape) for number in range(len(engines))]

    def close(self) -> None:
        """Close the files of records; the records stay."""
        for file in self._files:
            file.close()

    @property
    def n_windows(self) -> int:
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

    def run(
        self,
        *,
        prepared: Callable[[int, int, int], object] = lambda model, done, of: None,
        measured: Callable[[int], object] = lambda windows: None,
    ) -> None:
        """Measure the windows that are not measured yet.

        `prepared(model, done, of)` is called while a model takes the windows, `measured(windows)` with how many are
        done for all models. Raises MeasureError for logits that are not finite, naming the model, the chunk and the
        text.
        """
        left = [window for window in range(self.n_windows) if not self._is_done(window)]
        measured(self.n_windows - len(left))
        if not left:
            return
        try:
            for number, engine in enumerate(self.engines):
                folder = self.work / f"model-{number}"
                folder.mkdir(exist_ok=True)
                engine.prepare(self.tokens, folder, lambda done, of, number=number: prepared(number, done, of))  # type: ignore[misc]
            with Scorer(self.threads) as scorer:
                if self._fit_together():
                    self._side_by_side(left, scorer, measured)
                else:
                    self._in_turns(left, scorer, measured)
        finally:
            for engine in self.engines:
                engine.release()

    def _side_by_side(self, left: Sequence[int], scorer: Scorer, measured: Callable[[int], object]) -> None:
        for window in left:
            rows = self.engines[0].logits(window)
            scored = self._score(0, window, rows, scorer)
            for number in range(1, len(self.engines)):
                self._compare(number, window, rows, scored, scorer)
            self._files[0].keep(window, records(scored))
            measured(1)

    def _in_turns(self, left: Sequence[int], scorer: Scorer, measured: Callable[[int], object]) -> None:
        at_once = self._windows_at_once()
        for start in range(0, len(left), at_once):
            batch = left[start : start + at_once]
            shape = (len(batch), self.targets.shape[1], self.engines[0].n_vocab)
            reserve(self.work / "logits", 4 * math.prod(shape))
            spool = np.memmap(self.work / "logits", np.float32, "r+", 0, shape)
            scored = []
            for place, window in enumerate(batch):
                spool[place] = self.engines[0].logits(window)
                scored.append(self._score(0, window, spool[place], scorer))
            self.engines[0].release()
            for number in range(1, len(self.engines)):
                for place, window in enumerate(batch):
                    self._compare(number, window, spool[place], scored[place], scorer)
                self.engines[number].release()
            for place, window in enumerate(batch):
                self._files[0].keep(window, records(scored[place]))
            del spool
            (self.work / "logits").unlink()
            measured(len(batch))

    def _compare(self, number: int, window: int, reference: Array, scored: Scored, scorer: Scorer) -> None:
        if not np.isnan(self._files[number].values["loss"][window]).any():
            return
        rows = self.engines[number].logits(window)
        own = self._score(number, window, rows, scorer)
        self._files[number].keep(window, scorer.compare(reference, scored, rows, own))

    def _score(self, number: int, window: int, rows: Array, scorer: Scorer) -> Scored:
        scored = scorer.score(rows, self.targets[window])
        if not scored.finite:
            text = 0
            while window >= len(self.texts[text].tokens):
                window -= len(self.texts[text].tokens)
                text += 1
            raise MeasureError(
                f"{self.names[number]} gives logits that are not finite (NaN or infinite) in chunk {window + 1} of"
                f" {self.texts[text].name}; the file is damaged, or a weight overflows its type: convert it again"
            )
        return scored

    def _is_done(self, window: int) -> bool:
        return not any(np.isnan(file.values["loss"][window]).any() for file in self._files)

    def _fit_together(self) -> bool:
        return sum(engine.resident_bytes for engine in self.engines) < _MEMORY_SHARE * available_memory()

    def _windows_at_once(self) -> int:
        room = min(_SPOOL_BYTES, shutil.disk_usage(self.work).free // 2)
        return max(1, room // (4 * int(self.targets.shape[1]) * self.engines[0].n_vocab))
