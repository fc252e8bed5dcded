"""Every type of every Llama-family checkpoint has the bytes of llama.cpp's two steps: convert, then llama-quantize.

Nothing of quantkit takes part in what the outputs are compared with: the peer is llama.cpp's own converter and
llama-quantize, and the files are read with the gguf package.
"""

import filecmp
import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import pytest

from demo.smollm2 import smollm2_checkpoint
from quantkit.gguf.file_types import FILE_TYPES, FileType
from tests.full.imatrix_file import write_random_imatrix
from tests.helpers.command import quantkit
from tests.helpers.oracle import Job, run_jobs
from tests.helpers.peer import Peer, peer_converter
from tests.helpers.tiny import VARIANTS, tiny_llama

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

# llama-quantize has no fallback for rows of 288 or 576 values in q1_0, and stops, as quantkit does (gguf/test_mix.py).
ALL = tuple(kind for kind in FILE_TYPES.values() if kind.name != "q1_0")
# llama-quantize refuses these without an importance matrix; on some shapes more types need one, and say so themselves.
WITHOUT_IMATRIX = tuple(kind for kind in ALL if not kind.needs_imatrix)
# ggml builds search tables for these, up to 13 seconds a process: the further cases below do without.
SLOW = ("iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s")
QUICK = tuple(kind for kind in ALL if kind.name not in SLOW)
IMATRIX_KEYS = {f"quantize.imatrix.{key}" for key in ("file", "dataset", "entries_count", "chunks_count")}
# Tokenizers trained for a test, whose hash llama.cpp cannot know.
PRE = {"llama3": "llama-bpe", "smollm2": "smollm"}
# Where quantkit is right and llama.cpp's converter is not, on purpose: the keys that may differ.
CORRECTED = {
    # the tokenizer puts no space in front of a text; without this key llama.cpp would
    "yi": {"tokenizer.ggml.add_space_prefix"},
    # llama.cpp's converter gives every token the score -1000, and no text is then tokenized right
    "no-tokenizer-model": {"tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.tokens"},
    # a unigram model tokenizes right only as llama.cpp's t5 vocabulary, which wants to know more of it
    "llama2-unigram": {
        "tokenizer.ggml.model",
        "tokenizer.ggml.add_space_prefix",
        "tokenizer.ggml.remove_extra_whitespaces",
        "tokenizer.ggml.unknown_token_id",
    },
}


@dataclass(frozen=True)
class Case:
    """A checkpoint to convert: `variant` of tests.helpers.tiny with `options`."""

    name: str
    variant: str
    dtype: str = "bf16"
    options: dict[str, Any] = field(default_factory=dict)
    types: tuple[FileType, ...] = QUICK


ROPE_5 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0}

CASES = (
    *(Case(variant, variant, types=ALL) for variant in VARIANTS),
    *(
        Case(f"{variant}-{dtype}", variant, dtype)
        for variant in ("llama2", "llama3", "smollm2", "mixtral", "attention-bias")
        for dtype in ("f16", "f32")
    ),
    Case("llama3-tied", "llama3", options={"tied": True}),
    Case("smollm2-untied", "smollm2", options={"tied": False}),
    Case("llama2-three-shards", "llama2", options={"shards": 3}),
    Case("mixtral-8-experts", "mixtral", options={"config": {"num_local_experts": 8}, "shards": 2}, types=ALL),
    Case("attention-and-mlp-bias", "attention-bias", options={"config": {"mlp_bias": True}}),
    Case("llama3-rope-as-transformers-5-writes-it", "llama3", options={"config": {"rope_parameters": ROPE_5}}),
    Case("llama2-yarn", "llama2", options={"config": {"rope_scaling": YARN}}),
    Case("llama2-twelve-layers", "llama2", options={"layers": 12, "kv_heads": 1}),
    Case("llama2-unigram", "llama2", options={"unigram": True, "vocab": 640}),
    Case("no-tokenizer-model", "llama2", options={"tokenizer_model": False}),
    Case("more-rows-than-tokens", "llama2", options={"extra_rows": 32}),
)


@pytest.fixture(scope="module")
def peer() -> Peer:
    return peer_converter()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_type_of_a_tiny_checkpoint_equals_llama_cpp(case: Case, peer: Peer, tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path / "Tiny-Model", variant=case.variant, dtype=case.dtype, **case.options)
    pre = PRE.get(case.variant)
    reference = tmp_path / "reference.gguf"
    peer.convert(checkpoint, reference, case.dtype, pre=pre)
    corrected = CORRECTED.get(case.name, set())
    options = ["--pre", pre] if pre else []
    assert differences(peer, checkpoint, reference, tmp_path, case.types, options, corrected) == {}


def test_every_type_of_smollm2_equals_llama_cpp(peer: Peer, tmp_path: Path) -> None:
    checkpoint = smollm2_checkpoint()
    reference = tmp_path / "reference.gguf"
    peer.convert(checkpoint, reference, "bf16")
    assert differences(peer, checkpoint, reference, tmp_path, ALL) == {}


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_a_gguf_as_source_gives_what_llama_quantize_makes_of_it(dtype: str, peer: Peer, tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path / "Tiny-Model", variant="mixtral", dtype=dtype)
    source = tmp_path / "Tiny-Model.gguf"
    peer.convert(checkpoint, source, dtype)
    assert differences(peer, source, source, tmp_path, QUICK) == {}


