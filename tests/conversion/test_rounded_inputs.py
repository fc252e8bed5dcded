"""Folders whose matrices are rounded for the inputs of their own rounded layers: the paper's target, in float64."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.conversion import calibration as calibration_module
from quantkit.conversion import run as run_module
from quantkit.conversion.layer_quantizer import LayerQuantizer
from quantkit.families import reference_logits
from quantkit.families.base.native import Native
from quantkit.forward.linears import LayerLinears, RowFold
from quantkit.forward.parts import Form
from quantkit.forward.weights import Weights, rows_of_whole
from quantkit.outputs.packed_folders import FolderRequest
from quantkit.packed.reader import open_quantized
from quantkit.quant.factor import SHRINK, usual_damp
from quantkit.quant.grid import Array, Grid
from quantkit.stream.sample_states import StreamOptions
from quantkit.texts.samples import SampleRequest, load_samples
from quantkit.units import human_bytes
from tests.conversion.test_calibrated import hashes, planned, samples, written
from tests.forward.test_torch import run_with_torch
from tests.helpers.command import Answer, quantkit
from tests.helpers.stopping import stops_at_layer
from tests.helpers.tiny import tiny_llama

CUT = ("--samples", "12", "--seq-len", "64")
Whole = Callable[[str], Array]
Inputs = dict[str, np.ndarray]


@dataclass
class Rounded:
    """What was rounded, by linear: the weights that were wanted, and the scale of their columns."""

    wanted: dict[str, Array] = field(default_factory=dict)
    scales: dict[str, Array | None] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        round_, write = LayerQuantizer.round, LayerQuantizer.write_quantized

        def rounding(quantizer: LayerQuantizer, tensors: Any, linears: Any, *rest: Any, **options: Any) -> None:
            self.scales |= {linear.name: options.get("scale") for linear in linears}
            round_(quantizer, tensors, linears, *rest, **options)

        def writing(quantizer: LayerQuantizer, tensors: Any, linear: Any, wanted: Array, *rest: Any) -> None:
            self.wanted[linear.name] = wanted.copy()
            write(quantizer, tensors, linear, wanted, *rest)

        monkeypatch.setattr(LayerQuantizer, "round", rounding)
        monkeypatch.setattr(LayerQuantizer, "write_quantized", writing)


def inputs_of(
    whole: Whole, native: Native, names: Any, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> tuple[Inputs, np.ndarray]:
    """The inputs of every linear over all samples, (tokens, width), in float64, and the logits, of plain forwards."""
    inputs: dict[str, list[np.ndarray]] = defaultdict(list)
    real = Weights.linear

    def linear(self: Weights, name: str, x: Array, n_out: int, form: Form = Form(), index: int = 0) -> Array:
        inputs[name].append(x.astype(np.float64))
        return real(self, name, x, n_out, form, index)

    with monkeypatch.context() as patch:
        patch.setattr(Weights, "linear", linear)
        logits = [
            reference_logits(whole, native.config, sample.tolist(), rows=rows_of_whole(whole), names=names)
            for sample in tokens
        ]
    return {name: np.concatenate(pieces) for name, pieces in inputs.items()}, np.stack(logits)


def target(weight: np.ndarray, x: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """W + W D H^-1 of the paper, H with its shrinkage and damping, in float64."""
    hessian = seen.T @ seen
    diagonal = np.diagonal(hessian) * (1 + SHRINK)
    np.fill_diagonal(hessian, diagonal + usual_damp(len(hessian), len(seen)) * diagonal.mean())
    made: np.ndarray = weight + weight @ ((x - seen).T @ seen) @ np.linalg.inv(hessian)
    return made


def divisors(layers: tuple[LayerLinears, ...], scales: Mapping[str, Array | None]) -> dict[str, np.ndarray]:
    """By linear, what its rows are divided by: the scale of the input that they become."""
    found = {}
    for layer in layers:
        for fold in layer.folds:
            if isinstance(fold, RowFold) and (scale := scales[layer.find(fold.input).linears[0].name]) is not None:
                found[fold.linear.name] = np.ones(fold.linear.n_out)
                found[fold.linear.name][list(fold.rows)] = scale
    return found


@pytest.mark.parametrize("method", ["awq", "gptq"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral"])
def test_every_matrix_is_rounded_to_the_target_of_the_paper(
    name: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = Rounded()
    rounded.watch(monkeypatch)
    request = FolderRequest(method, Grid(4, 16, symmetric=method == "gptq"), follows_rounded=True)
    with open_checkpoint(str(written(name, tmp_path / name))) as checkpoint:
        native = Native(checkpoint)
        plan = planned(checkpoint, tmp_path, (request,))
        assert plan.calibration is not None
        result = run_module.run(plan)
        tokens = samples(int(native.config["vocab_size"])).tokens
        x, _ = inputs_of(native.whole, native, native.tensors.keys(), tokens, monkeypatch)
        source = {linear: np.array(native.whole(f"{linear}.weight"), np.float64) for linear in rounded.wanted}
    assert not result.failed
    (folder,) = tmp_path.glob("M-*")
    with open_quantized(folder) as opened:
        seen, _ = inputs_of(opened.weights.read, native, opened.weights.names, tokens, monkeypatch)
    rows, changed = divisors(plan.calibration.layers, rounded.scales), 0
    assert rounded.wanted.keys() == plan.folders[0].quantized.keys()
    if method == "awq":
        assert any(scale is not None and (scale != 1).any() for scale in rounded.scales.values())
    for linear, wanted in rounded.wanted.items():
        scale = rounded.scales[linear]
        columns = np.ones(wanted.shape[1]) if scale is None else scale.astype(np.float64)
        weight = source[linear] / (rows[linear][:, None] if linear in rows else 1)
        expected = target(weight, x[linear], seen[linear] * columns) * columns
        change = expected - weight * columns
        if np.abs(wanted - weight * columns).max() < 1e-3 * np.abs(change).max():
            continue  # the rounded source's weights had the smaller error
        # the embedding is the source's in the stream, and rounded to float16 in the folder
        rounding = 5e-4 * np.abs(weight * columns).max()
        changed += np.abs(change).max() > 30 * rounding
        np.testing.assert_allclose(wanted, expected, atol=0.02 * np.abs(change).max() + rounding)
    assert changed > 0.5 * len(rounded.wanted)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    return tiny_llama(folder, variant="llama3", hidden=128, intermediate=256)


def logit_errors(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The norm of the error of the logits over the calibration samples, by folder."""
    with open_checkpoint(str(source)) as checkpoint:
        native = Native(checkpoint)
        tokens = load_samples(checkpoint, SampleRequest(None, 12, 64, None, offline=True)).tokens
        _, wanted = inputs_of(native.whole, native, native.tensors.keys(), tokens, monkeypatch)
    errors = {}
    for config in out.glob("*/config.json"):
        with open_quantized(config.parent) as opened:
            _, made = inputs_of(opened.weights.read, native, opened.weights.names, tokens, monkeypatch)
        errors[config.parent.name] = float(np.linalg.norm(made - wanted))
    return errors


