"""Measured speed of a GGUF file beside the plan's estimate, for each number of offloaded layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError
from quantkit.gguf.reader import read_header
from quantkit.machine import cores
from quantkit.measurement.device_speed import measure_devices
from quantkit.measurement.load_options import LoadOptions
from quantkit.measurement.memory import Device, all_layers, distinct_layers, gpu_devices
from quantkit.measurement.speed import Speed, SpeedTests, measure_speed
from quantkit.planning.context import Context
from quantkit.planning.devices import CPU
from quantkit.planning.planned_tensors import PlannedTensor
from quantkit.planning.shape import ModelShape
from quantkit.planning.sources import open_source, tensors_as_they_are
from quantkit.planning.speed import DeviceSpeed, token_work, tokens_per_second

_MIB = 1 << 20


@dataclass(frozen=True)
class Estimator:
    """The plan's estimate of a file's generation speed, with the measured speed of each device.

    Attributes:
        speeds: by the device's name in a plan: CPU, and GPU, or GPU0, GPU1 and so on.
        names: llama.cpp's names of the devices, in that order.
        descriptions: those of the devices to offload to.
        split: the share of the layers of each of several devices.
    """

    shape: ModelShape
    tensors: tuple[PlannedTensor, ...]
    speeds: Mapping[str, DeviceSpeed]
    names: tuple[str, ...]
    descriptions: tuple[str, ...] = ()
    split: tuple[int, ...] = ()

    def tokens_per_second(self, options: LoadOptions, tokens: int) -> float:
        """Estimated tokens per second over `tokens` generated tokens from an empty context."""
        every = self.shape.n_layer + 1
        context = Context(
            tokens,
            gpu_layers=every if options.gpu_layers is None else min(options.gpu_layers, every),
            cpu_moe=options.cpu_moe,
            split=self.split,
            kv_on_gpu=options.kv_on_gpu,
        )
        has_gpu = len(self.speeds) > 1
        work = token_work(self.shape, self.tensors, context, tokens // 2, has_gpu=has_gpu, operations=True)
        return tokens_per_second(work, self.speeds)

    def document(self) -> list[dict[str, Any]]:
        """The value of "device_speed" in report.json: bytes per second, and seconds."""
        return [
            {
                "name": name,
                "bandwidth": round(speed.bandwidth),
                "by_type": [{"type": kind, "bandwidth": round(rate)} for kind, rate in speed.by_type.items()],
                "operation": speed.operation,
                "transfer": speed.transfer,
                "description": speed.description,
                "token": speed.token,
            }
            for name, speed in zip(self.names, self.speeds.values(), strict=True)
        ]


def measure_speeds(
    model: Path, layers: Sequence[int | None], options: LoadOptions = LoadOptions(), tests: SpeedTests = SpeedTests()
) -> tuple[list[Speed], Estimator | None, list[str]]:
    """The speed for each number of offloaded layers, what estimates it, and a note on what is missing.

    Args:
        layers: None stands for all layers. Without a device only 0 is measured.

    Raises:
        QuantkitError: the model cannot be loaded without offloading.
    """
    devices = gpu_devices(model, rpc=options.rpc)
    options = replace(options, n_threads=options.n_threads or cores())
    if len(devices) > 1:
        options = replace(options, tensor_split=[device.free // _MIB for device in devices])
    requested = distinct_layers(layers, all_layers(read_header(model))) if devices else [0]
    notes: list[str] = []
    estimator: Estimator | None = None
    try:
        estimator = estimator_of(model, options, devices)
    except (QuantkitError, OSError) as error:
        notes.append(f"{model.name}: the speed is not estimated: {error}")
    rows = []
    for number in requested:
        placed = replace(options, gpu_layers=number)
        try:
            row = measure_speed(model, placed, tests)
        except QuantkitError as error:
            if not number:
                raise
            notes.append(f"with {number} layers offloaded: {error}")
            continue
        estimate = estimator.tokens_per_second(placed, tests.n_generate) if estimator else None
        rows.append(replace(row, estimate=estimate))
    return rows, estimator, notes


def estimator_of(model: Path, options: LoadOptions, devices: Sequence[Device]) -> Estimator:
    """Measure the devices for a file.

    Raises:
        UnsupportedError: the plan does not support the architecture.
        QuantkitError: llama.cpp crashes.
        OSError: the disk has not enough space for the probes.
    """
    source = open_source(str(model))
    try:
        tensors = tensors_as_they_are(source.model)
        speeds = measure_devices(source.shape, tensors, options, len(devices), model)
        split = tuple(int(share) for share in options.tensor_split)
        names = (CPU, *(device.name for device in devices))
        descriptions = tuple(device.description for device in devices)
        return Estimator(source.shape, tensors, speeds, names, descriptions, split)
    finally:
        source.model.close()
