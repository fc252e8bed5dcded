"""The speed of devices from timed probes: the arithmetic against figures computed by hand, and probes in llama.cpp."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from quantkit.errors import CheckpointError
from quantkit.gguf.reader import read_header
from quantkit.llamacpp.session import LlamaSession
from quantkit.measurement.device_speed import (
    Timed,
    bandwidth,
    thin_speed,
    with_transfers,
    with_transfers_to_cpu,
)
from quantkit.measurement.load_options import LoadOptions
from quantkit.measurement.memory import loaded_memory
from quantkit.measurement.probe_weights import model_weights
from quantkit.measurement.probes import HEAD, Probe, ProbeSizes, main_types, wide_sizes, write_probe
from quantkit.planning.context import Context
from quantkit.planning.speed import DeviceSpeed, Work, token_seconds, token_work, tokens_per_second

T = GGMLQuantizationType
INFINITE = float("inf")
US = 1e-6


def test_seconds_of_a_token_are_bytes_operations_and_transfers_of_each_device() -> None:
    work = {"CPU": Work({"Q4_0": 60_000_000, "F32": 1_000}, 100, 1), "GPU": Work({"Q8_0": 20_000_000}, 50, 3, 700)}
    speeds = {
        "CPU": DeviceSpeed(1e9, {"Q4_0": 10e9}, operation=5 * US, transfer=20 * US, token=100 * US),
        "GPU": DeviceSpeed(40e9, {}, operation=2 * US, transfer=30 * US, description=0.5 * US),
    }
    # 6 ms + 1 us + 500 us + 20 us + 100 us, and 500 us + 100 us + 90 us + 350 us
    by_hand = 6000 * US + 1 * US + 500 * US + 20 * US + 100 * US + 500 * US + 100 * US + 90 * US + 350 * US
    assert token_seconds(work, speeds) == pytest.approx(by_hand)
    assert tokens_per_second(work, speeds) == pytest.approx(1 / by_hand)
    # a device without a part in the token costs nothing, not even its seconds per token
    assert DeviceSpeed(1e9, token=1.0).seconds(Work({"F16": 0})) == 0


def test_depth_gives_the_seconds_of_an_operation_and_of_a_token() -> None:
    few, many = ({"CPU": Work({}, count)} for count in (80, 960))
    # 80 * 3 us + 60 us, and 960 * 3 us + 60 us
    speed = thin_speed("CPU", Timed(few, 300 * US), Timed(many, 2940 * US), {})
    assert speed.operation == pytest.approx(3 * US) and speed.token == pytest.approx(60 * US)


def test_mixtures_of_two_depths_give_the_seconds_of_a_transfer_and_of_a_description() -> None:
    cpu = DeviceSpeed(INFINITE, operation=3 * US, token=60 * US)
    parts = ((1, 0, 80, 1, 0), (1, 0, 960, 1, 0), (33, 8, 170, 9, 700), (129, 32, 680, 33, 11_000))
    few, many, shallow, deep = (
        {"CPU": Work({}, on_cpu, to_cpu), "GPU": Work({}, on_gpu, to_gpu, described)}
        for on_cpu, to_cpu, on_gpu, to_gpu, described in parts
    )
    # an operation of the GPU 2 us, a transfer 40 us, a description 0.5 us, a token 100 us; the CPU's part as above
    seconds = [
        (60 + 3 * on_cpu + 2 * on_gpu + 40 * (to_cpu + to_gpu) + 0.5 * described + 100) * US
        for on_cpu, to_cpu, on_gpu, to_gpu, described in parts
    ]
    others = {"CPU": cpu}
    thin = thin_speed("GPU", Timed(few, seconds[0]), Timed(many, seconds[1]), others)
    mixtures = Timed(shallow, seconds[2]), Timed(deep, seconds[3])
    speed = with_transfers("GPU", thin, Timed(few, seconds[0]), mixtures, others)
    assert speed.operation == pytest.approx(2 * US)
    assert speed.transfer == pytest.approx(40 * US) and speed.token == pytest.approx(100 * US)
    assert speed.description == pytest.approx(0.5 * US)
    assert with_transfers_to_cpu({"CPU": cpu, "GPU": speed})["CPU"].transfer == pytest.approx(40 * US)


def test_a_device_that_needs_no_descriptions_has_transfers_alone() -> None:
    cpu = DeviceSpeed(INFINITE)
    few, shallow, deep = (
        {"CPU": Work(), "GPU": Work({}, 0, count, sent)} for count, sent in ((1, 0), (9, 50), (33, 500))
    )
    # a little faster than 40 us a transfer in the deep one: a description would take less than no time
    mixtures = Timed(shallow, 9 * 40 * US), Timed(deep, 33 * 39 * US)
    speed = with_transfers("GPU", DeviceSpeed(1e9, token=40 * US), Timed(few, 40 * US), mixtures, {"CPU": cpu})
    assert speed.description == 0 and speed.transfer == pytest.approx(39.2 * US, rel=0.01)


def test_bandwidth_is_what_is_left_of_the_seconds() -> None:
    speeds = {"CPU": DeviceSpeed(INFINITE, operation=3 * US, token=60 * US)}
    wide = {"CPU": Work({"Q4_0": 100_000_000}, 480)}
    assert bandwidth("CPU", Timed(wide, 10_000 * US + 1500 * US), speeds) == pytest.approx(10e9)
    # a noisy probe never gives an endless bandwidth
    assert bandwidth("CPU", Timed(wide, 1500 * US), speeds) == pytest.approx(100_000_000 / (0.2 * 1500 * US))


@pytest.mark.parametrize("experts", [0, 2])
def test_a_probe_is_a_model_to_llama_cpp_and_the_plan_counts_what_it_holds(experts: int, tmp_path: Path) -> None:
    probe = write_probe(tmp_path, "probe", ProbeSizes(4, 2 * HEAD, 256, experts), T.Q8_0)
    with LlamaSession(probe.path) as session:
        assert session.ask({"task": "bench_open", **LoadOptions(n_threads=1).request(probe.path)}) == 0
        session.ask({"task": "bench_begin", "prompt": False, "tokens": 4})
        assert session.ask({"task": "bench_run"}) > 0
    weights = sum(slot.nbytes for slot in read_header(probe.path).tensors)
    loaded = loaded_memory(probe.path, LoadOptions(n_threads=1), n_ctx=256)
    assert loaded.devices[0].weights + loaded.devices[0].other >= 0.9 * weights
    work = token_work(probe.shape, probe.tensors, Context(4), 0, has_gpu=False)["CPU"]
    one_expert = sum(tensor.nbytes for tensor in probe.tensors if "_exps" in tensor.name) // 2
    assert work.bytes == pytest.approx(weights - one_expert - 64 * 2 * HEAD * 4, abs=2 * HEAD * 4)


def test_probes_have_the_weights_of_the_model_and_no_equal_scales(tmp_path: Path) -> None:
    sizes = ProbeSizes(2, 2 * HEAD, 4 * HEAD)
    model = write_probe(tmp_path, "model", sizes, T.Q4_0)
    scales = scales_of(model.path)
    # ggml looks scales up in a table; zeros would all be one entry, and read faster than weights
    assert len(scales) > 100
    copy = write_probe(tmp_path, "copy", replace(sizes, layers=5), T.Q4_0, model_weights(model.path, T.Q4_0))
    assert scales_of(copy.path) == scales
    with pytest.raises(CheckpointError, match="no tensor of type q6_k"):
        model_weights(model.path, T.Q6_K)


def scales_of(path: Path) -> set[bytes]:
    data = path.read_bytes()
    return {
        data[start : start + 2]
        for slot in read_header(path).tensors
        if slot.type == T.Q4_0
        for start in range(slot.offset, slot.offset + slot.nbytes, 18)
    }


def counted(probe: Probe, context: Context) -> dict[str, tuple[int, int]]:
    work = token_work(probe.shape, probe.tensors, context, 0, operations=True)
    return {name: (part.operations, part.transfers) for name, part in work.items()}


def test_operations_and_transfers_follow_the_layers(tmp_path: Path) -> None:
    probe = write_probe(tmp_path, "probe", ProbeSizes(4, HEAD, HEAD), T.Q8_0)
    here, half, there = (counted(probe, Context(4, gpu_layers=layers)) for layers in (0, 3, 5))
    total = here["CPU"][0]
    assert here["GPU"] == (0, 0)
    assert there["CPU"] == (1, 0) and there["GPU"][0] == total - 1
    assert half["CPU"][0] + half["GPU"][0] == total and half["CPU"][0] > total // 3
    assert there["GPU"][1] == half["GPU"][1] == 1 and half["CPU"][1] == 0


def test_experts_on_the_cpu_cost_transfers_both_ways_in_each_layer(tmp_path: Path) -> None:
    probe = write_probe(tmp_path, "probe", ProbeSizes(4, HEAD, HEAD, experts=2), T.Q8_0)
    there, moved = (counted(probe, Context(4, gpu_layers=5, cpu_moe=count)) for count in (0, 4))
    assert there["CPU"][1] == 0
    assert moved["CPU"][1] == 4 and moved["GPU"][1] == there["GPU"][1] + 4 == 5
    assert sum(count for count, _ in there.values()) == sum(count for count, _ in moved.values())


def test_a_device_with_a_split_in_each_layer_gets_the_descriptions_of_all_earlier_layers(tmp_path: Path) -> None:
    def described(layers: int, cpu_moe: int) -> int:
        probe = write_probe(tmp_path, "probe", ProbeSizes(layers, HEAD, HEAD, experts=2), T.Q8_0)
        context = Context(4, gpu_layers=layers + 1, cpu_moe=cpu_moe)
        return token_work(probe.shape, probe.tensors, context, 0, operations=True)["GPU"].described

    # one split stays on the device
    assert described(4, 0) == 0
    # the sum 1 + 2 + ... + n grows by the same number of tensors with every two layers
    counts = [described(layers, layers) for layers in (4, 6, 8, 10)]
    steps = [after - before for before, after in pairwise(counts)]
    assert steps[0] > 0 and steps[2] - steps[1] == steps[1] - steps[0] > 0


def test_a_wide_probe_is_as_wide_as_the_model_and_larger_than_a_cache(tmp_path: Path) -> None:
    model = write_probe(tmp_path, "model", ProbeSizes(2, 9 * HEAD, 1536), T.Q8_0)
    sizes = wide_sizes(model.shape, T.Q4_0, 16 << 20)
    assert (sizes.n_embd, sizes.n_ff) == (576, 1536)
    wide = write_probe(tmp_path, "wide", sizes, T.Q4_0)
    matrices = sum(tensor.nbytes for tensor in wide.tensors if tensor.type == T.Q4_0)
    assert 16 << 20 <= matrices < 1.2 * (16 << 20)
    # the rows of a super-block type are whole super-blocks
    assert wide_sizes(model.shape, T.Q4_K, 1).n_embd == 768


def test_types_of_few_bytes_are_not_probed() -> None:
    moved = [{"Q4_0": 900, "F32": 5, "KV cache": 4000}, {"Q8_0": 95}]
    assert main_types(moved) == [T.Q4_0, T.Q8_0]
