"""Scales folded into norms and rows: the model must compute what it did, and only then."""

from typing import Any

import numpy as np
import pytest

from quantkit.families import reference_logits
from quantkit.forward.linears import Input, LayerLinears, Linear, NormFold, RowFold
from quantkit.forward.parts import Form
from quantkit.quant import fold as folding
from tests.families.models import TOKENS
from tests.forward.test_linears import MODELS, PACKED, layers_of, model

Tensors = dict[str, np.ndarray]


def logits(tensors: Tensors, config: dict[str, Any]) -> np.ndarray:
    return reference_logits(tensors.__getitem__, config, TOKENS, names=set(tensors))


def some_scale(layer: LayerLinears, fold: NormFold | RowFold, rng: np.random.Generator) -> np.ndarray:
    """Positive, one for each channel, from a third to three; equal where it must be."""
    key = fold.inputs[0] if isinstance(fold, NormFold) else fold.input
    return folding.pooled(fold, np.exp(rng.uniform(-1.1, 1.1, layer.find(key).width)).astype(np.float32))


def drift(actual: np.ndarray, known: np.ndarray) -> float:
    return float(np.abs(actual - known).max() / known.std())


# What is packed in MXFP4 cannot take a scale that is no power of two.
@pytest.mark.parametrize("name", [name for name in MODELS if name not in PACKED])
def test_scales_in_every_fold_of_every_layer_leave_the_logits(name: str) -> None:
    tensors, config = model(name)
    known = logits(tensors, config)
    rng = np.random.default_rng(5)
    for layer in layers_of(tensors, config):
        for fold in layer.folds:
            source = f"{fold.norm}.weight" if isinstance(fold, NormFold) else fold.linear.name + fold.linear.form.weight
            before = tensors[source].copy()
            folding.apply_fold(tensors, layer, fold, some_scale(layer, fold, rng))
            assert (tensors[source] != before).any()
    assert drift(logits(tensors, config), known) < 1e-4


@pytest.mark.parametrize(
    ("name", "fold_at", "left_out"),
    [
        ("llama", 0, "model.layers.1.self_attn.k_proj"),
        ("mixtral", 1, "model.layers.1.block_sparse_moe.gate"),
        ("qwen2moe", 1, "model.layers.1.mlp.shared_expert_gate"),
        ("qwen2moe", 1, "model.layers.1.mlp.shared_expert.gate_proj"),
        ("qwen2moe", 1, "model.layers.1.mlp.experts.2.up_proj"),
        ("deepseek-v3", 0, "model.layers.1.self_attn.kv_a_proj_with_mqa"),
    ],
)
def test_a_linear_that_a_scale_forgets_shows_in_the_logits(name: str, fold_at: int, left_out: str) -> None:
    tensors, config = model(name)
    known = logits(tensors, config)
    layer = layers_of(tensors, config)[1]
    kept = tensors[f"{left_out}.weight"].copy()
    fold = layer.folds[fold_at]
    folding.apply_fold(tensors, layer, fold, some_scale(layer, fold, np.random.default_rng(5)))
    assert drift(logits(tensors, config), known) < 1e-4
    tensors[f"{left_out}.weight"] = kept
    assert drift(logits(tensors, config), known) > 1e-2


@pytest.mark.parametrize("name", ["mixtral", "qwen2moe-fused-no-biases as published", "gpt-oss"])
def test_experts_that_come_later_take_the_same_scale(name: str) -> None:
    at_once, config = model(name)
    in_turn = {entry: values.copy() for entry, values in at_once.items()}
    layer = layers_of(at_once, config)[0]
    (fold,) = [entry for entry in layer.folds if isinstance(entry, NormFold) and "expert.0" in entry.inputs]
    scale = some_scale(layer, fold, np.random.default_rng(5))
    folding.apply_fold(at_once, layer, fold, scale)

    of_experts = {entry for entry in in_turn if ".experts." in entry}
    here = {entry: values for entry, values in in_turn.items() if entry not in of_experts}
    folding.fold_source(here, fold, scale)
    folding.fold_input(here, layer.find("feed"), scale)
    for input in layer.inputs:
        if input.key in fold.inputs and input.expert is not None:
            names = {one.name + one.form.weight for one in input.linears}
            folding.fold_input({entry: in_turn[entry] for entry in names}, input, scale)
    assert all(np.array_equal(in_turn[entry], at_once[entry]) for entry in at_once)


