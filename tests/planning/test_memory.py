"""Planned memory against llama.cpp's own account of it: loaded for real, and sized without loading."""

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from quantkit.machine import cpu_features
from quantkit.planning.context import Context
from quantkit.planning.memory import DeviceMemory, plan_memory
from quantkit.planning.planned_tensors import PlannedTensor
from tests.families.test_large_shapes import MODELS, described
from tests.helpers.command import quantkit
from tests.helpers.real import smollm2 as smollm2
from tests.planning.llama_memory import Job, Measured, measure
from tests.planning.models import LARGE, SHAPES, read_model, write_described, write_model, write_sliding

CONTEXTS = (512, 4096, 32768)
SETTINGS = [("f16", None), ("f16", False), ("q8_0", None), ("q4_0", None)]
FLASH = {None: -1, True: 1, False: 0}


def jobs(path: Path, *, no_alloc: bool = False, settings: list[tuple[str, bool | None]] = SETTINGS) -> list[Job]:
    return [
        Job(str(path), n_ctx=n_ctx, kv=kv, flash=FLASH[flash], no_alloc=no_alloc)
        for n_ctx in CONTEXTS
        for kv, flash in settings
    ]


def planned(path: Path, job: Job, **more: object) -> DeviceMemory:
    shape, tensors = read_model(path)
    flash = {-1: None, 0: False, 1: True}[job.flash]
    context = Context(n_ctx=job.n_ctx, kv_type=job.kv, n_batch=job.n_batch, n_ubatch=job.n_ubatch, flash=flash)
    return plan_memory(shape, tensors, context).cpu


def assert_within(path: Path, job: Job, measured: Measured, share: float = 0.02) -> None:
    memory = planned(path, job)
    theirs = measured.weights, measured.kv, measured.compute, measured.output
    message = f"{path.name} {job}: planned {memory}, llama.cpp {theirs}"
    # the log is in hundredths of a MiB
    assert memory.kv == pytest.approx(measured.kv, abs=11000), message
    assert memory.weights == pytest.approx(measured.weights, rel=0.001, abs=11000), message
    assert memory.compute == pytest.approx(measured.compute, rel=share, abs=11000), message
    assert memory.buffers == pytest.approx(measured.total, rel=share / 2), message


