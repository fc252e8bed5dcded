"""The architectures of transformers that the reference forward knows, each as what sets it apart from Llama.

Source: transformers 4.57, models/*/modeling_*.py and configuration_*.py; DeepSeek-V2's attention scale is that of the
published model's own code.
"""

from dataclasses import replace

from quantkit.forward.description import (
    Architecture,
    Attention,
    Experts,
    FeedForward,
    Form,
    Norm,
    given,
)
from quantkit.forward.gpt import BLOOM, FALCON, GPT2, LAYER_NORM
from quantkit.forward.settings import (
    deepseek_groups,
    dense_after,
    every_layer,
    flag,
    gemma3_slides,
    if_used,
    latent_scale,
    local_rope,
    number,
    olmo3_slides,
    query_scale,
    qwen_has_experts,
    qwen_window,
    size,
    slides,
    smollm3_rope,
    window,
)

_RMS_FROM_ONE = Norm("rms", offset=1.0)


_HEAD_NORMS = ("q_norm", "k_norm")
_EXPERT = FeedForward(at="mlp.experts.{}.", inner=size("moe_intermediate_size"))
_FUSED_EXPERTS = FeedForward(
    at="mlp.experts.", fused="gate_up_proj", form=Form(weight="", bias="_bias"), inner=size("moe_intermediate_size")
)
_TANH = FeedForward(activation=("hidden_activation", "hidden_act"), default_activation="gelu_pytorch_tanh")

_LLAMA = Architecture(attention=Attention(alibi=flag("alibi")))
_MISTRAL = Architecture(attention=Attention(window=every_layer))
_MIXTRAL = Architecture(
    attention=Attention(window=every_layer),
    experts=Experts(
        router="block_sparse_moe.gate",
        each=FeedForward(at="block_sparse_moe.experts.{}.", gate="w1", up="w3", down="w2"),
    ),
)

_QWEN2 = Architecture(attention=Attention(window=qwen_window))
_QWEN3 = Architecture(attention=Attention(window=qwen_window, norms=_HEAD_NORMS))
_QWEN2_MOE = Architecture(
    attention=Attention(window=if_used),
    experts=Experts(
        router="mlp.gate",
        each=_EXPERT,
        stacked=_FUSED_EXPERTS,
        normalised=flag("norm_topk_prob"),
        shared=FeedForward(at="mlp.shared_expert.", inner=size("shared_expert_intermediate_size")),
        shared_gate="mlp.shared_expert_gate",
        layers=qwen_has_experts,
    ),
)
_QWEN3_MOE = Architecture(
    attention=Attention(window=if_used, norms=_HEAD_NORMS),
    experts=Experts(
        router="mlp.gate",
        each=_EXPERT,
        stacked=_FUSED_EXPERTS,
        normalised=flag("norm_topk_prob"),
        layers=qwen_has_experts,
    ),
)

_OLMO = Architecture(norm=Norm("layer", weighted=False), attention=Attention(clip="clip_qkv"))
_OLMO2 = Architecture(
    attention_norm=None,
    after_attention="post_attention_layernorm",
    feed_norm=None,
    after_feed="post_feedforward_layernorm",
    attention=Attention(norms=_HEAD_NORMS, normed="all"),
)
_OLMO3 = replace(
    _OLMO2,
    attention=replace(_OLMO2.attention, rope=local_rope(olmo3_slides), window=window(olmo3_slides)),
)
_OLMOE = Architecture(
    attention=Attention(norms=_HEAD_NORMS, normed="all", clip="clip_qkv"),
    experts=Experts(
        router="mlp.gate",
        each=replace(_EXPERT, inner=size("intermediate_size")),
        stacked=replace(_FUSED_EXPERTS, inner=size("intermediate_size")),
        normalised=flag("norm_topk_prob"),
    ),
)

_GRANITE = Architecture(
    embedding_scale=number("embedding_multiplier"),
    residual_scale=number("residual_multiplier"),
    attention=Attention(scale=lambda config, _: float(given(config, "attention_multiplier", default=1.0))),
    logit_scale=lambda config: 1.0 / float(given(config, "logits_scaling", default=1.0)),
)
_GRANITE_MOE = replace(
    _GRANITE,
    experts=Experts(
        router="block_sparse_moe.router.layer",
        stacked=FeedForward(at="block_sparse_moe.", fused="input_linear", down="output_linear"),
        shared=FeedForward(
            at="shared_mlp.", fused="input_linear", down="output_linear", inner=size("shared_intermediate_size")
        ),
    ),
)

