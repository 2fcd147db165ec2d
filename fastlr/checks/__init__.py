"""Proofs, while a process runs, that what is in use computes what the specification says."""
