"""AWQ (GEMM) and GPTQ (v1, v2) folders as plain float32 tensors, transcribed from the formats in torch.

Nothing here comes from quantkit: this is the second opinion on what a folder's integers mean. In both formats a linear
is held with its inputs along rows and its outputs along columns, and w = (q - zero) * scale, group by group of inputs.

AWQ: eight 4-bit values of neighbouring columns per int32, the value of column 8 i + ORDER[j] in bits 4 j to 4 j + 3.
GPTQ: consecutive bits of an int32 along the rows (qweight) or columns (qzeros), low ones first; g_idx names each row's
group. v1 ("gptq") stores zeros less one, v2 as they are. The one is given back as GPTQModel takes it away, on the
packed integer with its carries, so that a zero that was 0 is 0 again.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


def dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the folder by its plain name, in float32; the linears' as (n_out, n_in)."""
    config = quantization_config(folder)
    stored: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            stored |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    version = 2 if config.get("checkpoint_format") == "gptq_v2" else 1
    linears = sorted({name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")})
    plain = {name: value.float() for name, value in stored.items() if name.rpartition(".")[2] not in _PARTS}
    for linear in linears:
        parts = {part: stored[f"{linear}.{part}"] for part in _PARTS if f"{linear}.{part}" in stored}
        if config["quant_method"] == "awq":
            plain[f"{linear}.weight"] = awq_weight(parts, int(config["bits"]))
        else:
            plain[f"{linear}.weight"] = gptq_weight(parts, int(config["bits"]), version)
    return plain


def quantization_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text()).get("quantization_config", {})


def awq_weight(parts: dict[str, torch.Tensor], bits: int) -> torch.Tensor:
    """float32 (n_out, n_in) of qweight (n_in, n_out / 8), qzeros (n_groups, n_out / 8), scales (n_groups, n_out)."""
    assert bits == 4, f"AWQ's GEMM layout has 4 bits, not {bits}"
    q, zeros, scales = _interleaved(parts["qweight"]), _interleaved(parts["qzeros"]), parts["scales"].float()
    group = torch.arange(len(q)) // (len(q) // len(scales))
    return ((q - zeros[group]) * scales[group]).T.contiguous()


def gptq_weight(parts: dict[str, torch.Tensor], bits: int, version: int) -> torch.Tensor:
    """float32 (n_out, n_in) of qweight (n_in bits / 32, n_out), qzeros (n_groups, n_out bits / 32), scales, g_idx."""
    scales, group = parts["scales"].float(), parts["g_idx"].long()
    q = _consecutive(parts["qweight"].T, bits, len(group)).T
    read_zeros = _consecutive if version == 2 else _zeros_back
    zeros = read_zeros(parts["qzeros"], bits, scales.shape[1])
    return ((q - zeros[group]) * scales[group]).T.contiguous()


def _interleaved(packed: torch.Tensor) -> torch.Tensor:
    out = torch.empty(*packed.shape, 8)
    for position, column in enumerate(ORDER):
        out[:, :, column] = ((packed >> (4 * position)) & 15).float()
    return out.flatten(1)


def _consecutive(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """(rows, count) values of int32 (rows, count * bits / 32); a value of 3 bits may lie in two integers."""
    each_bit = (packed.unsqueeze(-1) >> torch.arange(32)) & 1
    values = each_bit.flatten(1)[:, : count * bits].unflatten(1, (count, bits))
    return (values * 2 ** torch.arange(bits)).sum(-1).float()


def _zeros_back(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    if 32 % bits:
        return (_consecutive(packed, bits, count) + 1) % 2**bits
    one_each = sum(1 << at for at in range(0, 32, bits))
    added = ((packed.long() & 0xFFFFFFFF) + one_each) & 0xFFFFFFFF
    return _consecutive(added, bits, count)