def test_the_best_quality_makes_logits_of_every_folder_nearer_to_the_sources(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = ("awq", "gptq", "mlx-4bit-gptq", "w4a4", "q4_0")
    errors = {}
    for quality in ("standard", "best"):
        out = tmp_path / quality
        words = (
            *(word for kind in types for word in ("-t", kind)),
            "--group-size",
            "32",
            "--no-logits",
            "--quality",
            quality,
        )
        answer = quantkit("convert", source, *words, *CUT, "-o", out)
        assert answer.code == 0, answer.stderr
        errors[quality] = logit_errors(source, out, monkeypatch)
        for name in errors[quality]:
            (record,) = json.loads((out / name / "quantkit.json").read_text())["outputs"].values()
            assert record["options"]["quality"] == quality
    assert len(errors["best"]) == 4
    for name, error in errors["best"].items():
        assert error < 0.9 * errors["standard"][name], name


@pytest.mark.parametrize(("methods", "read"), [(("gptq",), False), (("gptq", "awq"), True)])
def test_only_a_folder_that_reads_the_sources_gram_matrices_lets_them_be_summed(
    methods: tuple[str, ...], read: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = tuple(
        FolderRequest(method, Grid(4, 16, symmetric=method == "gptq"), follows_rounded=True) for method in methods
    )
    summed: list[bool] = []

    def run(out: Path, *, always: bool) -> None:
        def options(gram: bool, *rest: Any, **more: Any) -> StreamOptions:
            summed.append(gram)
            return StreamOptions(gram or always, *rest, **more)

        with open_checkpoint(str(source)) as checkpoint, monkeypatch.context() as patch:
            patch.setattr(calibration_module, "StreamOptions", options)
            assert not run_module.run(planned(checkpoint, out, requests)).failed

    source = written("llama", tmp_path / "llama")
    run(tmp_path / "some", always=False)
    run(tmp_path / "all", always=True)
    assert summed == [read, read]
    assert hashes(tmp_path / "some") == hashes(tmp_path / "all")


@pytest.mark.full
def test_the_best_quality_on_tensors_of_torch_leaves_logits_as_near(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("convert", str(source), "-t", "awq", "-t", "gptq", "--group-size", "32", "--quality", "best", *CUT)
    assert quantkit(*words, "-o", tmp_path / "ours").code == 0
    done = run_with_torch(*words, "-o", str(tmp_path / "theirs"))
    assert done.returncode == 0, done.stderr[-4000:]
    ours, theirs = (logit_errors(source, tmp_path / name, monkeypatch) for name in ("ours", "theirs"))
    assert {label: theirs[label] / ours[label] for label in ours} == pytest.approx(dict.fromkeys(ours, 1), abs=0.02)


def test_a_stopped_run_resumes_at_the_layer_and_folders_do_not_depend_on_each_other(
    source: Path, tmp_path: Path
) -> None:
    words = ("--group-size", "32", "--quality", "best", *CUT, "--no-logits", "--threads", "1")
    both = ("convert", source, "-t", "awq", "-t", "gptq", *words)
    assert quantkit(*both, "-o", tmp_path / "both").code == 0
    assert quantkit("gptq", source, *words, "-o", tmp_path / "one").code == 0
    expected = hashes(tmp_path / "both")
    assert hashes(tmp_path / "one") == {name: value for name, value in expected.items() if "GPTQ" in name}
    stopped = tmp_path / "stopped"
    with stops_at_layer(1):
        assert quantkit(*both, "-o", stopped).code != 0
    answer = quantkit(*both[:-1], "3", "-o", stopped, "--format", "json")
    assert json.loads(answer.stdout)["resumed_layers"] == 1
    assert hashes(stopped) == expected


@pytest.mark.parametrize("words", [("awq", "--group-size", "32"), ("gguf", "-t", "q4_0", "--calibrate")])
def test_the_memory_of_the_rounded_layers_is_held_against_the_limit(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # those of the tests' own process grow from one command to the next
    for module in ("calibration_memory", "direct", "memory", "pass_memory"):
        monkeypatch.setattr(f"quantkit.outputs.{module}.resident_memory", lambda: 100 << 20)
    monkeypatch.setattr("quantkit.outputs.memory.peak_memory", lambda: 100 << 20)
    source = tiny_llama(tmp_path / "model", variant="llama3", hidden=640, intermediate=1536, heads=8, layers=1)

    def dry(quality: str, *more: str) -> Answer:
        return quantkit(words[0], source, *words[1:], "--quality", quality, *CUT, "--threads", "1", "--dry-run", *more)

    less, most = (
        # with any limit, values of a layer are in files
        json.loads(dry(quality, "--max-ram", "64G", "--format", "json").stdout)["expected_peak_memory_bytes"]
        for quality in ("standard", "best")
    )
    limit = f"{(less + most) // 2_000_000}M"
    assert dry("standard", "--max-ram", limit).code == 0
    answer = dry("best", "--max-ram", limit)
    assert answer.code == 2
    shown = human_bytes(int(limit[:-1]) * 1_000_000)  # in GB where the tests' own process is large
    assert answer.sentence.startswith(f"quantkit: --max-ram {shown} is too small; the calibration and the")
    assert answer.sentence.endswith("; leave out --quality best, or use fewer --threads")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("gptq", "--propagate", "quantized"), "--propagate quantized does not go with --quality best"),
        (("awq", "--rounding", "nearest"), "--quality best rounds with error feedback; leave out --rounding nearest"),
        (("convert", "-t", "fp8"), "--quality best has no effect without a GGUF type, awq, gptq"),
    ],
)
def test_options_that_contradict_the_best_quality_are_one_sentence(
    words: tuple[str, ...], sentence: str, source: Path
) -> None:
    answer = quantkit(words[0], source, *words[1:], "--quality", "best", "--dry-run")
    assert answer.code == 2
    assert sentence in answer.sentence
