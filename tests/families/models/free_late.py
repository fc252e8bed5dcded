"""Text models of EXAONE 4.5 and HunyuanOCR."""

from tests.families.models.case import Case
from tests.families.models.free_towers import TEXT

AUTO = "AutoModelForImageTextToText"
EXAONE4_5 = {
    "model_type": "exaone4_5",
    "text_config": {
        **TEXT,
        "model_type": "exaone4_5_text",
        "head_dim": 16,
        "layer_types": ["full_attention"] * 3,
        "sliding_window": None,
        "sliding_window_pattern": None,
        "tie_word_embeddings": False,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "model_type": "exaone4_5_vision",
        "depth": 1,
        "fullatt_block_indexes": [0],
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "num_key_value_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 16,
    },
}
HUNYUAN_VL = {
    "model_type": "hunyuan_vl",
    "image_token_id": 280,
    "text_config": {
        **TEXT,
        "model_type": "hunyuan_vl_text",
        "eod_token_id": 3,
        "attention_bias": False,
        "head_dim": 32,
        "rope_scaling": {"alpha": 50.0, "factor": 1.0, "type": "xdrope", "xdrope_section": [4, 4, 4, 4]},
        "tie_word_embeddings": True,
    },
    "tie_word_embeddings": True,
    "vision_config": {
        "model_type": "hunyuan_vl_vision",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "out_hidden_size": 64,
        "patch_size": 4,
    },
}

CASES = (
    Case("exaone4.5", EXAONE4_5, newest=True, auto=AUTO),
    Case("hunyuan-vl", HUNYUAN_VL, newest=True, auto=AUTO),
)
