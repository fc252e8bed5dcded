"""Quantized checkpoints: the settings of quantization_config, and one `Scheme` for each layout, which dequantizes rows.

The schemes follow the formats' descriptions and share no code with the packing in `quantkit.packed`, so that each
checks the other. They read sources of conversions, and they verify what a conversion wrote.
"""
