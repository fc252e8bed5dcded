"""A calibration from end to end, in every architecture: the folders it writes, reloaded, say what the source says."""

import errno
import hashlib
import json
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.conversion import run as run_module
from quantkit.conversion.run import Result
from quantkit.errors import CalibrationError, OutputError, ReadError, UnsupportedError
from quantkit.families import forward_architectures, reference_logits
from quantkit.families.base.native import Native
from quantkit.gguf.file_types import file_type
from quantkit.outputs.gguf_files import GgufRequest
from quantkit.outputs.packed_folders import FolderRequest
from quantkit.outputs.plan import ConversionPlan, ConversionRequest
from quantkit.outputs.planner import plan_conversion
from quantkit.packed.reader import open_quantized
from quantkit.quant.grid import Grid
from quantkit.stream import states
from quantkit.texts.samples import SampledText, Samples
from quantkit.verify import Verified
from quantkit.verify.source_logits import correlations
from tests.families.expected import expected, write_checkpoint
from tests.families.models import TOKENS, all_cases, forward_cases
from tests.forward.test_linears import everyone_everywhere
from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama

EIGHT_BIT = (FolderRequest("awq", Grid(8, 16)), FolderRequest("gptq", Grid(8, -1, symmetric=True)))
# Widths that no usual group divides.
WHOLE_ROWS = (FolderRequest("awq", Grid(8, -1)), FolderRequest("gptq", Grid(8, -1, symmetric=True)))
# No architecture of transformers is the same, or none of its loaders reads experts stacked in one tensor.
NO_NATIVE = {"baichuan-13b", "baichuan2-13b"}
STACKED_ONLY = {name for name in all_cases() if name.startswith(("gpt-oss", "granitemoe", "gemma4-experts", "llama4"))}
STACKED_ONLY |= {"granitehybrid", "granitehybrid-experts-without-mamba"}
UNPACKED = {"falcon-mamba", "jamba", "mamba", "mamba-silent-rank", "mamba2", "mamba2-tied", "nemotron-h-moe"}
UNPACKED |= {"jais", "jais-13b", "laguna", "laguna-plain", "muse-glimmer", "muse-glimmer-plain", "phimoe"}
UNPACKED |= {
    "bamba",
    "deepseek-ocr",
    "deepseek-v4",
    "deepseek-v4-plain",
    "deepseek-v4-unpacked",
    "dots3",
    "dots3-later-token",
    "hy-v4",
    "kimi-k3",
    "kimi-linear",
    "lfm2-colbert",
    "ling3",
    "ling3-limits",
    "maple",
    "nanbeige-once",
    "minimax-m3",
    "minimax-m3-text",
    "rwkv6",
    "rwkv7",
    "rwkv7-original",
    "smallthinker",
    "smallthinker-plain",
    "spark-x2.5",
    "step3.5",
    "step3.5-plain",
    "step3.7",
}
ENCODERS = {name for name, (_, case) in all_cases().items() if case.encoder}
WRITTEN = sorted(forward_cases().keys() - NO_NATIVE - STACKED_ONLY - UNPACKED - ENCODERS)
# One or two a group in the default suite: what differs in folds, linears, experts or names.
FIRST = {
    "baichuan2",  # remote code, packed queries, keys and values; normed head
    "bloom",  # biases, norms with biases, no folds through attention's rows
    "gpt2",  # turned matrices
    "falcon-40b",  # parallel, two norms
    "olmo2",  # norms after, nothing to fold into
    "deepseek-v3",  # latent attention, shared experts, a first dense layer
    "mixtral",
    "gemma2",  # an offset in norms, four norms a layer
    "qwen2moe-fused-no-biases",  # experts in one tensor that leave one by one, a gated shared expert
    "phi-4k",  # packed linears
}
# Correlation of a token's logits in 8 bit, on average and at worst: folds or rows out of place leave about 0.
MEAN, LEAST = 0.985, 0.9
# Gates below a quantile are cut off, and an error of a hundredth moves some of them across it.
MEAN_OF = {"gemma3n-deep": 0.975}
# An indexer chooses the keys that a token attends to, and an error of a hundredth changes a choice.
LEAST_OF = {"deepseek-v3.2": 0.8}


