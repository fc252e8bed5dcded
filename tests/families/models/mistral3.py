"""Mistral 3: the text model of Mistral Small 3.1, and Ministral 3 alone and within a model that sees images."""

from tests.families.models.case import VOCAB, Case

TEXT = {
    "model_type": "mistral",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# The queries after the first eight tokens are scaled.
YARN = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 4.0,
    "llama_4_scaling_beta": 0.1,
    "max_position_embeddings": 512,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 8,
    "rope_theta": 1e6,
    "rope_type": "yarn",
    "type": "yarn",
}
MINISTRAL3 = {
    **{key: value for key, value in TEXT.items() if key != "rope_theta"},
    "model_type": "ministral3",
    "rope_parameters": YARN,
    "tie_word_embeddings": False,
}
VISION = {
    "model_type": "pixtral",
    "head_dim": 16,
    "hidden_act": "gelu",
    "hidden_size": 32,
    "image_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": 2,
    "patch_size": 8,
    "rope_theta": 10000.0,
}
MISTRAL3 = {
    "model_type": "mistral3",
    "image_token_index": 10,
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "spatial_merge_size": 2,
    "text_config": TEXT,
    "tie_word_embeddings": False,
    "vision_config": VISION,
    "vision_feature_layer": -1,
}
AUTO = "AutoModelForImageTextToText"

CASES = (
    Case("mistral3", MISTRAL3, newest=True, auto=AUTO),
    # a nested config that names its class decides: llama.cpp's llama
    Case(
        "mistral3-named",
        {**MISTRAL3, "text_config": {**TEXT, "architectures": ["MistralForCausalLM"]}},
        newest=True,
        auto=AUTO,
    ),
    Case("ministral3", MINISTRAL3, newest=True),
    Case(
        "ministral3-tied",
        {**MINISTRAL3, "tie_word_embeddings": True, "rope_parameters": {**YARN, "mscale_all_dim": 0.5}},
        newest=True,
    ),
    Case("ministral3-vision", {**MISTRAL3, "text_config": MINISTRAL3}, newest=True, auto=AUTO),
)
