"""LFM2: short convolutions in place of attention in most layers, and its mixture."""

from tests.families.models.case import VOCAB, Case

CONVOLUTION, ATTENTION = "conv", "full_attention"
LFM2 = {
    "model_type": "lfm2",
    "block_auto_adjust_ff_dim": True,
    "block_dim": 64,
    "block_ff_dim": 144,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 64,
    "bos_token_id": 1,
    "conv_L_cache": 3,
    "conv_bias": False,
    "conv_dim": 64,
    "eos_token_id": 7,
    "full_attn_idxs": [2, 4],
    "hidden_size": 64,
    "max_position_embeddings": 512,
    "norm_eps": 1e-05,
    "num_attention_heads": 4,
    "num_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "rope_theta": 1000000.0,
    "vocab_size": VOCAB,
    "layer_types": [CONVOLUTION, CONVOLUTION, ATTENTION, CONVOLUTION, ATTENTION],
}
PLAIN = {key: value for key, value in LFM2.items() if not key.startswith("block_")}
MOE = {
    **{key: value for key, value in PLAIN.items() if key not in ("conv_dim", "full_attn_idxs", "num_heads")},
    "model_type": "lfm2_moe",
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "num_dense_layers": 2,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": 1.0,
    "use_expert_bias": True,
}

CASES = (
    Case("lfm2", LFM2, newest=True),
    Case("lfm2-colbert", {**LFM2, "architectures": ["Lfm2Model"]}, newest=True, auto="AutoModel"),
    Case(
        "lfm2-encoder",
        {**LFM2, "architectures": ["Lfm2BidirectionalModel"]},
        newest=True,
        auto="AutoModel",
        encoder=True,
        patch="read_to_both_sides",
    ),
    # the width as it is stated, a wider convolution, a head of its own
    Case(
        "lfm2-plain-width",
        {
            **PLAIN,
            "block_auto_adjust_ff_dim": False,
            "block_ffn_dim_multiplier": 1.0,
            "block_multiple_of": 64,
            "intermediate_size": 96,
            "conv_L_cache": 4,
            "tie_embedding": False,
            "tie_word_embeddings": False,
        },
        newest=True,
    ),
    Case("lfm2moe", MOE, newest=True),
)