def samples(vocab: int, shape: tuple[int, int] = (8, 24), seed: int = 0) -> Samples:
    tokens = np.random.default_rng(seed).integers(3, vocab, shape).astype(np.int32)
    return Samples(tokens, (SampledText("random", "0" * 64, tokens.size, len(tokens)),), chat=False)


def planned(
    source: Checkpoint, out: Path, requests: Sequence[FolderRequest] = EIGHT_BIT, **options: Any
) -> ConversionPlan:
    request = ConversionRequest(out, "M", folders=tuple(requests), **{"threads": 1, **options})
    return plan_conversion(source, request, samples(int(Native(source, nearest=True).config["vocab_size"])))


def written(name: str, folder: Path) -> Path:
    """The case's checkpoint; in a mixture every token goes to every expert.

    Else an error of a hundredth sends a token to another expert here and there, which is much in models as small as
    these, whose experts know nothing of each other; routes are tested with the stream.
    """
    write_checkpoint(name, folder)
    config = json.loads((folder / "config.json").read_text())
    if "text_config" in config:
        config["text_config"] = everyone_everywhere(config["text_config"])
    (folder / "config.json").write_text(json.dumps(everyone_everywhere(config)))
    return folder


def calibrated(name: str, folder: Path, requests: Sequence[FolderRequest] = EIGHT_BIT) -> tuple[Result, np.ndarray]:
    """The case's model calibrated into `folder`; with it, the source's logits."""
    with open_checkpoint(str(written(name, folder / name))) as checkpoint:
        native = Native(checkpoint)
        result = run_module.run(planned(checkpoint, folder, requests))
        return result, reference_logits(
            native.whole, native.config, TOKENS, rows=native.rows, names=native.tensors.keys()
        )


Made = tuple[Path, Result, np.ndarray]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """The folder of a case's outputs, their result, and the source's logits; each case is calibrated once."""

    @cache
    def once(name: str) -> Made:
        folder = tmp_path_factory.mktemp("made")
        return folder, *calibrated(name, folder, WHOLE_ROWS if name.startswith("deepseek") else EIGHT_BIT)

    return once


def logits(folder: Path) -> np.ndarray:
    with open_quantized(folder) as opened:
        weights = opened.weights
        return reference_logits(weights.read, opened.config, TOKENS, rows=weights.rows, names=weights.names)


@pytest.mark.parametrize(
    "name", [name if name in FIRST else pytest.param(name, marks=pytest.mark.full) for name in WRITTEN]
)
def test_folders_of_every_architecture_give_the_sources_logits(name: str, made: Callable[[str], Made]) -> None:
    place, result, source = made(name)
    by_method = {folder.output.request.method: logits(folder.output.folder) for folder in result.outputs}
    assert by_method.keys() == {"awq", "gptq"}
    correlation = {method: correlations(values, source) for method, values in by_method.items()}
    assert min(values.mean() for values in correlation.values()) > MEAN_OF.get(name, MEAN), correlation
    assert min(values.min() for values in correlation.values()) > LEAST_OF.get(name, LEAST), correlation
    assert [folder.failed for folder in result.outputs] == [(), ()]
    # every linear's error is noted, and none is at a loss in 8 bit
    for folder in result.outputs:
        assert folder.errors.keys() == folder.output.quantized.keys()
        assert max(folder.errors.values()) < 0.01
    assert {path.name for path in place.iterdir()} == {name, "M-AWQ", "M-GPTQ"}


def test_unpacked_lists_every_case_that_no_loader_runs() -> None:
    known, configs = forward_architectures(), {name: expected(name).config for name in forward_cases()}
    architectures = {name: known.get(config["architectures"][0]) for name, config in configs.items()}
    refused = {name for name, found in architectures.items() if found and found.unpacked(configs[name])}
    assert refused - ENCODERS == UNPACKED


@pytest.mark.parametrize("name", ["mamba2", "jamba", "nemotron-h-moe", "jais", "kimi-linear", "laguna", "phimoe"])
def test_a_model_that_no_loader_runs_is_refused(name: str, tmp_path: Path) -> None:
    done = quantkit("gptq", write_checkpoint(name, tmp_path / name), "-o", tmp_path / "out")
    assert done.code == 1
    assert "so quantkit writes no GPTQ folder of this model; convert it to GGUF" in done.sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(NO_NATIVE))
