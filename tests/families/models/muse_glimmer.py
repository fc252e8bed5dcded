"""Muse Glimmer's text model: gated attention, norms of queries and keys without weights, windows with positions."""

from typing import Any

from tests.families.models.case import VOCAB, Case
from tests.families.models.qwen_vision import AUTO

TEXT: dict[str, Any] = {
    "model_type": "muse_glimmer_text",
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "final_logit_softcapping": 20.0,
    "head_dim": 32,
    "hidden_activation": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "output_multiplier": 0.5,
    "post_norm_eps": 1e-8,
    "qk_scale_factor": 1.5,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    # fewer than the tokens of a test, so that the window matters
    "sliding_window": 6,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB,
}
VISION = {
    "model_type": "muse_glimmer_vision",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "pos_emb_height": 4,
    "pos_emb_width": 4,
}
MUSE: dict[str, Any] = {
    "architectures": ["MuseGlimmerForConditionalGeneration"],
    "model_type": "muse_glimmer",
    "image_token_id": 280,
    "video_token_id": 281,
    "out_hidden_size": 128,
    "projector_hidden_size": 48,
    "text_config": {
        **TEXT,
        "layer_types": [*["sliding_attention"] * 3, "full_attention", "sliding_attention"],
        "layer_rope_theta": [10000.0, 10000.0, 10000.0, 0, 10000.0],
    },
    "vision_config": VISION,
}

# without a token <|eot|> the converter states the unknown token's id
DIFFERS = ("tokenizer.ggml.eot_token_id",)

CASES = (
    Case("muse-glimmer", MUSE, newest=True, auto=AUTO, differs=DIFFERS),
    # config.json leaves the kinds of layers to the class
    Case(
        "muse-glimmer-plain",
        {**MUSE, "text_config": {**TEXT, "num_hidden_layers": 6}},
        newest=True,
        auto=AUTO,
        differs=DIFFERS,
    ),
)
