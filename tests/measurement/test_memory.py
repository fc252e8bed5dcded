import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gguf
import pytest

from quantkit.errors import CheckpointError, QuantkitError, UsageError
from quantkit.gguf.reader import read_header
from quantkit.measurement.load_options import LoadOptions
from quantkit.measurement.memory import (
    RESOLUTION,
    LoadedMemory,
    all_layers,
    distinct_layers,
    gpu_devices,
    loaded_memory,
    measure_memory,
)
from quantkit.measurement.nvml import DriverMemory
from tests.helpers.kills import descendants
from tests.helpers.tiny import tiny_llama
from tests.measurement.tiny_gguf import write_tiny_gguf

LOG = 0.51 * RESOLUTION


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llama(tmp_path_factory.mktemp("model"), dtype="f32", variant="mistral")
    return write_tiny_gguf(folder, folder / "tiny.gguf")


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> LoadedMemory:
    return loaded_memory(tiny, LoadOptions(gpu_layers=0), n_ctx=1024)


def kv_bytes(model: Path, n_ctx: int, value: int) -> int:
    fields = gguf.GGUFReader(model).fields
    layers, heads, kv_heads, width = (
        int(fields[f"llama.{key}"].contents())
        for key in ("block_count", "attention.head_count", "attention.head_count_kv", "embedding_length")
    )
    return 2 * layers * kv_heads * (width // heads) * n_ctx * value


def test_the_weights_are_the_files_tensors(tiny: Path, loaded: LoadedMemory) -> None:
    tensors = gguf.GGUFReader(tiny).tensors
    end = max(tensor.data_offset + tensor.n_bytes for tensor in tensors)
    (cpu,) = loaded.devices
    assert cpu.name == "CPU"
    assert cpu.weights == pytest.approx(end - min(tensor.data_offset for tensor in tensors), abs=LOG)


@pytest.mark.parametrize(("kv_type", "value"), [("f16", 2), ("f32", 4)])
def test_the_kv_cache_is_what_its_shape_says(kv_type: str, value: int, tiny: Path) -> None:
    memory = loaded_memory(tiny, LoadOptions(gpu_layers=0, kv_type=kv_type), n_ctx=2048)
    assert memory.n_ctx == 2048
    assert memory.devices[0].kv == pytest.approx(kv_bytes(tiny, 2048, value), abs=LOG)


def test_the_scratch_grows_with_the_batch_and_without_flash_attention(tiny: Path, loaded: LoadedMemory) -> None:
    narrow = loaded_memory(tiny, LoadOptions(gpu_layers=0, n_ubatch=64), n_ctx=1024)
    plain = loaded_memory(tiny, LoadOptions(gpu_layers=0, flash_attn=False), n_ctx=1024)
    assert 0 < narrow.devices[0].compute < loaded.devices[0].compute < plain.devices[0].compute


def test_the_process_grows_by_what_the_cache_takes(tiny: Path, loaded: LoadedMemory) -> None:
    large = loaded_memory(tiny, LoadOptions(gpu_layers=0), n_ctx=1 << 17)
    kv = large.devices[0].kv - loaded.devices[0].kv
    assert kv > 100 << 20
    assert large.peak_rss is not None and loaded.peak_rss is not None and large.peak_pss is not None
    assert kv <= large.peak_rss - loaded.peak_rss < kv * 1.3
    assert kv < large.peak_pss <= large.peak_rss
    assert large.rss_before is not None and large.rss_before < 150 << 20


def test_a_row_of_the_report_has_every_part(loaded: LoadedMemory) -> None:
    row = loaded.document()
    assert (row["gpu_layers"], row["of_layers"], row["n_ctx"]) == (0, 3, 1024)
    (device,) = row["devices"]
    assert set(device) == {"name", "weights", "kv", "compute", "other"} and "driver" not in row
    assert sum(buffer.bytes for buffer in loaded.buffers) == loaded.devices[0].total


def test_without_a_device_only_the_row_without_offloading_is_there_and_a_note_says_so(tiny: Path) -> None:
    if gpu_devices(tiny):
        pytest.skip("there is a GPU")
    rows, notes = measure_memory(tiny, n_ctx=256)
    assert [row.gpu_layers for row in rows] == [0]
    assert len(notes) == 1 and "the memory with 3 layers offloaded is not measured" in notes[0]


def test_layers_beyond_the_models_are_all_of_them_and_none_comes_twice(tiny: Path) -> None:
    assert all_layers(read_header(tiny)) == 3
    assert distinct_layers((0, 8, 16, None), 31) == [0, 8, 16, 31]
    assert distinct_layers((0, 8, 16, None, 0), 3) == [0, 3]


def test_repacked_weights_are_counted_beside_the_mapped_file(tiny: Path, tmp_path: Path) -> None:
    path, reader = tmp_path / "q4_0.gguf", gguf.GGUFReader(tiny)
    matrices = [tensor for tensor in reader.tensors if tensor.name.startswith("blk.") and len(tensor.shape) == 2]
    writer = gguf.GGUFWriter(path, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(key, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        if tensor in matrices:
            data = gguf.quants.quantize(tensor.data, gguf.GGMLQuantizationType.Q4_0)
            writer.add_tensor(tensor.name, data, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
        else:
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    memory = loaded_memory(path, LoadOptions(gpu_layers=0), n_ctx=256)
    packed = sum(tensor.n_elements * 18 // 32 for tensor in matrices)
    repacked = [buffer.bytes for buffer in memory.buffers if buffer.name == "CPU_REPACK"]
    if not repacked:
        pytest.skip("llama.cpp has no repacked kernels for this CPU")
    assert repacked == [pytest.approx(packed, abs=LOG)]
    output = sum(buffer.bytes for buffer in memory.buffers if buffer.name == "CPU" and buffer.holds == "other")
    assert memory.devices[0].other == repacked[0] + output


def test_what_cannot_be_loaded_is_one_sentence_and_leaves_no_process(tiny: Path, tmp_path: Path) -> None:
    before = descendants()
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(tiny.read_bytes().replace(b"blk.1.attn_q.weight", b"blk.1.attn_Q.weight"))
    with pytest.raises(
        QuantkitError, match=r"bad\.gguf: llama\.cpp could not load the file: .*blk\.1\.attn_q"
    ) as caught:
        loaded_memory(bad, LoadOptions(gpu_layers=0))
    assert "\n" not in str(caught.value)
    bad.write_bytes(tiny.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="not a sound GGUF file"):
        loaded_memory(bad, LoadOptions(gpu_layers=0))
    with pytest.raises(UsageError, match="f17"):
        loaded_memory(tiny, LoadOptions(gpu_layers=0, kv_type="f17"))
    assert descendants() == before


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [("localhost", "write it as HOST:PORT"), ("127.0.0.1:9", "could not reach the RPC server|has no RPC backend")],
)
def test_an_rpc_server_that_is_not_there_is_one_sentence(endpoint: str, reason: str, tiny: Path) -> None:
    with pytest.raises(QuantkitError, match=f"{reason}|has no RPC backend") as caught:
        gpu_devices(tiny, rpc=[endpoint])
    assert "\n" not in str(caught.value)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Stands in for a driver of two GPUs: nothing else here can say what one says."""
    module = ModuleType("pynvml")
    module.used = [100, 200]
    module.processes = [[], []]
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetCount = lambda: 2
    module.nvmlDeviceGetHandleByIndex = lambda i: i
    module.nvmlDeviceGetPciInfo = lambda i: SimpleNamespace(busId=(b"00000000:C1:00.0", "00000001:1B:00.0")[i])
    module.nvmlDeviceGetMemoryInfo = lambda i: SimpleNamespace(used=module.used[i])
    module.nvmlDeviceGetComputeRunningProcesses = lambda i: module.processes[i]
    monkeypatch.setitem(sys.modules, "pynvml", module)
    yield module


def test_the_drivers_figure_is_the_processs_or_else_the_difference(nvml: ModuleType) -> None:
    driver = DriverMemory()
    nvml.used = [1100, 200]
    assert [(f.name, f.bytes, f.method) for f in driver.of(7)] == [("GPU 0", 1000, "difference")]
    nvml.processes = [[SimpleNamespace(pid=7, usedGpuMemory=900), SimpleNamespace(pid=8, usedGpuMemory=50)], []]
    assert [(f.name, f.bytes, f.method) for f in driver.of(7)] == [("GPU 0", 900, "process")]


def test_a_gpu_has_the_name_that_llama_cpp_gives_it_by_its_pci_bus(nvml: ModuleType) -> None:
    """CUDA numbers the fastest GPU first, the driver the first one on the bus."""
    driver = DriverMemory()
    nvml.used = [1100, 300]
    assert [f.name for f in driver.of(7, {"CUDA0": "0001:1b:00.0", "CUDA1": "0000:c1:00.0"})] == ["CUDA1", "CUDA0"]
    assert [f.name for f in driver.of(7, {"CUDA0": "0001:1b:00.0", "Vulkan0": None})] == ["GPU 0", "CUDA0"]


def test_without_a_driver_there_is_no_figure(nvml: ModuleType) -> None:
    def missing() -> None:
        raise RuntimeError("NVML Shared Library Not Found")

    nvml.nvmlInit = missing
    assert DriverMemory().of(7) == ()
