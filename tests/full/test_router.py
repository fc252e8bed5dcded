"""Why a router is never quantized: real weights whose router tells good experts from bad ones by little.

SmolLM2's mixture (tests/helpers/moe.py) has experts that are all as good, so that nothing hangs on its router. Here
two of four experts are spoiled, and the router knows: its rows have a large part in common, which chooses nothing,
and a small one that tells good from bad. Sixteen bits keep that small part, four bits lose it.
"""

import numpy as np
import pytest

from quantkit.checkpoint import open_checkpoint
from quantkit.families.base.native import Native
from quantkit.forward.layer import Context
from quantkit.outputs.packed_folders import all_layers
from quantkit.quant.grid import Grid
from quantkit.quant.rounding import round_to_nearest
from tests.helpers.moe import smollm2_moe
from tests.helpers.real import wikitext2 as wikitext2
from tests.packed.folder_perplexity import Tensors, perplexity, source_weights, windows

GRID = Grid(4, 64)
COMMON, TELLING = 0.05, 0.003


def with_a_fine_router(native: Native, tensors: Tensors, directions: dict[int, np.ndarray]) -> None:
    """Experts 2 and 3 spoiled, and in each layer a router that finds the others along its direction."""
    rng = np.random.default_rng(0)
    for layer, direction in directions.items():
        at = f"model.layers.{layer}.block_sparse_moe"
        common = rng.standard_normal(len(direction)).astype(np.float32) * COMMON
        telling = direction * np.float32(TELLING)
        rows = [common + telling, common + 0.9 * telling, common - 0.9 * telling, common - telling]
        tensors[f"{at}.gate.weight"] = np.stack(rows).astype(np.float32)
        for expert in (2, 3):
            spoiled = tensors[f"{at}.experts.{expert}.w2.weight"]
            tensors[f"{at}.experts.{expert}.w2.weight"] = np.ascontiguousarray(spoiled[:, ::-1])


def directions_of(native: Native, text: np.ndarray) -> dict[int, np.ndarray]:
    """By layer: the direction along which what the router sees of every token is nearest to 1 (least squares)."""
    decoder = native.decoder
    streams, directions = [decoder.embed(window.tolist()) for window in text], {}
    context = Context()
    for number in range(decoder.n_layers):
        layer = decoder.layer(number)
        halves = [layer.attend(x, context) for x in streams]
        inputs = np.concatenate([normed for _, normed in halves]).astype(np.float64)
        gram = inputs.T @ inputs
        gram[np.diag_indices_from(gram)] += 1e-3 * np.trace(gram) / len(gram)
        directions[number] = np.linalg.solve(gram, inputs.sum(axis=0)).astype(np.float32)
        streams = [layer.join(middle, layer.feed(middle, normed, context), context) for middle, normed in halves]
    return directions


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_router_in_four_bits_sends_tokens_to_the_wrong_experts(wikitext2: str) -> None:
    folder = smollm2_moe()
    text = windows(folder, wikitext2, 8)
    with open_checkpoint(str(folder)) as checkpoint:
        native = Native(checkpoint)
        tensors = source_weights(native)
        with_a_fine_router(native, tensors, directions_of(native, text[3:]))
        layers = all_layers(native)
        config = native.config
    source = perplexity(config, tensors, text[:3])
    linears = [linear for layer in layers for group in layer.inputs for linear in group.linears]
    for linear in linears:
        if not linear.kept:
            name = linear.name + ".weight"
            tensors[name] = round_to_nearest(tensors[name], GRID).dequantized()
    kept = perplexity(config, tensors, text[:3])
    for linear in linears:
        if linear.kept:
            name = linear.name + ".weight"
            tensors[name] = round_to_nearest(tensors[name], GRID).dequantized()
    quantized = perplexity(config, tensors, text[:3])
    print(f"source {source:.2f}, router kept {kept:.2f}, router quantized {quantized:.2f}")
    assert kept < 1.4 * source
    assert quantized > 2 * kept
