"""Minimise a quadratic energy of charges under a constraint on their sum."""
