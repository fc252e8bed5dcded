"""GGUF files rounded with error feedback: better outputs, llama.cpp's bytes elsewhere, the same bytes after a kill."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader

from demo.safetensors_file import write_safetensors
from quantkit.checkpoint import open_checkpoint
from quantkit.families.base.native import Native
from quantkit.gguf.blocks import FORMATS
from quantkit.gguf.kernels import dequantize_rows, quantize_rows
from quantkit.imatrix.names import imatrix_columns, imatrix_sources
from quantkit.quant.grid import Array
from quantkit.stream.rounded import with_embedding
from quantkit.stream.stream import Stream
from quantkit.texts.samples import SampleRequest, load_samples
from tests.families.expected import write_checkpoint
from tests.helpers.command import quantkit
from tests.helpers.stopping import stops_at_layer
from tests.helpers.tiny import tiny_llama

Q4_1 = GGMLQuantizationType.Q4_1
EMBEDDING = "model.embed_tokens.weight"
CUT = ("--samples", "12", "--seq-len", "64")
TYPES = ("-t", "q4_0", "-t", "q4_k_m", "-t", "iq3_s")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    return tiny_llama(folder, variant="llama3", hidden=128, intermediate=256)


@pytest.fixture(scope="module")
def outputs(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of files by solver."""
    folders = {}
    for solver in ("llama.cpp", "feedback"):
        out = tmp_path_factory.mktemp("out")
        answer = quantkit("gguf", source, *TYPES, "--calibrate", "--solver", solver, *CUT, "-o", out, "--threads", "1")
        assert answer.code == 0, answer.stderr
        folders[solver] = out / "model-GGUF"
    return folders


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.gguf"))}


def grams(source: Path, folder: Path) -> dict[str, list[Array]]:
    """H of each matrix of the GGUF tensors, summed by the streamed forward, its columns in the order of the tensor."""
    by_linear: dict[Any, Array] = {}

    class KeptStatistics:
        def dense(self, layer: Any, tensors: Any, statistics: Any) -> Any:
            for entry in layer.inputs:
                if entry.key in statistics:
                    by_linear.update(
                        {(linear.name, linear.index): statistics[entry.key].gram for linear in entry.linears}
                    )
            return tensors

        def expert(self, layer: Any, expert: int, tensors: Any, statistics: Any) -> Any:
            return self.dense(layer, tensors, statistics)

    with open_checkpoint(str(source)) as checkpoint:
        native = Native(checkpoint, nearest=True)
        samples = load_samples(
            checkpoint, SampleRequest(source=None, n_samples=12, seq_len=64, chat=None, offline=True)
        )
        with Stream(native, samples.tokens, folder, threads=1) as stream:
            stream.embed()
            for number in range(native.decoder.n_layers):
                stream.layer(number, KeptStatistics())
        columns = imatrix_columns(native)
        return {
            name: [
                by_linear[key][np.ix_(columns[name], columns[name])] if name in columns else by_linear[key]
                for key in keys
            ]
            for name, keys in imatrix_sources(native).items()
        }


