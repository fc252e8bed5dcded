"""Tiny random checkpoints that see images, made by classes of transformers. Runs in a peer's venv.

    <peer's python> -m tests.helpers.vision_models FOLDER

FOLDER/NAME gets config.json, preprocessor_config.json and bfloat16 weights; the caller writes the tokenizer.
"""

import json
import sys
from pathlib import Path
from typing import Any

VOCAB = 512
NAMES = ("idefics3", "qwen2-vl", "qwen2.5-vl")
TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
PREPROCESSOR = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "size": {"height": 56, "width": 56, "longest_edge": 56, "shortest_edge": 56},
    "min_pixels": 3136,
    "max_pixels": 12544,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
TOWER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
# three layers: llama.cpp's converter numbers the projector's matrices as layers
QWEN_TOWER = {"depth": 3, "hidden_size": 64, "num_heads": 4, "patch_size": 14, "spatial_merge_size": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "idefics3": (
        "Idefics3ForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": {**TOWER, "image_size": 56, "patch_size": 14},
            "scale_factor": 2,
        },
    ),
    "qwen2-vl": (
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": {**TEXT, "rope_parameters": MROPE},
            "vision_config": {**QWEN_TOWER, "embed_dim": 64, "mlp_ratio": 2, "temporal_patch_size": 2},
        },
    ),
    "qwen2.5-vl": (
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {**TEXT, "rope_parameters": MROPE},
            "vision_config": {
                **QWEN_TOWER,
                "out_hidden_size": 64,
                "intermediate_size": 96,
                "temporal_patch_size": 2,
                "fullatt_block_indexes": [1],
            },
        },
    ),
}


def main() -> None:
    import torch
    import transformers

    for name in NAMES:
        architecture, settings = MODELS[name]
        torch.manual_seed(0)
        kind = getattr(transformers, architecture)
        config = kind.config_class(**settings)
        config.architectures = [architecture]
        model = kind(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape) * 0.05)
        folder = Path(sys.argv[1]) / name
        model.to(torch.bfloat16).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))


if __name__ == "__main__":
    main()
