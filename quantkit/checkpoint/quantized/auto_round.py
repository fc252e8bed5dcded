"""The schemes of AutoRound: the layouts of AutoGPTQ, GPTQModel or AutoAWQ, with own settings of single linears.

Source: AutoRound's `dynamic_import_quant_linear_for_packing` and `get_layer_config`. "auto_round:auto_gptq" stores zero
points minus one, "auto_round" and "auto_round:gptqmodel" store them as they are. `extra_config` has the linears with
settings of their own, by name or expression; 16 bits are not quantized.
"""

from collections.abc import Mapping
from typing import Any

from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.quantized.awq_gptq import AwqGptqScheme, check_grid
from quantkit.checkpoint.quantized.scheme import MixedScheme, Scheme, compiled
from quantkit.errors import UnsupportedError

# characters that make a name an expression; a dot is in every name
_EXPRESSION = frozenset("*+?[](){}|^$\\")
METHODS = ("auto-round", "intel/auto-round")
_PACKINGS = {
    "auto_round": ("gptq", False),
    "auto_round:gptqmodel": ("gptq", False),
    "auto_round:auto_gptq": ("gptq", True),
    "auto_round:gptq": ("gptq", True),
    "auto_round:auto_awq": ("awq", False),
    "auto_round:awq": ("awq", False),
}


def read_auto_round(quantization: Mapping[str, Any], where: str) -> Scheme:
    """The scheme of a quantization_config. Raises UnsupportedError for another packing or type of values."""
    packing = quantization.get("packing_format", quantization.get("backend", "auto_round"))
    kind, rounded = quantization.get("data_type", "int"), quantization.get("act_bits")
    if packing not in _PACKINGS or kind != "int" or (type(rounded) is int and rounded < 16):
        raise UnsupportedError(
            f"{where} is already quantized by AutoRound as {shown(str(kind))} packed as {shown(str(packing))}; only"
            f" integers packed as {', '.join(sorted(_PACKINGS))} can be read, take the original 16-bit checkpoint"
        )
    method, less_one = _PACKINGS[str(packing)]
    schemes: dict[tuple[int, int], Scheme] = {}

    def scheme(settings: Mapping[str, Any]) -> Scheme | None:
        bits, group = (settings.get(key, quantization.get(key)) for key in ("bits", "group_size"))
        if type(bits) is int and bits >= 16:
            return None
        check_grid("AutoRound", bits, group, where)
        key = (int(str(bits)), int(str(group)))
        if key not in schemes:
            schemes[key] = AwqGptqScheme(method, *key, less_one, layout=str(packing), maker="auto-round")
        return schemes[key]

    default, extra = scheme({}), quantization.get("extra_config")
    if default is None:
        raise UnsupportedError(f"{where} has AutoRound's settings with 16 bits, which quantize nothing; remove them")
    if not isinstance(extra, Mapping) or not extra:
        return default
    layer_schemes = {name: scheme(settings) for name, settings in extra.items() if isinstance(settings, Mapping)}
    patterns = [
        (compiled(name, where), layer_scheme)
        for name, layer_scheme in layer_schemes.items()
        if not _EXPRESSION.isdisjoint(name)
    ]

    def scheme_of(name: str) -> Scheme | None:
        if name in layer_schemes:
            return layer_schemes[name]
        return next((layer_scheme for pattern, layer_scheme in patterns if pattern.search(name)), default)

    return MixedScheme(default, scheme_of)
