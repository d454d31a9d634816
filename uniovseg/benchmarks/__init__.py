"""Measurements, one file a subject; `jobs/benchmark.py` runs them."""
