"""A written folder of quantized weights, reloaded by a reader that shares no code with the packing, and checked.

The structure is compared with the plan, and every byte with what was written. Sampled rows and the logits of a short
text are compared with the source's. A few tokens are generated.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from quantkit.errors import QuantkitError, VerificationError
from quantkit.families import find_architecture
from quantkit.families.base.native import Native
from quantkit.forward import Decoder
from quantkit.forward.weights import Array, f32
from quantkit.outputs.packed_folders import FolderPlan
from quantkit.packed.formats import DirectFormat
from quantkit.packed.reader import QuantizedFolder, open_quantized
from quantkit.packed.writer import json_bytes, small_files
from quantkit.verify.check import Check, Verified, guard, raise_if_passing, sampled_rows
from quantkit.verify.folder_bytes import check_bytes
from quantkit.verify.source_logits import NoSourceLogits, SourceLogits, correlations, skipped_logits

# Least correlation with the source's logits, by bits. On SmolLM2 and small random models round-to-nearest alone gives
# 0.82 to 0.99 in 4 bit and 0.6 to 0.96 in 3. A wrong layout gives about 0. 2 bit can give any logits.
LOGIT_FLOOR = {8: 0.95, 6: 0.9, 5: 0.7, 4: 0.5, 3: 0.25, 2: -1.0}
# The share, by magnitude, of products of a source weight and its quantized weight that are positive. Folded scales are
# positive and keep the signs, so it holds for AWQ too; misplaced rows or columns give one half.
SIGN_FLOOR = {8: 0.995, 6: 0.99, 5: 0.98, 4: 0.97, 3: 0.93, 2: 0.8}
FOLLOWING_FLOOR = 0.9
"""Of matrices that make up for the errors of earlier layers, and are meant to differ from the source's."""
_GENERATED = 4


@dataclass(frozen=True)
class Written:
    """What a conversion knows of a folder that it wrote.

    Attributes:
        sha256: of the bytes of each tensor.
        errors: relative error of each linear, if it was measured.
    """

    sha256: Mapping[str, str]
    errors: Mapping[str, float] = field(default_factory=dict)


def verify_folder(
    folder: Path,
    plan: FolderPlan,
    native: Native,
    written: Written,
    *,
    logits: bool | None = None,
    source: SourceLogits | None = None,
) -> Verified:
    """Check a whole folder, under its present name, against its plan and the checkpoint it was made of.

    `logits`: compare logits and generate; None decides by the folder's size and the memory. `source` shares the
    source's logits with the checks of other outputs.
    """
    hashes: dict[str, str] = {}
    measured = dict(written.errors)
    correlation: float | None = None
    try:
        opened = open_quantized(folder)
    except QuantkitError as error:
        raise_if_passing("structure", error)
        return Verified(plan, (Check("structure", "failed", str(error)),), hashes, written.errors)
    with opened:
        checks: list[Check] = []
        for name, check in (
            ("structure", lambda: _structure(opened, plan, native)),
            ("bytes", lambda: check_bytes(opened, written.sha256, hashes)),
            ("rows", lambda: _rows(opened, plan, native)),
            *([("error", lambda: _errors(opened, plan, native, measured))] if not plan.format.calibrated else []),
        ):
            checks.append(guard(name, check))
            if checks[-1].status == "failed":
                return Verified(plan, tuple(checks), hashes, measured)
        logit_check, correlation = _logits(opened, plan, source or SourceLogits(native.checkpoint), logits)
        return Verified(plan, (*checks, logit_check), hashes, measured, correlation)


def _structure(opened: QuantizedFolder, plan: FolderPlan, native: Native) -> str:
    planned = {
        planned_tensor.name: (shard.name, planned_tensor) for shard in plan.shards for planned_tensor in shard.places
    }
    for name, tensor in opened.tensors.items():
        file, planned_tensor = planned.get(name, (None, None))
        if planned_tensor is None:
            raise VerificationError(f"{tensor.file} contains tensor {name}, which was not planned")
        if (tensor.file, tensor.dtype, tensor.shape, tensor.offset) != (
            file,
            planned_tensor.dtype,
            planned_tensor.shape,
            planned_tensor.offset,
        ):
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
        f" planned, {len(small)} files unchanged"
    )


def _same_json(path: Path, expected: Mapping[str, Any]) -> None:
    try:
        written = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise VerificationError(f"{path.name} is not what was written") from error
    planned = json.loads(json_bytes(expected))
    for key in sorted(written.keys() | planned.keys()):
        if written.get(key) != planned.get(key):
            raise VerificationError(f"{path.name} has {key} {written.get(key)!r} instead of {planned.get(key)!r}")


