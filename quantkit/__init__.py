"""quantkit: one Hugging Face checkpoint in, every quantized format out."""

__version__ = "0.1.0"
