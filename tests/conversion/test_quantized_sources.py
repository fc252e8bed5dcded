"""Conversions of checkpoints that are already quantized, against conversions of their dequantized weights.

tests/checkpoint/test_quantized_sources.py compares the dequantized weights with other libraries.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from demo.safetensors_file import write_safetensors
from quantkit.checkpoint import open_checkpoint
from quantkit.families import open_model
from quantkit.quant.grid import Grid
from tests.families.expected import write_checkpoint
from tests.helpers.command import quantkit
from tests.helpers.tiny import tiny_llama
from tests.packed.folders import write_folder

FEW = ("--samples", "4", "--seq-len", "32", "--raw", "--group-size", "32")


def plain(folder: Path, out: Path) -> Path:
    """The checkpoint with its weights as they are read, in their read types, and no word of a quantization."""
    shutil.copytree(folder, out)
    for file in out.glob("*.safetensors*"):
        file.unlink()
    (out / "quantize_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    for key in ("quantization_config", "quantization"):
        config.pop(key, None)
    (out / "config.json").write_text(json.dumps(config))
    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    with open_model(str(folder)) as opened:
        tensors = {}
        for name, tensor in opened.tensors.items():
            values = opened.read_rows(name, 0, tensor.n_rows).reshape(tensor.shape)
            tensors[name] = (kinds[values.dtype.name], np.ascontiguousarray(values))
    write_safetensors(out / "model.safetensors", tensors)
    return out


def converted(folder: Path, kind: str) -> Path:
    """The tiny model quantized: by a format of quantkit's own, in a folder below `folder`."""
    source = write_checkpoint(kind.partition(" ")[2], folder / "m") if " " in kind else tiny_llama(folder / "m")
    method = kind.partition(" ")[0]
    if method in ("awq", "gptq"):
        write_folder(source, folder / "q", method, Grid(4, 16, method == "gptq"))
        return folder / "q"
    done = quantkit("convert", source, "-t", method, "-o", folder / "made")
    assert done.code == 0, done.stderr
    (made,) = (folder / "made").iterdir()
    return made


@pytest.mark.parametrize("kind", ["awq", "gptq", "nvfp4a16", "mxfp4a16", "mlx-4bit", "fp8", "awq mixtral", "gptq gpt2"])
def test_a_gguf_has_the_bytes_of_one_from_the_dequantized_weights(kind: str, tmp_path: Path) -> None:
    folder = converted(tmp_path, kind)
    other = plain(folder, tmp_path / "plain" / folder.name)
    for source, out in ((folder, "a"), (other, "b")):
        types = ("-t", "f32", "-t", "q8_0", "-t", "q4_k_m")
        done = quantkit("gguf", source, *types, "--name", "M", "-o", tmp_path / out)
        assert done.code == 0, done.stderr
        # fp8 has a note of its own kind: it is a type of tensors
        assert ("dequantizes each as it reads it" in " ".join(done.stderr.split())) == (out == "a" and kind != "fp8")
    made = sorted((tmp_path / "a" / "M-GGUF").glob("*.gguf"))
    assert len(made) == 3
    for path in made:
        assert path.read_bytes() == (tmp_path / "b" / "M-GGUF" / path.name).read_bytes(), path.name


def test_one_pass_writes_every_kind_of_output_from_a_quantized_source(tmp_path: Path) -> None:
    folder = converted(tmp_path, "gptq")
    types = ("awq", "w4a16", "fp8", "mlx-4bit", "q4_0", "imatrix")
    for source, out in ((folder, "a"), (plain(folder, tmp_path / "plain" / folder.name), "b")):
        arguments = [word for name in types for word in ("-t", name)]
        done = quantkit("convert", source, *arguments, *FEW, "--name", "M", "-o", tmp_path / out)
        assert done.code == 0, done.stderr
    made = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.safetensors"))
    made += sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.gguf"))
    assert len(made) == 6
    for path in made:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path


