"""Importance matrices: the file formats of llama.cpp, and the tensor names inside them."""
