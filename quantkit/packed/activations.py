"""How a runtime rounds the inputs of quantized linears, so that measured figures contain what that costs.

Sources: compressed-tensors' `calculate_qparams` and `fake_quantize`, transformers' `FP8Linear` (groups of 128 inputs).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from quantkit.checkpoint.dequantize import float4_values
from quantkit.forward.arrays import Array, device, fetch, place
from quantkit.forward.weights import RoundInput
from quantkit.quant.float4 import nvfp4_scales, pack_float4
from quantkit.quant.float8 import BLOCK, LARGEST

_LEAST = np.float32(np.finfo(np.float32).eps)
INPUT_SCALE = "input_global_scale"


@dataclass(frozen=True)
class Activations:
    """Rounding of inputs: `kind` "int8", "float8" or "nvfp4", with a scale for each token or each `group` of inputs."""

    kind: str
    group: int | None = None

    def rounded(self, x: NDArray[np.float32], overall: np.float32) -> NDArray[np.float32]:
        """The inputs x (n, n_in) as a linear receives them. `overall`: NVFP4's scale of all inputs."""
        grouped = x.reshape(len(x), -1, self.group or x.shape[1])
        largest = np.abs(grouped).max(axis=2, keepdims=True)
        if self.kind == "nvfp4":
            scales = nvfp4_scales(x, overall).view(ml_dtypes.float8_e4m3fn).astype(np.float32) / overall
            values = float4_values(pack_float4(x, scales)).reshape(grouped.shape) * scales[:, :, None]
        elif self.kind == "int8":
            scale = np.maximum(largest / np.float32(127.5), _LEAST)
            values = np.clip(np.rint(grouped / scale), -128, 127) * scale
        else:
            scale = np.maximum(largest / np.float32(LARGEST), _LEAST)
            limited = np.clip(grouped / scale, -LARGEST, LARGEST)
            values = limited.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
        return np.asarray(values.reshape(x.shape), np.float32)


def activations_of(quantization: Mapping[str, Any]) -> Activations | None:
    """The rounding that a quantization_config states for all its linears; None for none, or one that is not known."""
    if quantization.get("quant_method") == "fp8" and quantization.get("weight_block_size") is not None:
        return Activations("float8", BLOCK) if quantization.get("activation_scheme") == "dynamic" else None
    groups = quantization.get("config_groups")
    stated = [group for group in groups.values() if isinstance(group, Mapping)] if isinstance(groups, Mapping) else []
    settings = stated[0].get("input_activations") if len(stated) == 1 else None
    if not isinstance(settings, Mapping) or settings.get("symmetric", True) is not True:
        return None
    key = tuple(settings.get(name) for name in ("type", "num_bits", "strategy", "dynamic"))
    known: dict[tuple[Any, ...], Activations] = {
        ("int", 8, "token", True): Activations("int8"),
        ("float", 8, "token", True): Activations("float8"),
        ("float", 4, "tensor_group", "local"): Activations("nvfp4", 16),
    }
    return known.get(key)


def input_rounding(
    activations: Activations | None, linears: Collection[str], scale_of: Callable[[str], NDArray[Any]]
) -> RoundInput | None:
    """The rounding of the inputs of `linears`. `scale_of` returns a stored tensor by name."""
    if activations is None:
        return None

    def rounded(name: str, x: Array) -> Array:
        if name not in linears:
            return x
        overall = np.float32(1)
        if activations.kind == "nvfp4":
            overall = np.float32(scale_of(f"{name}.{INPUT_SCALE}").reshape(-1)[0])
        there: Array = place(activations.rounded(fetch(x), overall), device(x))
        return there

    return rounded
