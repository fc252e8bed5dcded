"""xllamacpp's library by quantkit's own bindings: the logits of llama-cpp-python, in a process without llama_cpp."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import quantkit
from quantkit.llamacpp.evaluation import logits
from tests.helpers.tiny import tiny_llama
from tests.measurement.tiny_gguf import write_tiny_gguf

TOKENS = [3, 9, 27, 14, 8, 2]
WITHOUT_LLAMA_CPP = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "llama_cpp" else find(name, *rest)
from quantkit.llamacpp import calls
import numpy as np
assert calls.llama.__name__ == "quantkit.llamacpp.bindings"
settings = calls.llama.llama_context_default_params()
assert settings.offload_kqv and settings.swa_full and not settings.embeddings and settings.flash_attn_type == -1
assert calls.llama.llama_model_default_params().n_gpu_layers == -1
with calls.load(sys.argv[1]) as model, calls.context(model, 1, n_ctx=64, flash_attn_type=0, type_k=0, type_v=0) as run:
    n_vocab = calls.llama.llama_vocab_n_tokens(calls.llama.llama_model_get_vocab(model))
    np.save(sys.argv[2], calls.decode(run, {TOKENS}, 0, n_vocab))
"""


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed")
@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is the oracle")
def test_the_wheel_without_a_build_gives_llama_cpp_pythons_logits(tmp_path: Path) -> None:
    model = write_tiny_gguf(tiny_llama(tmp_path / "tiny", dtype="f32", variant="mistral"), tmp_path / "tiny.gguf")
    out = tmp_path / "logits.npy"
    subprocess.run([sys.executable, "-c", WITHOUT_LLAMA_CPP, str(model), str(out)], check=True)
    np.testing.assert_allclose(np.load(out), logits(model, TOKENS), rtol=1e-5, atol=1e-6)


def test_every_function_that_the_child_process_calls_has_its_types() -> None:
    package = Path(quantkit.__file__).parent / "llamacpp"
    used = {name for path in package.glob("*.py") for name in re.findall(r"\bllama\.(\w+)", path.read_text("utf-8"))}
    used = {name for name in used if name.startswith(("llama_", "ggml_"))}
    stated = set(re.findall(r"\b(?:llama|ggml)_\w+", (package / "bindings.py").read_text("utf-8")))
    assert len(used) > 40
    assert used <= stated
