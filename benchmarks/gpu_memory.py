"""The memory of GGUF files on a GPU: planned, by llama.cpp's own account, and by the driver.

The files have Huozi 3's shape (Mixtral 8x7B with 57,000 tokens) and the tensor types that llama-quantize would choose.
Their weights are a hole in the file, which takes no disk; so only memory is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from benchmarks.lines import Lines, Target
from quantkit.measurement.load_options import LoadOptions
from quantkit.measurement.memory import gpu_devices, loaded_memory
from quantkit.planning.context import Context
from quantkit.planning.memory import plan_memory
from quantkit.planning.sizes import offers
from quantkit.planning.sources import open_source
from tests.helpers.oracle import model_metadata, write_sparse_gguf
from tests.planning.models import write_model

_DENSE = {"n_layer": 32, "n_embd": 4096, "n_ff": 14336, "n_head": 32, "n_head_kv": 8}
HUOZI = {**_DENSE, "n_expert": 8, "n_vocab": 57000}
TRIAL = {**HUOZI, "n_layer": 4, "n_embd": 512, "n_ff": 1024, "n_head": 8, "n_vocab": 1000}
_N_CTX = 4096
_ALLOWED = 0.03


@dataclass(frozen=True)
class Placement:
    """Layers on the GPU, None for all, and layers whose experts are on the CPU; `published`: in GB, if it is known."""

    type_name: str
    layers: int | None = None
    cpu_moe: int = 0
    published: float | None = None

    @property
    def label(self) -> str:
        layers = "" if self.layers is None else f" -ngl {self.layers}"
        return f"{self.type_name}{layers}" + (" experts on the CPU" if self.cpu_moe else "")


PLACEMENTS = (
    Placement("q4_0", published=28.0),
    Placement("q2_k", published=18.0),
    Placement("q2_k", layers=16, published=9.6),
    Placement("q4_0", cpu_moe=HUOZI["n_layer"]),
)


def gguf_memory(
    bench: Lines, folder: Path, sizes: dict[str, Any], options: LoadOptions, placements: Sequence[Placement]
) -> None:
    """A line for each placement: planned / llama.cpp's account, the driver's figure, and what CUDA adds.

    A device of an RPC server, in `options`, does not compute with weights that are on the CPU.
    """
    plain, files = write_model(folder / "plain.gguf", sizes), {}
    source = open_source(str(plain))
    if not gpu_devices(plain, rpc=options.rpc):
        raise RuntimeError("llama.cpp finds no GPU; build llama-cpp-python with CMAKE_ARGS=-DGGML_CUDA=ON")
    keys = model_metadata("llama", **sizes) | {"tokenizer.ggml.model": "no_vocab", "llama.vocab_size": sizes["n_vocab"]}
    for offer in offers(source, sorted({placement.type_name for placement in placements}), calibrated=True):
        files[offer.label] = folder / f"{offer.label}.gguf", offer.tensors
        tensors = [(tensor.name, tensor.shape, GGMLQuantizationType(tensor.type)) for tensor in offer.tensors]
        write_sparse_gguf(files[offer.label][0], keys, tensors)
    for placement in placements:
        path, tensors_of = files[placement.type_name]
        layers = sizes["n_layer"] + 1 if placement.layers is None else min(placement.layers, sizes["n_layer"])
        moe = min(placement.cpu_moe, sizes["n_layer"])
        loaded = loaded_memory(path, replace(options, gpu_layers=layers, cpu_moe=moe), n_ctx=_N_CTX)
        context = Context(_N_CTX, gpu_layers=layers, cpu_moe=moe, op_offload=not options.rpc)
        planned = plan_memory(source.shape, tensors_of, context, has_gpu=True).gpus[0]
        (device,) = [entry for entry in loaded.devices if entry.name != "CPU"]
        driver = sum(figure.bytes for figure in loaded.driver)
        bench.raw[f"memory {placement.label}"] = loaded.document() | {"planned": vars(planned)}
        bench.add(Target(f"{placement.label}: on {device.name} by llama.cpp", "Huozi 3", device.total / 1e9, "GB"))
        ratio = planned.buffers / device.total
        bench.add(Target("  planned / that", "Huozi 3", ratio, "", 1 + _ALLOWED, 1 - _ALLOWED))
        if driver:
            bench.add(Target("  by the driver", "Huozi 3", driver / 1e9, "GB"))
            bench.add(Target("  planned with the context / that", "Huozi 3", planned.total / driver, "", 1.03, 0.97))
            bench.add(Target("  the driver's beyond llama.cpp's", "Huozi 3", (driver - device.total) / 1e9, "GB"))
        if placement.published is not None:
            bench.add(Target("  published", "Huozi 3", placement.published, "GB"))