_STABLELM = Architecture(
    norm=LAYER_NORM,
    attention=Attention(
        norms=("q_layernorm", "k_layernorm"), has_norms=flag("qk_layernorm"), normed="each", norm=LAYER_NORM
    ),
    variant=lambda config: {"parallel": True, "feed_norm": None} if config.get("use_parallel_residual") else {},
)
_GLM4 = Architecture(
    after_attention="post_self_attn_layernorm",
    after_feed="post_mlp_layernorm",
    attention=Attention(pairs="neighbours"),
    feed=FeedForward(fused="gate_up_proj"),
)
_SMOLLM3 = Architecture(
    attention=Attention(
        rope=smollm3_rope,
        window=lambda config, layer: (
            if_used(config, layer) if slides(config, layer, not smollm3_rope(config, layer)) else None
        ),
    ),
    tied=True,
)
_PHI3 = Architecture(attention=Attention(fused="qkv_proj", window=every_layer), feed=FeedForward(fused="gate_up_proj"))

_GEMMA = Architecture(
    embedding_scale=lambda config: float(config["hidden_size"]) ** 0.5,
    norm=_RMS_FROM_ONE,
    feed=_TANH,
    tied=True,
)
_GEMMA2 = replace(
    _GEMMA,
    after_attention="post_attention_layernorm",
    feed_norm="pre_feedforward_layernorm",
    after_feed="post_feedforward_layernorm",
    attention=Attention(
        scale=query_scale, softcap="attn_logit_softcapping", window=window(lambda _, layer: layer % 2 == 0)
    ),
    logit_softcap="final_logit_softcapping",
)
_GEMMA3 = replace(
    _GEMMA2,
    attention=Attention(
        norms=_HEAD_NORMS,
        norm=_RMS_FROM_ONE,
        rope=local_rope(gemma3_slides, "rope_local_base_freq"),
        scale=query_scale,
        window=window(gemma3_slides),
    ),
    refused=lambda config: "attention to later tokens" if config.get("use_bidirectional_attention") else None,
)

_DEEPSEEK_SHARED = FeedForward(
    at="mlp.shared_experts.",
    inner=lambda config: int(config["moe_intermediate_size"]) * int(given(config, "n_shared_experts", default=0)),
)
_DEEPSEEK = Architecture(attention=Attention(latent=True, pairs="neighbours", scale=latent_scale))
_DEEPSEEK2 = replace(
    _DEEPSEEK,
    experts=Experts(
        router="mlp.gate",
        each=_EXPERT,
        groups=deepseek_groups,
        normalised=lambda _: False,
        scale=number("routed_scaling_factor"),
        shared=_DEEPSEEK_SHARED,
        layers=dense_after,
    ),
    refused=lambda config: (
        "norm_topk_prob, which its implementations do not agree on" if config.get("norm_topk_prob") else None
    ),
)
_DEEPSEEK3 = replace(
    _DEEPSEEK,
    experts=Experts(
        router="mlp.gate",
        each=_EXPERT,
        score="sigmoid",
        correction="mlp.gate.e_score_correction_bias",
        groups=deepseek_groups,
        group_by=2,
        normalised=flag("norm_topk_prob", True),
        scale=number("routed_scaling_factor", 2.5),
        shared=_DEEPSEEK_SHARED,
        layers=dense_after,
    ),
)

_GPT_OSS_EXPERTS = FeedForward(
    at="mlp.experts.", fused="gate_up_proj", alternating=True, clamped=True, form=Form("", "_bias", turned=True)
)
_GPT_OSS = Architecture(
    attention=Attention(sinks="sinks", window=window(lambda _, layer: layer % 2 == 0)),
    experts=Experts(router="mlp.router", stacked=_GPT_OSS_EXPERTS),
)

ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": _LLAMA,
    "LLaMAForCausalLM": _LLAMA,
    "MistralForCausalLM": _MISTRAL,
    "MixtralForCausalLM": _MIXTRAL,
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen2MoeForCausalLM": _QWEN2_MOE,
    "Qwen3ForCausalLM": _QWEN3,
    "Qwen3MoeForCausalLM": _QWEN3_MOE,
    "OlmoForCausalLM": _OLMO,
    "Olmo2ForCausalLM": _OLMO2,
    "Olmo3ForCausalLM": _OLMO3,
    "OlmoeForCausalLM": _OLMOE,
    "GraniteForCausalLM": _GRANITE,
    "GraniteMoeForCausalLM": _GRANITE_MOE,
    "GraniteMoeSharedForCausalLM": _GRANITE_MOE,
    "StableLmForCausalLM": _STABLELM,
    "StableLMEpochForCausalLM": _STABLELM,
    "Glm4ForCausalLM": _GLM4,
    "SmolLM3ForCausalLM": _SMOLLM3,
    "Phi3ForCausalLM": _PHI3,
    "GemmaForCausalLM": _GEMMA,
    "Gemma2ForCausalLM": _GEMMA2,
    "Gemma3ForCausalLM": _GEMMA3,
    "BloomForCausalLM": BLOOM,
    "FalconForCausalLM": FALCON,
    "GPT2LMHeadModel": GPT2,
    "DeepseekV2ForCausalLM": _DEEPSEEK2,
    "DeepseekV3ForCausalLM": _DEEPSEEK3,
    "GptOssForCausalLM": _GPT_OSS,
}
