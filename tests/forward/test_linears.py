"""The linears of a layer against what the forward does with every tiny model, and against transformers' shapes."""

import re
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from quantkit.families import find_architecture, reference_logits
from quantkit.forward.config_keys import given
from quantkit.forward.description import Architecture
from quantkit.forward.layer_linears import layer_linears
from quantkit.forward.linears import LayerLinears, Linear, NormFold, RowFold
from quantkit.forward.parts import Form
from quantkit.forward.weights import Array, Weights
from tests.families.models import TOKENS, all_cases, forward_cases
from tests.forward.test_architectures import native

# Published checkpoints with native names, but experts stacked in one tensor or packed.
STACKED = {f"{name} as published": name for name in ("qwen2moe-fused-no-biases", "qwen3moe-fused-tied", "olmoe-fused")}
# transformers has no class of these, or other names than the forward
ONLY_PUBLISHED = {f"{name} as published": name for name in ("deepseek-v4-unpacked", "jina-bert", "nomic-bert-moe")}
STACKED |= ONLY_PUBLISHED
PACKED = {"gpt-oss-mxfp4 as published": "gpt-oss-mxfp4"}
MODELS = (
    sorted(
        name
        for name, (_, case) in forward_cases().items()
        if not (case.multimodal or case.other_names) and name not in ONLY_PUBLISHED.values()
    )
    + sorted(STACKED)
    + sorted(PACKED)
)

# RWKV's low-rank matrices, which llama.cpp keeps; and vectors, small matrices and tables, which are not linears.
_LOW_RANK = re.compile(r"(time_maa_w1|time_decay_w[12]|att(n|ention)\.[wavg](_lora\.lora\.[02]|[12]))$")
_NOT_LINEAR = re.compile(
    r"\.(time_maa_[^w]|time_maa_w2|time_maa_w|time_decay|time_faaaa|[xk]_[rwkvag]|r_k|[wavg]0|tid2eid|ape)$"
)

Call = tuple[str, Form, int, int]
# A linear as the forward calls it: its name, its form, which of those in its tensor, n_out.
Calls = list[tuple[int, set[Call]]]
# Inputs in the order in which they come: the width, and who got that very array.


def model(name: str, *, copied: bool = True) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and config of one of MODELS; the tensors are the caller's to change if they are copied."""
    case_name = (STACKED | PACKED).get(name, name)
    tensors, config = native(case_name)
    case = all_cases()[case_name][1]
    if name != case_name:
        assert case.publish
        published, tensors = case.publish(config, tensors)
        config = published if name in ONLY_PUBLISHED else config
    return {tensor: np.array(values) if copied else values for tensor, values in tensors.items()}, config


def shapes(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and config of one of MODELS; the tensors have their shapes, and ones that take no memory."""
    one = np.ones((), np.float32)
    with patch("tests.families.models.case._shared_weight", lambda seed, name, shape: np.broadcast_to(one, shape)):
        return model(name, copied=False)


def everyone_everywhere(config: dict[str, Any]) -> dict[str, Any]:
    """The config with every token going to every expert, so that none is missed."""
    counts = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "moe_num_primary_experts")
    count = given(config, *counts)
    keys = ("moe_k", "moe_topk", "moe_num_active_primary_experts")
    used = next((key for key in keys if key in config), "num_experts_per_tok")
    return {**config, used: count, "topk_group": config.get("n_group")} if count else config


def layers_of(tensors: dict[str, np.ndarray], config: dict[str, Any]) -> list[LayerLinears]:
    architecture = find_architecture(config)
    n_layers = int(given(config, "num_hidden_layers", "n_layer", "n_layers"))
    return [layer_linears(architecture, config, number, set(tensors)) for number in range(n_layers)]


def traced(tensors: dict[str, np.ndarray], config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The inputs of all linears of a run within layers."""
    architecture = find_architecture(config)
    altup, inputs = architecture.altup, architecture.layer_inputs
    streams = altup or architecture.hyper_connections
    outside = ((inputs.projection,) if inputs else ()) + ((altup.projection, altup.unembedding) if altup else ())
    if architecture.hyper_connections:
        outside += (architecture.hyper_connections.head,)
    arrays: list[Array] = []
    recorded: Calls = []
    real = Weights.linear

    def linear(self: Weights, name: str, x: Array, n_out: int, form: Form = Form(), index: int = 0) -> Array:
        # some stand outside the layers, AltUp's router reads two arrays in each, and coefficients are computed twice
        again = any(name == other for _, names in recorded for other, _, known, _ in names if known == index)
        if re.sub(r"\.\d+$", "", name).endswith(outside) or (again and streams) or _NOT_LINEAR.search(name):
            return real(self, name, x, n_out, form, index)
        at = next((i for i, array in enumerate(arrays) if array is x), len(arrays))
        if at == len(arrays):
            arrays.append(x)
            recorded.append((x.shape[1], set()))
        recorded[at][1].add((name, form, index, n_out))
        return real(self, name, x, n_out, form, index)

    monkeypatch.setattr(Weights, "linear", linear)
    reference_logits(tensors.__getitem__, config, TOKENS, names=set(tensors))
    return recorded[:-1] if architecture.head else recorded


def described(layers: list[LayerLinears]) -> Calls:
    return [
        (group.width, {(one.name, one.form, one.index or 0, one.n_out) for one in group.linears})
        for layer in layers
        for group in layer.inputs
    ]


@pytest.mark.parametrize("name", MODELS)
def test_linears_that_share_an_input_are_those_to_which_the_forward_gives_one_array(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, config = model(name)
    config = everyone_everywhere(config)
    # a table would send tokens to a few experts only
    tensors = {tensor: values for tensor, values in tensors.items() if not tensor.endswith("tid2eid")}
    assert described(layers_of(tensors, config)) == traced(tensors, config, monkeypatch)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mixtral"])
def test_a_checkpoint_of_the_bare_model_has_linears_of_its_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, config = model(name)
    config = everyone_everywhere(config)
    base = find_architecture(config).base
    bare = {tensor.removeprefix(base): values for tensor, values in tensors.items()}
    assert set(bare) != set(tensors)
    assert described(layers_of(bare, config)) == traced(bare, config, monkeypatch)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in PACKED])
