"""Ahead-of-time planning: compiles a training step for chips that are not attached, and reads off its costs."""
