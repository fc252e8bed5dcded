"""Importance matrices from our own forward against llama.cpp's llama-imatrix: which tensors, how many values, which."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quantkit.checkpoint import open_checkpoint
from quantkit.families.base.native import Native
from quantkit.forward.layer_linears import layer_linears
from quantkit.forward.linears import LayerLinears
from quantkit.imatrix.file import load_imatrix, write_imatrix
from quantkit.imatrix.names import LinearKey, as_imatrix, collect_imatrix, imatrix_columns, imatrix_sources
from quantkit.stream.statistics import Statistics
from quantkit.stream.stream import Stream, StreamOptions
from quantkit.stream.watcher import Tensors
from tests.families.expected import read_gguf, write_checkpoint
from tests.families.models import forward_cases
from tests.helpers.conversions import to_gguf
from tests.helpers.imatrix_peer import Entry
from tests.imatrix.llama_names import TOKENS, known_entries, of_llama_cpp, shape_of

Squares = dict[LinearKey, tuple[NDArray[np.float64], int]]
KNOWN = known_entries()
SMALL = [
    name
    for name in sorted(KNOWN.keys() & forward_cases().keys())
    if max(layers for layers, _ in KNOWN[name].values()) <= 8
]
PACKED = ("deepseek-v4", "gpt-oss-mxfp4")
# These stand in GGUF as llama.cpp multiplies them: the keys' half on its side, by head; see imatrix_sources.
TURNED = "attn_k_b.weight"
BY_HEAD = "attn_v_b.weight"


class KeptSquares:
    """A watcher that keeps the sums of squares of every linear's input."""

    def __init__(self) -> None:
        self.squares: Squares = {}

    def dense(self, layer: LayerLinears, tensors: Tensors, statistics: Mapping[str, Statistics]) -> Tensors:
        for group in layer.inputs:
            if group.key in statistics:
                actual = statistics[group.key].squares, statistics[group.key].tokens
                self.squares |= {(linear.name, linear.index): actual for linear in group.linears}
        return tensors

    def expert(
        self, layer: LayerLinears, expert: int, tensors: Tensors, statistics: Mapping[str, Statistics]
    ) -> Tensors:
        return self.dense(layer, tensors, statistics)


def squares_of(native: Native, tokens: NDArray[np.int32], folder: Path) -> Squares:
    keep = KeptSquares()
    folder.mkdir()
    with Stream(native, tokens, folder, threads=2, options=StreamOptions(gram=False)) as stream:
        stream.embed()
        for number in range(native.decoder.n_layers):
            stream.layer(number, keep)
    return keep.squares


# llama-imatrix refuses the vocabularies of encoders
ENCODERS = sorted(name for name, (_, case) in forward_cases().items() if case.encoder)


