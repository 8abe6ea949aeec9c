"""Linen modules, a file per unit of the paper."""
