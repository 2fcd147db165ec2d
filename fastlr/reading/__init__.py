"""Structures from files: any format that ASE reads, and nothing that its readers skip or guess goes untold."""

from .frames import read_structure, read_structures

__all__ = ["read_structure", "read_structures"]
