"""adapter_config.json of PEFT: the settings that decide what an adapter adds to its base model.

Source: peft, `LoraConfig` (tuners/lora/config.py) and `LoraLayer` (tuners/lora/layer.py), version 0.21.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.checkpoint.jsonfile import parse_object, shown
from quantkit.errors import CheckpointError, UnsupportedError

FILE = "adapter_config.json"
_MERGE = "merge it with PEFT's merge_and_unload first"
# Settings that change the product B A, or where it applies.
_UNSUPPORTED = (
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "target_parameters",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
# Initialisations that change the base's weights before training, so that the adapter fits no published base.
_CHANGED_BASE = re.compile(r"(pissa|corda).*|olora|loftq|lora_ga|mica", re.IGNORECASE)


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of a LoRA adapter.

    `rank_pattern` and `alpha_pattern` map patterns of module names to values other than `rank` and `alpha`.
    `token_rows`: ids of the tokens that were trained alone, by module name ("" for the input embedding).
    `keeps_tied`: a tied head was trained as one with the embedding (`ensure_weight_tying`).
    `transposed`: the base stores its linears as (in, out), as GPT-2's Conv1D (`fan_in_fan_out`).
    `invocation_tokens`: an activated LoRA (aLoRA) takes effect after these tokens only. `base`: the base model's name.
    """

    rank: int
    alpha: float
    rslora: bool = False
    dora: bool = False
    rank_pattern: Mapping[str, int] | None = None
    alpha_pattern: Mapping[str, float] | None = None
    token_rows: Mapping[str, tuple[int, ...]] | None = None
    keeps_tied: bool = False
    transposed: bool = False
    invocation_tokens: tuple[int, ...] = ()
    base: str | None = None

    @property
    def kind(self) -> str:
        """LoRA, rsLoRA, DoRA or aLoRA, for records and messages."""
        if self.invocation_tokens:
            return "aLoRA"
        return "DoRA" if self.dora else "rsLoRA" if self.rslora else "LoRA"

    def rank_of(self, module: str) -> int:
        """The rank r of the matrices of a module."""
        return int(_by_pattern(self.rank_pattern, module, self.rank))

    def scaling_of(self, module: str) -> float:
        """The factor of B A: alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023)."""
        rank, alpha = self.rank_of(module), float(_by_pattern(self.alpha_pattern, module, self.alpha))
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, otherwise: float) -> float:
    """The value of the first pattern that matches the end of a module's name (PEFT's get_pattern_key)."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return otherwise


def parse_adapter_config(data: bytes, where: str) -> AdapterConfig:
    """The settings in the bytes of adapter_config.json; `where` names the adapter in messages.

    Raises:
        CheckpointError: a key is missing or has a wrong value.
        UnsupportedError: the adapter is not a LoRA, or uses a variant that is not a plain product.
    """
    config_file = f"{FILE} of {where}"
    values = parse_object(data, config_file)
    kind = values.get("peft_type")
    if kind is None:
        raise CheckpointError(f"{config_file} has no peft_type; save the adapter with PEFT's save_pretrained")
    if kind != "LORA":
        raise UnsupportedError(
            f"{where} is an adapter of type {shown(str(kind))}; quantkit reads LORA (LoRA, rsLoRA, DoRA) only, {_MERGE}"
        )
    for name in _UNSUPPORTED:
        if values.get(name):
            raise UnsupportedError(f"{config_file} sets {name}, which quantkit does not read; {_MERGE}")
    start = values.get("init_lora_weights")
    if isinstance(start, str) and _CHANGED_BASE.fullmatch(start):
        raise UnsupportedError(
            f"{config_file} has init_lora_weights {shown(start)}, so it fits a changed base model; save it with PEFT's"
            " path_initial_model_for_weight_conversion, or " + _MERGE
        )
    return AdapterConfig(
        rank=int(_number(values, "r", config_file, least=1)),
        alpha=_number(values, "lora_alpha", config_file),
        rslora=values.get("use_rslora") is True,
        dora=values.get("use_dora") is True,
        rank_pattern=_patterns(values, "rank_pattern", config_file, least=1),
        alpha_pattern=_patterns(values, "alpha_pattern", config_file),
        token_rows=_token_rows(values.get("trainable_token_indices"), config_file),
        keeps_tied=values.get("ensure_weight_tying") is True,
        transposed=values.get("fan_in_fan_out") is True,
        invocation_tokens=_tokens(values.get("alora_invocation_tokens") or [], "alora_invocation_tokens", config_file),
        base=base if isinstance(base := values.get("base_model_name_or_path"), str) and base else None,
    )


def _number(values: Mapping[str, Any], key: str, config_file: str, least: float | None = None) -> float:
    if values.get(key) is None:
        raise CheckpointError(f"{config_file} has no {key}; save the adapter with PEFT's save_pretrained")
    return _checked(values[key], key, config_file, least)


def _checked(value: Any, key: str, config_file: str, least: float | None) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"{config_file}: {key} is {shown(str(value))}, not a number; save the adapter again")
    if least is not None and (value < least or value != int(value)):
        raise CheckpointError(
            f"{config_file}: {key} is {value}, not a whole number of at least {least:g}; save the adapter again"
        )
    return value


def _patterns(values: Mapping[str, Any], key: str, config_file: str, least: float | None = None) -> dict[str, Any]:
    patterns = values.get(key) or {}
    if not isinstance(patterns, Mapping):
        raise CheckpointError(f"{config_file}: {key} is not an object; save the adapter again")
    for pattern, value in patterns.items():
        _checked(value, f"{key}[{shown(pattern)}]", config_file, least)
        try:
            re.compile(pattern)
        except re.error as error:
            raise CheckpointError(
                f"{config_file}: {key} has {shown(pattern)}, not a regular expression ({error}); save the adapter again"
            ) from error
    return dict(patterns)


def _token_rows(value: Any, config_file: str) -> dict[str, tuple[int, ...]]:
    if not value:
        return {}
    by_module = value if isinstance(value, Mapping) else {"": value}
    return {name: _tokens(tokens, "trainable_token_indices", config_file) for name, tokens in by_module.items()}


def _tokens(value: Any, key: str, config_file: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int and token >= 0 for token in value):
        raise CheckpointError(f"{config_file}: {key} is not a list of token ids; save the adapter again")
    return tuple(value)
