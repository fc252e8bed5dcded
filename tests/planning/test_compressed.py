"""DeepSeek-V4's memory at the sizes of V4-Flash, with fewer layers and experts, against llama.cpp's own account."""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type

from quantkit.families import find_family, map_tensors
from quantkit.gguf.mix import sort_key
from quantkit.planning.context import Context
from quantkit.planning.memory import plan_memory
from tests.families.models.deepseek4 import BASE
from tests.helpers import oracle
from tests.planning.llama_memory import Job, measure
from tests.planning.models import read_model

FLASH = {
    "architectures": BASE["architectures"],
    "model_type": "deepseek_v4",
    "compress_ratios": [0, 0, 4, 128, 4, 128],
    "n_routed_experts": 8,
    "num_hash_layers": 3,
    "num_hidden_layers": 6,
    "qk_rope_head_dim": 64,
    "rope_scaling": {**BASE["rope_scaling"], "original_max_position_embeddings": 65536},
}
HUNDREDTH = 0.0051 * (1 << 20)


@dataclass(frozen=True)
class Shaped:
    shape: tuple[int, ...]


def write_flash(path: Path) -> Path:
    """The GGUF of a model of these sizes in bf16, with holes for weights."""
    family = find_family(FLASH)
    sizes = family.sizes(FLASH)
    shapes = {}
    for rule in family.rules:
        if rule.scales or not rule.required:
            continue
        for layer in (
            (rule.layers(sizes) if rule.layers else range(sizes.n_layer)) if "{layer}" in rule.source else [-1]
        ):
            shape = tuple(family.dimension(sizes, name, layer) for name in rule.shape)
            for expert in range(sizes.n_expert) if "{expert}" in rule.source else [0]:
                shapes[rule.source.format(layer=layer, expert=expert)] = Shaped(shape)
    tensors = [
        (t.name, t.shape, Type.I32 if "tid2eid" in t.name else Type.BF16 if len(t.shape) > 1 else Type.F32)
        for t in sorted(map_tensors(family, sizes, shapes), key=lambda tensor: sort_key(tensor.name))
    ]
    keys = {key.name: float(key.value) if key.kind == "f32" else key.value for key in family.keys("deepseek4", sizes)}
    vocabulary = {"deepseek4.vocab_size": sizes.vocab, "tokenizer.ggml.model": "no_vocab"}
    oracle.write_sparse_gguf(path, {"general.architecture": "deepseek4", **keys, **vocabulary}, tensors)
    return path


def test_the_plan_of_published_sizes_is_llama_cpps_account(tmp_path: Path) -> None:
    path = write_flash(tmp_path / "flash.gguf")
    shape, tensors = read_model(path)
    jobs = [Job(str(path), n_ctx=n_ctx, flash=flash, no_alloc=True) for n_ctx, flash in ((32768, -1), (4096, 0))]
    for job, measured in zip(jobs, measure(jobs), strict=True):
        planned = plan_memory(shape, tensors, Context(n_ctx=job.n_ctx, flash=False if job.flash == 0 else None)).cpu
        assert planned.compute == pytest.approx(measured.compute, rel=0.001), job
        # a rounded line for each of four caches and three states
        assert planned.kv == pytest.approx(measured.kv, abs=7 * HUNDREDTH), job
        assert math.isclose(planned.weights, measured.weights, rel_tol=1e-4), job
