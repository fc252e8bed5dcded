"""The forward on torch's tensors, as `--device cuda` runs it, against itself on numpy's arrays."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
    peer = peer_converter()
    done = subprocess.run(
        [str(peer.python), str(script), str(models), str(out), json.dumps(list(TOKENS))],
        # what quantkit imports and the peer's environment lacks comes from this one, after its own packages
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "MORE_PACKAGES": str(Path(np.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(out) as results:
        assert {name.removesuffix(" held") for name in results} == set(NATIVE) <= set(all_cases())
        off = {name: np.abs(results[name] - ours[name.removesuffix(" held")]).max() for name in results}
    allowed = {name: 1e-4 * ours[name.removesuffix(" held")].std() for name in off}
    assert {name: value for name, value in off.items() if not value <= allowed[name]} == {}


def convert_with_torch(source: Path, out: Path, *words: str, **request: object) -> "subprocess.CompletedProcess[str]":
    """A conversion whose calibration runs on tensors of torch. `request`: see calibrate_with_torch.py."""
    script = REPOSITORY / "tests" / "forward" / "calibrate_with_torch.py"
    asked = {"words": ["convert", str(source), "-o", str(out), *WORDS, *words], "least_side": 1 << 30, **request}
    return subprocess.run(
        [str(peer_converter().python), str(script), json.dumps(asked)],
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
