"""The folder engine against transformers' stored logits, against the plain forward and against killed runs."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.safetensors_file import write_safetensors
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import MeasureError, QuantkitError
from quantkit.families import reference_logits
from quantkit.families.base.native import Native
from quantkit.measurement import folder_engine
from quantkit.measurement.folder_engine import FolderEngine, open_folder
from quantkit.packed.reader import open_quantized
from quantkit.progress import SILENT
from quantkit.quant.grid import Grid
from tests.families.expected import expected, write_checkpoint
from tests.families.models import TOKENS, all_cases
from tests.forward.test_forward import load
from tests.helpers.command import quantkit
from tests.helpers.peer import REPOSITORY, peer_converter
from tests.helpers.progress import Recorded
from tests.helpers.tiny import tiny_llama
from tests.helpers.tiny_tokenizers import CORPUS
from tests.packed.folder_perplexity import folder_weights, perplexity, source_weights
from tests.packed.folders import write_folder

# Dense; remote code; learned positions; parallel layers; latent attention; mixtures whose experts stand one by one, in
# one tensor of all, in MXFP4; softcaps; scaled logits.
MODELS = [
    "llama",
    "baichuan2",
    "gpt2",
    "falcon-40b",
    "deepseek-v3",
    "mixtral",
    "qwen2moe-fused-no-biases",
    "granitemoe",
    "gpt-oss-mxfp4",
    "gemma2",
]
SHAPE = (5, 32)
SMALL = ("--samples", "8", "--seq-len", "32", "--raw", "--group-size", "32")


def windows(n_vocab: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(4).integers(3, n_vocab, shape).astype(np.int32)


def scored(logits: np.ndarray) -> np.ndarray:
    """The rows that llama-perplexity scores."""
    return logits[len(logits) // 2 : -1]


def all_logits(engine: FolderEngine, tokens: np.ndarray, work: Path) -> np.ndarray:
    engine.prepare(tokens, work, SILENT)
    return np.stack([engine.logits(window) for window in range(len(tokens))])


def plain(weights: Mapping[str, np.ndarray], config: Mapping[str, Any], tokens: np.ndarray) -> np.ndarray:
    """The forward over whole tensors, window by window."""
    rows = [reference_logits(weights.__getitem__, config, window.tolist(), names=weights.keys()) for window in tokens]
    return np.stack([scored(logits) for logits in rows])


# --- the figures ---


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_that_transformers_gives(name: str, tmp_path: Path) -> None:
    known = scored(expected(name).logits)
    folder = write_checkpoint(name, tmp_path / name)
    with open_folder(folder, threads=2) as engine:
        actual = all_logits(engine, np.array([TOKENS[::-1], TOKENS], np.int32), tmp_path / "work")[1]
        assert (engine.kind, engine.folder, engine.n_vocab) == ("hf", folder, actual.shape[1])
    drift = np.abs(actual - known).max() / known.std()
    assert drift < all_cases()[name][1].drift, f"logits differ by {drift:.2%} of their standard deviation"
    assert (actual.argmax(axis=1) == known.argmax(axis=1)).all()


@pytest.mark.parametrize("variant", ["smollm2", "mixtral"])
def test_each_window_is_what_the_plain_forward_gives(variant: str, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", variant=variant)
    tensors, config = load(folder)
    tokens = windows(int(config["vocab_size"]))
    with open_folder(folder, threads=2) as engine:
        result = all_logits(engine, tokens, tmp_path / "work")
        again = engine.logits(1)
    reference = plain(tensors, config, tokens)
    assert result.dtype == np.float32
    assert result.shape == (5, 15, config["vocab_size"])
    np.testing.assert_allclose(result, reference, rtol=0, atol=2e-5 * np.abs(reference).max())
    assert (again == result[1]).all()


@pytest.mark.parametrize("variant", ["llama3", "mixtral"])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_a_folder_that_the_command_made_is_run_on_its_dequantized_weights(
    method: str, variant: str, tmp_path: Path
) -> None:
    source = tiny_llama(tmp_path / "model", variant=variant, hidden=64, intermediate=96)
    text = tmp_path / "text.txt"
    text.write_text(CORPUS)
    answer = quantkit(method, source, *SMALL, "--calibration", text, "-o", tmp_path / "out")
    assert answer.code == 0, answer.stderr
    folder = next(path for path in (tmp_path / "out").iterdir() if path.is_dir())
    with open_quantized(folder) as opened:
        weights, config = {name: opened.whole(name) for name in opened.names}, opened.config
    tokens = windows(int(config["vocab_size"]))
    with open_folder(source, threads=1) as engine:
        n_parameters, unquantized = engine.n_parameters, all_logits(engine, tokens, tmp_path / "source")
    with open_folder(folder, threads=2) as engine:
        result = all_logits(engine, tokens, tmp_path / "work")
        assert (engine.kind, engine.n_parameters) == (method, n_parameters)
        assert engine.n_bytes == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    reference = plain(weights, config, tokens)
    np.testing.assert_allclose(result, reference, rtol=0, atol=2e-5 * np.abs(reference).max())
    assert np.abs(result - unquantized).max() > 1e-2 * np.abs(reference).max()


@pytest.mark.parametrize("name", ["gpt2", "qwen2moe-fused-no-biases"])
def test_turned_and_mixed_folders_are_read_as_a_runtime_does(name: str, tmp_path: Path) -> None:
    source, folder = write_checkpoint(name, tmp_path / name), tmp_path / "folder"
    write_folder(source, folder, "gptq", Grid(4, 16, symmetric=True))
    tokens = windows(int(json.loads((folder / "config.json").read_text())["vocab_size"]))
    with open_quantized(folder) as opened:
        reference = plain({tensor: opened.whole(tensor) for tensor in opened.names}, opened.config, tokens)
    with open_folder(folder, threads=2) as engine:
        result = all_logits(engine, tokens, tmp_path / "work")
    np.testing.assert_allclose(result, reference, rtol=0, atol=2e-5 * np.abs(reference).max())


@pytest.mark.parametrize("method", ["hf", "awq"])
def test_perplexity_is_the_judges(method: str, tmp_path: Path) -> None:
    """The judge scores every token but a window's first, so it is asked twice: of whole windows and of first halves."""
    folder = tiny_llama(tmp_path / "model", hidden=64, intermediate=96)
    if method == "awq":
        write_folder(folder, tmp_path / "folder", "awq")
    with open_checkpoint(str(folder)) as checkpoint:
        native = Native(checkpoint)
        config = native.config
        weights = source_weights(native) if method == "hf" else folder_weights(tmp_path / "folder")
    tokens = windows(int(config["vocab_size"]))
    n_ctx, first = tokens.shape[1], tokens.shape[1] // 2
    total, before = (
        np.log(perplexity(config, weights, tokens[:, :length])) * (length - 1) for length in (n_ctx, first + 1)
    )
    with open_folder(folder if method == "hf" else tmp_path / "folder", threads=2) as engine:
        rows = all_logits(engine, tokens, tmp_path / "work").astype(np.float64)
    own = np.take_along_axis(rows, tokens[:, first + 1 :, None].astype(np.int64), -1)[..., 0]
    losses = np.log(np.exp(rows).sum(axis=-1)) - own
    assert losses.mean() == pytest.approx((total - before) / (n_ctx - 1 - first), rel=1e-5)


