"""The scheme that the settings of a checkpoint state."""

from collections.abc import Mapping
from typing import Any

from quantkit.checkpoint.jsonfile import shown
from quantkit.checkpoint.quantized.auto_round import METHODS, read_auto_round
from quantkit.checkpoint.quantized.awq_gptq import read_awq_gptq
from quantkit.checkpoint.quantized.bitnet import read_bitnet
from quantkit.checkpoint.quantized.bitsandbytes import read_bitsandbytes
from quantkit.checkpoint.quantized.compressed import METHOD, read_compressed
from quantkit.checkpoint.quantized.float8 import read_float8
from quantkit.checkpoint.quantized.mlx import read_mlx
from quantkit.checkpoint.quantized.modelopt import read_modelopt
from quantkit.checkpoint.quantized.scheme import Scheme
from quantkit.checkpoint.quantized.settings import is_possibly_stale
from quantkit.errors import CheckpointError, UnsupportedError

_READERS = {
    METHOD: read_compressed,
    "awq": read_awq_gptq,
    "bitnet": read_bitnet,
    "gptq": read_awq_gptq,
    "modelopt": read_modelopt,
    **dict.fromkeys(METHODS, read_auto_round),
}


def read_scheme(quantization: Mapping[str, Any], where: str) -> Scheme:
    """The scheme of a quantization_config. `where` names the checkpoint in messages.

    Raises:
        UnsupportedError: no reader has the method, the layout or the grid.
        CheckpointError: a setting makes no sense.
    """
    try:
        return _scheme(quantization, where)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the quantization settings of {where} are not shaped as expected ({type(error).__name__}: {error});"
            " download config.json again"
        ) from error


def _scheme(quantization: Mapping[str, Any], where: str) -> Scheme:
    method = quantization.get("quant_method", quantization.get("method"))
    if isinstance(method, str) and method in _READERS:
        return _READERS[method](quantization, where)
    if is_possibly_stale({"quantization_config": quantization}) == "bitsandbytes":
        return read_bitsandbytes(quantization, where)
    scheme = read_float8(quantization, where) or read_mlx(quantization, where)
    if scheme is not None:
        return scheme
    if method is None and quantization:
        return read_awq_gptq(quantization, where)
    raise UnsupportedError(
        f"{where} is already quantized ({shown(str(method))}), in a way that quantkit does not read; take the original"
        " f32, f16, bf16 checkpoint"
    )
