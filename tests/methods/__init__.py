"""A package, so that `methods` is this folder even where `benchmarks/methods.py` is in reach."""