def test_every_matrix_of_a_layer_is_a_linear_once(name: str) -> None:
    tensors, config = shapes(name)
    layers = layers_of(tensors, config)
    linears = [one for layer in layers for entry in layer.inputs for one in entry.linears]
    assert len(set(linears)) == len(linears)
    elements: dict[str, int] = {}
    for one in linears:
        elements[weight_name(one)] = elements.get(weight_name(one), 0) + one.n_in * one.n_out
    architecture = find_architecture(config)
    assert elements == {
        entry: values.size
        for entry, values in tensors.items()
        if values.ndim > 1
        and in_a_layer(architecture, entry)
        and not entry.endswith(("_bias", "_norm.weight", "A_log", "conv1d.weight", "conv.conv.weight"))
        and not _NOT_LINEAR.search(entry)
    }


def weight_name(linear: Linear) -> str:
    return linear.name + linear.form.weight


def in_a_layer(architecture: Architecture, name: str) -> bool:
    return name.startswith(architecture.base + architecture.layer.partition("{}")[0])


def shown(layer: LayerLinears) -> list[str]:
    """Folds in words: what takes the scale off (its last name), and the inputs it is put on."""
    words = []
    for fold in layer.folds:
        if isinstance(fold, NormFold):
            words.append(f"{fold.norm.rpartition('.')[2]} > {' '.join(fold.inputs)}")
        else:
            which = "" if fold.linear.index is None else f" {fold.linear.index}"
            words.append(f"{fold.linear.name.rpartition('.')[2]}{which} > {fold.input}")
    return words


_LLAMA = [
    "input_layernorm > attention",
    "post_attention_layernorm > feed",
    "v_proj > attention.out",
    "up_proj > feed.down",
]
_FOLDS = {
    "llama": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "granite": _LLAMA,
    "gemma2": ["input_layernorm > attention", "pre_feedforward_layernorm > feed", *_LLAMA[2:]],
    "phi-4k": [*_LLAMA[:2], "qkv_proj > attention.out", "gate_up_proj > feed.down"],
    # no weights in its norms; a limit on values is not linear
    "olmo": _LLAMA[2:],
    "olmo-clipped": ["up_proj > feed.down"],
    # attention and feed-forward see the stream itself
    "olmo2": _LLAMA[2:],
    # down sees the activation of up
    "gpt2": ["ln_1 > attention", "ln_2 > feed", "c_attn > attention.out"],
    "bloom": ["input_layernorm > attention", "post_attention_layernorm > feed", "query_key_value > attention.out"],
    "falcon-7b": ["input_layernorm > attention", "query_key_value > attention.out"],
    "falcon-40b": ["ln_attn > attention", "ln_mlp > feed", "query_key_value > attention.out"],
    "stablelm2-12b": ["input_layernorm > attention", "v_proj > attention.out", "up_proj > feed.down"],
    "mixtral": [
        "input_layernorm > attention",
        "post_attention_layernorm > feed expert.0 expert.1 expert.2 expert.3",
        "v_proj > attention.out",
        *(f"w3 > expert.{expert}.down" for expert in range(4)),
    ],
    "qwen2moe-fused-no-biases as published": [
        "input_layernorm > attention",
        "post_attention_layernorm > feed " + " ".join(f"expert.{expert}" for expert in range(6)),
        "v_proj > attention.out",
        *(f"gate_up_proj {expert} > expert.{expert}.down" for expert in range(6)),
        "up_proj > shared.down",
    ],
    # gate and up are limited, and up is counted from -1
    "gpt-oss": [
        "input_layernorm > attention",
        "post_attention_layernorm > feed " + " ".join(f"expert.{expert}" for expert in range(6)),
        "v_proj > attention.out",
    ],
    "deepseek-v3": [
        "input_layernorm > attention",
        "post_attention_layernorm > feed",
        "q_a_layernorm > attention.q",
        "kv_a_layernorm > attention.kv",
        "kv_b_proj > attention.out",
        "up_proj > feed.down",
    ],
    # values are normed over their head
    "gemma4": ["input_layernorm > attention", "pre_feedforward_layernorm > feed", "up_proj > feed.down"],
    "gemma4-experts": [
        "input_layernorm > attention",
        "pre_feedforward_layernorm_2 > " + " ".join(f"expert.{expert}" for expert in range(6)),
        "pre_feedforward_layernorm > feed",
        *(f"gate_up_proj {expert} > expert.{expert}.down" for expert in range(6)),
        "up_proj > feed.down",
    ],
    # the convolution's second gate is linear until the next input
    "lfm2": ["operator_norm > attention", "ffn_norm > feed", "in_proj > attention.out", "w3 > feed.down"],
    "deepseek-v2-lite": [
        "input_layernorm > attention",
        "post_attention_layernorm > feed",
        "kv_a_layernorm > attention.kv",
        "kv_b_proj > attention.out",
        "up_proj > feed.down",
    ],
}


