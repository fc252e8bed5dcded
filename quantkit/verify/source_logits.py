"""The source's own logits, from the reference forward, and their correlation with those of an output."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from quantkit.checkpoint import Checkpoint
from quantkit.errors import QuantkitError, UnsupportedError
from quantkit.families import find_family, reference_logits
from quantkit.families.base.native import Native
from quantkit.families.base.pooling import DENSE, RANK, SETTING, through_dense
from quantkit.forward.weights import Weights
from quantkit.machine import memory_limit
from quantkit.outputs.memory import PROBE_TOKENS
from quantkit.tokenizer import PROBE, hf_token_ids
from quantkit.verify.check import Check, raise_if_passing

Logits = NDArray[np.float32]


class NoSourceLogits(Exception):
    """The source's logits cannot be computed; the message gives the reason. The output may be sound."""


class SourceLogits:
    """Logits of a short text from the source, computed once for all outputs that are made of it.

    `probe_ids`: the ids of PROBE by the checkpoint's tokenizer, if it has been loaded before.
    """

    def __init__(self, checkpoint: Checkpoint, probe_ids: list[list[int]] | None = None) -> None:
        self.checkpoint = checkpoint
        self._computed: tuple[list[int], Logits] | NoSourceLogits | None = None
        self._probe_ids = probe_ids
        self._lock, self._tokenizer_lock = threading.Lock(), threading.Lock()

    def probe_ids(self) -> list[list[int]]:
        """Token ids of PROBE by the checkpoint's own tokenizer, loaded once. Raises what hf_token_ids raises."""
        with self._tokenizer_lock:
            if self._probe_ids is None:
                self._probe_ids = hf_token_ids(self.checkpoint.folder, PROBE)
        return self._probe_ids

    def get(self) -> tuple[list[int], Logits]:
        """Token ids, and logits (len(ids), vocabulary). Raises NoSourceLogits."""
        with self._lock:
            if self._computed is None:
                self._computed = self._compute()
        if isinstance(self._computed, NoSourceLogits):
            raise self._computed
        return self._computed

    def _compute(self) -> tuple[list[int], Logits] | NoSourceLogits:
        differs = find_family(self.checkpoint.config).graph_differs
        if differs is not None:
            return NoSourceLogits(differs)
        try:
            tokens = self._tokens()
            return tokens, source_logits(self.checkpoint, tokens)
        except UnsupportedError as error:
            raise_if_passing("logits", error)
            return NoSourceLogits(str(error))
        except (QuantkitError, LookupError, TypeError, ValueError, ArithmeticError, MemoryError, OSError) as error:
            raise_if_passing("logits", error)
            return NoSourceLogits(not_compared(error))

    def _tokens(self) -> list[int]:
        """The first tokens of the longest probe text; without a readable tokenizer, ids spread over the vocabulary."""
        try:
            return list(max(self.probe_ids(), key=len)[:PROBE_TOKENS])
        except QuantkitError as error:
            raise_if_passing("logits", error)
            size = int(Native(self.checkpoint, nearest=True).config["vocab_size"])
            return [(7919 * index + 3) % size for index in range(PROBE_TOKENS)]


def source_logits(checkpoint: Checkpoint, tokens: Sequence[int]) -> Logits:
    """Logits (len(tokens), vocabulary) of a checkpoint of any family, in the memory of a slice of a matrix.

    Of an encoder or a reranker the last hidden states, (len(tokens), hidden), after the Dense modules if it has any.

    Raises UnsupportedError when the reference forward does not know the architecture or a setting of config.json.
    """
    native = Native(checkpoint, nearest=True)
    # for so few tokens a second thread of BLAS costs more than it gives: on a busy machine 2 seconds instead of 0.1
    with threadpool_limits(1, "blas"):
        logits = reference_logits(
            native.whole,
            native.config,
            tokens,
            rows=native.rows,
            names=native.tensors.keys(),
            states=checkpoint.config.get(SETTING) == RANK,
        )
        weights = Weights(native.whole, native.rows, native.tensors.keys())
        return through_dense(logits, checkpoint.config.get(DENSE) or (), weights)


def skipped_logits(requested: bool | None, size: int, max_ram: int | None = None) -> Check | None:
    """The check of an output of `size` bytes whose logits are not compared; None when they are."""
    if requested is False:
        return Check("logits", "skipped", "not requested")
    if requested is None and size > memory_limit() // 2:
        return Check("logits", "skipped", "the model is larger than half of the memory; add --logits to compare anyway")
    if max_ram is not None and size > max_ram:
        return Check("logits", "skipped", "the model is larger than --max-ram")
    return None


def not_compared(error: BaseException) -> str:
    """The reason of a skipped check when something other than the output fails."""
    return f"could not be compared ({type(error).__name__}: {error})"


def correlations(logits: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """The Pearson correlation of the two logit rows of each position, (n_tokens,)."""
    a = logits - logits.mean(axis=1, keepdims=True)
    b = expected - expected.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return np.asarray((a * b).sum(axis=1) / np.maximum(norm, 1e-12), np.float64)
