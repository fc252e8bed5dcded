"""Partial offload without a GPU: a server of llama.cpp's RPC backend on this machine is a device like any other."""

import re
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from quantkit.errors import QuantkitError
from quantkit.llamacpp.session import LlamaSession
from quantkit.measurement.load_options import LoadOptions
from quantkit.measurement.memory import RESOLUTION, LoadedMemory, gpu_devices, loaded_memory, measure_memory
from quantkit.measurement.probes import HEAD, ProbeSizes, write_probe
from quantkit.measurement.speed import SpeedTests, measure_speed
from quantkit.planning.context import Context
from quantkit.planning.speed import token_work
from tests.helpers.command import quantkit
from tests.helpers.real import smollm2 as smollm2
from tests.helpers.rpc_server import rpc
from tests.helpers.tiny import tiny_llama
from tests.measurement.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.full

LAYERS, N_CTX = 30, 4096
KV_OF_A_LAYER = 2 * 3 * 64 * N_CTX * 2
LOG = 0.51 * RESOLUTION


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    made = rpc()
    with pytest.MonkeyPatch.context() as patch, made.serving() as endpoint:
        patch.setenv("GGML_BACKEND_PATH", str(made.backend))
        yield endpoint


@pytest.fixture(scope="module")
def q4_0(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("q4_0")
    done = quantkit("gguf", smollm2, "-t", "q4_0", "-o", folder)
    assert done.code == 0, done.stderr
    (path,) = folder.rglob("*Q4_0.gguf")
    return path


@pytest.fixture(scope="module")
def rows(q4_0: Path, server: str) -> list[LoadedMemory]:
    loaded, notes = measure_memory(q4_0, options=LoadOptions(rpc=[server]), n_ctx=N_CTX)
    assert notes == []
    return loaded


def tensors_by_layer(path: Path) -> dict[int | None, dict[str, tuple[int, int]]]:
    """Start and end in the file of each tensor, by layer."""
    tensors: dict[int | None, dict[str, tuple[int, int]]] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        layer = int(tensor.name.split(".")[1]) if tensor.name.startswith("blk.") else None
        tensors.setdefault(layer, {})[tensor.name] = (tensor.data_offset, tensor.data_offset + tensor.n_bytes)
    return tensors


def size(spans: dict[str, tuple[int, int]]) -> int:
    return sum(end - start for start, end in spans.values())


def test_the_server_is_a_device(q4_0: Path, server: str) -> None:
    (device,) = gpu_devices(q4_0, rpc=[server])
    assert device.name == "RPC0" and device.description == server and device.memory > 1 << 30


def test_each_number_of_layers_is_a_row_and_all_are_the_models_layers_and_the_output(rows: list[LoadedMemory]) -> None:
    assert [(row.gpu_layers, row.of_layers, row.n_ctx) for row in rows] == [
        (n, LAYERS + 1, N_CTX) for n in (0, 8, 16, LAYERS + 1)
    ]


def test_the_device_holds_the_last_layers_and_the_output(q4_0: Path, rows: list[LoadedMemory], server: str) -> None:
    layers = tensors_by_layer(q4_0)
    for row in rows[1:]:
        cpu, device = row.devices
        assert device.name == f"RPC0[{server}]"
        offloaded = row.gpu_layers - 1
        # the embedding is tied: the device needs it as the output matrix, and the CPU to look tokens up
        there = size(layers[None]) + sum(size(layers[n]) for n in range(LAYERS - offloaded, LAYERS))
        assert device.weights == pytest.approx(there, abs=LOG)
        # of the CPU's tensors those that are repacked are not used from the file any more
        repacks = any(buffer.name == "CPU_REPACK" for buffer in row.buffers)
        here = [layers[None]["token_embd.weight"]]
        for n in range(LAYERS - offloaded):
            here += [span for name, span in layers[n].items() if "norm" in name or not repacks]
        mapped = max(end for _, end in here) - min(start for start, _ in here)
        assert cpu.weights == pytest.approx(mapped, abs=LOG)
        assert device.other == 0


def test_the_cache_is_split_as_the_layers_are(rows: list[LoadedMemory]) -> None:
    for row in rows:
        offloaded = max(row.gpu_layers - 1, 0)
        cache = {device.name[:3]: device.kv for device in row.devices}
        assert cache["CPU"] == pytest.approx((LAYERS - offloaded) * KV_OF_A_LAYER, abs=LOG)
        assert cache.get("RPC", 0) == pytest.approx(offloaded * KV_OF_A_LAYER, abs=LOG)


def test_each_side_has_its_scratch_and_repacks_only_its_own_layers(rows: list[LoadedMemory]) -> None:
    assert len(rows[0].devices) == 1 and rows[0].devices[0].compute > 1 << 20
    assert all(device.compute > 1 << 20 for row in rows[1:] for device in row.devices)
    others = [row.devices[0].other for row in rows]
    assert others == sorted(others, reverse=True)


def test_the_process_shrinks_by_what_it_no_longer_holds(rows: list[LoadedMemory]) -> None:
    rss = [row.peak_rss for row in rows]
    assert all(size is not None for size in rss) and rss == sorted(rss, reverse=True)  # type: ignore[type-var]
    assert rss[0] - rss[2] > 0.9 * (rows[0].devices[0].kv - rows[2].devices[0].kv)  # type: ignore[operator]


def test_speed_is_measured_with_layers_offloaded(q4_0: Path, server: str) -> None:
    speeds = measure_speed(q4_0, LoadOptions(gpu_layers=16, rpc=[server]), SpeedTests(32, 4, 2))
    assert speeds.gpu_layers == 16 and speeds.prompt.value > speeds.generation.value > 0


@pytest.mark.parametrize("cpu_moe", [0, 3, 6])
def test_the_plan_counts_the_splits_and_the_descriptions_that_the_server_receives(
    cpu_moe: int, tmp_path: Path, server: str
) -> None:
    probe = write_probe(tmp_path, "experts", ProbeSizes(6, HEAD, HEAD, experts=2), gguf.GGMLQuantizationType.Q8_0)
    log, tokens = tmp_path / "rpc.log", 4
    with rpc().serving(log=log) as logging, LlamaSession(probe.path) as session:
        options = LoadOptions(gpu_layers=7, cpu_moe=cpu_moe, rpc=[logging])
        session.ask({"task": "bench_open", **options.request(probe.path)})
        session.ask({"task": "bench_begin", "prompt": False, "tokens": tokens})
        session.ask({"task": "bench_run"})
        before = log.stat().st_size
        session.ask({"task": "bench_run"})
        account = log.read_text()[before:]
    described = [int(count) for count in re.findall(r"n_tensors: (\d+)", account)]
    work = token_work(probe.shape, probe.tensors, Context(tokens, gpu_layers=7, cpu_moe=cpu_moe), operations=True)
    gpu = work["GPU"]
    assert len(described) + account.count("[graph_recompute]") == tokens * gpu.transfers
    assert sum(described) == pytest.approx(tokens * gpu.described, rel=0.02)
    assert (gpu.described > 0) == (cpu_moe > 0)


def test_two_servers_share_the_layers_and_are_told_apart(tmp_path: Path, server: str) -> None:
    folder = tiny_llama(tmp_path, dtype="f32", variant="mistral")
    tiny = write_tiny_gguf(folder, tmp_path / "tiny.gguf")
    with rpc().serving() as second:
        memory = loaded_memory(tiny, LoadOptions(rpc=[server, second]), n_ctx=256)
    names = {device.name: device.weights for device in memory.devices}
    assert set(names) == {"CPU", f"RPC0[{server}]", f"RPC0[{second}]"}
    assert all(np.array(list(names.values())) > 0)


def test_a_server_that_is_not_there_is_one_sentence(q4_0: Path, server: str) -> None:
    with pytest.raises(QuantkitError, match=r"could not reach the RPC server 127\.0\.0\.1:9 \(") as caught:
        loaded_memory(q4_0, LoadOptions(rpc=["127.0.0.1:9"]))
    assert "\n" not in str(caught.value)
