"""choose_types against llama.cpp's own dry run, on header-only models of every shape the rules tell apart."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st

from quantkit.errors import UnsupportedError, UsageError
from quantkit.gguf.file_types import FILE_TYPES, FileType
from quantkit.gguf.mix import MixModel, MixOptions, MixTensor, choose_types, parse_override, sort_key
from tests.helpers import oracle

_T = GGMLQuantizationType


@dataclass(frozen=True)
class Model:
    """A model to mix: its hyperparameters, and how its tensors are laid out."""

    arch: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int = 4096
    n_expert: int = 0
    layout: dict[str, Any] = field(default_factory=dict)
    extra: tuple[tuple[str, tuple[int, ...], GGMLQuantizationType], ...] = ()

    def sizes(self) -> dict[str, int]:
        names = ("n_layer", "n_embd", "n_ff", "n_head", "n_head_kv", "n_vocab", "n_expert")
        return {name: getattr(self, name) for name in names}

    def tensors(self) -> list[tuple[str, tuple[int, ...], GGMLQuantizationType]]:
        return [*oracle.model_tensors(**self.sizes(), **self.layout), *self.extra]

    def write(self, path: Path) -> None:
        oracle.write_sparse_gguf(path, oracle.model_metadata(self.arch, **self.sizes()), self.tensors())

    def mix(self, ftype: FileType, options: MixOptions) -> list[Any]:
        tensors = sorted(self.tensors(), key=lambda tensor: sort_key(tensor[0]))
        model = MixModel(self.arch, self.n_layer, self.n_head, self.n_head_kv, self.n_expert)
        return choose_types(model, ftype, [MixTensor(*tensor) for tensor in tensors], options)


_F16 = _T.F16
MODELS = {
    "7b": Model("llama", 32, 4096, 11008, 32, 32),
    "8b, shared values": Model("llama", 32, 4096, 14336, 32, 8),
    "65b": Model("llama", 80, 8192, 22016, 64, 64),
    "70b": Model("llama", 80, 8192, 28672, 64, 8),
    "qwen 72b": Model("qwen2", 80, 8192, 29568, 64, 8),
    "135m, rows that are not super-blocks, tied": Model("llama", 30, 576, 1536, 9, 3, layout={"tied": True}),
    "stories, tied": Model("llama", 6, 288, 768, 6, 6, layout={"tied": True}),
    "tied, bf16": Model("llama", 22, 2048, 5632, 32, 4, layout={"tied": True, "dtype": _T.BF16}),
    "rows of 100": Model("llama", 3, 100, 260, 5, 5, layout={"dtype": _T.F32}),
    "one layer": Model("llama", 1, 256, 512, 4, 1),
    "mixtral": Model("llama", 32, 4096, 14336, 32, 8, n_expert=8),
    "80 layers, 8 experts": Model("llama", 80, 512, 1024, 8, 1, n_expert=8),
    "80 layers, 4 experts": Model("llama", 80, 512, 1024, 8, 1, n_expert=4),
    "4 experts": Model("llama", 24, 512, 1536, 8, 8, n_expert=4, layout={"tied": True}),
    "16 experts": Model("llama", 20, 1024, 2816, 16, 4, n_expert=16),
    "2 experts": Model("llama", 9, 512, 1536, 8, 8, n_expert=2),
    "8 experts of odd rows": Model("llama", 12, 576, 1536, 9, 3, n_expert=8),
    "one row": Model(
        "llama", 4, 512, 1024, 8, 2, extra=(("blk.0.odd.weight", (1, 512), _F16), ("blk.1.odd.weight", (4, 512), _F16))
    ),
    "falcon 7b": Model("falcon", 32, 4544, 18176, 71, 1, layout={"fused_qkv": True, "gated": False}),
    "falcon 40b": Model("falcon", 60, 8192, 32768, 128, 8, layout={"fused_qkv": True, "gated": False}),
    "falcon, tied": Model("falcon", 20, 512, 2048, 8, 8, layout={"fused_qkv": True, "gated": False, "tied": True}),
    "gpt2": Model(
        "gpt2",
        *(12, 768, 3072, 12, 12),
        layout={"fused_qkv": True, "gated": False, "tied": True},
        extra=(("position_embd.weight", (1024, 768), _F16), ("blk.0.attn_qkv.bias", (2304,), _T.F32)),
    ),
    "shared experts": Model(
        "llama",
        *(10, 512, 1536, 8, 2),
        n_expert=4,
        extra=tuple((f"blk.{i}.ffn_down_shexp.weight", (512, 1536), _F16) for i in range(10)),
    ),
    "names that are kept": Model(
        "llama",
        *(4, 512, 1024, 8, 2),
        extra=tuple(
            (name, (512, 512), _F16)
            for name in (
                *("blk.0.ssm_conv1d.weight", "blk.0.shortconv.conv.weight", "blk.1.altup_x.weight"),
                *("blk.2.time_mix_w1.weight", "blk.2.time_mix_key.weight", "blk.3.attn_rel_b.weight"),
                *("v.position_embd.weight", "v.patch_embd.weight", "per_layer_token_embd.weight"),
                *("token_types.weight", "per_layer_model_proj.weight", "blk.3.attn_kv_b.weight", "blk.1.misc.scale"),
            )
        ),
    ),
}

_Q6, _Q8, _IQ4 = _T.Q6_K, _T.Q8_0, _T.IQ4_NL
OPTIONS = {
    "plain": MixOptions(),
    "imatrix": MixOptions(has_imatrix=True),
    "pure": MixOptions(pure=True),
    "output type": MixOptions(output_type=_Q8),
    "embedding type": MixOptions(embedding_type=_T.Q5_0),
    "both types, pure": MixOptions(output_type=_T.F16, embedding_type=_IQ4, pure=True),
    "overrides": MixOptions(
        tensor_types=((r"attn_(k|v)", _Q8), (r"\.[02]\..*down", _Q6), (r"^blk\.1\d", _T.Q4_1), (r"_embd", _T.Q5_1))
    ),
    "overrides and an embedding type": MixOptions(embedding_type=_Q8, tensor_types=(("embd", _IQ4), ("output", _Q6))),
    "output left": MixOptions(leave_output=True),
}


def _differences(cases: Iterable[tuple[str, str, str]], folder: Path) -> list[str]:
    """What llama.cpp does otherwise in the cases (model, file type, options): types, fallbacks, importances needed."""
    cases = list(cases)
    paths: dict[str, Path] = {}
    jobs = []
    importances = {"blk.0.attn_q.weight": np.ones(1, np.float32)}
    for name, ftype, option in cases:
        if name not in paths:
            paths[name] = folder / f"{len(paths)}.gguf"
            MODELS[name].write(paths[name])
        options = OPTIONS[option]
        jobs.append(
            oracle.Job(
                src=str(paths[name]),
                dst="unused",
                ftype=FILE_TYPES[ftype].ftype,
                pure=options.pure,
                output_type=options.output_type,
                embedding_type=options.embedding_type,
                tensor_types=list(options.tensor_types),
                leave_output=options.leave_output,
                imatrix=importances if options.has_imatrix else None,
                dry_run=True,
            )
        )
    different = []
    for case, result in zip(cases, oracle.run_jobs(jobs), strict=True):
        name, ftype, option = case
        if result.code:
            assert "no tensor type fallback is defined" in result.log, (case, result.log[-500:])
            with pytest.raises((UnsupportedError, UsageError)):
                MODELS[name].mix(FILE_TYPES[ftype], OPTIONS[option])
            continue
        theirs = oracle.mix_from_log(result.log)
        assert len(theirs) == len(MODELS[name].tensors()), case
        try:
            choices = MODELS[name].mix(FILE_TYPES[ftype], OPTIONS[option])
        except UsageError:
            # a type asked for by name that does not fit the rows: llama.cpp dry-runs it, and would abort in earnest
            block = 32
            assert any(tensor[1][-1] % block for tensor in MODELS[name].tensors()), case
            continue
        assert [choice.name for choice in choices] == list(theirs), case
        wrong = {choice.name: (choice.type.name, theirs[choice.name].name) for choice in choices}
        different += [f"{case} {key}: {ours} is not {his}" for key, (ours, his) in wrong.items() if ours != his]
        if {choice.name for choice in choices if choice.fallback} != oracle.fallbacks_from_log(result.log):
            different.append(f"{case}: other fallbacks")
        needs = any(choice.requires_imatrix for choice in choices)
        if not OPTIONS[option].has_imatrix and needs != oracle.will_require_imatrix(result.log):
            different.append(f"{case}: needs importances {needs}")
    return different


@pytest.mark.full
def test_every_model_gets_the_mix_llama_cpp_gives_it_with_and_without_importances(tmp_path: Path) -> None:
    cases = itertools.product(MODELS, FILE_TYPES, ("plain", "imatrix"))
    assert _differences(cases, tmp_path) == []


_FEW = ("8b, shared values", "135m, rows that are not super-blocks, tied", "4 experts", "rows of 100", "falcon, tied")


def test_options_change_the_mix_as_they_do_in_llama_cpp(tmp_path: Path) -> None:
    # each model with each type, each model with each option, and each type with each option
    lists = (*_FEW, "names that are kept"), list(FILE_TYPES), list(OPTIONS)[2:]
    cases = [
        tuple(entry for _, entry in numbered)
        for numbered in itertools.product(*map(enumerate, lists))
        if sum(number for number, _ in numbered) % 3 == 0
    ]
    assert all(len(entries) >= 3 for entries in lists)
    assert _differences(cases, tmp_path) == []


def test_a_70b_is_told_from_models_of_as_many_layers_as_llama_cpp_does(tmp_path: Path) -> None:
    models = ("65b", "70b", "qwen 72b", "80 layers, 8 experts", "80 layers, 4 experts")
    assert _differences(itertools.product(models, ("q3_k_m", "q4_k_m"), ("plain",)), tmp_path) == []


@pytest.mark.full
def test_options_change_every_model_as_they_do_in_llama_cpp(tmp_path: Path) -> None:
    assert _differences(itertools.product(MODELS, FILE_TYPES, OPTIONS), tmp_path) == []


@given(
    st.permutations(["output.weight", "token_embd.weight", *(f"blk.{i}.{p}" for i in (0, 2, 10) for p in ("b", "a"))])
)
def test_tensors_are_ordered_by_layer_number_then_name(names: list[str]) -> None:
    outside = ["output.weight", "token_embd.weight"]
    inside = [f"blk.{i}.{part}" for i in (0, 2, 10) for part in ("a", "b")]
    assert sorted(names, key=sort_key) == outside + inside


def test_a_type_asked_for_that_does_not_fit_the_rows_is_refused_in_a_sentence() -> None:
    model = MODELS["135m, rows that are not super-blocks, tied"]
    with pytest.raises(
        UsageError, match=r"--embedding-type q4_k needs rows of a multiple of 256.*token_embd.weight have 576"
    ):
        model.mix(FILE_TYPES["q4_0"], MixOptions(embedding_type=_T.Q4_K))


def test_a_type_of_long_blocks_without_a_fallback_is_refused_in_a_sentence() -> None:
    model = MODELS["135m, rows that are not super-blocks, tied"]
    with pytest.raises(
        UnsupportedError,
        match=r"blk\.0\..* have 576 values, not a multiple of 128; .* no fallback for q1_0, .*--tensor-type",
    ):
        model.mix(FILE_TYPES["q1_0"], MixOptions())


def test_an_expert_tensor_outside_the_layers_is_refused_in_a_sentence() -> None:
    model = MixModel("llama", 2, 8, 8, 4)
    with pytest.raises(UnsupportedError, match=r"extra\.ffn_down\.weight has no layer"):
        choose_types(model, FILE_TYPES["q4_k_m"], [MixTensor("extra.ffn_down.weight", (256, 256), _F16)])


def test_an_override_is_read_as_llama_quantize_reads_it() -> None:
    assert parse_override("Attn_K=Q6_K") == ("attn_k", _T.Q6_K)


@pytest.mark.parametrize("text", ["", "attn_k", "=q6_k", "attn_k=", "attn_k=q9", "attn_(k=q6_k"])
def test_a_malformed_override_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_override(text)
