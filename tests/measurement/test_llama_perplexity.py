"""quantkit's figures against those that llama-perplexity prints for the same files and windows.

Perplexities have to be its own to the last digit. Of the reference it knows less than we do when it compares: it keeps
log probabilities in a file, 16 bits each, from the row's largest down to 16 below it. The bounds here follow from that
alone (see Known and its functions) and are checked on the file it wrote.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from demo.smollm2 import NAME
from quantkit.measurement.gguf_engine import GgufEngine
from quantkit.progress import SILENT
from tests.helpers.command import quantkit
from tests.helpers.llama_perplexity import Printed, llama_kl_divergence, llama_perplexity
from tests.helpers.real import smollm2_or_skip, wikitext2_or_skip

Values = NDArray[np.float64]

N_CTX = 512
SCORED = N_CTX - 1 - N_CTX // 2
DROPPED = -16.0
"""Log probabilities of the reference at or under this are left out of its KL divergence."""

LARGEST = 64
FLOAT = 8 * float(np.spacing(np.float32(LARGEST / 2)))
"""What a few roundings to float32 do to logits under LARGEST and what is computed of them."""


@dataclass(frozen=True)
class Base:
    """llama-perplexity's file of a reference: of each scored token `step`, between neighbouring log probabilities that
    it can say, and `lowest`, the smallest; `codes` (n, n_vocab), the log probabilities in steps above it.
    """

    tokens: NDArray[np.int32]
    step: NDArray[np.float32]
    lowest: NDArray[np.float32]
    codes: NDArray[np.uint16]

    def log_p(self, rows: slice) -> NDArray[np.float32]:
        """In float32, as llama-perplexity computes them and then decides which to leave out."""
        return self.step[rows, None] * self.codes[rows] + self.lowest[rows, None]


@dataclass(frozen=True)
class Known:
    """Of each scored token what its losses (`loss` of the candidate, `reference_loss`), its KL divergence and the
    change of its probability are in float64, and how far from it llama-perplexity's can be.

    A stored log probability is off by half a step, so a loss is off by as much (`loss_bound`), and a probability p by p
    times that (`change_bound`). The KL divergence is a sum of p (log p - log q): off by half a step times p (1 + |log p
    - log q|), each term (`kl_bound`). Two things are no rounding and are told apart: `printed_kl` is `kl` without the
    terms that it leaves out, and `printed_loss` what it takes for a `reference_loss` larger than its file can say.
    """

    loss: Values
    reference_loss: Values
    printed_loss: Values
    loss_bound: Values
    kl: Values
    printed_kl: Values
    kl_bound: Values
    change: Values
    change_bound: Values
    same_top: NDArray[np.bool_]
    undecided_top: NDArray[np.bool_]


@pytest.mark.parametrize(
    ("types", "chunks"),
    [
        pytest.param(("q4_0",), 2, marks=pytest.mark.full),
        pytest.param(("q4_0", "q2_k"), 8, marks=(pytest.mark.full, pytest.mark.timeout(900))),
    ],
    ids=["briefly", "at length"],
)
def test_perplexity_and_kl_divergence_are_llama_perplexitys(
    types: tuple[str, ...], chunks: int, tmp_path: Path
) -> None:
    files = _files(("bf16", *types), tmp_path)
    text, base_file = tmp_path / "wiki.test.raw", tmp_path / "base"
    text.write_text(wikitext2_or_skip(), encoding="utf-8")
    words = [*files.values(), "--text", text, "--chunks", str(chunks), "--gpu-layers", "none", "-o", tmp_path / "out"]
    answer = quantkit("measure", *words, "--threads", "2", timeout=600)
    assert answer.code == 0, answer.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    measured = {model["label"]: model["quality"][0] for model in report["models"]}

    printed = llama_perplexity(files["bf16"], text, chunks=chunks)
    _same_digits(measured["bf16"]["perplexity"], printed)
    llama_perplexity(files["bf16"], text, chunks=chunks, base=base_file)
    base = _read(base_file)
    for kind in types:
        _same_digits(measured[kind]["perplexity"], llama_perplexity(files[kind], text, chunks=chunks))
        theirs = llama_kl_divergence(files[kind], text, base_file, chunks=chunks)
        known = _known(files["bf16"], files[kind], base)
        _agree(known, theirs)
        _reported(measured[kind], known)


def _same_digits(figure: Mapping[str, float], printed: Printed) -> None:
    digits = printed.digits_of(figure["value"]), Printed(printed.error_text).digits_of(figure["error"])
    assert digits == (printed.text, printed.error_text)


def _agree(known: Known, theirs: Mapping[str, Printed]) -> None:
    """Every figure that is printed lies within the bounds of what is known, token by token."""
    # in this mode it sums losses that it has rounded to float32
    _near(theirs["Mean PPL(Q)"], np.exp(known.loss.mean()), np.exp(known.loss.mean()) * FLOAT)
    apart, bound = known.loss - known.printed_loss, known.loss_bound
    ratio, base = theirs["Mean ln(PPL(Q)/PPL(base))"], theirs["Mean PPL(base)"]
    _near(ratio, apart.mean(), bound.mean())
    _near_error(ratio, apart, bound)
    perplexity = np.exp(known.printed_loss.mean())
    _near(base, perplexity, perplexity * np.expm1(bound.mean()))
    difference = np.exp(known.loss.mean()) - perplexity
    _near(theirs["Mean PPL(Q)-PPL(base)"], difference, perplexity * np.expm1(bound.mean()))

    _near(theirs["Mean KLD"], known.printed_kl.mean(), known.kl_bound.mean())
    _near_error(theirs["Mean KLD"], known.printed_kl, known.kl_bound)
    # where each value moves by at most so much, so does each of the sorted ones
    most = known.kl_bound.max()
    _near(theirs["Median KLD"], float(np.median(known.printed_kl)), most)
    _near(theirs["Maximum KLD"], known.printed_kl.max(), most)
    for share in ("90.0", "99.0", "99.9"):
        value, rounded = _percentile(known.printed_kl, float(share) / 100)
        _near(theirs[f"{share}% KLD"], value, most + rounded)

    mean, rms = theirs["Mean Δp"], theirs["RMS Δp"]
    _near(mean, 100 * known.change.mean(), 100 * known.change_bound.mean())
    _near(rms, 100 * _rms(known.change), 100 * _rms(known.change_bound))
    same = theirs["Same top p"]
    _near(same, 100 * known.same_top.mean(), 100 * known.undecided_top.mean())


def _near(printed: Printed, value: float, bound: float) -> None:
    assert abs(printed.value - value) <= bound + printed.half_digit, (printed, value, bound)


def _near_error(printed: Printed, values: Values, bound: Values) -> None:
    """The error of a mean: a standard deviation moves by no more than the root of the mean square of what is added."""
    _near(Printed(printed.error_text), values.std() / np.sqrt(len(values) - 1), _rms(bound) / np.sqrt(len(values) - 1))


def _reported(quality: Mapping[str, Any], known: Known) -> None:
    """What the report says is what is known, to the precision of float32."""
    apart = known.loss - known.reference_loss
    assert np.log(quality["perplexity_ratio"]["value"]) == pytest.approx(apart.mean(), rel=1e-5)
    own = quality["perplexity"]["value"]
    assert quality["perplexity_difference"]["value"] == pytest.approx(own - own / np.exp(apart.mean()), rel=1e-5)
    for name, value in (
        ("mean", known.kl.mean()),
        ("error", known.kl.std() / np.sqrt(len(known.kl) - 1)),
        ("median", np.median(known.kl)),
        ("p90", np.quantile(known.kl, 0.9)),
        ("p99", np.quantile(known.kl, 0.99)),
        ("p999", np.quantile(known.kl, 0.999)),
        ("max", known.kl.max()),
    ):
        assert quality["kl"][name] == pytest.approx(value, rel=1e-4), name
    assert quality["top1"]["value"] == pytest.approx(known.same_top.mean(), abs=1e-12)
    assert quality["probability_change"]["mean"] == pytest.approx(known.change.mean(), abs=1e-6)
    assert quality["probability_change"]["rms"] == pytest.approx(_rms(known.change), rel=1e-5)


def _percentile(values: Values, share: float) -> tuple[float, float]:
    """The percentile, and what finding its place in float32 can do to it."""
    place = share * (len(values) - 1)
    below = int(place)
    gap = float(np.diff(np.sort(values)[max(0, below - 1) : below + 3]).max())
    return float(np.quantile(values, share)), gap * float(np.spacing(np.float32(place)))


def _rms(values: Values) -> float:
    return float(np.sqrt((values**2).mean()))


def _known(reference: Path, candidate: Path, base: Base) -> Known:
    parts = list(_known_by_window(reference, candidate, base))
    return Known(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _known_by_window(reference: Path, candidate: Path, base: Base) -> Iterator[tuple[NDArray[Any], ...]]:
    engines = GgufEngine(reference, n_threads=2), GgufEngine(candidate, n_threads=2)
    positions = np.arange(SCORED)
    try:
        for engine in engines:
            engine.prepare(base.tokens, Path(), SILENT)
        for window, ids in enumerate(base.tokens):
            rows, targets = slice(window * SCORED, (window + 1) * SCORED), ids[N_CTX // 2 + 1 :]
            first, second = (engine.logits(window) for engine in engines)
            log_p, log_q, stored = _log_softmax(first), _log_softmax(second), base.log_p(rows)
            assert max(np.abs(first).max(), np.abs(second).max()) < LARGEST
            half = base.step[rows] / 2 + FLOAT
            p, apart = np.exp(log_p), log_p - log_q
            stored_p = p * (stored > DROPPED)
            kl, printed_kl = (p * apart).sum(axis=1), (stored_p * apart).sum(axis=1)
            # the second order of exp: half a step is under 2e-4
            kl_bound = 1.001 * half * (stored_p * (1 + np.abs(apart))).sum(axis=1)
            loss, own = -log_q[positions, targets], -log_p[positions, targets]
            beyond = base.codes[rows][positions, targets] == 0
            largest = -base.lowest[rows]
            assert (own[beyond] >= largest[beyond] - half[beyond]).all()
            assert (np.abs(own + stored[positions, targets])[~beyond] <= half[~beyond]).all()
            printed_loss = np.where(beyond, largest, own)
            change = np.exp(-loss) - np.exp(-own)
            change_bound = 1.001 * half * (np.exp(-own) + np.exp(-loss)) + np.where(beyond, np.exp(DROPPED), 0)
            same = first.argmax(axis=1) == second.argmax(axis=1)
            undecided = (base.codes[rows] == base.codes[rows].max(axis=1, keepdims=True)).sum(axis=1) > 1
            losses, divergences = (loss, own, printed_loss, half), (kl, printed_kl, kl_bound)
            yield *losses, *divergences, change, change_bound, same, undecided
    finally:
        for engine in engines:
            engine.close()


def _log_softmax(logits: NDArray[np.float32]) -> Values:
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    return np.asarray(rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)))


def _read(path: Path) -> Base:
    """Source: llama.cpp's tools/perplexity: "_logits_", n_ctx, n_vocab, n_chunk, the tokens; then of each scored token
    step and lowest as float32 and the codes, to an even number of them.
    """
    data = path.read_bytes()
    n_ctx, n_vocab, n_chunks = np.frombuffer(data, np.int32, 3, 8)
    assert data[:8] == b"_logits_" and n_ctx == N_CTX
    tokens = np.frombuffer(data, np.int32, n_chunks * n_ctx, 20).reshape(n_chunks, n_ctx)
    row = np.dtype([("step", "f4"), ("lowest", "f4"), ("codes", "u2", (n_vocab + n_vocab % 2,))])
    rows = np.frombuffer(data, row, n_chunks * SCORED, 20 + tokens.nbytes)
    return Base(tokens, rows["step"].copy(), rows["lowest"].copy(), rows["codes"][:, :n_vocab])


def _files(types: tuple[str, ...], folder: Path) -> dict[str, Path]:
    options = [word for kind in types for word in ("-t", kind)]
    answer = quantkit("gguf", smollm2_or_skip(), *options, "-o", folder, "--no-logits")
    assert answer.code == 0, answer.stderr
    return {kind: folder / f"{NAME}-GGUF" / f"{NAME}-{kind.upper()}.gguf" for kind in types}