@pytest.mark.parametrize("start", ["q8_0", "q4_k_m"])
def test_a_quantized_gguf_is_quantized_again_as_llama_quantize_does(start: str, peer: Peer, tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path / "Tiny-Model")
    reference, source = tmp_path / "reference.gguf", tmp_path / "Tiny-Model.gguf"
    peer.convert(checkpoint, reference, "bf16")
    peer.quantize(reference, source, FILE_TYPES[start].ftype)
    assert differences(peer, source, source, tmp_path, QUICK, ["--allow-requantize"], requantize=True) == {}


def test_shards_are_those_of_llama_gguf_split(peer: Peer, tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path / "Tiny-Model", variant="mixtral")
    reference, whole = tmp_path / "reference.gguf", tmp_path / "whole.gguf"
    peer.convert(checkpoint, reference, "bf16")
    for kind in ("q8_0", "q4_k_m"):
        peer.quantize(reference, whole, FILE_TYPES[kind].ftype)
        theirs, ours = tmp_path / "theirs" / kind, tmp_path / "ours"
        theirs.mkdir(parents=True)
        stem = f"Tiny-Model-{kind.upper()}"
        peer.split(whole, theirs / stem, "1M")
        convert(checkpoint, [FILE_TYPES[kind]], ours, ["--split-max-size", "1M"])
        names = sorted(path.name for path in theirs.iterdir())
        assert len(names) > 2
        assert sorted(path.name for path in (ours / "Tiny-Model-GGUF").glob(f"{stem}*")) == names
        assert filecmp.cmpfiles(theirs, ours / "Tiny-Model-GGUF", names, shallow=False)[0] == names


def differences(
    peer: Peer,
    source: Path,
    reference: Path,
    folder: Path,
    types: Sequence[FileType],
    options: Sequence[str] = (),
    corrected: AbstractSet[str] = frozenset(),
    *,
    requantize: bool = False,
) -> dict[str, str]:
    """What differs, by type: quantkit's files from `source` against llama-quantize's from `reference`.

    Every type without an importance matrix, then every type with one; each in one call of quantkit.
    """
    differing = {}
    imatrix, theirs = folder / "imatrix.gguf", folder / "theirs.gguf"
    means = write_random_imatrix(imatrix, gguf.GGUFReader(reference).tensors)

    def compare(label: str, type_: FileType, ours: Path, but: AbstractSet[str]) -> None:
        same = filecmp.cmp(ours, theirs, shallow=False)
        reason = "" if same else explain(ours, theirs, but)
        if reason:
            differing[f"{label} {type_.name}"] = reason
        ours.unlink()

    plain = [kind for kind in types if not kind.needs_imatrix]
    for label, requested, given in (("plain", plain, None), ("imatrix", types, imatrix)):
        made = convert(source, requested, folder / label, [*options, *(["--imatrix", str(given)] if given else [])])
        for type_ in requested:
            if type_.name not in SLOW:
                peer.quantize(reference, theirs, type_.ftype, imatrix=given, allow_requantize=requantize)
                compare(label, type_, made[type_.name], corrected)
    # The search tables are built once for all jobs of a process; the interface has no place for the imatrix's keys.
    slow = [kind for kind in types if kind.name in SLOW]
    jobs = [Job(str(reference), str(folder / f"{kind.name}.gguf"), kind.ftype, imatrix=means) for kind in slow]
    for type_, result in zip(slow, run_jobs(jobs) if jobs else [], strict=True):
        assert result.code == 0, result.log
        theirs = folder / f"{type_.name}.gguf"
        compare("imatrix", type_, made[type_.name], corrected | IMATRIX_KEYS)
        theirs.unlink()
    return differing


def convert(source: Path, types: Sequence[FileType], out: Path, options: Sequence[str]) -> dict[str, Path]:
    """One call of quantkit for all `types`; the file of each type, the first one where there are shards."""
    type_options = [word for type_ in types for word in ("-t", type_.name)]
    # the logit check would run each of 33 files, and random weights at 2 bits have no logits to compare
    answer = quantkit(
        "gguf", source, *type_options, "-o", out, "--no-logits", "--format", "json", *options, timeout=1500
    )
    assert answer.code == 0, answer.stderr
    document = json.loads(answer.stdout)
    folder = Path(document["folder"])
    return {output["type"]: folder / output["files"][0]["name"] for output in document["outputs"]}


def explain(ours: Path, theirs: Path, corrected: AbstractSet[str]) -> str:
    """The keys and tensors in which two GGUF files differ, `corrected` keys aside; empty if there is none."""
    a, b = gguf.GGUFReader(ours), gguf.GGUFReader(theirs)
    reasons = []
    keys = [[key for key in reader.fields if not key.startswith("GGUF.")] for reader in (a, b)]
    if [key for key in keys[0] if key not in corrected] != [key for key in keys[1] if key not in corrected]:
        reasons.append(f"keys {sorted(set(keys[0]) ^ set(keys[1])) or 'in another order'}")
    for key in keys[0]:
        if key in b.fields and key not in corrected:
            one, other = a.fields[key], b.fields[key]
            if one.types != other.types or one.contents() != other.contents():
                reasons.append(f"{key}: {str(one.contents())[:80]} against {str(other.contents())[:80]}")
    if [t.name for t in a.tensors] != [t.name for t in b.tensors]:
        return "; ".join([*reasons, "tensors in another order"])
    for one, other in zip(a.tensors, b.tensors, strict=True):
        if one.tensor_type != other.tensor_type:
            reasons.append(f"{one.name} is {one.tensor_type.name} against {other.tensor_type.name}")
        elif one.data.tobytes() != other.data.tobytes():
            reasons.append(f"{one.name} ({one.tensor_type.name}) differs in its bytes")
    if not reasons and not corrected:
        reasons.append("the files differ outside of keys and tensors")
    return "; ".join(reasons)
