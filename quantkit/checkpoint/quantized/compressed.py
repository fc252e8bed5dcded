"""The schemes of compressed-tensors: one for each group of `config_groups`, each with its own layout and targets.

Source: `QuantizationConfig` and `match_name` of compressed-tensors: a target is the name of a module, an expression
behind "re:", or a class of modules.
"""

from collections.abc import Mapping
from typing import Any

from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.quantized.float4 import FLOAT4_LAYOUTS, compressed_float4
from quantkit.checkpoint.quantized.float8 import Float8Scheme
from quantkit.checkpoint.quantized.integers import PlainIntegers
from quantkit.checkpoint.quantized.pack_quantized import PackedIntegers
from quantkit.checkpoint.quantized.scheme import MixedScheme, Scheme, compiled
from quantkit.errors import UnsupportedError

METHOD = "compressed-tensors"
_PLAIN = ("int-quantized", "naive-quantized", "float-quantized")
_REMEDY = "take the original 16-bit checkpoint"


def read_compressed(quantization: Mapping[str, Any], where: str) -> Scheme:
    """The scheme of a quantization_config. Raises UnsupportedError for a layout or a grid that cannot be read."""
    groups = quantization.get("config_groups")
    stated = [group for group in groups.values() if isinstance(group, Mapping)] if isinstance(groups, Mapping) else []
    weighted = [group for group in stated if isinstance(group.get("weights"), Mapping)]
    if not weighted and quantization.get("format") == "float-quantized":
        return Float8Scheme(METHOD, "weight_scale")  # AutoFP8 and early releases state no groups
    if not weighted:
        raise UnsupportedError(f"{where} is already quantized by '{METHOD}' but states no group of weights; {_REMEDY}")
    schemes = [(_targets(group, where), _scheme(group, quantization, where)) for group in weighted]
    if len(schemes) == 1:
        return schemes[0][1]
    default = schemes[0][1]

    def scheme_of(name: str) -> Scheme | None:
        # as in compressed-tensors: a name counts before an expression, and an expression before a class
        for kind in ("names", "expressions"):
            for targets, scheme in schemes:
                if name in targets.names if kind == "names" else any(p.match(name) for p in targets.expressions):
                    return scheme
        return next((scheme for targets, scheme in schemes if targets.classes), None)

    return MixedScheme(default, scheme_of)


class _Targets:
    def __init__(self, targets: list[str], where: str) -> None:
        self.expressions = [compiled(target[3:], where) for target in targets if target.startswith("re:")]
        self.names = frozenset(target for target in targets if not target.startswith("re:"))
        self.classes = [target for target in self.names if "." not in target and target[:1].isupper()]


def _targets(group: Mapping[str, Any], where: str) -> _Targets:
    targets = group.get("targets")
    return _Targets([t for t in targets if isinstance(t, str)] if isinstance(targets, list) else ["Linear"], where)


def _scheme(group: Mapping[str, Any], quantization: Mapping[str, Any], where: str) -> Scheme:
    weights: Mapping[str, Any] = group["weights"]
    layout = group.get("format") or quantization.get("format")
    bits, size, strategy = weights.get("num_bits"), weights.get("group_size"), weights.get("strategy")
    kind, symmetric = weights.get("type", "int"), weights.get("symmetric", True) is True
    if layout in FLOAT4_LAYOUTS:
        return compressed_float4(str(layout))
    if layout in _PLAIN and (kind, bits) == ("float", 8):
        block = weights.get("block_structure")
        block = tuple(block) if isinstance(block, list) and len(block) == 2 else (128, 128)
        if not all(type(n) is int and n > 0 for n in block):
            raise UnsupportedError(f"{where} has block_structure {shown(str(block))}, which cannot be read; {_REMEDY}")
        return Float8Scheme(METHOD, "weight_scale", (block[0], block[1]), layout=str(layout))
    if layout in _PLAIN and kind == "int" and type(bits) is int and 2 <= bits <= 8 and strategy != "block":
        return PlainIntegers(METHOD, bits=bits, group=size if type(size) is int else -1, layout=str(layout))
    if layout != "pack-quantized":
        raise UnsupportedError(
            f"{where} is already quantized by '{METHOD}' in the layout {shown(str(layout))}, which quantkit does not"
            f" read; {_REMEDY}"
        )
    width = -1 if strategy == "channel" else size
    if (
        not (type(bits) is int and 2 <= bits <= 8 and type(width) is int and (width > 0 or width == -1))
        or kind != "int"
        or strategy not in ("channel", "group", None)
    ):
        raise UnsupportedError(
            f"{where} has weights of {shown(str(bits))} bits, strategy {shown(str(strategy))} and group size"
            f" {shown(str(size))}; only integers of 2 to 8 bits by channel or group can be read"
        )
    return PackedIntegers(bits, width, symmetric)
