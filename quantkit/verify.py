"""Reload what was written and check it against the source, before it gets its final name.

Each check is independent of the code that wrote the file as far as that goes: the header is parsed again, tensors are
read back and dequantized by ggml, token ids and logits come from llama.cpp itself (extra `run`), the source's logits
from a plain numpy forward over the original weights.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as T
from numpy.typing import NDArray

from quantkit.convert.engine import partial_path, widen
from quantkit.convert.inputs import Model, ModelTensor
from quantkit.convert.plan import Output, Plan
from quantkit.errors import MissingExtraError, QuantkitError, VerificationError
from quantkit.families import find_family
from quantkit.gguf.kernels import dequantize_rows, validate_rows
from quantkit.gguf.layout import FileLayout, Slot
from quantkit.gguf.reader import read_header
from quantkit.gguf.vocab import PROBE, hf_token_ids

# Relative root-mean-square error of a tensor's sampled rows above which a type is not doing its work. Each is about
# twice what the type costs on Gaussian weights; a misplaced row costs 1.4.
ERROR_BOUND: dict[T, float] = {
    T.F32: 0.0,
    T.F16: 0.001,
    T.BF16: 0.005,
    T.Q8_0: 0.02,
    T.Q6_K: 0.05,
    T.Q5_K: 0.1,
    T.Q5_0: 0.1,
    T.Q5_1: 0.1,
    T.Q4_K: 0.2,
    T.Q4_0: 0.2,
    T.Q4_1: 0.2,
    T.IQ4_NL: 0.2,
    T.IQ4_XS: 0.2,
    T.MXFP4: 0.35,
    T.Q3_K: 0.4,
    T.IQ3_S: 0.4,
    T.IQ3_XXS: 0.5,
}
LOOSE_BOUND = 0.95
_SAMPLES, _SAMPLE_ELEMENTS = 4, 1 << 14
_READ = 8 << 20

# Correlation with the source's logits that a file must reach, by its type's nominal bits. Far under what a sound file
# of random weights shows (q8_0 0.999, q4_0 0.95, q2_k 0.7), far over what a wrong layout does (about 0). Under 2.5 bits
# a model not trained for it may say anything: only finiteness is asked.
_LOGIT_FLOOR = ((8.0, 0.98), (5.0, 0.9), (4.2, 0.8), (3.3, 0.5), (2.5, 0.25), (0.0, -1.0))


@dataclass(frozen=True)
class Check:
    """One check of one output: passed, failed or skipped, and what was seen."""

    name: str
    status: str
    detail: str


@dataclass(frozen=True)
class Verified:
    """What is known of an output after its checks. `errors` holds each tensor's relative RMS error."""

    output: Output
    checks: tuple[Check, ...]
    sha256: dict[str, str]
    errors: dict[str, float] = field(default_factory=dict)
    logit_correlation: float | None = None

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == "failed")


def verify_plan(
    plan: Plan, *, logits: bool | None = None, progress: Callable[[str], None] = lambda _: None
) -> list[Verified]:
    """Check every output of a finished pass, still under its partial name.

    `logits`: compare with the source's logits; None decides by the model's size and this machine's memory.
    """
    tokens = _vocabulary_check(plan)
    probe = _LogitProbe(plan, logits)
    results = []
    for output in plan.outputs:
        progress(f"checking {output.type.label}")
        checks, hashes = _files_check(plan, output)
        errors: dict[str, float] = {}
        if checks[-1].status == "passed":
            error_check, errors = _error_check(plan, output)
            checks += [error_check, tokens]
            if all(check.status != "failed" for check in checks):
                checks.append(probe.check(output))
        results.append(Verified(output, tuple(checks), hashes, errors, probe.correlations.get(output.type.label)))
    return results


def _guard(name: str, run: Callable[[], str]) -> Check:
    """Run a check: its text when it passed, the error's when it failed, skipped when an extra is missing."""
    try:
        return Check(name, "passed", run())
    except MissingExtraError as error:
        return Check(name, "skipped", str(error))
    except QuantkitError as error:
        return Check(name, "failed", str(error))


