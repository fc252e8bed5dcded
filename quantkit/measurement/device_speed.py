"""The speed of each device in llama.cpp, measured with probes: what the estimate of a plan needs.

Each probe gives one unknown of planning.speed's sum. Few and many thin layers give the seconds of an operation, and of
a token. Layers as wide as the model's, too large for a cache, give the bytes per second of each type. Thin experts on
the CPU, with all else on the device, in few and in many layers, give the seconds of a transfer and of the description
of a tensor.

The probes are files on the disk, as models are: in a file system in memory the CPU needs half as long again for weights
that it reads from the mapped file, because the pages there are smaller.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from quantkit.llamacpp.session import LlamaSession
from quantkit.measurement.load_options import LoadOptions
from quantkit.measurement.probe_weights import model_weights
from quantkit.measurement.probes import (
    HEAD,
    Probe,
    ProbeSizes,
    main_types,
    wide_sizes,
    write_probe,
)
from quantkit.planning.context import Context
from quantkit.planning.devices import CPU, gpu_names
from quantkit.planning.planned_tensors import PlannedTensor
from quantkit.planning.shape import ModelShape
from quantkit.planning.speed import DeviceSpeed, Work, token_seconds, token_work
from quantkit.scratch import scratch_folder

LEAST_BYTES = 96 << 20
"""Weights of a wide probe: several times the last cache of a desktop processor."""
_FEW, _MANY, _EXPERTS = 4, 48, (8, 32)
_THIN_TYPE = GGMLQuantizationType.Q8_0
_TOKENS, _RUNS, _ROUNDS = 4, 12, 3
# the least share of a probe's seconds that reading takes: below it the difference of two measurements says nothing
_LEAST_SHARE = 0.2


@dataclass(frozen=True)
class Timed:
    """A probe that ran: what each device did for a token, and the seconds of a token."""

    work: Mapping[str, Work]
    seconds: float


def measure_devices(
    shape: ModelShape,
    tensors: Sequence[PlannedTensor],
    options: LoadOptions,
    n_devices: int,
    model: Path,
    *,
    timeout: float | None = None,
) -> dict[str, DeviceSpeed]:
    """The speed of the CPU and of each device to offload to, by its name in a plan.

    Args:
        shape, tensors: the model whose widths and types the probes have.
        n_devices: number of devices to offload to.
        model: the GGUF file whose weights the wide probes have.
        timeout: seconds for each run of a probe; None for no limit.

    Raises:
        QuantkitError: llama.cpp crashes or exceeds the timeout.
        OSError: the disk has not enough space for the probes.
    """
    types = main_types([part.moved for part in token_work(shape, tensors, Context()).values()])
    with scratch_folder() as folder:

        def wide_probe(type_: GGMLQuantizationType) -> Probe:
            sizes = wide_sizes(shape, type_, LEAST_BYTES)
            return write_probe(folder, type_.name, sizes, type_, model_weights(model, type_))

        thin = ProbeSizes(_FEW, HEAD, HEAD)
        few = write_probe(folder, "few", thin, _THIN_TYPE)
        many = write_probe(folder, "many", replace(thin, layers=_MANY), _THIN_TYPE)
        shallow, deep = (
            write_probe(folder, f"experts-{layers}", replace(thin, layers=layers, experts=2), _THIN_TYPE)
            for layers in _EXPERTS
        )
        wide = {type_.name: wide_probe(type_) for type_ in types}
        names = (CPU, *(gpu_names(n_devices) if n_devices else ()))
        with LlamaSession(few.path) as session:
            bench = _Bench(session, options, n_devices, timeout)
            # rounds far apart: other work on the machine seldom delays the same probe in all of them
            for _ in range(_ROUNDS):
                for number in range(len(names)):
                    for probe in (few, many, *wide.values(), *((shallow, deep) if number else ())):
                        bench.run(probe, number)
    speeds: dict[str, DeviceSpeed] = {}
    for number, name in enumerate(names):
        speed = thin_speed(name, bench.timed(few, number), bench.timed(many, number), speeds)
        if number:
            mixtures = bench.timed(shallow, number), bench.timed(deep, number)
            speed = with_transfers(name, speed, bench.timed(few, number), mixtures, speeds)
        rates = {
            type_: bandwidth(name, bench.timed(probe, number), {**speeds, name: speed}) for type_, probe in wide.items()
        }
        speeds[name] = replace(speed, bandwidth=next(iter(rates.values())), by_type=rates)
    return with_transfers_to_cpu(speeds)


def thin_speed(name: str, few: Timed, many: Timed, others: Mapping[str, DeviceSpeed]) -> DeviceSpeed:
    """Seconds of an operation and of a token of a device, from two probes of different depth, whose bytes do not count.

    `others`: the speeds of the other devices with a part in them.
    """
    more = many.work[name].operations - few.work[name].operations
    unexplained, rest_of_many = _rest(name, few, others), _rest(name, many, others)
    operation = max((rest_of_many - unexplained) / more, 0.0)
    token = max(unexplained - few.work[name].operations * operation, 0.0)
    return DeviceSpeed(float("inf"), operation=operation, token=token)


def with_transfers(
    name: str, speed: DeviceSpeed, few: Timed, mixtures: tuple[Timed, Timed], others: Mapping[str, DeviceSpeed]
) -> DeviceSpeed:
    """The speed with the seconds of a transfer, which `thin_speed` counts to a token, and of a description.

    `mixtures`: two probes of different depth with many transfers between the CPU and the device.
    """
    count_of_few = _transfers(few)
    rows = []
    for mixture in mixtures:
        unexplained = _rest(name, mixture, others) - mixture.work[name].operations * speed.operation - speed.token
        rows.append((float(_transfers(mixture) - count_of_few), float(mixture.work[name].described), unexplained))
    transfer, description = _positive_solution(*rows)
    return replace(
        speed,
        transfer=transfer,
        description=description,
        token=max(speed.token - count_of_few * transfer, 0.0),
    )


def _positive_solution(first: tuple[float, float, float], second: tuple[float, float, float]) -> tuple[float, float]:
    """x and y of  a x + b y = c  for two rows (a, b, c). One that would be negative is 0, and the sum of c holds."""
    (a, b, c), (d, e, f) = first, second
    determinant = a * e - b * d
    x, y = ((c * e - b * f) / determinant, (a * f - c * d) / determinant) if determinant else (0.0, -1.0)
    if y < 0:
        return max((c + f) / (a + d), 0.0), 0.0
    return (x, y) if x > 0 else (0.0, max((c + f) / (b + e), 0.0))


def _transfers(timed: Timed) -> int:
    return sum(part.transfers for part in timed.work.values())


def bandwidth(name: str, wide: Timed, speeds: Mapping[str, DeviceSpeed]) -> float:
    """Bytes per second of a device, from a probe whose weights are on it. `speeds`: all else that takes time."""
    besides = token_seconds(wide.work, {**speeds, name: replace(speeds[name], bandwidth=float("inf"))})
    reading = max(wide.seconds - besides, _LEAST_SHARE * wide.seconds)
    return wide.work[name].bytes / reading


def with_transfers_to_cpu(speeds: Mapping[str, DeviceSpeed]) -> dict[str, DeviceSpeed]:
    """The speeds with the seconds of a transfer to the CPU: those of one to the slowest device."""
    slowest = max(speed.transfer for speed in speeds.values())
    return {name: replace(speed, transfer=slowest) if name == CPU else speed for name, speed in speeds.items()}


def _rest(name: str, timed: Timed, others: Mapping[str, DeviceSpeed]) -> float:
    """The seconds that the other devices do not explain."""
    return timed.seconds - token_seconds({device: timed.work[device] for device in others}, others)


class _Bench:
    """Runs probes in one process of llama.cpp; the fastest run of each counts, because other work only delays."""

    def __init__(self, session: LlamaSession, options: LoadOptions, n_devices: int, timeout: float | None) -> None:
        self._session, self._options, self._timeout = session, options, timeout
        self._n_devices = n_devices
        self._fastest: dict[tuple[str, int], float] = {}

    def run(self, probe: Probe, device: int) -> None:
        """Run a probe on the CPU (`device` 0) or on device 1, 2 and so on; experts stay on the CPU."""
        placed = self._context(probe, device)
        options = replace(
            self._options, gpu_layers=placed.gpu_layers, cpu_moe=placed.cpu_moe, tensor_split=placed.split
        )
        self._ask({"task": "bench_open", **options.request(probe.path)})
        self._ask({"task": "bench_begin", "prompt": False, "tokens": _TOKENS})
        seconds = min(self._ask({"task": "bench_run"}) for _ in range(_RUNS)) / _TOKENS
        key = (probe.path.name, device)
        self._fastest[key] = min(seconds, self._fastest.get(key, seconds))

    def timed(self, probe: Probe, device: int) -> Timed:
        """What the devices did for a token of a probe that ran, and its seconds."""
        placed, has_gpu = self._context(probe, device), self._n_devices > 0
        work = token_work(probe.shape, probe.tensors, placed, _TOKENS // 2, has_gpu=has_gpu, operations=True)
        return Timed(work, self._fastest[probe.path.name, device])

    def _context(self, probe: Probe, device: int) -> Context:
        on_device = probe.shape.n_layer + 1 if device else 0
        moe = probe.shape.n_layer if self._n_devices and probe.shape.has_experts else 0
        split: tuple[int, ...] = ()
        if device and self._n_devices > 1:
            split = tuple(on_device if number == device else 0 for number in range(1, self._n_devices + 1))
        return Context(_TOKENS, gpu_layers=on_device, cpu_moe=moe, split=split)

    def _ask(self, request: Mapping[str, Any]) -> Any:
        return self._session.ask(request, timeout=self._timeout)
