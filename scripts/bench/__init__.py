"""Benchmarks, measured side by side in one run; see `__main__`. One module per part, each with ``measure(bench)``."""
