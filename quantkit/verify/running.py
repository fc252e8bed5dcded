"""The files at work: token ids and logits by llama.cpp, against the checkpoint's own tokenizer and weights."""

import contextlib
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import UnsupportedError, VerificationError
from quantkit.files import partial_path
from quantkit.gguf.types import block_size
from quantkit.machine import memory_limit
from quantkit.outputs.gguf_files import Output, Plan
from quantkit.tokenizer import PROBE, differences, hf_token_ids
from quantkit.verify.check import Check, guard
from quantkit.verify.source_logits import source_logits

# Correlation with the source's logits that a file must reach, by the bits of its narrowest tensor type. Far under what
# a sound file of random weights shows (3B: q8_0 0.99, q4_0 0.75), far over what a wrong layout does (about 0).
# Under 2.5 bits a model not trained for it may say anything: only finiteness is asked.
_LOGIT_FLOOR = ((8.0, 0.95), (5.0, 0.7), (4.2, 0.5), (3.3, 0.25), (2.5, 0.1), (0.0, -1.0))
# Of a file of floats half of the positions must do better: a rounding error sends a token to another expert here and
# there (sound mixtures: mean 0.983, median 0.9975), two experts swapped in one layer touch most (median up to 0.9946).
_MEDIAN_FLOOR = 0.996

MEMORY = memory_limit()


def check_tokens(plan: Plan) -> Check:
    """Token ids of the written vocabulary, by llama.cpp, against the checkpoint's own tokenizer; one for all outputs.

    A text that llama.cpp cannot read right for a known reason does not fail the check; it is counted and explained.
    """
    checkpoint = plan.model.checkpoint
    if checkpoint is None:
        return Check("tokens", "skipped", "the source is a GGUF; its vocabulary is copied as it stands")

    def compare() -> str:
        from quantkit.llamacpp.session import vocab_token_ids

        with loadable(plan, plan.outputs[0]) as path:
            found = vocab_token_ids(path, PROBE)
        different = differences(checkpoint.folder, plan.model.keys, PROBE, found)
        for item in different:
            if item.reason is None:
                pairs = enumerate(zip(item.ids, item.expected, strict=False))
                at = next((i for i, (a, b) in pairs if a != b), min(len(item.ids), len(item.expected)))
                raise VerificationError(
                    f"llama.cpp reads {item.text[:40]!r} as {item.ids[at : at + 4]} where the checkpoint's tokenizer"
                    f" gives {item.expected[at : at + 4]} (from token {at} on); try another --pre"
                )
        equal = f"{len(PROBE) - len(different)} of {len(PROBE)} probe texts give the checkpoint's own token ids"
        reasons = sorted({item.reason for item in different if item.reason})
        return equal + (f"; the others cannot in llama.cpp: {'; '.join(reasons)}" if reasons else "")

    return guard("tokens", compare)


@contextlib.contextmanager
def loadable(plan: Plan, output: Output) -> Iterator[Path]:
    """A path llama.cpp can open: shards must bear their final names, so links with those names are made."""
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        for file in output.files:
            (Path(folder) / file.name).symlink_to(partial_path(plan.request.folder / file.name).resolve())
        yield Path(folder) / output.files[0].name


class LogitProbe:
    """Logits of a short text from the source (computed once, in the memory of a layer) and from each output."""

    def __init__(self, plan: Plan, wanted: bool | None) -> None:
        self.plan, self.wanted = plan, wanted
        self._expected: tuple[list[int], NDArray[np.float32]] | None = None
        self._lock = threading.Lock()
        self.correlations: dict[str, float] = {}

    def check(self, output: Output) -> Check:
        if self.wanted is False:
            return Check("logits", "skipped", "not asked for")
        if self.plan.model.checkpoint is None:
            return Check("logits", "skipped", "the source is a GGUF")
        if self.wanted is None and output.size > MEMORY // 2:
            return Check(
                "logits", "skipped", "the model is larger than half of this machine's memory; --logits insists"
            )
        if self.plan.request.max_ram is not None and output.size > self.plan.request.max_ram:
            return Check("logits", "skipped", "the model is larger than --max-ram")
        try:
            return guard("logits", lambda: self._compare(output))
        except _NoYardstick as error:
            return Check("logits", "skipped", str(error))
        except (LookupError, TypeError, ValueError, ArithmeticError, MemoryError, OSError) as error:
            # The yardstick failed, which says nothing of the file.
            return Check("logits", "skipped", f"could not be compared ({type(error).__name__}: {error})")

    def _compare(self, output: Output) -> str:
        from quantkit.llamacpp.session import logits

        with self._lock:
            tokens, expected = self._source()
        with loadable(self.plan, output) as path:
            found = logits(path, tokens)
        if not np.isfinite(found).all():
            raise VerificationError(f"{output.type.label} gives logits that are not finite")
        by_position, bits = correlations(found, expected), _narrowest(output)
        correlation, median = float(by_position.mean()), float(np.median(by_position))
        floor = next(floor for least, floor in _LOGIT_FLOOR if bits >= least)
        if not correlation >= floor:
            raise VerificationError(
                f"{output.type.label} gives logits that correlate {correlation:.3f} with the source's, under {floor}"
            )
        if bits >= 16 and not median >= _MEDIAN_FLOOR:
            raise VerificationError(
                f"{output.type.label} gives logits that correlate {median:.4f} with the source's at half of the"
                f" positions, under {_MEDIAN_FLOOR}, which floats do not explain"
            )
        self.correlations[output.type.label] = correlation
        return f"finite, correlation {correlation:.4f} with the source's over {len(tokens)} tokens"

    def _source(self) -> tuple[list[int], NDArray[np.float32]]:
        if self._expected is None:
            checkpoint = self.plan.model.checkpoint
            assert checkpoint is not None
            tokens = probe_tokens(hf_token_ids(checkpoint.folder, PROBE))
            try:
                self._expected = tokens, source_logits(checkpoint, tokens)
            except UnsupportedError as error:
                raise _NoYardstick(str(error)) from error
        return self._expected


class _NoYardstick(Exception):
    """The reference forward does not know the source's architecture."""


def _narrowest(output: Output) -> float:
    """Bits per weight of the narrowest type among the output's matrices."""
    types = {slot.type for file in output.files for slot in file.slots if len(slot.shape) > 1}
    return min((8 * block_size(kind)[1] / block_size(kind)[0] for kind in types), default=32.0)


def probe_tokens(ids: Sequence[Sequence[int]], count: int = 24) -> list[int]:
    """The first tokens of the probe's longest text."""
    return list(max(ids, key=len)[:count])


def correlations(found: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float64]:
    """The Pearson correlation of the two logit rows of each position, (n_tokens,)."""
    a = found - found.mean(axis=1, keepdims=True)
    b = expected - expected.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return np.asarray((a * b).sum(axis=1) / np.maximum(norm, 1e-12), np.float64)
