"""The order of neurons against the rounding of activations as ggml does it, in full."""

import numpy as np
import pytest

from quantkit.quant.neurons import GROUP, Moved, neuron_order


def rounded(x: np.ndarray) -> np.ndarray:
    """ggml's Q8_K (quantize_row_q8_K_ref): one step for 256 channels of a token, 127 levels at its largest value."""
    blocks = x.reshape(len(x), -1, 256)
    at = np.abs(blocks).argmax(axis=2)[:, :, None]
    inverse = -127 / np.take_along_axis(blocks, at, axis=2)
    levels = np.minimum(np.rint(blocks * inverse), 127)
    return (levels / inverse).reshape(x.shape)


@pytest.fixture(params=range(3))
def neurons(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of 1024 neurons, whose sizes and outliers differ as those of language models do, and a down matrix."""
    rng = np.random.default_rng(request.param)
    x = rng.standard_t(4, (300, 1024)) * np.exp(rng.normal(0, 0.8, 1024))
    return x.astype(np.float32), (rng.standard_normal((96, 1024)) * 0.05).astype(np.float32)


def test_the_order_lowers_what_the_rounding_of_activations_costs(neurons: tuple[np.ndarray, np.ndarray]) -> None:
    x, down = neurons
    order = neuron_order(np.mean(x * x, axis=0), down)
    assert order is not None
    moved_x, moved_down = x[:, order.order] / order.scale, order.columns(down)
    np.testing.assert_allclose(moved_x @ moved_down.T, x @ down.T, rtol=1e-3, atol=1e-3)

    def error(inputs: np.ndarray, weight: np.ndarray) -> float:
        return float(np.square((rounded(inputs) - inputs) @ weight.T).sum())

    before = error(x, down)
    assert error(moved_x, moved_down) < 0.6 * before
    assert error(x[:, order.order], down[:, order.order]) < 0.8 * before
    assert error(moved_x, moved_down) < error(x[:, order.order], down[:, order.order])


def test_statistics_follow_the_neurons(neurons: tuple[np.ndarray, np.ndarray]) -> None:
    x, down = neurons
    order = neuron_order(np.mean(x * x, axis=0), down)
    assert order is not None
    moved = x[:, order.order] / order.scale
    np.testing.assert_allclose(order.gram(x.T @ x), moved.T @ moved, rtol=1e-3, atol=0.5)
    np.testing.assert_allclose(order.squares(np.mean(x * x, axis=0)), np.mean(moved * moved, axis=0), rtol=1e-4)


def test_groups_share_a_power_of_two_and_every_neuron_stays(neurons: tuple[np.ndarray, np.ndarray]) -> None:
    x, down = neurons
    order = neuron_order(np.mean(x * x, axis=0), down)
    assert order is not None
    assert sorted(order.order) == list(range(1024))
    exponents = np.log2(order.scale).reshape(-1, GROUP)
    assert (exponents == np.rint(exponents)).all() and (exponents == exponents[:, :1]).all()
    assert exponents.max() > exponents.min()


@pytest.mark.parametrize("part", ["gate", "up", "down"])
def test_a_moved_matrix_is_restored_exactly(part: str, neurons: tuple[np.ndarray, np.ndarray]) -> None:
    x, down = neurons
    order = neuron_order(np.mean(x * x, axis=0), down)
    assert order is not None
    weight = down if part == "down" else np.ascontiguousarray(down.T)
    moved = Moved(part, order, frozenset())  # type: ignore[arg-type]
    written = np.concatenate([moved.rows(weight, at, at + 32) for at in range(0, len(weight), 32)])
    assert not np.array_equal(written, weight)
    np.testing.assert_array_equal(moved.restored(written), weight)


def on_lattice(down: np.ndarray) -> np.ndarray:
    """The weights rounded to 4 bits with a minimum, in groups of 32 columns."""
    blocks = down.reshape(-1, 32)
    low = blocks.min(axis=1, keepdims=True)
    steps = (blocks.max(axis=1, keepdims=True) - low) / 15
    return (np.rint((blocks - low) / steps) * steps + low).astype(np.float32).reshape(down.shape)


def test_weights_on_a_lattice_move_in_halves_of_its_groups(neurons: tuple[np.ndarray, np.ndarray]) -> None:
    x, down = neurons[0], on_lattice(neurons[1])
    order = neuron_order(np.mean(x * x, axis=0), down)
    assert order is not None
    assert sorted(order.order) == list(range(1024)) and (order.scale == 1).all()
    groups = order.order.reshape(-1, 16) // 32
    assert (groups == groups[:, :1]).all()
    # a block of Q6_K has values of one lattice still: at most 16 levels, with the step of its group
    steps = np.ptp(down.reshape(96, 32, 32), axis=2) / 15
    halves = order.columns(down).reshape(96, 64, 16)
    levels = (halves - halves.min(axis=2, keepdims=True)) / steps[:, groups[:, 0], None]
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)

    def error(inputs: np.ndarray, weight: np.ndarray) -> float:
        return float(np.square((rounded(inputs) - inputs) @ weight.T).sum())

    np.testing.assert_allclose(x[:, order.order] @ order.columns(down).T, x @ down.T, rtol=1e-3, atol=1e-3)
    assert error(x[:, order.order], order.columns(down)) < 0.9 * error(x, down)


def test_unreached_inputs_and_odd_widths_keep_their_order(neurons: tuple[np.ndarray, np.ndarray]) -> None:
    x, down = neurons
    squares = np.mean(x * x, axis=0)
    assert neuron_order(np.zeros_like(squares), down) is None
    assert neuron_order(squares[:1000], down[:, :1000]) is None
