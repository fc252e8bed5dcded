"""Tiny random checkpoints of architectures without a family, made by classes of transformers. Runs in a peer's venv.

    <peer's python> -m tests.helpers.converter_models FOLDER ARCHITECTURE ...

FOLDER/ARCHITECTURE gets config.json and bfloat16 weights; the caller writes the tokenizer. The line on stdout is JSON:
the error of each architecture whose class could not be made so small, or null.
"""

import json
import sys
from pathlib import Path
from typing import Any

VOCAB = 512

# Sizes of any config that has the setting.
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "d_model": 256,
    "n_embd": 256,
    "intermediate_size": 512,
    "ffn_hidden_size": 512,
    "d_ff": 512,
    "shared_intermediate_size": 256,
    "moe_intermediate_size": 256,
    "moe_shared_expert_intermediate_size": 256,
    "expert_ffn_hidden_size": 256,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_decoder_layers": 2,
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_heads": 4,
    "n_head": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "d_kv": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 256,
    "max_seq_len": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Settings that an architecture needs besides.
SETTINGS: dict[str, dict[str, Any]] = {}


def tiny_config(architecture: str) -> Any:
    import transformers

    kind = getattr(transformers, architecture).config_class
    sizes = kind().to_dict()
    settings = {name: value for name, value in SIZES.items() if name in sizes}
    config = kind(**{**settings, **SETTINGS.get(architecture, {})})
    config.architectures = [architecture]
    return config


def write_model(architecture: str, folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(sum(architecture.encode()))
    model = getattr(transformers, architecture)(tiny_config(architecture))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.05)
    model.to(torch.bfloat16).save_pretrained(folder)


def main() -> None:
    folder, architectures = Path(sys.argv[1]), sys.argv[2:]
    errors: dict[str, str | None] = {}
    for architecture in architectures:
        try:
            write_model(architecture, folder / architecture)
            errors[architecture] = None
        except Exception as error:
            errors[architecture] = f"{type(error).__name__}: {str(error)[:200]}"
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
