"""Quantization algorithms on arrays: grids, rounding, AWQ and GPTQ."""
