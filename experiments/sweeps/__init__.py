"""Sweeps: grids of runs, their processes, and tables and figures of their results."""
