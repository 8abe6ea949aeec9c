"""What keeps a run alive: exits, signals, locks, files that are written whole. Research code need not open it."""
