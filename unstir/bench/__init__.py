"""Benchmarks: figures of this machine, beside a peer where one is installed."""