def test_what_no_architecture_of_transformers_is_the_same_as_is_refused(name: str, tmp_path: Path) -> None:
    with (
        open_checkpoint(str(write_checkpoint(name, tmp_path / name))) as checkpoint,
        pytest.raises(UnsupportedError, match="convert it to GGUF instead"),
    ):
        Native(checkpoint)


@pytest.mark.parametrize("name", ["gpt-oss-mxfp4", "granitemoeshared"])
def test_experts_that_stand_in_one_tensor_only_are_refused(name: str, tmp_path: Path) -> None:
    with (
        open_checkpoint(str(write_checkpoint(name, tmp_path / name))) as checkpoint,
        pytest.raises(UnsupportedError, match=r"mlp\.experts|block_sparse_moe.*convert this model to GGUF"),
    ):
        planned(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Of each: the router, a shared expert's gate if there is one, and the norm before them.
GATES = {
    "mixtral": (["block_sparse_moe.gate"], "post_attention_layernorm"),
    "qwen2moe-fused-no-biases": (["mlp.gate", "mlp.shared_expert_gate"], "post_attention_layernorm"),
    "deepseek-v3": (["mlp.gate"], "post_attention_layernorm"),
}


@pytest.mark.parametrize("name", GATES)
def test_routers_and_gates_stay_as_they_are_but_for_what_the_norm_before_them_gave_away(
    name: str, made: Callable[[str], Made]
) -> None:
    place, result, _ = made(name)
    gates, norm = GATES[name]
    last = len(result.plan.folders[0].layers) - 1
    norm = f"model.layers.{last}.{norm}.weight"
    with open_checkpoint(str(place / name)) as checkpoint:
        native = Native(checkpoint)
        source = {key: native.whole(key) for key in [norm, *(f"model.layers.{last}.{gate}.weight" for gate in gates)]}
    for folder in result.outputs:
        config = json.loads((folder.output.folder / "config.json").read_text())["quantization_config"]
        with open_quantized(folder.output.folder) as opened:
            # what loaders of AWQ and of GPTQ are told to leave alone
            text = json.dumps(config.get("modules_to_not_convert") or config.get("dynamic"))
            assert "lm_head" in text or config.get("lm_head") is False or "lm_head.weight" not in opened.tensors
            for gate in gates:
                assert gate.rpartition(".")[2] in text
                stored = opened.stored(f"model.layers.{last}.{gate}.weight")
                assert stored.dtype == np.float16
                product = stored.astype(np.float32) * opened.stored(norm).astype(np.float32)
                expected = source[f"model.layers.{last}.{gate}.weight"] * source[norm]
                np.testing.assert_allclose(product, expected, rtol=3e-3, atol=1e-4 * np.abs(expected).max())
            for key in ("model.embed_tokens.weight", "lm_head.weight"):
                if key in opened.tensors:
                    assert opened.tensors[key].dtype == "F16"
                    with open_checkpoint(str(place / name)) as checkpoint:
                        assert np.array_equal(opened.stored(key), Native(checkpoint).whole(key).astype(np.float16))
            scaled = not np.allclose(opened.stored(norm), source[norm], rtol=1e-3)
            assert scaled == (folder.output.request.method == "awq")


# --- kills ---


LAYERS = 8


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many layers, so that kills land in them."""
    return tiny_llama(
        tmp_path_factory.mktemp("deep") / "deep", variant="llama3", hidden=64, intermediate=96, layers=LAYERS, vocab=512
    )


FOUR_BIT = (FolderRequest("awq", Grid(4, 32)), FolderRequest("gptq", Grid(4, 32, symmetric=True)))


def run(source: Path, out: Path, requests: Sequence[FolderRequest] = FOUR_BIT, **options: Any) -> Result:
    calling = {name: options.pop(name) for name in ("force", "progress") if name in options}
    with open_checkpoint(str(source)) as checkpoint:
        plan = planned(checkpoint, out, requests, **{"threads": 1, **options})
        return run_module.run(plan, logits=False, **calling)


def hashes(folder: Path) -> dict[str, str]:
    """Of every file but the record, which has times in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "quantkit.json"
    }


