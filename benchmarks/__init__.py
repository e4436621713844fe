"""Benchmarks, run on request: ``python -m benchmarks.NAME``."""
