"""Model cards: README.md for a folder of outputs, with the hub's metadata and the measured figures."""
