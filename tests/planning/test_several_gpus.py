"""Several GPUs: each takes what the plan says, by llama.cpp's own account over two RPC devices of different size."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from quantkit.measurement.load_options import LoadOptions
from quantkit.measurement.memory import RESOLUTION, loaded_memory
from quantkit.planning.budget import Budget, fit_experts, fit_offer
from quantkit.planning.context import Context
from quantkit.planning.devices import layer_devices
from quantkit.planning.memory import Memory, plan_memory
from quantkit.planning.sizes import Offer, offers
from quantkit.planning.sources import Source, open_source
from quantkit.planning.split import even_split
from tests.families.expected import write_checkpoint
from tests.helpers.conversions import to_gguf
from tests.helpers.rpc_server import rpc
from tests.planning.models import LARGE, read_model, write_model

GB = 10**9
HUNDREDTH = 0.0051 * (1 << 20)


@pytest.fixture(scope="module")
def servers() -> Iterator[list[str]]:
    made = rpc()
    with pytest.MonkeyPatch.context() as patch, made.serving() as first, made.serving() as second:
        patch.setenv("GGML_BACKEND_PATH", str(made.backend))
        yield [first, second]


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(str(write_model(tmp_path_factory.mktemp("mixtral") / "model.gguf", LARGE["Mixtral"])))


@pytest.fixture(scope="module")
def offer(mixtral: Source) -> Offer:
    return offers(mixtral, ["q4_0"])[0]


def compare(planned: Memory, path: Path, servers: list[str], n_ctx: int) -> None:
    context = planned.context
    options = LoadOptions(
        gpu_layers=context.gpu_layers,
        rpc=servers,
        cpu_moe=context.cpu_moe,
        tensor_split=context.split,
        kv_on_gpu=context.kv_on_gpu,
    )
    measured = loaded_memory(path, options, n_ctx=n_ctx)
    theirs = [next(device for device in measured.devices if server in device.name) for server in servers]
    for ours, device in zip(planned.gpus, theirs, strict=True):
        assert ours.weights == pytest.approx(device.weights, rel=0.01, abs=HUNDREDTH), (context, ours)
        assert ours.kv == pytest.approx(device.kv, abs=2 * HUNDREDTH), (context, ours)
        assert ours.compute == pytest.approx(device.compute, rel=0.03, abs=2 * HUNDREDTH), (context, ours)
    assert planned.cpu.kv == pytest.approx(measured.devices[0].kv, abs=2 * RESOLUTION)
    assert planned.cpu.compute == pytest.approx(measured.devices[0].compute, rel=0.03, abs=2 * HUNDREDTH)


@pytest.mark.full
@pytest.mark.parametrize("name", ["llama", "mixtral", "deepseek-v3", "gemma4", "qwen3moe"])
def test_each_of_two_devices_takes_what_the_plan_says(name: str, servers: list[str], tmp_path: Path) -> None:
    assert os.environ["GGML_BACKEND_PATH"]
    path = to_gguf(write_checkpoint(name, tmp_path / name), "f32", tmp_path)
    shape, tensors = read_model(path)
    every = shape.n_layer + 1
    moved = shape.n_layer // 2 if shape.has_experts else 0
    splits = [(1, every - 1), (every - 1, 1), (every // 2, every - every // 2), (1, every - 2)]
    for split in splits:
        for kv_on_gpu, cpu_moe in ((True, 0), (True, moved), (False, 0)):
            context = Context(
                gpu_layers=sum(split), split=split, op_offload=False, cpu_moe=cpu_moe, kv_on_gpu=kv_on_gpu
            )
            compare(plan_memory(shape, tensors, context, has_gpu=True), path, servers, 4096)


@pytest.mark.parametrize("rooms", [(8, 12), (12, 8), (4, 24), (10, 10, 10)])
def test_each_gpu_has_room_for_its_layers_and_none_is_left_empty(
    rooms: tuple[int, ...], mixtral: Source, offer: Offer
) -> None:
    vrams = tuple(room * GB for room in rooms)
    budget = Budget(64 * GB, sum(vrams), vrams=vrams)
    fit = fit_experts(mixtral.shape, offer, Context(), budget) or fit_offer(mixtral.shape, offer, Context(), budget)
    assert fit.fits and len(fit.memory.gpus) == len(rooms)
    assert sum(fit.memory.context.split) == fit.gpu_layers == 33
    shares = [gpu.total / room for gpu, room in zip(fit.memory.gpus, vrams, strict=True)]
    # as even as whole layers of about 0.85 GB allow
    assert max(shares) <= 1 and max(shares) - min(shares) < 2 * 0.9 * GB / min(vrams)
    if fit.cpu_moe:
        # no split of the layers would take the experts of one more layer
        fewer = replace(fit.memory.context, cpu_moe=fit.cpu_moe - 1)
        for first in range(34) if len(rooms) == 2 else ():
            tried = plan_memory(mixtral.shape, offer.tensors, replace(fewer, split=(first, 33 - first)), has_gpu=True)
            assert budget.missing_on_gpus(tried) > 0


def test_layers_follow_the_order_of_the_devices_and_the_output_is_on_the_last(mixtral: Source) -> None:
    devices = layer_devices(mixtral.shape, Context(gpu_layers=30, split=(10, 20)))
    assert devices == ["CPU"] * 3 + ["GPU0"] * 10 + ["GPU1"] * 20
    # counts are proportions to llama.cpp
    assert layer_devices(mixtral.shape, Context(gpu_layers=30, split=(1, 2))) == devices


def test_an_even_split_is_the_best_of_all_splits() -> None:
    sizes, rooms, used = [5, 5, 5, 5, 5, 9], [20, 30], [2, 2]

    def fullest(counts: tuple[int, ...]) -> float:
        ends = (counts[0], counts[0] + counts[1])
        parts = [sum(sizes[: ends[0]]), sum(sizes[ends[0] : ends[1]])]
        return max((part + fixed) / room for part, fixed, room in zip(parts, used, rooms, strict=True))

    counts = even_split(sizes, rooms, used)
    assert sum(counts) == len(sizes)
    assert fullest(counts) == pytest.approx(min(fullest((n, len(sizes) - n)) for n in range(len(sizes) + 1)))
