"""bitsandbytes' and AutoRound's linears: `python goldens_bitsandbytes.py FILE`."""

import goldens
import torch
from auto_round.export.export_to_awq.utils import WQLinear_GEMM
from auto_round_extension.torch.qlinear_torch import QuantLinear
from auto_round_extension.torch.qlinear_torch_zp import QuantLinear as QuantLinearLessOne
from bitsandbytes import functional

W = torch.from_numpy(goldens.weights())
N_OUT, N_IN, GROUP = 32, 64, 16


def four_bits(kind: str, nested: bool, shape: tuple[int, int] = (16, 64), block: int = 64) -> goldens.Case:
    weight = torch.from_numpy(goldens.weights(*shape))
    packed, state = functional.quantize_4bit(weight, blocksize=block, compress_statistics=nested, quant_type=kind)
    expected = functional.dequantize_4bit(packed, state)
    expected = expected.half() if len(expected) > 16 else expected.float()
    tensors = {"layer.weight": packed} | {f"layer.weight.{k}": v for k, v in state.as_dict(packed=True).items()}
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    return goldens.case({**settings, "bnb_4bit_use_double_quant": nested}, tensors, expected)


def eight_bits() -> goldens.Case:
    integers, absmax, _ = functional.int8_vectorwise_quant(W.half())
    expected = functional.int8_vectorwise_dequant(integers, absmax).float()
    tensors = {"layer.weight": integers, "layer.SCB": absmax, "layer.weight_format": torch.tensor(0, dtype=torch.uint8)}
    return goldens.case({"quant_method": "bitsandbytes", "load_in_8bit": True}, tensors, expected)


def auto_round(kind: type, packing: str, bits: int, symmetric: bool) -> goldens.Case:
    linear = torch.nn.Linear(N_IN, N_OUT, bias=False)
    linear.weight.data = torch.from_numpy(goldens.weights(N_OUT, N_IN, bits))
    groups = linear.weight.data.reshape(N_OUT, -1, GROUP)
    low, high = groups.min(2).values, groups.max(2).values
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / (2**bits - 1)).half().float()
    zeros = torch.full_like(scales, 2 ** (bits - 1)) if symmetric else torch.round(-low / scales)
    settings = {"quant_method": "auto-round", "packing_format": packing, "bits": bits, "group_size": GROUP}
    settings |= {"sym": symmetric, "data_type": "int", "autoround_version": "0.16.1"}
    if kind is WQLinear_GEMM:
        made = kind.from_linear(
            linear, bits, GROUP, scales=scales.T.contiguous(), zeros=zeros.T.contiguous(), device="cpu"
        )
    else:
        made = kind(bits, GROUP, N_IN, N_OUT, bias=False)
        made.device = "cpu"
        made.pack(linear, scales, 2 ** (bits - 1) if symmetric else zeros, None, device="cpu")
    q = torch.round(linear.weight.data / scales.repeat_interleave(GROUP, 1)) + zeros.repeat_interleave(GROUP, 1)
    expected = (q.clamp(0, 2**bits - 1) - zeros.repeat_interleave(GROUP, 1)) * scales.repeat_interleave(GROUP, 1)
    if kind is not WQLinear_GEMM:
        made.post_init()
        expected = made(torch.eye(N_IN)).T.half()
    return goldens.case(
        settings, {f"layer.{part}": getattr(made, part) for part in ("qweight", "qzeros", "scales")}, expected
    )


def main() -> None:
    cases = {"int8": eight_bits()}
    for kind in ("nf4", "fp4"):
        cases[kind] = four_bits(kind, False)
    # 260 blocks: more than one block of absolute maxima
    cases["nf4 double"] = four_bits("nf4", True, (130, 128))
    cases["fp4 double"] = four_bits("fp4", True, (16, 128), 128)
    for bits in (2, 3, 4, 8):
        cases[f"auto-round {bits} bit"] = auto_round(QuantLinear, "auto_round", bits, bits != 2)
    cases["auto-round as auto_gptq"] = auto_round(QuantLinearLessOne, "auto_round:auto_gptq", 4, True)
    cases["auto-round as auto_gptq, asymmetric"] = auto_round(QuantLinearLessOne, "auto_round:auto_gptq", 4, False)
    cases["auto-round as gptqmodel, asymmetric"] = auto_round(QuantLinear, "auto_round:gptqmodel", 4, False)
    cases["auto-round as auto_awq"] = auto_round(WQLinear_GEMM, "auto_round:auto_awq", 4, False)
    goldens.write(cases)


if __name__ == "__main__":
    with torch.no_grad():
        main()
