"""Placements on a Vulkan device: Mesa's lavapipe, which is a GPU to llama.cpp and needs none."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantkit.measurement.load_options import LoadOptions
from quantkit.measurement.memory import DeviceMemory, gpu_devices, loaded_memory
from quantkit.planning.context import Context
from quantkit.planning.memory import plan_memory
from tests.helpers.command import quantkit_process
from tests.helpers.real import smollm2_or_skip
from tests.helpers.vulkan import vulkan_backend
from tests.planning.models import SHAPES, read_model, write_model

pytestmark = pytest.mark.full

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module", autouse=True)
def backend() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GGML_BACKEND_PATH", str(vulkan_backend()))
        # llama.cpp takes a Vulkan device on a CPU only if its number is given
        patch.setenv("GGML_VK_VISIBLE_DEVICES", "0")
        yield


@pytest.fixture(scope="module")
def smollm2_gguf(backend: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("q4_0")
    assert quantkit_process("gguf", smollm2_or_skip(), "-t", "q4_0", "--no-logits", "-o", folder).code == 0
    (path,) = folder.rglob("*.gguf")
    if not gpu_devices(path):
        pytest.skip("there is no Vulkan device; install mesa-vulkan-drivers")
    return path


def sizes(device: DeviceMemory) -> tuple[int, int, int]:
    return device.weights, device.kv, device.compute


def compare(path: Path, n_ctx: int, layers: int, *, cpu_moe: int = 0, kv_on_gpu: bool = True) -> None:
    shape, tensors = read_model(path)
    options = LoadOptions(gpu_layers=layers, cpu_moe=cpu_moe, kv_on_gpu=kv_on_gpu)
    cpu, vulkan = loaded_memory(path, options, n_ctx=n_ctx).devices
    context = Context(n_ctx, gpu_layers=layers, cpu_moe=cpu_moe, kv_on_gpu=kv_on_gpu)
    planned = plan_memory(shape, tensors, context, has_gpu=True)
    assert planned.gpu is not None and vulkan.name.startswith("Vulkan")
    gpu = planned.gpu
    # Vulkan computes some operations together, and needs less than the plan's graph
    assert gpu.weights + gpu.kv + gpu.compute == pytest.approx(sum(sizes(vulkan)), rel=0.03), (context, gpu, vulkan)
    assert planned.cpu.kv + planned.cpu.compute == pytest.approx(cpu.kv + cpu.compute, rel=0.03), (context, cpu)


def test_memory_by_layers_and_without_the_cache_is_what_the_plan_says(smollm2_gguf: Path) -> None:
    for layers in (0, 15, 31):
        compare(smollm2_gguf, 1024, layers)
    compare(smollm2_gguf, 1024, 31, kv_on_gpu=False)


def test_memory_with_experts_on_the_cpu_is_what_the_plan_says(smollm2_gguf: Path, tmp_path: Path) -> None:
    mixture = write_model(tmp_path / "mixture.gguf", SHAPES["experts"])
    layers = SHAPES["experts"]["n_layer"]
    for cpu_moe in (0, layers // 2, layers):
        compare(mixture, 1024, layers + 1, cpu_moe=cpu_moe)


def test_measure_has_a_row_for_each_placement_on_the_device(smollm2_gguf: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris. " * 40)
    words = ("--text", text, "--ctx", "64", "--chunks", "1", "--gpu-layers", "0,all", "--memory-ctx", "512")
    done = quantkit_process("measure", smollm2_gguf, *words, "-o", tmp_path / "report", "--format", "json")
    assert done.code == 0, done.stderr
    rows = json.loads(done.stdout)["models"][0]["memory"]
    assert [row["gpu_layers"] for row in rows] == [0, 31]
    assert [[device["name"] for device in row["devices"]] for row in rows] == [["CPU", "Vulkan0"]] * 2
    assert rows[1]["devices"][1]["weights"] > rows[1]["devices"][0]["weights"]


def test_an_answer_on_the_device_is_that_of_the_cpu(smollm2_gguf: Path) -> None:
    words = ("-p", QUESTION, "--temperature", "0", "-n", "8", "--ctx", "256", "--format", "json")
    answers = [
        json.loads(quantkit_process("run", smollm2_gguf, *words, "--gpu-layers", layers).stdout)["answer"]
        for layers in ("0", "all")
    ]
    assert answers[0] == answers[1] and "Paris" in answers[0]
