"""`quantkit convert FOLDER-AWQ -t w4a16`: the integers of an AWQ or GPTQ folder in compressed-tensors' container."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.cli.conversion_options import OutputOptions, RunOptions
from quantkit.cli.output import Out
from quantkit.units import human_bytes

if TYPE_CHECKING:
    from quantkit.conversion.repack import Repacked, RepackPlan


def repackable(source: str, types: Sequence[str]) -> list[str]:
    """The types, if SOURCE is an AWQ or GPTQ folder that they repack; else none."""
    if not {name.lower() for name in types} <= {"w4a16", "w8a16"} or not Path(source).is_dir():
        return []
    from quantkit.packed.registry import read_type

    type_names = list(dict.fromkeys(name.lower() for name in types))
    return type_names if read_type(Path(source)) in ("awq", "gptq") else []


def repack_source(out: Out, source: str, types: Sequence[str], output: OutputOptions, work: RunOptions) -> bool:
    """Repack the folder `source` as each of `types`, and show the result; False if its integers do not fit a type."""
    from quantkit.conversion.repack import plan_repack, repack
    from quantkit.errors import UnsupportedError

    plans: list[RepackPlan] = []
    with ExitStack() as opened:
        try:
            for method in types:
                plans.append(plan_repack(Path(source), method, output.output, output.name))
                opened.enter_context(plans[-1].opened)
        except UnsupportedError as reason:
            out.warn(f"not repacked without loss: {reason}; the dequantized weights are rounded again")
            return False
        for plan in plans:
            if work.dry_run:
                out.say(f"{plan.label}: {human_bytes(plan.size)}, {len(plan.opened.linears)} linears")
                out.say("dry run: nothing was written")
                out.document(_document(plan, None))
                continue
            with out.progress() as progress:
                result = repack(plan, force=work.force, progress=progress)
            out.say(f"{plan.label}  {human_bytes(plan.size)}  {result.checks[0].detail}\n\n{plan.folder}")
            out.document(_document(plan, result))
    return True


def _document(plan: "RepackPlan", result: "Repacked | None") -> dict[str, Any]:
    from quantkit.machine import peak_memory

    output: dict[str, Any] = {
        "type": plan.label,
        "folder": str(plan.folder),
        "bytes": plan.size,
        "bits_per_weight": round(8 * sum(p.nbytes for s in plan.shards for p in s.places) / plan.parameters, 4),
        "files": [{"name": shard.name, "bytes": shard.size} for shard in plan.shards],
        "bits": plan.grid.bits,
        "group_size": plan.grid.group,
        "quantized_linears": len(plan.opened.linears),
        "kept_linears": list(plan.names.kept),
    }
    facts = {
        "command": "convert",
        "dry_run": result is None,
        "name": plan.name,
        "family": None,
        "architecture": (plan.opened.config.get("architectures") or [None])[0],
        "origin": plan.origin,
        "folder": str(plan.folder.parent),
        "parameters": plan.parameters,
        "layers": None,
        "calibration": None,
        "expected_peak_memory_bytes": plan.memory,
        "disk_bytes": plan.size,
        "threads": 1,
        "warnings": [],
    }
    if result is None:
        return {**facts, "outputs": [output]}
    output |= {
        "worst_relative_error": None,
        "logit_correlation": None,
        "verified": True,
        "checks": [vars(check) for check in result.checks],
        "relative_error": {},
    }
    seconds = {"repack": round(result.seconds, 3)}
    ends = {"seconds": seconds, "peak_memory_bytes": peak_memory(), "resumed_layers": 0, "resumed_tensors": 0}
    return {**facts, "outputs": [output], **ends}
