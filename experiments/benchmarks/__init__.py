"""Benchmarks of speed and memory: ratios measured in one run, as a table and JSON rows."""