def test_a_head_too_large_for_memory_is_read_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_llama(tmp_path / "model", variant="smollm2")
    tokens = windows(700)
    with open_folder(folder) as engine:
        result = all_logits(engine, tokens, tmp_path / "work")
        assert engine.resident_bytes == 4 * engine.n_vocab * int(engine.config["hidden_size"])
        engine.release()
        assert (engine.logits(0) == result[0]).all()
    monkeypatch.setattr(folder_engine, "_MEMORY", 1)
    with open_folder(folder) as engine:
        assert engine.resident_bytes == 0
        engine.prepare(tokens, tmp_path / "work", SILENT)
        reads = Counter[str]()
        monkeypatch.setattr(Native, "rows", counted(Native.rows, reads))
        sliced = np.stack([engine.logits(window) for window in range(len(tokens))])
    assert reads["model.embed_tokens.weight"] >= len(tokens)
    np.testing.assert_allclose(sliced, result, rtol=0, atol=1e-5 * np.abs(result).max())


@pytest.mark.parametrize(
    ("name", "twice"), [("llama", 0), ("gemma2", 0), ("mixtral", 0), ("gpt-oss-mxfp4", 2), ("deepseek-v3", 0)]
)
def test_parameters_are_the_source_checkpoints(name: str, twice: int, tmp_path: Path) -> None:
    """`twice`: values in a byte of packed blocks, whose scales do not count. A layer that only predicts a token further
    on does not count either."""
    folder = write_checkpoint(name, tmp_path / name)
    header = load_header(folder / "model.safetensors")
    further = f".layers.{expected(name).config['num_hidden_layers']}."
    sizes = {tensor: int(np.prod(entry["shape"])) for tensor, entry in header.items() if further not in tensor}
    total = sum(
        0 if twice and tensor.endswith("_scales") else size * (twice if twice and tensor.endswith("_blocks") else 1)
        for tensor, size in sizes.items()
    )
    with open_folder(folder) as engine:
        assert engine.n_parameters == total
        assert engine.n_bytes == (folder / "model.safetensors").stat().st_size


