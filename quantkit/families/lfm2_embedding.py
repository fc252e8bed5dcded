"""LFM2 for embeddings: a vector for each token or text, with attention to earlier tokens (ColBERT) or to all.

Shape of the GGUF: llama.cpp's `lfm2` architecture (src/models/lfm2.cpp). With attention to all tokens convolutions
reach to both sides. A Dense module, which ColBERT has, becomes `dense_2`.
"""

from dataclasses import replace
from typing import Any

from quantkit.errors import UnsupportedError
from quantkit.families import lfm2
from quantkit.families.base.encoder import encoder_cautions
from quantkit.families.base.family import Dropped, Family, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters
from quantkit.families.base.pooling import DENSE, pooling_keys
from quantkit.forward.recurrent_mixers import ShortConvolution

_FAMILY = "LFM2 embedding"
_CAUSAL, _BOTH_WAYS, _MASKED = "Lfm2Model", "Lfm2BidirectionalModel", "Lfm2BidirectionalForMaskedLM"
_MODULE = "1_Dense"


def _bare(rule: Rule) -> Rule:
    return replace(rule, source=rule.source.removeprefix("model."))


def _is_causal(sizes: Hyperparameters) -> bool:
    return bool(sizes.config["architectures"] == [_CAUSAL])


def _dense(sizes: Hyperparameters) -> int:
    """Outputs of the Dense module, 0 without one."""
    modules = sizes.config.get(DENSE) or ()
    return int(modules[0][2]) if modules else 0


def _prepare(config: dict[str, Any]) -> dict[str, Any]:
    """LFM2's settings; refuse what llama.cpp's graph does not have.

    Raises:
        UnsupportedError: a convolution of even width, or other Dense modules than one after the last norm.
    """
    config = lfm2.prepare(config)
    name = str((config.get("architectures") or [_BOTH_WAYS])[0])
    config["architectures"] = [_BOTH_WAYS if name == _MASKED else name]
    if name != _CAUSAL and config["conv_L_cache"] % 2 == 0:
        raise UnsupportedError(
            f"config.json: conv_L_cache is {config['conv_L_cache']}, but llama.cpp runs {name} only with an odd number,"
            " which reaches as far to both sides; a GGUF cannot express this setting"
        )
    modules, hidden = config.get(DENSE) or (), config.get("hidden_size")
    if modules and [module[:2] for module in modules] != [(_MODULE, hidden)]:
        raise UnsupportedError(
            f"modules.json has the Dense modules {', '.join(f'{name} ({a} to {b})' for name, a, b in modules)};"
            f" llama.cpp runs {_MODULE} alone, from {hidden} values"
        )
    return config


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    """LFM2's keys, whether attention is causal, the pooling, and the width after the Dense module."""
    causal, outputs = _is_causal(sizes), _dense(sizes)
    return [
        *([Key(f"{arch}.embedding_length_out", "u32", outputs, first=True)] if outputs else []),
        *lfm2.keys(arch, sizes),
        *([] if causal else [Key(f"{arch}.attention.causal", "bool", False)]),
        *pooling_keys(arch, sizes),
    ]


RULES = (
    Rule(f"{_MODULE}.linear.weight", "dense_2.weight", ("dense", "hidden"), when=lambda sizes: _dense(sizes) > 0),
    *map(_bare, (*lfm2.MIXERS, *lfm2.MLP, *lfm2.ENDS[:2])),
)
FORWARD = replace(
    lfm2.FORWARD,
    base="",
    unpacked=lambda _: "loaders of AWQ and GPTQ folders run models that write text, and this one gives embeddings",
)

FAMILY = Family(
    name=_FAMILY,
    models="LFM2.5-Embedding, LFM2.5-Encoder, LFM2-ColBERT, LFM2.5-ColBERT",
    architectures=(_CAUSAL, _BOTH_WAYS, _MASKED),
    gguf_arch="lfm2",
    rules=RULES,
    keys=_keys,
    defaults=lfm2.DEFAULTS,
    prepare=_prepare,
    rename=((r"^(model|lfm2)\.", ""),),
    dropped=(Dropped(r"lm_head\..*", "they predict masked tokens; llama.cpp gives embeddings of this model"),),
    dimensions=lambda sizes: {**lfm2.dimensions(sizes), "dense": _dense(sizes)},
    cautions=encoder_cautions,
    rope_kinds=("default",),
    forward={
        _CAUSAL: FORWARD,
        _BOTH_WAYS: replace(
            FORWARD,
            head="",
            attention=replace(FORWARD.attention, causal=False),
            short_convolution=ShortConvolution(layers=lfm2.convolves, centered=True),
        ),
    },
    traits=lfm2.FAMILY.traits,
    dense=True,
)
