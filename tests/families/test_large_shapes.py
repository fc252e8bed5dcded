"""DeepSeek, Gemma 3 and gpt-oss at their published sizes: parameters, and the type mixes that llama.cpp gives them."""

import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType

from quantkit.families import Family, Hyperparameters, find_family, map_tensors
from quantkit.families.base.family import Rule
from quantkit.gguf.file_types import FILE_TYPES
from quantkit.gguf.mix import MixTensor, choose_types, sort_key
from quantkit.outputs.model import _stays_f32, mix_model
from tests.families.test_deepseek import V3
from tests.families.test_gemma import text
from tests.families.without_class import WITHOUT_CLASS
from tests.helpers import oracle

_T = GGMLQuantizationType

V2_LITE = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "q_lora_rank": None,
    "topk_group": 1,
    "vocab_size": 102400,
}
GEMMA3_4B = text(
    hidden_size=2560,
    intermediate_size=10240,
    num_attention_heads=8,
    num_key_value_heads=4,
    num_hidden_layers=34,
    head_dim=256,
    query_pre_attn_scalar=256,
)
GPT_OSS = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss"}
GPT_OSS_20B = {**GPT_OSS, "num_hidden_layers": 24, "num_local_experts": 32}

# Billions of parameters, as llama.cpp's own loader counts the published GGUFs.
MODELS = {
    "DeepSeek-V3": (V3, False, 671.03),
    "DeepSeek-V2-Lite": (V2_LITE, False, 15.71),
    "Gemma 3 4B": (GEMMA3_4B, False, 3.88),
    "gpt-oss 20B": (GPT_OSS_20B, True, 20.91),
    "gpt-oss 20B, unpacked": (GPT_OSS_20B, False, 20.91),
    "gpt-oss 120B": (GPT_OSS, True, 116.83),
}
TYPES = ("q2_k", "q3_k_m", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "mxfp4")


@dataclass(frozen=True)
class Shaped:
    shape: tuple[int, ...]


def source(family: Family, sizes: Hyperparameters, *, packed: bool) -> dict[str, Shaped]:
    """The checkpoint's tensors by the family's rules; experts one by one, in MXFP4 blocks where `packed`."""
    shapes: dict[str, Shaped] = {}
    known: set[tuple[str, int | None]] = set()
    for rule in family.rules:
        if (rule.when and not rule.when(sizes)) or (rule.scales and not packed) or not wanted(rule, sizes):
            continue
        for layer in layers(rule, sizes):
            if (rule.target, layer) in known:
                continue
            known.add((rule.target, layer))
            shape = tuple(family.dimension(sizes, name, layer) for name in rule.shape)
            draft = None if layer is None else layer - sizes.n_layer
            count = sizes.n_expert if "{expert}" in rule.source else sizes.n_stream if "{stream}" in rule.source else 1
            for number in range(count):
                for part in rule.parts or (None,):
                    name = rule.source.format(layer=layer, draft=draft, expert=number, stream=number, part=part)
                    shapes[name] = Shaped(shape)
            if rule.scales:
                shapes[rule.scales.format(layer=layer)] = Shaped(shape[:-1])
            if rule.times:
                shapes[rule.times.format(layer=layer)] = Shaped((1, *shape))
    return shapes


def wanted(rule: Rule, sizes: Hyperparameters) -> bool:
    return rule.required or (rule.tied_to_embedding and not sizes.tied)


def layers(rule: Rule, sizes: Hyperparameters) -> Iterator[int | None]:
    if rule.draft:
        yield from range(sizes.n_layer, sizes.n_layer + sizes.n_draft)
    elif "{layer}" not in rule.source:
        yield None
    else:
        yield from rule.layers(sizes) if rule.layers else range(sizes.n_layer)


def described(config: dict[str, Any], *, packed: bool) -> tuple[dict[str, Any], list[MixTensor]]:
    """Architecture keys and tensors of the unquantized GGUF in llama.cpp's order."""
    family = find_family(config)
    sizes = family.sizes(config)
    tensors = [
        MixTensor(
            tensor.name,
            tensor.shape,
            _T.MXFP4 if tensor.is_mxfp4 else _T.F32 if _stays_f32(tensor.name, tensor.shape) else _T.BF16,
        )
        for tensor in map_tensors(family, sizes, source(family, sizes, packed=packed))
    ]
    arch = family.arch(sizes)
    stated = family.keys(arch, sizes)
    keys = {key.name: float(key.value) if key.kind == "f32" else key.value for key in stated}
    return {"general.architecture": arch, **keys}, sorted(tensors, key=lambda item: sort_key(item.name))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_parameters_and_mixes_are_llama_cpps(name: str, tmp_path: Path) -> None:
    config, packed, billions = MODELS[name]
    keys, tensors = described(config, packed=packed)
    assert round(sum(prod(tensor.shape) for tensor in tensors) / 1e9, 2) == billions

    assert_mixes_are_llama_cpps(keys, tensors, TYPES, tmp_path / "sparse.gguf")


@pytest.mark.parametrize("name", sorted(WITHOUT_CLASS))
def test_mixes_of_a_model_that_has_no_class_of_its_size_are_llama_cpps(name: str, tmp_path: Path) -> None:
    keys, tensors = described(WITHOUT_CLASS[name], packed=False)
    assert_mixes_are_llama_cpps(keys, tensors, ("q4_0", "q4_k_m", "q2_k", "iq4_xs"), tmp_path / "sparse.gguf")


def assert_mixes_are_llama_cpps(
    keys: dict[str, Any], tensors: list[MixTensor], types: Iterable[str], path: Path
) -> None:
    """Our type of each tensor is that of a dry run of llama_model_quantize over a file without weights at `path`."""
    oracle.write_sparse_gguf(path, keys, [(tensor.name, tensor.shape, tensor.dtype) for tensor in tensors])
    names = list(types)
    jobs = [
        oracle.Job(src=str(path), dst="unused", ftype=FILE_TYPES[name].ftype, dry_run=True, allow_requantize=True)
        for name in names
    ]
    arch = str(keys["general.architecture"])
    for name, result in zip(names, oracle.run_jobs(jobs), strict=True):
        assert result.code == 0, result.log[-500:]
        ours = {tensor.name: tensor.type for tensor in choose_types(mix_model(arch, keys), FILE_TYPES[name], tensors)}
        theirs = oracle.mix_from_log(result.log)
        assert {key: (ours[key].name, theirs[key].name) for key in ours if ours[key] != theirs[key]} == {}, name
        assert list(ours) == list(theirs)


def test_what_is_cut_out_of_every_layer_alike_is_held_once() -> None:
    family = find_family(GPT_OSS)
    sizes = family.sizes(GPT_OSS)
    tensors = source(family, sizes, packed=False)
    tracemalloc.start()
    mapped = map_tensors(family, sizes, tensors)
    memory, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # rows and columns of 128 experts: 24 MB of numbers for one layer, and there are 36
    assert len(mapped) > 36
    assert memory < 60e6
