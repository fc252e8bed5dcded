"""MiniCPM-V 4.6, of which only the text model is converted: Qwen 3.5's."""

from typing import Any

from tests.families.models.case import Case
from tests.families.models.qwen_delta import TEXT

MINICPM_V: dict[str, Any] = {
    "model_type": "minicpmv4_6",
    "image_token_id": 280,
    "insert_layer_id": 0,
    "text_config": {
        **{key: value for key, value in TEXT.items() if key != "architectures"},
        "tie_word_embeddings": False,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "model_type": "minicpmv4_6_vision",
        "hidden_size": 32,
        "image_size": 32,
        "insert_layer_id": 0,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "patch_size": 8,
    },
}

CASES = (
    # the converter counts a layer for a later token and leaves its tensors out
    Case("minicpm-v-4.6", MINICPM_V, newest=True, auto="AutoModelForImageTextToText", converter=False),
)
