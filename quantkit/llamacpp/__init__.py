"""llama.cpp in a child process: load a model, decode, generate, list devices, chat."""
