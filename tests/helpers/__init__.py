"""What tests share: the command line as a process, tiny checkpoints, stand-in servers, compiled llama.cpp tools."""
