"""A written AWQ or GPTQ folder reloaded by the reader that shares nothing with the packing, and checked.

The structure against the plan, every byte against what was written, sampled rows against the source's, the logits of a
short text against the source's, and a few tokens generated. A failed check ends in exit code 3.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from quantkit.errors import QuantkitError, VerificationError
from quantkit.families import reference_logits
from quantkit.families.base.native import Native
from quantkit.forward.weights import Array, f32
from quantkit.outputs.packed_folders import FolderPlan
from quantkit.packed.reader import QuantizedFolder, open_quantized
from quantkit.packed.writer import json_bytes, small_files
from quantkit.tokenizer import PROBE, hf_token_ids
from quantkit.verify.check import Check, guard
from quantkit.verify.running import MEMORY, correlations, probe_tokens
from quantkit.verify.source_logits import native_logits

# Correlation with the source's logits that a folder must reach, by its bits. Rounding to the nearest alone keeps 0.82
# to 0.99 in 4 bit and 0.6 to 0.96 in 3 (SmolLM2 and small random models), a wrong layout gives about 0; 2 bit may say
# anything.
LOGIT_FLOOR = {8: 0.95, 4: 0.5, 3: 0.25, 2: -1.0}
# Share of the product of a weight and what it became, by magnitude, in which both have one sign. Scales folded in and
# out are positive and leave signs alone, so this holds for AWQ too; rows or columns out of place give one half.
SIGN_FLOOR = {8: 0.995, 4: 0.97, 3: 0.93, 2: 0.8}
_SAMPLES, _SAMPLE_ELEMENTS = 4, 1 << 14
_PIECE = 8 << 20
_GENERATED = 4


@dataclass
class SourceLogits:
    """Logits of a short text from the source, computed once for all folders made from it."""

    native: Native
    _found: tuple[list[int], Array] | None = field(default=None, repr=False)

    def get(self) -> tuple[list[int], Array]:
        """Token ids, and logits (len(ids), vocabulary)."""
        if self._found is None:
            tokens = _tokens(self.native)
            self._found = tokens, native_logits(self.native, tokens)
        return self._found


def verify_folder(
    folder: Path,
    plan: FolderPlan,
    native: Native,
    sha256: Mapping[str, str],
    *,
    logits: bool | None = None,
    source: SourceLogits | None = None,
) -> list[Check]:
    """Check a whole folder, under whatever name it has now, against its plan and the checkpoint it was made from.

    `sha256`: of each tensor's bytes as they were written. `logits`: compare logits and generate; None decides by the
    folder's size and this machine's memory. `source` keeps the source's logits for the next folder.
    """
    try:
        opened = open_quantized(folder)
    except QuantkitError as error:
        return [Check("structure", "failed", str(error))]
    with opened:
        checks: list[Check] = []
        for name, run in (
            ("structure", lambda: _structure(opened, plan, native)),
            ("bytes", lambda: _bytes(opened, sha256)),
            ("rows", lambda: _rows(opened, plan, native)),
        ):
            checks.append(guard(name, run))
            if checks[-1].status == "failed":
                return checks
        checks.append(_logits(opened, plan, source or SourceLogits(native), logits))
        return checks


def _structure(opened: QuantizedFolder, plan: FolderPlan, native: Native) -> str:
    planned = {place.name: (shard.name, place) for shard in plan.shards for place in shard.places}
    for name, tensor in opened.tensors.items():
        file, place = planned.get(name, (None, None))
        if place is None:
            raise VerificationError(f"{tensor.file} holds tensor {name}, which was not planned")
        found = (tensor.file, tensor.dtype, tensor.shape, tensor.offset)
        if found != (file, place.dtype, place.shape, place.offset):
            raise VerificationError(
                f"tensor {name} of {tensor.file} is {tensor.dtype} {list(tensor.shape)}, not as planned"
            )
    missing = planned.keys() - opened.tensors.keys()
    if missing:
        raise VerificationError(f"{opened.folder.name} lacks tensor {min(missing)}")
    if opened.linears.keys() != plan.quantized.keys():
        differing = opened.linears.keys() ^ plan.quantized.keys()
        raise VerificationError(f"linear {min(differing)} is quantized in the plan or in the folder, but not in both")
    _same_json(opened.folder / "config.json", plan.config(native.config))
    for name, data in plan.more_files().items():
        _same_bytes(opened.folder / name, data)
    small = small_files(native.checkpoint.folder)
    for name, path in small.items():
        _same_bytes(opened.folder / name, path.read_bytes())
    return (
        f"{len(opened.linears)} linears quantized, {len(plan.kept)} kept, {len(planned)} tensors and config.json as"
        f" planned, {len(small)} files as they were"
    )


def _same_json(path: Path, expected: Mapping[str, Any]) -> None:
    found = json.loads(path.read_text("utf-8"))
    wanted = json.loads(json_bytes(expected))
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise VerificationError(f"{path.name} says {key} {found.get(key)!r} instead of {wanted.get(key)!r}")


def _same_bytes(path: Path, expected: bytes) -> None:
    if not path.is_file() or path.read_bytes() != expected:
        raise VerificationError(f"{path.name} is not what was written")


def _bytes(opened: QuantizedFolder, sha256: Mapping[str, str]) -> str:
    total = 0
    for name, tensor in opened.tensors.items():
        digest = hashlib.sha256()
        step = max(1, _PIECE // max(tensor.nbytes // max(tensor.n_rows, 1), 1))
        for start in range(0, tensor.n_rows, step):
            rows = opened.stored_rows(name, start, min(start + step, tensor.n_rows))
            if tensor.dtype != "I32" and not np.isfinite(rows).all():
                raise VerificationError(f"tensor {name} of {tensor.file} holds NaN or infinity")
            digest.update(rows.reshape(-1).view(np.uint8).data)
        if digest.hexdigest() != sha256.get(name):
            raise VerificationError(f"tensor {name} of {tensor.file} is not what was written; the disk may be failing")
        total += tensor.nbytes
    return f"{total / 1e6:.0f} MB read back as written, every scale and kept weight finite"


def _rows(opened: QuantizedFolder, plan: FolderPlan, native: Native) -> str:
    """Signs of sampled rows of every quantized linear against the source's."""
    floor = SIGN_FLOOR[plan.request.grid.bits]
    worst, worst_name = 1.0, ""
    for name, linear in plan.quantized.items():
        weight = name + linear.form.weight
        shape = (linear.n_in, linear.n_out) if linear.form.turned else (linear.n_out, linear.n_in)
        agreement = _agreement(opened, native, weight, shape)
        if agreement < floor:
            raise VerificationError(
                f"linear {name} has the source's signs in {agreement:.1%} of its sampled weight, under {floor:.1%}"
            )
        if agreement <= worst:
            worst, worst_name = agreement, name
    return f"sampled rows of every linear have the source's signs, at worst {worst:.2%} by weight ({worst_name})"


