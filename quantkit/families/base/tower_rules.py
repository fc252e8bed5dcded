"""Rules that projectors of several families share: modules with biases, fused attention, patches of two frames."""

from collections.abc import Callable, Sequence

import numpy as np

from quantkit.families.base.family import Rule, Take
from quantkit.families.base.fused import rows
from quantkit.families.base.hyperparameters import Hyperparameters

LAYER = "v.blk.{layer}"
"""A layer of the tower in the GGUF."""
CLIP_LAYER = {
    "self_attn.q_proj": ("attn_q", "hidden", "hidden"),
    "self_attn.k_proj": ("attn_k", "hidden", "hidden"),
    "self_attn.v_proj": ("attn_v", "hidden", "hidden"),
    "self_attn.out_proj": ("attn_out", "hidden", "hidden"),
    "layer_norm1": ("ln1", "hidden"),
    "layer_norm2": ("ln2", "hidden"),
    "mlp.fc1": ("ffn_up", "ffn", "hidden"),
    "mlp.fc2": ("ffn_down", "hidden", "ffn"),
}
"""Modules of a layer as CLIP and SigLIP of transformers name them: the name in the GGUF, then the shape."""


def affine(source: str, target: str, *shape: str, bias: bool = True, required: bool = True) -> tuple[Rule, ...]:
    """The weight of a module and, if it has one, its bias: as many values as the weight has rows."""
    weight = Rule(f"{source}.weight", f"{target}.weight", shape, required=required)
    return (weight, Rule(f"{source}.bias", f"{target}.bias", shape[:1], required=required)) if bias else (weight,)


def norm(source: str, target: str, width: str = "hidden") -> tuple[Rule, ...]:
    """A norm with or without a bias."""
    return (
        Rule(f"{source}.weight", f"{target}.weight", (width,)),
        Rule(f"{source}.bias", f"{target}.bias", (width,), required=False),
    )


def layer_rules(at: str, modules: dict[str, tuple[str, ...]], *, bias: bool = True) -> tuple[Rule, ...]:
    """The rules of a layer whose modules lie under `at`; `modules` as `CLIP_LAYER`."""
    return tuple(
        rule
        for name, (target, *shape) in modules.items()
        for rule in affine(f"{at}.{name}", f"{LAYER}.{target}", *shape, bias=bias)
    )


def fused_attention(source: str) -> tuple[Rule, ...]:
    """Queries, keys and values that one module computes, with or without a bias: a third of its rows each."""

    def third(index: int) -> Callable[[Hyperparameters], Take]:
        return lambda tower: rows(index * tower.hidden, tower.hidden)

    return tuple(
        Rule(f"{source}.{part}", f"{LAYER}.attn_{name}.{part}", shape, required=part == "weight", take=third(index))
        for index, name in enumerate("qkv")
        for part, shape in (("weight", ("qkv", "hidden")), ("bias", ("qkv",)))
    )


def patches_of_two_frames(source: str) -> tuple[Rule, ...]:
    """A convolution over patches of two frames as two over one frame; llama.cpp adds their results."""

    def frame(index: int) -> Callable[[Hyperparameters], Take]:
        def take(tower: Hyperparameters) -> Take:
            patch = tower.dimension("patch")
            images = np.arange(tower.hidden * 3, dtype=np.int64)[:, None] * 2 + index
            return Take((images * patch + np.arange(patch)).reshape(-1))

        return take

    return tuple(
        Rule(
            f"{source}.weight",
            target,
            ("hidden", "3", "2", "patch", "patch"),
            take=frame(index),
            reshaped=("hidden", "3", "patch", "patch"),
        )
        for index, target in enumerate(("v.patch_embd.weight", "v.patch_embd.weight.1"))
    )


def renumbered(rules: Sequence[Rule], source: int, target: int) -> tuple[Rule, ...]:
    """Rules with `{from}` and `{to}` in their names, for one module."""
    return tuple(
        Rule(rule.source.replace("{from}", str(source)), rule.target.replace("{to}", str(target)), rule.shape)
        for rule in rules
    )
