"""What a conversion writes, from headers alone: GGUF files, packed folders, an importance matrix, the calibration."""
