"""llama.cpp in a process of its own: load a model, decode, generate, list devices, converse."""
