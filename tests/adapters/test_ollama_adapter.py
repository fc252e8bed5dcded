"""`ollama --adapter`: an ADAPTER line in every Modelfile, a layer of its own on the server, a check of the shapes."""

import json
import shutil
from pathlib import Path

import pytest
from gguf import GGUFWriter

from quantkit.publish.ollama.modelfile import parse_modelfile
from tests.adapters.cases import write_base
from tests.helpers.adapters import AdapterCase, write_adapter
from tests.helpers.command import quantkit
from tests.helpers.ollama_server import running_ollama
from tests.helpers.tiny import tiny_llama

COMMON = ("--name", "ns/tuned", "--chat-template", "none", "--size", "1b")
CASE = AdapterCase(("embed_tokens", "lm_head", "q_proj", "down_proj"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of two GGUF types, and the GGUF of an adapter."""
    root = tmp_path_factory.mktemp("tuned")
    base = write_base("plain", root / "plain")
    adapter = write_adapter(root / "adapter", base, CASE)
    for words in (("gguf", base, "-t", "f16", "-t", "f32", "--no-logits"), ("lora", adapter, "--base", base)):
        answer = quantkit(*words, "-o", root)
        assert answer.code == 0, answer.stderr
    (file,) = root.rglob("*LoRA.gguf")
    return root / "plain-GGUF", file


@pytest.fixture
def folder(made: tuple[Path, Path], tmp_path: Path) -> Path:
    return shutil.copytree(made[0], tmp_path / "plain-GGUF")


def test_every_modelfile_has_the_adapter_after_its_model(made: tuple[Path, Path], folder: Path) -> None:
    adapter = shutil.copy(made[1], folder / "tuned-LoRA.gguf")
    answer = quantkit("ollama", folder, *COMMON, "--adapter", adapter, "--format", "json")
    assert answer.code == 0, answer.stderr
    for item in json.loads(answer.stdout)["quantizations"]:
        text = (folder / item["modelfile"]).read_text()
        assert text.splitlines()[:2] == [f"FROM ./{item['files'][0]}", "ADAPTER ./tuned-LoRA.gguf"]
        assert parse_modelfile(text).adapter == "./tuned-LoRA.gguf"
        assert item["adapter"] == str(adapter)
        # its FROM is the other tag, which has the adapter already
        assert "ADAPTER" not in (folder / item["gpu_modelfile"]).read_text()
        assert quantkit("ollama", "--check", folder / item["modelfile"]).code == 0


def test_the_server_gets_the_adapter_once_as_a_layer_of_every_tag(made: tuple[Path, Path], folder: Path) -> None:
    with running_ollama() as ollama:
        words = ("--adapter", made[1], "--push", "--insecure", "--host", ollama.url)
        answer = quantkit("ollama", folder, *COMMON, *words)
        assert answer.code == 0, answer.stderr
        for model in ollama.models.values():
            kinds = [kind.split(" ")[0] for kind, _ in model["layers"]]
            assert kinds.count("model") == kinds.count("adapter") == 1
        assert ollama.uploads() == 3
        (digest,) = {
            digest for model in ollama.models.values() for kind, digest in model["layers"] if "adapter" in kind
        }
        assert ollama.blobs[digest] == made[1].read_bytes()


def _adapter(path: Path, arch: str, tensors: dict[str, tuple[int, ...]], kind: str = "adapter") -> Path:
    import numpy as np

    writer = GGUFWriter(path, arch)
    writer.add_string("general.type", kind)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for name, shape in tensors.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("arch", "kind", "tensors", "words"),
    [
        ("qwen3", "adapter", {}, "is for the architecture qwen3, but plain-F16.gguf is llama"),
        ("llama", "model", {}, "is not a LoRA adapter: general.type is 'model', adapter.type 'lora'"),
        (
            "llama",
            "adapter",
            {"blk.7.attn_q.weight.lora_a": (4, 64), "blk.7.attn_q.weight.lora_b": (64, 4)},
            "changes blk.7.attn_q.weight, which plain-F16.gguf does not have",
        ),
        (
            "llama",
            "adapter",
            {"blk.0.attn_q.weight.lora_a": (4, 32), "blk.0.attn_q.weight.lora_b": (64, 4)},
            "has shape [4, 32], but blk.0.attn_q.weight of plain-F16.gguf has [64, 64]",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_sentence(
    arch: str, kind: str, tensors: dict[str, tuple[int, ...]], words: str, folder: Path, tmp_path: Path
) -> None:
    file = _adapter(tmp_path / "other.gguf", arch, tensors, kind)
    answer = quantkit("ollama", folder, *COMMON, "--adapter", file)
    assert (answer.code, words in answer.sentence) == (2, True), answer.stderr
    assert not list(folder.glob("Modelfile*"))


def test_an_adapter_of_neurons_in_another_order_is_one_sentence(tmp_path: Path) -> None:
    # as many neurons as a block of Q6_K has values: fewer get another type, which keeps their order
    sizes = {"hidden": 64, "intermediate": 256, "heads": 4, "kv_heads": 2}
    base = tiny_llama(tmp_path / "wide", variant="llama3", dtype="f32", **sizes)
    words = ("--solver", "feedback", "--reorder-neurons", "--samples", "8", "--seq-len", "32", "--no-logits")
    answer = quantkit("gguf", base, "-t", "q6_k", *words, "-o", tmp_path)
    assert answer.code == 0, answer.stderr
    adapter = write_adapter(tmp_path / "adapter", base, CASE)
    assert quantkit("lora", adapter, "--base", base, "-o", tmp_path).code == 0
    (written,) = tmp_path.rglob("*LoRA.gguf")
    answer = quantkit("ollama", tmp_path / "wide-GGUF", *COMMON, "--adapter", written)
    assert answer.code == 2
    sentence = "changes blk.0.ffn_down.weight, but the neurons of wide-Q6_K.gguf have another order"
    assert sentence in answer.sentence
    of_attention = {"blk.0.attn_q.weight.lora_a": (4, 64), "blk.0.attn_q.weight.lora_b": (64, 4)}
    file = _adapter(tmp_path / "attention.gguf", "llama", of_attention)
    assert quantkit("ollama", tmp_path / "wide-GGUF", *COMMON, "--adapter", file).code == 0


def test_an_adapter_that_is_absent_or_no_gguf_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    answer = quantkit("ollama", folder, *COMMON, "--adapter", tmp_path / "none.gguf")
    assert answer.code == 2 and "none.gguf not found; check the path" in answer.sentence
    (tmp_path / "text.gguf").write_text("text")
    answer = quantkit("ollama", folder, *COMMON, "--adapter", tmp_path / "text.gguf")
    assert answer.code == 2 and "pass the GGUF that quantkit lora writes" in answer.sentence
