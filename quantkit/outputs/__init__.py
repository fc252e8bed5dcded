"""What a conversion writes, planned from headers: GGUF files, packed folders, the calibration, the chat template."""