@pytest.mark.parametrize("name", ENCODERS)
def test_entries_of_an_encoder_are_the_matrices_of_its_layers(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(name, tmp_path / name)
    with open_checkpoint(str(folder)) as checkpoint:
        native = Native(checkpoint, nearest=True)
        squares = squares_of(native, TOKENS, tmp_path / "stream")
        sums, _ = collect_imatrix(squares, imatrix_sources(native))
    _, tensors = read_gguf(to_gguf(folder, "f32", tmp_path))
    # of experts, one vector each
    assert {tensor: values.size for tensor, values in sums.items()} == {
        tensor: shape[-1] * math.prod(shape[:-2])
        for tensor, (_, shape, _) in tensors.items()
        if tensor.startswith("blk.") and len(shape) > 1 and not tensor.endswith(".conv.weight")
    }


@pytest.mark.parametrize("name", sorted(forward_cases().keys() - ENCODERS))
def test_entries_and_their_sizes_are_those_of_llama_imatrix(name: str, tmp_path: Path) -> None:
    expected = {tensor: shape for tensor, shape in KNOWN[name].items() if not tensor.endswith(TURNED)}
    with open_checkpoint(str(write_checkpoint(name, tmp_path / name))) as checkpoint:
        native = Native(checkpoint, nearest=True)
        layers = [
            layer_linears(native.architecture, native.config, number, native.tensors)
            for number in range(native.decoder.n_layers)
        ]
        linears = [linear for layer in layers for group in layer.inputs for linear in group.linears]
        squares = {(linear.name, linear.index): (np.ones(linear.n_in), 1) for linear in linears}
        sums, _ = collect_imatrix(squares, imatrix_sources(native))
    assert shape_of({tensor: values.size for tensor, values in sums.items()}) == expected


@pytest.mark.full
@pytest.mark.parametrize("name", SMALL)
def test_sums_and_counts_are_those_that_llama_imatrix_gathers(name: str, tmp_path: Path) -> None:
    folder, theirs = of_llama_cpp(name, tmp_path)
    assert shape_of({tensor: entry.sums.size for tensor, entry in theirs.items()}) == KNOWN[name]
    with open_checkpoint(str(folder)) as checkpoint:
        native = Native(checkpoint, nearest=True)
        sums, counts = collect_imatrix(
            squares_of(native, TOKENS, tmp_path / "work"), imatrix_sources(native), imatrix_columns(native)
        )
    if forward_cases()[name][1].graph_differs:
        # llama.cpp runs another norm than the model has (tests/families/test_tiny_models.py), so these values differ
        apart = max(difference(sums[tensor], theirs[tensor]) for tensor in sums)
        assert apart > 1e-2, "llama.cpp's graph is the model's; compare the values"
        return
    # Over blocks of MXFP4, llama.cpp rounds what it multiplies: now and then a token goes to another expert.
    allowed, routed_otherwise = (0.15, 3) if name in PACKED else (2e-3, 0)
    if "gemma3n" in name:
        # llama.cpp's standard deviation of a row of gates has one value fewer below it
        allowed = 1e-2
    if "minimax-m3" in name:
        # llama.cpp chooses blocks with flash attention only, which rounds to half precision
        allowed = 5e-2
    for tensor in sums:
        if not tensor.endswith(BY_HEAD):  # there: latent vectors as attention has mixed them, here: one by one
            assert difference(sums[tensor], theirs[tensor]) < allowed, tensor
        assert np.abs(counts[tensor] - theirs[tensor].counts).max() <= routed_otherwise, tensor


def test_each_token_counts_once_in_the_streams_around_a_dense_feed_forward(tmp_path: Path) -> None:
    with open_checkpoint(str(write_checkpoint("hy-v4", tmp_path / "hy-v4"))) as checkpoint:
        squares = squares_of(Native(checkpoint, nearest=True), TOKENS, tmp_path / "work")
    assert {tokens for (name, _), (_, tokens) in squares.items() if ".experts." not in name} == {TOKENS.size}


def difference(ours: NDArray[np.float32], theirs: Entry) -> float:
    """The largest difference of two values, relative to the largest value."""
    return float(np.abs(ours.ravel() - theirs.sums).max() / np.abs(theirs.sums).max())


def test_an_imatrix_in_memory_is_the_one_that_is_read_back_from_its_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    squares: Squares = {(f"experts.{n}", None): (rng.random(8) * 50, 50) for n in range(3)}
    squares["experts.1", None] = (np.zeros(8), 0)
    squares["dense", 0] = (rng.random(8) * 64, 64)
    sources: dict[str, tuple[LinearKey, ...]] = {
        "blk.0.ffn_up_exps.weight": tuple((f"experts.{n}", None) for n in range(3)),
        "blk.0.attn_q.weight": (("dense", 0),),
        "blk.1.attn_q.weight": (("never seen", None),),
    }
    sums, counts = collect_imatrix(squares, sources)
    assert counts["blk.0.ffn_up_exps.weight"].tolist() == [50, 0, 50]
    write_imatrix(tmp_path / "i.gguf", sums, counts, datasets=["a.txt"], chunk_size=32, chunks=2)
    read = load_imatrix(tmp_path / "i.gguf")
    imatrix = as_imatrix(sums, counts, datasets=["a.txt"], chunks=2, chunk_size=32)
    assert (imatrix.datasets, imatrix.chunks, imatrix.chunk_size) == (read.datasets, read.chunks, read.chunk_size)
    assert imatrix.values.keys() == read.values.keys() == {"blk.0.ffn_up_exps.weight", "blk.0.attn_q.weight"}
    for name, values in imatrix.values.items():
        assert values.dtype == np.float32 and values.tobytes() == read.values[name].tobytes()
    assert read.values["blk.0.ffn_up_exps.weight"][8:16].tolist() == [1.0] * 8