def load_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return header


# --- what it takes ---


def counted(real: Callable[..., Any], reads: Counter[str]) -> Callable[..., Any]:
    def read(self: Any, name: str, *bounds: int) -> Any:
        reads[name] += 1
        return real(self, name, *bounds)

    return read


@pytest.mark.parametrize("name", ["llama", "mixtral", "deepseek-v3"])
def test_a_layers_weights_are_read_once_for_all_windows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Counter[str]()
    with open_folder(write_checkpoint(name, tmp_path / name), threads=2) as engine:
        monkeypatch.setattr(Native, "whole", counted(Native.whole, reads))
        engine.prepare(windows(engine.n_vocab), tmp_path / "work", SILENT)
        layers = {tensor for tensor in engine.source.tensors if engine.source.decoder.layer_of(tensor) is not None}
    assert {tensor: count for tensor, count in reads.items() if tensor in layers} == dict.fromkeys(layers, 1)


def test_experts_that_no_token_was_sent_to_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four experts a token: one window of one token over and over asks for two."""
    folder = tiny_llama(tmp_path / "model", variant="mixtral", layers=1)
    reads = Counter[str]()
    with open_folder(folder, threads=2) as engine:
        monkeypatch.setattr(Native, "whole", counted(Native.whole, reads))
        engine.prepare(np.full((1, 16), 7, np.int32), tmp_path / "work", SILENT)
        tensors, config = load(folder)
        wanted, count = int(config["num_experts_per_tok"]), int(config["num_local_experts"])
    experts = {name.split(".experts.")[1].split(".")[0] for name in reads if ".experts." in name}
    assert wanted < count
    assert len(experts) == wanted
    with open_folder(folder) as engine:
        result = all_logits(engine, np.full((1, 16), 7, np.int32), tmp_path / "work")
    reference = plain(tensors, config, np.full((1, 16), 7, np.int32))
    np.testing.assert_allclose(result, reference, rtol=0, atol=2e-5 * np.abs(reference).max())


def test_only_the_scored_states_are_left_and_less_disk_is_taken_than_said(tmp_path: Path) -> None:
    work, most = tmp_path / "work", 0
    with open_folder(tiny_llama(tmp_path / "model", variant="mixtral"), threads=2) as engine:

        def watch(_done: int, _layers: int) -> None:
            nonlocal most
            most = max(most, sum(path.stat().st_size for path in work.iterdir() if path.name != "journal"))

        engine.prepare(windows(700), work, Recorded(watch))
        hidden = int(engine.config["hidden_size"])
        assert most == engine.work_bytes(*SHAPE) == 4 * 5 * 32 * hidden * 4
    assert {path.name: path.stat().st_size for path in work.iterdir() if path.name != "journal"} == {
        "scored": 5 * 15 * hidden * 4
    }


def test_a_disk_too_small_is_told_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with (
        open_folder(tiny_llama(tmp_path / "model")) as engine,
        pytest.raises(QuantkitError, match=r"for the hidden states of 5 windows, 1 kB are free"),
    ):
        engine.prepare(windows(700), tmp_path / "work", Recorded(lambda _done, _layers: pytest.fail("it began")))


_PEAK = """
import sys
from pathlib import Path
import numpy as np
from quantkit.machine import peak_memory
from quantkit.measurement.folder_engine import open_folder
from quantkit.progress import SILENT
with open_folder(Path(sys.argv[1]), threads=2) as engine:
    engine.prepare(np.arange(1024, dtype=np.int32).reshape(4, 256) % 700, Path(sys.argv[2]), SILENT)
    engine.logits(3)
