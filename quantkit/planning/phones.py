"""Memory of phones: their sizes, and an assumption about the memory that Android leaves to an app.

termux/termux.sh has the same figures, because it chooses without Python; a test compares the two.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.errors import UsageError
from quantkit.planning.context import Context
from quantkit.planning.memory import plan_memory
from quantkit.planning.sources import Source, tensors_as_they_are

PHONE_TYPES = ("q4_0", "q4_k_m")
"""Both with an importance matrix. Q4_0 is the fastest type of llama.cpp on ARM; Q4_K_M has a smaller error."""

ANDROID_BYTES = 2 << 30
ANDROID_TENTHS = 1
"""Assumed, not measured: Android and its services keep 2 GiB and a tenth of the memory."""
REPORTED = 0.93
"""Assumed: the kernel's MemTotal as a fraction of the advertised memory."""

PHONE_BANDWIDTH = 20e9
"""Assumed: bytes per second that a phone's CPU reads, about half of the LPDDR5 specification."""

RUNGS = ((1024, 128), (2048, 128), (4096, 256), (4096, 512), (8192, 512))
"""Pairs (context, batch); the script takes the last that fits the phone's memory."""

_SIZE = re.compile(r"(\d{1,3})\s*(?:gi?b?)?", re.IGNORECASE)
_SMALLEST, _LARGEST = 2, 64


@dataclass(frozen=True)
class Phone:
    """A phone by advertised gigabytes of memory, with its largest context and batch (logical and physical)."""

    gigabytes: int
    n_ctx: int
    n_batch: int

    @property
    def room(self) -> int:
        """Bytes that a model may take."""
        return room(int(self.gigabytes * REPORTED * 2**30))

    @property
    def context(self) -> Context:
        """The llama.cpp context to plan with."""
        return phone_context(self.n_ctx, self.n_batch)


PHONES = (Phone(4, 2048, 128), Phone(6, 4096, 256), Phone(8, 4096, 512), Phone(12, 8192, 512))
SMALLER = (1024, 128)
"""Context and batch for a phone with less memory than all of these."""


def room(total: int) -> int:
    """Bytes that Android leaves to a model out of the kernel's `total` bytes; at least 0."""
    return max((total // 1024 * (10 - ANDROID_TENTHS) // 10) * 1024 - ANDROID_BYTES, 0)


def phone(text: str) -> Phone:
    """The phone of `8G`, `8` or `8GB`.

    Raises:
        UsageError: not a memory size of a phone in whole gigabytes.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or not _SMALLEST <= int(match[1]) <= _LARGEST:
        sizes = ", ".join(f"{known.gigabytes}G" for known in PHONES)
        raise UsageError(f"--phone {text!r} is not a memory size that phones have; write {sizes}")
    gigabytes = int(match[1])
    limits = [(known.n_ctx, known.n_batch) for known in PHONES if known.gigabytes <= gigabytes]
    return Phone(gigabytes, *(limits[-1] if limits else SMALLER))


def phone_context(n_ctx: int, n_batch: int) -> Context:
    """A context on a phone: everything on the CPU, flash attention as llama.cpp decides."""
    return Context(n_ctx=n_ctx, n_batch=n_batch, n_ubatch=n_batch)


def phone_memory(source: Source, n_ctx: int | None = None) -> list[tuple[int, int, int]]:
    """(context, batch, bytes of memory) of a GGUF on a phone: for all RUNGS, or for one context with every batch.

    Contexts longer than the model's training context are omitted, except the smallest.

    Raises:
        UnsupportedError: plan_memory does not support the architecture.
    """
    tensors = tensors_as_they_are(source.model)
    most = source.shape.context or max(n for n, _ in RUNGS)
    pairs: Sequence[tuple[int, int]] = RUNGS
    if n_ctx is not None:
        pairs = tuple((n_ctx, batch) for batch in dict.fromkeys(batch for _, batch in RUNGS))
    elif most < RUNGS[0][0]:
        pairs = ((most, RUNGS[0][1]),)
    else:
        pairs = tuple(pair for pair in RUNGS if pair[0] <= most)
    return [
        (ctx, batch, plan_memory(source.shape, tensors, phone_context(ctx, batch)).cpu.total) for ctx, batch in pairs
    ]
