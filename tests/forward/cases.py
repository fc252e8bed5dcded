"""What transformers computes for tiny checkpoints: the oracle of the numpy reference, kept as numbers.

`python -m tests.forward.cases` rewrites reference_logits.json. It needs torch and transformers (2.13.0 and
5.23.0 made the stored file, in float32 with eager attention) beside ml_dtypes, tokenizers and sentencepiece. The tests
only read the file.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("reference_logits.json")
TOKENS = [(7 * i * i + 11) % 700 + 3 for i in range(40)]
KEPT = 6

_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
CASES: dict[str, dict[str, Any]] = {
    "llama1": {"variant": "llama1"},
    "llama2": {"variant": "llama2"},
    "llama3": {"variant": "llama3"},
    "llama3 tied": {"variant": "llama3", "tied": True},
    "linear rope": {"variant": "linear-rope"},
    "dynamic rope": {
        "variant": "llama2",
        "config": {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 16},
    },
    "yarn rope": {"variant": "llama2", "config": {"rope_scaling": _YARN, "rope_theta": 10000.0}},
    "yarn rope with mscale": {
        "variant": "llama2",
        "config": {"rope_scaling": {**_YARN, "mscale": 1.0, "mscale_all_dim": 0.8}, "rope_theta": 10000.0},
    },
    "rope_parameters": {
        "variant": "llama2",
        "config": {"rope_parameters": {"rope_type": "default", "rope_theta": 123456.0}},
    },
    "mistral": {"variant": "mistral"},
    "mistral-nemo": {"variant": "mistral-nemo"},
    "yi": {"variant": "yi"},
    "smollm2": {"variant": "smollm2"},
    "tinyllama": {"variant": "tinyllama"},
    "attention bias": {"variant": "attention-bias"},
    "attention and mlp bias": {"variant": "attention-bias", "config": {"mlp_bias": True}},
    "mixtral": {"variant": "mixtral"},
}


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from tests.helpers.tiny import tiny_llama

    expected = {}
    for name, options in CASES.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = tiny_llama(Path(scratch) / "model", dtype="f32", **options)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
            with torch.no_grad():
                logits = model(torch.tensor([TOKENS])).logits[0]
        expected[name] = {
            "first": [round(float(x), 5) for x in logits[0, :KEPT]],
            "last": [round(float(x), 5) for x in logits[-1, :KEPT]],
            "argmax": logits.argmax(-1).tolist(),
        }
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in expected.items())
    FILE.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
