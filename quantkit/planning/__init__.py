"""What a model takes to store, to load and to run, from headers alone: sizes, memory, speed, placement."""
