"""The metric of an embedding's errors against the outputs of the linears that read it, in numpy."""

import numpy as np
import pytest

from quantkit.forward.linears import Input, LayerLinears, Linear, NormFold
from quantkit.forward.parts import Form
from quantkit.quant.embedding import costs

HIDDEN = 12
Q, K = Linear("attn.q", HIDDEN, 20), Linear("attn.k", HIDDEN, 5, Form(turned=True))
GATE, ROUTER = Linear("mlp.gate", HIDDEN, 30), Linear("mlp.router", HIDDEN, 3, kept=True)
EXPERT, OUT = Linear("expert.0.gate", HIDDEN, 30), Linear("attn.o", 20, HIDDEN)


def layer_of(*norms: NormFold) -> LayerLinears:
    inputs = (
        Input("attention", (Q, K)),
        Input("attention.out", (OUT,)),
        Input("feed", (GATE, ROUTER)),
        Input("expert.0", (EXPERT,), expert=0),
    )
    return LayerLinears(0, inputs, norms)


LAYER = layer_of(NormFold("norm.1", 1.0, ("attention",)), NormFold("norm.2", 0.0, ("feed", "expert.0")))


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    shapes = {f"{one.name}.weight": (one.n_out, one.n_in) for one in (Q, GATE)}
    shapes |= {"attn.k.weight": (HIDDEN, 5), "norm.1.weight": (HIDDEN,), "norm.2.weight": (HIDDEN,)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_an_error_costs_the_changes_of_the_outputs(tensors: dict[str, np.ndarray]) -> None:
    found = costs(LAYER, tensors.__getitem__, HIDDEN)
    error = np.random.default_rng(1).standard_normal(HIDDEN)
    first, last = tensors["norm.1.weight"] + 1, tensors["norm.2.weight"]
    weights = [tensors["attn.q.weight"] * first, tensors["attn.k.weight"].T * first]
    changes = [((weight @ error) ** 2).sum() / (weight**2).sum() for weight in weights]
    itself = ((last * error) ** 2).sum() / (last**2).sum()
    np.testing.assert_allclose([error @ metric @ error for metric in found.linears], changes, rtol=1e-4)
    mixed = found.with_state(found.bases()[0], 0.3)
    np.testing.assert_allclose(error @ mixed @ error, sum(changes) / 2 + 0.3 * itself, rtol=1e-4)


def test_a_router_and_routed_experts_do_not_count(tensors: dict[str, np.ndarray]) -> None:
    only = layer_of(NormFold("norm.2", 0.0, ("feed", "expert.0")))
    assert len(costs(only, tensors.__getitem__, HIDDEN).linears) == 1


def test_without_norms_every_channel_counts_the_same() -> None:
    found = costs(layer_of(), {}.__getitem__, HIDDEN)
    assert found.bases() == []
    np.testing.assert_allclose(found.state, np.eye(HIDDEN) / HIDDEN)
