"""The linears of NVIDIA ModelOpt's checkpoints: FP8 with a scale of the matrix, NVFP4, and both in one model.

Sources: ModelOpt's unified checkpoints for Hugging Face; vLLM's `ModelOptNvFp4Config`.
"""

from collections.abc import Mapping
from typing import Any

from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.quantized.float4 import modelopt_float4
from quantkit.checkpoint.quantized.float8 import Float8Scheme
from quantkit.checkpoint.quantized.scheme import MixedScheme, Scheme
from quantkit.errors import UnsupportedError

_FLOAT8 = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN")
_FLOAT4 = ("NVFP4", "W4A16_NVFP4")
_MIXED = "MIXED_PRECISION"


def read_modelopt(quantization: Mapping[str, Any], where: str) -> Scheme:
    """The scheme of a quantization_config. Raises UnsupportedError for another algorithm."""
    algorithm = quantization.get("quant_algo")
    by_algorithm: dict[str, Scheme] = dict.fromkeys(_FLOAT8, Float8Scheme("modelopt", "weight_scale"))
    by_algorithm |= dict.fromkeys(_FLOAT4, modelopt_float4())
    if algorithm in by_algorithm:
        return by_algorithm[str(algorithm)]
    layers = quantization.get("quantized_layers")
    if algorithm != _MIXED or not isinstance(layers, Mapping):
        raise _unknown(algorithm, where)
    schemes = {}
    for name, settings in layers.items():
        layer_algorithm = settings.get("quant_algo") if isinstance(settings, Mapping) else None
        if layer_algorithm not in by_algorithm:
            raise _unknown(layer_algorithm, where)
        schemes[name] = by_algorithm[layer_algorithm]
    return MixedScheme(by_algorithm["NVFP4"], schemes.get)


def _unknown(algorithm: object, where: str) -> UnsupportedError:
    return UnsupportedError(
        f"{where} is already quantized by NVIDIA's ModelOpt as {shown(str(algorithm))}; only"
        f" {', '.join((*_FLOAT8, *_FLOAT4))} can be read, take the original 16-bit checkpoint"
    )
