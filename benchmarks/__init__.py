"""Side-by-side measurements against llama.cpp's own two steps: `make bench`, or `python -m benchmarks.run`."""
