"""The GGUF format: type mix, kernels, vocabulary, metadata, layout."""