def tensors(path: Path) -> dict[str, Array]:
    """Every tensor of a file, dequantized: (n_matrices, n_out, n_in)."""
    made = {}
    for tensor in GGUFReader(path).tensors:
        if len(tensor.shape) > 1:
            n_cols, n_rows = int(tensor.shape[0]), int(tensor.shape[1])
            data = (
                np.ascontiguousarray(tensor.data)
                .view(np.uint8)
                .reshape(-1, tensor.n_bytes * n_cols // tensor.n_elements)
            )
            made[tensor.name] = dequantize_rows(tensor.tensor_type, data, n_cols).reshape(-1, n_rows, n_cols)
    return made


def output_errors(path: Path, exact: Path, hessians: dict[str, list[Array]]) -> dict[str, float]:
    """tr(E H E') of each tensor."""
    made, wanted = tensors(path), tensors(exact)
    errors = {name: (made[name] - wanted[name]).astype(np.float64) for name in hessians if name in made}
    return {
        name: sum(
            float(np.einsum("oi,ij,oj->", e, h, e, optimize=True)) for e, h in zip(error, hessians[name], strict=True)
        )
        for name, error in errors.items()
    }


@pytest.mark.parametrize("model", ["llama3", "qwen2moe-fused-no-biases", "qwen35"])
def test_the_outputs_of_every_tensor_are_nearer_to_the_sources(model: str, tmp_path: Path) -> None:
    if model == "llama3":
        source = tiny_llama(tmp_path / "model", variant="llama3", hidden=128, intermediate=256)
    else:
        source = write_checkpoint(model, tmp_path / "model")
    assert quantkit("gguf", source, "-t", "f32", "-o", tmp_path / "exact", "--no-logits").code == 0
    (exact,) = (tmp_path / "exact").rglob("*.gguf")
    hessians, errors = grams(source, tmp_path), {}
    for solver in ("llama.cpp", "feedback"):
        out = tmp_path / solver
        answer = quantkit(
            "gguf", source, "-t", "q4_0", "--calibrate", "--solver", solver, *CUT, "-o", out, "--no-logits"
        )
        assert answer.code == 0, answer.stderr
        (path,) = out.rglob("*.gguf")
        errors[solver] = output_errors(path, exact, hessians)
    assert errors["feedback"].keys() == errors["llama.cpp"].keys() != set()
    kinds = {tensor.name: tensor.tensor_type for tensor in GGUFReader(path).tensors}
    rounded = [name for name in errors["feedback"] if kinds[name] in FORMATS]
    assert len(rounded) > 6
    ratios = {name: errors["feedback"][name] / errors["llama.cpp"][name] for name in rounded}
    assert max(ratios.values()) < 1, ratios
    assert np.mean(list(ratios.values())) < 0.8


def test_tensors_without_a_gram_matrix_or_levels_have_llama_cpps_bytes(outputs: dict[str, Path]) -> None:
    for path in sorted(outputs["feedback"].glob("*.gguf")):
        plain = {tensor.name: tensor for tensor in GGUFReader(outputs["llama.cpp"] / path.name).tensors}
        record = json.loads((outputs["feedback"] / "quantkit.json").read_text())["outputs"][path.stem]
        without = record["feedback"]["without_feedback"]
        assert record["options"]["solver"] == "feedback"
        assert without["output.weight"] == "the calibration does not cover its input"
        for tensor in GGUFReader(path).tensors:
            same = np.array_equal(tensor.data, plain[tensor.name].data)
            assert tensor.tensor_type == plain[tensor.name].tensor_type
            assert same == (tensor.name in without or tensor.tensor_type.name == "F32"), tensor.name
        assert {check["status"] for check in record["checks"]} == {"passed"}
        assert without["blk.0.ffn_down.weight"] == "IQ3_S has no integer levels" if "IQ3_S" in path.stem else True


@pytest.mark.parametrize("quality", ["high", "best"])
def test_files_without_types_that_are_fed_back_are_what_they_are_alone(
    quality: str, source: Path, tmp_path: Path
) -> None:
    """Its matrices belong to tensors that another file of the command rounds with error feedback."""
    for out, words in (("alone", ()), ("beside", ("-t", "q4_0", "--quality", quality, *CUT))):
        assert quantkit("gguf", source, "-t", "f16", *words, "--no-logits", "-o", tmp_path / out).code == 0
    alone, beside = (
        {tensor.name: tensor.data for tensor in GGUFReader(next((tmp_path / out).rglob("*F16.gguf"))).tensors}
        for out in ("alone", "beside")
    )
    assert alone.keys() == beside.keys()
    for name, values in alone.items():
        np.testing.assert_array_equal(beside[name], values, name)


@pytest.mark.usefixtures("blas_of_many_threads")
@pytest.mark.parametrize(
    ("model", "quality"),
    [pytest.param("llama3", "best", marks=pytest.mark.full), ("mixtral", "high"), ("mixtral", "best")],
)
def test_bytes_do_not_depend_on_threads_or_on_a_stop(model: str, quality: str, tmp_path: Path) -> None:
    if model == "llama3":
        source = tiny_llama(tmp_path / "model", variant="llama3", hidden=288, intermediate=512)
    else:
        source = write_checkpoint(model, tmp_path / "model")
    words = ("gguf", source, "-t", "q4_0", "--quality", quality, *CUT, "--no-logits")
    counts = ("1", "7")
    for threads in counts:
        assert quantkit(*words, "--threads", threads, "-o", tmp_path / threads).code == 0
    expected = hashes(tmp_path / "1")
    assert expected
    assert all(hashes(tmp_path / threads) == expected for threads in counts)
    stopped = tmp_path / "stopped"
    with stops_at_layer(1):
        assert quantkit(*words, "-o", stopped).code != 0
    assert list(stopped.glob("*.partial"))
    answer = quantkit(*words, "-o", stopped, "--format", "json")
    assert json.loads(answer.stdout)["resumed_layers"] == 1
    assert hashes(stopped) == expected


def test_reordered_neurons_compute_the_same_and_are_recorded(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "model", variant="llama3", hidden=128, intermediate=512)
    assert quantkit("gguf", source, "-t", "f32", "-o", tmp_path / "exact", "--no-logits").code == 0
    words = ("gguf", source, "-t", "q6_k", "-t", "q4_0", "--solver", "feedback", *CUT, "--reorder-neurons")
    answer = quantkit(*words, "--threads", "1", "-o", tmp_path / "out")
    assert answer.code == 0, answer.stderr
    assert "q6_k: neurons of 2 feed-forwards reordered" in answer.stdout
    assert "q4_0: no neurons reordered" in answer.stdout
    (exact,) = (tmp_path / "exact").rglob("*.gguf")
    paths = {path.stem.rpartition("-")[2]: path for path in (tmp_path / "out").rglob("*.gguf")}
    wanted, made = tensors(exact), tensors(paths["Q6_K"])
    x = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    for layer in range(2):
        names = [f"blk.{layer}.ffn_{part}.weight" for part in ("gate", "up", "down")]
        outputs = []
        for weights in (wanted, made):
            gate, up, down = (weights[name][0] for name in names)
            inner = x @ gate.T
            outputs.append((inner / (1 + np.exp(-inner)) * (x @ up.T)) @ down.T)
        assert np.linalg.norm(outputs[1] - outputs[0]) < 0.03 * np.linalg.norm(outputs[0])
        # the rows themselves lie elsewhere
        assert np.linalg.norm(made[names[0]] - wanted[names[0]]) > np.linalg.norm(wanted[names[0]])
    assert tensors(paths["Q4_0"]).keys() == wanted.keys()
    outputs_of = json.loads((paths["Q6_K"].parent / "quantkit.json").read_text())["outputs"]
    moved = {stem.rpartition("-")[2]: entry["feedback"]["neurons_reordered"] for stem, entry in outputs_of.items()}
    assert moved["Q4_0"] == []
    assert {kind: reordered_key(path) for kind, path in paths.items()} == {"Q4_0": None, "Q6_K": True}
    assert moved["Q6_K"] == sorted(f"blk.{layer}.ffn_{p}.weight" for layer in (0, 1) for p in ("down", "gate", "up"))
    assert {check["status"] for check in outputs_of[paths["Q6_K"].stem]["checks"]} == {"passed"}
    stopped = tmp_path / "stopped"
    for lost in (False, True):
        with stops_at_layer(1):
            assert quantkit(*words, "-o", stopped, "--force").code != 0
        (orders,) = stopped.rglob("neurons-0.npz")
        if lost:
            orders.unlink()
        answer = quantkit(*words, "-o", stopped, "--force", "--format", "json")
        assert json.loads(answer.stdout)["resumed_layers"] == (0 if lost else 1)
        assert hashes(stopped) == hashes(tmp_path / "out")


def reordered_key(path: Path) -> bool | None:
    field = GGUFReader(path).get_field("quantkit.neurons_reordered")
    return None if field is None else bool(field.contents())


def checkpoint_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A tiny model whose `down` fits Q6_K, and its tensors in float32."""
    source = tiny_llama(folder, variant="llama3", hidden=128, intermediate=512)
    with open_checkpoint(str(source)) as checkpoint:
        native = Native(checkpoint, nearest=True)
        return source, {name: np.array(native.whole(name), np.float32) for name in native.tensors}


def test_the_key_of_reordered_neurons_is_false_where_neurons_have_biases(tmp_path: Path) -> None:
    source, values = checkpoint_of(tmp_path / "model")
    for name in [name for name in values if ".mlp." in name]:
        values[name.replace(".weight", ".bias")] = np.full(len(values[name]), 0.1, np.float32)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"mlp_bias": True}))
    write_safetensors(source / "model.safetensors", {name: ("F32", value) for name, value in values.items()})
    words = ("gguf", source, "-t", "q6_k", "--solver", "feedback", *CUT, "--reorder-neurons", "--no-logits")
    answer = quantkit(*words, "-o", tmp_path / "out")
    assert answer.code == 0, answer.stderr
    assert "no neurons reordered" in answer.stdout
    (path,) = (tmp_path / "out").rglob("*.gguf")
    assert reordered_key(path) is False


@pytest.mark.parametrize("quality", ["high", "best"])
def test_weights_on_a_lattice_keep_it_when_neurons_move(quality: str, tmp_path: Path) -> None:
    source, values = checkpoint_of(tmp_path / "model")
    for name in [name for name in values if name.endswith("_proj.weight")]:
        values[name] = dequantize_rows(Q4_1, quantize_rows(Q4_1, values[name]), values[name].shape[1])
    write_safetensors(source / "model.safetensors", {name: ("F32", value) for name, value in values.items()})
    words = ("gguf", source, "-t", "q6_k", "--quality", quality, *CUT)
    # relative errors of each layer's feed-forward, of llama.cpp's own rounding and of ours with moved neurons
    errors: dict[str, list[float]] = {}
    x = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)

    def outputs(weights: Mapping[str, tuple[Any, ...]]) -> list[Any]:
        answers = []
        for layer in range(2):
            gate, up, down = (weights[f"blk.{layer}.ffn_{part}.weight"][0] for part in ("gate", "up", "down"))
            inner = x @ gate.T
            answers.append((inner / (1 + np.exp(-inner)) * (x @ up.T)) @ down.T)
        return answers

    assert quantkit("gguf", source, "-t", "f32", "-o", tmp_path / "exact", "--no-logits").code == 0
    assert quantkit("gguf", source, "-t", "q6_k", "-o", tmp_path / "plain", "--no-logits").code == 0
    answer = quantkit(*words, "--reorder-neurons", "-o", tmp_path / "moved")
    assert answer.code == 0, answer.stderr
    assert "q6_k: neurons of 2 feed-forwards reordered" in answer.stdout
    read = {name: tensors(next((tmp_path / name).rglob("*.gguf"))) for name in ("exact", "plain", "moved")}
    wanted = outputs(read["exact"])
    for name in ("plain", "moved"):
        made = outputs(read[name])
        errors[name] = [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(made, wanted, strict=True)]
    assert all(ours < 0.9 * theirs for ours, theirs in zip(errors["moved"], errors["plain"], strict=True))
    (path,) = (tmp_path / "moved").rglob("*.gguf")
    assert reordered_key(path) is True
    # the rows of gate lie elsewhere, and each is still a row of the source
    places = [
        int(np.square(read["exact"]["blk.0.ffn_gate.weight"][0] - row).sum(axis=1).argmin())
        for row in read["moved"]["blk.0.ffn_gate.weight"][0]
    ]
    assert sorted(places) == list(range(512)) and places != sorted(places)
    groups = np.array(places).reshape(-1, 16) // 32
    assert (groups == groups[:, :1]).all()


def test_a_lost_partial_file_starts_the_layers_over(source: Path, tmp_path: Path) -> None:
    words = ("gguf", source, "-t", "q4_0", "--solver", "feedback", *CUT, "--no-logits")
    assert quantkit(*words, "-o", tmp_path / "whole").code == 0
    with stops_at_layer(1):
        assert quantkit(*words, "-o", tmp_path / "lost").code != 0
    (partial,) = (tmp_path / "lost").rglob("*.gguf.partial")
    partial.unlink()
    assert quantkit(*words, "-o", tmp_path / "lost").code == 0
    assert hashes(tmp_path / "lost") == hashes(tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--solver", "feedback", "--no-imatrix"), "--solver feedback needs a calibration"),
        (("--reorder-neurons",), "--reorder-neurons needs a calibration; add --solver feedback"),
        (("--quality", "best", "--solver", "llama.cpp"), "--quality best is --solver feedback, not llama.cpp"),
    ],
)
def test_options_that_contradict_the_solver_are_one_sentence(
    words: tuple[str, ...], sentence: str, source: Path
) -> None:
    answer = quantkit("gguf", source, "-t", "q4_0", *words, "--dry-run")
    assert answer.code == 2
    assert sentence in answer.sentence


def test_the_disk_of_the_best_quality_has_the_states_of_the_files_that_are_fed_back_alone(source: Path) -> None:
    def disk(*types: str, quality: str) -> tuple[int, int]:
        """Disk for the work, and of the outputs."""
        words = [word for name in types for word in ("-t", name)]
        answer = quantkit("gguf", source, *words, "--quality", quality, *CUT, "--dry-run", "--format", "json")
        assert answer.code == 0, answer.stderr
        document = json.loads(answer.stdout)
        return document["disk_bytes"] - sum(output["bytes"] for output in document["outputs"]), len(document["outputs"])

    states, _ = disk("q4_0", quality="high")
    assert disk("q4_0", quality="best") == (2 * states, 1)
    assert disk("q4_0", "f16", quality="best") == (2 * states, 2)
    assert disk("q4_0", "q5_0", quality="best") == (3 * states, 2)


@dataclass
class LayerOutputs:
    """The hidden states after the layers of a model whose GGUF matrices have the values of a file."""

    source: Path
    folder: Path

    def of(self, made: dict[str, Array]) -> Array:
        """made: GGUF tensor -> its values. Rows that the file has in another order are found by the source's."""
        with open_checkpoint(str(self.source)) as checkpoint:
            native = Native(checkpoint, nearest=True)
            samples = load_samples(checkpoint, SampleRequest(None, 12, 64, None, offline=True))
            with Stream(native, samples.tokens, self.folder, threads=1) as stream:
                embedding = made.get(EMBEDDING)
                if embedding is not None:
                    stream.decoder = with_embedding(stream.decoder, lambda start, stop: embedding[start:stop])
                stream.embed()
                for number in range(native.decoder.n_layers):
                    weights = {name: np.array(native.whole(name), np.float32) for name in native.tensors}
                    stream.advance(number, {**weights, **made})
                name = f"states-{native.decoder.n_layers % 2}"
                return np.stack([stream.states.read(name, sample) for sample in range(len(samples.tokens))])


def checkpoint_values(path: Path, exact: Path, source: Path) -> dict[str, Array]:
    """The matrices of a file under the checkpoint's names, rows in its order."""
    made, wanted = tensors(path), tensors(exact)
    values = {EMBEDDING: made["token_embd.weight"][0]}
    with open_checkpoint(str(source)) as checkpoint:
        native = Native(checkpoint, nearest=True)
        for name, keys in imatrix_sources(native).items():
            weight = np.array(native.whole(f"{keys[0][0]}.weight"), np.float32)
            places = [int(np.flatnonzero((wanted[name][0] == row).all(axis=1))[0]) for row in weight]
            values[f"{keys[0][0]}.weight"] = made[name][0][places]
    return values


def test_the_best_quality_makes_the_states_after_the_layers_nearer_to_the_sources(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "model", variant="llama3", hidden=128, intermediate=256)
    assert quantkit("gguf", source, "-t", "f32", "-o", tmp_path / "exact", "--no-logits").code == 0
    (exact,) = (tmp_path / "exact").rglob("*.gguf")
    states, errors = LayerOutputs(source, tmp_path), {}
    wanted = states.of({})
    for quality in ("high", "best"):
        out = tmp_path / quality
        answer = quantkit("gguf", source, "-t", "q4_0", "-t", "q3_k_m", "--quality", quality, *CUT, "-o", out)
        assert answer.code == 0, answer.stderr
        for path in sorted(out.rglob("*.gguf")):
            difference = states.of(checkpoint_values(path, exact, source)) - wanted
            errors[quality, path.stem.partition("-")[2]] = float(np.linalg.norm(difference))
        record = json.loads(next(out.rglob("quantkit.json")).read_text())["outputs"]
        assert {entry["feedback"]["asymmetric"] for entry in record.values()} == {quality == "best"}
    for kind in ("Q4_0", "Q3_K_M"):
        assert errors["best", kind] < 0.9 * errors["high", kind]


def test_files_of_one_conversion_do_not_depend_on_each_other(source: Path, tmp_path: Path) -> None:
    words = ("--quality", "best", *CUT, "--no-logits", "--threads", "1")
    assert quantkit("gguf", source, "-t", "q5_1", "-t", "q3_k_m", *words, "-o", tmp_path / "both").code == 0
    assert quantkit("gguf", source, "-t", "q3_k_m", *words, "-o", tmp_path / "one").code == 0
    both = hashes(tmp_path / "both")
    assert hashes(tmp_path / "one") == {name: both[name] for name in both if "Q3_K_M" in name}


def test_values_that_are_computed_once_are_in_memory_or_on_the_disk_and_announced(source: Path, tmp_path: Path) -> None:
    words = (
        "gguf",
        source,
        "-t",
        "q4_0",
        "--quality",
        "best",
        *CUT,
        "--no-logits",
        "--threads",
        "1",
        "--format",
        "json",
    )
    limited = (*words, "--max-ram", "8G")
    held, on_disk = (
        json.loads(quantkit(*some, "--dry-run", "-o", tmp_path / "none").stdout) for some in (words, limited)
    )
    # two streams; the outputs of the heads, the states after attention, what down reads
    kept = 2 * 4 * 12 * 64 * (128 + 128 + 256)
    assert on_disk["disk_bytes"] - held["disk_bytes"] == kept
    assert quantkit(*words, "-o", tmp_path / "held").code == 0
    assert quantkit(*limited, "-o", tmp_path / "on_disk").code == 0
    assert hashes(tmp_path / "held") == hashes(tmp_path / "on_disk")
