"""Launchers of runs on several hosts."""
