"""The pass: what the outputs will be, and the one reading of the source that writes them all."""
