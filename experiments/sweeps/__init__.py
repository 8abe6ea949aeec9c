"""Sweeps: many runs of one experiment, and the tables and figures that are made of their results."""