@pytest.fixture(scope="module")
def undisturbed(deep: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed")
    run(deep, out)
    assert {path.name for path in out.iterdir()} == {"M-AWQ", "M-GPTQ"}
    return hashes(out)


def layers_done(out: Path) -> int:
    try:
        return (out / "M-conversion.partial" / "journal").read_text().count('"tensor":"layer')
    except FileNotFoundError:
        return 0


class KillAfter:
    """A progress that kills its own process by SIGKILL so long after its layer `after`, resumed layers among them.

    Another process that waits for the layer could get its turn when the run has ended.
    """

    def __init__(self, after: int, pause: float) -> None:
        self.left, self.timer = after, threading.Timer(pause, os.kill, (os.getpid(), signal.SIGKILL))

    def start(self, stage: str, total: int = 0) -> None:
        self._kill_if_due()

    def advance(self, amount: int = 1, item: str = "") -> None:
        self.left -= amount if item.startswith("layer") else 0
        self._kill_if_due()

    def _kill_if_due(self) -> None:
        if self.left <= 0 and self.timer.ident is None:
            self.timer.start()


def killed(source: Path, out: Path, after: int, pause: float) -> bool:
    """A run killed by SIGKILL so long after its layer `after`; whether it was still running."""

    def run_until_killed() -> None:
        run(source, out, progress=KillAfter(after, pause))

    process = multiprocessing.get_context("fork").Process(target=run_until_killed, daemon=True)
    process.start()
    process.join()
    return process.exitcode == -signal.SIGKILL


def test_the_same_run_gives_the_same_bytes(deep: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    run(deep, tmp_path)
    assert hashes(tmp_path) == undisturbed


def test_a_journal_that_lost_its_last_layers_ends_in_the_same_bytes(
    deep: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """The states of the first layer that is missing in the journal have been overwritten by a later one."""
    assert killed(deep, tmp_path, 4, 0.0)
    journal = tmp_path / "M-conversion.partial" / "journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if b'"tensor":"layer 2"' in line)
    journal.write_bytes(b"".join(lines[:first]))
    assert run(deep, tmp_path).resumed_layers == 0
    assert hashes(tmp_path) == undisturbed


def test_a_run_killed_at_ten_moments_ends_in_the_same_bytes(
    deep: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    moments = random.Random(4)
    kills = 0
    for after in (0, 0, 1, 2, 3, 4, 5, 6, 7, LAYERS):
        kills += killed(deep, tmp_path, after, moments.uniform(0, 0.03))
        if not (tmp_path / "M-conversion.partial").exists() and kills > 2:
            break  # the last ones may come too late
        assert not (tmp_path / "M-AWQ").exists()
        assert not (tmp_path / "M-GPTQ").exists()
    assert kills >= 8
    if (tmp_path / "M-conversion.partial").exists():
        result = run(deep, tmp_path)
        assert result.resumed_layers >= LAYERS - 1
    assert hashes(tmp_path) == undisturbed
    assert {path.name for path in tmp_path.iterdir()} == {"M-AWQ", "M-GPTQ"}


class Stopped(BaseException):
    """Stands for a kill at a certain point."""


class StopAfter:
    """A progress that ends the run once so many layers are done, those of an earlier run among them."""

    def __init__(self, layers: int, error: BaseException | None = None) -> None:
        self.left, self.error = layers, error or Stopped()

    def start(self, stage: str, total: int = 0) -> None:
        assert total >= 0, stage

    def advance(self, amount: int = 1, item: str = "") -> None:
        self.left -= amount
        if self.left <= 0 and item.startswith("layer"):
            raise self.error


def test_a_run_stopped_while_it_named_its_folders_names_the_rest(
    deep: Path, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run_module.name_output

    def first_only(path: Path, *, failed: bool) -> None:
        real(path, failed=failed)
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(run_module, "name_output", first_only)
        run(deep, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["M-AWQ.partial", "M-GPTQ", "M-conversion.partial"]
    result = run(deep, tmp_path)
    assert result.resumed_layers == LAYERS
    assert hashes(tmp_path) == undisturbed
    assert {path.name for path in tmp_path.iterdir()} == {"M-AWQ", "M-GPTQ"}


def test_a_run_that_was_stopped_goes_on_only_with_its_own_options_or_is_thrown_away(
    deep: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        run(deep, tmp_path, progress=StopAfter(5))
    others = (FOUR_BIT[0], FolderRequest("gptq", Grid(4, 32, symmetric=False)))
    with pytest.raises(OutputError, match=r"unfinished run with --sym \(now --asym\); finish"):
        run(deep, tmp_path, others)
    assert layers_done(tmp_path) == 5
    # another number of threads is no other run, and one layer less is there than was begun
    assert run(deep, tmp_path, force=True, threads=2).resumed_layers == 5
    with pytest.raises(Stopped):
        run(deep, tmp_path, force=True, progress=StopAfter(3))
    assert run(deep, tmp_path, others[1:], force=True).resumed_layers == 0
    assert {path.name for path in tmp_path.iterdir()} == {"M-AWQ", "M-GPTQ"}
    assert hashes(tmp_path / "M-GPTQ") != {
        name.removeprefix("M-GPTQ/"): digest for name, digest in undisturbed.items() if name.startswith("M-GPTQ/")
    }


def test_states_or_weights_that_went_missing_meanwhile_cost_the_run(
    deep: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    for gone in (
        "M-conversion.partial/states-1",
        "M-AWQ.partial/model.safetensors",
        "M-conversion.partial/squares-2.npz",
    ):
        with pytest.raises(Stopped):
            run(deep, tmp_path, progress=StopAfter(3))
        (tmp_path / gone).unlink()
        if gone.endswith("npz"):
            assert run(deep, tmp_path).resumed_layers == 0
    assert hashes(tmp_path) == undisturbed


def test_everything_is_written_and_checked_before_anything_gets_its_name(
    deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run_module.write_records
    options: dict[str, Any] = {"gguf": GgufRequest((file_type("q2_k"),), calibrate=True), "imatrix": True}

    def stop(plan: ConversionPlan, outputs: Sequence[Verified], *rest: Any) -> None:
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "M-AWQ.partial",
            "M-GGUF",
            "M-conversion.partial",
            "M-imatrix.gguf.partial",
        ]
        assert [path.name for path in (tmp_path / "M-GGUF").iterdir()] == ["M-Q2_K.gguf.partial"]
        assert [output.output.label for output in outputs] == ["AWQ", "Q2_K", "imatrix"]
        assert not any(output.failed for output in outputs)
        squares = rest[0].squares
        assert len(squares) == LAYERS * 7
        assert all(tokens == 8 * 24 for _, tokens in squares.values())
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(run_module, "write_records", stop)
        run(deep, tmp_path, FOUR_BIT[:1], **options)
    assert real is run_module.write_records
    result = run(deep, tmp_path, FOUR_BIT[:1], **options)
    assert (result.resumed_layers, result.resumed_tensors) == (LAYERS, len(result.plan.gguf.model.tensors))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["M-AWQ", "M-GGUF", "M-imatrix.gguf"]


KEPT = {
    "the disk is full": (OutputError("no space"), True),
    "the source cannot be read this time": (ReadError("the network"), True),
    "memory runs out": (MemoryError(), True),
    "the user stops it": (KeyboardInterrupt(), True),
    "the weights give NaN": (CalibrationError("not finite"), False),
    "a value does not fit float16": (UnsupportedError("too large"), False),
}


@pytest.mark.parametrize("name", KEPT)
def test_work_is_kept_where_the_same_command_can_go_on_with_it(name: str, deep: Path, tmp_path: Path) -> None:
    error, kept = KEPT[name]

    progress = StopAfter(2, error)
    with pytest.raises(CalibrationError if isinstance(error, MemoryError) else type(error)) as raised:
        run(deep, tmp_path, FOUR_BIT[1:], progress=progress)
    if isinstance(error, MemoryError):
        assert "fewer --threads" in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} == ({"M-GPTQ.partial", "M-conversion.partial"} if kept else set())
    assert layers_done(tmp_path) == (2 if kept else 0)


def test_after_a_full_disk_before_the_first_layer_the_same_run_goes_on(
    deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        # of the states alone
        patch.setattr(states, "write_at", full)
        with pytest.raises(OutputError, match="No space left"):
            run(deep, tmp_path, FOUR_BIT[1:])
    assert all(path.name.endswith(".partial") for path in tmp_path.iterdir())
    assert not run(deep, tmp_path, FOUR_BIT[1:]).failed
    assert [path.name for path in tmp_path.iterdir()] == ["M-GPTQ"]
