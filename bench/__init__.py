"""Benchmarks: named problems, peers, a runner that checks before it times, and the results it wrote."""
