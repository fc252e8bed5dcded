"""Quantized folders for tests, made from a checkpoint by rounding to the nearest: what the driver does, without it."""

from collections.abc import Collection
from pathlib import Path

from quantkit.calibration.native import Native
from quantkit.checkpoint import open_checkpoint
from quantkit.forward.layer_linears import layer_linears
from quantkit.forward.linears import Linear
from quantkit.forward.weights import f32
from quantkit.int4.config import QUANTIZE_CONFIG, awq_config, checkpoint_format, gptq_config
from quantkit.int4.grid import Grid
from quantkit.int4.layout import MAX_SHARD, Stated, plan_folder
from quantkit.int4.packing import pack_awq, pack_gptq, packed_shapes, why_not_packed
from quantkit.int4.rounding import round_to_nearest
from quantkit.int4.writer import FolderWriter, json_bytes

Hashes = dict[str, str]


def linears_of(native: Native) -> list[Linear]:
    names = native.tensors.keys()
    layers = range(native.decoder.n_layers)
    found = (layer_linears(native.architecture, native.config, number, names) for number in layers)
    return [linear for layer in found for seen in layer.inputs for linear in seen.linears]


def write_folder(
    source: Path,
    folder: Path,
    method: str = "awq",
    grid: Grid | None = None,
    *,
    skip: Collection[str] = (),
    max_shard: int = MAX_SHARD,
) -> Hashes:
    """The checkpoint `source` as AWQ or GPTQ in `folder`; the sha256 of each tensor's bytes as written."""
    grid = grid or Grid(4, 32, symmetric=method == "gptq")
    version = 2 if checkpoint_format(grid) == "gptq_v2" else 1
    with open_checkpoint(str(source)) as checkpoint:
        native = Native(checkpoint)
        linears = {linear.name: linear for linear in linears_of(native)}
        kept = {name for name, linear in linears.items() if linear.kept or name in skip}
        quantized = {name: linear for name, linear in linears.items() if name not in kept}
        assert not any(why_not_packed(method, grid, linear.n_in, linear.n_out) for linear in quantized.values())
        tensors: list[Stated] = []
        for name, tensor in native.tensors.items():
            linear = quantized.get(name.removesuffix(".weight"))
            if linear is None:
                tensors.append((name, "F16", tensor.shape))
            else:
                shapes = packed_shapes(method, grid, linear.n_in, linear.n_out)
                tensors += [(f"{linear.name}.{part}", *stated) for part, stated in shapes.items()]
        with FolderWriter(folder, plan_folder(tensors, max_shard)) as writer:
            for name in native.tensors:
                linear = quantized.get(name.removesuffix(".weight"))
                if linear is None:
                    writer.write(name, f32(native.whole(name)))
                    continue
                weight = f32(native.whole(name))
                rounded = round_to_nearest(weight.T if linear.form.turned else weight, grid)
                packed = pack_awq(rounded) if method == "awq" else pack_gptq(rounded, version)
                for part, array in packed.items():
                    writer.write(f"{linear.name}.{part}", array)
            names = [*kept, "lm_head"]
            if method == "awq":
                quantization = awq_config(grid, names, quantized)
            else:
                quantization = gptq_config(grid, names, quantized, desc_act=False, damp_percent=0.01)
            more = {QUANTIZE_CONFIG: json_bytes(quantization)} if method == "gptq" else {}
            config = {**native.config, "torch_dtype": "float16", "quantization_config": quantization}
            writer.finish(config, source, more)
            return {stated[0]: writer.sha256(stated[0]) for stated in tensors}
