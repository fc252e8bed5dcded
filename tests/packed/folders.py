"""Quantized folders for tests, made from a checkpoint by rounding to the nearest: the driver's plan without its run."""

from pathlib import Path

from quantkit.checkpoint import open_checkpoint
from quantkit.families.base.native import Native
from quantkit.forward.weights import f32
from quantkit.outputs.packed_folders import FolderPlan, FolderRequest, all_layers, plan_folder_of
from quantkit.packed.layout import MAX_SHARD
from quantkit.packed.packing import pack_awq, pack_gptq
from quantkit.packed.writer import FolderWriter
from quantkit.quant.grid import Grid
from quantkit.quant.rounding import round_to_nearest

Hashes = dict[str, str]


def planned(
    native: Native,
    folder: Path,
    method: str = "awq",
    grid: Grid | None = None,
    *,
    skip: tuple[str, ...] = (),
    max_shard: int = MAX_SHARD,
    dtype: str = "float16",
) -> FolderPlan:
    request = FolderRequest(method, grid or Grid(4, 32, method == "gptq"), skip, dtype, max_shard)
    return plan_folder_of(native, all_layers(native), request, folder)


def write_planned(plan: FolderPlan, native: Native) -> Hashes:
    """The folder, under its final name; the sha256 of each tensor's bytes as written."""
    weights = {name + linear.form.weight: linear for name, linear in plan.quantized.items()}
    pack = pack_awq if plan.request.method == "awq" else pack_gptq
    with FolderWriter(plan.folder, plan.shards) as writer:
        for name in native.tensors:
            values, linear = f32(native.whole(name)), weights.get(name)
            if linear is None:
                writer.write(name, values)
                continue
            rounded = round_to_nearest(values.T if linear.form.turned else values, plan.request.grid)
            for part, array in pack(rounded).items():
                writer.write(f"{linear.name}.{part}", array)
        writer.finish(plan.config(native.config), native.checkpoint.folder, plan.more_files())
        return {place.name: writer.sha256(place.name) for shard in plan.shards for place in shard.places}


def write_folder(
    source: Path, folder: Path, method: str = "awq", grid: Grid | None = None, *, max_shard: int = MAX_SHARD
) -> Hashes:
    """The checkpoint `source` as AWQ or GPTQ in `folder`."""
    with open_checkpoint(str(source)) as checkpoint:
        native = Native(checkpoint)
        return write_planned(planned(native, folder, method, grid, max_shard=max_shard), native)
