"""Linen modules: the units of the paper, and the layers that they are made of."""