print(peak_memory())
"""


def test_memory_does_not_grow_with_depth(tmp_path: Path) -> None:
    """Five layers more are 42 MB in the file's bfloat16 and 84 MB in the forward's float32."""
    peaks = []
    for layers in (2, 7):
        folder = tiny_llama(tmp_path / f"model{layers}", hidden=512, intermediate=2048, layers=layers)
        words = [sys.executable, "-c", _PEAK, folder, tmp_path / f"work{layers}"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 40e6


_WITH_TORCH = """
import sys
from pathlib import Path
import numpy as np, torch
from quantkit.measurement.folder_engine import open_folder
from quantkit.progress import SILENT
folder, work = map(Path, sys.argv[1:])
with open_folder(folder, device=torch.device("cpu")) as engine:
    engine.prepare(np.load(work / "tokens.npy"), work, SILENT)
    np.save(work / "logits.npy", np.stack([engine.logits(window) for window in range(5)]))
"""


@pytest.mark.full
@pytest.mark.parametrize("name", ["gemma2", "gpt2", "mixtral", "gpt-oss-mxfp4"])
def test_torch_computes_what_numpy_computes(name: str, tmp_path: Path) -> None:
    """In the converter's environment, which has torch; what else quantkit imports comes from this one."""
    folder, work, tokens = write_checkpoint(name, tmp_path / name), tmp_path / "work", windows(280, (5, 16))
    work.mkdir()
    np.save(work / "tokens.npy", tokens)
    done = subprocess.run(
        [str(peer_converter().python), "-c", _WITH_TORCH, folder, work],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{sysconfig.get_path('purelib')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    with open_folder(folder) as engine:
        ours = all_logits(engine, tokens, tmp_path / "ours")
    np.testing.assert_allclose(np.load(work / "logits.npy"), ours, rtol=0, atol=1e-4 * np.abs(ours).max())


# --- kills ---


class Killed(Exception):
    pass


def killed_after(layers: int) -> Recorded:
    def progress(done: int, _layers: int) -> None:
        if done == layers:
            raise Killed

    return Recorded(progress)


@pytest.mark.parametrize("variant", ["smollm2", "mixtral"])
@pytest.mark.parametrize("layers", [0, 1, 3, 4])
def test_a_killed_run_goes_on_at_the_layer_it_was_in(
    variant: str, layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_llama(tmp_path / "model", variant=variant, layers=4)
    tokens, reads, progress = windows(700), Counter[str](), Recorded()
    with open_folder(folder, threads=2) as engine:
        engine.prepare(tokens, tmp_path / "whole", SILENT)
        with pytest.raises(Killed):
            engine.prepare(tokens, tmp_path / "work", killed_after(layers))
    with open_folder(folder, threads=2) as engine:
        monkeypatch.setattr(Native, "whole", counted(Native.whole, reads))
        engine.prepare(tokens, tmp_path / "work", progress)
        number = engine.source.decoder.layer_of
        assert {number(name) for name in reads} - {None} == set(range(layers, 4))
    assert progress.reports == [(done, 4) for done in range(layers, 5)]
    assert (tmp_path / "work/scored").read_bytes() == (tmp_path / "whole/scored").read_bytes()


def test_a_kill_within_a_layer_costs_that_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_llama(tmp_path / "model", variant="mixtral", layers=4)
    tokens, real = windows(700), Native.whole

    def failing(self: Native, name: str) -> Any:
        if name.startswith("model.layers.2.") and ".experts.3." in name:
            raise Killed
        return real(self, name)

    with open_folder(folder, threads=2) as engine:
        engine.prepare(tokens, tmp_path / "whole", SILENT)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Native, "whole", failing)
            engine.prepare(tokens, tmp_path / "work", SILENT)
        progress = Recorded()
        engine.prepare(tokens, tmp_path / "work", progress)
    assert progress.reports[0] == (2, 4)
    assert (tmp_path / "work/scored").read_bytes() == (tmp_path / "whole/scored").read_bytes()


def test_what_is_finished_is_not_computed_again_but_for_other_windows_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_llama(tmp_path / "model")
    tokens, reads = windows(700), Counter[str]()
    with open_folder(folder) as engine:
        first = all_logits(engine, tokens, tmp_path / "work")
    with open_folder(folder) as engine:
        monkeypatch.setattr(Native, "whole", counted(Native.whole, reads))
        engine.prepare(tokens, tmp_path / "work", SILENT)
        assert not reads
        assert (engine.logits(2) == first[2]).all()
        other = all_logits(engine, tokens[::-1].copy(), tmp_path / "work")
    np.testing.assert_allclose(other, first[::-1], rtol=0, atol=1e-5 * np.abs(first).max())


def test_states_that_are_gone_are_computed_again(tmp_path: Path) -> None:
    folder, tokens = tiny_llama(tmp_path / "model", layers=4), windows(700)
    with open_folder(folder) as engine:
        engine.prepare(tokens, tmp_path / "whole", SILENT)
        with pytest.raises(Killed):
            engine.prepare(tokens, tmp_path / "work", killed_after(2))
        (tmp_path / "work/states-0").unlink()
        engine.prepare(tokens, tmp_path / "work", SILENT)
    assert (tmp_path / "work/scored").read_bytes() == (tmp_path / "whole/scored").read_bytes()


# --- bad input ---


def harm(folder: Path, tensor: str, row: int) -> None:
    """One NaN in a row of a tensor."""
    tensors, _ = load(folder)
    values = np.array(tensors[tensor])
    values.reshape(-1, values.shape[-1])[row, 0] = np.nan
    write_safetensors(
        folder / "model.safetensors", {name: ("BF16", array) for name, array in {**tensors, tensor: values}.items()}
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("tensor", "what"),
    [("model.layers.1.mlp.down_proj.weight", "model.layers.1"), ("model.layers.0.input_layernorm.weight", "layers.0")],
)
def test_states_that_are_not_finite_are_told_by_layer_and_chunk(tensor: str, what: str, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    harm(folder, tensor, 0)
    with open_folder(folder) as engine, pytest.raises(MeasureError) as refused:
        engine.prepare(windows(700), tmp_path / "work", SILENT)
    assert str(refused.value).startswith("model: ")
    assert f"{what} gives hidden states that are not finite (NaN or infinite) for chunk 1;" in str(refused.value)


def test_a_broken_row_of_the_embedding_is_told_by_the_chunk_that_has_its_token(tmp_path: Path) -> None:
    folder, tokens = tiny_llama(tmp_path / "model"), windows(600)
    harm(folder, "model.embed_tokens.weight", 650)
    tokens[3, 9] = 650
    with (
        open_folder(folder) as engine,
        pytest.raises(QuantkitError, match=r"the embedding gives .* not finite .* for chunk 4;"),
    ):
        engine.prepare(tokens, tmp_path / "work", SILENT)


def test_a_token_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with (
        open_folder(tiny_llama(tmp_path / "model")) as engine,
        pytest.raises(QuantkitError, match="the text has token 768, but model has a vocabulary of 768"),
    ):
        engine.prepare(np.full((1, 16), 768, np.int32), tmp_path / "work", SILENT)


def test_a_window_longer_than_the_models_positions_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint("gpt2", tmp_path / "gpt2")
    n_positions = int(json.loads((folder / "config.json").read_text())["n_positions"])
    with (
        open_folder(folder) as engine,
        pytest.raises(QuantkitError, match=f"gpt2 has {n_positions} positions, fewer than a window of 512 tokens"),
    ):
        engine.prepare(windows(200, (2, 512)), tmp_path / "work", SILENT)


def remade(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        config = json.loads((tiny_llama(folder) / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return make


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda _folder: None, "is not a folder"),
        (Path.mkdir, "has no config.json"),
        (lambda folder: folder.write_text("GGUF"), "is not a folder"),
        (lambda folder: (tiny_llama(folder) / "config.json").write_text("{"), "config.json of .* is not"),
        (lambda folder: (tiny_llama(folder) / "model.safetensors").unlink(), "holds no weights"),
        (
            remade(lambda config: config.update(quantization_config={"quant_method": "quanto"})),
            "is already quantized .*quanto",
        ),
        (
            remade(lambda config: config.update(quantization_config={"quant_method": "awq", "bits": 4})),
            "has awq of '4' bits in groups of 'None'",
        ),
        (
            remade(
                lambda config: config.update(
                    quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
                )
            ),
            "states quantization but no packed weights exist",
        ),
        (remade(lambda config: config.update(architectures=["RefactForCausalLM"])), "RefactForCausalLM"),
    ],
)
def test_a_folder_that_is_no_model_is_one_sentence(
    make: Callable[[Path], object], sentence: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    make(folder)
    with pytest.raises(QuantkitError, match=sentence) as refused:
        open_folder(folder)
    assert "\n" not in str(refused.value)
