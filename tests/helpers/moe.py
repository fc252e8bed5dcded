"""A mixture of experts with real weights: SmolLM2-135M upcycled to Mixtral's layout.

No mixture is to be had from a package index, so one is made. Each expert is the dense MLP with its neurons in an order
of its own, and noise; the router is noise too. Whatever experts it picks, the model is nearly the dense one, so its
perplexity is known; but only while w1, w2 and w3 of an expert stay together.
"""

import json
import shutil
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

from demo.inputs import CACHE
from demo.safetensors_file import write_safetensors
from demo.smollm2 import CONFIG, smollm2_checkpoint
from quantkit.checkpoint import open_checkpoint

NAME = "SmolLM2-135M-Instruct-4x"
EXPERTS = 4
NOISE = 0.02
"""Standard deviation of the noise on an expert's weights, relative to theirs."""
_ROUTER = 0.05
_MLP = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_SHARDS = 5


def smollm2_moe() -> Path:
    """The checkpoint's folder (750 MB, bf16), made on first use in about 20 seconds. Raises InputsUnavailable."""
    folder = CACHE / NAME
    if not folder.is_dir():
        dense = smollm2_checkpoint()
        with tempfile.TemporaryDirectory(prefix=NAME, suffix=".partial", dir=CACHE) as scratch:
            made = Path(scratch) / NAME
            shutil.copytree(dense, made, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
            _write(dense, made)
            try:
                made.rename(folder)
            except OSError:
                # another process was faster
                if not folder.is_dir():
                    raise
    return folder


def _write(dense: Path, folder: Path) -> None:
    config = {
        **{name: value for name, value in CONFIG.items() if name not in ("mlp_bias", "pretraining_tp")},
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    rng = np.random.RandomState(0)
    layers = config["num_hidden_layers"]
    weight_map = {}
    with open_checkpoint(str(dense)) as source:
        rest = [name for name in source.tensors if ".mlp." not in name]

        def read(name: str) -> np.ndarray:
            tensor = source.tensors[name]
            return source.read_rows(name, 0, tensor.n_rows).reshape(tensor.shape)

        for shard in range(_SHARDS):
            tensors = {name: read(name) for name in rest[shard::_SHARDS]}
            for layer in range(shard * layers // _SHARDS, (shard + 1) * layers // _SHARDS):
                at = f"model.layers.{layer}"
                mlp = {ours: read(f"{at}.mlp.{name}.weight").astype(np.float32) for ours, name in _MLP.items()}
                tensors |= {f"{at}.block_sparse_moe.{name}": value for name, value in experts(mlp, rng).items()}
            file = f"model-{shard + 1:05d}-of-{_SHARDS:05d}.safetensors"
            write_safetensors(folder / file, {name: ("BF16", tensors[name]) for name in sorted(tensors)})
            weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def experts(mlp: dict[str, np.ndarray], rng: np.random.RandomState) -> dict[str, np.ndarray]:
    """Router and experts of one layer, bf16, from the dense w1, w3 (neurons, hidden) and w2 (hidden, neurons)."""
    neurons, hidden = mlp["w1"].shape
    made = {"gate.weight": rng.standard_normal((EXPERTS, hidden)) * _ROUTER}
    for expert in range(EXPERTS):
        order = rng.permutation(neurons)
        for name, weight in mlp.items():
            own = weight[:, order] if name == "w2" else weight[order]
            noise = rng.standard_normal(own.shape).astype(np.float32)
            made[f"experts.{expert}.{name}.weight"] = own + np.float32(NOISE * own.std()) * noise
    return {name: value.astype(ml_dtypes.bfloat16) for name, value in made.items()}