def test_a_norm_that_counts_its_weight_from_one_is_folded_with_that_one() -> None:
    weight, bias = np.array([0.5, -0.5], np.float32), np.array([3.0, 4.0], np.float32)
    folding.fold_norm(weight, bias, NormFold("norm", 1.0, ("attention",)), np.array([2.0, 4.0], np.float32))
    assert weight.tolist() == [1.5 / 2 - 1, 0.5 / 4 - 1]
    assert bias.tolist() == [1.5, 1.0]


def test_rows_that_make_no_channel_are_left() -> None:
    linear = Linear("qkv", 2, 4)
    weight, bias = np.arange(8, dtype=np.float32).reshape(4, 2), np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    # two heads share the values of rows 2 and 3
    fold = RowFold(linear, (2, 3, 2, 3), "attention.out")
    folding.fold_rows(weight, bias, fold, np.array([2.0, 4.0, 2.0, 4.0], np.float32))
    assert weight.tolist() == [[0, 1], [2, 3], [2, 2.5], [1.5, 1.75]]
    assert bias.tolist() == [1, 2, 1.5, 1]


def test_channels_of_one_row_are_averaged_and_others_left_alone() -> None:
    values = np.array([1.0, 2.0, 5.0, 2.5], np.float32)
    shared = RowFold(Linear("v", 2, 2), (0, 1, 0, 1), "attention.out")
    assert folding.pooled(shared, values).tolist() == [3, 2.25, 3, 2.25]
    apart = RowFold(Linear("gate_up", 2, 8), (1, 3, 5, 7), "feed.down")
    assert folding.pooled(apart, values).tolist() == values.tolist()
    assert folding.pooled(NormFold("norm", 0.0, ("attention",)), values).tolist() == values.tolist()
    assert folding.pooled(shared, values).dtype == np.float32


@pytest.mark.parametrize(
    ("linear", "shape", "matrix"),
    [
        (Linear("plain", 2, 3), (3, 2), [[0, 1], [2, 3], [4, 5]]),
        (Linear("plain", 2, 3, Form(turned=True)), (2, 3), [[0, 3], [1, 4], [2, 5]]),
        (Linear("plain", 2, 3, index=1), (2, 3, 2), [[6, 7], [8, 9], [10, 11]]),
        (Linear("plain", 2, 3, Form(turned=True), index=1), (2, 2, 3), [[6, 9], [7, 10], [8, 11]]),
    ],
)
def test_a_matrix_is_seen_with_outputs_as_rows_and_changes_where_it_is_stored(
    linear: Linear, shape: tuple[int, ...], matrix: list[list[int]]
) -> None:
    stored = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    before = stored.copy()
    tensors = {"plain.weight": stored}
    assert folding.matrix(tensors, linear).tolist() == matrix
    folding.fold_input(tensors, Input("feed", (linear,)), np.array([1.0, 10.0], np.float32))
    assert folding.matrix(tensors, linear).tolist() == [[row[0], 10 * row[1]] for row in matrix]
    assert (stored != before).sum() == 3


def test_a_bias_is_that_of_the_matrix_in_its_stack() -> None:
    linear = Linear("mlp.experts.gate_up_proj", 4, 2, Form("", "_bias", turned=True), index=1)
    tensors = {"mlp.experts.gate_up_proj_bias": np.arange(6, dtype=np.float32).reshape(3, 2)}
    values = folding.bias(tensors, linear)
    assert values is not None
    assert values.tolist() == [2, 3]
    assert folding.bias({}, linear) is None
