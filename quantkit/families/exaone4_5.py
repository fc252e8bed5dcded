"""EXAONE 4.5, its text model: EXAONE 4's graph.

Shape of the GGUF: llama.cpp's `exaone4` architecture (src/models/exaone4.cpp).
"""

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from quantkit.families.base.family import Dropped, Key, Rule
from quantkit.families.base.hyperparameters import Hyperparameters, number
from quantkit.families.base.multimodal import TEXT_PREFIXES, TOWERS, TOWERS_LEFT_OUT
from quantkit.families.exaone4 import FAMILY as EXAONE4
from quantkit.families.exaone4 import NORMS
from quantkit.families.exaone_moe import NEXTN
from quantkit.families.qwen2 import PLAIN_MLP, PROJECTIONS
from quantkit.families.qwen3 import HEAD_NORM_RULES

_NAME = "Exaone4_5_ForConditionalGeneration"

_DRAFT = (*PROJECTIONS, *HEAD_NORM_RULES, *NORMS, *PLAIN_MLP)


def _shares(sizes: Hyperparameters) -> bool:
    """Whether all layers for a later token have the weights of one."""
    return bool(sizes.config.get("mtp_share_layers"))


def _draft_rules(at: str, when: Callable[[Hyperparameters], bool]) -> tuple[Rule, ...]:
    return tuple(
        replace(rule, source=rule.source.replace("model.layers.{layer}", at), draft=True, when=when) for rule in _DRAFT
    )


RULES = (
    *EXAONE4.rules,
    *_draft_rules("mtp.layers.{draft}", lambda sizes: not _shares(sizes)),
    *_draft_rules("mtp.layers.0", _shares),
    *NEXTN,
)


def _observe(config: dict[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """config.json with the number of layers that predict a later token in the checkpoint; transformers loses them."""
    numbers = {int(match[1]) for name in tensors if (match := re.match(r"mtp\.layers\.(\d+)\.", name))}
    stated = int(number(config, "num_nextn_predict_layers") or 0)
    return {
        **config,
        "num_nextn_predict_layers": stated if numbers and config.get("mtp_share_layers") else len(numbers),
    }


def _keys(arch: str, sizes: Hyperparameters) -> list[Key]:
    more = [Key(f"{arch}.nextn_predict_layers", "u32", sizes.n_draft)] if sizes.n_draft else []
    return [*EXAONE4.keys(arch, sizes), *more]


FAMILY = replace(
    EXAONE4,
    name="EXAONE 4.5",
    models="EXAONE 4.5 33B, text only",
    architectures=(_NAME,),
    # published files name the nested type exaone4_5_text
    text_models={_NAME: ("Exaone4ForCausalLM", "exaone4")},
    rename=TEXT_PREFIXES,
    dropped=(Dropped(TOWERS, TOWERS_LEFT_OUT),),
    rules=RULES,
    keys=_keys,
    observe=_observe,
    dimensions=lambda sizes: {"two_hidden": 2 * sizes.hidden},
    forward=None,
)
