"""The forward on torch's tensors, as `--device cuda` runs it, against itself on numpy's arrays."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from quantkit.errors import UsageError
from quantkit.families import reference_logits
from quantkit.forward.devices import find_device
from tests.families.models import TOKENS, all_cases
from tests.forward.test_architectures import NATIVE, native
from tests.helpers.command import quantkit
from tests.helpers.peer import REPOSITORY, peer_converter
from tests.helpers.tiny import tiny_llama

WORDS = (
    *("-t", "awq", "-t", "gptq", "--group-size", "32", "--samples", "8", "--seq-len", "128"),
    *("--threads", "1"),
)
PRETENDED = (
    ("convert", "-t", "awq", "-t", "gptq", "--group-size", "32"),
    ("gguf", "-t", "q4_0", "-t", "q4_1", "-t", "iq4_nl", "--solver", "feedback"),
    ("gguf", "-t", "q4_k_m", "--solver", "feedback"),
    ("gguf", "-t", "q4_0", "--quality", "best"),
    ("convert", "-t", "awq", "-t", "gptq", "--group-size", "32", "--quality", "best"),
)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_tensors_of_torch_give_the_logits_that_arrays_of_numpy_give(tmp_path: Path) -> None:
    models, out = tmp_path / "models", tmp_path / "logits.npz"
    models.mkdir()
    ours = {}
    for name in NATIVE:
        tensors, config = native(name)
        np.savez(models / f"{name}.npz", **tensors, **{"config.json": np.array(json.dumps(config))})
        ours[name] = reference_logits(tensors.__getitem__, config, TOKENS)
    script = REPOSITORY / "tests" / "forward" / "with_torch.py"
    done = run_peer(script, str(models), str(out), json.dumps(list(TOKENS)))
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(out) as results:
        assert {name.removesuffix(" held") for name in results} == set(NATIVE) <= set(all_cases())
        off = {name: np.abs(results[name] - ours[name.removesuffix(" held")]).max() for name in results}
    allowed = {name: 1e-4 * ours[name.removesuffix(" held")].std() for name in off}
    assert {name: value for name, value in off.items() if not value <= allowed[name]} == {}


def convert_with_torch(source: Path, out: Path, **request: object) -> "subprocess.CompletedProcess[str]":
    """A conversion to AWQ and GPTQ whose calibration runs on tensors of torch. `request`: see `run_with_torch`."""
    return run_with_torch("convert", str(source), "-o", str(out), *WORDS, **request)


def run_with_torch(*words: str, **request: object) -> "subprocess.CompletedProcess[str]":
    """A command whose calibration runs on tensors of torch. `request`: see calibrate_with_torch.py."""
    asked = {"words": words, "least_side": 1 << 30, **request}
    return run_peer(REPOSITORY / "tests" / "forward" / "calibrate_with_torch.py", json.dumps(asked))


def run_peer(script: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A script in the environment that has torch; what quantkit imports and it lacks comes from this one."""
    return subprocess.run(
        [str(peer_converter().python), str(script), *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "MORE_PACKAGES": str(Path(np.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


def errors_of(folder: Path) -> dict[str, float]:
    """The relative error of every linear, by folder and name."""
    return {
        f"{origin.parent.name} {name}": error
        for origin in folder.glob("*/quantkit.json")
        for output in json.loads(origin.read_text())["outputs"].values()
        for name, error in output["relative_error"].items()
    }


def integers_of(folder: Path) -> dict[str, np.ndarray]:
    return {
        f"{path.parent.name} {name}": values
        for path in folder.glob("*/*.safetensors")
        for name, values in load_file(path).items()
        if name.endswith("qweight")
    }


@pytest.fixture(scope="module", params=["llama2", "mixtral"])
def by_numpy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and its AWQ and GPTQ folders, calibrated by numpy."""
    source = tiny_llama(tmp_path_factory.mktemp("source") / "model", variant=request.param, hidden=256)
    out = tmp_path_factory.mktemp("numpy")
    assert quantkit("convert", str(source), "-o", str(out), *WORDS).code == 0
    return source, out


@pytest.mark.full
@pytest.mark.timeout(900)
def test_tensors_of_torch_give_the_folders_that_arrays_of_numpy_give(
    by_numpy: tuple[Path, Path], tmp_path: Path
) -> None:
    source, ours = by_numpy
    done = convert_with_torch(source, tmp_path / "out")
    assert done.returncode == 0, done.stderr[-4000:]
    errors, integers = errors_of(ours), integers_of(ours)
    assert len(errors) == len(integers) > 0
    theirs = errors_of(tmp_path / "out")
    assert errors.keys() == theirs.keys()
    assert {name: theirs[name] / error for name, error in errors.items() if abs(theirs[name] / error - 1) > 0.01} == {}
    # sums in another order move a weight that lies between two integers
    equal = [np.mean(values == integers[name]) for name, values in integers_of(tmp_path / "out").items()]
    assert min(equal) > 0.99


@pytest.mark.full
@pytest.mark.timeout(900)
def test_linears_in_bfloat16_give_the_same_errors(by_numpy: tuple[Path, Path], tmp_path: Path) -> None:
    """The products of a GPU: inputs rounded to bfloat16, sums in float32."""
    source, ours = by_numpy
    done = convert_with_torch(source, tmp_path / "out", least_side=16)
    assert done.returncode == 0, done.stderr[-4000:]
    errors, theirs = errors_of(ours), errors_of(tmp_path / "out")
    assert {name: theirs[name] / error for name, error in errors.items() if abs(theirs[name] / error - 1) > 0.05} == {}
    mean = np.mean([theirs[name] / error for name, error in errors.items()])
    assert abs(mean - 1) < 0.01
    assert any((values != integers_of(ours)[name]).any() for name, values in integers_of(tmp_path / "out").items())


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_full_device_keeps_the_finished_layers(tmp_path: Path) -> None:
    source, out = tiny_llama(tmp_path / "model", hidden=256), tmp_path / "out"
    done = convert_with_torch(source, out, full_in_layer=1)
    assert done.returncode == 1
    assert "the GPU's memory is full in layer 2 (--device cuda)" in done.stderr and "Traceback" not in done.stderr
    assert not list(out.glob("*/config.json"))
    again = quantkit("convert", str(source), "-o", str(out), *WORDS, "--device", "cpu", "--format", "json")
    assert again.code == 0, again.stderr
    assert json.loads(again.stdout)["resumed_layers"] == 1


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("words", PRETENDED, ids=" ".join)
def test_on_a_device_no_operation_takes_tensors_of_two_devices(words: tuple[str, ...], tmp_path: Path) -> None:
    """A device that is the CPU's memory, and refuses what a GPU refuses (tests/helpers/pretended_cuda.py)."""
    size = 256 if "q4_k_m" in words else 64
    variant = "mixtral" if "awq" in words else "llama2"
    source = tiny_llama(tmp_path / "model", variant=variant, hidden=size, intermediate=256, layers=1)
    words = (*words, "--samples", "8", "--seq-len", "64", "--no-logits", "--device", "cuda", "--threads", "2")
    words = (words[0], str(source), "-o", str(tmp_path / "out"), *words[1:], "--format", "json")
    done = run_with_torch(*words, least_side=16, pretended=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout)["gpu_peak_memory_bytes"] == 1 << 30  # what the device says
    # two files of states, and two of a layer with experts
    states = 8 * 64 * size * 4
    assert f"pinned {states * (4 if variant == 'mixtral' else 2)}" in done.stderr


def test_a_gpu_that_torch_cannot_use_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors")

    cuda = SimpleNamespace(is_available=lambda: True)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, ones=refuse, __version__="2.13"))
    monkeypatch.setattr("quantkit.forward.devices._has_driver", lambda: True)
    assert find_device("auto") is None
    with pytest.raises(UsageError) as refused:
        find_device("cuda")
    assert str(refused.value) == (
        "--device cuda: torch 2.13 cannot compute on the GPU (CUDA error: no kernel image is available for execution on"
        " the device); use --device cpu, or install a torch that is built for this machine's GPU and driver"
    )


def test_the_cpu_is_numpys_and_auto_takes_it_where_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.forward.devices._has_driver", lambda: False)
    assert find_device("cpu") is None
    assert find_device("auto") is None


def test_cuda_without_torch_is_refused_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("quantkit.forward.devices._has_driver", lambda: True)
    assert find_device("auto") is None
    with pytest.raises(UsageError, match=r"pip install 'quantkit\[torch\]'"):
        find_device("cuda")