def _same_bytes(path: Path, expected: bytes) -> None:
    if not path.is_file() or path.read_bytes() != expected:
        raise VerificationError(f"{path.name} is not what was written")


def _rows(opened: QuantizedFolder, plan: FolderPlan, native: Native) -> str:
    """Signs of sampled rows of every quantized linear against the source's."""
    floor = SIGN_FLOOR[plan.request.grid.bits]
    if plan.request.follows_rounded:
        floor = min(floor, FOLLOWING_FLOOR)
    worst, worst_name = 1.0, ""
    for name, linear in plan.quantized.items():
        weight = name + linear.form.weight
        shape = (linear.n_in, linear.n_out) if linear.form.turned else (linear.n_out, linear.n_in)
        agreement = _agreement(opened, native, weight, shape)
        if agreement < floor:
            raise VerificationError(
                f"linear {name} has the source's signs in {agreement:.1%} of its sampled weights, below {floor:.1%}"
            )
        if agreement <= worst:
            worst, worst_name = agreement, name
    return f"sampled rows of every linear have the source's signs, at worst {worst:.2%} ({worst_name})"


def _errors(opened: QuantizedFolder, plan: FolderPlan, native: Native, errors: dict[str, float]) -> str:
    """The relative RMS error of sampled rows of every quantized linear, also put into `errors`."""
    assert isinstance(plan.format, DirectFormat)
    bound, worst, worst_name = plan.format.error_bound, 0.0, ""
    for name, linear in plan.quantized.items():
        weight = name + linear.form.weight
        squared = total = 0.0
        for start, stop in sampled_rows(linear.n_out, linear.n_in):
            source = f32(native.rows(weight, start, stop)).astype(np.float64)
            difference = opened.rows(f"{name}.weight", start, stop) - source
            squared += float(np.square(difference).sum())
            total += float(np.square(source).sum())
        errors[name] = float(np.sqrt(squared / (total or 1.0)))
        if not errors[name] <= bound:
            raise VerificationError(
                f"linear {name} has an error of {errors[name]:.1%}, above the {bound:.1%} that {plan.label} allows"
            )
        if errors[name] >= worst:
            worst, worst_name = errors[name], name
    return f"sampled rows of every linear within {bound:.0%} of the source, at worst {worst:.2%} ({worst_name})"


def _agreement(opened: QuantizedFolder, native: Native, weight: str, shape: tuple[int, int]) -> float:
    agreeing, total = 0.0, 0.0
    for start, stop in sampled_rows(*shape):
        product = f32(native.rows(weight, start, stop)) * opened.rows(weight, start, stop)
        agreeing += float(product[product > 0].sum(dtype=np.float64))
        total += float(np.abs(product).sum(dtype=np.float64))
    return agreeing / total if total else 1.0


def _logits(
    opened: QuantizedFolder, plan: FolderPlan, source: SourceLogits, requested: bool | None
) -> tuple[Check, float | None]:
    """The check, and the mean correlation with the source's logits."""
    # --max-ram does not matter here: the forward holds one linear, which the plan of the calibration has counted
    skipped = skipped_logits(requested, plan.size)
    if skipped is not None:
        return skipped, None
    compared: list[float] = []

    def compare() -> str:
        tokens, expected = source.get()
        values = _folder_logits(opened, tokens)
        compared.append(float(correlations(values, expected).mean()))
        floor = LOGIT_FLOOR[plan.format.like_bits or plan.request.grid.bits]
        if not compared[0] >= floor:
            raise VerificationError(
                f"the logits of {plan.label} have a correlation of {compared[0]:.3f} with the source's, below {floor}"
            )
        generated = [int(values[-1].argmax())]
        while len(generated) < _GENERATED:
            generated.append(int(_folder_logits(opened, [*tokens, *generated])[-1].argmax()))
        return (
            f"finite, correlation {compared[0]:.4f} with the source's over {len(tokens)} tokens; the next tokens are"
            f" {' '.join(map(str, generated))} (the source's next token is {int(expected[-1].argmax())})"
        )

    # for so few tokens a second thread of BLAS costs more than it gives
    with threadpool_limits(1, "blas"):
        try:
            return guard("logits", compare), next(iter(compared), None)
        except NoSourceLogits as error:
            return Check("logits", "skipped", str(error)), None


def _folder_logits(opened: QuantizedFolder, tokens: Sequence[int]) -> Array:
    """Logits (len(tokens), vocabulary), in the memory of one linear; VerificationError where one is not finite."""
    with np.errstate(all="ignore"):
        logits = Decoder(opened.weights, opened.config, find_architecture(opened.config)).run(tokens)
    if not np.isfinite(logits).all():
        raise VerificationError(f"{opened.folder.name} gives logits that are not finite")
    return logits
