"""Every family's compute buffer and its splits against llama.cpp; long, since each model is converted first."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantkit.families import find_family, has_checked_plan
from quantkit.gguf.reader import read_header
from quantkit.measurement.load_options import LoadOptions
from quantkit.measurement.memory import loaded_memory
from quantkit.planning.context import Context
from quantkit.planning.devices import weight_devices
from quantkit.planning.memory import plan_memory
from quantkit.planning.shape import ModelShape
from tests.families.expected import expected, write_checkpoint
from tests.families.models import all_cases
from tests.helpers.conversions import to_gguf
from tests.helpers.rpc_server import Rpc, rpc
from tests.planning.llama_memory import Job, measure
from tests.planning.models import read_model

pytestmark = pytest.mark.full

HUNDREDTH = 0.0051 * (1 << 20)
"""Half of the log's last digit, in bytes."""


# encoders are compared in test_encoders.py
TRAITS = {name: find_family(expected(name).config).traits for name in sorted(all_cases())}
PLANNED = [name for name, traits in TRAITS.items() if traits.plannable and not traits.encoder]


def cache_lines(shape: ModelShape) -> int:
    """Rounded lines of the log about caches: DeepSeek-V4 has four caches and three states."""
    return 7 if shape.traits.compressed else 2


@pytest.mark.parametrize("name", PLANNED)
def test_the_compute_buffer_is_llama_cpps(name: str, tmp_path: Path) -> None:
    path = to_gguf(write_checkpoint(name, tmp_path / name), "f32", tmp_path)
    shape, tensors = read_model(path)
    assert has_checked_plan(shape.arch)
    jobs = [Job(str(path), n_ctx=n_ctx, flash=flash) for n_ctx, flash in ((512, -1), (2048, 0), (8192, -1))]
    for job, measured in zip(jobs, measure(jobs), strict=True):
        context = Context(n_ctx=job.n_ctx, flash=False if job.flash == 0 else None)
        memory = plan_memory(shape, tensors, context).cpu
        assert memory.compute == pytest.approx(measured.compute, rel=0.001, abs=HUNDREDTH), job
        assert memory.kv == pytest.approx(measured.kv, abs=cache_lines(shape) * HUNDREDTH), job


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    made: Rpc = rpc()
    with pytest.MonkeyPatch.context() as patch, made.serving() as endpoint:
        patch.setenv("GGML_BACKEND_PATH", str(made.backend))
        yield endpoint


@pytest.mark.parametrize(
    "name",
    [
        *("llama", "mixtral", "deepseek-v3", "bloom", "qwen2moe", "falcon-40b", "gemma4", "gemma4-experts", "lfm2"),
        *(
            "deepseek-v4-unpacked",
            "gemma3n",
            "falcon-h1",
            "mamba",
            "jamba",
            "nemotron-h",
            "nemotron-h-moe",
            "glm-5.2",
            "rwkv6",
            "rwkv7",
            "t5",
            "flan-t5",
        ),
    ],
)
def test_each_device_takes_what_the_plan_says_for_any_number_of_layers(name: str, server: str, tmp_path: Path) -> None:
    assert os.environ["GGML_BACKEND_PATH"]
    path = to_gguf(write_checkpoint(name, tmp_path / name), "f32", tmp_path)
    shape, tensors = read_model(path)
    # a T5 file has the decoder's layers before the encoder's, so others lie between the CPU's
    apart = "t5" in name
    for layers in range(1, shape.n_layer + 2):
        memory = loaded_memory(path, LoadOptions(gpu_layers=layers, rpc=[server]), n_ctx=4096)
        # an RPC server computes with its own weights only
        context = Context(gpu_layers=layers, op_offload=False)
        planned = plan_memory(shape, tensors, context, has_gpu=True)
        for ours, theirs in zip(planned.devices, memory.devices, strict=True):
            weights = _mapped(path, context) if apart and ours.name == "CPU" else ours.weights
            assert weights == pytest.approx(theirs.weights, rel=0.01, abs=HUNDREDTH), (layers, ours)
            assert ours.kv == pytest.approx(theirs.kv, abs=cache_lines(shape) * HUNDREDTH), (layers, ours)
            assert ours.compute == pytest.approx(theirs.compute, rel=0.02, abs=2 * HUNDREDTH), (layers, ours)


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe", "deepseek-v3", "gpt-oss"])
def test_each_device_takes_what_the_plan_says_with_experts_on_the_cpu(name: str, server: str, tmp_path: Path) -> None:
    path = to_gguf(write_checkpoint(name, tmp_path / name), "f32", tmp_path)
    shape, tensors = read_model(path)
    layers = shape.n_layer + 1
    for cpu_moe in (0, shape.n_layer // 2, shape.n_layer):
        memory = loaded_memory(path, LoadOptions(gpu_layers=layers, rpc=[server], cpu_moe=cpu_moe), n_ctx=4096)
        context = Context(gpu_layers=layers, cpu_moe=cpu_moe, op_offload=False)
        planned = plan_memory(shape, tensors, context, has_gpu=True)
        for ours, theirs in zip(planned.devices, memory.devices, strict=True):
            weights = _mapped(path, context) if ours.name == "CPU" else ours.weights
            assert weights == pytest.approx(theirs.weights, rel=0.01, abs=HUNDREDTH), (cpu_moe, ours)
            assert ours.kv == pytest.approx(theirs.kv, abs=2 * HUNDREDTH), (cpu_moe, ours)
            assert ours.compute == pytest.approx(theirs.compute, rel=0.03, abs=2 * HUNDREDTH), (cpu_moe, ours)


def _mapped(path: Path, context: Context) -> int:
    """Bytes that llama.cpp states as the CPU's weights: the part of the file that it maps, with what lies between."""
    where = weight_devices(*read_model(path), context)
    mapped = [slot for slot in read_header(path).tensors if "CPU" in where[slot.name]]
    return max(slot.offset + slot.nbytes for slot in mapped) - min(slot.offset for slot in mapped)
