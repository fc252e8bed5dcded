"""The plan of a calibration: what is written, the memory and disk it takes, before a weight is read."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.errors import UsageError
from quantkit.families.base.native import Native
from quantkit.forward.linears import LayerLinears
from quantkit.machine import cores
from quantkit.outputs.packed_folders import FolderPlan, FolderRequest, all_layers, plan_folder_of
from quantkit.texts.samples import Samples

# What a run takes beside the arrays that are counted one by one: python, numpy, inputs that wait for their sums.
_BASE_MEMORY = 330 << 20


@dataclass(frozen=True)
class CalibratedPlan:
    """A calibration that can be run. Memory and disk in bytes."""

    name: str
    native: Native
    samples: Samples
    layers: tuple[LayerLinears, ...]
    folders: tuple[FolderPlan, ...]
    work: Path
    threads: int
    propagate: bool
    device: Any
    memory: int
    disk: int
    fingerprint: str
    warnings: tuple[str, ...] = ()


def plan_calibrated(
    native: Native,
    samples: Samples,
    requests: Sequence[FolderRequest],
    *,
    name: str,
    output: Path,
    threads: int = 0,
    max_ram: int | None = None,
    propagate: bool = False,
    device: Any = None,
) -> CalibratedPlan:
    """What a calibration of `native` over `samples` will write under `output` and take.

    Raises:
        UnsupportedError, UsageError: see `plan_folder_of`; or the memory it takes is more than `max_ram`.
    """
    layers = all_layers(native)
    folders = tuple(
        plan_folder_of(native, layers, request, output / f"{name}-{request.label}")
        for request in sorted(requests, key=lambda request: request.method != "gptq")
    )
    if propagate and len(folders) != 1:
        raise UsageError("--propagate quantized is for one format at a time; the stream can follow only one")
    threads = threads or cores()
    memory = _memory(layers, samples.tokens.shape, threads, [request.method for request in requests])
    if max_ram is not None and memory > max_ram:
        raise UsageError(
            f"this takes about {memory / 1e9:.2f} GB, more than --max-ram {max_ram / 1e9:.2f} GB; a layer's weights and"
            " statistics must fit, lower --threads or --seq-len if that is where it goes"
        )
    states = samples.tokens.size * native.decoder.hidden * 4 * (4 if native.architecture.experts else 2)
    return CalibratedPlan(
        name=name,
        native=native,
        samples=samples,
        layers=layers,
        folders=folders,
        work=output / f"{name}-calibration.partial",
        threads=threads,
        propagate=propagate,
        device=device,
        memory=memory,
        disk=sum(folder.size for folder in folders) + states,
        fingerprint=_fingerprint(native, samples, requests, propagate),
    )


def _memory(layers: Sequence[LayerLinears], shape: tuple[int, ...], threads: int, methods: Sequence[str]) -> int:
    """Bytes that the largest layer takes: its weights in float32, its statistics, what the algorithms copy."""

    def need(layer: LayerLinears, expert: int | None) -> int:
        inputs = [each for each in layer.inputs if each.expert == expert]
        weights = sum(linear.n_in * linear.n_out for each in inputs for linear in each.linears if linear.index is None)
        sums = sum(each.width**2 for each in inputs) if methods else 0
        widest = max(each.width for each in inputs)
        tallest = max(sum(linear.n_out for linear in each.linears) for each in inputs)
        # a factor in float64 and its like; a copy or two of the widest input's matrices
        own = (6 * widest**2 + 4 * widest * tallest) if methods else 0
        forward = threads * shape[1] * 4 * (widest + tallest)
        return 4 * (weights + sums + own + forward)

    layer = layers[0] if len(layers) == 1 else max(layers, key=lambda layer: need(layer, None))
    experts = {each.expert for layer in layers for each in layer.inputs if each.expert is not None}
    dense = need(layer, None)
    mixed = [each for each in layers if any(seen.expert == 0 for seen in each.inputs)]
    return _BASE_MEMORY + dense + (need(mixed[0], 0) if experts else 0)


def _fingerprint(native: Native, samples: Samples, requests: Sequence[FolderRequest], propagate: bool) -> str:
    told = {
        "version": __version__,
        "headers": dict(native.checkpoint.header_sha256),
        "config": native.config,
        "samples": hashlib.sha256(samples.tokens.tobytes()).hexdigest(),
        "requests": [asdict(request) for request in requests],
        "propagate": propagate,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
