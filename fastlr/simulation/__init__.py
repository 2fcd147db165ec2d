"""Molecular dynamics and relaxation with a potential, from structure files to structure files."""