def test_measure_and_plan_take_a_quantization_that_quantkit_does_not_write(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "m")
    tensors = {}
    with open_checkpoint(str(source)) as opened:
        for name, tensor in opened.tensors.items():
            values = opened.read_rows(name, 0, tensor.n_rows).reshape(tensor.shape).astype(np.float32)
            if "_proj" not in name:
                tensors[name] = ("F32", values)
                continue
            scales = np.abs(values).max(axis=1, keepdims=True) / 127
            tensors[name] = ("I8", np.round(values / scales).astype(np.int8))
            tensors[f"{name}_scale"] = ("F32", scales)
            tensors[f"{name.removesuffix('weight')}input_scale"] = ("F32", np.ones(1, np.float32))
    folder = tmp_path / "W8A8"
    shutil.copytree(source, folder)
    write_safetensors(folder / "model.safetensors", tensors)
    config = json.loads((source / "config.json").read_text())
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": group},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    options = ("--text", tmp_path / "text.txt", "--ctx", "64", "--chunks", "2", "--format", "json")
    done = quantkit("measure", source, folder, *options, "-o", tmp_path / "report")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert json.dumps(report).count("W8A8")
    done = quantkit("plan", folder, "-t", "q4_0", "--format", "json")
    assert done.code == 0, done.stderr
    page = " ".join(quantkit("inspect", folder).stdout.split())
    assert "compressed-tensors 8 bit quantized checkpoint" in page and "packed as int-quantized" in page


@pytest.mark.parametrize("model", ["llama", "qwen2", "mixtral", "internlm2"])
def test_a_gguf_with_its_base_gives_the_folder_of_the_weights_it_was_made_from(model: str, tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "m", dtype="bf16") if model == "llama" else write_checkpoint(model, tmp_path / "m")
    done = quantkit("gguf", source, "-t", "f32", "-t", "q8_0", "--name", "M", "-o", tmp_path)
    assert done.code == 0, done.stderr
    exact, rounded = (tmp_path / "M-GGUF" / f"M-{kind}.gguf" for kind in ("F32", "Q8_0"))
    options = ("-t", "fp8", "--dtype", "bfloat16", "--name")
    for arguments in (
        (source, *options, "a"),
        (exact, "--base", source, *options, "b"),
        (rounded, "--base", source, *options, "c"),
    ):
        done = quantkit("convert", *arguments, "-o", tmp_path / "out")
        assert done.code == 0, done.stderr
    a, b, c = (tmp_path / "out" / f"{name}-FP8" for name in "abc")
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert json.loads((a / "config.json").read_text()) == json.loads((b / "config.json").read_text())
    assert {path.name for path in a.iterdir()} == {path.name for path in b.iterdir()}
    with open_model(str(a)) as first, open_model(str(c)) as second:
        assert first.tensors.keys() == second.tensors.keys()
        for name, tensor in first.tensors.items():
            x, y = (np.asarray(f.read_rows(name, 0, tensor.n_rows), np.float32) for f in (first, second))
            assert np.sqrt(np.mean((x - y) ** 2)) < 0.05 * np.sqrt(np.mean(x**2)), name


def test_a_gguf_and_a_base_that_do_not_fit_are_one_sentence(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "m")
    other = tiny_llama(tmp_path / "other", hidden=128)
    done = quantkit("gguf", source, "-t", "q8_0", "--name", "M", "-o", tmp_path)
    assert done.code == 0, done.stderr
    file = tmp_path / "M-GGUF" / "M-Q8_0.gguf"
    for arguments, words in (
        ((file, "-t", "fp8"), "with --base"),
        ((file, "-t", "fp8", "--base", other), "pass the model's own base"),
        ((source, "-t", "fp8", "--base", other), "--base is for a GGUF as SOURCE"),
    ):
        done = quantkit("convert", *arguments, "-o", tmp_path / "out")
        assert done.code in (1, 2)
        assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