def _files_check(plan: Plan, output: Output) -> tuple[list[Check], dict[str, str]]:
    hashes: dict[str, str] = {}

    def structure() -> str:
        for file in output.files:
            header = read_header(partial_path(plan.request.folder, file.name))
            if header.size != file.size:
                raise VerificationError(f"{file.name} has {header.size} bytes instead of {file.size}")
            if header.tensors != file.slots:
                raise VerificationError(f"{file.name} does not state its tensors as planned")
        return f"{sum(len(file.slots) for file in output.files)} tensors at their places"

    def content() -> str:
        for file in output.files:
            path = partial_path(plan.request.folder, file.name)
            hashes[file.name] = _scan(path, file)
        return "every block of every tensor is finite"

    first = _guard("structure", structure)
    return ([first], hashes) if first.status == "failed" else ([first, _guard("finite", content)], hashes)


def _scan(path: Path, file: FileLayout) -> str:
    """sha256 of the file, read once; each tensor's blocks go through ggml's own validation on the way."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream, ThreadPoolExecutor(1) as hasher:
        position = 0
        pending = None
        for start, stop, slot in _pieces(file):
            data = os.pread(stream.fileno(), stop - start, start)
            if len(data) != stop - start or start != position:
                raise VerificationError(f"{file.name} ends early at byte {start + len(data)}")
            if pending is not None:
                pending.result()
            pending = hasher.submit(digest.update, data)
            if slot is not None and not validate_rows(
                slot.type, np.frombuffer(data, np.uint8).reshape(-1, slot.row_bytes)
            ):
                raise VerificationError(f"tensor {slot.name} of {file.name} holds NaN or infinity")
            position = stop
        if pending is not None:
            pending.result()
    return digest.hexdigest()


def _pieces(file: FileLayout) -> Iterator[tuple[int, int, Slot | None]]:
    """The file's bytes from first to last: pieces of whole rows of a tensor, or header and padding."""
    position = 0
    for slot in file.slots:
        if slot.offset > position:
            yield position, slot.offset, None
        step = max(1, _READ // slot.row_bytes) * slot.row_bytes
        end = slot.offset + slot.nbytes
        for start in range(slot.offset, end, step):
            yield start, min(start + step, end), slot
        position = end
    if position < file.size:
        yield position, file.size, None


def _error_check(plan: Plan, output: Output) -> tuple[Check, dict[str, float]]:
    errors: dict[str, float] = {}
    tensors = {tensor.name: tensor for tensor in plan.model.tensors}

    def compare() -> str:
        worst, worst_name = 0.0, ""
        for file in output.files:
            with partial_path(plan.request.folder, file.name).open("rb", buffering=0) as stream:
                for slot in file.slots:
                    error = _sampled_error(plan.model, tensors[slot.name], slot, stream.fileno())
                    errors[slot.name] = error
                    bound = ERROR_BOUND.get(slot.type, LOOSE_BOUND)
                    if error > bound:
                        raise VerificationError(
                            f"tensor {slot.name} of {file.name} is {error:.1%} away from the source"
                            f" where {slot.type.name} allows {bound:.1%}"
                        )
                    if error >= worst:
                        worst, worst_name = error, slot.name
        return f"sampled rows within each type's bound, at worst {worst:.2%} ({worst_name})"

    return _guard("error", compare), errors


def _sampled_error(model: Model, tensor: ModelTensor, slot: Slot, descriptor: int) -> float:
    """Relative RMS error of a few row ranges spread over a tensor; 0 for an all-zero sample that stayed zero."""
    step = max(1, _SAMPLE_ELEMENTS // tensor.n_columns)
    starts = sorted({int(start) for start in np.linspace(0, max(0, tensor.n_rows - step), _SAMPLES)})
    squared, total = 0.0, 0.0
    for start in starts:
        stop = min(start + step, tensor.n_rows)
        source = widen(model.read_rows(tensor.name, start, stop), tensor).astype(np.float64)
        data = os.pread(descriptor, (stop - start) * slot.row_bytes, slot.offset + start * slot.row_bytes)
        rows = np.frombuffer(data, dtype=np.uint8).reshape(stop - start, slot.row_bytes)
        written = dequantize_rows(slot.type, rows, tensor.n_columns)
        squared += float(np.square(written - source).sum())
        total += float(np.square(source).sum())
    return float(np.sqrt(squared / total)) if total else float(np.sqrt(squared))


def _vocabulary_check(plan: Plan) -> Check:
    """Token ids of the written vocabulary, by llama.cpp, against the checkpoint's own tokenizer."""
    checkpoint = plan.model.checkpoint
    if checkpoint is None:
        return Check("tokens", "skipped", "the source is a GGUF; its vocabulary is copied as it stands")

    def compare() -> str:
        from quantkit.measure.llama_runtime import vocab_token_ids

        with loadable(plan, plan.outputs[0]) as path:
            found = vocab_token_ids(path, PROBE)
        for text, ours, theirs in zip(PROBE, found, hf_token_ids(checkpoint.folder, PROBE), strict=True):
            if ours != theirs:
                at = next(
                    (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                    min(len(ours), len(theirs)),
                )
                raise VerificationError(
                    f"llama.cpp reads {text[:40]!r} as {ours[at : at + 4]}... where the checkpoint's tokenizer gives"
                    f" {theirs[at : at + 4]}... (token {at}); try another --pre"
                )
        return f"{sum(map(len, found))} token ids of {len(PROBE)} probe texts equal the checkpoint's tokenizer"

    return _guard("tokens", compare)


@contextlib.contextmanager
def loadable(plan: Plan, output: Output) -> Iterator[Path]:
    """A path llama.cpp can open: shards must bear their final names, so links with those names are made."""
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        for file in output.files:
            (Path(folder) / file.name).symlink_to(partial_path(plan.request.folder, file.name).resolve())
        yield Path(folder) / output.files[0].name


class _LogitProbe:
    """Logits of a short text from the source (computed once, in the memory of a layer) and from each output."""

    def __init__(self, plan: Plan, wanted: bool | None) -> None:
        self.plan, self.wanted = plan, wanted
        self._expected: tuple[list[int], NDArray[np.float32]] | None = None
        self.correlations: dict[str, float] = {}

    def check(self, output: Output) -> Check:
        if self.wanted is False:
            return Check("logits", "skipped", "not asked for")
        if self.plan.model.checkpoint is None:
            return Check("logits", "skipped", "the source is a GGUF")
        if self.wanted is None and output.size > _memory() // 2:
            return Check(
                "logits", "skipped", "the model is larger than half of this machine's memory; --logits insists"
            )
        return _guard("logits", lambda: self._compare(output))

    def _compare(self, output: Output) -> str:
        from quantkit.measure.llama_runtime import logits

        tokens, expected = self._source()
        with loadable(self.plan, output) as path:
            found = logits(path, tokens)
        if not np.isfinite(found).all():
            raise VerificationError(f"{output.type.label} gives logits that are not finite")
        correlation = _correlation(found, expected)
        floor = next(floor for bits, floor in _LOGIT_FLOOR if output.type.bits >= bits)
        if correlation < floor:
            raise VerificationError(
                f"{output.type.label} gives logits that correlate {correlation:.3f} with the source's, under {floor}"
            )
        self.correlations[output.type.label] = correlation
        return f"finite, correlation {correlation:.4f} with the source's over {len(tokens)} tokens"

    def _source(self) -> tuple[list[int], NDArray[np.float32]]:
        if self._expected is None:
            from quantkit.measure.reference import reference_logits

            checkpoint = self.plan.model.checkpoint
            assert checkpoint is not None
            tokens = _probe_tokens(hf_token_ids(checkpoint.folder, PROBE))

            def whole(name: str) -> NDArray[Any]:
                shape = checkpoint.tensors[name].shape
                rows = checkpoint.read_rows(name, 0, prod(shape[:-1]))
                return rows.reshape(shape)

            expected = reference_logits(whole, checkpoint.config, tokens, rows=checkpoint.read_rows)
            self._expected = tokens, expected
        return self._expected


def _probe_tokens(ids: Sequence[Sequence[int]], count: int = 24) -> list[int]:
    """The first tokens of the probe's longest text."""
    return list(max(ids, key=len)[:count])


def _correlation(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Mean over positions of the Pearson correlation of two logit rows."""
    a = found - found.mean(axis=1, keepdims=True)
    b = expected - expected.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return float(((a * b).sum(axis=1) / np.maximum(norm, 1e-12)).mean())


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
