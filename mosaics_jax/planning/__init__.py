"""Ahead-of-time planning: compiles a training step for chips that are not here, and reads off what it will cost."""