def _agreement(opened: QuantizedFolder, native: Native, weight: str, shape: tuple[int, int]) -> float:
    step = max(1, _SAMPLE_ELEMENTS // shape[1])
    same, total = 0.0, 0.0
    for start in sorted({int(start) for start in np.linspace(0, max(0, shape[0] - step), _SAMPLES)}):
        stop = min(start + step, shape[0])
        product = f32(native.rows(weight, start, stop)) * opened.rows(weight, start, stop)
        same += float(product[product > 0].sum(dtype=np.float64))
        total += float(np.abs(product).sum(dtype=np.float64))
    return same / total if total else 1.0


def _logits(opened: QuantizedFolder, plan: FolderPlan, source: SourceLogits, wanted: bool | None) -> Check:
    if wanted is False:
        return Check("logits", "skipped", "not asked for")
    if wanted is None and plan.size > MEMORY // 2:
        return Check("logits", "skipped", "the model is larger than half of this machine's memory; --logits insists")
    # For so few tokens a second thread of BLAS costs more than it gives.
    with threadpool_limits(1, "blas"):
        return _compare_with(opened, plan, source)


def _compare_with(opened: QuantizedFolder, plan: FolderPlan, source: SourceLogits) -> Check:
    try:
        tokens, expected = source.get()
    except (QuantkitError, LookupError, TypeError, ValueError, ArithmeticError, MemoryError, OSError) as error:
        # The yardstick failed, which says nothing of the folder.
        return Check("logits", "skipped", f"could not be compared ({type(error).__name__}: {error})")
    return guard("logits", lambda: _compare(opened, plan, tokens, expected))


def _compare(opened: QuantizedFolder, plan: FolderPlan, tokens: Sequence[int], expected: Array) -> str:
    label, floor = plan.request.label, LOGIT_FLOOR[plan.request.grid.bits]
    found = _folder_logits(opened, tokens)
    correlation = float(correlations(found, expected).mean())
    if not correlation >= floor:
        raise VerificationError(
            f"{label} gives logits that correlate {correlation:.3f} with the source's, under {floor}"
        )
    generated = [int(found[-1].argmax())]
    while len(generated) < _GENERATED:
        generated.append(int(_folder_logits(opened, [*tokens, *generated])[-1].argmax()))
    return (
        f"finite, correlation {correlation:.4f} with the source's over {len(tokens)} tokens; goes on with"
        f" {' '.join(map(str, generated))} (the source with {int(expected[-1].argmax())})"
    )


def _folder_logits(opened: QuantizedFolder, tokens: Sequence[int]) -> Array:
    """Logits (len(tokens), vocabulary), in the memory of one linear; VerificationError where one is not finite."""
    with np.errstate(all="ignore"):
        found = reference_logits(opened.whole, opened.config, tokens, rows=opened.rows, names=opened.names)
    if not np.isfinite(found).all():
        raise VerificationError(f"{opened.folder.name} gives logits that are not finite")
    return found


def _tokens(native: Native) -> list[int]:
    """The first tokens of a probe text; of a tokenizer that cannot be read, ids spread over the vocabulary."""
    try:
        return probe_tokens(hf_token_ids(native.checkpoint.folder, PROBE))
    except QuantkitError:
        size = int(native.config["vocab_size"])
        return [(7919 * index + 3) % size for index in range(24)]
