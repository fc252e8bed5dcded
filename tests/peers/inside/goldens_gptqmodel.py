"""GPTQModel's linears, GPTQ and AWQ: `python goldens_gptqmodel.py FILE`."""

import goldens
import torch
from gptqmodel.nn_modules.qlinear.gemv_awq import AwqGEMVLinear
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
from gptqmodel.quantization.config import FORMAT
from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

N_OUT, N_IN, GROUP = 32, 64, 16


def linear_of(seed: int, n_out: int = N_OUT, n_in: int = N_IN) -> torch.nn.Linear:
    linear = torch.nn.Linear(n_in, n_out, bias=False)
    linear.weight.data = torch.from_numpy(goldens.weights(n_out, n_in, seed))
    return linear


def grid(weight: torch.Tensor, bits: int, order: torch.Tensor, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """float16 scales and zero points (n_out, n_groups); `order`: the group of each input."""
    scales, zeros = [], []
    for group in range(int(order.max()) + 1):
        own = weight[:, order == group]
        low, high = own.min(1).values.clamp(max=0), own.max(1).values.clamp(min=0)
        if symmetric:
            high = torch.maximum(-low, high)
            low = -high
        scale = ((high - low) / (2**bits - 1)).half().float()
        scales.append(scale)
        zeros.append(torch.full_like(scale, 2 ** (bits - 1)) if symmetric else torch.round(-low / scale))
    return torch.stack(scales, 1), torch.stack(zeros, 1)


def gptq(bits: int, version: int, *, symmetric: bool, act_order: bool, seed: int) -> goldens.Case:
    linear = linear_of(seed)
    order = torch.arange(N_IN) // GROUP
    if act_order:
        order = order[torch.randperm(N_IN, generator=torch.Generator().manual_seed(seed))]
    scales, zeros = grid(linear.weight.data, bits, order, symmetric)
    made = TorchLinear(bits, GROUP, symmetric, act_order, N_IN, N_OUT, register_buffers=True)
    made.pack_original(linear, scales, zeros, order.int())
    made.eval()
    made.post_init()
    expected = made.dequantize_weight().T
    if version == 1:
        convert_gptq_v2_to_v1_format_module(made, quantize_config=_Config(bits))
    settings = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": GROUP,
        "sym": symmetric,
        "desc_act": act_order,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
        "meta": {"quantizer": ["gptqmodel:7.6.0"]},
    }
    parts = {f"layer.{part}": getattr(made, part) for part in ("qweight", "qzeros", "scales", "g_idx")}
    return goldens.case(settings, parts, expected)


class _Config:
    def __init__(self, bits: int) -> None:
        self.bits, self.pack_dtype, self.format = bits, torch.int32, FORMAT.GPTQ_V2
        self.checkpoint_format = FORMAT.GPTQ_V2


def awq() -> dict[str, goldens.Case]:
    n_out, n_in, group = 64, 64, 64  # GPTQModel has the layout gemv in no smaller groups
    linear = linear_of(30, n_out, n_in)
    scales, zeros = grid(linear.weight.data, 4, torch.arange(n_in) // group, False)
    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True}
    made = AwqTorchLinear(4, group, False, False, n_in, n_out, register_buffers=True)
    made.pack(linear, scales, zeros)
    made.post_init()
    expected = made(torch.eye(n_in, dtype=torch.float16)).T
    parts = ("qweight", "qzeros", "scales")
    gemm = {f"layer.{part}": getattr(made, part) for part in parts}
    other = AwqGEMVLinear(4, group, False, False, n_in, n_out, register_buffers=True)
    other.pack(linear, scales.half(), zeros)
    gemv = {f"layer.{part}": getattr(other, part) for part in parts}
    # the kernel of this layout needs a GPU; the integers are those of the other layout
    return {
        "awq": goldens.case({**settings, "version": "gemm"}, gemm, expected),
        "awq gemv": goldens.case({**settings, "version": "gemv"}, gemv, expected),
    }


def main() -> None:
    cases = awq()
    for bits in (2, 3, 4, 8):
        for version in (1, 2):
            symmetric, act_order = bits == 4 or version == 1, bits in (3, 4) and version == 2
            name = f"gptq {bits} bit v{version}{' act-order' if act_order else ''}{'' if symmetric else ' asymmetric'}"
            cases[name] = gptq(bits, version, symmetric=symmetric, act_order=act_order, seed=bits + 8 * version)
    cases["gptq 4 bit v1 asymmetric"] = gptq(4, 1, symmetric=False, act_order=False, seed=40)
    first, second = (gptq(bits, 2, symmetric=True, act_order=False, seed=50 + bits) for bits in (4, 8))
    merged = {
        "settings": {**first["settings"], "dynamic": {r"+:.*mlp\..*": {"bits": 8}, r"-:.*kept.*": {}}},
        "tensors": {name.replace("layer", "attn.q"): value for name, value in first["tensors"].items()}
        | {name.replace("layer", "mlp.up"): value for name, value in second["tensors"].items()},
        "weights": {
            "attn.q.weight": first["weights"]["layer.weight"],
            "mlp.up.weight": second["weights"]["layer.weight"],
        },
    }
    cases["gptq, own bits of some linears"] = merged
    goldens.write(cases)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