@pytest.fixture(scope="module")
def converted(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("converted")
    words = ["gguf", str(smollm2), "-t", "q4_0", "-t", "q8_0", "-o", str(folder), "--no-logits"]
    done = quantkit(*words)
    assert done.code == 0, done.stderr
    return {path.stem.rsplit("-", 1)[1]: path for path in folder.rglob("*.gguf")}


def test_smollm2_takes_what_the_plan_says(converted: dict[str, Path]) -> None:
    tasks = jobs(converted["Q8_0"])
    for job, measured in zip(tasks, measure(tasks), strict=True):
        assert_within(converted["Q8_0"], job, measured)


@pytest.mark.parametrize("name", [*SHAPES, "sliding window"])
def test_loading_a_shape_takes_what_the_plan_says(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path = write_sliding(path) if name == "sliding window" else write_model(path, SHAPES[name])
    tasks = jobs(path, settings=[("f16", None), ("f16", False)])
    for job, measured in zip(tasks, measure(tasks), strict=True):
        assert_within(path, job, measured)


@pytest.mark.parametrize("name", LARGE)
def test_large_models_are_sized_as_llama_cpp_sizes_them(name: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", LARGE[name])
    tasks = jobs(path, no_alloc=True)
    for job, measured in zip(tasks, measure(tasks), strict=True):
        assert_within(path, job, measured)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_compressed_caches_and_windows_are_sized_as_llama_cpp_sizes_them(name: str, tmp_path: Path) -> None:
    config, packed, _ = MODELS[name]
    path = write_described(tmp_path / "model.gguf", *described(config, packed=packed))
    tasks = jobs(path, no_alloc=True)
    for job, measured in zip(tasks, measure(tasks), strict=True):
        assert_within(path, job, measured)


@pytest.mark.parametrize("n_ubatch", [1, 64, 2048])
def test_a_batch_of_another_size_takes_what_the_plan_says(n_ubatch: int, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", SHAPES["experts"])
    job = Job(str(path), n_ctx=4000, n_ubatch=n_ubatch, no_alloc=True)
    (measured,) = measure([job])
    assert_within(path, job, measured)


def test_what_is_rearranged_for_the_cpu_is_told(converted: dict[str, Path]) -> None:
    path = converted["Q4_0"]
    (measured,) = measure([Job(str(path), repack=True)])
    repacked = sum(
        float(line.split("=")[1].split()[0]) for line in measured.log.splitlines() if "CPU_REPACK model buffer" in line
    )
    shape, tensors = read_model(path)
    memory = plan_memory(shape, tensors, Context(n_ctx=512), cpu_features=cpu_features()).cpu
    assert memory.repacked == pytest.approx(repacked * (1 << 20), abs=11000)
    assert plan_memory(shape, tensors, Context(n_ctx=512)).cpu.repacked == 0


def test_the_gpu_takes_the_last_layers_and_the_cpu_keeps_the_embedding(tmp_path: Path) -> None:
    shape, tensors = read_model(write_model(tmp_path / "model.gguf", LARGE["8B"]))
    layer = sum(tensor.nbytes for tensor in tensors if tensor.name.startswith("blk.31."))
    head = 128256 * 4096 * 2
    kv_of_a_layer = 2 * 2 * 8 * 128 * 4096
    for n, weights, layers in ((0, 0, 0), (1, head + 4 * 4096, 0), (9, head + 4 * 4096 + 8 * layer, 8)):
        gpu = plan_memory(shape, tensors, Context(gpu_layers=n), has_gpu=True).gpu
        assert gpu is not None
        assert (gpu.weights, gpu.kv) == (weights, layers * kv_of_a_layer)
    whole = plan_memory(shape, tensors, Context(gpu_layers=33), has_gpu=True)
    assert whole.gpu is not None and whole.cpu.weights == head and whole.cpu.kv == 0
    assert whole.cpu.weights + whole.gpu.weights == sum(tensor.nbytes for tensor in tensors)


def test_experts_kept_on_the_cpu_leave_the_gpu_the_rest_of_their_layers(tmp_path: Path) -> None:
    shape, tensors = read_model(write_model(tmp_path / "model.gguf", LARGE["Mixtral"]))
    experts = 3 * 8 * 4096 * 14336 * 2
    with_them = plan_memory(shape, tensors, Context(gpu_layers=33), has_gpu=True)
    for n in (1, 32):
        without = plan_memory(shape, tensors, Context(gpu_layers=33, cpu_moe=n), has_gpu=True)
        assert with_them.gpu is not None and without.gpu is not None
        assert with_them.gpu.weights - without.gpu.weights == n * experts
        assert without.cpu.weights - with_them.cpu.weights == n * experts
        assert without.gpu.kv == with_them.gpu.kv
        # one expert tensor of a layer at a time is copied to the GPU for a prompt
        assert without.gpu.compute - with_them.gpu.compute >= experts // 3 - (200 << 20)


def test_a_matrix_of_odd_rows_is_padded_on_the_gpu() -> None:
    shape_of = {"output.weight": (10, 576), "token_embd.weight": (10, 576), "blk.0.attn_q.weight": (576, 576)}
    tensors = [PlannedTensor(name, shape, GGMLQuantizationType.Q8_0) for name, shape in shape_of.items()]
    # CUDA allocates whole rows of 512: 448 more elements after the last row, in blocks of 34 bytes for 32
    assert [tensor.gpu_nbytes - tensor.nbytes for tensor in tensors] == [448 // 32 * 34] * 3