@pytest.mark.parametrize("name", _FOLDS)
def test_scales_fold_into_norms_and_into_rows_that_stay_linear_until_the_next_input(name: str) -> None:
    assert shown(layers_of(*shapes(name))[0]) == _FOLDS[name]


def test_routers_and_gates_of_shared_experts_are_kept_and_nothing_else_is() -> None:
    for name in MODELS:
        for layer in layers_of(*shapes(name)):
            for group in layer.inputs:
                for one in group.linears:
                    last = one.name.split(".", 3)[-1]
                    kept = last in {
                        "mlp.gate",
                        "mlp.gate.wg",
                        "mlp.router",
                        "mlp.router.gate",
                        "mlp.shared_expert_gate",
                        "mlp.router.layer",
                        "router.proj",
                        "ffn.router.layer",
                        "feed_forward.gate",
                        "feed_forward.router",
                        "gate",
                        "hc_attn",
                        "hc_ffn",
                        "altup.correction_coefs",
                        "altup.modality_router",
                        "altup.prediction_coefs",
                        "laurel.linear_left",
                        "laurel.linear_right",
                        "mamba.dt_proj",
                        "mamba.x_proj",
                        "mixer.dt_proj",
                        "mixer.gate",
                        "mixer.x_proj",
                    } or last.startswith(
                        (
                            "block_sparse_moe.gate",
                            "block_sparse_moe.primary_router",
                            "block_sparse_moe.router",
                            "linear_attn.in_proj_a",
                            "linear_attn.in_proj_b",
                            "self_attn.indexer.",
                            *(f"self_attn.{part}_proj" for part in ("b", "f_a", "f_b", "g_a", "g_b")),
                            # their names begin one part earlier
                            "compressor.",
                            "indexer.",
                        )
                    )
                    # a gate with one number for each head
                    kept = kept or (last == "self_attn.g_proj" and one.n_out < one.n_in)
                    kept = kept or bool(_LOW_RANK.search(one.name))
                    assert one.kept == kept, one.name


def test_inputs_of_an_expert_name_it_and_keys_are_unique() -> None:
    layer = layers_of(*model("qwen2moe"))[0]
    assert len({group.key for group in layer.inputs}) == len(layer.inputs)
    assert {group.key: group.expert for group in layer.inputs if group.expert is not None} == {
        f"expert.{expert}{end}": expert for expert in range(6) for end in ("", ".down")
    }
    assert layer.find("expert.3.down").linears[0].name == "model.layers.0.mlp.experts.3.down_proj"


def test_query_heads_that_share_a_value_share_its_rows() -> None:
    tensors, config = model("llama")
    layer = layers_of(tensors, config)[0]
    (fold,) = [
        candidate for candidate in layer.folds if isinstance(candidate, RowFold) and candidate.input == "attention.out"
    ]
    size = len(tensors[f"{fold.linear.name}.weight"]) // config["num_key_value_heads"]
    shared_by = config["num_attention_heads"] // config["num_key_value_heads"]
    assert shared_by > 1
    by_head = np.array(fold.rows).reshape(-1, size)
    assert (by_head == by_head[::shared_by].repeat(shared_by, axis=0)).all()
    assert sorted(set(fold.rows)) == list(range(fold.linear.n_out))
