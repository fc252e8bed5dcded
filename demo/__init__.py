"""What `make demo` runs: real weights from a package index, converted, checked and measured."""
